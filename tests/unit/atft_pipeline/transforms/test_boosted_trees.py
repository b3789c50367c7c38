"""Boosted trees find what is planted, see no later date, and give the same trees again."""

import dataclasses

import numpy as np
import pytest

from atft_model.data.panel import Panel, read_panel
from atft_model.metrics.rank_ic import rank_ic
from atft_pipeline.transforms import boosted_trees as module
from atft_pipeline.transforms.boosted_trees import boosted_trees


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", (5, 20))


def _rank_ic(panel: Panel, score: np.ndarray) -> float:
    days = slice(*panel.split.test)
    target = np.asarray(panel.targets[days, :, 1], dtype=np.float64)
    valid = np.asarray(panel.tradable[days]) & np.isfinite(target)
    return float(np.nanmean(rank_ic(score[days], target, valid, min_stocks=20)))


def test_the_planted_signal_is_found(panel) -> None:
    scores = boosted_trees(panel)
    assert set(scores) == set(panel.horizons)
    assert _rank_ic(panel, scores[5]) > 0.1
    assert np.isnan(scores[5][: panel.split.validation[0]]).all()
    assert (np.isfinite(scores[5]) <= panel.observed).all()


def test_test_dates_change_nothing_and_the_same_data_give_the_same_trees(panel) -> None:
    first = panel.split.test[0]
    targets, features = np.array(panel.targets), np.array(panel.features)
    targets[first:] = 9.0
    features[first + 5 :] = 0.0
    changed = dataclasses.replace(panel, targets=targets, features=features)
    before, after = boosted_trees(panel), boosted_trees(changed)
    for horizon in panel.horizons:
        np.testing.assert_array_equal(before[horizon][: first + 5], after[horizon][: first + 5])


def test_many_rows_are_thinned_by_whole_dates(panel, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 1500)
    assert _rank_ic(panel, boosted_trees(panel)[5]) > 0.05
