"""How sure a mean or a Sharpe ratio is: autocorrelation-robust standard errors of dated series,
what remains after many trials, and what so many dates could have shown at all.

What is measured comes from ``rank_ic.py`` and ``portfolio.py``; here it gets its standard error.
Intervals by resampling are in ``bootstrap.py``.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from atft_model.errors import InputError
from atft_model.metrics.axes import require_trading_dates

TRADING_DAYS_PER_YEAR = 252
_NORMAL_97_5 = 1.959963984540054  # two-sided 95 %
# A series that varies by less than this share of its size is constant up to rounding.
_RELATIVE_SPREAD_FLOOR = 1e-12
# Two-day returns, one per day, have a first autocorrelation of 1/2, five-day ones of 4/5. Daily
# returns of real portfolios stay far below, so this much beyond its sampling error is overlap.
_OVERLAP_AUTOCORRELATION = 0.4
_NORMAL = NormalDist()
_EULER_GAMMA = 0.5772156649015329


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
        InputError: The returns are undated, not daily, not finite, or of overlapping days.
    """
    returns = require_daily_returns(daily_returns, dates, "sharpe")
    T = len(returns)
    lag = newey_west_lag(T)
    if T < 2 or _is_constant(returns):
        nan = float("nan")
        return SharpeEstimate(nan, nan, nan, nan, T, lag)
    daily, influence = _daily_sharpe(returns)
    annual = np.sqrt(TRADING_DAYS_PER_YEAR)
    value = float(annual * daily)
    standard_error = float(annual * _root_of_positive(long_run_variance(influence, lag) / T))
    reach = _NORMAL_97_5 * standard_error
    return SharpeEstimate(value, standard_error, value - reach, value + reach, T, lag)


def sharpe_difference(
    first: Float[np.ndarray, " dates"], second: Float[np.ndarray, " dates"], dates: np.ndarray
) -> MeanEstimate:
    """Annualised Sharpe ratio of ``first`` less that of ``second``, on the same days.

    Two portfolios of one market move together, so the error of their difference is not the sum of
    both errors: it is that of the difference of their influence functions (Ledoit and Wolf 2008).

    Raises:
        InputError: As in ``sharpe``, for either series.
    """
    a = require_daily_returns(first, dates, "sharpe_difference")
    b = require_daily_returns(second, dates, "sharpe_difference")
    T, nan = len(a), float("nan")
    lag = newey_west_lag(T)
    if T < 2 or _is_constant(a) or _is_constant(b):
        return MeanEstimate(nan, nan, nan, T, lag)
    (sharpe_a, influence_a), (sharpe_b, influence_b) = _daily_sharpe(a), _daily_sharpe(b)
    annual = float(np.sqrt(TRADING_DAYS_PER_YEAR))
    value = annual * (sharpe_a - sharpe_b)
    error = annual * _root_of_positive(long_run_variance(influence_a - influence_b, lag) / T)
    return MeanEstimate(value, error, value / error, T, lag)


def probabilistic_sharpe(
    daily_returns: Float[np.ndarray, " dates"], dates: np.ndarray, benchmark: float = 0.0
) -> float:
    """Probability that the true Sharpe ratio exceeds ``benchmark``.

    With the daily ratio SR, its skewness g3 and kurtosis g4 (3 for a normal), this is
    Phi((SR - SR*) sqrt(T - 1) / sqrt(1 - g3 SR + (g4 - 1)/4 SR^2)) (Bailey and López de Prado
    2012). Skewed and heavy-tailed returns are allowed for, autocorrelation is not: that is what the
    interval of ``sharpe`` is for.

    Args:
        daily_returns: As in ``sharpe``.
        dates: As in ``sharpe``.
        benchmark: Annualised Sharpe ratio to beat.

    Returns:
        In [0, 1]; NaN where the returns do not vary.

    Raises:
        InputError: As in ``sharpe``.
    """
    returns = require_daily_returns(daily_returns, dates, "probabilistic_sharpe")
    T = len(returns)
    if T < 2 or _is_constant(returns):
        return float("nan")
    daily = returns.mean() / returns.std(ddof=1)
    z = (returns - returns.mean()) / returns.std()
    skew, kurtosis = float((z**3).mean()), float((z**4).mean())
    variance = 1.0 - skew * daily + (kurtosis - 1.0) / 4.0 * daily**2
    distance = daily - benchmark / np.sqrt(TRADING_DAYS_PER_YEAR)
    return _NORMAL.cdf(float(distance * np.sqrt((T - 1) / max(variance, 1e-12))))


