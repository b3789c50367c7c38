"""The plateau schedule: when it lowers the learning rate, and that a bad start is no excuse."""

import pytest
import torch

from atft_model.config import OptimizerConfig
from atft_model.training.optimizer import Schedule, build_optimizer

RATE = 1.0
PATIENCE = 2


def rates(watched: list[float], stages: tuple[float, ...] = ()) -> list[float]:
    """The learning rate after each epoch that ended with so much validation rank IC."""
    config = OptimizerConfig(
        learning_rate=RATE, plateau_patience=PATIENCE, plateau_cooldown=0,
        learning_rate_stages=stages, stage_epochs=1,
    )  # fmt: skip
    optimizer = build_optimizer(torch.nn.Linear(1, 1), config)
    schedule = Schedule(optimizer, config, total_steps=100)
    found = []
    for epoch, value in enumerate(watched, 1):
        schedule.start_epoch(epoch)
        optimizer.step()
        schedule.end_epoch(epoch, value)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("level", [0.05, 0.0, -0.05])
def test_the_rate_falls_after_a_stall_at_any_level(level):
    """Relative to a negative best, every value is "better": the rate would never fall."""
    assert rates([level] * 4) == [RATE, RATE, RATE, RATE / 2]


@pytest.mark.parametrize("level", [0.05, 0.0, -0.05])
def test_the_rate_stays_while_the_rank_ic_rises(level):
    assert rates([level + 0.01 * epoch for epoch in range(8)]) == [RATE] * 8


def test_epochs_of_the_stages_are_not_judged():
    assert rates([0.0] * 6, stages=(0.1, 0.2)) == [0.1, 0.2, RATE, RATE, RATE, RATE / 2]
