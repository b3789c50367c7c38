"""Clipping in stages, the emergency brake, staged learning rates and the conservative start."""

import math

import numpy as np
import pytest
import torch

from atft_model.config import PRESETS, ModelConfig, OptimizerConfig, resolve
from atft_model.model.atft import ATFT, ModelShape
from atft_model.model.initialization import WITHOUT_SKIP, initialize
from atft_model.training.clipping import Clipping
from atft_model.training.optimizer import Schedule, build_optimizer

STABLE = resolve("stable").optimizer


def test_the_stable_recipe_clips_as_the_design_says():
    clipping = Clipping(STABLE)
    assert [clipping.norm(1, step) for step in (1, 50, 51, 900)] == [0.01, 0.01, 0.05, 0.05]
    clipping.end_epoch(skipped=0.0)
    assert clipping.norm(2, 901) == 0.1
    for _ in range(2):
        clipping.end_epoch(skipped=0.0)
    assert clipping.norm(4, 5000) == 0.5
    clipping.end_epoch(skipped=1.0)
    assert clipping.norm(5, 6000) == 0.1


def test_other_recipes_clip_always_alike():
    clipping = Clipping(OptimizerConfig())
    for _ in range(9):
        clipping.end_epoch(skipped=0.0)
    assert {clipping.norm(epoch, step) for epoch in (1, 9) for step in (1, 10_000)} == {1.0}


@pytest.mark.parametrize(
    ("norm", "braked"), [(9.9, False), (10.1, True), (math.nan, False), (math.inf, False)]
)
def test_the_brake_stops_a_large_step_and_leaves_broken_ones_to_their_own_rule(norm, braked):
    assert bool(Clipping(STABLE).braked(torch.tensor(norm))) is braked
    assert not Clipping(OptimizerConfig()).braked(torch.tensor(norm))


def test_the_learning_rate_rises_in_stages_and_the_plateau_waits_for_them():
    layer = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(layer, STABLE)
    schedule = Schedule(optimizer, STABLE, 100)
    rates = []
    for epoch in range(1, 12):
        schedule.start_epoch(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.end_epoch(epoch, watched=0.0)
    assert rates[:4] == [1e-6, 1e-6, 1e-5, 1e-5]
    assert rates[4:9] == [1e-4] * 5
    assert rates[-1] == 5e-5  # no progress since epoch 5: the plateau's turn


def test_a_cosine_rises_then_falls_to_nothing_and_heeds_no_validation():
    config = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=4)
    optimizer = build_optimizer(torch.nn.Linear(2, 1), config)
    schedule = Schedule(optimizer, config, 100)
    rates = []
    for step in range(1, 101):
        schedule.start_epoch(1 + step // 10)
        schedule.start_step(step)
        schedule.end_epoch(1 + step // 10, watched=0.0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:2] == pytest.approx([0.25 * 2e-3, 0.5 * 2e-3], rel=1e-3)
    assert rates[50] == pytest.approx(0.5 * 2e-3, rel=1e-9)
    assert np.diff(rates[4:]).max() < 0
    assert 0 < rates[-1] < 1e-3 * 2e-3


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_head_and_input_skip_have_a_rate_of_their_own_under_every_schedule(schedule):
    config = OptimizerConfig(learning_rate=1e-3, short_path_rate=5.0, schedule=schedule)
    model = ATFT(
        ModelConfig(hidden_size=16, lookback=4, input_skip=2), ModelShape(3, 2, 2, 2, (0,))
    )
    optimizer = build_optimizer(model, config)
    rest, short = optimizer.param_groups
    assert model.input_skip is not None
    path = [*model.input_skip.parameters(), *model.head.parameters()]
    assert {id(p) for p in short["params"]} == {id(p) for p in path}
    assert len(rest["params"]) + len(short["params"]) == len(list(model.parameters()))
    rates = set()
    plan = Schedule(optimizer, config, 10)
    for step in range(1, 11):
        plan.start_step(step)
        plan.end_epoch(step, watched=0.0)
        assert short["lr"] == pytest.approx(5 * rest["lr"])
        rates.add(rest["lr"])
    assert len(rates) > 1


def test_the_conservative_start_is_small_in_branches_and_orthogonal_in_the_lstm():
    config = ModelConfig(hidden_size=16, lookback=4, init_gain=0.01, orthogonal_lstm=True)
    torch.manual_seed(0)
    model = ATFT(config, ModelShape(3, 2, 2, 2))
    initialize(model, config)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            bound = 0.01 * math.sqrt(6 / sum(module.weight.shape))
            assert (module.weight.abs().max() <= bound) is not name.startswith(WITHOUT_SKIP)
    for gate in model.temporal_encoder.lstm.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)


def test_torchs_own_start_is_the_default():
    config = ModelConfig(hidden_size=16, lookback=4)
    torch.manual_seed(0)
    model = ATFT(config, ModelShape(3, 2, 2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize(model, config)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_presets_are_those_of_the_design():
    assert set(PRESETS) == {"quick", "standard", "production", "stable"}
    production = resolve("production").training
    assert production.batch_windows >= 2048
    assert (production.precision, production.max_epochs) == ("bf16-mixed", 120)
    assert production.early_stopping_patience == 0
