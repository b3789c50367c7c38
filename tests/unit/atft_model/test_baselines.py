"""Baselines against plain loops and the closed form of ridge regression."""

import dataclasses
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from atft_model.baselines import (
    RIDGE_PENALTIES,
    baseline_scores,
    low_volatility,
    momentum_12_1,
    random_scores,
    reversal,
    ridge,
    shuffled_within_date,
)
from atft_model.data.panel import Panel, fit_statistics, read_panel
from tests.references import windows as slow

DATES, STOCKS = 300, 9


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.fixture(scope="module")
def long_panel(panel) -> Panel:
    """Returns over more than a year, with gaps: stock 1 misses every third day, 2 lists late."""
    rng = np.random.default_rng(0)
    daily = 0.02 * rng.standard_t(4, (DATES, STOCKS))
    daily[rng.random(daily.shape) < 0.05] = np.nan
    daily[rng.random(DATES) < 0.33, 1] = np.nan
    daily[:150, 2] = np.nan
    daily[200, 3] = -0.999  # a crash beyond the -99 % at which a log return is cut
    return dataclasses.replace(panel, daily_return=daily.astype(np.float32))


def slow_log_return(daily: np.ndarray, day: int, days: int) -> float:
    """Sum of log returns of the last ``days`` days; NaN with fewer than 70 % of them known."""
    if day < days - 1:
        return math.nan
    known = [float(r) for r in daily[day - days + 1 : day + 1] if not math.isnan(r)]
    if len(known) < 0.7 * days:
        return math.nan
    return sum(math.log1p(max(r, -0.99)) for r in known)


def slow_low_volatility(daily: np.ndarray, day: int, days: int) -> float:
    if day < days - 1:
        return math.nan
    known = [float(r) for r in daily[day - days + 1 : day + 1] if not math.isnan(r)]
    return -statistics.pstdev(known) if len(known) >= 0.7 * days else math.nan


def every(panel: Panel, score) -> np.ndarray:
    """``score(one stock's returns, day)`` of every date and stock."""
    dates, stocks = panel.daily_return.shape
    return np.array(
        [[score(panel.daily_return[:, s], day) for s in range(stocks)] for day in range(dates)]
    )


@pytest.mark.parametrize("days", [1, 5])
def test_reversal_equals_a_loop(long_panel, days):
    expected = every(long_panel, lambda daily, day: -slow_log_return(daily, day, days))
    np.testing.assert_allclose(reversal(long_panel, days), expected, atol=1e-9)
    assert np.isnan(expected).any()


def test_momentum_skips_a_month_and_equals_a_loop(long_panel):
    def momentum(daily: np.ndarray, day: int) -> float:
        return slow_log_return(daily, day - 21, 252 - 21) if day >= 21 else math.nan

    found = momentum_12_1(long_panel)
    np.testing.assert_allclose(found, every(long_panel, momentum), atol=1e-9)
    assert np.isnan(found[:251]).all()
    assert np.isfinite(found[251]).any()


def test_momentum_does_not_see_the_last_month(long_panel):
    daily = np.array(long_panel.daily_return)
    daily[280:] = 0.5
    changed = dataclasses.replace(long_panel, daily_return=daily)
    np.testing.assert_array_equal(momentum_12_1(changed)[-1], momentum_12_1(long_panel)[-1])
    assert (reversal(changed, 5)[-1] != reversal(long_panel, 5)[-1]).any()


def test_low_volatility_equals_a_loop(long_panel):
    expected = every(long_panel, lambda daily, day: slow_low_volatility(daily, day, 60))
    np.testing.assert_allclose(low_volatility(long_panel), expected, atol=1e-9)


@pytest.mark.parametrize(
    "score", [lambda p: reversal(p, 1), lambda p: reversal(p, 5), momentum_12_1, low_volatility]
)
def test_later_returns_leave_earlier_scores_bit_identical(long_panel, score):
    daily = np.array(long_panel.daily_return)
    daily[270:] = np.random.default_rng(1).standard_normal(daily[270:].shape)
    changed = dataclasses.replace(long_panel, daily_return=daily)
    np.testing.assert_array_equal(score(changed)[:270], score(long_panel)[:270])


