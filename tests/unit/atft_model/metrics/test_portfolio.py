"""The portfolio against an independent loop over cohorts and stocks, and against plain sense."""

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest

from atft_model.errors import InputError
from atft_model.metrics.inference import newey_west_mean, sharpe
from atft_model.metrics.portfolio import (
    PortfolioConfig,
    breakeven_cost_bp,
    drawdown,
    equal_weights,
    long_short_weights,
    overlapping_cohorts,
    portfolio_returns,
    returns_of_weights,
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
) -> dict[int, tuple[float, float, float]]:
    """(gross, turnover, exposure) by row of the day: cohort by cohort, stock by stock."""
    dates, stocks = score.shape
    lag, horizon = config.execution_lag, config.horizon
    cohorts = []
    for t in range(dates):
        chosen = _slow_weights(score[t].tolist(), tradable[t].tolist(), config.quantile)
        entry = t + lag
        filled = {
            s: w for s, w in chosen.items() if entry < dates and np.isfinite(daily_return[entry, s])
        }
        cohorts.append((t, filled))
    result = {}
    before = dict.fromkeys(range(stocks), 0.0)
    for d in range(dates):
        position = dict.fromkeys(range(stocks), 0.0)
        for t, cohort in cohorts:
            if t + lag + 1 <= d <= t + lag + horizon:
                for s, w in cohort.items():
                    position[s] += w / horizon
        turnover = sum(abs(position[s] - before[s]) for s in range(stocks))
        move = {s: daily_return[d, s] if np.isfinite(daily_return[d, s]) else 0.0 for s in position}
        gross = sum(position[s] * move[s] for s in position)
        before = {s: w * (1 + move[s]) / (1 + gross) for s, w in position.items()}
        if d >= horizon + lag:
            result[d] = (gross, turnover, sum(abs(w) for w in position.values()))
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
    expected = np.array(list(slow.values()))
    for found, column in zip((ours.gross, ours.turnover, ours.exposure), expected.T, strict=True):
        np.testing.assert_allclose(found, column, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.cost, expected[:, 1] * 12e-4, atol=1e-12)
    np.testing.assert_allclose(ours.net, ours.gross - ours.cost, atol=1e-15)


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
    np.testing.assert_allclose(returns.gross, 0, atol=1e-15)  # left at row 3's stale price
    weights[1] = weights[0]
    returns = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config)
    np.testing.assert_allclose(returns.gross[:2], [0, 0.05], atol=1e-15)  # rows 3 and 4


def test_no_bar_on_the_entry_day_no_entry() -> None:
    weights, is_signal_date = _one_stock_book()
    daily_return = np.full((8, 2), 0.01)
    config = PortfolioConfig(horizon=4)
    entered = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config)
    assert entered.exposure[0] == pytest.approx(0.5)
    has_bar = np.ones((8, 2), dtype=bool)
    has_bar[1, 0] = False
    empty = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config, has_bar)
    assert not empty.exposure.any()
    daily_return[1, 0] = np.nan  # what has_bar is by default
    empty = returns_of_weights(weights, is_signal_date, daily_return, _days(8), config)
    assert not empty.exposure.any()


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
        portfolio_returns(score, daily_return, tradable, days, CONFIG, tradable[:1])
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
    ],
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"PortfolioConfig: {field} = "):
        replace(CONFIG, **{field: value})


def test_impossible_cohorts_are_refused() -> None:
    for horizon, lag in ((0, 1), (5, -1)):
        with pytest.raises(InputError, match="overlapping_cohorts"):
            overlapping_cohorts(np.zeros((5, 2)), horizon, lag)
