"""How often gradients are read: often enough for evidence, never less than asked for."""

import pytest
import torch

from atft_model.config import ModelConfig, MonitorConfig
from atft_model.model.atft import ATFT, ModelShape
from atft_model.training.health_record import HealthRecord
from atft_model.training.observer import READINGS_PER_EPOCH, Observer


@pytest.fixture(scope="module")
def model() -> ATFT:
    torch.manual_seed(0)
    return ATFT(ModelConfig(hidden_size=16, lookback=4), ModelShape(3, 2, 2, 2))


def observer(model: ATFT, folder, every: int, steps: int) -> Observer:
    return Observer(
        model, MonitorConfig(every=every), HealthRecord(folder, "run"), ("a", "b", "c"), (1, 5),
        steps,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("every", "steps", "cadence"),
    [(200, 36, 1), (200, 19, 1), (200, 1, 1), (200, 40, 2), (200, 399, 19), (200, 4000, 200),
     (200, 100_000, 200), (7, 4000, 7), (1, 4000, 1)],
)  # fmt: skip
def test_the_cadence_is_the_setting_or_a_twentieth_of_an_epoch(
    model, tmp_path, every, steps, cadence
):
    assert observer(model, tmp_path, every, steps).cadence == cadence


def test_every_epoch_of_any_length_has_twenty_readings_or_one_per_step(model, tmp_path):
    for steps in [*range(1, 130), 397, 1999, 4001]:
        watch = observer(model, tmp_path, 200, steps)
        for epoch in range(3):
            first = epoch * steps + 1
            readings = sum(watch.due(step) for step in range(first, first + steps))
            assert readings >= min(steps, READINGS_PER_EPOCH), (steps, epoch)
