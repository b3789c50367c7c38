"""Permutation importance on linear scores whose truth is known, and weights added up by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from atft_model.data.batches import DevicePanel, WindowBatch, fit_target_scale
from atft_model.data.graph import GraphConfig, build_graph
from atft_model.data.panel import fit_statistics
from atft_model.data.toy_panel import make_panel
from atft_model.errors import InputError
from atft_model.importance import (
    NEIGHBOURS,
    Importance,
    ImportanceConfig,
    batches_of,
    chosen_runs,
    day_importance,
    group_importance,
    neighbour_importance,
    permuted,
    rewired,
    selection_importance,
    shuffled_stocks,
)
from atft_model.model.readout import Readout

LOOKBACK = 5
CONFIG = ImportanceConfig(windows=1500, run_length=10, repeats=2)
GROUPS = {"planted": [0], "noise": [1, 2, 3], "rest": [4, 5]}


@pytest.fixture(scope="module")
def data() -> DevicePanel:
    panel = make_panel(signal=1.0)
    part = panel.split.train
    graph = build_graph(panel, GraphConfig(neighbours=5))
    return DevicePanel(
        panel, graph, fit_statistics(panel, part), fit_target_scale(panel, part), LOOKBACK,
        torch.device("cpu"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def batches(data) -> list[WindowBatch]:
    dates = data.valid.any(dim=-1).any(dim=-1).numpy().copy()
    dates[:60] = False
    return batches_of(data, dates, CONFIG)


def linear(weights: dict[int, float]):
    """A score of the signal day's features."""

    def score(batch: WindowBatch) -> torch.Tensor:
        today = batch.features[:, LOOKBACK - 1 :]
        return sum(weight * today[..., column] for column, weight in weights.items())

    return score


def mean_of_neighbours(batch: WindowBatch) -> torch.Tensor:
    """Feature 1 of the stock itself, and feature 0 of its neighbours."""
    today = batch.features[:, LOOKBACK - 1 :, :, 0]
    known = batch.neighbours >= 0
    runs, length = known.shape[:2]
    flat = batch.neighbours.clamp(min=0).view(runs, length, -1)
    theirs = torch.take_along_dim(today, flat, dim=2).view(known.shape)
    mean = (theirs * known).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
    return mean + 0.1 * batch.features[:, LOOKBACK - 1 :, :, 1]


def rows(found: list[Importance], kind: str) -> dict[str, Importance]:
    return {row.name: row for row in found if row.kind == kind}


def test_the_group_that_foretells_returns_ranks_first(batches):
    found = group_importance(linear({0: 1.0, 1: 0.5}), batches, GROUPS, 1, 5, 10, CONFIG)
    drop, change = rows(found, "group"), rows(found, "group_score_change")
    planted = drop["planted"]
    assert planted.importance == max(row.importance for row in drop.values())
    assert planted.importance > 4 * planted.standard_error > 0
    # What the score does not read is worth exactly nothing; noise that it reads is used in vain.
    assert drop["rest"].importance == drop[NEIGHBOURS].importance == 0.0
    assert change["rest"].importance == pytest.approx(0.0, abs=1e-12)
    assert change["noise"].importance > 0.02
    assert drop["noise"].importance < 3 * drop["noise"].standard_error


def test_a_group_that_hurts_has_a_negative_importance(batches):
    found = group_importance(linear({0: -1.0, 1: 0.3}), batches, GROUPS, 1, 5, 10, CONFIG)
    assert rows(found, "group")["planted"].importance < -0.1


def test_the_neighbours_count_where_the_score_reads_them(batches):
    found = group_importance(mean_of_neighbours, batches, GROUPS, 1, 5, 10, CONFIG)
    change = rows(found, "group_score_change")
    assert change[NEIGHBOURS].importance > 0.5
    assert change["rest"].importance == pytest.approx(0.0, abs=1e-12)


def test_the_same_seed_gives_the_same_figures(batches):
    score = linear({0: 1.0})
    first = group_importance(score, batches, GROUPS, 1, 5, 10, CONFIG)
    again = group_importance(score, batches, GROUPS, 1, 5, 10, CONFIG)
    other = group_importance(score, batches, GROUPS, 1, 5, 10, dataclasses.replace(CONFIG, seed=1))
    assert rows(first, "group")["planted"] == rows(again, "group")["planted"]
    assert rows(first, "group")["planted"] != rows(other, "group")["planted"]


def test_stocks_swap_whole_histories_of_the_group_and_nothing_else(batches):
    batch = batches[0]
    other = permuted(batch, [0, 2], np.random.default_rng(0))
    here = batch.scorable.any(dim=1)[0]
    for column in (0, 2):
        before, after = batch.features[0, :, :, column].T, other.features[0, :, :, column].T
        assert sorted(map(tuple, after.tolist())) == sorted(map(tuple, before.tolist()))
        moved = (after != before).any(dim=1)
        assert moved.sum() > 0.8 * here.sum()
        assert not moved[~here].any()
    # Both columns came from the same stock.
    source = [
        {
            stock
            for stock in range(len(here))
            if torch.equal(other.features[0, :, mine, column], batch.features[0, :, stock, column])
        }
        for mine in range(len(here))
        for column in (0, 2)
    ]
    assert all(a & b for a, b in zip(source[::2], source[1::2], strict=True))
    assert torch.equal(other.features[..., [1, 3, 4, 5]], batch.features[..., [1, 3, 4, 5]])
    assert torch.equal(other.target, batch.target)


