"""A batch that had to be skipped: the first thing in it that is not finite is named."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_trainer import small_trainer

from atft_model.data.batches import WindowBatch
from atft_model.training.diagnosis import UNSEEN, first_offender
from atft_model.training.loop import Trainer


def batch_of(trainer: Trainer) -> WindowBatch:
    first = int(np.flatnonzero(trainer.train_dates)[30])
    return trainer.data.batch(np.array([first]), 2)


def broken_input(trainer: Trainer, batch: WindowBatch) -> None:
    batch.features[0, 3, 7, 2] = math.nan


def broken_target(trainer: Trainer, batch: WindowBatch) -> None:
    place = tuple(batch.valid.nonzero()[0].tolist())
    batch.target[place] = math.inf


def broken_weight(trainer: Trainer, batch: WindowBatch) -> None:
    with torch.no_grad():
        trainer.model.backbone_projection.weight[1, 1] = math.nan


def broken_output(trainer: Trainer, batch: WindowBatch) -> None:
    trainer.model.projected.register_forward_hook(lambda module, inputs, output: output / 0.0)


def broken_gradient(trainer: Trainer, batch: WindowBatch) -> None:
    """Finite forward, infinite backward: the root's slope at 0."""

    def root(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + (0.0 * output).sqrt()

    trainer.model.projected.register_forward_hook(root)


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (broken_input, "input feature_2"),
        (broken_target, "target"),
        (broken_weight, "weight backbone_projection.weight"),
        (broken_output, "output of projected"),
        (broken_gradient, "gradient of "),
        (lambda trainer, batch: None, UNSEEN),
    ],
)
def test_the_first_thing_that_is_not_finite_is_named(
    plant: Callable[[Trainer, WindowBatch], None], named, stored_panel, tmp_path
):
    trainer = small_trainer(stored_panel, tmp_path / "run")
    batch = batch_of(trainer)
    plant(trainer, batch)
    names = trainer.data.panel.feature_names
    trainer.model.train()
    found = first_offender(trainer.model, batch, trainer.loss, names)
    assert found.startswith(named)
    assert trainer.model.training
    if plant is not broken_output:
        assert not any(
            module._forward_hooks for name, module in trainer.model.named_modules()
            if name and name != "projected"
        )  # fmt: skip
