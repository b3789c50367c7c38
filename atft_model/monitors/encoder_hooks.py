"""Reads the gradient that reaches the encoder's activations and the input features."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from atft_model.model.atft import ATFT

log = logging.getLogger("atft")


class EncoderHooks:
    """Gradients of ``projected_features`` and ``normalized_features``, while ``watching``."""

    def __init__(self, model: ATFT, log_lines: bool) -> None:
        self.modules = {
            "projected_features": model.projected,
            "normalized_features": model.normalized,
        }
        self.log_lines = log_lines
        self._readings: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, active: bool) -> Iterator[None]:
        """Hooks the two activations for the forward and backward pass inside, if ``active``."""
        self._readings.clear()
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
        self._readings[name] = torch.stack(
            [gradient.detach().float().norm(), gradient.detach().float().abs().max()]
        )

    def read(self) -> dict[str, dict[str, float]]:
        """L2 norm and largest element per activation; an activation without gradient reads 0."""
        readings = {}
        for name in self.modules:
            pair = self._readings.get(name)
            l2, largest = pair.tolist() if pair is not None else (0.0, 0.0)
            readings[name] = {"l2": l2, "max": largest}
            if self.log_lines:
                log.info("[ENCODER-GRAD] %s grad_norm=%.2e max=%.2e", name, l2, largest)
        return readings


def feature_gradients(gradient: Tensor | None, names: tuple[str, ...]) -> dict[str, float]:
    """L2 norm of the loss gradient with respect to each input feature, over all days and stocks."""
    if gradient is None:
        return dict.fromkeys(names, 0.0)
    norms = gradient.float().flatten(0, -2).norm(dim=0)
    return dict(zip(names, norms.tolist(), strict=True))
