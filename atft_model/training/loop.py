"""The training loop. ``run.py`` builds what it needs; the observer reads; only the loop writes."""

import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from atft_model.config import RunConfig
from atft_model.data.batches import DevicePanel, epoch_batches
from atft_model.errors import InputError
from atft_model.losses.cross_section import masked_variance
from atft_model.losses.total import TrainingLoss
from atft_model.model.atft import ATFT
from atft_model.monitors.degeneracy_guard import DegeneracyGuard, reset_head
from atft_model.training.checkpoint import save_weights
from atft_model.training.health_record import HealthRecord
from atft_model.training.observer import Observer
from atft_model.training.optimizer import clip_gradients, guarded_step
from atft_model.training.reporter import Reporter
from atft_model.training.validation import Validation, forward, validate

log = logging.getLogger("atft")


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_rank_ic: float = -math.inf
    stopped_early: bool = False
    windows: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Trainer:
    """Everything that one run trains with."""

    config: RunConfig
    model: ATFT
    data: DevicePanel
    loss: TrainingLoss
    optimizer: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.ReduceLROnPlateau
    guard: DegeneracyGuard
    observer: Observer
    health: HealthRecord
    reporter: Reporter
    train_dates: np.ndarray
    validation_dates: np.ndarray
    runs_per_batch: int
    steps_per_epoch: int
    order: np.random.Generator
    noise: torch.Generator

    def fit(self, folder) -> Progress:
        """Trains to the last epoch or an early stop; best and last weights go to ``folder``."""
        progress = Progress()
        for progress.epoch in range(1, self.config.training.max_epochs + 1):
            started = time.monotonic()
            windows = self.train_epoch(progress)
            seconds = time.monotonic() - started
            validation = validate(
                self.model, self.data, self.validation_dates, self.config,
                self.runs_per_batch, self.loss,
            )  # fmt: skip
            self.schedule.step(_watched(validation))
            save_weights(folder / "last.pt", self.model.state_dict())
            if _watched(validation) > progress.best_rank_ic:
                progress.best_rank_ic, progress.best_epoch = _watched(validation), progress.epoch
                save_weights(folder / "best.pt", self.model.state_dict())
            self.record_epoch(progress, validation, windows / seconds, seconds)
            if self.out_of_patience(progress):
                progress.stopped_early = True
                break
        return progress

    def train_epoch(self, progress: Progress) -> int:
        """One pass over the training dates, in a fresh order; returns the windows seen."""
        config, data = self.config.training, self.data
        self.model.train()
        self.guard.start_epoch()
        batches = list(
            epoch_batches(self.train_dates, config.run_length, self.runs_per_batch, self.order)
        )[: config.max_steps_per_epoch]
        windows = 0
        for number, (starts, length) in enumerate(batches, start=1):
            progress.step += 1
            batch = data.batch(starts, length)
            due = self.observer.due(progress.step)
            with self.observer.watching(batch, due) as seen:
                quantiles = forward(self.model, seen, config.precision)
                terms = self.loss(quantiles, seen.target, seen.valid)
                self.optimizer.zero_grad()
                terms.total.backward()
            if due:
                self.observer.read_gradients(progress.epoch, progress.step)
            norm = clip_gradients(self.model.parameters(), self.config.optimizer.clip_norm)
            finite = torch.isfinite(norm) & torch.isfinite(terms.total)
            guarded_step(self.optimizer, finite)
            score = self.model.point_score(quantiles.detach())
            self.observer.add(terms, norm, finite, score_spread(score, seen.valid))
            if due or number == len(batches):
                self.guard_scores(progress)
            windows += batch.windows
            self.observer.progress(progress.epoch, number, batch.windows, terms.total)
        progress.windows += windows
        return windows

    def guard_scores(self, progress: Progress) -> None:
        """Reads the sums, lets the guard judge the score's spread, and resets what it asks for."""
        score_std = self.observer.read_sums(progress.epoch, progress.step)
        for event in self.guard.evaluate(score_std):
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
        self.stop_if_broken(progress)

    def stop_if_broken(self, progress: Progress) -> None:
        """Ends a run that skips too many steps, with the share and what to do."""
        skipped = self.observer.nonfinite_steps
        allowed = self.config.training.max_skipped_share * self.steps_per_epoch
        if skipped > max(allowed, 1):
            self.health.flush()
            raise InputError(
                f"training: {skipped:.0f} of {progress.step} steps had a loss or gradient that is "
                "not finite and were skipped; lower the learning rate or check the panel"
            )

    def record_epoch(
        self, progress: Progress, validation: Validation, speed: float, seconds: float
    ) -> None:
        """One epoch's result to the health record, the log and whoever watches live."""
        panel = self.data.panel
        train_loss = self.observer.take_epoch_loss()
        rate = float(self.optimizer.param_groups[0]["lr"])
        numbers = {
            "train_loss": train_loss,
            "val_loss": validation.loss,
            "val_rank_ic": validation.mean_rank_ic,
            "val_sharpe": validation.sharpe,
            "learning_rate": rate,
            "windows_per_second": speed,
            "seconds": seconds,
        }
        numbers |= {f"val_rank_ic_{h}d": validation.rank_ic[h] for h in panel.horizons}
        self.health.add(progress.epoch, progress.step, "epoch", "epoch", numbers)
        self.health.flush()
        progress.history.append({"epoch": progress.epoch, **numbers})
        left = (self.config.training.max_epochs - progress.epoch) * seconds
        log.info(
            "Epoch %d/%d: Train Loss=%.4f Val Loss=%.4f Sharpe Ratio: %.2f IC=%.4f RankIC=%.4f "
            "lr=%.1e (%s windows/s, at most %.0f s left)",
            progress.epoch, self.config.training.max_epochs, train_loss, validation.loss,
            validation.sharpe, float(np.mean(list(validation.ic.values()))),
            validation.mean_rank_ic, rate, f"{speed:,.0f}", left,
        )  # fmt: skip
        self.reporter.epoch({"epoch": float(progress.epoch), **numbers})

    def out_of_patience(self, progress: Progress) -> bool:
        """Whether the validation rank IC has not improved for the configured epochs."""
        patience = self.config.training.early_stopping_patience
        return bool(patience) and progress.epoch - progress.best_epoch >= patience


def score_spread(score: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over the batch's dates of the within-date std of the point score. [horizons]"""
    spread = masked_variance(score.flatten(0, 1), valid.flatten(0, 1)).sqrt().squeeze(1)
    counted = valid.flatten(0, 1).sum(dim=1) >= 2
    return torch.where(
        counted.any(dim=0), (spread * counted).sum(dim=0) / counted.sum(dim=0), torch.nan
    )


def _watched(validation: Validation) -> float:
    """The validation rank IC, or minus infinity where no date could be ranked."""
    value = validation.mean_rank_ic
    return value if math.isfinite(value) else -math.inf
