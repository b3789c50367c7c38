"""What trading on a score earns: dated daily returns of overlapping cohorts, turnover and cost.

Timing. A signal is known at the close of day t and entered ``execution_lag`` days later, at the
close of t+1 by default, so it earns the returns of the days t+2 ... t+1+horizon. The return of
day d is that from close d-1 to close d. With returns from open to open instead, the same lag enters
at the open of t+1, and the same days count.

Weights are fractions of capital. Standard errors of what comes out are in ``inference.py``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.errors import InputError
from atft_model.metrics.axes import require_same_shape, require_trading_dates
from atft_model.metrics.rank_ic import MIN_STOCKS, average_ranks, for_each_block, rank_bounds

_BASIS_POINT = 1e-4
_DAYS_PER_YEAR = 252


@dataclass(frozen=True)
class PortfolioConfig:
    """How a score becomes a portfolio.

    Attributes:
        horizon: Trading days that a position is held; as many cohorts run side by side.
        quantile: Share of the stocks on each side; 0.1 holds the top and the bottom decile.
        cost_bp: Cost of trading, one way, in basis points of the traded notional.
        execution_lag: Trading days from the signal's close to the entry's close.
        min_stocks: A date with fewer scored stocks holds nothing.
        borrow_bp: Cost of borrowing, in basis points of the shorted notional a year.
        capital: In the currency of the traded value; 0 trades without impact.
        impact: Y of the square-root law: a trade of the share q of a day's traded value moves the
            price by Y times the daily volatility times the root of q. Near 1 in every market that
            was measured (Tóth and others 2011).
        delisting_return: Return of a position after its stock's last bar.
    """

    horizon: int
    quantile: float = 0.1
    cost_bp: float = 10.0
    execution_lag: int = 1
    min_stocks: int = MIN_STOCKS
    borrow_bp: float = 0.0
    capital: float = 0.0
    impact: float = 1.0
    delisting_return: float = 0.0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InputError(f"PortfolioConfig: horizon = {self.horizon}, expected 1 day or more")
        if not 0.0 < self.quantile <= 0.5:
            raise InputError(
                f"PortfolioConfig: quantile = {self.quantile}, expected above 0 and at most 0.5; "
                "0.1 is a decile"
            )
        for name in ("cost_bp", "borrow_bp", "capital", "impact"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0.0):
                raise InputError(f"PortfolioConfig: {name} = {value}, expected 0 or more")
        if self.execution_lag < 0:
            raise InputError(
                f"PortfolioConfig: execution_lag = {self.execution_lag}, expected 0 or more days"
            )
        if not -1.0 <= self.delisting_return <= 1.0:
            raise InputError(
                f"PortfolioConfig: delisting_return = {self.delisting_return}, expected from -1 "
                "(worth nothing) to 1"
            )


@dataclass(frozen=True)
class TradingRules:
    """What the market lets a portfolio do, [dates, stocks]; None: as the field says.

    Attributes:
        has_bar: Whether the stock traded on the day; None: where its return is finite.
        can_buy, can_sell: Whether the day's price takes buyers, sellers; at an upper price limit
            nobody sells. None: wherever there is a bar.
        delisted: The first day after the last bar of a stock that left the market; None: no stock
            ever left.
        volatility: Standard deviation of the daily return, as known at the close.
        traded_value: Of a usual day, in currency, as known at the close. Without these two there
            is no impact and no capacity.
    """

    has_bar: Bool[np.ndarray, "dates stocks"] | None = None
    can_buy: Bool[np.ndarray, "dates stocks"] | None = None
    can_sell: Bool[np.ndarray, "dates stocks"] | None = None
    delisted: Bool[np.ndarray, "dates stocks"] | None = None
    volatility: Float[np.ndarray, "dates stocks"] | None = None
    traded_value: Float[np.ndarray, "dates stocks"] | None = None


NO_RULES = TradingRules()


@dataclass(frozen=True)
class PortfolioReturns:
    """Dated daily results, all as fractions of capital; ``net`` is ``gross`` less ``cost``.

    Attributes:
        dates: ``datetime64`` trading days on which all cohorts run.
        gross: Return from the previous close to this one, before costs.
        cost: Cost of the trades at the previous close that set up the day's position, impact
            included, and of a day's borrowing.
        net: Return after costs.
        turnover: Notional traded at the previous close, buys and sells added up.
        exposure: Notional held over the day, long and short added up; 2 is fully invested.
        borrow: The part of the cost that is borrowing.
        impact: The part of the cost that is impact.
        impact_per_root_capital: Impact of the same trades with a capital of 1; it grows with the
            root of the capital. NaN where volatility or traded value were not given.
        unfilled: Notional that was wanted at the previous close and could not be traded.
    """

    dates: np.ndarray
    gross: Float[np.ndarray, " dates"]
    cost: Float[np.ndarray, " dates"]
    net: Float[np.ndarray, " dates"]
    turnover: Float[np.ndarray, " dates"]
    exposure: Float[np.ndarray, " dates"]
    borrow: Float[np.ndarray, " dates"]
    impact: Float[np.ndarray, " dates"]
    impact_per_root_capital: Float[np.ndarray, " dates"]
    unfilled: Float[np.ndarray, " dates"]


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
    weights = np.empty(score.shape)

    def work(block: slice) -> None:
        weights[block] = _long_short_of_block(score[block], tradable[block], quantile, min_stocks)

    for_each_block(score.shape, work)
    return weights


def _long_short_of_block(
    score: np.ndarray, tradable: np.ndarray, quantile: float, min_stocks: int
) -> np.ndarray:
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


def rank_weights(
    score: Float[np.ndarray, "dates stocks"],
    tradable: Bool[np.ndarray, "dates stocks"],
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, "dates stocks"]:
    """Every scored stock, by its rank less the middle rank: 1 of capital long, 1 short.

    The whole ranking counts, not its edges alone. Ties share their average rank; a constant score
    holds nothing, and neither does a date with fewer than ``min_stocks`` scored stocks.
    """
    require_same_shape("rank_weights", score=score, tradable=tradable)
    scored = tradable & np.isfinite(score)
    count = scored.sum(axis=1, keepdims=True)
    ranks = average_ranks(np.where(scored, score, np.nan))
    centred = np.where(scored, ranks - (count + 1) / 2, 0.0)
    side = np.abs(centred).sum(axis=1, keepdims=True) / 2
    enough = (count >= min_stocks) & (side > 0)
    return np.where(enough, centred / np.where(side > 0, side, 1.0), 0.0)


def top_weights(
    score: Float[np.ndarray, "dates stocks"],
    tradable: Bool[np.ndarray, "dates stocks"],
    stocks: int,
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, "dates stocks"]:
    """Long-only: equal weights on the ``stocks`` highest scores of each date.

    Stocks that tie across the edge share its remaining places, so a constant score holds the
    market. A date with fewer than ``min_stocks`` or ``stocks`` scored stocks holds nothing.
    """
    require_same_shape("top_weights", score=score, tradable=tradable)
    if stocks < 1:
        raise InputError(f"top_weights: stocks = {stocks}, expected 1 or more")
    scored = tradable & np.isfinite(score)
    count = scored.sum(axis=1, keepdims=True)
    lowest, highest = rank_bounds(np.where(scored, score, np.nan))
    places = np.clip(highest - np.maximum(lowest - 1.0, count - stocks), 0.0, None)
    weights = places / ((highest - lowest + 1.0) * stocks)
    return np.where(scored & (count >= max(min_stocks, stocks)), weights, 0.0)


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
    rules: TradingRules = NO_RULES,
) -> PortfolioReturns:
    """Daily returns of the long-short portfolio that trades on a score.

    The rules of ``returns_of_weights`` apply. Signal dates are those with at least one score.

    Args:
        score: Known at the date's close; NaN where not scored.
        daily_return: Return from the previous bar's close to this close; NaN without a bar.
        tradable: Stocks that may be held, as known at the signal's close.
        dates: ``datetime64`` trading days, strictly increasing, none left out.
        config: Horizon, quantile, costs and lag.
        rules: Halts, limits, delistings, and what impact depends on.

    Raises:
        InputError: Shapes differ, the returns are undated, no date has a score, or the dates are
            too few for all cohorts to run on one day.
    """
    require_same_shape("portfolio_returns", score=score, tradable=tradable)
    weights = long_short_weights(score, tradable, config.quantile, config.min_stocks)
    is_signal_date = np.any(tradable & np.isfinite(score), axis=1)
    return returns_of_weights(weights, is_signal_date, daily_return, dates, config, rules)


def returns_of_weights(
    weights_by_signal_date: Float[np.ndarray, "dates stocks"],
    is_signal_date: Bool[np.ndarray, " dates"],
    daily_return: Float[np.ndarray, "dates stocks"],
    dates: np.ndarray,
    config: PortfolioConfig,
    rules: TradingRules = NO_RULES,
) -> PortfolioReturns:
    """Daily returns of any weights by signal date, held as overlapping cohorts.

    - At each close the book is traded to the mean of the running cohorts, stock by stock. A stock
      that cannot be traded then (no bar, nobody on the other side) keeps what it has: it is entered
      at the first tradable close, if its cohorts still run, and left at the first tradable close.
    - A stock without a bar earns 0 that day, and the whole move when its next bar comes. A stock
      that leaves the market earns ``delisting_return`` on the day after its last bar and is cash
      from then on.
    - The traded notional is |weight - drifted previous weight|, where a weight drifts by its
      stock's return relative to the portfolio's gross return.
    - Only days are returned on which all ``horizon`` cohorts lie between the first and the last
      signal date: the ramp-up and the run-down are left out, with their costs.

    Args:
        weights_by_signal_date: Fractions of capital in the row of the signal's date.
        is_signal_date: Dates on which there was a signal, even one to hold nothing.
        daily_return: As in ``portfolio_returns``.
        dates: As in ``portfolio_returns``.
        config: Horizon, costs and lag.
        rules: As in ``portfolio_returns``.

    Raises:
        InputError: As in ``portfolio_returns``.
    """
    where = "portfolio_returns"
    given = {name: array for name, array in vars(rules).items() if array is not None}
    require_same_shape(where, weights=weights_by_signal_date, daily_return=daily_return, **given)
    require_trading_dates(dates, len(weights_by_signal_date), where)
    if np.isinf(daily_return).any():
        raise InputError(f"{where}: daily_return holds infinities; a previous close was 0")
    days = _days_with_all_cohorts(is_signal_date, config)
    wanted = overlapping_cohorts(weights_by_signal_date, config.horizon, config.execution_lag)
    moves = np.where(np.isfinite(daily_return), daily_return, 0.0).astype(np.float64)
    if rules.delisted is not None:
        moves[rules.delisted] = config.delisting_return
    held = _trade(wanted, moves, daily_return, dates, rules, config)
    net = held["gross"] - held["cost"]
    return PortfolioReturns(
        dates=np.asarray(dates)[days], net=net[days],
        **{name: values[days] for name, values in held.items()},
    )  # fmt: skip


def _trade(
    wanted: np.ndarray, moves: np.ndarray, daily_return: np.ndarray, dates: np.ndarray,
    rules: TradingRules, config: PortfolioConfig,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Day by day: what the book trades at the previous close, what it costs, what it earns."""
    bars = np.isfinite(daily_return) if rules.has_bar is None else rules.has_bar
    no_buying = ~bars if rules.can_buy is None else ~(bars & rules.can_buy)
    no_selling = ~bars if rules.can_sell is None else ~(bars & rules.can_sell)
    hindrance = np.any(no_buying | no_selling, axis=1)
    steepness = _impact_steepness(rules)
    names = ("gross", "cost", "turnover", "exposure", "borrow", "impact",
             "impact_per_root_capital", "unfilled")  # fmt: skip
    result = {name: np.zeros(len(wanted)) for name in names}
    if steepness is None:
        result["impact_per_root_capital"][:] = np.nan
    drifted = np.zeros(wanted.shape[1])
    for day in range(1, len(wanted)):
        trade = wanted[day] - drifted
        if hindrance[day - 1]:
            stuck = np.where(trade > 0, no_buying[day - 1], no_selling[day - 1]) & (trade != 0)
            result["unfilled"][day] = np.abs(trade[stuck]).sum()
            trade[stuck] = 0.0
        position = drifted + trade
        size = np.abs(trade)
        gross = float(position @ moves[day])
        if gross <= -1.0:
            raise InputError(
                f"portfolio_returns: the portfolio loses {-gross:.0%} on {dates[day]}, expected "
                "less than all of its capital; look for a bad price on that day"
            )
        result["gross"][day] = gross
        result["turnover"][day] = size.sum()
        result["exposure"][day] = np.abs(position).sum()
        result["borrow"][day] = np.maximum(-position, 0.0).sum()
        if steepness is not None:
            per_root = config.impact * float(size**1.5 @ steepness[day - 1])
            result["impact_per_root_capital"][day] = per_root
        drifted = position * (1.0 + moves[day]) / (1.0 + gross)
        if rules.delisted is not None:
            drifted[rules.delisted[day]] = 0.0
    result["borrow"] *= config.borrow_bp * _BASIS_POINT / _DAYS_PER_YEAR
    if config.capital > 0.0:
        if steepness is None:
            raise InputError(
                f"portfolio_returns: capital = {config.capital:g} asks for impact, but volatility "
                "and traded value were not given; give both, or set capital to 0"
            )
        result["impact"] = result["impact_per_root_capital"] * np.sqrt(config.capital)
    result["cost"] = result["turnover"] * config.cost_bp * _BASIS_POINT
    result["cost"] += result["borrow"] + result["impact"]
    return result


