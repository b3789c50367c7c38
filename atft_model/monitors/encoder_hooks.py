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

    def norms(self, inverse_scale: float) -> Tensor:
        """[activations, 2]: L2 norm and largest element of each gradient; 0 without a gradient."""
        like = next(iter(self._readings.values()), torch.zeros(2))
        return inverse_scale * torch.stack(
            [self._readings.get(name, torch.zeros_like(like)) for name in self.modules]
        )

    def readings(self, norms: np.ndarray) -> dict[str, dict[str, float]]:
        """What ``norms`` says of each activation; logged where asked for."""
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


def feature_gradients(gradient: Tensor) -> Tensor:
    """L2 norm of the loss gradient with respect to each input feature, over all days and stocks."""
    return gradient.float().flatten(0, -2).norm(dim=0)
