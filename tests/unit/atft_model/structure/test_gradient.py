"""The gradient stage: the adjacency is the only route, losses are means, the truth is not used."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from atft_model.structure.config import PRESETS, GradientConfig, SearchConfig
from atft_model.structure.gradient import StructureModel, adjacency_routes, propose
from atft_model.structure.health import Truth
from atft_model.structure.series import Series, make_table
from atft_model.structure.simulate import var_with_dag

QUICK = GradientConfig(epochs_per_stage=6)


@pytest.fixture(scope="module")
def made():
    return var_with_dag(1, 8, 500, edges_per_node=1.0)


@pytest.fixture(scope="module")
def table(made):
    return make_table(Series(made.values, tuple("abcdefgh")), 1)


def trained_model() -> StructureModel:
    torch.manual_seed(0)
    model = StructureModel(4, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_reconstruction_reaches_the_adjacency_and_permuting_it_changes_the_result():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    routes = adjacency_routes(trained_model(), rows, torch.Generator().manual_seed(0))
    assert routes["gradient_instant"] > 1e-3
    assert routes["gradient_lagged"] > 1e-3
    assert routes["permuted_change"] > 1e-3
    assert routes["leak"] == 0


def test_no_decoder_sees_its_own_target():
    model = trained_model()
    rows = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    changed = rows.clone()
    changed[:, 2] += 1.0
    moved = (model.reconstruct(changed) - model.reconstruct(rows)).abs().max(0).values
    assert moved[2] == 0
    assert (moved[[0, 1, 3]] > 0).all()


def test_a_leak_beside_the_adjacency_is_measured():
    class Leaking(StructureModel):
        def reconstruct(self, rows):
            return super().reconstruct(rows) + rows[:, :4].mean(dim=1, keepdim=True)

    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    routes = adjacency_routes(Leaking(4, 1), rows, torch.Generator().manual_seed(0))
    assert routes["leak"] > 0.1


def test_likelihood_is_a_mean_over_observed_values_only():
    model = trained_model()
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    seen = torch.ones(20, 4, dtype=torch.bool)
    once = model.negative_log_likelihood(noise, seen)
    twice = model.negative_log_likelihood(torch.cat([noise, noise]), torch.cat([seen, seen]))
    assert float(once.detach()) == pytest.approx(float(twice.detach()), rel=1e-5)
    spoiled = noise.clone()
    spoiled[0, 0] = 1e6
    seen[0, 0] = False
    unseen = model.negative_log_likelihood(noise, seen)
    again = model.negative_log_likelihood(spoiled, seen)
    assert float(unseen.detach()) == float(again.detach())


def test_likelihood_is_scipys_student_t():
    from scipy import stats

    model = trained_model()
    with torch.no_grad():
        model.instant.zero_()
    noise = torch.randn(30, 4, generator=torch.Generator().manual_seed(3))
    degrees = (2 + model.log_degrees.exp()).detach().numpy()
    scale = model.log_scale.exp().detach().numpy()
    expected = -stats.t(degrees, scale=scale).logpdf(noise.numpy()).mean()
    seen = torch.ones(30, 4, dtype=torch.bool)
    loss = model.negative_log_likelihood(noise, seen).detach()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_training_finds_structure_and_records_its_health(table, made):
    truth = Truth(made.instant, made.lagged)
    proposal = propose(table, QUICK, SearchConfig(), 1337, truth)
    first, last = proposal.health[0], proposal.health[-1]
    assert last.validation_log_likelihood > first.validation_log_likelihood
    assert last.acyclicity < 0.05
    assert last.chance_p_value is not None
    assert last.chance_p_value < 0.05
    assert last.shd_empty == int((made.instant != 0).sum())
    assert last.adjacency_gradient > 0
    assert sorted(proposal.order) == list(range(8))
    assert [row.epoch for row in proposal.health] == list(range(len(proposal.health)))


def test_the_truth_changes_nothing_but_the_report(table, made):
    with_truth = propose(table, QUICK, SearchConfig(), 1337, Truth(made.instant, made.lagged))
    without = propose(table, QUICK, SearchConfig(), 1337)
    np.testing.assert_array_equal(with_truth.instant, without.instant)
    assert with_truth.threshold.value == without.threshold.value
    assert without.health[-1].f1 is None
    assert without.health[-1].shd is None


def test_rate_falls_when_validation_stalls(table):
    stalled = replace(QUICK, learning_rate=1e-6, late_learning_rate=1e-6, epochs_per_stage=12,
                      acyclic_schedule=(1.0,))  # fmt: skip
    rates = [row.learning_rate for row in propose(table, stalled, SearchConfig(), 1).health]
    assert rates[-1] < rates[0]


def test_historical_preset_clips_every_step_and_separates_nothing(table):
    historical = replace(PRESETS["historical"]["gradient"], epochs_per_stage=6)
    health = propose(table, historical, SearchConfig(), 1337).health
    assert health[0].clip_ratio == 1.0
    assert all(np.isfinite(value) for value in asdict(health[-1]).values() if value is not None)
