"""Ranks and per-date agreement against scipy, with ties, NaN and the historical argsort bug."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
from scipy import stats

from atft_model.errors import InputError
from atft_model.metrics.rank_ic import (
    MIN_STOCKS,
    average_ranks,
    decile_returns,
    for_each_block,
    hit_rate,
    ic,
    icir,
    rank_bounds,
    rank_ic,
)

Metric = Callable[..., np.ndarray]

DATES, STOCKS = 25, 60


def _market(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, returns with NaN, a mask; as ragged as real cross-sections."""
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((DATES, STOCKS)).round(1)
    forward_return = 0.2 * score + rng.standard_t(3, (DATES, STOCKS)).round(2)
    score[rng.random(score.shape) < 0.05] = np.nan
    forward_return[rng.random(score.shape) < 0.05] = np.nan
    return score, forward_return, rng.random(score.shape) < 0.9


@pytest.mark.parametrize("method", ["min", "max", "average"])
def test_ranks_are_those_of_scipy(method: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(-4, 5, (50, 37)).astype(np.float64)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[3] = np.nan
    values[4] = 7.0
    values[5, :6] = [np.inf, -np.inf, np.inf, np.nan, -0.0, 0.0]
    lowest, highest = rank_bounds(values)
    ours = {"min": lowest, "max": highest, "average": average_ranks(values)}[method]
    expected = stats.rankdata(values, method=method, axis=1, nan_policy="omit")
    np.testing.assert_array_equal(ours, expected)


def test_ranks_do_not_depend_on_how_dates_fall_into_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score, forward_return, valid = _market(2)
    whole = rank_ic(score, forward_return, valid)
    monkeypatch.setattr("atft_model.metrics.rank_ic._CELLS_PER_BLOCK", 7 * STOCKS)
    np.testing.assert_array_equal(rank_ic(score, forward_return, valid), whole)


@pytest.mark.parametrize(("ours", "oracle"), [(rank_ic, stats.spearmanr), (ic, stats.pearsonr)])
def test_correlations_are_those_of_scipy(ours: Metric, oracle: Callable[..., Any]) -> None:
    score, forward_return, valid = _market(3)
    result = ours(score, forward_return, valid)
    for date in range(DATES):
        pairs = valid[date] & np.isfinite(score[date]) & np.isfinite(forward_return[date])
        expected = oracle(score[date, pairs], forward_return[date, pairs]).statistic
        assert result[date] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ic_survives_extreme_units(scale: float) -> None:
    score, forward_return, valid = _market(4)
    np.testing.assert_allclose(
        ic(score * scale, forward_return, valid), ic(score, forward_return, valid), atol=1e-10
    )


def test_float32_scores_give_the_same_ranks() -> None:
    score, forward_return, valid = _market(5)
    np.testing.assert_array_equal(
        rank_ic(score.astype(np.float32), forward_return, valid),
        rank_ic(score.astype(np.float32).astype(np.float64), forward_return, valid),
    )


def _rank_ic_by_argsort(score: np.ndarray, forward_return: np.ndarray) -> float:
    """The defect of earlier systems: double argsort numbers tied values by position."""
    ranks = [np.argsort(np.argsort(side, kind="stable")) for side in (score, forward_return)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_a_constant_score_has_no_rank_ic_although_argsort_gives_it_one() -> None:
    rising = np.linspace(-0.02, 0.03, STOCKS)  # stocks listed in order of their return
    constant = np.full(STOCKS, 0.1)
    assert _rank_ic_by_argsort(constant, rising) == pytest.approx(1.0)  # the bug, at its worst
    valid = np.ones((1, STOCKS), dtype=bool)
    for metric in (rank_ic, ic, hit_rate):
        assert np.isnan(metric(constant[None], rising[None], valid)).all()
        assert np.isnan(metric(rising[None], constant[None], valid)).all()
    assert np.isnan(decile_returns(constant[None], rising[None], valid)).all()


@pytest.mark.parametrize("metric", [rank_ic, ic, hit_rate])
def test_too_few_stocks_give_nan_and_one_more_a_number(metric: Metric) -> None:
    rng = np.random.default_rng(6)
    score, forward_return = rng.standard_normal((2, 2, STOCKS))
    valid = np.zeros((2, STOCKS), dtype=bool)
    valid[0, : MIN_STOCKS - 1] = True
    valid[1, :MIN_STOCKS] = True
    result = metric(score, forward_return, valid)
    assert np.isnan(result[0])
    assert np.isfinite(result[1])
    assert np.isfinite(metric(score, forward_return, valid, min_stocks=10)).all()


@pytest.mark.parametrize("metric", [rank_ic, ic, hit_rate, decile_returns])
def test_masked_values_change_nothing(metric: Metric) -> None:
    score, forward_return, valid = _market(7)
    expected = metric(score, forward_return, valid)
    np.testing.assert_array_equal(
        metric(np.where(valid, score, 1e9), np.where(valid, forward_return, -1e9), valid), expected
    )


@pytest.mark.parametrize("metric", [rank_ic, ic, hit_rate, decile_returns])
def test_empty_and_unusable_input_gives_nan_without_a_warning(metric: Metric) -> None:
    empty = np.zeros((3, 0))
    assert np.isnan(metric(empty, empty, empty.astype(bool))).all()
    missing = np.full((3, STOCKS), np.nan)
    assert np.isnan(metric(missing, missing, np.ones((3, STOCKS), dtype=bool))).all()
    assert len(metric(np.zeros((0, 5)), np.zeros((0, 5)), np.zeros((0, 5), dtype=bool))) == 0


@pytest.mark.parametrize("metric", [rank_ic, ic, hit_rate, decile_returns])
def test_shapes_that_would_broadcast_are_refused(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    score, forward_return, valid = _market(8)
    with pytest.raises(InputError, match="valid has shape"):
        metric(score, forward_return, valid[:, :1])


def test_signs() -> None:
    score, _, valid = _market(9)
    np.testing.assert_allclose(rank_ic(score, 2 * score + 1, valid), 1.0, atol=1e-12)
    np.testing.assert_allclose(rank_ic(score, -(score**3), valid), -1.0, atol=1e-12)
    assert hit_rate(score, score, valid).min() > 0.8
    assert hit_rate(score, -score, valid).max() < 0.2


def test_hit_rate_is_that_of_a_plain_loop() -> None:
    score, forward_return, valid = _market(10)
    result = hit_rate(score, forward_return, valid)
    for date in range(DATES):
        stocks = [
            s
            for s in range(STOCKS)
            if valid[date, s] and np.isfinite(score[date, s] + forward_return[date, s])
        ]
        median = np.median(score[date, stocks])
        mean = np.mean(forward_return[date, stocks])
        hits = [
            (score[date, s] > median) == (forward_return[date, s] > mean)
            for s in stocks
            if score[date, s] != median and forward_return[date, s] != mean
        ]
        assert result[date] == pytest.approx(np.mean(hits), abs=1e-10)


def test_hit_rate_of_noise_is_a_half_even_on_skewed_returns() -> None:
    rng = np.random.default_rng(11)
    score = rng.standard_normal((400, 101))
    skewed = rng.exponential(size=(400, 101))  # 63 % of the stocks lie below the mean
    rate = hit_rate(score, skewed, np.ones(score.shape, dtype=bool)).mean()
    assert rate == pytest.approx(0.5, abs=0.01)


def test_icir() -> None:
    series = np.array([0.1, np.nan, 0.3, -0.1])
    assert icir(series) == pytest.approx(0.1 / 0.2, abs=1e-12)
    assert np.isnan(icir(np.array([0.1, np.nan])))
    assert np.isnan(icir(np.zeros(5)))
    assert np.isnan(icir(np.full(5, 0.1)))


def test_decile_returns_are_those_of_a_plain_loop() -> None:
    score, forward_return, valid = _market(12)
    result = decile_returns(score, forward_return, valid)
    assert result.shape == (DATES, 10)
    for date in range(DATES):
        pairs = np.flatnonzero(
            valid[date] & np.isfinite(score[date]) & np.isfinite(forward_return[date])
        )
        ranks = stats.rankdata(score[date, pairs])
        excess = forward_return[date, pairs] - forward_return[date, pairs].mean()
        for decile in range(10):
            low, high = decile / 10 * len(pairs), (decile + 1) / 10 * len(pairs)
            member = (ranks - 0.5 >= low - 1e-9) & (ranks - 0.5 < high - 1e-9)
            expected = excess[member].mean() if member.any() else np.nan
            assert result[date, decile] == pytest.approx(expected, abs=1e-10, nan_ok=True)


def test_deciles_of_an_oracle_rise_and_tied_stocks_stay_together() -> None:
    returns = np.arange(100.0)[None]
    valid = np.ones((1, 100), dtype=bool)
    deciles = decile_returns(returns, returns, valid)[0]
    np.testing.assert_allclose(deciles, np.arange(10) * 10 + 4.5 - 49.5, atol=1e-10)
    two_levels = np.repeat([0.0, 1.0], 50)[None]
    filled = np.isfinite(decile_returns(two_levels, returns, valid)[0])
    np.testing.assert_array_equal(np.flatnonzero(filled), [2, 7])


def test_fewer_than_two_deciles_are_refused() -> None:
    with pytest.raises(InputError, match="deciles = 1"):
        decile_returns(*_market(13), deciles=1)


def test_values_that_differ_in_their_last_bits_alone_keep_their_order() -> None:
    """The sort that brings positions along replaces those bits."""
    rng = np.random.default_rng(30)
    close = 1.0 + np.finfo(float).eps * rng.permuted(np.tile(np.arange(64.0), (3, 1)), axis=1)
    huge = rng.permuted(np.tile(np.linspace(1.1e308, 1.7e308, 64), (3, 1)), axis=1)
    signs = rng.choice([-1.0, 1.0], (3, 64)) * close
    zeros = rng.choice([-0.0, 0.0, 1e-320, -1e-320], (3, 64))
    for values in (close, -close, huge, -huge, signs, zeros):
        np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values, axis=1))
    infinite = np.where(rng.random((3, 64)) < 0.2, np.inf, huge)
    np.testing.assert_array_equal(average_ranks(infinite), stats.rankdata(infinite, axis=1))


def test_an_error_in_a_block_is_not_lost() -> None:
    """Blocks run in threads, whose errors nobody sees unless they are asked for."""

    def work(block: slice) -> None:
        if block.start > 0:
            raise InputError("block of later dates")

    for_each_block((1, 100_000), work)
    with pytest.raises(InputError, match="later dates"):
        for_each_block((5, 100_000), work)


def test_values_beyond_every_binary_order_are_ranked() -> None:
    """Ties among the largest numbers, beside missing values: where the sort keys are cut."""
    values = np.full((2, 40), np.nan)
    values[0, :6] = [1e308, 1.7e308, np.inf, 1.5e308, -1.7e308, -np.inf]
    values[1, :4] = [np.inf, 3.0, -np.inf, 2.0]
    found = average_ranks(values)
    assert found[0, :6].tolist() == [3, 5, 6, 4, 2, 1]
    assert found[1, :4].tolist() == [4, 3, 1, 2]


def test_the_two_zeros_are_one_value() -> None:
    """Alone among distinct values, where no other tie leads to the slower way."""
    values = np.array([[1.0, -0.0, 2.0, 0.0, -3.0], [1.0, -0.0, 2.0, 0.5, -3.0]])
    assert average_ranks(values).tolist() == [[4, 2.5, 5, 2.5, 1], [4, 2, 5, 3, 1]]


@pytest.mark.parametrize("missing", [0.0, 0.01, 0.4])
def test_without_ties_the_rank_ic_is_that_of_scipy(missing: float) -> None:
    rng = np.random.default_rng(7)
    score, target = rng.standard_normal((2, 25, 700))
    target += 0.1 * score
    valid = rng.random(score.shape) >= missing
    score[rng.random(score.shape) < missing] = np.nan
    found = rank_ic(score, target, valid)
    for day, value in enumerate(found):
        use = valid[day] & np.isfinite(score[day])
        expected = stats.spearmanr(score[day][use], target[day][use]).statistic
        assert value == pytest.approx(expected, abs=1e-12)
