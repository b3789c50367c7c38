"""Everything that is read while training runs, and where it goes: the health record and the log."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atft_model.config import MonitorConfig
from atft_model.data.batches import WindowBatch
from atft_model.losses.total import LossTerms
from atft_model.model.atft import ATFT
from atft_model.monitors.encoder_hooks import EncoderHooks, feature_gradients
from atft_model.monitors.gradient_monitor import GradientMonitor
from atft_model.training.health_record import HealthRecord

log = logging.getLogger("atft")

READINGS_PER_EPOCH = 20
"""At least so many gradient readings an epoch: zero findings from zero looks is no evidence."""
PROGRESS_SECONDS = 5.0


@dataclass
class _Sums:
    """Running sums on the device since the last reading."""

    values: Tensor
    steps: int = 0


class Observer:
    """Reads every ``cadence`` steps; between readings it only adds up numbers on the device."""

    def __init__(
        self,
        model: ATFT,
        config: MonitorConfig,
        health: HealthRecord,
        feature_names: tuple[str, ...],
        horizons: tuple[int, ...],
        steps_per_epoch: int,
        clip_norm: float,
    ) -> None:
        self.config = config
        self.health = health
        self.feature_names = feature_names
        self.horizons = horizons
        self.steps_per_epoch = steps_per_epoch
        self.clip_norm = clip_norm
        self.cadence = max(1, min(config.every, steps_per_epoch // READINGS_PER_EPOCH))
        self.monitor = GradientMonitor(model, config.warn_norm)
        self.hooks = EncoderHooks(model, config.encoder_hooks)
        self.nonfinite_steps = 0.0
        self._input: Tensor | None = None
        self._sums: _Sums | None = None
        self._epoch_loss: list[tuple[float, float]] = []
        self._progress = _Progress()

    def due(self, step: int) -> bool:
        """Whether gradients are read at this step (counted from 1 over the whole run)."""
        return step % self.cadence == 0

    @contextmanager
    def watching(self, batch: WindowBatch, due: bool) -> Iterator[WindowBatch]:
        """The batch to use for this step: one whose input gradients can be read, when due."""
        active = due and self.config.gradient_monitor
        self._input = batch.features.detach().requires_grad_() if active else None
        with self.hooks.watching(active):
            yield replace(batch, features=self._input) if self._input is not None else batch

    def add(self, terms: LossTerms, norm: Tensor, finite: Tensor, score_std: Tensor) -> None:
        """Adds one step's numbers, on the device: the sums are read when a reading is due."""
        named = terms.named()
        step = torch.stack(
            [
                *[torch.where(finite, value, 0.0) for value in named.values()],
                torch.where(finite, norm, 0.0),
                (norm > self.clip_norm).float(),
                (~finite).float(),
                *score_std,
            ]
        )
        if self._sums is None:
            self._sums = _Sums(torch.zeros_like(step))
        self._sums.values += step
        self._sums.steps += 1

    def read_gradients(self, epoch: int, step: int) -> None:
        """Records gradients per group, per activation and per input feature, before clipping."""
        if not self.config.gradient_monitor:
            return
        for group, reading in self.monitor.read().items():
            self.health.add(epoch, step, "gradient", group, reading.metrics())
        for name, metrics in self.hooks.read().items():
            self.health.add(epoch, step, "activation_gradient", name, metrics)
        gradient = self._input.grad if self._input is not None else None
        for name, norm in feature_gradients(gradient, self.feature_names).items():
            self.health.add(epoch, step, "input_gradient", name, {"l2": norm})

    def read_sums(self, epoch: int, step: int) -> dict[int, float]:
        """Records the means since the last reading; returns the score's std per horizon.

        Returns:
            Mean within-date std of the point score per horizon; NaN where nothing was ranked.
        """
        if self._sums is None:
            return dict.fromkeys(self.horizons, math.nan)
        values, steps = self._sums.values.tolist(), self._sums.steps
        self._sums = None
        total, quantile, rank, variance, norm, clipped, nonfinite, *stds = values
        used = max(steps - nonfinite, 1)
        self.nonfinite_steps += nonfinite
        self._epoch_loss.append((total, used))
        losses = {"total": total, "quantile": quantile, "rank": rank, "variance": variance}
        self.health.add(
            epoch, step, "loss", "train", {name: value / used for name, value in losses.items()}
        )
        self.health.add(
            epoch,
            step,
            "step",
            "train",
            {
                "grad_norm": norm / used,
                "clip_ratio": clipped / steps,
                "nonfinite": nonfinite,
                "steps": float(steps),
            },
        )
        score_std = {h: std / steps for h, std in zip(self.horizons, stds, strict=True)}
        for horizon, std in score_std.items():
            self.health.add(epoch, step, "score_std", f"horizon_{horizon}", {"std": std})
        return score_std

    def take_epoch_loss(self) -> float:
        """Mean training loss over the finite steps since the last call."""
        total = sum(value for value, _ in self._epoch_loss)
        steps = sum(count for _, count in self._epoch_loss)
        self._epoch_loss.clear()
        return total / steps if steps else math.nan

    def progress(self, epoch: int, step_in_epoch: int, windows: int, loss: Tensor) -> None:
        """A progress line every few seconds, with speed and the epoch's time left."""
        self._progress.show(epoch, step_in_epoch, self.steps_per_epoch, windows, loss)


class _Progress:
    """Prints at most one line every ``PROGRESS_SECONDS``."""

    def __init__(self) -> None:
        self.epoch = -1
        self.printed = 0.0
        self.started = 0.0
        self.windows = 0

    def show(self, epoch: int, step: int, steps: int, windows: int, loss: Tensor) -> None:
        now = time.monotonic()
        if epoch != self.epoch:
            self.epoch, self.started, self.printed, self.windows = epoch, now, now, 0
            return
        self.windows += windows
        if now - self.printed < PROGRESS_SECONDS:
            return
        self.printed = now
        speed = self.windows / max(now - self.started, 1e-9)
        left = (now - self.started) / max(step - 1, 1) * (steps - step)
        log.info(
            "  epoch %d step %d/%d loss=%.4f %s windows/s, epoch done in %.0f s",
            epoch, step, steps, float(loss.detach()), f"{speed:,.0f}", left,
        )  # fmt: skip
