"""A run that was killed at any step and resumed ends with the bits of one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from killed import Killed, train_until_killed

from atft_model.config import RunConfig, resolve, to_dict
from atft_model.data.graph import GraphConfig, build_graph, write_graph
from atft_model.data.panel import read_panel, write_panel
from atft_model.data.toy_panel import make_panel
from atft_model.errors import InputError
from atft_model.run import CHECKPOINT, train
from atft_model.training.checkpoint import load_state
from atft_model.training.code_state import code_state
from atft_model.training.gates import TrainingGates, judge, open_evidence
from atft_model.training.health_record import read_health
from atft_model.training.reporter import Reporter

ROOT = Path(__file__).parents[2]
EPOCHS, STEPS = 2, 25


def config(**training) -> RunConfig:
    """Dropout, staged rates and stages of clipping: state in every part. A checkpoint each step."""
    return resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5, "dropout": 0.2},
            "optimizer": {"schedule": "plateau", "learning_rate_stages": (1e-4,), "stage_epochs": 1,
                          "clip_first_norm": 0.1, "clip_first_steps": 12, "clip_stable_norm": 2.0,
                          "clip_stable_epochs": 1},
            "training": {"max_epochs": EPOCHS, "batch_windows": 1, "run_length": 4,
                         "max_steps_per_epoch": STEPS, "device": "cpu", "checkpoint_seconds": 0.0,
                         **training},
        })],
    )  # fmt: skip


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    """What a run found: its record and readings, without what the clock says."""
    timed = {"windows_per_second", "seconds", "memory_mb", "resident_mb"}
    record = json.loads((folder / "run.json").read_text())
    history = [{k: v for k, v in epoch.items() if k not in timed} for epoch in record["history"]]
    rows = read_health(folder / "health").to_pylist()
    kept = ("checkpoint_hash", "epochs", "steps", "windows", "best_epoch")
    return (
        {**{key: record[key] for key in kept}, "history": history},
        [row for row in rows if row["metric"] not in timed],
    )


@pytest.fixture(scope="module")
def undisturbed(stored_panel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run-1"
    train(config(), *stored_panel, folder, Reporter())
    weights = torch.load(folder / "last.pt", weights_only=True)
    return outcome(folder), weights


def same_weights(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    mine = torch.load(folder / "last.pt", weights_only=True)
    return all(torch.equal(mine[name], weights[name]) for name in weights)


MORE = [1, STEPS - 1, 2 * STEPS - 1, 2 * STEPS]


@pytest.mark.parametrize(
    "at", [2, STEPS, STEPS + 1, *(pytest.param(at, marks=pytest.mark.slow) for at in MORE)]
)
def test_going_on_from_any_step_ends_with_the_same_bits(at, undisturbed, stored_panel, tmp_path):
    train_until_killed(config(), stored_panel, tmp_path / "run-1", step=at)
    assert not (tmp_path / "run-1" / "run.json").exists()
    record = train(config(), *stored_panel, tmp_path / "run-1", Reporter(), resume=True)
    found, readings = undisturbed[0]
    assert record["resumed"] is (at > 1)  # before the first checkpoint: from the beginning
    assert outcome(tmp_path / "run-1")[0] == found
    assert same_weights(tmp_path / "run-1", undisturbed[1])
    assert outcome(tmp_path / "run-1")[1] == readings
    findings = judge(open_evidence(tmp_path / "run-1"), TrainingGates())
    assert [f.name for f in findings if f.stops] == []


def test_a_cosine_goes_on_where_it_was(stored_panel, tmp_path):
    """The schedule counts the run's steps, not those since it was resumed."""
    settings = resolve(
        "quick",
        [("run", to_dict(config(max_steps_per_epoch=4))),
         ("test", {"optimizer": {"schedule": "cosine", "learning_rate_stages": ()}})],
    )  # fmt: skip
    train(settings, *stored_panel, tmp_path / "whole", Reporter())
    train_until_killed(settings, stored_panel, tmp_path / "cut", step=6)
    train(settings, *stored_panel, tmp_path / "cut", Reporter(), resume=True)
    weights = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    assert same_weights(tmp_path / "cut", weights)
    rates = [epoch["learning_rate"] for epoch in outcome(tmp_path / "cut")[0]["history"]]
    assert rates[1] < 0.2 * rates[0]


@needs_compiler
def test_a_compiled_run_goes_on_with_the_same_bits_and_finds_what_a_plain_one_does(
    stored_panel, tmp_path
):
    settings = config(max_steps_per_epoch=4, compile=True)
    train(settings, *stored_panel, tmp_path / "whole", Reporter())
    train_until_killed(settings, stored_panel, tmp_path / "cut", step=6)
    train(settings, *stored_panel, tmp_path / "cut", Reporter(), resume=True)
    weights = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    assert same_weights(tmp_path / "cut", weights)
    assert outcome(tmp_path / "cut")[0] == outcome(tmp_path / "whole")[0]
    # Without dropout, whose numbers are not the same.
    found = {}
    for compiled in (True, False):
        settings = config(max_steps_per_epoch=4, compile=compiled)
        settings = replace(settings, model=replace(settings.model, dropout=0.0))
        train(settings, *stored_panel, tmp_path / f"{compiled}", Reporter())
        found[compiled] = torch.load(tmp_path / f"{compiled}" / "last.pt", weights_only=True)
    for name, weight in found[True].items():
        torch.testing.assert_close(weight, found[False][name], rtol=1e-3, atol=1e-4)


