"""Reads gradients and updates per monitor group. Reads only; writes nothing."""

import logging
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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


@dataclass
class GradientMonitor:
    """Norms on the device for the observer to fetch, and what they mean once on the host."""

    model: ATFT
    warn_norm: float
    largest: dict[str, float] = field(default_factory=dict)
    """Largest gradient element of each tensor since ``take_largest``; NaN: never a gradient."""

    def __post_init__(self) -> None:
        self.groups = self.model.monitor_groups()
        self._owned = [
            (group, name, parameter)
            for group, parameters in self.groups.items()
            for name, parameter in parameters.items()
        ]
        self._before: list[Tensor] = []

    def gradient_norms(self) -> Tensor:
        """[2, tensors]: L2 norm and largest absolute element of each gradient; NaN without one."""
        device = self._owned[0][2].device
        norms = torch.full((2, len(self._owned)), math.nan, device=device)
        present = [i for i, (_, _, p) in enumerate(self._owned) if p.grad is not None]
        gradients = [p.grad for _, _, p in self._owned if p.grad is not None]
        if gradients:
            norms[0, present] = _norms(gradients)
            norms[1, present] = _norms(gradients, math.inf)
        return norms

    @torch.no_grad()
    def remember(self) -> None:
        """Keeps the parameters as they are before a step."""
        now: list[Tensor] = [parameter for _, _, parameter in self._owned]
        if not self._before:
            self._before = [torch.empty_like(parameter) for parameter in now]
        torch._foreach_copy_(self._before, now)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def update_norms(self) -> Tensor:
        """[2, tensors]: L2 norm of each tensor's change since ``remember``, and of it before."""
        now: list[Tensor] = [parameter for _, _, parameter in self._owned]
        before = _norms(self._before)
        torch._foreach_sub_(self._before, now)  # pyright: ignore[reportPrivateImportUsage]
        return torch.stack([_norms(self._before), before])

    def readings(self, norms: np.ndarray, show: bool) -> dict[str, GroupReading]:
        """What ``gradient_norms`` says of each group.

        Args:
            show: Log a line per group; a vanishing group is always logged.
        """
        missing = np.array([parameter.grad is None for _, _, parameter in self._owned])
        readings = {}
        for group, chosen in self._positions().items():
            l2, largest = norms[:, chosen[~missing[chosen]]].astype(np.float64)
            readings[group] = GroupReading(
                l2=float(np.sqrt(np.square(l2).sum())),
                max=float(largest.max()) if len(largest) else 0.0,
                tensors=len(chosen),
                with_gradient=len(largest),
                zero=int((largest == 0).sum()),
                none=int(missing[chosen].sum()),
                small=int((largest < SMALL).sum()),
            )
            self._log(group, readings[group], show)
        for (_, name, _), value, none in zip(self._owned, norms[1], missing, strict=True):
            before = self.largest.get(name, math.nan)
            now = math.nan if none else float(value)
            self.largest[name] = now if math.isnan(before) else max(before, now)
        return readings

    def update_ratios(self, norms: np.ndarray) -> dict[str, float]:
        """Length of each group's step, weight decay included, over the length of its weights."""
        squared = np.square(norms.astype(np.float64))
        return {
            group: float(np.sqrt(squared[0, chosen].sum() / max(squared[1, chosen].sum(), 1e-300)))
            for group, chosen in self._positions().items()
        }

    def take_largest(self) -> dict[str, float]:
        """Each tensor's largest gradient element since the last call."""
        taken, self.largest = self.largest, {}
        return taken

    def _positions(self) -> dict[str, np.ndarray]:
        owners = np.array([group for group, _, _ in self._owned])
        return {group: np.flatnonzero(owners == group) for group in self.groups}

    def _log(self, group: str, reading: GroupReading, show: bool) -> None:
        small = f" ({reading.small} small)" if reading.small else ""
        none = f" ({reading.none} none)" if reading.none else ""
        log.log(
            logging.INFO if show else logging.DEBUG,
            "[GRAD-MONITOR] %s: l2=%.2e max=%.2e grad=%d/%d%s%s",
            group, reading.l2, reading.max, reading.with_gradient, reading.tensors, small, none,
        )  # fmt: skip
        if reading.l2 < self.warn_norm:
            log.warning("[GRAD-MONITOR] %s: norm %.2e < %.0e", group, reading.l2, self.warn_norm)


def _norms(tensors: list[Tensor], order: float = 2.0) -> Tensor:
    """float32 [tensors]: the norm of each, in a few kernels for all of them."""
    norms = torch._foreach_norm(tensors, order)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).float()
