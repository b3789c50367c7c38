"""A training run that ends in this process as a kill would end it: nothing of it runs after."""

from pathlib import Path
from unittest.mock import patch

import pytest

from atft_model.config import RunConfig
from atft_model.run import train
from atft_model.training.loop import Progress, Trainer
from atft_model.training.reporter import Reporter


class Killed(BaseException):
    """Nothing in the library catches it."""


def train_until_killed(
    settings: RunConfig, places: tuple[Path, Path], folder: Path, *, step: int = 0, epoch: int = 0
) -> Path:
    """Trains on (panel, graph) into ``folder``, which it returns; killed before it is done.

    Args:
        step: Of the whole run, from 1: killed once it is taken, before its checkpoint.
        epoch: The same in the epoch's first step.
    """
    beat = Trainer.beat

    def beat_or_die(self: Trainer, progress: Progress, what: str) -> None:
        if what.startswith("step") and (progress.step == step or progress.epoch == epoch):
            raise Killed
        beat(self, progress, what)

    with patch.object(Trainer, "beat", beat_or_die), pytest.raises(Killed):
        train(settings, *places, folder, Reporter())
    return folder
