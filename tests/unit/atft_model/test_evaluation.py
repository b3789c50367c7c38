"""Evaluation on a small panel: each figure from its own function, each option in effect."""

import dataclasses

import numpy as np
import pytest

from atft_model.breakdowns import AGES, breakdown_rows, coverage_rows
from atft_model.data.market_facts import MarketFacts
from atft_model.data.panel import Panel, read_panel
from atft_model.errors import InputError
from atft_model.evaluation import (
    MARKET,
    EvaluationConfig,
    cut_test_part,
    evaluate,
    evaluate_all,
    portfolio,
    traded_book,
    traded_score,
)
from atft_model.metrics.inference import newey_west_mean, sharpe
from atft_model.metrics.portfolio import long_short_weights
from atft_model.metrics.rank_ic import average_ranks, rank_ic

CONFIG = EvaluationConfig(min_stocks=20, top_stocks=10)


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.fixture(scope="module")
def facts(panel) -> MarketFacts:
    rng = np.random.default_rng(1)
    opens = np.asarray(panel.daily_return) + 0.001 * rng.standard_normal(panel.tradable.shape)
    return MarketFacts(open_return=opens, traded_value=1e6 * (1 + rng.random(panel.tradable.shape)))


@pytest.fixture(scope="module")
def score(panel) -> np.ndarray:
    """The feature that foretells the planted returns."""
    return np.where(panel.tradable, panel.features[..., 0], np.nan).astype(np.float64)


def test_the_rank_ic_is_that_of_the_test_dates(panel, facts, score) -> None:
    part = cut_test_part(panel, CONFIG, facts)
    result = evaluate("model", 5, score, part)
    days = slice(*panel.split.test)
    target = np.asarray(panel.targets[days, :, 1], dtype=np.float64)
    valid = np.asarray(panel.tradable[days]) & np.isfinite(score[days]) & np.isfinite(target)
    np.testing.assert_array_equal(result.rank_ic, rank_ic(score[days], target, valid, 20))
    value, error, dates = result.figures["rank_ic"]
    assert value > 0.1
    assert dates == np.isfinite(result.rank_ic).sum()
    assert result.figures["rank_ic_detectable"][0] == pytest.approx(2.8016 * error, rel=1e-3)
    assert result.figures["residual_rank_ic"][0] > 0.1


def test_a_score_that_everyone_has_leaves_no_residual(panel, facts) -> None:
    part = cut_test_part(panel, CONFIG, facts)
    known = np.full(panel.tradable.shape, np.nan)
    known[part.days] = 2.0 * part.factors["beta"] + 1.0
    figures = evaluate("beta", 5, known, part).figures
    assert np.isfinite(figures["rank_ic"][0])
    assert np.isnan(figures["residual_rank_ic"][0])


def test_controls_say_how_far_the_model_is_ahead(panel, facts, score) -> None:
    part = cut_test_part(panel, CONFIG, facts)
    noise = np.random.default_rng(2).standard_normal(score.shape)
    results = evaluate_all([("model", 5, score), ("noise", 5, noise)], part)
    model, other = results[0], results[1]
    gap = newey_west_mean(model.rank_ic - other.rank_ic, horizon=5)
    assert other.figures["rank_ic_behind_model"] == (gap.mean, gap.standard_error, gap.T)
    assert gap.t > 2
    difference = other.figures["sharpe_net_behind_model"][0]
    expected = model.figures["sharpe_net"][0] - other.figures["sharpe_net"][0]
    assert difference == pytest.approx(expected, abs=1e-10)
    assert "rank_ic_behind_model" not in model.figures
    market = next(r for r in results if r.scorer == MARKET and r.horizon == 5)
    excess = sharpe(model.net_by_construction["top"] - market.returns.net, part.dates[6:])
    assert market.figures["top_excess_sharpe"][0] == pytest.approx(excess.value, abs=1e-10)


def test_costs_and_trials_make_a_result_worse(panel, facts, score) -> None:
    free = evaluate("model", 5, score, cut_test_part(panel, CONFIG, facts)).figures
    dear_config = dataclasses.replace(CONFIG, borrow_bp=300.0, capital=1e6, cost_bp=20.0)
    dear = evaluate("model", 5, score, cut_test_part(panel, dear_config, facts, 50)).figures
    assert dear["sharpe_net"][0] < free["sharpe_net"][0]
    assert dear["sharpe_gross"] == free["sharpe_gross"]
    assert free["capacity"][0] > dear["capacity"][0] > 0
    assert dear["deflated_sharpe"][0] < dear["probabilistic_sharpe"][0]
    assert free["deflated_sharpe"][0] == free["probabilistic_sharpe"][0]
    assert dear["trials"][0] == 50


def test_entering_at_the_open_earns_the_returns_from_open_to_open(panel, facts, score) -> None:
    at_open = dataclasses.replace(CONFIG, entry="open")
    part = cut_test_part(panel, at_open, facts)
    np.testing.assert_array_equal(part.daily_return, facts.open_return[part.days])
    found = evaluate("model", 5, score, part)
    at_close = evaluate("model", 5, score, cut_test_part(panel, CONFIG, facts))
    assert not np.array_equal(found.returns.gross, at_close.returns.gross)
    np.testing.assert_array_equal(found.rank_ic, at_close.rank_ic)
    with pytest.raises(InputError, match="open prices are not given"):
        cut_test_part(panel, at_open, MarketFacts())