def test_padding_of_a_narrower_run_takes_no_part(data):
    batch = data.batch(np.array([100, 170]), 5)  # stock 4 has left by the second
    padding = ~batch.scorable.any(dim=1)
    assert padding.any()
    for seed in range(5):
        order = shuffled_stocks(batch, np.random.default_rng(seed))
        places = torch.arange(order.shape[1]).expand_as(order)
        assert torch.equal(order[padding], places[padding])
        assert (order != places)[~padding].float().mean() > 0.8
        assert torch.equal(order.sort(dim=1).values, places)


def test_rewired_neighbours_are_as_many_but_others_and_can_be_scored(batches):
    batch = batches[0]
    other = rewired(batch, np.random.default_rng(0))
    known = other.neighbours >= 0
    assert not known[batch.neighbours < 0].any()
    assert known.sum() > 0.9 * (batch.neighbours >= 0).sum()
    assert (other.neighbours != batch.neighbours)[known].float().mean() > 0.8
    run, day, stock, _ = known.nonzero(as_tuple=True)
    assert batch.scorable[run, day, other.neighbours[known]].all()
    assert (other.neighbours[known] != stock).all()


@pytest.mark.parametrize(
    ("windows", "expected"),
    [(1, [10]), (400, [10, 40]), (10_000, [10, 20, 30, 40])],
)
def test_runs_are_whole_spread_out_and_as_many_as_asked_for(windows, expected):
    dates = np.zeros(60, dtype=bool)
    dates[10:55] = True
    config = ImportanceConfig(windows=windows, run_length=10)
    assert chosen_runs(dates, 20.0, config) == (expected, 10)


def test_few_dates_make_a_shorter_run():
    dates = np.zeros(60, dtype=bool)
    dates[[3, 4, 5, 9]] = True
    assert chosen_runs(dates, 20.0, ImportanceConfig()) == ([3], 3)


def test_no_date_is_one_clear_line(data):
    with pytest.raises(InputError, match="importance: no test date has enough"):
        batches_of(data, np.zeros(240, dtype=bool), CONFIG)


def test_weights_are_means_over_the_stocks_of_a_date(batches):
    """Against loops; what stands in windows that are not scorable does not count."""
    rng = np.random.default_rng(0)
    seen, by_date = [], []
    for batch in batches:
        shape = batch.scorable.shape
        weights = torch.from_numpy(rng.random((*shape, 6)).astype(np.float32))
        weights[~batch.scorable] = 1e6
        edge = torch.from_numpy(rng.random(batch.neighbours.shape).astype(np.float32))
        seen.append(Readout(weights, weights[..., :LOOKBACK], edge * (batch.neighbours >= 0)))
        by_date += [
            weights[0, day][batch.scorable[0, day]].double().mean(dim=0).numpy()
            for day in range(shape[1])
        ]
    features = selection_importance(seen, batches, list("abcdef"))
    assert [row.name for row in features] == list("abcdef")
    expected = np.stack(by_date).mean(axis=0)
    np.testing.assert_allclose([row.importance for row in features], expected, rtol=1e-5)
    days = day_importance(seen, batches)
    assert [row.name for row in days] == ["-4", "-3", "-2", "-1", "0"]
    np.testing.assert_allclose([row.importance for row in days], expected[:LOOKBACK], rtol=1e-5)


def test_neighbour_weights_add_up_pair_by_pair(batches, data):
    rng = np.random.default_rng(0)
    seen, pairs, received = [], {}, {}
    for batch in batches:
        edge = torch.from_numpy(rng.random(batch.neighbours.shape))
        empty = torch.zeros(*batch.scorable.shape, 1)
        seen.append(Readout(empty, empty, (edge * (batch.neighbours >= 0)).float()))
        for day in range(batch.scorable.shape[1]):
            today = {int(batch.stocks[0, s]): 0.0 for s in batch.scorable[0, day].nonzero()}
            for stock in batch.scorable[0, day].nonzero()[:, 0].tolist():
                for place, other in enumerate(batch.neighbours[0, day, stock].tolist()):
                    if other >= 0:
                        key = int(batch.stocks[0, stock]), int(batch.stocks[0, other])
                        weight = float(seen[-1].neighbours[0, day, stock, place])
                        pairs.setdefault(key, []).append(weight)
                        today[key[1]] += weight
            for stock, got in today.items():
                received.setdefault(stock, []).append(got)
    codes = data.panel.codes
    found = neighbour_importance(seen, batches, codes)
    of_pairs = {(r.name, r.neighbour): r for r in found if r.kind == "pair"}
    assert len(of_pairs) == len(pairs)
    for (stock, other), weights in pairs.items():
        row = of_pairs[codes[stock], codes[other]]
        assert row.importance == pytest.approx(np.mean(weights), rel=1e-6)
        if len(weights) > 1:
            error = np.std(weights, ddof=1) / np.sqrt(len(weights))
            assert row.standard_error == pytest.approx(error, rel=1e-4, abs=1e-12)
    for row in (r for r in found if r.kind == "received"):
        expected = np.mean(received[codes.index(row.name)])
        assert row.importance == pytest.approx(expected, rel=1e-6)
    for kind in ("pair", "received"):
        values = [row.importance for row in found if row.kind == kind]
        assert values == sorted(values, reverse=True)
