"""A long run goes to its last epoch and its memory stays where it was."""

import sys

import numpy as np
import pytest

from atft_model.config import RunConfig, resolve
from atft_model.run import train
from atft_model.training.reporter import Reporter

SETTLED = 20
"""Epochs after which the allocator has seen every size of buffer."""
FLAT = 0.05
"""MB an epoch; a run of 120 epochs then grows by 6 MB at most."""


class Soak(Reporter):
    """Keeps what the process held after each epoch, and ``leak`` MB of its own."""

    def __init__(self, leak: float = 0.0) -> None:
        self.leak = leak
        self.resident: list[float] = []
        self.kept: list[np.ndarray] = []

    def epoch(self, numbers) -> None:
        self.kept.append(np.ones(int(self.leak * 2**17)))
        self.resident.append(numbers["resident_mb"])

    def growth(self) -> float:
        """MB an epoch once settled: the slope of a line through the medians of ten epochs each."""
        settled = np.array(self.resident[SETTLED:])
        tens = [np.median(part) for part in np.array_split(settled, len(settled) // 10)]
        return float(np.polyfit(10 * np.arange(len(tens)), tens, 1)[0])


def config(epochs: int, **training) -> RunConfig:
    return resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
            "training": {"max_epochs": epochs, "batch_windows": 1, "run_length": 5,
                         "max_steps_per_epoch": 20, "early_stopping_patience": 0,
                         "device": "cpu", **training},
        })],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory under /proc")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("epochs", "leak"), [(120, 0.0), (60, 0.5)])
def test_a_hundred_and_twenty_epochs_hold_their_memory(tables, tmp_path, epochs, leak):
    """On the built-in market. A planted leak of half a megabyte an epoch is seen."""
    root = tables / "synthetic"
    soak = Soak(leak)
    record = train(config(epochs), root / "panel", root / "stock_graph", tmp_path / "run", soak)
    assert record["epochs"] == len(soak.resident) == epochs
    assert record["stopped_early"] is False
    assert (soak.growth() < FLAT) is (leak == 0.0), (soak.growth(), soak.resident)


@pytest.mark.parametrize(("patience", "epochs"), [(0, 5), (2, 3)])
def test_only_patience_ends_a_run_that_learns_nothing(stored_panel, tmp_path, patience, epochs):
    """The first epoch is the best where no step moves anything; 0 never stops."""
    still = resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
            "optimizer": {"learning_rate": 1e-30},
            "training": {"max_epochs": 5, "max_steps_per_epoch": 1, "device": "cpu",
                         "early_stopping_patience": patience, "keep": "best"},
        })],
    )  # fmt: skip
    record = train(still, *stored_panel, tmp_path / "run", Reporter())
    assert record["epochs"] == epochs
    assert record["stopped_early"] is (patience > 0)
