"""A run that was killed leaves whole files or none, and starting again is a fresh run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atft_model.config import from_dict, resolve, to_dict
from atft_model.data.artifacts import publish, read_manifest
from atft_model.errors import InputError
from atft_model.run import open_run, predict, train
from atft_model.training.checkpoint import load_weights, save_weights, weights_hash
from atft_model.training.health_record import read_health
from atft_model.training.reporter import Reporter

ROOT = Path(__file__).parents[2]
OVERRIDES = {
    "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
    "training": {"max_epochs": 2, "max_steps_per_epoch": 6, "device": "cpu"},
}
CONFIG = resolve("quick", [("test", OVERRIDES)])
ENDLESS = resolve(
    "quick",
    [("test", OVERRIDES),
     ("test", {"training": {"max_epochs": 10_000, "early_stopping_patience": 0}})],
)  # fmt: skip


@pytest.fixture(scope="module")
def clean(stored_panel, tmp_path_factory):
    """An undisturbed run: its record and its readings."""
    folder = tmp_path_factory.mktemp("clean") / "run-1"
    record = train(CONFIG, *stored_panel, folder, Reporter())
    return record, readings(folder)


def readings(folder: Path) -> list[dict]:
    """The health record without what depends on the clock or on the process (its memory)."""
    timed = ("windows_per_second", "seconds", "memory_mb", "resident_mb")
    rows = read_health(folder / "health").to_pylist()
    return [row for row in rows if row["metric"] not in timed]


@pytest.fixture(scope="module")
def killed(stored_panel, tmp_path_factory) -> Path:
    """The folder of a long run that was killed (SIGKILL) after a few epochs."""
    base = tmp_path_factory.mktemp("killed")
    (base / "config.json").write_text(json.dumps(to_dict(ENDLESS)))
    folder = base / "run-1"
    process = subprocess.Popen(
        [sys.executable, "-m", "atft_model", "train", "--panel", str(stored_panel[0]),
         "--graph", str(stored_panel[1]), "--out", str(folder),
         "--resolved", str(base / "config.json"), "--ledger", str(base / "ledger.jsonl")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (folder / "health" / "part-00004.parquet").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the run wrote no fifth part in two minutes"
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (base / "ledger.jsonl").exists()
    return folder


@pytest.fixture
def leftovers(killed, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(killed, tmp_path / "run-1"))


def test_what_a_killed_run_leaves_is_whole(leftovers):
    """No file under its final name is cut off, and nothing passes for a finished run."""
    for name in ("last.pt", "best.pt"):
        assert load_weights(leftovers / name).keys()
    assert from_dict(json.loads((leftovers / "config.json").read_text())) == ENDLESS
    assert read_health(leftovers / "health").num_rows > 0
    with pytest.raises(InputError, match=r"no finished run here \(no run\.json\)"):
        open_run(leftovers)


def test_starting_again_gives_the_run_that_was_never_killed(leftovers, clean, stored_panel):
    """The same weights, and a health record without a reading of the killed run."""
    record, health = clean
    assert len(list((leftovers / "health").glob("part-*.parquet"))) > 3
    again = train(CONFIG, *stored_panel, leftovers, Reporter())
    assert again["checkpoint_hash"] == record["checkpoint_hash"]
    assert again["history"][-1]["val_loss"] == record["history"][-1]["val_loss"]
    assert readings(leftovers) == health
    assert open_run(leftovers).config == CONFIG
    assert len(predict(leftovers, *stored_panel)) > 0
    assert not [path for path in leftovers.rglob("*") if path.name.endswith(".tmp")]


def test_old_weights_never_pass_for_those_of_a_run_that_found_none(leftovers, stored_panel):
    """With nobody to rank there is no best epoch; the killed run's best.pt must not stand in."""
    nobody = resolve(
        "quick", [("test", OVERRIDES), ("test", {"optimizer": {"learning_rate": 1e30}})]
    )
    with pytest.raises(InputError):
        train(nobody, *stored_panel, leftovers, Reporter())
    assert not (leftovers / "best.pt").exists()
    with pytest.raises(InputError, match="no finished run here"):
        open_run(leftovers)


def test_a_finished_run_is_never_overwritten(stored_panel, tmp_path, clean):
    folder = tmp_path / "run-1"
    train(CONFIG, *stored_panel, folder, Reporter())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="a run was trained here already; give another run id"):
        train(CONFIG, *stored_panel, folder, Reporter())
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("at", ["write", "rename"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch, at):
    """Killed while writing, or between writing and renaming."""
    path = tmp_path / "best.pt"
    first = {"w": torch.ones(3)}
    save_weights(path, first)

    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((torch, "save") if at == "write" else (os, "replace")), killed)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, {"w": torch.zeros(3)})
    assert weights_hash(load_weights(path)) == weights_hash(first)


def test_a_version_that_cannot_be_published_leaves_the_last_one(tmp_path, monkeypatch):
    import numpy as np

    first = publish(tmp_path, {"a": np.arange(3)}, {})

    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, {"a": np.arange(4)}, {})
    monkeypatch.undo()
    assert json.loads((tmp_path / "current.json").read_text()) == {"hash": first}
    read_manifest(tmp_path / first, "panel")
