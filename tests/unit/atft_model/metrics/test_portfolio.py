"""The portfolio against an independent loop over cohorts and stocks, and against plain sense."""

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
from scipy import stats

from atft_model.errors import InputError
from atft_model.metrics.inference import newey_west_mean, sharpe
from atft_model.metrics.portfolio import (
    NO_RULES,
    PortfolioConfig,
    TradingRules,
    breakeven_cost_bp,
    capacity,
    drawdown,
    equal_weights,
    long_short_weights,
    overlapping_cohorts,
    portfolio_returns,
    rank_weights,
    returns_of_weights,
    top_weights,
)

DATES, STOCKS = 40, 35
CONFIG = PortfolioConfig(horizon=5, min_stocks=10)


def _days(T: int) -> np.ndarray:
    return np.busday_offset("2015-01-05", np.arange(T), roll="forward")


def _market(
    seed: int, dates: int = DATES, stocks: int = STOCKS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score with ties and NaN, returns with missing bars, a universe mask."""
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((dates, stocks)).round(1)
    score[rng.random(score.shape) < 0.05] = np.nan
    daily_return = 0.02 * rng.standard_t(4, (dates, stocks))
    daily_return[rng.random(score.shape) < 0.08] = np.nan
    return score, daily_return, rng.random(score.shape) < 0.9


def _slow_weights(score: list[float], tradable: list[bool], quantile: float) -> dict[int, float]:
    """Fill the places of each side one group of ties at a time."""
    stocks = [s for s in range(len(score)) if tradable[s] and np.isfinite(score[s])]
    n = int(len(stocks) * quantile + 1e-9)
    weights = dict.fromkeys(stocks, 0.0)
    if len(stocks) < CONFIG.min_stocks or n == 0:
        return weights
    for side in (1.0, -1.0):
        places = float(n)
        for level in sorted({score[s] for s in stocks}, reverse=side > 0):
            tied = [s for s in stocks if score[s] == level]
            filled = min(places, len(tied))
            for s in tied:
                weights[s] += side * filled / len(tied) / n
            places -= filled
    return weights


def _slow_portfolio(
    score: np.ndarray,
    daily_return: np.ndarray,
    tradable: np.ndarray,
    config: PortfolioConfig,
    rules: TradingRules = NO_RULES,
) -> dict[int, dict[str, float]]:
    """Figures by row of the day: cohort by cohort, stock by stock."""
    dates, stocks = score.shape
    lag, horizon = config.execution_lag, config.horizon
    cohorts = [
        _slow_weights(score[t].tolist(), tradable[t].tolist(), config.quantile)
        for t in range(dates)
    ]
    bars = np.isfinite(daily_return)
    result = {}
    has = dict.fromkeys(range(stocks), 0.0)
    for d in range(1, dates):
        found = dict.fromkeys(("gross", "turnover", "exposure", "short", "unfilled", "root"), 0.0)
        moves = {}
        for s in range(stocks):
            running = [cohorts[t] for t in range(dates) if t + lag < d <= t + lag + horizon]
            wanted = sum(cohort.get(s, 0.0) for cohort in running) / horizon
            buys, sells = wanted > has[s], wanted < has[s]
            blocked = not bars[d - 1, s]
            if rules.can_buy is not None and buys and not rules.can_buy[d - 1, s]:
                blocked = True
            if rules.can_sell is not None and sells and not rules.can_sell[d - 1, s]:
                blocked = True
            if blocked:
                found["unfilled"] += abs(wanted - has[s])
                wanted = has[s]
            traded = abs(wanted - has[s])
            if rules.volatility is not None and rules.traded_value is not None:
                share = traded / rules.traded_value[d - 1, s]
                found["root"] += traded * rules.volatility[d - 1, s] * share**0.5
            moves[s] = daily_return[d, s] if bars[d, s] else 0.0
            if rules.delisted is not None and rules.delisted[d, s]:
                moves[s] = config.delisting_return
            found["turnover"] += traded
            found["gross"] += wanted * moves[s]
            found["exposure"] += abs(wanted)
            found["short"] += max(-wanted, 0.0)
            has[s] = wanted
        for s in range(stocks):
            has[s] *= (1 + moves[s]) / (1 + found["gross"])
            if rules.delisted is not None and rules.delisted[d, s]:
                has[s] = 0.0
        if d >= horizon + lag:
            result[d] = found
    return result


@pytest.mark.parametrize("horizon", [1, 5, 10])
@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("quantile", [0.1, 0.33, 0.5])
def test_returns_are_those_of_a_loop_over_cohorts(horizon: int, lag: int, quantile: float) -> None:
    config = replace(CONFIG, horizon=horizon, execution_lag=lag, quantile=quantile, cost_bp=12.0)
    score, daily_return, tradable = _market(seed=horizon)
    ours = portfolio_returns(score, daily_return, tradable, _days(DATES), config)
    slow = _slow_portfolio(score, daily_return, tradable, config)
    np.testing.assert_array_equal(ours.dates, _days(DATES)[list(slow)])
    for name in ("gross", "turnover", "exposure", "unfilled"):
        expected = [found[name] for found in slow.values()]
        np.testing.assert_allclose(getattr(ours, name), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.cost, ours.turnover * 12e-4, atol=1e-12)
    np.testing.assert_allclose(ours.net, ours.gross - ours.cost, atol=1e-15)
    assert ours.unfilled.sum() > 0
    assert np.isnan(capacity(ours))  # nothing is known about impact


@pytest.mark.parametrize("horizon", [1, 5])
def test_limits_delistings_borrowing_and_impact_are_those_of_the_loop(horizon: int) -> None:
    config = replace(CONFIG, horizon=horizon, quantile=0.3, borrow_bp=300.0, capital=1e7,
                     impact=0.8, delisting_return=-0.3)  # fmt: skip
    score, daily_return, tradable = _market(seed=20 + horizon)
    rng = np.random.default_rng(20)
    delisted = np.zeros(score.shape, dtype=bool)
    for stock, day in ((3, 20), (7, 25), (9, 31)):
        daily_return[day:, stock] = np.nan
        delisted[day, stock] = True
    rules = TradingRules(
        can_buy=rng.random(score.shape) < 0.9,
        can_sell=rng.random(score.shape) < 0.9,
        delisted=delisted,
        volatility=0.01 + 0.02 * rng.random(score.shape),
        traded_value=1e6 * (1 + rng.random(score.shape)),
    )
    ours = portfolio_returns(score, daily_return, tradable, _days(DATES), config, rules)
    slow = _slow_portfolio(score, daily_return, tradable, config, rules)
    names = ("gross", "turnover", "exposure", "unfilled", "short", "root")
    expected = {name: np.array([found[name] for found in slow.values()]) for name in names}
    for name in ("gross", "turnover", "exposure", "unfilled"):
        np.testing.assert_allclose(getattr(ours, name), expected[name], rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.borrow, expected["short"] * 300e-4 / 252, atol=1e-12)
    np.testing.assert_allclose(ours.impact, 0.8 * expected["root"] * 1e7**0.5, atol=1e-10)
    cost = ours.turnover * 10e-4 + ours.borrow + ours.impact
    np.testing.assert_allclose(ours.cost, cost, atol=1e-12)


# Weights ------------------------------------------------------------------------------------------


def test_a_decile_long_and_a_decile_short() -> None:
    score = np.random.default_rng(1).permuted(np.tile(np.arange(57.0), (4, 1)), axis=1)
    weights = long_short_weights(score, np.ones(score.shape, dtype=bool))
    np.testing.assert_array_equal(weights[score >= 52], 0.2)
    np.testing.assert_array_equal(weights[score < 5], -0.2)
    assert (weights[(score >= 5) & (score < 52)] == 0).all()
    np.testing.assert_allclose(np.abs(weights).sum(axis=1), 2.0, atol=1e-12)


def test_what_may_not_be_held_or_is_not_scored_is_not_held() -> None:
    score, _, tradable = _market(2)
    score[:, 0] = np.inf
    weights = long_short_weights(score, tradable, min_stocks=10)
    assert (weights[~tradable | ~np.isfinite(score)] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 0.0, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-9])
def test_a_constant_score_holds_nothing(constant: float) -> None:
    score = np.full((DATES, STOCKS), constant)
    tradable = np.ones(score.shape, dtype=bool)
    assert not long_short_weights(score, tradable).any()
    daily_return = _market(3)[1]
    returns = portfolio_returns(score, daily_return, tradable, _days(DATES), CONFIG)
    assert not returns.net.any()
    assert np.isnan(sharpe(returns.net, returns.dates).value)
    assert np.isnan(breakeven_cost_bp(returns))


def test_ties_are_broken_without_looking_at_the_order_of_columns() -> None:
    score, _, tradable = _market(4)
    score = score.round(0)
    order = np.random.default_rng(4).permutation(STOCKS)
    np.testing.assert_array_equal(
        long_short_weights(score[:, order], tradable[:, order], min_stocks=10),
        long_short_weights(score, tradable, min_stocks=10)[:, order],
    )


def test_a_tie_that_reaches_from_side_to_side_cancels() -> None:
    score = np.zeros((1, 40))
    score[0, 0] = 1.0
    weights = long_short_weights(score, np.ones((1, 40), dtype=bool))[0]
    # 4 places a side: stock 0 takes one; 39 tied stocks share 3 above and 4 below.
    assert weights[0] == pytest.approx(0.25)
    np.testing.assert_allclose(weights[1:], (3 - 4) / 39 / 4, atol=1e-15)


def test_too_few_stocks_hold_nothing() -> None:
    score = np.arange(29.0)[None]
    assert not long_short_weights(score, np.ones((1, 29), dtype=bool)).any()
    assert not long_short_weights(score[:, :9], np.ones((1, 9), dtype=bool), 0.1, 5).any()


def test_equal_weights() -> None:
    tradable = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(equal_weights(tradable), [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def test_rank_weights_follow_the_ranks() -> None:
    score, _, tradable = _market(21)
    weights = rank_weights(score, tradable, min_stocks=10)
    use = tradable & np.isfinite(score)
    assert (weights[~use] == 0).all()
    for day in range(DATES):
        ranks = stats.rankdata(score[day, use[day]])
        centred = ranks - ranks.mean()
        expected = 2 * centred / np.abs(centred).sum()
        np.testing.assert_allclose(weights[day, use[day]], expected, atol=1e-10)
    assert not rank_weights(np.zeros((1, 40)), np.ones((1, 40), bool)).any()
    assert not rank_weights(score[:, :9], tradable[:, :9], 10).any()


def test_top_weights_hold_the_highest_scores_and_share_ties() -> None:
    score = np.random.default_rng(22).permuted(np.tile(np.arange(40.0), (3, 1)), axis=1)
    every = np.ones(score.shape, dtype=bool)
    np.testing.assert_array_equal(top_weights(score, every, 5), np.where(score >= 35, 0.2, 0.0))
    tied = np.minimum(score, 33.0)  # seven stocks share the five places
    np.testing.assert_allclose(top_weights(tied, every, 5), np.where(score >= 33, 1 / 7, 0.0))
    np.testing.assert_allclose(top_weights(np.zeros((1, 40)), every[:1], 5), 1 / 40)
    assert not top_weights(score, every, 41).any()
    assert not top_weights(score[:, :9], every[:, :9], 5, min_stocks=10).any()
    with pytest.raises(InputError, match="stocks = 0"):
        top_weights(score, every, 0)


# Timing -------------------------------------------------------------------------------------------


def test_a_cohort_earns_days_t_plus_2_to_t_plus_1_plus_horizon() -> None:
    weights = np.zeros((12, 1))
    weights[3] = 1.0
    np.testing.assert_allclose(
        overlapping_cohorts(weights, horizon=4)[:, 0],
        [0, 0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0],
    )
    np.testing.assert_allclose(
        overlapping_cohorts(weights, horizon=2, execution_lag=0)[:, 0],
        [0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 0],
    )
    assert not overlapping_cohorts(weights, horizon=30)[:5].any()


def test_only_days_are_returned_on_which_all_cohorts_run() -> None:
    score, daily_return, tradable = _market(5)
    score[:7] = np.nan  # signals from row 7 ...
    score[31:] = np.nan  # ... to row 30
    returns = portfolio_returns(score, daily_return, tradable, _days(DATES), CONFIG)
    # The first cohorts are complete on row 7 + 1 + 5, the last is entered at 31, earns from 32.
    np.testing.assert_array_equal(returns.dates, _days(DATES)[13:33])
    assert 1.0 < returns.exposure.min() <= returns.exposure.max() <= 2.0 + 1e-12


def _noise(seed: int, dates: int = 600, stocks: int = 50) -> tuple[np.ndarray, np.ndarray]:
    daily_return = 0.02 * np.random.default_rng(seed).standard_normal((dates, stocks))
    return daily_return, np.ones(daily_return.shape, dtype=bool)


def _forward_return(daily_return: np.ndarray, horizon: int) -> np.ndarray:
    """What the target of ``horizon`` is: the compounded days t+2 ... t+1+horizon."""
    target = np.full(daily_return.shape, np.nan)
    for t in range(len(daily_return) - horizon - 1):
        target[t] = np.prod(1 + daily_return[t + 2 : t + 2 + horizon], axis=0) - 1
    return target


@pytest.mark.parametrize("horizon", [1, 5, 20])
def test_an_oracle_earns_and_its_negative_loses(horizon: int) -> None:
    daily_return, tradable = _noise(6)
    config = PortfolioConfig(horizon=horizon)
    target = _forward_return(daily_return, horizon)
    gain = portfolio_returns(target, daily_return, tradable, _days(600), config)
    loss = portfolio_returns(-target, daily_return, tradable, _days(600), config)
    assert sharpe(gain.net, gain.dates).ci_low > 5
    assert sharpe(loss.net, loss.dates).ci_high < -5
    np.testing.assert_allclose(gain.gross, -loss.gross, atol=1e-12)


def test_a_day_too_early_knows_nothing() -> None:
    """A score that knows the return of day t+1 alone: with the lag it comes too late."""
    daily_return, tradable = _noise(7)
    score = np.full(daily_return.shape, np.nan)
    score[:-1] = daily_return[1:]
    late = portfolio_returns(score, daily_return, tradable, _days(600), PortfolioConfig(1))
    assert abs(newey_west_mean(late.gross).t) < 2
    at_once = PortfolioConfig(1, execution_lag=0)
    cheat = portfolio_returns(score, daily_return, tradable, _days(600), at_once)
    assert newey_west_mean(cheat.gross).t > 50


def test_returns_before_the_entry_leave_the_result_alone() -> None:
    score, daily_return, tradable = _market(8)
    expected = portfolio_returns(score, daily_return, tradable, _days(DATES), CONFIG)
    altered = np.where(np.arange(DATES)[:, None] < 2, 0.5 * daily_return, daily_return)
    found = portfolio_returns(score, altered, tradable, _days(DATES), CONFIG)
    np.testing.assert_array_equal(found.net, expected.net)


def test_the_future_leaves_the_past_alone() -> None:
    score, daily_return, tradable = _market(9)
    whole = portfolio_returns(score, daily_return, tradable, _days(DATES), CONFIG)
    cut = 30
    part = portfolio_returns(
        score[:cut], daily_return[:cut], tradable[:cut], _days(DATES)[:cut], CONFIG
    )
    for field in ("gross", "net", "turnover", "exposure"):
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[: len(part.net)])


# Missing bars -------------------------------------------------------------------------------------


def _one_stock_book() -> tuple[np.ndarray, np.ndarray]:
    """Half the capital on stock 0, from a signal on row 0, held for 4 days (rows 2 to 5)."""
    weights = np.zeros((8, 2))
    weights[0, 0] = 2.0
    is_signal_date = np.ones(8, dtype=bool)
    return weights, is_signal_date


def test_a_missing_bar_earns_nothing_and_its_move_comes_with_the_next() -> None:
    weights, is_signal_date = _one_stock_book()
    daily_return = np.zeros((8, 2))
    daily_return[3, 0] = np.nan
    daily_return[4, 0] = 0.1  # over two days
    config = PortfolioConfig(horizon=4, cost_bp=0.0)
    returns = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config)
    np.testing.assert_allclose(returns.gross, [0, 0, 0], atol=1e-15)  # rows 5, 6, 7
    config = PortfolioConfig(horizon=2, cost_bp=0.0)
    weights *= 0.5
    returns = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config)
    # Row 3's close has no price to leave at: the whole move of row 4 is still earned.
    np.testing.assert_allclose(returns.gross[:2], [0, 0.05], atol=1e-15)  # rows 3 and 4
    assert returns.unfilled[1] == pytest.approx(0.5)
    assert returns.exposure[2] == 0


def test_no_bar_on_the_entry_day_the_entry_is_at_the_next_bar() -> None:
    weights, is_signal_date = _one_stock_book()
    weights = np.vstack([np.zeros((4, 2)), weights])  # signal on row 4, entry on row 5
    is_signal_date = np.ones(12, dtype=bool)
    daily_return = np.full((12, 2), 0.01)
    config = PortfolioConfig(horizon=4)
    at_once = returns_of_weights(weights, is_signal_date, daily_return, _days(12), config)
    np.testing.assert_allclose(at_once.exposure[1:5], 0.5)  # rows 6 to 9
    has_bar = np.ones((12, 2), dtype=bool)
    has_bar[5, 0] = False
    for rules in (TradingRules(has_bar=has_bar), TradingRules(can_buy=has_bar)):
        late = returns_of_weights(weights, is_signal_date, daily_return, _days(12), config, rules)
        np.testing.assert_allclose(late.exposure[1:5], [0, 0.5, 0.5, 0.5])
    daily_return[5, 0] = np.nan  # what has_bar is by default
    late = returns_of_weights(weights, is_signal_date, daily_return, _days(12), config)
    np.testing.assert_allclose(late.exposure[1:5], [0, 0.5, 0.5, 0.5])


def test_at_a_lower_limit_nobody_buys_what_is_to_be_sold() -> None:
    weights, is_signal_date = _one_stock_book()
    daily_return = np.zeros((8, 2))
    daily_return[4:6, 0] = -0.1
    can_sell = np.ones((8, 2), dtype=bool)
    can_sell[3:5, 0] = False
    rules, config = TradingRules(can_sell=can_sell), PortfolioConfig(horizon=2, cost_bp=0.0)
    weights *= 0.5
    free = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config)
    stuck = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config, rules)
    np.testing.assert_allclose(free.gross[:3], 0, atol=1e-15)  # left at row 3's close
    first = -0.5 * 0.1
    second = 0.5 * 0.9 / (1 + first) * -0.1
    np.testing.assert_allclose(stuck.gross[:4], [0, first, second, 0], atol=1e-15)


def test_a_delisted_stock_pays_its_delisting_return_and_is_cash() -> None:
    weights, is_signal_date = np.tile([1.0, 0.0], (9, 1)), np.ones(9, dtype=bool)
    daily_return = np.full((9, 2), 0.0)
    daily_return[5:, 0] = np.nan
    delisted = np.zeros((9, 2), dtype=bool)
    delisted[5, 0] = True
    config = PortfolioConfig(horizon=2, cost_bp=0.0, delisting_return=-0.3)
    returns = returns_of_weights(
        weights, is_signal_date, daily_return, _days(9), config, TradingRules(delisted=delisted)
    )
    np.testing.assert_allclose(returns.gross, [0, 0, -0.3, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(returns.exposure, [1, 1, 1, 0, 0, 0], atol=1e-15)


# Cost ---------------------------------------------------------------------------------------------


def test_a_position_that_only_drifts_trades_nothing() -> None:
    """Capital wholly in one stock drifts with the portfolio, so holding it is free."""
    weights = np.tile([1.0, 0.0], (8, 1))
    daily_return = np.tile([0.03, -0.01], (8, 1))
    config = PortfolioConfig(horizon=1, cost_bp=10.0)
    returns = returns_of_weights(weights, np.ones(8, bool), daily_return, _days(8), config)
    np.testing.assert_allclose(returns.turnover, [1, 0, 0, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(returns.net[:2], [0.03 - 0.001, 0.03], atol=1e-15)


def test_the_breakeven_cost_is_where_the_mean_net_return_is_zero() -> None:
    daily_return, tradable = _noise(10, dates=80)
    target = _forward_return(daily_return, 5)
    gain = portfolio_returns(target, daily_return, tradable, _days(80), CONFIG)
    at_breakeven = replace(CONFIG, cost_bp=breakeven_cost_bp(gain))
    again = portfolio_returns(target, daily_return, tradable, _days(80), at_breakeven)
    assert again.net.mean() == pytest.approx(0.0, abs=1e-12)
    assert at_breakeven.cost_bp > 0
    loss = portfolio_returns(-target, daily_return, tradable, _days(80), CONFIG)
    assert breakeven_cost_bp(loss) < 0


def test_at_its_capacity_a_portfolio_earns_nothing() -> None:
    daily_return, tradable = _noise(13, dates=80)
    target = _forward_return(daily_return, 5)
    rules = TradingRules(
        volatility=np.full(daily_return.shape, 0.02), traded_value=np.full(daily_return.shape, 1e6)
    )
    small = portfolio_returns(target, daily_return, tradable, _days(80), CONFIG, rules)
    limit = capacity(small)
    assert limit > 0
    full = replace(CONFIG, capital=limit)
    again = portfolio_returns(target, daily_return, tradable, _days(80), full, rules)
    assert again.net.mean() == pytest.approx(0.0, abs=1e-12)
    assert capacity(again) == pytest.approx(limit)
    loss = portfolio_returns(-target, daily_return, tradable, _days(80), CONFIG, rules)
    assert capacity(loss) == 0.0
    with pytest.raises(InputError, match="asks for impact"):
        portfolio_returns(target, daily_return, tradable, _days(80), full)


def test_drawdown() -> None:
    daily = np.array([-0.1, 0.2, -0.5, 0.0, 1.5])
    capital = np.array([1.0, 0.9, 1.08, 0.54, 0.54, 1.35])
    expected = [capital[i] / capital[: i + 1].max() - 1 for i in range(1, 6)]
    np.testing.assert_allclose(drawdown(daily), expected, atol=1e-12)
    np.testing.assert_array_equal(drawdown(np.array([-1.5, 0.3])), [-1.0, -1.0])
    assert drawdown(np.empty(0)).shape == (0,)


# Refusals -----------------------------------------------------------------------------------------


def test_undated_returns_are_refused() -> None:
    score, daily_return, tradable = _market(11)
    for dates in (np.arange(DATES), _days(DATES)[::-1], _days(5 * DATES)[::5], _days(DATES - 1)):
        with pytest.raises(InputError, match="portfolio_returns"):
            portfolio_returns(score, daily_return, tradable, dates, CONFIG)


def test_bad_arrays_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    score, daily_return, tradable = _market(12)
    days = _days(DATES)
    with pytest.raises(InputError, match="tradable has shape"):
        portfolio_returns(score, daily_return, tradable[:, :1], days, CONFIG)
    with pytest.raises(InputError, match="daily_return has shape"):
        portfolio_returns(score, daily_return[1:], tradable, days, CONFIG)
    with pytest.raises(InputError, match="has_bar has shape"):
        portfolio_returns(
            score, daily_return, tradable, days, CONFIG, TradingRules(has_bar=tradable[:1])
        )
    with pytest.raises(InputError, match="no date has a score"):
        portfolio_returns(np.full_like(score, np.nan), daily_return, tradable, days, CONFIG)
    with pytest.raises(InputError, match="22 dates or more for horizon 20"):
        portfolio_returns(
            score[:21], daily_return[:21], tradable[:21], days[:21], replace(CONFIG, horizon=20)
        )
    with pytest.raises(InputError, match="infinities"):
        portfolio_returns(score, np.where(score > 0, np.inf, 0.0), tradable, days, CONFIG)


def test_a_loss_of_all_capital_in_a_day_is_refused() -> None:
    weights = np.tile([-1.0, 1.0], (8, 1))
    daily_return = np.zeros((8, 2))
    daily_return[6, 0] = 40.0  # a price in another currency, say
    with pytest.raises(InputError, match="loses 4000% on 2015-01-13"):
        returns_of_weights(weights, np.ones(8, bool), daily_return, _days(8), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon", 0),
        ("quantile", 0.0),
        ("quantile", 0.6),
        ("cost_bp", -1.0),
        ("cost_bp", float("nan")),
        ("execution_lag", -1),
        ("borrow_bp", -1.0),
        ("capital", float("inf")),
        ("impact", -0.1),
        ("delisting_return", -1.1),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"PortfolioConfig: {field} = "):
        replace(CONFIG, **{field: value})


def test_impossible_cohorts_are_refused() -> None:
    for horizon, lag in ((0, 1), (5, -1)):
        with pytest.raises(InputError, match="overlapping_cohorts"):
            overlapping_cohorts(np.zeros((5, 2)), horizon, lag)
