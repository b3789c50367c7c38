"""The group lasso on the input skip: one step against a loop over inputs, and in training."""

import math
from pathlib import Path

import pytest
import torch
from small_trainer import small_trainer

from atft_model.training.loop import Progress, Trainer
from atft_model.training.optimizer import shrink_inputs

YES, NO = torch.tensor(True), torch.tensor(False)
FEW = {"training": {"batch_windows": 1, "run_length": 4, "max_steps_per_epoch": 12,
                    "max_epochs": 4}}  # fmt: skip


def test_each_input_is_shortened_by_the_same_length():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    weight[:, 2] *= 0.01
    weight[:, 3] = 0.0
    before, by = weight.clone(), 0.2
    shrink_inputs(weight, by, YES)
    for column in range(6):
        length = math.sqrt(sum(float(value) ** 2 for value in before[:, column]))
        kept = 0.0 if length <= by else (length - by) / length
        torch.testing.assert_close(weight[:, column], before[:, column] * kept)
    assert not weight[:, 2:4].any()
    assert weight[:, [0, 1, 4, 5]].all()


def test_a_step_that_is_not_taken_shrinks_nothing():
    weight = torch.randn(4, 6)
    before = weight.clone()
    shrink_inputs(weight, 0.2, NO)
    assert torch.equal(weight, before)


def one_epoch(places: tuple[Path, Path], folder: Path, shrinkage: float) -> Trainer:
    trainer = small_trainer(places, folder, FEW, {"optimizer": {"input_shrinkage": shrinkage,
                            "short_path_rate": 10.0, "learning_rate": 1e-3}})  # fmt: skip
    trainer.train_epoch(Progress(epoch=1))
    return trainer


def test_a_run_shrinks_what_its_skip_reads_and_nothing_else_directly(stored_panel, tmp_path):
    """By its rate times the shrinkage at every step, so on average by their sum; every input is."""
    plain, shrunk = (one_epoch(stored_panel, tmp_path / str(by), by) for by in (0.0, 0.6))
    assert plain.model.input_skip is not None
    assert shrunk.model.input_skip is not None
    long, short = (t.model.input_skip.units.weight.norm(dim=0) for t in (plain, shrunk))
    rates = []
    for step in range(1, 13):
        plain.schedule.start_step(step)
        rates.append(10 * plain.optimizer.param_groups[0]["lr"])
    assert (long - short).mean().item() == pytest.approx(0.6 * sum(rates), rel=0.25)
    assert (short < long).all()


def test_without_an_input_skip_there_is_nothing_to_shrink(stored_panel, tmp_path):
    trainer = small_trainer(stored_panel, tmp_path, FEW, {"model": {"input_skip": 0},
                            "optimizer": {"input_shrinkage": 0.6}})  # fmt: skip
    trainer.train_epoch(Progress(epoch=1))
    assert trainer.model.input_skip is None
