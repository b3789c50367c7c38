"""Parts of the model against slow, plain references."""

import dataclasses

import numpy as np
import pytest
import torch

from atft_model.config import ModelConfig
from atft_model.data.batches import DevicePanel, WindowBatch, fit_target_scale
from atft_model.data.graph import read_graph
from atft_model.data.panel import fit_statistics, read_panel
from atft_model.model.atft import ATFT
from atft_model.run import model_shape

LOOKBACK = 10


@pytest.fixture(scope="module")
def data(stored_panel):
    panel = read_panel(stored_panel[0])
    graph = read_graph(stored_panel[1], panel)
    statistics = fit_statistics(panel, panel.split.train)
    scale = fit_target_scale(panel, panel.split.train)
    return DevicePanel(panel, graph, statistics, scale, LOOKBACK, torch.device("cpu"))


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=16, heads=4, lookback=LOOKBACK)
    return ATFT(config, model_shape(data.panel)).eval()


def by_stock(quantiles: torch.Tensor, batch: WindowBatch) -> dict[tuple[int, int], torch.Tensor]:
    """Quantiles of the scorable windows by (date position, stock of the panel)."""
    return {
        (int(batch.positions[run, day]), int(batch.stocks[run, column])): quantiles[
            run, day, column
        ]
        for run, day, column in batch.scorable.nonzero().tolist()
    }


def test_runs_of_dates_score_as_single_dates_do(data, model):
    with torch.no_grad():
        batch = data.batch(np.array([100, 130]), 4)
        together = by_stock(model(batch), batch)
        alone = {}
        for position in batch.positions.flatten().tolist():
            single = data.batch(np.array([position]), 1)
            alone |= by_stock(model(single), single)
    assert together.keys() == alone.keys()
    for window, quantiles in together.items():
        torch.testing.assert_close(quantiles, alone[window], rtol=1e-5, atol=1e-5)


def test_a_batch_holds_every_scorable_window_of_its_dates_once(data):
    batch = data.batch(np.array([70, 200, 140]), 5)
    held = sorted(by_stock(batch.target, batch))
    dates = sorted(batch.positions.flatten().tolist())
    expected = [(d, int(s)) for d in dates for s in data.scorable[d].nonzero()]
    assert held == expected
    assert batch.windows == len(expected)


def test_quantiles_never_cross(data, model):
    with torch.no_grad():
        quantiles = model(data.batch(np.array([90, 120]), 3))
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_what_cannot_be_scored_influences_nobody(data, model):
    batch = data.batch(np.array([150, 60]), 3)
    absent = ~batch.scorable.any(dim=1)  # [runs, stocks]: the padding of the narrower run
    assert absent.any()
    features = batch.features.clone()
    features.masked_fill_(absent[:, None, :, None], 100.0)
    changed = dataclasses.replace(batch, features=features)
    with torch.no_grad():
        before, after = model(batch), model(changed)
    torch.testing.assert_close(before[batch.scorable], after[batch.scorable])


def test_edges_come_from_scorable_neighbours(data):
    batch = data.batch(np.array([150]), 2)
    for day in range(2):
        neighbours = batch.neighbours[0, day]
        known = neighbours >= 0
        assert batch.scorable[0, day][neighbours[known]].all()
    assert (batch.neighbours >= 0).any()


def test_monitor_groups_own_every_parameter(model):
    owned = [name for group in model.monitor_groups().values() for name in group]
    assert sorted(owned) == sorted(name for name, _ in model.named_parameters())
    model.stray = torch.nn.Linear(2, 2)
    try:
        with pytest.raises(RuntimeError, match=r"stray.* has 0 monitor groups"):
            model.monitor_groups()
    finally:
        del model.stray


def test_targets_are_demeaned_within_the_date(data):
    target = np.where(data.valid.numpy(), data.target.numpy(), np.nan)[60:100]
    assert np.abs(np.nanmean(target, axis=1)).max() < 1e-5
