"""Optimizer, learning rate and loss scale, built from their settings."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from atft_model.config import OptimizerConfig

SHORT_PATH = ("input_skip.", "head.")
"""Parameters between the last day's inputs and the score that no encoder stands behind."""


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW, fused: it can leave out a step on the device's own word (``guarded_step``).

    The input skip and the head are a group of their own, with a rate of their own.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "scale": 1.0},
        {"params": [], "scale": config.short_path_rate},
    ]
    for name, parameter in model.named_parameters():
        groups[name.startswith(SHORT_PATH)]["params"].append(parameter)
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate, weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip
    set_rate(optimizer, config.learning_rate)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the first group; the others' is ``scale`` times it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


class Schedule:
    """Learning rates in stages first; then they fall when the validation rank IC stalls.

    A ``cosine`` schedule has neither: it rises over ``warmup_steps`` and falls to 0 at
    ``total_steps`` (Loshchilov & Hutter 2017, without restarts), whatever validation says.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: int
    ) -> None:
        self.total_steps = total_steps
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
            set_rate(self.optimizer, stages[stage])
        elif stages and epoch == len(stages) * self.config.stage_epochs + 1:
            set_rate(self.optimizer, self.config.learning_rate)

    def start_step(self, step: int) -> None:
        """Sets the rate of a step (from 1), where the schedule goes by steps."""
        if self.config.schedule == "cosine":
            rise = min(1.0, step / max(self.config.warmup_steps, 1))
            fall = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self.total_steps))
            set_rate(self.optimizer, self.config.learning_rate * rise * fall)

    def end_epoch(self, epoch: int, watched: float) -> None:
        """Judges progress, once the stages are over."""
        if self.config.schedule == "cosine":
            return
        if epoch > len(self.config.learning_rate_stages) * self.config.stage_epochs:
            self.plateau.step(watched)


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
