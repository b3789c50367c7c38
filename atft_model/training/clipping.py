"""Clipping that widens as training settles, and the emergency brake."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atft_model.config import OptimizerConfig


class Clipping:
    """Which clip norm is in force, and whether a step is taken at all."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config
        self.sound_epochs = 0
        """Epochs in a row without a skipped batch."""

    def norm(self, epoch: int, step: int) -> float:
        """The clip norm of a step (both counted from 1, steps over the whole run)."""
        config = self.config
        if config.clip_first_norm is not None and step <= config.clip_first_steps:
            return config.clip_first_norm
        if config.clip_first_epoch_norm is not None and epoch == 1:
            return config.clip_first_epoch_norm
        if config.clip_stable_norm is not None and self.sound_epochs >= config.clip_stable_epochs:
            return config.clip_stable_norm
        return config.clip_norm

    def end_epoch(self, skipped: float) -> None:
        """Counts an epoch without a skipped batch; one with a skipped batch starts over."""
        self.sound_epochs = 0 if skipped else self.sound_epochs + 1

    def braked(self, norm: Tensor) -> Tensor:
        """Whether the emergency brake skips a step of this finite gradient norm; on the device."""
        if self.config.brake_norm is None:
            return torch.zeros_like(norm, dtype=torch.bool)
        return torch.isfinite(norm) & (norm > self.config.brake_norm)


def clip_gradients(parameters: Sequence[nn.Parameter], clip_norm: float) -> Tensor:
    """Scales the gradients to ``clip_norm`` at most; returns the norm before, on the device."""
    return nn.utils.clip_grad_norm_(parameters, clip_norm)
