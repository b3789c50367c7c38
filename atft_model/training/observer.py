"""Everything that is read while training runs, and where it goes: the health record and the log."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atft_model.config import MonitorConfig
from atft_model.data.batches import BatchCounts, DevicePanel, WindowBatch
from atft_model.losses.cross_section import masked_variance
from atft_model.losses.total import LossTerms
from atft_model.model.atft import ATFT
from atft_model.monitors.encoder_hooks import (
    AdaptiveNormDebug,
    EncoderHooks,
    EncoderSpread,
    InputGradients,
)
from atft_model.monitors.gradient_monitor import GradientMonitor
from atft_model.training.distributed import ALONE, Group
from atft_model.training.health_record import HealthRecord

log = logging.getLogger("atft")

READINGS_PER_EPOCH = 20
"""At least so many gradient readings an epoch: zero findings from zero looks is no evidence."""
INPUT_EVERY = 4
"""Every which reading asks for input gradients too: they lengthen the backward pass (measured on
the built-in market: 7 % of a step), and that an input is dead shows at any of them."""
PROGRESS_SECONDS = 5.0
FINE, NOT_FINITE, BRAKED, OVERFLOW = range(4)
"""What became of a step; an overflow of scaled float16 gradients is expected now and then."""
LOSSES = tuple(term.name for term in fields(LossTerms))


@dataclass
class StepResult:
    """What one step leaves on the device for the next reading."""

    figures: Tensor
    """``step_figures`` of the whole batch."""
    norm: Tensor
    clip_norm: float
    outcome: Tensor
    """FINE, NOT_FINITE, BRAKED or OVERFLOW."""


@dataclass
class _Pending:
    """Sums and outcomes on the device since the last reading."""

    sums: Tensor
    outcomes: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    batches: list[tuple[list[int], int, int, float]] = field(default_factory=list)
    """(starts, run length, step, stocks per date) of each step."""


@dataclass(frozen=True)
class Skipped:
    """A batch that was left out."""

    starts: list[int]
    length: int
    step: int
    cause: str
    norm: float


@dataclass(frozen=True)
class Reading:
    """What the loop needs of a reading."""

    score_std: dict[int, float]
    skipped: list[Skipped]


@dataclass(frozen=True)
class EpochReadings:
    """What the readings of an epoch come to; NaN where nothing was read."""

    train_loss: float
    """Mean over the finite steps."""
    neighbours: float
    """Graph neighbours per window."""
    gradient_norms: dict[str, float]
    """Mean L2 norm of each monitor group; of a resumed epoch, since it was resumed."""


class Observer:
    """Reads every ``cadence`` steps; between readings it only adds up numbers on the device.

    A reading fetches all its numbers from the device at once.
    """

    def __init__(
        self,
        model: ATFT,
        config: MonitorConfig,
        health: HealthRecord,
        feature_names: tuple[str, ...],
        horizons: tuple[int, ...],
        steps_per_epoch: int,
        group: Group = ALONE,
    ) -> None:
        self.group = group
        self.config = config
        self.health = health
        self.feature_names = feature_names
        self.horizons = horizons
        self.steps_per_epoch = steps_per_epoch
        self.cadence = max(1, min(config.every, steps_per_epoch // READINGS_PER_EPOCH))
        self.monitor = GradientMonitor(model, config.warn_norm)
        self.hooks = EncoderHooks(model, config.encoder_hooks)
        self.inputs = InputGradients(model)
        self.spread = EncoderSpread(model)
        self.norm_debug = AdaptiveNormDebug(model)
        self.skipped_steps = 0.0
        self._neighbours: Tensor | None = None
        self._held: dict[str, Tensor] = {}
        self._pending: _Pending | None = None
        self._epoch_loss: list[tuple[float, float]] = []
        self._epoch_neighbours: list[float] = []
        self._epoch_norms: dict[str, list[float]] = {}
        self._shown = 0
        self._progress = _Progress()

    def record_data(self, data: DevicePanel, dates: np.ndarray) -> None:
        """Records the range of every input on the training dates, and the targets' raw scale."""
        rows = torch.from_numpy(dates).to(data.device)
        seen = data.observed[rows]
        values = data.features[rows][seen]
        lowest, highest = torch.stack([values.amin(dim=0), values.amax(dim=0)]).tolist()
        for name, low, high in zip(self.feature_names, lowest, highest, strict=True):
            self.health.add(1, 0, "input", name, {"lowest": low, "highest": high})

    def due(self, step: int) -> bool:
        """Whether gradients are read at this step (counted from 1 over the whole run)."""
        return step % self.cadence == 0

    def inputs_due(self, step: int) -> bool:
        """Whether this reading is one that asks for input gradients; the first one is."""
        return self.due(step) and (step // self.cadence) % INPUT_EVERY == 1

    @contextmanager
    def watching(self, batch: WindowBatch, step: int) -> Iterator[WindowBatch]:
        """The batch to use for this part of a step: with inputs that take gradients, when due."""
        due = self.due(step)
        active = due and self.config.gradient_monitor
        inputs = (
            batch.features.detach().requires_grad_() if active and self.inputs_due(step) else None
        )
        with ExitStack() as hooks:
            hooks.enter_context(self.hooks.watching(active))
            hooks.enter_context(self.inputs.watching(inputs is not None))
            hooks.enter_context(self.spread.watching(active, batch.scorable))
            hooks.enter_context(self.norm_debug.watching(due and self.config.adaptive_norm_debug))
            yield replace(batch, features=inputs) if inputs is not None else batch
        if due:
            self._neighbours = added(self._neighbours, neighbour_counts(batch))

    def watch_gradients(self, inverse_scale: float) -> None:
        """Keeps, on the device, what the gradients are before clipping, over all parts of the step.

        Args:
            inverse_scale: By what gradients of activations and inputs are multiplied.
        """
        neighbours, self._neighbours = self._neighbours, None
        if neighbours is not None:
            self._held["neighbours"] = self.group.total(neighbours)
        if not self.config.gradient_monitor:
            return
        self._held["gradient"] = self.monitor.gradient_norms()
        l2, largest = self.hooks.take()
        norms = [self.group.total(l2).sqrt(), self.group.largest(largest)]
        self._held["activation"] = inverse_scale * torch.stack(norms, dim=1)
        spread, squares = self.spread.take(), self.inputs.take()
        if spread is not None:
            self._held["spread"] = self.group.total(spread)
        if squares is not None:
            self._held["input"] = inverse_scale * self.group.total(squares).sqrt()
        self.monitor.remember()

    def watch_update(self) -> None:
        """Keeps, on the device, how far the step moved the weights."""
        if self.config.gradient_monitor:
            self._held["update"] = self.monitor.update_norms()

    def add(self, result: StepResult, starts: np.ndarray, length: int, step: int, stocks: float,
            ) -> None:  # fmt: skip
        """Adds one step's numbers, on the device."""
        fine = result.outcome == FINE
        losses, spreads = result.figures[: len(LOSSES)], result.figures[len(LOSSES) :]
        numbers = torch.cat(
            [
                torch.where(fine, losses, 0.0),
                torch.where(fine, result.norm, 0.0)[None],
                (fine & (result.norm > result.clip_norm)).float()[None],
                spreads,
            ]
        )
        if self._pending is None:
            self._pending = _Pending(torch.zeros_like(numbers))
        self._pending.sums += numbers
        self._pending.outcomes.append(result.outcome)
        self._pending.norms.append(result.norm.detach())
        self._pending.batches.append((starts.tolist(), length, step, stocks))

    def read(self, epoch: int, step: int) -> Reading:
        """Fetches and records everything since the last reading."""
        pending, held = self._pending, self._held
        if pending is None:
            return Reading(dict.fromkeys(self.horizons, math.nan), [])
        self._pending, self._held = None, {}
        fetched = _fetch(
            {
                "sums": pending.sums,
                "outcomes": torch.stack(pending.outcomes),
                "norms": torch.stack(pending.norms),
                **held,
            }
        )
        if "gradient" in held:
            self._record_gradients(epoch, step, fetched)
        if "neighbours" in held:
            seen, windows = fetched["neighbours"]
            self._epoch_neighbours.append(float(seen / max(windows, 1.0)))
        self.norm_debug.log()
        outcomes = fetched["outcomes"].astype(int)
        score_std = self._record_sums(epoch, step, fetched["sums"], outcomes, pending)
        skipped = [
            Skipped(starts, length, at, ("", "not finite", "brake")[outcome], float(norm))
            for (starts, length, at, _), outcome, norm in zip(
                pending.batches, outcomes, fetched["norms"], strict=True
            )
            if outcome in (NOT_FINITE, BRAKED)
        ]
        self.skipped_steps += len(skipped)
        return Reading(score_std, skipped)

    def _record_gradients(self, epoch: int, step: int, fetched: Mapping[str, np.ndarray]) -> None:
        show = self._shown == 0 or step - self._shown >= self.config.every
        self._shown = step if show else self._shown
        for group, reading in self.monitor.readings(fetched["gradient"], show).items():
            self.health.add(epoch, step, "gradient", group, reading.metrics())
            self._epoch_norms.setdefault(group, []).append(reading.l2)
        for group, ratio in self.monitor.update_ratios(fetched["update"]).items():
            self.health.add(epoch, step, "update", group, {"ratio": ratio})
        for name, metrics in self.hooks.readings(fetched["activation"]).items():
            self.health.add(epoch, step, "activation_gradient", name, metrics)
        if "spread" in fetched:
            total, dates = fetched["spread"].tolist()
            std = total / dates if dates else math.nan
            self.health.add(epoch, step, "encoder_spread", "encoder_state", {"std": std})
        if "input" in fetched:
            for kind, name, norm in self.inputs.readings(fetched["input"], self.feature_names):
                self.health.add(epoch, step, kind, name, {"l2": norm})

    def _record_sums(
        self, epoch: int, step: int, sums: np.ndarray, outcomes: np.ndarray, pending: _Pending
    ) -> dict[int, float]:
        steps = len(outcomes)
        used = max(int((outcomes == FINE).sum()), 1)
        losses = dict(zip(LOSSES, sums[: len(LOSSES)].tolist(), strict=True))
        norm, clipped, *spreads = sums[len(LOSSES) :].tolist()
        self._epoch_loss.append((losses["total"], used))
        self.health.add(
            epoch, step, "loss", "train", {name: value / used for name, value in losses.items()}
        )
        counts = {
            "grad_norm": norm / used,
            "clip_ratio": clipped / steps,
            "nonfinite": float((outcomes == NOT_FINITE).sum()),
            "braked": float((outcomes == BRAKED).sum()),
            "overflow": float((outcomes == OVERFLOW).sum()),
            "steps": float(steps),
            "stocks_per_date": min(stocks for *_, stocks in pending.batches),
        }
        self.health.add(epoch, step, "step", "train", counts)
        score_std = {}
        for index, horizon in enumerate(self.horizons):
            std, target = (spreads[i] / steps for i in (index, len(self.horizons) + index))
            ratio = std / target if target > 0 else math.nan
            metrics = {"std": std, "ratio": ratio}
            self.health.add(epoch, step, "score_std", f"horizon_{horizon}", metrics)
            score_std[horizon] = std
        return score_std

    def end_epoch(self, epoch: int, step: int) -> EpochReadings:
        """Records each tensor's largest gradient, and sums the epoch up."""
        for name, largest in self.monitor.take_largest().items():
            self.health.add(epoch, step, "parameter", name, {"largest": largest})
        total = sum(value for value, _ in self._epoch_loss)
        steps = sum(count for _, count in self._epoch_loss)
        seen, norms = self._epoch_neighbours, self._epoch_norms
        self._shown, self._epoch_loss, self._epoch_neighbours, self._epoch_norms = 0, [], [], {}
        return EpochReadings(
            total / steps if steps else math.nan,
            float(np.mean(seen)) if seen else math.nan,
            {group: float(np.mean(values)) for group, values in norms.items()},
        )

    def progress(self, epoch: int, step_in_epoch: int, windows: int, loss: Tensor) -> None:
        """A progress line every few seconds, with speed and the epoch's time left."""
        self._progress.show(epoch, step_in_epoch, self.steps_per_epoch, windows, loss)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run reads as if it never stopped."""
        pending = self._pending
        return {
            "skipped_steps": self.skipped_steps,
            "epoch_loss": self._epoch_loss,
            "epoch_neighbours": self._epoch_neighbours,
            "shown": self._shown,
            "largest": dict(self.monitor.largest),
            "pending": pending and vars(pending),
        }

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from ``state``."""
        self.skipped_steps = state["skipped_steps"]
        self._epoch_loss = [(total, used) for total, used in state["epoch_loss"]]
        self._epoch_neighbours = list(state["epoch_neighbours"])
        self._shown = state["shown"]
        self.monitor.largest = dict(state["largest"])
        pending = state["pending"]
        if pending is not None:
            self._pending = _Pending(
                pending["sums"].to(device),
                [outcome.to(device) for outcome in pending["outcomes"]],
                [norm.to(device) for norm in pending["norms"]],
                list(pending["batches"]),
            )


def _fetch(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors on the host, float32, in one transfer."""
    device = tensors["sums"].device
    flat = [tensor.detach().to(device, torch.float32).reshape(-1) for tensor in tensors.values()]
    values = np.split(torch.cat(flat).cpu().numpy(), np.cumsum([len(part) for part in flat])[:-1])
    return {
        name: value.reshape(tuple(tensor.shape))
        for (name, tensor), value in zip(tensors.items(), values, strict=True)
    }


def neighbour_counts(batch: WindowBatch) -> Tensor:
    """[2]: graph neighbours of the scorable windows, and how many windows; on the device."""
    count = ((batch.neighbours >= 0) & batch.scorable[..., None]).sum()
    return torch.stack([count, batch.scorable.sum()]).float()


def step_figures(
    terms: LossTerms, score: Tensor, target: Tensor, valid: Tensor, whole: BatchCounts
) -> Tensor:
    """[losses, then spread of score and of target per horizon] of one part of a step's batch.

    The parts' figures add up to those of the whole. On the device.
    """
    spreads = (spread(value, valid, whole.spread) for value in (score, target))
    named = terms.named()
    return torch.cat([torch.stack([named[name] for name in LOSSES]), *spreads])


def spread(value: Tensor, valid: Tensor, dates: Sequence[int]) -> Tensor:
    """Sum over a part's dates of the std within the date, over the whole batch's ``dates``.

    Returns:
        [horizons]; NaN where no date of the whole batch has two valid stocks.
    """
    std = masked_variance(value.flatten(0, 1), valid.flatten(0, 1)).sqrt().squeeze(1)
    counted = valid.flatten(0, 1).sum(dim=1) >= 2
    total = (std * counted).sum(dim=0)
    return torch.stack(
        [std / n if n else std * torch.nan for std, n in zip(total, dates, strict=True)]
    )


def added(before: Tensor | None, more: Tensor) -> Tensor:
    """The sum, where there is something before."""
    return more if before is None else before + more


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
