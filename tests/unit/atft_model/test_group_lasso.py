"""The group lasso against what is true of a minimum and of no other point, on stacked rows."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize

from atft_model.data.panel import Panel, fit_statistics, read_panel
from atft_model.data.relative import MIN_SECTOR
from atft_model.group_lasso import group_lasso, linear_weights, shrink
from tests.references import windows as slow

HORIZONS, FEATURES, ROWS = 3, 8, 400


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Grams and moments of targets that two of the inputs drive, with other rows per horizon."""
    rng = np.random.default_rng(0)
    grams, moments = [], []
    mixing = rng.standard_normal((FEATURES, FEATURES))
    for horizon in range(HORIZONS):
        x = rng.standard_normal((ROWS, FEATURES)) @ (np.eye(FEATURES) + 0.2 * mixing)
        y = x[:, 0] - (horizon + 1) * x[:, 3] + 3 * rng.standard_normal(ROWS)
        grams.append(x.T @ x / ROWS)
        moments.append(x.T @ y / ROWS)
    return np.stack(grams), np.stack(moments, axis=1)


def objective(grams: np.ndarray, moments: np.ndarray, weights: np.ndarray, penalty: float) -> float:
    fit = sum(0.5 * w @ g @ w - m @ w for g, m, w in zip(grams, moments.T, weights.T, strict=True))
    return float(fit + penalty * sum(np.sqrt((row**2).sum()) for row in weights))


def largest(moments: np.ndarray) -> float:
    return max(float(np.sqrt((row**2).sum())) for row in moments)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_it_is_where_the_gradient_balances_the_penalty(problem, share):
    """Kuhn-Tucker: an input that is in pulls with the penalty along its row, one out with less."""
    grams, moments = problem
    found = group_lasso(grams, moments, share)
    penalty = share * largest(moments)
    used = np.linalg.norm(found, axis=1) > 0
    for feature in range(FEATURES):
        pull = np.array([moments[feature, h] - grams[h, feature] @ found[:, h]
                         for h in range(HORIZONS)])  # fmt: skip
        if used[feature]:
            along = penalty * found[feature] / np.linalg.norm(found[feature])
            np.testing.assert_allclose(pull, along, atol=1e-4 * penalty)
        else:
            assert np.linalg.norm(pull) <= penalty
    assert used[[0, 3]].all()
    assert used.sum() < FEATURES


def test_no_other_weights_that_a_search_finds_are_better(problem):
    grams, moments = problem
    penalty = 0.3 * largest(moments)
    found = group_lasso(grams, moments, 0.3)
    search = minimize(
        lambda flat: objective(grams, moments, flat.reshape(found.shape), penalty),
        0.1 * np.random.default_rng(1).standard_normal(found.size), method="Powell",
    )  # fmt: skip
    assert objective(grams, moments, found, penalty) <= search.fun + 1e-6


def test_without_a_penalty_it_is_least_squares_and_with_the_whole_one_nothing(problem):
    grams, moments = problem
    exact = np.stack([np.linalg.solve(g, m) for g, m in zip(grams, moments.T, strict=True)], axis=1)
    np.testing.assert_allclose(group_lasso(grams, moments, 0.0), exact, atol=1e-4)
    assert not group_lasso(grams, moments, 1.0).any()
    assert group_lasso(grams, moments, 0.99).any()


def test_nothing_to_explain_needs_no_weights(problem):
    grams, moments = problem
    assert not group_lasso(grams, 0.0 * moments, 0.3).any()
    assert not group_lasso(0.0 * grams, moments, 0.3).any()


def test_a_row_is_shortened_and_keeps_its_direction():
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(shrink(rows, 1.0), [[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]])


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.mark.parametrize("relative_to", ["date", "sector"])
def test_on_a_panel_it_is_the_fit_of_stacked_rows(panel, relative_to):
    fitted = fit_statistics(panel, panel.split.train)
    grams, moments = [], []
    for index in range(len(panel.horizons)):
        rows, values = [], []
        for day in range(*panel.split.train):
            target = np.array(panel.targets[day, :, index], dtype=np.float64)
            chosen = np.flatnonzero(np.array(panel.tradable[day]) & np.isfinite(target))
            table = [slow.window(panel, fitted, s, day, 1)[0][0] for s in chosen]
            rows += [row - np.mean(table, axis=0) for row in table]
            for stock in chosen:
                mates = chosen
                if relative_to == "sector":  # each of the toy panel's has enough
                    mates = [s for s in chosen if panel.sector[s] == panel.sector[stock]]
                    assert len(mates) >= MIN_SECTOR
                values.append(target[stock] - target[mates].mean())
        x, y = np.array(rows), np.array(values)
        grams.append(x.T @ x / len(y))
        moments.append(x.T @ y / np.linalg.norm(x.T @ y))
    expected = group_lasso(np.stack(grams), np.stack(moments, axis=1), 0.3)
    found = linear_weights(panel, 0.3, relative_to)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_it_finds_the_planted_feature_and_sees_no_later_target(panel):
    found = linear_weights(panel, 0.3)
    size = np.linalg.norm(found, axis=1)
    assert size.argmax() == 0
    assert (found[0] > 0).all()
    assert (size == 0).sum() >= len(size) // 2
    targets = np.array(panel.targets)
    targets[panel.split.train[1] :] = np.nan
    np.testing.assert_array_equal(
        linear_weights(dataclasses.replace(panel, targets=targets), 0.3), found
    )


def test_the_penalty_follows_what_most_returns_are_relative_to(panel):
    """Without known sectors all are relative to the date, whatever was asked for."""
    nowhere = dataclasses.replace(panel, sector=np.zeros_like(panel.sector))
    for one, relative_to, penalty in (
        (panel, "sector", 0.15), (panel, "date", 0.3), (nowhere, "sector", 0.3),
    ):  # fmt: skip
        expected = linear_weights(one, penalty, relative_to)
        np.testing.assert_array_equal(linear_weights(one, None, relative_to), expected)
        assert np.abs(linear_weights(one, 0.2, relative_to) - expected).max() > 1e-4


def test_a_feature_that_all_stocks_of_a_date_share_gets_no_weight(panel):
    """The toy panel's last feature is a time series: it can rank nothing."""
    assert panel.normalizers[-1] == "time_series"
    np.testing.assert_allclose(linear_weights(panel, 0.0)[-1], 0.0, atol=1e-6)