def ridge_reference(panel: Panel, horizon: int, relative_to: str) -> np.ndarray:
    """Rows stacked one by one, each penalty by least squares on augmented rows; best by scipy."""
    index = panel.horizons.index(horizon)
    fitted = fit_statistics(panel, panel.split.train)
    dates, stocks = panel.observed.shape

    def features(day: int) -> np.ndarray:
        return np.stack([slow.window(panel, fitted, s, day, 1)[0][0] for s in range(stocks)])

    table = np.stack([features(day) for day in range(dates)])
    target = np.array(panel.targets[..., index], dtype=np.float64)
    usable = np.array(panel.tradable) & np.isfinite(target)
    rows, values = [], []
    for day in range(*panel.split.train):
        chosen = np.flatnonzero(usable[day])
        if len(chosen) < 2:
            continue
        for stock in chosen:
            rows.append(table[day, stock] - table[day, chosen].mean(axis=0))
            alike = panel.sector[chosen] == panel.sector[stock]
            mates = chosen[alike] if relative_to == "sector" else chosen  # never below 5
            values.append(target[day, stock] - target[day, mates].mean())
    x, y = np.array(rows), np.array(values)
    best, best_ic = np.zeros(x.shape[1]), -math.inf
    for penalty in RIDGE_PENALTIES:
        root = math.sqrt(penalty * len(y))
        augmented = np.vstack([x, root * np.eye(x.shape[1])])
        padded = np.concatenate([y, np.zeros(x.shape[1])])
        weights = np.linalg.lstsq(augmented, padded, rcond=None)[0]
        found = []
        for day in range(*panel.split.validation):
            chosen = usable[day]
            if chosen.sum() >= 20:
                score = table[day, chosen] @ weights
                found.append(stats.spearmanr(score, target[day, chosen]).statistic)
        if np.mean(found) > best_ic:
            best, best_ic = weights, float(np.mean(found))
    return np.where(panel.observed, table @ best, np.nan)


@pytest.mark.parametrize(("horizon", "relative_to"), [(1, "date"), (20, "date"), (5, "sector")])
def test_ridge_equals_its_closed_form_on_stacked_rows(panel, horizon, relative_to):
    found = ridge(panel, horizon, relative_to)
    expected = ridge_reference(panel, horizon, relative_to)
    scale = float(np.nanstd(expected))
    assert scale > 0
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_ridge_finds_the_planted_feature_and_sees_no_test_target(panel):
    part = slice(*panel.split.test)
    found = ridge(panel, 5)
    targets = np.array(panel.targets)
    targets[part] = np.random.default_rng(0).standard_normal(targets[part].shape)
    changed = dataclasses.replace(panel, targets=targets)
    np.testing.assert_array_equal(ridge(changed, 5), found)
    signal = np.array(panel.features[..., 0])
    known = np.isfinite(found[part]) & np.isfinite(signal[part])
    assert np.corrcoef(found[part][known], signal[part][known])[0, 1] > 0.7


def test_random_scores_have_no_skill_and_repeat(panel):
    score = random_scores(panel)
    np.testing.assert_array_equal(score, random_scores(panel))
    assert (np.isfinite(score) == panel.tradable).all()
    assert not np.array_equal(score, random_scores(panel, seed=1), equal_nan=True)


def test_shuffled_scores_are_the_same_scores_of_each_date_dealt_anew(panel):
    score = random_scores(panel)
    shuffled = shuffled_within_date(score)
    np.testing.assert_array_equal(np.isnan(shuffled), np.isnan(score))
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), np.sort(score, axis=1))
    known = np.isfinite(score)
    assert (shuffled[known] == score[known]).mean() < 0.1


def test_every_baseline_scores_every_horizon_of_tradable_stocks_alone(panel):
    told = []
    found = baseline_scores(panel, told.append)
    assert told == list(found)
    for name, per_horizon in found.items():
        assert tuple(per_horizon) == panel.horizons, name
        for score in per_horizon.values():
            assert np.isnan(score[~np.array(panel.tradable)]).all(), name
    np.testing.assert_array_equal(
        found["reversal_5d"][20], np.where(panel.tradable, reversal(panel, 5), np.nan)
    )
    np.testing.assert_array_equal(
        found["ridge"][10], np.where(panel.tradable, ridge(panel, 10), np.nan)
    )
    assert not np.array_equal(found["random"][1], found["random"][5], equal_nan=True)
