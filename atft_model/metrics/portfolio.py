"""What trading on a score earns: dated daily returns of overlapping cohorts, turnover and cost.

Timing. A signal is known at the close of day t and entered ``execution_lag`` days later, at the
close of t+1 by default, so it earns the returns of the days t+2 ... t+1+horizon. The return of
day d is that from close d-1 to close d.

Weights are fractions of capital. Standard errors of what comes out are in ``inference.py``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.errors import InputError
from atft_model.metrics.axes import require_same_shape, require_trading_dates
from atft_model.metrics.rank_ic import MIN_STOCKS, rank_bounds

_BASIS_POINT = 1e-4


@dataclass(frozen=True)
class PortfolioConfig:
    """How a score becomes a portfolio.

    Attributes:
        horizon: Trading days that a position is held; as many cohorts run side by side.
        quantile: Share of the stocks on each side; 0.1 holds the top and the bottom decile.
        cost_bp: Cost of trading, one way, in basis points of the traded notional.
        execution_lag: Trading days from the signal's close to the entry's close.
        min_stocks: A date with fewer scored stocks holds nothing.
    """

    horizon: int
    quantile: float = 0.1
    cost_bp: float = 10.0
    execution_lag: int = 1
    min_stocks: int = MIN_STOCKS

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InputError(f"PortfolioConfig: horizon = {self.horizon}, expected 1 day or more")
        if not 0.0 < self.quantile <= 0.5:
            raise InputError(
                f"PortfolioConfig: quantile = {self.quantile}, expected above 0 and at most 0.5; "
                "0.1 is a decile"
            )
        if not (np.isfinite(self.cost_bp) and self.cost_bp >= 0.0):
            raise InputError(f"PortfolioConfig: cost_bp = {self.cost_bp}, expected 0 or more")
        if self.execution_lag < 0:
            raise InputError(
                f"PortfolioConfig: execution_lag = {self.execution_lag}, expected 0 or more days"
            )


@dataclass(frozen=True)
class PortfolioReturns:
    """Dated daily results, all as fractions of capital; ``net`` is ``gross`` less ``cost``.

    Attributes:
        dates: ``datetime64`` trading days on which all cohorts run.
        gross: Return from the previous close to this one, before costs.
        cost: Cost of the trades at the previous close that set up the day's position.
        net: Return after costs.
        turnover: Notional traded at the previous close, buys and sells added up.
        exposure: Notional held over the day, long and short added up; 2 is fully invested.
    """

    dates: np.ndarray
    gross: Float[np.ndarray, " dates"]
    cost: Float[np.ndarray, " dates"]
    net: Float[np.ndarray, " dates"]
    turnover: Float[np.ndarray, " dates"]
    exposure: Float[np.ndarray, " dates"]


def long_short_weights(
    score: Float[np.ndarray, "dates stocks"],
    tradable: Bool[np.ndarray, "dates stocks"],
    quantile: float = 0.1,
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, "dates stocks"]:
    """Equal weights: +1/n on the n highest scores of each date, -1/n on the n lowest.

    n is the quantile's share of the scored stocks, rounded down. Net exposure is 0, gross exposure
    2: one unit of capital long, one short. Stocks that tie across the edge of a side share its
    remaining places equally, so no order of columns decides; a tie that reaches from one side to
    the other cancels, and a constant score holds nothing.

    Args:
        score: Only its order within the date matters; a stock that is not finite is not scored.
        tradable: Stocks that may be held, as known at the signal's close.
        quantile: Share of the scored stocks on each side.
        min_stocks: A date with fewer scored stocks holds nothing.
    """
    require_same_shape("long_short_weights", score=score, tradable=tradable)
    scored = tradable & np.isfinite(score)
    count = scored.sum(axis=1, keepdims=True)
    # The nudge keeps 0.1 * 30 at 3 whichever way the product is rounded.
    n = np.floor(count * quantile + 1e-9)
    n = np.where(count >= min_stocks, n, 0.0)
    lowest, highest = rank_bounds(np.where(scored, score, np.nan))
    ties = highest - lowest + 1.0
    places_above = np.clip(highest - np.maximum(lowest - 1.0, count - n), 0.0, None)
    places_below = np.clip(np.minimum(highest, n) - (lowest - 1.0), 0.0, None)
    weights = (places_above - places_below) / (ties * np.maximum(n, 1.0))
    return np.where(scored & (n >= 1.0), weights, 0.0)


def equal_weights(tradable: Bool[np.ndarray, "dates stocks"]) -> Float[np.ndarray, "dates stocks"]:
    """Long-only: 1/n on each of the date's n tradable stocks; the equal-weight market."""
    count = tradable.sum(axis=1, keepdims=True)
    return np.where(tradable, 1.0 / np.maximum(count, 1), 0.0)


