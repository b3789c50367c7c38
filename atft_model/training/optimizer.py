"""Optimizer, schedule and clipping, built from ``OptimizerConfig``."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from atft_model.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW, fused: it can leave out a step on the device's own word (``guarded_step``)."""
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Lowers the learning rate when the validation rank IC stalls."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        cooldown=config.plateau_cooldown,
        threshold_mode="abs",  # a relative threshold never stalls on negative values
    )


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
    """Scales the gradients to ``clip_norm`` at most; returns the norm before, on the device."""
    return nn.utils.clip_grad_norm_(parameters, clip_norm)


def guarded_step(optimizer: torch.optim.AdamW, finite: Tensor) -> None:
    """Takes the step where ``finite`` (bool scalar on the device) holds, else leaves all as it was.

    The fused kernel reads ``found_inf`` on the device, as torch.amp.GradScaler uses it, so no step
    waits for the host.
    """
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
