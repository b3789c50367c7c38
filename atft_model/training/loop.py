"""The training loop. ``run.py`` builds what it needs; the observer reads; only the loop writes."""

import dataclasses
import json
import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from atft_model.config import RunConfig
from atft_model.data.batches import BatchCounts, DevicePanel, epoch_batches, shares
from atft_model.errors import InputError
from atft_model.losses.total import TrainingLoss
from atft_model.model.atft import ATFT
from atft_model.monitors.degeneracy_guard import DegeneracyGuard, reset_head
from atft_model.training.checkpoint import KEPT, save_state, save_weights, weights_hash
from atft_model.training.clipping import Clipping, clip_gradients
from atft_model.training.code_state import code_state
from atft_model.training.diagnosis import UNSEEN, batch_dates, first_offender
from atft_model.training.distributed import Group
from atft_model.training.health_record import HealthRecord
from atft_model.training.observer import (
    BRAKED,
    FINE,
    NOT_FINITE,
    OVERFLOW,
    Observer,
    Skipped,
    StepResult,
    step_figures,
)
from atft_model.training.optimizer import LossScale, Schedule, guarded_step
from atft_model.training.reporter import Reporter
from atft_model.training.stall import StallWatch
from atft_model.training.validation import Validation, forward, validate

log = logging.getLogger("atft")

