"""Breakdowns of the rank IC against scipy and statsmodels, stock by stock and date by date."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from atft_model.errors import InputError
from atft_model.metrics.breakdown import (
    equal_groups,
    neutralized,
    quantile_coverage,
    rank_ic_by_age,
    rank_ic_by_group,
)
from atft_model.metrics.rank_ic import rank_ic

DATES, STOCKS = 12, 60


def _market(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((DATES, STOCKS)).round(1)
    score[rng.random(score.shape) < 0.05] = np.nan
    target = 0.1 * np.nan_to_num(score) + rng.standard_normal(score.shape)
    target[rng.random(score.shape) < 0.05] = np.nan
    return score, target, rng.random(score.shape) < 0.9


def _spearman(x: np.ndarray, y: np.ndarray, use: np.ndarray) -> float:
    use = use & np.isfinite(x) & np.isfinite(y)
    return float(stats.spearmanr(x[use], y[use]).statistic)


@pytest.mark.parametrize("age", [0, 1, 4])
def test_an_old_score_is_judged_on_the_returns_of_a_later_date(age: int) -> None:
    score, target, valid = _market(1)
    (found,) = rank_ic_by_age(score, target, valid, [age])
    assert np.isnan(found[:age]).all()
    for day in range(age, DATES):
        expected = _spearman(score[day - age], target[day], valid[day])
        assert found[day] == pytest.approx(expected, abs=1e-10)


def test_an_age_beyond_the_dates_is_unknown_and_a_negative_one_is_refused() -> None:
    score, target, valid = _market(2)
    assert np.isnan(rank_ic_by_age(score, target, valid, [DATES, 99])).all()
    with pytest.raises(InputError, match="age -1"):
        rank_ic_by_age(score, target, valid, [-1])


def test_each_group_is_ranked_by_itself() -> None:
    score, target, valid = _market(3)
    group = np.tile(np.arange(STOCKS) % 3, (DATES, 1))
    found = rank_ic_by_group(score, target, valid, group, [0, 1, 2, 7], min_stocks=5)
    for g in range(3):
        for day in range(DATES):
            expected = _spearman(score[day], target[day], valid[day] & (group[day] == g))
            assert found[g, day] == pytest.approx(expected, abs=1e-10)
    assert np.isnan(found[3]).all()


def test_a_signal_in_one_group_alone_is_found_there() -> None:
    rng = np.random.default_rng(4)
    score, noise = rng.standard_normal((2, 100, STOCKS))
    group = np.tile(np.arange(STOCKS) % 2, (100, 1))
    target = np.where(group == 0, score + noise, noise)
    found = rank_ic_by_group(score, target, group >= 0, group, [0, 1], 10).mean(axis=1)
    assert found[0] > 0.5
    assert abs(found[1]) < 0.05


def test_equal_groups_hold_as_many_stocks_each_and_keep_ties_together() -> None:
    values = np.random.default_rng(5).standard_normal((4, 90))
    groups = equal_groups(values, np.ones(values.shape, dtype=bool), 3)
    for g in range(3):
        assert ((groups == g).sum(axis=1) == 30).all()
    assert (values[groups == 0].max() <= values[groups == 2].max()).all()
    valid = np.ones((1, 90), dtype=bool)
    valid[0, 3] = False
    assert equal_groups(np.zeros((1, 90)), valid, 3).tolist()[0].count(1) == 89
    assert equal_groups(np.zeros((1, 90)), valid, 3)[0, 3] == -1


def test_the_residual_is_that_of_a_regression_of_ranks() -> None:
    score, _, _ = _market(6)
    factors = np.random.default_rng(6).standard_normal((DATES, STOCKS, 2))
    factors[..., 0] += np.nan_to_num(score)
    sector = (np.arange(STOCKS) % 4).astype(np.int16)
    found = neutralized(score, factors, sector)
    for day in range(DATES):
        use = np.isfinite(score[day])
        y = stats.rankdata(score[day, use]) / use.sum()
        x = np.column_stack([stats.rankdata(factors[day, use, k]) for k in range(2)])
        dummies = (sector[use, None] == np.arange(1, 4)).astype(float)
        expected = sm.OLS(y, sm.add_constant(np.column_stack([x, dummies]))).fit().resid
        np.testing.assert_allclose(found[day, use], expected, atol=1e-10)
        assert np.isnan(found[day, ~use]).all()


def test_a_score_that_is_its_factor_has_nothing_left() -> None:
    score, target, valid = _market(7)
    twice = np.stack([score, 3 * score], axis=-1)  # a factor that repeats another
    residual = neutralized(score, twice)
    assert (residual[np.isfinite(score)] == 0).all()
    assert np.isnan(rank_ic(residual, target, valid)).all()


def test_an_unknown_factor_counts_as_average_and_no_factor_leaves_the_ranks() -> None:
    score, target, valid = _market(8)
    unknown = np.full((DATES, STOCKS, 1), np.nan)
    for factors in (unknown, np.empty((DATES, STOCKS, 0))):
        np.testing.assert_allclose(
            rank_ic(neutralized(score, factors), target, valid),
            rank_ic(score, target, valid), atol=0.02,
        )  # fmt: skip
    assert np.isfinite(neutralized(score, unknown)[np.isfinite(score)]).all()


def test_coverage_counts_targets_below_each_quantile() -> None:
    rng = np.random.default_rng(9)
    levels = [0.05, 0.5, 0.95]
    target = rng.standard_normal((20, 500))
    promised = np.broadcast_to(stats.norm.ppf(levels), (20, 500, 3)).copy()
    valid = np.ones(target.shape, dtype=bool)
    covered, crossed = quantile_coverage(promised, target, valid)
    np.testing.assert_allclose(covered.mean(axis=0), levels, atol=0.01)
    assert not crossed.any()
    promised[3, :50] = promised[3, :50, ::-1]
    target[4, 7] = np.nan
    valid[5] = False
    covered, crossed = quantile_coverage(promised, target, valid)
    assert crossed[3] == pytest.approx(0.1)
    known = np.isfinite(target[4])
    assert covered[4, 1] == pytest.approx((target[4, known] <= promised[4, known, 1]).mean())
    assert np.isnan(covered[5]).all()
    assert np.isnan(crossed[5])
