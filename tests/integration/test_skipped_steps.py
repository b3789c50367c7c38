"""What a step that must not be taken leaves behind: nothing in the weights, its name on record."""

import math

import numpy as np
import pytest
import torch
from small_trainer import small_trainer

from atft_model.errors import InputError
from atft_model.training.checkpoint import load_state
from atft_model.training.health_record import read_health
from atft_model.training.loop import Progress, Trainer
from atft_model.training.observer import BRAKED, FINE, NOT_FINITE

ALWAYS_BRAKED = {"optimizer": {"brake_norm": 1e-9}}
FEW = {"training": {"batch_windows": 1, "run_length": 2, "max_steps_per_epoch": 6}}
ANY = {"training": {"max_skipped_share": 1.0}}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def rows(trainer: Trainer, kind: str) -> list[dict]:
    trainer.health.flush()
    return [row for row in read_health(trainer.health.folder).to_pylist() if row["kind"] == kind]


def test_a_braked_step_moves_no_weight_and_is_recorded_with_its_dates(stored_panel, tmp_path):
    trainer = small_trainer(stored_panel, tmp_path / "run", FEW, ALWAYS_BRAKED, ANY)
    before = weights(trainer)
    trainer.train_epoch(Progress(epoch=1))
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    assert not any(state["step"] for state in trainer.optimizer.state.values())
    skipped = rows(trainer, "skipped")
    assert [(row["step"], row["metric"]) for row in skipped] == [(n, "brake") for n in range(1, 7)]
    dates = [str(day) for day in trainer.data.panel.dates]
    for row in skipped:
        first, _, last = row["name"].partition("..")
        assert dates.index(last) == dates.index(first) + 1
        assert row["value"] > 1e-9


def test_too_many_end_the_run_with_their_record_on_disk(stored_panel, tmp_path):
    trainer = small_trainer(stored_panel, tmp_path / "run", FEW, ALWAYS_BRAKED)
    with pytest.raises(InputError, match=r"2 of 2 steps were skipped .* the last on 20\d\d-"):
        trainer.train_epoch(Progress(epoch=1))
    on_disk = read_health(trainer.health.folder).to_pylist()
    assert sum(row["kind"] == "skipped" for row in on_disk) == 2


def test_losses_are_those_of_the_steps_that_were_taken(stored_panel, tmp_path):
    trainer = small_trainer(stored_panel, tmp_path / "run", FEW, ANY)
    broken = trainer.data.features[np.flatnonzero(trainer.train_dates)]
    broken[::7, 7, 2] = math.nan
    trainer.data.features[np.flatnonzero(trainer.train_dates)] = broken
    trainer.train_epoch(Progress(epoch=1))
    outcomes = [row["value"] for row in rows(trainer, "step") if row["metric"] == "nonfinite"]
    assert 0 < sum(outcomes) < len(outcomes) == 6
    assert all(math.isfinite(row["value"]) for row in rows(trainer, "loss"))


@pytest.mark.parametrize(
    ("loss", "norm", "outcome"),
    [(1.0, 0.5, FINE), (1.0, 2.0, BRAKED), (math.nan, 0.5, NOT_FINITE), (math.inf, 2.0, NOT_FINITE),
     (1.0, math.nan, NOT_FINITE), (1.0, math.inf, NOT_FINITE)],
)  # fmt: skip
def test_a_step_is_judged_by_its_loss_and_its_gradient(loss, norm, outcome, stored_panel, tmp_path):
    trainer = small_trainer(stored_panel, tmp_path / "run", {"optimizer": {"brake_norm": 1.0}})
    assert int(trainer.judge_step(torch.tensor(loss), torch.tensor(norm))) == outcome


def test_a_checkpoint_gives_back_what_stands_between_steps(stored_panel, tmp_path):
    """Guard, clipping and noise: what a resumed run would otherwise begin anew."""
    saved = small_trainer(stored_panel, tmp_path / "run", FEW)
    saved.guard.low, saved.guard.awaiting = {5: 2, 1: 0}, {10: 1}
    saved.guard.resets_this_epoch, saved.guard.evaluations = 3, 41
    saved.clipping.sound_epochs = 2
    torch.rand(7, generator=saved.noise)
    saved.save_checkpoint(Progress(step=9, epoch=2))
    other = small_trainer(stored_panel, tmp_path / "run", FEW)
    assert other.load_checkpoint(load_state(other.checkpoint)).step == 9
    assert vars(other.guard) == vars(saved.guard)
    assert other.clipping.sound_epochs == 2
    drawn = [torch.rand(3, generator=trainer.noise) for trainer in (saved, other)]
    assert torch.equal(*drawn)


def test_gradients_of_activations_and_inputs_are_unscaled_like_those_of_weights(
    stored_panel, tmp_path, monkeypatch
):
    found = []
    for inverse in (1.0, 0.25):
        trainer = small_trainer(stored_panel, tmp_path / str(inverse), FEW)
        monkeypatch.setattr(trainer.loss_scale, "inverse", lambda by=inverse: by)
        trainer.train_epoch(Progress(epoch=1))
        kinds = ("activation_gradient", "input_gradient", "skip_gradient")
        found.append([row for kind in kinds for row in rows(trainer, kind) if row["step"] == 1])
    assert len(found[0]) > 10
    for plain, scaled in zip(*found, strict=True):
        assert scaled["value"] == pytest.approx(0.25 * plain["value"], rel=1e-5)