@pytest.mark.parametrize("name", ["sector", "beta", "size"])
def test_a_neutral_portfolio_forgets_a_tilt_to_what_it_is_neutral_to(
    panel, facts, score, name
) -> None:
    """A tilt that leads the plain portfolio's choice does not show in the neutral one's."""
    part = cut_test_part(panel, CONFIG, facts)
    tilt = np.full(score.shape, np.nan)
    if name == "sector":
        tilt[part.days] = 1.0 * (np.asarray(panel.sector) == 1)
    else:
        known = np.where(part.tradable, part.factors[name], np.nan)
        tilt[part.days] = average_ranks(known) / score.shape[1]
    tilted = score + 3.0 * np.nan_to_num(tilt)

    def lean(neutral_to: tuple[str, ...]) -> float:
        """Mean over the dates of what the book holds of the tilt, in its standard deviations."""
        config = dataclasses.replace(CONFIG, neutral_to=neutral_to)
        mine = cut_test_part(panel, config, facts)
        traded = traded_score(tilted[part.days], mine)
        weights = traded_book(long_short_weights(traded, mine.tradable, 0.1, 20), mine)
        invested = np.abs(weights).sum(axis=1)
        assert np.allclose(invested[invested > 0], 2.0)
        assert np.allclose(weights.sum(axis=1), 0.0)
        spread = np.nanstd(np.where(mine.tradable, tilt[part.days], np.nan))
        return float(np.nansum(weights * tilt[part.days], axis=1).mean() / spread)

    others = tuple(other for other in ("sector", "beta", "size") if other != name)
    plain = lean(())
    assert plain > 1.0
    assert lean(others) > 0.6 * plain  # being neutral to something else does not help
    assert abs(lean((name,))) < 1e-9
    assert abs(lean(("sector", "beta", "size"))) < 1e-9


def test_a_neutral_portfolio_earns_what_the_tilt_hid_and_its_rank_ic_stays(
    panel, facts, score
) -> None:
    tilted = score + 3.0 * (np.asarray(panel.sector) == 1)
    neutral = dataclasses.replace(CONFIG, neutral_to=("sector", "beta", "size"))
    part = cut_test_part(panel, neutral, facts)
    plain = evaluate("model", 5, tilted, cut_test_part(panel, CONFIG, facts))
    found = evaluate("model", 5, tilted, part)
    traded = traded_score(tilted[part.days], part)
    book = traded_book(long_short_weights(traded, part.tradable, 0.1, 20), part)
    np.testing.assert_array_equal(found.returns.gross, portfolio(book, 5, part).gross)
    assert found.figures["rank_ic"] == plain.figures["rank_ic"]
    assert found.figures["sharpe_gross"][0] > plain.figures["sharpe_gross"][0]


def test_impossible_settings_are_refused(panel, facts) -> None:
    with pytest.raises(InputError, match="neutral_to has momentum; expected some of sector"):
        EvaluationConfig(neutral_to=("momentum",))
    with pytest.raises(InputError, match="shuffles is 4; expected 10 or more"):
        EvaluationConfig(shuffles=4)
    for values in ({"neutral_to": ("size",)}, {"capital": 1e6}):
        with pytest.raises(InputError, match="need the traded value"):
            cut_test_part(panel, dataclasses.replace(CONFIG, **values), MarketFacts())


def test_breakdowns_of_the_whole_add_up(panel, facts, score) -> None:
    part = cut_test_part(panel, CONFIG, facts)
    result = evaluate("model", 5, score, part)
    rows = breakdown_rows(result, score, part)
    value, error, dates = result.figures["rank_ic"]
    youngest = next(r for r in rows if r.breakdown == "age" and r.group == "0")
    assert (youngest.value, youngest.standard_error, youngest.dates) == (value, error, dates)
    assert [r.group for r in rows if r.breakdown == "age"] == [str(age) for age in AGES]
    assert {r.group for r in rows if r.breakdown == "sector"} == {"a", "b", "c"}
    assert {r.group for r in rows if r.breakdown == "size"} == {"small", "middle", "large"}
    for period in ("year", "month"):
        mine = [r for r in rows if r.breakdown == period and r.metric == "rank_ic"]
        assert sum(r.dates for r in mine) == dates
        assert sum(r.value * r.dates for r in mine) / dates == pytest.approx(value)
        for r in mine:
            assert r.standard_error == pytest.approx(error * np.sqrt(dates / r.dates))


def test_true_quantiles_are_covered(panel, facts) -> None:
    part = cut_test_part(panel, CONFIG, facts)
    target = part.target(5)
    known = part.tradable & np.isfinite(target)
    total = np.where(known, target, 0.0).sum(axis=1, keepdims=True)
    z = (target - total / np.maximum(known.sum(axis=1, keepdims=True), 1)) / 0.04
    levels = (0.25, 0.5, 0.75)
    flat = np.quantile(z[known], levels)
    quantiles = np.broadcast_to(flat, (*target.shape, 3)).copy()
    rows = {r.group: r for r in coverage_rows(5, quantiles, levels, 0.04, part)}
    for level in levels:
        assert rows[f"{level:g}"].value == pytest.approx(level, abs=0.02)
    assert rows["all"].metric == "crossing"
    assert rows["all"].value == 0.0