DIAGNOSED = 3
"""Skipped batches that are computed again, per reading, to name what was not finite."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    """Steps taken of an epoch that is not over; 0 between epochs."""
    epoch_windows: int = 0
    best_epoch: int = 0
    """Whose weights are kept: by ``training.keep`` that of the best rank IC, or the last one."""
    best_rank_ic: float = -math.inf
    """Its validation rank IC."""
    stopped_early: bool = False
    windows: int = 0
    history: list[dict[str, int | float]] = field(default_factory=list)


@dataclass
class Trainer:
    """Everything that one run trains with."""

    config: RunConfig
    model: ATFT
    data: DevicePanel
    loss: TrainingLoss
    optimizer: torch.optim.AdamW
    schedule: Schedule
    clipping: Clipping
    loss_scale: LossScale
    guard: DegeneracyGuard
    observer: Observer
    health: HealthRecord
    reporter: Reporter
    stall: StallWatch
    train_dates: np.ndarray
    validation_dates: np.ndarray
    runs_per_batch: int
    steps_per_epoch: int
    order: np.random.Generator
    noise: torch.Generator
    group: Group
    identity: Mapping[str, Any]
    """What must be the same for a run to be resumed: settings, data, versions, device."""
    checkpoint: Path
    replica: nn.Module = field(init=False)
    """The model, as the training steps call it."""
    _saved_at: float = field(default_factory=time.monotonic)
    _order_at_start: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replica = self.group.replicate(self.model)

    def fit(self, folder: Path, progress: Progress) -> Progress:
        """Trains to the last epoch or an early stop; best and last weights go to ``folder``."""
        last = self.config.training.max_epochs
        with self.stall.running():
            while progress.epoch < last + (progress.step_in_epoch > 0):
                if progress.stopped_early:
                    break
                if progress.step_in_epoch == 0:
                    progress.epoch += 1
                started = time.monotonic()
                already = progress.epoch_windows
                self.train_epoch(progress)
                self.group.check_same(
                    lambda: weights_hash(self.model.state_dict()),
                    f"after epoch {progress.epoch} the weights",
                )
                seconds = time.monotonic() - started
                validation = validate(
                    self.model, self.data, self.validation_dates, self.config,
                    self.runs_per_batch, self.loss, self.group,
                )  # fmt: skip
                self.beat(progress, "validation")
                watched = _watched(validation)
                self.schedule.end_epoch(progress.epoch, watched)
                self.save_weights(folder / "last.pt")
                self.keep_epoch(folder, progress.epoch)
                if self.keeps(watched, progress):
                    progress.best_rank_ic = watched
                    progress.best_epoch = progress.epoch
                    self.save_weights(folder / "best.pt")
                speed = (progress.epoch_windows - already) / seconds
                progress.step_in_epoch = progress.epoch_windows = 0
                self.record_epoch(progress, validation, speed, seconds)
                progress.stopped_early = self.out_of_patience(progress)
                self.save_checkpoint(progress)
        return progress

    def train_epoch(self, progress: Progress) -> None:
        """One pass over the training dates, in a fresh order, from where a checkpoint left it."""
        config, data = self.config.training, self.data
        self.model.train()
        if progress.step_in_epoch == 0:
            self.guard.start_epoch()
            self.schedule.start_epoch(progress.epoch)
            self._order_at_start = dict(self.order.bit_generator.state)
        batches = list(
            epoch_batches(self.train_dates, config.run_length, self.runs_per_batch, self.order)
        )[: config.max_steps_per_epoch]
        for starts, length in batches[progress.step_in_epoch :]:
            progress.step += 1
            progress.step_in_epoch += 1
            self.schedule.start_step(progress.step)
            whole = data.count(starts, length, config.min_stocks)
            due = self.observer.due(progress.step)
            self.optimizer.zero_grad()
            figures = self.group.total(self.backward(starts, length, whole, progress.step))
            self.loss_scale.unscale(self.optimizer)
            if due:
                self.observer.watch_gradients(self.loss_scale.inverse() / self.group.size)
            clip_norm = self.clipping.norm(progress.epoch, progress.step)
            norm = clip_gradients(list(self.model.parameters()), clip_norm)
            outcome = self.judge_step(figures[0], norm)
            guarded_step(self.optimizer, outcome == FINE)
            self.loss_scale.update()
            if due:
                self.observer.watch_update()
            result = StepResult(figures, norm, clip_norm, outcome)
            self.observer.add(result, starts, length, progress.step, whole.windows / whole.dates)
            if due or progress.step_in_epoch == len(batches):
                self.guard_scores(progress)
            progress.epoch_windows += whole.windows
            progress.windows += whole.windows
            self.beat(progress, f"step {progress.step}")
            self.observer.progress(
                progress.epoch, progress.step_in_epoch, whole.windows, figures[0]
            )
            self.save_checkpoint_if_due(progress, last=progress.step_in_epoch == len(batches))

    def backward(
        self, starts: np.ndarray, length: int, whole: BatchCounts, step: int
    ) -> torch.Tensor:
        """Gradients of the whole batch, and this process's part of its figures.

        The batch is cut into a part for each process and accumulation step. A part's terms are
        divided by the counts of the whole, so that they add up. Each part draws its dropout anew
        from the seed, the step and its number: a resumed run needs no other process's state, and
        2 processes drop what 1 process with 2 accumulation steps drops.
        """
        config = self.config.training
        parts = shares(starts, length, self.group.size * config.accumulation_steps)
        mine = self.group.mine(parts)
        figures = []
        for part in mine:
            seed_dropout(config.seed, step, part.number, self.data.device)
            batch = self.data.share(part)
            with (
                self.observer.watching(batch, step) as seen,
                self.group.backward_of(self.replica, last=part is mine[-1]),
            ):
                quantiles = forward(self.replica, seen, config.precision)
                terms = self.loss(quantiles, seen.target, seen.rank_target, seen.valid, whole)
                # The replica's backward pass averages over processes; their sum is meant.
                self.loss_scale.backward(self.group.size * terms.total)
            score = self.model.point_score(quantiles.detach())
            figures.append(step_figures(terms, score, seen.target, seen.valid, whole))
        return torch.stack(figures).sum(dim=0)

    def judge_step(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """What becomes of the step, as a number on the device: see the observer's names."""
        finite_loss = torch.isfinite(loss)
        broken = torch.where(finite_loss, OVERFLOW if self.loss_scale.enabled else NOT_FINITE,
                             NOT_FINITE)  # fmt: skip
        fine = torch.where(self.clipping.braked(norm), BRAKED, FINE)
        return torch.where(torch.isfinite(norm) & finite_loss, fine, broken)

    def guard_scores(self, progress: Progress) -> None:
        """Reads, lets the guard judge the score's spread, and resets what it asks for."""
        reading = self.observer.read(progress.epoch, progress.step)
        for event in self.guard.evaluate(reading.score_std):
            self.health.add(
                progress.epoch, progress.step, "guard", f"horizon_{event.horizon}",
                {event.what: event.score_std},
            )  # fmt: skip
            if event.what == "reset":
                head = self.model.head.heads[self.data.panel.horizons.index(event.horizon)]
                reset_head(head, self.optimizer, self.guard.config.reset_scale, self.noise)
        self.health.add(
            progress.epoch, progress.step, "guard", "heartbeat",
            {"evaluations": float(self.guard.evaluations)},
        )  # fmt: skip
        self.record_skipped(progress, reading.skipped)

    def record_skipped(self, progress: Progress, skipped: list[Skipped]) -> None:
        """Records each skipped batch with its dates and first offending tensor.

        Raises:
            InputError: more than the allowed share of an epoch was skipped.
        """
        what = ""
        for number, batch in enumerate(skipped):
            what = batch_dates(self.data, batch.starts, batch.length)
            if batch.cause == "not finite" and number < DIAGNOSED:
                what += f"; {self.offender_in(np.array(batch.starts), batch.length)}"
            log.warning("skipped step %d (%s, gradient norm %.3g): %s",
                        batch.step, batch.cause, batch.norm, what)  # fmt: skip
            self.health.add(progress.epoch, batch.step, "skipped", what, {batch.cause: batch.norm})
        total = self.observer.skipped_steps
        if skipped and total > max(
            self.config.training.max_skipped_share * self.steps_per_epoch, 1
        ):
            self.health.flush()
            raise InputError(
                f"training: {total:.0f} of {progress.step} steps were skipped (a loss or gradient "
                f"that is not finite, or the emergency brake), the last on {what}; lower the "
                "learning rate or check the panel"
            )

    def offender_in(self, starts: np.ndarray, length: int) -> str:
        """The first thing that is not finite in a step's batch, part by part."""
        names = self.data.panel.feature_names
        parts = shares(starts, length, self.group.size * self.config.training.accumulation_steps)
        found = (first_offender(self.model, self.data.share(part), self.loss, names)
                 for part in parts if not part.empty)  # fmt: skip
        return next((what for what in found if what != UNSEEN), UNSEEN)

    def record_epoch(
        self, progress: Progress, validation: Validation, speed: float, seconds: float
    ) -> None:
        """One epoch's result to the health record, the log and whoever watches live."""
        panel = self.data.panel
        skipped = sum(n["skipped"] for n in progress.history)
        seen = self.observer.end_epoch(progress.epoch, progress.step)
        rate = float(self.optimizer.param_groups[0]["lr"])
        numbers = {
            "train_loss": seen.train_loss,
            "val_loss": validation.loss,
            "val_rank_ic": validation.mean_rank_ic,
            "val_sharpe": validation.sharpe,
            "learning_rate": rate,
            "clip_norm": self.clipping.norm(progress.epoch, progress.step),
            "skipped": self.observer.skipped_steps - skipped,
            "train_neighbours": seen.neighbours,
            "val_neighbours": validation.neighbours,
            "windows_per_second": speed,
            "seconds": seconds,
            **memory_in_use(self.data.device),
        }
        numbers |= {f"val_rank_ic_{h}d": validation.rank_ic[h] for h in panel.horizons}
        self.clipping.end_epoch(numbers["skipped"])
        self.health.add(progress.epoch, progress.step, "epoch", "epoch", numbers)
        self.health.flush()
        progress.history.append({"epoch": progress.epoch, **numbers})
        left = (self.config.training.max_epochs - progress.epoch) * seconds
        log.info(
            "Epoch %d/%d: Train Loss=%.4f Val Loss=%.4f Sharpe Ratio: %.2f IC=%.4f RankIC=%.4f "
            "lr=%.1e (%s windows/s, at most %.0f s left)",
            progress.epoch, self.config.training.max_epochs, seen.train_loss, validation.loss,
            validation.sharpe, float(np.mean(list(validation.ic.values()))),
            validation.mean_rank_ic, rate, f"{speed:,.0f}", left,
        )  # fmt: skip
        norms = {f"grad_norm/{group}": norm for group, norm in seen.gradient_norms.items()}
        self.reporter.epoch({"epoch": float(progress.epoch), **numbers, **norms})

    def keeps(self, watched: float, progress: Progress) -> bool:
        """Whether an epoch of this validation rank IC has the weights to keep so far."""
        if self.config.training.keep == "last":
            return math.isfinite(watched)
        return watched > progress.best_rank_ic

    def out_of_patience(self, progress: Progress) -> bool:
        """Whether the validation rank IC has not improved for the configured epochs."""
        patience = self.config.training.early_stopping_patience
        return bool(patience) and progress.epoch - progress.best_epoch >= patience

    def beat(self, progress: Progress, what: str) -> None:
        """Tells the stall watch that the run goes on, and records what it had reported."""
        for where, seconds in self.stall.beat(what):
            self.health.add(progress.epoch, progress.step, "stall", where, {"seconds": seconds})

    def save_checkpoint_if_due(self, progress: Progress, last: bool) -> None:
        """Within an epoch, every ``checkpoint_seconds``; its end has a checkpoint of its own."""
        due = time.monotonic() - self._saved_at >= self.config.training.checkpoint_seconds
        if due and not last:
            self.save_checkpoint(progress)

    def save_weights(self, path: Path) -> None:
        """Writes the weights, in the process that leads."""
        if self.group.leads:
            save_weights(path, self.model.state_dict())

    def keep_epoch(self, folder: Path, epoch: int) -> None:
        """Keeps an epoch's weights under its number, and those of the few epochs before it."""
        self.save_weights(folder / f"epoch-{epoch:04d}.pt")
        if self.group.leads:
            for path in sorted(folder.glob(KEPT))[: -self.config.training.kept_epochs]:
                path.unlink()

    def save_checkpoint(self, progress: Progress) -> None:
        """Everything that this run needs to go on bit for bit, in one file.

        The process that leads writes it, when its own clock says so: the others hold the same, and
        dropout is drawn from the seed, the step and the part.
        """
        if not self.group.leads:
            return
        self.health.flush()
        host = {
            "progress": dataclasses.asdict(progress),
            "order_at_start": self._order_at_start,
            "order": self.order.bit_generator.state,
            "guard": {**vars(self.guard), "config": None, "horizons": None},
            "sound_epochs": self.clipping.sound_epochs,
            "health_parts": self.health.parts,
            "git": code_state(),
            "weights_hash": weights_hash(self.model.state_dict()),
        }
        save_state(
            self.checkpoint,
            {
                "identity": json.dumps(self.identity),
                "host": json.dumps(host),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "plateau": self.schedule.plateau.state_dict(),
                "loss_scale": self.loss_scale.scaler.state_dict(),
                "observer": self.observer.state(),
                "noise": self.noise.get_state(),
            },
        )
        self._saved_at = time.monotonic()

    def load_checkpoint(self, state: Mapping[str, Any]) -> Progress:
        """Puts everything where ``save_checkpoint`` saw it; returns how far the run was."""
        host = json.loads(state["host"])
        progress = Progress(**host["progress"])
        self.order.bit_generator.state = (
            host["order_at_start"] if progress.step_in_epoch else host["order"]
        )
        self._order_at_start = host["order_at_start"]
        for name in ("low", "awaiting"):
            counts = {int(horizon): count for horizon, count in host["guard"][name].items()}
            setattr(self.guard, name, counts)
        self.guard.resets_this_epoch = host["guard"]["resets_this_epoch"]
        self.guard.evaluations = host["guard"]["evaluations"]
        self.clipping.sound_epochs = host["sound_epochs"]
        self.health.rewind(host["health_parts"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.plateau.load_state_dict(state["plateau"])
        if self.loss_scale.enabled:
            self.loss_scale.scaler.load_state_dict(state["loss_scale"])
        self.observer.load_state(state["observer"], self.data.device)
        self.noise.set_state(state["noise"])
        return progress


def seed_dropout(seed: int, step: int, part: int, device: torch.device) -> None:
    """Seeds the generators that dropout draws from, for one part of one step.

    Each by itself: ``torch.manual_seed`` formats a stack trace for every kind of device there is.
    """
    mixed = int(np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Resident memory of this process, the largest so far and now (on Linux); in MB.

    On CUDA also the largest of the device's.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    numbers = {"memory_mb": peak / 2**20}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        numbers["resident_mb"] = pages * resource.getpagesize() / 2**20
    if device.type == "cuda":
        numbers["device_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return numbers


def _watched(validation: Validation) -> float:
    """The validation rank IC, or minus infinity where no date could be ranked."""
    value = validation.mean_rank_ic
    return value if math.isfinite(value) else -math.inf