def overlapping_cohorts(
    weights_by_signal_date: Float[np.ndarray, "dates stocks"], horizon: int, execution_lag: int = 1
) -> Float[np.ndarray, "dates stocks"]:
    """Position that earns each day's return: the mean of the ``horizon`` cohorts then running.

    The return of day d belongs to the cohorts with signal dates d-horizon-lag ... d-1-lag, each
    with 1/horizon of the capital (Jegadeesh and Titman 1993). While the first cohorts start, the
    capital of those still missing lies idle.

    Args:
        weights_by_signal_date: One cohort per row, in the row of its signal date.
        horizon: Trading days that a cohort is held.
        execution_lag: Trading days from signal to entry.

    Returns:
        Weights in the row of the day whose return they earn.

    Raises:
        InputError: ``horizon`` is below 1 or ``execution_lag`` below 0.
    """
    if horizon < 1 or execution_lag < 0:
        raise InputError(
            f"overlapping_cohorts: horizon = {horizon}, execution_lag = {execution_lag}, "
            "expected a horizon of 1 or more and a lag of 0 or more trading days"
        )
    held = np.zeros_like(weights_by_signal_date, dtype=np.float64)
    for age in range(1 + execution_lag, 1 + execution_lag + horizon):
        held[age:] += weights_by_signal_date[:-age]
    held /= horizon
    return held


def portfolio_returns(
    score: Float[np.ndarray, "dates stocks"],
    daily_return: Float[np.ndarray, "dates stocks"],
    tradable: Bool[np.ndarray, "dates stocks"],
    dates: np.ndarray,
    config: PortfolioConfig,
    has_bar: Bool[np.ndarray, "dates stocks"] | None = None,
) -> PortfolioReturns:
    """Daily returns of the long-short portfolio that trades on a score.

    The rules of ``returns_of_weights`` apply. Signal dates are those with at least one score.

    Args:
        score: Known at the date's close; NaN where not scored.
        daily_return: Return from the previous bar's close to this close; NaN without a bar.
        tradable: Stocks that may be held, as known at the signal's close.
        dates: ``datetime64`` trading days, strictly increasing, none left out.
        config: Horizon, quantile, cost and lag.
        has_bar: Whether the stock traded on the day; by default, where ``daily_return`` is finite.

    Raises:
        InputError: Shapes differ, the returns are undated, no date has a score, or the dates are
            too few for all cohorts to run on one day.
    """
    require_same_shape("portfolio_returns", score=score, tradable=tradable)
    weights = long_short_weights(score, tradable, config.quantile, config.min_stocks)
    is_signal_date = np.any(tradable & np.isfinite(score), axis=1)
    return returns_of_weights(weights, is_signal_date, daily_return, dates, config, has_bar)