def best_sharpe_by_luck(trials: int, T: int) -> float:
    """Annualised Sharpe ratio of the best of ``trials`` strategies without skill, on average.

    The expected maximum of N normals, (1 - g) Phi^-1(1 - 1/N) + g Phi^-1(1 - 1/(N e)) with Euler's
    g, times the standard deviation 1/sqrt(T - 1) of a daily ratio without skill (Bailey and López
    de Prado 2014). Trials count as independent, which those of one project are not: cautious.

    Raises:
        InputError: ``trials`` is below 1: the run that is judged is one itself.
    """
    if trials < 1:
        raise InputError(
            f"best_sharpe_by_luck: trials = {trials}, expected 1 or more; the trial ledger lacks "
            "the run that is judged: train it through the pipeline or with --ledger"
        )
    if trials == 1 or T < 2:
        return 0.0
    expected = (1.0 - _EULER_GAMMA) * _NORMAL.inv_cdf(1.0 - 1.0 / trials)
    expected += _EULER_GAMMA * _NORMAL.inv_cdf(1.0 - 1.0 / (trials * float(np.e)))
    return float(expected * np.sqrt(TRADING_DAYS_PER_YEAR / (T - 1)))


def deflated_sharpe(
    daily_returns: Float[np.ndarray, " dates"], dates: np.ndarray, trials: int
) -> float:
    """Probability that the true Sharpe ratio exceeds what the best of ``trials`` shows by luck.

    The probabilistic Sharpe ratio against ``best_sharpe_by_luck``; with one trial, against 0.

    Raises:
        InputError: As in ``sharpe``, or ``trials`` is below 1.
    """
    benchmark = best_sharpe_by_luck(trials, len(daily_returns))
    return probabilistic_sharpe(daily_returns, dates, benchmark)


def smallest_detectable(standard_error: float, power: float = 0.8) -> float:
    """Smallest true effect that a two-sided 5 % test would show with probability ``power``.

    (1.96 + Phi^-1(power)) standard errors. A result that is not significant says nothing about
    effects smaller than this. NaN for an unknown error.

    Raises:
        InputError: ``power`` is not between 0.5 and 1.
    """
    if not 0.5 <= power < 1.0:
        raise InputError(f"smallest_detectable: power = {power}, expected from 0.5 to below 1")
    return (_NORMAL_97_5 + _NORMAL.inv_cdf(power)) * standard_error


def student_t_chance(t: float, degrees: int) -> float:
    """Probability that Student's t of so many degrees of freedom is as far from 0 as ``t``.

    Two-sided, by the finite series for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4),
    exact to about 1e-15: far below that it is 0. NaN for an unknown ``t``.

    Raises:
        InputError: ``degrees`` is below 1.
    """
    if degrees < 1:
        raise InputError(f"student_t_chance: degrees = {degrees}, expected 1 or more")
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    # Powers 1, 3, ... of the cosine where the degrees are odd, else 0, 2, ...; up to degrees - 2.
    first = degrees % 2
    term, total = cosine**first, 0.0
    for power in range(first, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if first else sine * total
    return float(np.clip(1.0 - inside, 0.0, 1.0))


def require_daily_returns(
    daily_returns: Float[np.ndarray, " dates"], dates: np.ndarray, where: str
) -> Float[np.ndarray, " dates"]:
    """The returns as float64, after refusing series whose Sharpe ratio would be meaningless.

    Raises:
        InputError: undated, not daily, not finite, or returns over several days, one per day: the
            root of 252 inflates such a series by up to the root of its days.
    """
    returns = np.asarray(daily_returns, dtype=np.float64)
    require_trading_dates(dates, len(returns), where)
    _require_finite(returns, where)
    T = len(returns)
    if T > 20 and not _is_constant(returns):
        centred = returns - returns.mean()
        first = float(centred[1:] @ centred[:-1] / (centred @ centred))
        if first - 2.0 / np.sqrt(T) > _OVERLAP_AUTOCORRELATION:
            raise InputError(
                f"{where}: returns of neighbouring days correlate by {first:.2f}, as overlapping "
                "returns of several days do; pass the daily returns of a portfolio, as "
                "returns_of_weights makes them"
            )
    return returns


def _daily_sharpe(returns: np.ndarray) -> tuple[float, np.ndarray]:
    """The ratio per day, and what each day contributes to its error."""
    std = returns.std(ddof=1)
    z = (returns - returns.mean()) / std
    daily = float(returns.mean() / std)
    return daily, z - daily / 2.0 * (z**2 - 1.0)


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
