"""Reads gradients per monitor group after the backward pass. Reads only; writes nothing."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atft_model.model.atft import ATFT

log = logging.getLogger("atft")

SMALL = 1e-12
"""A tensor whose largest gradient element is below this is counted as small in the log line."""


@dataclass(frozen=True)
class GroupReading:
    """Gradients of one monitor group at one step, after unscaling, before clipping.

    ``l2`` and ``max`` are over all elements; ``zero`` counts tensors whose gradient is exactly
    zero everywhere, ``none`` those without a gradient, ``small`` those below ``SMALL``.
    """

    l2: float
    max: float
    tensors: int
    with_gradient: int
    zero: int
    none: int
    small: int

    def metrics(self) -> dict[str, float]:
        """Values by metric name, for the health record."""
        return {name: float(value) for name, value in vars(self).items()}


class GradientMonitor:
    """Readings of every monitor group; one transfer from the device per reading."""

    def __init__(self, model: ATFT, warn_norm: float) -> None:
        self.groups = model.monitor_groups()
        self.warn_norm = warn_norm

    def read(self) -> dict[str, GroupReading]:
        """The gradients as they are now; logs one line per group and one per vanishing group."""
        names, counts, stacked = [], [], []
        for group, parameters in self.groups.items():
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            names.append(group)
            counts.append((len(parameters), len(gradients)))
            stacked.append(_norms(gradients, next(iter(parameters.values()))))
        values = torch.cat(stacked, dim=1).double().cpu()
        readings, first = {}, 0
        for group, (tensors, with_gradient) in zip(names, counts, strict=True):
            l2, largest = values[:, first : first + with_gradient]
            first += with_gradient
            reading = GroupReading(
                l2=float(l2.square().sum().sqrt()),
                max=float(largest.max()) if with_gradient else 0.0,
                tensors=tensors,
                with_gradient=with_gradient,
                zero=int((largest == 0).sum()),
                none=tensors - with_gradient,
                small=int((largest < SMALL).sum()),
            )
            readings[group] = reading
            self._log(group, reading)
        return readings

    def _log(self, group: str, reading: GroupReading) -> None:
        small = f" ({reading.small} small)" if reading.small else ""
        none = f" ({reading.none} none)" if reading.none else ""
        log.debug(
            "[GRAD-MONITOR] %s: l2=%.2e max=%.2e grad=%d/%d%s%s",
            group, reading.l2, reading.max, reading.with_gradient, reading.tensors, small, none,
        )  # fmt: skip
        if reading.l2 < self.warn_norm:
            log.warning("[GRAD-MONITOR] %s: norm %.2e < %.0e", group, reading.l2, self.warn_norm)


def _norms(gradients: list[Tensor], like: nn.Parameter) -> Tensor:
    """[2, tensors]: L2 norm and largest absolute element of each gradient."""
    if not gradients:
        return torch.zeros(2, 0, device=like.device)
    return torch.stack(
        [torch.stack([gradient.norm(), gradient.abs().max()]) for gradient in gradients], dim=1
    ).float()