def returns_of_weights(
    weights_by_signal_date: Float[np.ndarray, "dates stocks"],
    is_signal_date: Bool[np.ndarray, " dates"],
    daily_return: Float[np.ndarray, "dates stocks"],
    dates: np.ndarray,
    config: PortfolioConfig,
    has_bar: Bool[np.ndarray, "dates stocks"] | None = None,
) -> PortfolioReturns:
    """Daily returns of any weights by signal date, held as overlapping cohorts.

    - A stock without a bar on its entry day is not entered; its share of the cohort stays in cash.
    - A stock without a bar earns 0 that day, and the whole move when its next bar comes, provided
      that a cohort still holds it. A cohort that ends meanwhile leaves at the last price; what a
      delisting returns beyond its last bar is not counted.
    - Each day the position is traded to the mean of the running cohorts, at the previous close.
      The traded notional is |weight - drifted previous weight|, where a weight drifts by its
      stock's return relative to the portfolio's gross return.
    - Only days are returned on which all ``horizon`` cohorts lie between the first and the last
      signal date: the ramp-up and the run-down are left out, with their costs.

    Args:
        weights_by_signal_date: Fractions of capital in the row of the signal's date.
        is_signal_date: Dates on which there was a signal, even one to hold nothing.
        daily_return: As in ``portfolio_returns``.
        dates: As in ``portfolio_returns``.
        config: Horizon, cost and lag.
        has_bar: As in ``portfolio_returns``.

    Raises:
        InputError: As in ``portfolio_returns``.
    """
    where = "portfolio_returns"
    bars = np.isfinite(daily_return) if has_bar is None else has_bar
    require_same_shape(
        where, weights=weights_by_signal_date, daily_return=daily_return, has_bar=bars
    )
    require_trading_dates(dates, len(weights_by_signal_date), where)
    if np.isinf(daily_return).any():
        raise InputError(f"{where}: daily_return holds infinities; a previous close was 0")
    days = _days_with_all_cohorts(is_signal_date, config)

    lag = config.execution_lag
    entered = np.zeros_like(weights_by_signal_date, dtype=np.float64)
    last = len(entered) - lag  # later signals are entered after the last date
    entered[:last] = np.where(bars[lag:], weights_by_signal_date[:last], 0.0)
    held = overlapping_cohorts(entered, config.horizon, lag)

    moves = np.where(np.isfinite(daily_return), daily_return, 0.0).astype(np.float64)
    gross = np.einsum("ij,ij->i", held, moves)
    if (gross <= -1.0).any():
        at = int(np.argmax(gross <= -1.0))
        raise InputError(
            f"{where}: the portfolio loses {-gross[at]:.0%} on {dates[at]}, expected less than all "
            "of its capital; look for a bad price on that day"
        )
    drifted = held * (1.0 + moves) / (1.0 + gross)[:, None]
    traded = held.copy()
    traded[1:] -= drifted[:-1]
    turnover = np.abs(traded).sum(axis=1)
    exposure = np.abs(held).sum(axis=1)
    cost = turnover * config.cost_bp * _BASIS_POINT
    return PortfolioReturns(
        dates=np.asarray(dates)[days],
        gross=gross[days],
        cost=cost[days],
        net=(gross - cost)[days],
        turnover=turnover[days],
        exposure=exposure[days],
    )


def drawdown(daily_returns: Float[np.ndarray, " dates"]) -> Float[np.ndarray, " dates"]:
    """Loss of the compounded capital from its highest value so far, start included; 0 to -1.

    The maximum drawdown is the minimum of the result. Capital that is lost whole stays lost. NaN
    makes all later values NaN.
    """
    capital = np.cumprod(np.maximum(1.0 + daily_returns, 0.0))
    return capital / np.maximum.accumulate(np.maximum(capital, 1.0)) - 1.0


def breakeven_cost_bp(returns: PortfolioReturns) -> float:
    """One-way cost in basis points at which the mean net return is 0.

    Negative where the portfolio loses before costs; NaN where nothing is traded.
    """
    traded = returns.turnover.sum()
    return float(returns.gross.sum() / traded / _BASIS_POINT) if traded > 0 else float("nan")


def _days_with_all_cohorts(is_signal_date: np.ndarray, config: PortfolioConfig) -> slice:
    signals = np.flatnonzero(is_signal_date)
    where = "portfolio_returns"
    if signals.size == 0:
        raise InputError(f"{where}: no date has a score, expected one on each signal date")
    first = int(signals[0]) + config.horizon + config.execution_lag
    last = min(int(signals[-1]) + 1 + config.execution_lag, len(is_signal_date) - 1)
    if first > last:
        raise InputError(
            f"{where}: signals from row {signals[0]} to {signals[-1]} of {len(is_signal_date)} "
            f"dates, expected {config.horizon + config.execution_lag + 1} dates or more for "
            f"horizon {config.horizon}; lengthen the period or shorten the horizon"
        )
    return slice(first, last + 1)