def _impact_steepness(rules: TradingRules) -> np.ndarray | None:
    """Volatility over the root of the traded value; where unknown, the date's largest."""
    if rules.volatility is None or rules.traded_value is None:
        return None
    value = np.where(rules.traded_value > 0, rules.traded_value, np.nan)
    steepness = rules.volatility / np.sqrt(value)
    known = np.isfinite(steepness)
    worst = np.max(steepness, axis=1, where=known, initial=0.0, keepdims=True)
    return np.where(known, steepness, worst)


def drawdown(daily_returns: Float[np.ndarray, " dates"]) -> Float[np.ndarray, " dates"]:
    """Loss of the compounded capital from its highest value so far, start included; 0 to -1.

    The maximum drawdown is the minimum of the result. Capital that is lost whole stays lost. NaN
    makes all later values NaN.
    """
    capital = np.cumprod(np.maximum(1.0 + daily_returns, 0.0))
    return capital / np.maximum.accumulate(np.maximum(capital, 1.0)) - 1.0


def breakeven_cost_bp(returns: PortfolioReturns) -> float:
    """One-way cost in basis points at which the mean net return is 0, borrowing and impact paid.

    Negative where the portfolio loses before costs; NaN where nothing is traded.
    """
    traded = returns.turnover.sum()
    left = returns.gross.sum() - returns.borrow.sum() - returns.impact.sum()
    return float(left / traded / _BASIS_POINT) if traded > 0 else float("nan")


def capacity(returns: PortfolioReturns) -> float:
    """Capital at which impact takes all that is left after the other costs, in currency.

    Impact costs capital^(1/2) times a mean that does not depend on the capital, so the capital
    follows in closed form. The positions stay those of small capital: an upper bound.

    Returns:
        0 where nothing is left without impact; NaN where impact cannot be computed.
    """
    steepness = float(returns.impact_per_root_capital.mean())
    if not np.isfinite(steepness):
        return float("nan")
    left = float((returns.net + returns.impact).mean())
    if left <= 0.0 or steepness == 0.0:
        return 0.0 if left <= 0.0 else float("inf")
    return (left / steepness) ** 2


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
