"""Reads the gradient that reaches the encoder's activations and the input features."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from atft_model.model.atft import ATFT

log = logging.getLogger("atft")


class EncoderHooks:
    """Gradients of ``projected_features`` and ``normalized_features``, while ``watching``.

    A step computed in parts is watched once for each; their gradients count as one.
    """

    def __init__(self, model: ATFT, log_lines: bool) -> None:
        self.modules = {
            "projected_features": model.projected,
            "normalized_features": model.normalized,
        }
        self.log_lines = log_lines
        self._squares: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, active: bool) -> Iterator[None]:
        """Hooks the two activations for the forward and backward pass inside, if ``active``."""
        handles = []
        if active:
            for name, module in self.modules.items():
                handles.append(module.register_forward_hook(self._watch(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, name: str):
        def on_forward(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: self._keep(name, gradient))

        return on_forward

    def _keep(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.detach().float()
        low, high = gradient.aminmax()  # one pass and no copy, where abs() makes one
        square, largest = gradient.norm().square(), high.maximum(-low)
        if name in self._squares:
            square, largest = square + self._squares[name], largest.maximum(self._largest[name])
        self._squares[name], self._largest[name] = square, largest

    def take(self) -> tuple[Tensor, Tensor]:
        """Squared L2 norm and largest element of each activation's gradient, since the last call.

        Both [activations]; 0 without a gradient.
        """
        none = torch.zeros_like(next(iter(self._squares.values()), torch.zeros(())))
        squares, largest = (torch.stack([kept.get(name, none) for name in self.modules])
                            for kept in (self._squares, self._largest))  # fmt: skip
        self._squares, self._largest = {}, {}
        return squares, largest

    def readings(self, norms: np.ndarray) -> dict[str, dict[str, float]]:
        """What the norms say of each activation; logged where asked for.

        Args:
            norms: [activations, 2], L2 and largest element.
        """
        readings = {}
        for name, (l2, largest) in zip(self.modules, norms.tolist(), strict=True):
            readings[name] = {"l2": l2, "max": largest}
            if self.log_lines:
                log.info("[ENCODER-GRAD] %s grad_norm=%.2e max=%.2e", name, l2, largest)
        return readings


class AdaptiveNormDebug:
    """Spread of what enters and leaves the adaptive normalization, while ``watching``."""

    def __init__(self, model: ATFT) -> None:
        self.module = model.adaptive_norm
        self._seen: list[Tensor] = []

    @contextmanager
    def watching(self, active: bool) -> Iterator[None]:
        """Hooks the module for the forward pass inside, if ``active``."""
        self._seen.clear()
        if not active:
            yield
            return
        handle = self.module.register_forward_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        last = [inputs[0].detach()[:, -1].float(), output.detach()[:, -1].float()]
        self._seen = [torch.stack([values.mean(), values.std()]) for values in last]

    def log(self) -> None:
        """One line: mean and std of the last day, the one that the head reads."""
        if self._seen:
            (mean, std), (mean_after, std_after) = torch.stack(self._seen).tolist()
            log.info(
                "[ADAPTIVE-NORM] last day: in mean=%.2e std=%.2e, out mean=%.2e std=%.2e",
                mean, std, mean_after, std_after,
            )  # fmt: skip


def feature_squares(gradient: Tensor) -> Tensor:
    """Squared L2 norm of each input feature's gradient, over all days and stocks."""
    return gradient.float().flatten(0, -2).norm(dim=0).square()
