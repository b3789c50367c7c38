"""How sure a mean or a Sharpe ratio is: autocorrelation-robust standard errors of dated series.

What is measured comes from ``rank_ic.py`` and ``portfolio.py``; here it gets its standard error.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from atft_model.errors import InputError
from atft_model.metrics.axes import require_trading_dates

TRADING_DAYS_PER_YEAR = 252
_NORMAL_97_5 = 1.959963984540054  # two-sided 95 %
# A series that varies by less than this share of its size is constant up to rounding.
_RELATIVE_SPREAD_FLOOR = 1e-12


@dataclass(frozen=True)
class MeanEstimate:
    """A mean and how sure it is.

    ``standard_error`` and ``t`` are NaN where the series does not vary or has fewer than two
    values; ``mean`` is NaN only where there is no value at all.
    """

    mean: float
    standard_error: float
    t: float
    T: int
    lag: int


@dataclass(frozen=True)
class SharpeEstimate:
    """An annualised Sharpe ratio, its standard error and its 95 % interval.

    All NaN where the returns do not vary: a book that holds nothing has no Sharpe ratio.
    """

    value: float
    standard_error: float
    ci_low: float
    ci_high: float
    T: int
    lag: int


def newey_west_lag(T: int, horizon: int = 1) -> int:
    """Number of autocovariances to count: floor(4 (T/100)^(2/9)), at least 2 (horizon - 1).

    Values of overlapping h-day series are correlated up to lag h - 1. The Bartlett weights shrink
    those correlations, so stopping there understates the error: for h = 20 and 1,500 days a nominal
    95 % interval then covers 89 %, with twice that lag 92 %. (Newey and West 1994 give the rule.)

    Args:
        T: Number of values.
        horizon: Trading days that one value spans.
    """
    if T < 2:
        return 0
    return min(max(int(4 * (T / 100) ** (2 / 9)), 2 * (horizon - 1)), T - 1)


def long_run_variance(series: Float[np.ndarray, " dates"], lag: int) -> float:
    """Bartlett-weighted sum of the autocovariances up to ``lag`` (Newey and West 1987).

    The series is demeaned; autocovariances divide by T, which keeps the sum non-negative. The
    variance of the series' mean is this over T.
    """
    centred = series - series.mean()
    T = len(centred)
    total = float(centred @ centred) / T
    for k in range(1, lag + 1):
        total += 2.0 * (1.0 - k / (lag + 1)) * float(centred[k:] @ centred[:-k]) / T
    return total


def newey_west_mean(
    series: Float[np.ndarray, " dates"], lag: int | None = None, horizon: int = 1
) -> MeanEstimate:
    """Mean of a dated series with a Newey-West standard error; NaN are left out.

    Args:
        series: In date order, for example a rank IC per date.
        lag: Autocovariances to count; by default ``newey_west_lag`` of what is left after NaN.
        horizon: Trading days that one value spans, for the default lag of overlapping series.

    Raises:
        InputError: The series holds an infinity, or ``lag`` is negative or not below T.
    """
    known = np.asarray(series, dtype=np.float64)
    known = known[~np.isnan(known)]
    _require_finite(known, "newey_west_mean")
    T = len(known)
    lag = newey_west_lag(T, horizon) if lag is None else lag
    if lag < 0 or lag > max(T - 1, 0):
        raise InputError(
            f"newey_west_mean: lag {lag} for {T} values, expected 0 to {max(T - 1, 0)}"
        )
    mean = float(known.mean()) if T else float("nan")
    if T < 2 or _is_constant(known):
        return MeanEstimate(mean, float("nan"), float("nan"), T, lag)
    standard_error = _root_of_positive(long_run_variance(known, lag) / T)
    return MeanEstimate(mean, standard_error, mean / standard_error, T, lag)


def sharpe(daily_returns: Float[np.ndarray, " dates"], dates: np.ndarray) -> SharpeEstimate:
    """Annualised Sharpe ratio, mean / std * sqrt(252), of a dated daily return series.

    The standard error follows from the delta method: with z = (r - mean) / std, the ratio's
    influence function is z - SR/2 (z^2 - 1), and its Newey-West long-run variance over T is the
    variance of the daily ratio (Lo 2002; Ledoit and Wolf 2008). It holds for skewed, heavy-tailed
    and autocorrelated returns; the interval is normal.

    Args:
        daily_returns: One return per trading day, as fractions; std has ddof 1.
        dates: ``datetime64`` trading days, strictly increasing.

    Raises:
        InputError: The returns are undated, not daily, or not finite.
    """
    returns = np.asarray(daily_returns, dtype=np.float64)
    require_trading_dates(dates, len(returns), "sharpe")
    _require_finite(returns, "sharpe")
    T = len(returns)
    lag = newey_west_lag(T)
    if T < 2 or _is_constant(returns):
        nan = float("nan")
        return SharpeEstimate(nan, nan, nan, nan, T, lag)
    std = returns.std(ddof=1)
    z = (returns - returns.mean()) / std
    daily = float(returns.mean() / std)
    influence = z - daily / 2.0 * (z**2 - 1.0)
    annual = np.sqrt(TRADING_DAYS_PER_YEAR)
    value = float(annual * daily)
    standard_error = float(annual * _root_of_positive(long_run_variance(influence, lag) / T))
    reach = _NORMAL_97_5 * standard_error
    return SharpeEstimate(value, standard_error, value - reach, value + reach, T, lag)


def _is_constant(series: np.ndarray) -> bool:
    return bool(np.ptp(series) <= _RELATIVE_SPREAD_FLOOR * np.abs(series).max())


def _root_of_positive(variance: float) -> float:
    """Square root; NaN for a variance of zero, which would claim certainty."""
    return float(np.sqrt(variance)) if variance > 0 else float("nan")


def _require_finite(series: np.ndarray, where: str) -> None:
    bad = int((~np.isfinite(series)).sum())
    if bad:
        raise InputError(
            f"{where}: {bad} of {len(series)} values are not finite, expected numbers; "
            "mask the days that cannot be computed"
        )
