"""Weights read while the model scores are those that made the scores."""

import dataclasses

import numpy as np
import pytest
import torch

import atft_model.model.atft as atft_module
from atft_model.config import ModelConfig
from atft_model.data.batches import DevicePanel, WindowBatch, fit_target_scale
from atft_model.data.graph import read_graph
from atft_model.data.panel import fit_statistics, read_panel
from atft_model.model.atft import ATFT
from atft_model.model.readout import recording
from atft_model.run import model_shape
from tests.references import atft as plain

LOOKBACK = 5
CONFIG = ModelConfig(hidden_size=16, heads=2, lookback=LOOKBACK, graph_layers=2)


@pytest.fixture(scope="module")
def batch(stored_panel) -> WindowBatch:
    panel = read_panel(stored_panel[0])
    part = panel.split.train
    data = DevicePanel(
        panel, read_graph(stored_panel[1], panel), fit_statistics(panel, part),
        fit_target_scale(panel, part), LOOKBACK, torch.device("cpu"),
    )  # fmt: skip
    return data.batch(np.array([79, 150]), 3)


@pytest.fixture(scope="module")
def model(stored_panel) -> ATFT:
    torch.manual_seed(0)
    model = ATFT(CONFIG, model_shape(read_panel(stored_panel[0]))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def read(model: ATFT, batch: WindowBatch):
    with torch.no_grad(), recording(model) as recorder:
        scores = model(batch)
    return scores, recorder.readout(batch)


def test_reading_changes_no_score_and_leaves_no_hook(model, batch):
    with torch.no_grad():
        before = model(batch)
    scores, _ = read(model, batch)
    assert torch.equal(scores, before)
    assert not model.variable_selection._forward_hooks
    assert not model.temporal_encoder.attention._forward_hooks
    for convolution in model.graph_attention.convolutions:
        assert not convolution._edge_update_forward_hooks


def test_feature_weights_are_those_of_the_signal_day(model, batch):
    _, seen = read(model, batch)
    weights = plain.part(plain.weights_of(model), "variable_selection")
    for run, day, column in batch.scorable.nonzero().tolist()[::17]:
        inputs = batch.features[run, day + LOOKBACK - 1, column][None].double()
        _, share = plain.variable_selection(weights, inputs)
        torch.testing.assert_close(
            seen.features[run, day, column].double(), share[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("chunk", [6, 60, 10_000])
def test_day_weights_are_the_last_days_attention_whatever_the_chunks(
    model, batch, chunk, monkeypatch
):
    monkeypatch.setattr(atft_module, "CPU_CHUNK_WINDOWS", chunk)
    _, seen = read(model, batch)
    torch.testing.assert_close(
        seen.days.sum(dim=-1), torch.ones(batch.scorable.shape), rtol=1e-5, atol=1e-5
    )
    weights = plain.weights_of(model)
    part = plain.part(weights, "temporal_encoder")
    with torch.no_grad():
        embedded, context = model.embed_days(batch), model.static_context(batch)
    for run, day, column in batch.scorable.nonzero().tolist()[::29]:
        days = slice(day, day + LOOKBACK)
        x = embedded[run, days, column].double()
        observed = batch.observed[run, days, column].tolist()
        local = plain.gated_skip(
            plain.part(part, "lstm_skip"), plain.lstm(plain.part(part, "lstm"), x, 1), x
        )
        enriched = plain.gated_residual_network(
            plain.part(part, "enrichment"), local, context[run, column].double()
        )
        _, share = plain.attention(plain.part(part, "attention"), enriched, observed, CONFIG.heads)
        torch.testing.assert_close(
            seen.days[run, day, column].double(), share[-1], rtol=1e-5, atol=1e-5
        )


def test_neighbour_weights_are_those_that_pyg_gives_when_asked(model, batch):
    _, seen = read(model, batch)
    asked = []

    def ask(module, inputs, output):
        _, (_, alpha) = module.forward(*inputs, return_attention_weights=True)
        asked.append(alpha.mean(dim=-1))

    convolutions = model.graph_attention.convolutions
    handles = [convolution.register_forward_hook(ask) for convolution in convolutions]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    known = batch.neighbours >= 0
    expected = torch.stack(asked).mean(dim=0).view(known.shape)
    torch.testing.assert_close(seen.neighbours[known], expected[known])
    assert (seen.neighbours[~known] == 0).all()
    total = seen.neighbours.sum(dim=-1)
    some = known.any(dim=-1)
    torch.testing.assert_close(total[some], torch.ones_like(total[some]))
    assert (~some).any()


def test_a_pass_that_was_not_recorded_alone_is_refused(model, batch):
    with torch.no_grad(), recording(model) as recorder:
        model(batch)
        model(dataclasses.replace(batch))
    with pytest.raises(RuntimeError, match="2 forward passes recorded"):
        recorder.readout(batch)