def command(stored_panel, folder: Path, settings: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "atft_model", "train", "--panel", str(stored_panel[0]),
        "--graph", str(stored_panel[1]), "--out", str(folder), "--resolved", str(settings),
        "--ledger", str(folder.parent / "ledger.jsonl"), *more,
    ]  # fmt: skip


def step_of(folder: Path) -> int:
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    return json.loads(load_state(path)["host"])["progress"]["step"]


@pytest.mark.slow
def test_killed_again_and_again_by_the_kernel(undisturbed, stored_panel, tmp_path):
    """SIGKILL to the real process at three random steps; each time it goes on."""
    folder, settings = tmp_path / "run-1", tmp_path / "config.json"
    settings.write_text(json.dumps(to_dict(config())))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    marks = sorted(random.Random(7).sample(range(2, EPOCHS * STEPS - 8), 3))
    for number, mark in enumerate([*marks, None]):
        more = ["--resume"] if number else []
        process = subprocess.Popen(
            command(stored_panel, folder, settings, *more), cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if mark is None:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
            assert "resumed after step" in printed
            break
        end = time.monotonic() + 120
        while step_of(folder) < mark and process.poll() is None:
            assert time.monotonic() < end
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert outcome(folder)[0] == undisturbed[0][0]
    assert same_weights(folder, undisturbed[1])
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1


def test_killing_the_parent_leaves_no_orphan_and_a_checkpoint(stored_panel, tmp_path):
    folder, settings = tmp_path / "run-1", tmp_path / "config.json"
    endless = config(max_epochs=10_000, early_stopping_patience=0)
    settings.write_text(json.dumps(to_dict(endless)))
    words = command(stored_panel, folder, settings, "--die-with-parent")
    script = (
        f"import subprocess as s; p = s.Popen({words!r}, stdout=s.DEVNULL); "
        "print(p.pid, flush=True); p.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 120
    while step_of(folder) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    while running(child):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert step_of(folder) >= 3
    assert not (folder / "run.json").exists()


def running(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def interrupted(stored_panel, tmp_path) -> Path:
    return train_until_killed(config(), stored_panel, tmp_path / "run-1", step=5)


def test_other_settings_are_refused_with_the_difference(interrupted, stored_panel):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    words = (
        r"cannot resume: config\.optimizer\.learning_rate was 0\.001, is now 0\.002; "
        r"config\.training\.seed was 1337, is now 1338; resume with what the run began with"
    )
    other = resolve(
        "quick",
        [("run", to_dict(config(seed=1338))), ("test", {"optimizer": {"learning_rate": 2e-3}})],
    )
    with pytest.raises(InputError, match=words):
        train(other, *stored_panel, interrupted, Reporter(), resume=True)
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


def test_another_panel_or_feature_order_is_refused(interrupted, tmp_path):
    panel = make_panel()
    order = np.array([1, 0, 2, 3, 4, 5])
    names = tuple(panel.feature_names[i] for i in order)
    import dataclasses

    swapped = dataclasses.replace(panel, features=panel.features[..., order], feature_names=names)
    write_panel(swapped, tmp_path / "panel")
    write_graph(
        build_graph(read_panel(tmp_path / "panel"), GraphConfig(neighbours=5)), tmp_path / "graph"
    )
    words = (
        r"features\[0\] was 'feature_0', is now 'feature_1'; features\[1\] was 'feature_1', "
        r"is now 'feature_0'; graph was '\w+', is now '\w+'; panel was"
    )
    with pytest.raises(InputError, match=words):
        train(config(), tmp_path / "panel", tmp_path / "graph", interrupted, Reporter(),
              resume=True)  # fmt: skip


def test_a_state_whose_weights_were_changed_is_refused(interrupted, stored_panel):
    state = torch.load(interrupted / CHECKPOINT, weights_only=True)
    state["model"]["missing_day"][0] += 1e-6
    torch.save(state, interrupted / CHECKPOINT)
    with pytest.raises(InputError, match=r"state\.pt: its weights hash \w{16}, \w{16} was saved"):
        train(config(), *stored_panel, interrupted, Reporter(), resume=True)


def test_other_code_is_said_and_not_refused(interrupted, stored_panel, caplog):
    state = torch.load(interrupted / CHECKPOINT, weights_only=True)
    host = json.loads(state["host"])
    assert host["git"] == code_state()
    host["git"] = {"commit": "0" * 40, "changed": [], "difference": ""}
    torch.save({**state, "host": json.dumps(host)}, interrupted / CHECKPOINT)
    record = train(config(), *stored_panel, interrupted, Reporter(), resume=True)
    assert record["resumed"] is True
    assert "resumed with other code: was 000000000000, is now " in caplog.text


def test_there_must_be_something_to_resume(stored_panel, tmp_path):
    with pytest.raises(InputError, match="no run to resume here"):
        train(config(), *stored_panel, tmp_path / "none", Reporter(), resume=True)


def test_a_state_that_cannot_be_written_leaves_the_one_before(
    undisturbed, stored_panel, tmp_path, monkeypatch
):
    """Killed between writing the new state and renaming it."""
    replace, calls = os.replace, []

    def killed(source, target):
        if Path(target).name == CHECKPOINT:
            calls.append(target)
            if len(calls) == 30:
                raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        train(config(), *stored_panel, tmp_path / "run-1", Reporter())
    monkeypatch.undo()
    train(config(), *stored_panel, tmp_path / "run-1", Reporter(), resume=True)
    assert outcome(tmp_path / "run-1") == undisturbed[0]
    assert same_weights(tmp_path / "run-1", undisturbed[1])
