"""A long run that trains, validates, saves and records every epoch: its memory must stay flat.

``python -m atft_model soak`` runs it on a stored panel and says so, with an exit code.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from atft_model.config import RunConfig, resolve
from atft_model.errors import InputError
from atft_model.run import train
from atft_model.training.reporter import Reporter

SETTLED = 20
"""Epochs after which the allocator has seen every size of buffer."""
FLAT = 0.05
"""MB an epoch; a run of 120 epochs then grows by 6 MB at most."""
WATCHED = {"resident_mb": "resident memory", "device_memory_mb": "peak of the device's memory"}


class MemoryWatch(Reporter):
    """Keeps what the process held after each epoch, and says it where asked to."""

    def __init__(self, epochs: int, show: bool = False) -> None:
        self.epochs, self.show = epochs, show
        self.held: list[dict[str, float]] = []

    def epoch(self, numbers: Mapping[str, float]) -> None:
        held = {name: numbers[name] for name in WATCHED if name in numbers}
        self.held.append(held)
        if self.show:
            said = ", ".join(f"{WATCHED[name]} {value:,.2f} MB" for name, value in held.items())
            print(f"epoch {len(self.held)} of {self.epochs}: {said}", flush=True)

    def growth(self) -> dict[str, float]:
        """MB an epoch, once settled, of each kind of memory."""
        return {name: slope([held[name] for held in self.held]) for name in self.held[0]}


def slope(megabytes: Sequence[float]) -> float:
    """MB an epoch after ``SETTLED`` epochs: of a line through the medians of ten epochs each."""
    settled = np.array(megabytes[SETTLED:])
    tens = [np.median(part) for part in np.array_split(settled, len(settled) // 10)]
    return float(np.polyfit(10 * np.arange(len(tens)), tens, 1)[0])


def soak_config(epochs: int, **training: object) -> RunConfig:
    """A small model and few steps an epoch, each saved: epochs are the point."""
    return resolve(
        "quick",
        [("soak", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
            "training": {"max_epochs": epochs, "batch_windows": 1, "run_length": 5,
                         "max_steps_per_epoch": 20, "early_stopping_patience": 0,
                         "checkpoint_seconds": 0.0, **training},
        })],
    )  # fmt: skip


def soak(panel: Path, graph: Path, epochs: int, device: str) -> bool:
    """Trains for ``epochs`` in a temporary folder, prints memory by epoch; whether it stayed flat.

    Raises:
        InputError: too few epochs to tell, or as ``judge``.
    """
    if epochs < SETTLED + 20:
        raise InputError(
            f"soak: {epochs} epochs are too few to tell; give --epochs {SETTLED + 20} or more"
        )
    watch = MemoryWatch(epochs, show=True)
    with tempfile.TemporaryDirectory() as folder:
        train(soak_config(epochs, device=device), panel, graph, Path(folder) / "soak", watch)
    return judge(watch.growth(), epochs)


def judge(growth: Mapping[str, float], epochs: int) -> bool:
    """Prints the verdict on each kind of memory; whether all stayed flat.

    Raises:
        InputError: the system does not say what a process holds.
    """
    if "resident_mb" not in growth:
        raise InputError("soak: this system does not say what a process holds; run it on Linux")
    for name, rate in growth.items():
        verdict = "flat" if rate < FLAT else "GROWS"
        print(
            f"{verdict}: {WATCHED[name]} {rate:+.3f} MB an epoch after epoch {SETTLED} of {epochs},"
            f" limit {FLAT:g}"
        )
    return all(rate < FLAT for rate in growth.values())
