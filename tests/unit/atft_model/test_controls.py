"""What luck looks like, against scipy and against the metric that judges the model."""

import numpy as np
import pytest
from scipy import stats

from atft_model import controls
from atft_model.controls import band_of, random_rank_ics, shuffled_control
from atft_model.data.graph import GraphConfig, build_graph
from atft_model.data.panel import read_panel
from atft_model.data.random_graph import random_graph

DATES, STOCKS = 30, 60


def _market(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((DATES, STOCKS))
    target = 0.5 * score + rng.standard_normal(score.shape)
    target[rng.random(score.shape) < 0.1] = np.nan
    return score, target, rng.random(score.shape) < 0.9


def test_the_band_is_that_of_random_spearman_correlations() -> None:
    _, target, valid = _market(1)
    ours = random_rank_ics(target, valid, draws=600, min_stocks=20)
    rng = np.random.default_rng(2)
    theirs = []
    for _ in range(600):
        daily = []
        for day in range(DATES):
            use = valid[day] & np.isfinite(target[day])
            noise = rng.standard_normal(use.sum())
            daily.append(stats.spearmanr(noise, target[day, use]).statistic)
        theirs.append(np.mean(daily))
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.12)
    assert abs(ours.mean()) < 4 * np.std(theirs) / np.sqrt(600)
    band = band_of(ours)
    assert band.low == pytest.approx(-1.96 * np.std(theirs), rel=0.25)
    assert band.draws == 600


def test_one_draw_is_the_correlation_with_the_ranks() -> None:
    _, target, valid = _market(3)
    (found,) = random_rank_ics(target, valid, draws=1, min_stocks=20, seed=5)
    noise = np.random.default_rng(5).random((DATES, STOCKS), dtype=np.float32)
    expected = []
    for day in range(DATES):
        use = valid[day] & np.isfinite(target[day])
        ranks = stats.rankdata(target[day, use])
        expected.append(stats.pearsonr(noise[day, use].astype(float), ranks).statistic)
    assert found == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_market_without_dates_has_no_band() -> None:
    _, target, valid = _market(4)
    found = random_rank_ics(target, valid, draws=5, min_stocks=STOCKS + 1)
    assert np.isnan(found).all()
    assert band_of(found).draws == 0


def test_shuffled_scores_find_nothing_and_unshuffled_ones_do(monkeypatch) -> None:
    score, target, valid = _market(5)
    control = shuffled_control(score, target, valid, draws=20, min_stocks=20)
    assert control.chance > 1e-3
    assert control.draws == 20

    def hardly(score: np.ndarray, seed: int) -> np.ndarray:
        """A shuffle that forgets most dates."""
        rng = np.random.default_rng(seed)
        dealt = score.copy()
        dealt[:3] = rng.permuted(dealt[:3], axis=1)
        return dealt

    monkeypatch.setattr(controls, "shuffled_within_date", hardly)
    assert shuffled_control(score, target, valid, draws=20, min_stocks=20).t > 50


def test_a_random_graph_keeps_the_shape_and_loses_the_names(stored_panel) -> None:
    graph = build_graph(read_panel(stored_panel[0]), GraphConfig(neighbours=5))
    other = random_graph(graph)
    np.testing.assert_array_equal(other.neighbours >= 0, graph.neighbours >= 0)
    np.testing.assert_array_equal(other.correlation, graph.correlation)
    assert other.panel_hash == graph.panel_hash
    own = np.arange(graph.neighbours.shape[1])[:, None]
    assert not (other.neighbours == own).any()
    for before, after in zip(graph.neighbours, other.neighbours, strict=True):
        assert set(np.unique(after)) <= set(np.unique(before))  # nobody without a bar comes in
        known = before >= 0
        assert (after == before)[known].mean() < 0.3
        for row in after:
            mine = row[row >= 0]
            assert len(set(mine)) >= len(mine) - 1
    np.testing.assert_array_equal(random_graph(graph).neighbours, other.neighbours)
