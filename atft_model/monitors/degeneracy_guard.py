"""The degeneracy guard: resets a prediction head whose scores have become the same for all stocks.

It watches the within-date standard deviation of the point score per horizon, decides on host
numbers, and says what to do; the training loop applies the reset, between steps, in sight.
"""

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import nn

from atft_model.config import GuardConfig

log = logging.getLogger("atft")


@dataclass(frozen=True)
class GuardEvent:
    """What the guard saw or asked for: dropped, reset, recovered, reset_failed or cap_reached."""

    what: str
    horizon: int
    score_std: float


@dataclass
class DegeneracyGuard:
    """State of the watch, per horizon."""

    config: GuardConfig
    horizons: tuple[int, ...]
    low: dict[int, int] = field(default_factory=dict)
    awaiting: dict[int, int] = field(default_factory=dict)
    resets_this_epoch: int = 0
    evaluations: int = 0

    def start_epoch(self) -> None:
        """The cap on resets counts per epoch."""
        self.resets_this_epoch = 0

    def evaluate(self, score_std: dict[int, float]) -> list[GuardEvent]:
        """Judges one reading per horizon; a NaN reading (nothing to rank) is not judged.

        An event ``reset`` asks the caller to reset that horizon's head now.
        """
        self.evaluations += 1
        events: list[GuardEvent] = []
        for horizon in self.horizons:
            std = score_std[horizon]
            if math.isnan(std):
                continue
            collapsed = std < self.config.std_floor
            self.low[horizon] = self.low.get(horizon, 0) + 1 if collapsed else 0
            if horizon in self.awaiting:
                events += self._judge_recovery(horizon, std, collapsed)
            elif self.low[horizon] >= self.config.patience:
                events += self._ask_for_reset(horizon, std)
        return events

    def _judge_recovery(self, horizon: int, std: float, collapsed: bool) -> list[GuardEvent]:
        self.awaiting[horizon] += 1
        if not collapsed:
            del self.awaiting[horizon]
            log.info("[DEGENERACY-GUARD] Prediction std recovered to %.2e", std)
            return [GuardEvent("recovered", horizon, std)]
        if self.awaiting[horizon] >= self.config.recovery_readings:
            del self.awaiting[horizon]
            log.error("[DEGENERACY-GUARD] Reset failed to restore variance")
            return [GuardEvent("reset_failed", horizon, std)]
        return []

    def _ask_for_reset(self, horizon: int, std: float) -> list[GuardEvent]:
        self.low[horizon] = 0
        log.warning(
            "[DEGENERACY-GUARD] Prediction std dropped to %.2e (floor=%.0e)",
            std, self.config.std_floor,
        )  # fmt: skip
        dropped = GuardEvent("dropped", horizon, std)
        if self.resets_this_epoch >= self.config.max_resets_per_epoch:
            return [dropped, GuardEvent("cap_reached", horizon, std)]
        self.resets_this_epoch += 1
        self.awaiting[horizon] = 0
        return [dropped, GuardEvent("reset", horizon, std)]


@torch.no_grad()
def reset_head(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    scale: float,
    generator: torch.Generator,
    spread_floor: float = 1e-2,
) -> None:
    """Adds Gaussian noise to a collapsed head and clears its optimizer state.

    The noise is ``scale`` times the tensor's own standard deviation, at least ``scale`` times
    ``spread_floor``, so that an all-zero tensor moves too.
    """
    for parameter in head.parameters():
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().max()
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise * scale * spread.clamp(min=spread_floor))
        optimizer.state.pop(parameter, None)
    log.warning("[DEGENERACY-GUARD] Prediction head reset applied (scale=%g)", scale)
