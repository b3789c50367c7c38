"""Reads what the encoder passes on: gradients of its activations and of its inputs, its spread."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from atft_model.losses.cross_section import masked_variance
from atft_model.model.atft import ATFT
from atft_model.monitors.hooked import hooked

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

    def watching(self, active: bool) -> AbstractContextManager[None]:
        """Hooks the two activations for the forward and backward pass inside, if ``active``."""
        return hooked(
            module.register_forward_hook(self._watch(name))
            for name, module in self.modules.items()
            if active
        )

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


class InputGradients:
    """Gradients of the input features by the path that they take, while ``watching``.

    The two paths are read apart: the input skip would hide an input that the encoder lost. Its
    hooks come first, so that they see what the model hands over, not what another hook made of it.
    """

    def __init__(self, model: ATFT) -> None:
        self.paths: dict[str, torch.nn.Module] = {"input_gradient": model.variable_selection}
        self.columns: list[int] = []
        """Features that the input skip reads."""
        if model.input_skip is not None:
            self.paths["skip_gradient"] = model.input_skip
            self.columns = model.input_skip.columns.tolist()
        self._squares: dict[str, Tensor] = {}

    def watching(self, active: bool) -> AbstractContextManager[None]:
        """Hooks the first module of each path for the passes inside, if ``active``."""
        return hooked(
            module.register_forward_pre_hook(self._watch(name), prepend=True)
            for name, module in self.paths.items()
            if active
        )

    def _watch(self, name: str):
        def on_forward(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].requires_grad:
                self._squares.setdefault(name, inputs[0].new_zeros(inputs[0].shape[-1]))
                inputs[0].register_hook(lambda gradient: self._keep(name, gradient))

        return on_forward

    def _keep(self, name: str, gradient: Tensor) -> None:
        self._squares[name] = self._squares[name] + feature_squares(gradient)

    def take(self) -> Tensor | None:
        """[paths, features]: squared L2 norms since the last call; None where none were asked."""
        taken, self._squares = self._squares, {}
        return torch.stack([taken[name] for name in self.paths]) if taken else None

    def readings(
        self, norms: np.ndarray, features: tuple[str, ...]
    ) -> Iterator[tuple[str, str, float]]:
        """(kind, feature, L2 norm) of what ``take`` gave; of the skip, what it reads."""
        for kind, row in zip(self.paths, norms, strict=True):
            chosen = range(len(features)) if kind == "input_gradient" else self.columns
            yield from ((kind, features[column], float(row[column])) for column in chosen)


class EncoderSpread:
    """How far the stocks of a date lie apart in what the head reads of the encoder.

    With an input skip the score's spread does not tell: the skip keeps it up when every stock gets
    the same from the encoder.
    """

    def __init__(self, model: ATFT) -> None:
        self.module = model.gated_residual
        self._sums: Tensor | None = None

    def watching(self, active: bool, scorable: Tensor) -> AbstractContextManager[None]:
        """Hooks the encoder's last module for the forward pass of these windows, if ``active``.

        Args:
            scorable: bool [runs, length, stocks].
        """

        def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                dates = scorable.flatten(0, 1)
                state = output.detach().float().view(*dates.shape, -1)
                self._keep(state, dates[..., None].expand_as(state))

        return hooked([self.module.register_forward_hook(keep)] if active else [])

    def _keep(self, state: Tensor, valid: Tensor) -> None:
        std = masked_variance(state, valid).sqrt().mean(dim=(1, 2))
        counted = (valid[..., 0].sum(dim=1) >= 2).float()
        sums = torch.stack([(std * counted).sum(), counted.sum()])
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> Tensor | None:
        """[2]: stds within the date added up, and how many dates; None where none was seen."""
        taken, self._sums = self._sums, None
        return taken


class AdaptiveNormDebug:
    """Spread of what enters and leaves the adaptive normalization, while ``watching``."""

    def __init__(self, model: ATFT) -> None:
        self.module = model.adaptive_norm
        self._seen: list[Tensor] = []

    def watching(self, active: bool) -> AbstractContextManager[None]:
        """Hooks the module for the forward pass inside, if ``active``."""
        self._seen.clear()
        return hooked([self.module.register_forward_hook(self._keep)] if active else [])

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
