"""A long run goes to its last epoch and its memory stays where it was."""

import sys

import numpy as np
import pytest

from atft_model.__main__ import main
from atft_model.config import resolve
from atft_model.errors import InputError
from atft_model.run import train
from atft_model.soak import MemoryWatch, judge, slope, soak_config
from atft_model.training.reporter import Reporter


class Leak(MemoryWatch):
    """Holds on to half a megabyte more each epoch."""

    def epoch(self, numbers) -> None:
        self.kept = [*getattr(self, "kept", []), np.ones(2**16)]
        super().epoch(numbers)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory under /proc")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("watch", "flat"), [(MemoryWatch(120), True), (Leak(40), False)])
def test_a_hundred_and_twenty_epochs_hold_their_memory(tables, tmp_path, watch, flat):
    """On the built-in market; `make soak` shows the same. A planted leak is seen."""
    root = tables / "synthetic"
    record = train(
        soak_config(watch.epochs, device="cpu"), root / "panel", root / "stock_graph",
        tmp_path / "run", watch,
    )  # fmt: skip
    assert record["epochs"] == len(watch.held) == watch.epochs
    assert record["stopped_early"] is False
    assert judge(watch.growth(), watch.epochs) is flat, watch.held


@pytest.mark.parametrize(
    ("a_epoch", "flat"), [(0.0, True), (0.04, True), (0.06, False), (0.5, False)]
)
def test_what_grows_is_told_from_what_settles_and_jumps(a_epoch, flat, capsys):
    """The allocator takes 80 MB at first, and one page table more or less at any time."""
    noise = np.random.default_rng(0).uniform(0, 0.2, 50)
    held = 800 + 80 * (np.arange(50) > 6) + a_epoch * np.arange(50) + noise
    growth = {"resident_mb": slope(held.tolist())}
    assert growth["resident_mb"] == pytest.approx(a_epoch, abs=0.01)
    assert judge(growth, 50) is flat
    assert capsys.readouterr().out.startswith("flat: " if flat else "GROWS: resident memory +0.")


def test_a_device_whose_memory_grows_is_seen_beside_a_process_that_does_not():
    watch = MemoryWatch(40)
    for epoch in range(40):
        watch.epoch({"resident_mb": 800.0, "device_memory_mb": 90.0 + epoch, "seconds": 1.0})
    assert watch.growth() == pytest.approx({"resident_mb": 0.0, "device_memory_mb": 1.0})
    assert judge(watch.growth(), 40) is False
    with pytest.raises(InputError, match="does not say what a process holds"):
        judge({"device_memory_mb": 0.0}, 40)


def test_too_few_epochs_are_refused_before_anything_is_trained(tmp_path, capsys):
    nowhere = ["--panel", str(tmp_path), "--graph", str(tmp_path)]
    assert main(["soak", *nowhere, "--epochs", "39"]) == 2
    assert "39 epochs are too few to tell; give --epochs 40" in capsys.readouterr().err


@pytest.mark.parametrize(("patience", "epochs"), [(0, 5), (2, 3)])
def test_only_patience_ends_a_run_that_learns_nothing(stored_panel, tmp_path, patience, epochs):
    """The first epoch is the best where no step moves anything; 0 never stops."""
    still = resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
            "optimizer": {"learning_rate": 1e-30},
            "training": {"max_epochs": 5, "max_steps_per_epoch": 1, "device": "cpu",
                         "early_stopping_patience": patience, "kept_epochs": 2, "keep": "best"},
        })],
    )  # fmt: skip
    record = train(still, *stored_panel, tmp_path / "run", Reporter())
    assert record["epochs"] == epochs
    assert record["stopped_early"] is (patience > 0)
    kept = sorted(path.name for path in (tmp_path / "run").glob("epoch-*.pt"))
    assert kept == [f"epoch-{epoch:04d}.pt" for epoch in range(epochs - 1, epochs + 1)]
