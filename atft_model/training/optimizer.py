"""Optimizer, learning rate and loss scale, built from their settings."""

import torch
from torch import Tensor, nn

from atft_model.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW, fused: it can leave out a step on the device's own word (``guarded_step``)."""
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


class Schedule:
    """Learning rates in stages first; then they fall when the validation rank IC stalls."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
        self.optimizer = optimizer
        self.config = config
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            cooldown=config.plateau_cooldown,
            threshold_mode="abs",  # a relative threshold never stalls on negative values
        )

    def start_epoch(self, epoch: int) -> None:
        """Sets the rate of a staged epoch (from 1), or the first one after the stages."""
        stages = self.config.learning_rate_stages
        stage = (epoch - 1) // self.config.stage_epochs
        if stage < len(stages):
            self._set(stages[stage])
        elif stages and epoch == len(stages) * self.config.stage_epochs + 1:
            self._set(self.config.learning_rate)

    def end_epoch(self, epoch: int, watched: float) -> None:
        """Judges progress, once the stages are over."""
        if epoch > len(self.config.learning_rate_stages) * self.config.stage_epochs:
            self.plateau.step(watched)

    def _set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class LossScale:
    """Scales the loss so that float16 gradients do not underflow; other precisions pass through."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")

    @property
    def enabled(self) -> bool:
        """Whether the precision needs it."""
        return self.scaler.is_enabled()

    def backward(self, loss: Tensor) -> None:
        """The backward pass of the scaled loss; adds to the gradients that are there."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the parameters' gradients those of the loss itself; once a step."""
        if self.enabled:
            self.scaler.unscale_(optimizer)

    def inverse(self) -> float:
        """By what the gradients of anything but parameters must be multiplied; asks the device."""
        return 1.0 / self.scaler.get_scale()

    def update(self) -> None:
        """Lowers the scale after an overflow, raises it after many good steps."""
        if self.enabled:
            self.scaler.update()


def guarded_step(optimizer: torch.optim.AdamW, used: Tensor) -> None:
    """Takes the step where ``used`` (bool scalar on the device) holds, else leaves all as it was.

    The fused kernel reads ``found_inf`` on the device, as torch.amp.GradScaler uses it, so no step
    waits for the host.
    """
    optimizer.found_inf = (~used).float()  # type: ignore[attr-defined]
    optimizer.step()
