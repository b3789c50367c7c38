"""What training promises on a GPU; skipped where there is none (`pytest -m gpu`)."""

import pytest
import torch
from killed import train_until_killed

from atft_model.config import RunConfig, resolve
from atft_model.run import train
from atft_model.training.reporter import Reporter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Names what has no deterministic kernel; the bits below are what counts.
    pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning"),
]
STEPS = 12


def config(**training) -> RunConfig:
    return resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 32, "lookback": 5, "dropout": 0.2},
            "training": {"max_epochs": 2, "batch_windows": 1, "run_length": 4, "device": "cuda",
                         "max_steps_per_epoch": STEPS, "checkpoint_seconds": 0.0,
                         "deterministic": True, **training},
        })],
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_a_killed_run_goes_on_to_the_same_bits(precision, stored_panel, tmp_path):
    settings = config(precision=precision)
    train(settings, *stored_panel, tmp_path / "whole", Reporter())
    train_until_killed(settings, stored_panel, tmp_path / "cut", step=STEPS + 5)
    train(settings, *stored_panel, tmp_path / "cut", Reporter(), resume=True)
    whole, cut = (torch.load(tmp_path / name / "last.pt", weights_only=True)
                  for name in ("whole", "cut"))  # fmt: skip
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_half_width_loses_little(stored_panel, tmp_path):
    """The loss of bf16 lies beside that of full width."""
    losses = {
        precision: train(
            config(precision=precision), *stored_panel, tmp_path / precision, Reporter()
        )["history"][-1]["train_loss"]
        for precision in ("32", "bf16-mixed")
    }
    assert losses["bf16-mixed"] == pytest.approx(losses["32"], abs=0.05)
