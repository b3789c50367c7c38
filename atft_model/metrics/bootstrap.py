"""Intervals by resampling blocks of days: no formula for the error, and no normal distribution.

Whole blocks are drawn, so what neighbouring days have in common stays in every draw. The means and
variances of the draws come from running sums, so thousands of draws take milliseconds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from atft_model.errors import InputError
from atft_model.metrics.inference import TRADING_DAYS_PER_YEAR, require_daily_returns

DRAWS = 1000


@dataclass(frozen=True)
class BootstrapInterval:
    """The middle 95 % of what the draws gave; NaN where the series does not vary."""

    low: float
    high: float
    block: int
    draws: int


def optimal_block_length(series: Float[np.ndarray, " dates"]) -> int:
    """Days per block of the circular block bootstrap, by the data (Politis and White 2004).

    With the correction of Patton, Politis and White (2009): the autocovariances up to twice the
    last lag that still matters, under a flat-top window, give b = (2 g^2 / d)^(1/3) T^(1/3).
    """
    T = len(series)
    centred = series - series.mean()
    if T < 9 or not np.any(centred):
        return 1
    quiet = max(5, int(np.log10(T)))  # so many insignificant lags in a row end the memory
    lags = min(int(np.ceil(np.sqrt(T))) + quiet, T - 2)
    products = np.array([centred[k:] @ centred[: T - k] for k in range(lags + 1)])
    size = [np.sqrt((centred[k + 1 :] @ centred[k + 1 :]) * (centred[: T - k - 1] @
            centred[: T - k - 1])) for k in range(lags + 1)]  # fmt: skip
    significant = np.abs(products) / np.array(size) >= 2.0 * np.sqrt(np.log10(T) / T)
    last = next((k - quiet for k in range(quiet, lags + 1)
                 if not significant[k - quiet : k].any()), None)  # fmt: skip
    reach = lags if last is None else min(2 * max(last, 1), lags)
    k = np.arange(1, reach + 1)
    window = np.where(k <= reach / 2, 1.0, 2.0 * (1.0 - k / reach))
    covariance = products / T
    g = 2.0 * float(window * k @ covariance[k])
    spectrum = float(covariance[0] + 2.0 * (window @ covariance[k]))
    if spectrum <= 0.0:
        return 1
    block = (2.0 * g**2 / (4.0 / 3.0 * spectrum**2)) ** (1 / 3) * T ** (1 / 3)
    return max(1, round(min(block, np.ceil(min(3.0 * np.sqrt(T), T / 3.0)))))


def resampled_moments(
    series: Float[np.ndarray, " dates"], starts: Int[np.ndarray, "draws blocks"], block: int
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Mean and standard deviation (ddof 1) of each draw.

    A draw is the blocks of ``block`` values that begin at its ``starts``, end to end, running on
    from the last value to the first, and cut to the length of the series.
    """
    T = len(series)
    centre = series.mean()  # the running sums stay small, and so does their rounding
    ring = np.concatenate([series, series[:block]]) - centre
    total = np.concatenate([[0.0], np.cumsum(ring)])
    square = np.concatenate([[0.0], np.cumsum(ring**2)])
    lengths = np.full(starts.shape[1], block)
    lengths[-1] = T - block * (starts.shape[1] - 1)
    stops = starts + lengths
    mean = (total[stops] - total[starts]).sum(axis=1) / T
    variance = (square[stops] - square[starts]).sum(axis=1) / T - mean**2
    return mean + centre, np.sqrt(np.maximum(variance, 0.0) * T / (T - 1))


def draw_blocks(T: int, block: int, draws: int, seed: int) -> Int[np.ndarray, "draws blocks"]:
    """Where the blocks of each draw begin."""
    if block < 1 or draws < 2:
        raise InputError(f"bootstrap: block {block}, draws {draws}; expected 1 and 2 or more")
    blocks = int(np.ceil(T / block))
    return np.random.default_rng(seed).integers(0, T, (draws, blocks))


def bootstrap_sharpe(
    daily_returns: Float[np.ndarray, " dates"],
    dates: np.ndarray,
    draws: int = DRAWS,
    seed: int = 1337,
) -> BootstrapInterval:
    """Interval of the annualised Sharpe ratio, by resampled blocks of days.

    Raises:
        InputError: As in ``inference.sharpe``.
    """
    returns = require_daily_returns(daily_returns, dates, "bootstrap_sharpe")
    if len(returns) < 2 or np.ptp(returns) <= 1e-12 * np.abs(returns).max():
        return BootstrapInterval(float("nan"), float("nan"), 1, draws)
    # The square carries the memory of the volatility, which the ratio's error depends on too.
    block = max(optimal_block_length(returns), optimal_block_length(returns**2))
    mean, std = resampled_moments(returns, draw_blocks(len(returns), block, draws, seed), block)
    ratio = np.sqrt(TRADING_DAYS_PER_YEAR) * mean / np.maximum(std, np.finfo(float).tiny)
    return _middle(ratio, block)


def bootstrap_mean(
    series: Float[np.ndarray, " dates"], draws: int = DRAWS, seed: int = 1337
) -> BootstrapInterval:
    """Interval of the mean of a dated series, such as a rank IC per date; NaN are left out."""
    known = np.asarray(series, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return BootstrapInterval(float("nan"), float("nan"), 1, draws)
    block = optimal_block_length(known)
    mean, _ = resampled_moments(known, draw_blocks(len(known), block, draws, seed), block)
    return _middle(mean, block)


def _middle(values: np.ndarray, block: int) -> BootstrapInterval:
    low, high = np.quantile(values, [0.025, 0.975])
    return BootstrapInterval(float(low), float(high), block, len(values))
