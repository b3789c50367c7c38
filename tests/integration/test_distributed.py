"""Two processes (gloo, on the CPU) train what one process trains with the same batches.

Through the command line, so most of it is slow; test_ranks_agree.py is the quick sibling.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atft_model.config import RunConfig, resolve, to_dict
from atft_model.run import CHECKPOINT, train
from atft_model.training.checkpoint import load_state
from atft_model.training.gates import TrainingGates, judge, open_evidence
from atft_model.training.health_record import read_health
from atft_model.training.reporter import Reporter

ROOT = Path(__file__).parents[2]
STEPS = 20
TIMED = {"windows_per_second", "seconds", "memory_mb", "resident_mb"}


def config(dropout: float = 0.0, noise: float = 0.0, **training) -> RunConfig:
    """Batches of two runs of two dates: a run for each of two processes."""
    return resolve(
        "quick",
        [("test", {
            "model": {"hidden_size": 16, "heads": 2, "lookback": 5, "dropout": dropout,
                      "input_skip_noise": noise},
            "training": {"max_epochs": 1, "batch_windows": 100, "run_length": 2,
                         "max_steps_per_epoch": STEPS, "device": "cpu", "checkpoint_seconds": 0.0,
                         **training},
        })],
    )  # fmt: skip


def command(stored_panel, folder: Path, settings: RunConfig, *more: str) -> list[str]:
    (folder.parent / "config.json").write_text(json.dumps(to_dict(settings)))
    return [
        sys.executable, "-m", "atft_model", "train", "--nproc", "2",
        "--panel", str(stored_panel[0]), "--graph", str(stored_panel[1]), "--out", str(folder),
        "--resolved", str(folder.parent / "config.json"),
        "--ledger", str(folder.parent / "ledger.jsonl"), *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def readings(folder: Path) -> dict[tuple, float]:
    """Every number of the health record, but what the clock says."""
    return {
        (row["epoch"], row["step"], row["kind"], row["name"], row["metric"]): row["value"]
        for row in read_health(folder / "health").to_pylist()
        if row["metric"] not in TIMED
    }


def assert_same_readings(found: dict[tuple, float], wanted: dict[tuple, float], by: float) -> None:
    """To ``by``, rank ICs and the Sharpe included: scores differ by 1e-6 of their spread, so no two
    of a date come to lie the other way round (one pair that did would move a rank IC by 2e-4).
    """
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        same = math.isclose(found[key], value, rel_tol=10 * by, abs_tol=by)
        assert same or (math.isnan(found[key]) and math.isnan(value)), (key, found[key], value)


@pytest.fixture(scope="module")
def alone(stored_panel, tmp_path_factory) -> Path:
    """One process, without dropout: the masks of the parts are drawn apart."""
    folder = tmp_path_factory.mktemp("alone") / "run-1"
    train(config(), *stored_panel, folder, Reporter())
    return folder


@pytest.mark.slow
def test_two_processes_give_the_readings_of_one(alone, stored_panel, tmp_path):
    """Losses of every step, gradients, scores' spread, guard, validation: all to 1e-4."""
    folder = tmp_path / "run-1"
    done = run(command(stored_panel, folder, config()))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("Epoch 1/1") == 1  # rank 0 alone prints
    assert "in 2 processes" in done.stdout
    assert_same_readings(readings(folder), readings(alone), 1e-4)
    record = json.loads((folder / "run.json").read_text())
    assert record["processes"] == 2
    assert record["windows"] == json.loads((alone / "run.json").read_text())["windows"]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1
    assert [f.name for f in judge(open_evidence(folder), TrainingGates()) if f.stops] == []


@pytest.mark.slow
def test_two_machines_give_the_readings_of_one(alone, stored_panel, tmp_path):
    """Two launchers with a process each, as on two machines that see the same folders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = command(stored_panel, tmp_path / "run-1", config())
    words[words.index("--nproc") + 1] = "1"
    where = f"--nnodes=2 --master-addr=127.0.0.1 --master-port={port} --node-rank="
    launchers = [start([*words, f"--torchrun={where}{node}"]) for node in (0, 1)]
    for launcher in launchers:
        _, said = launcher.communicate(timeout=240)
        assert launcher.returncode == 0, said
    assert_same_readings(readings(tmp_path / "run-1"), readings(alone), 1e-4)


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_gives_the_readings_of_the_whole_batch(parts, alone, stored_panel, tmp_path):
    """In 2 parts the runs are shared out; in 3 the runs' two dates are, and one part is empty."""
    folder = tmp_path / "run-1"
    train(config(accumulation_steps=parts), *stored_panel, folder, Reporter())
    mine, wanted = readings(folder), readings(alone)
    if parts > 2:
        # The days of the lookback that pieces of a run share are then inputs of each.
        for key in [key for key in wanted if key[2] == "input_gradient"]:
            assert (mine.pop(key) > 0) == (wanted.pop(key) > 0)
    assert_same_readings(mine, wanted, 1e-5)


@pytest.mark.slow
def test_two_processes_drop_what_one_drops_in_two_parts(stored_panel, tmp_path):
    folders = [tmp_path / name / "run-1" for name in ("apart", "parts")]
    for folder in folders:
        folder.parent.mkdir()
    done = run(command(stored_panel, folders[0], config(dropout=0.2, noise=0.5)))
    assert done.returncode == 0, done.stderr
    apart = config(dropout=0.2, noise=0.5, accumulation_steps=2)
    train(apart, *stored_panel, folders[1], Reporter())
    assert_same_readings(readings(folders[0]), readings(folders[1]), 1e-4)


def step_of(folder: Path) -> int:
    path = folder / CHECKPOINT
    return json.loads(load_state(path)["host"])["progress"]["step"] if path.exists() else 0


def ranks_below(launcher: int) -> dict[int, int]:
    """Process ids of the ranks that a launcher started."""
    found = {}
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in children.read_text().split():
            words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            rank = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
            found |= {rank[0]: int(child)} if rank else {}
    return found


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    end = time.monotonic() + 120
    while step_of(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks under /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_with_its_name_and_it_goes_on(
    victim, stored_panel, tmp_path
):
    """To the bits of the two-process run that nobody disturbed."""
    whole, broken = tmp_path / "whole" / "run-1", tmp_path / "broken" / "run-1"
    for folder in (whole, broken):
        folder.parent.mkdir()
    settings = config(dropout=0.2, max_epochs=2)
    assert run(command(stored_panel, whole, settings)).returncode == 0
    process = start(command(stored_panel, broken, settings))
    wait_for_step(process, broken, STEPS + 3)
    ranks = ranks_below(process.pid)
    os.kill(ranks[victim], signal.SIGKILL)
    killed_at = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 15
    assert process.returncode == 1
    assert said.splitlines()[-1] == (
        f"atft_model: rank {victim} was ended by SIGKILL (perhaps out of memory), and the others "
        "with it; go on from the checkpoint with --resume"
    )
    assert all(gone(pid) for pid in ranks.values())
    assert not (broken / "run.json").exists()
    refused = train_alone_on(broken, stored_panel, settings)
    assert refused == "processes was 2, is now 1"
    done = run(command(stored_panel, broken, settings, "--resume"))
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stdout
    assert readings(broken) == readings(whole)
    mine, wanted = (torch.load(folder / "last.pt", weights_only=True) for folder in (broken, whole))
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def train_alone_on(folder: Path, stored_panel, settings: RunConfig) -> str:
    """What one process says that goes on with the run of two."""
    words = command(stored_panel, folder, settings, "--resume")
    del words[words.index("--nproc") : words.index("--nproc") + 2]
    said = run(words).stderr
    return said.partition("cannot resume: ")[2].partition(";")[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM to the launcher", "SIGKILL to the launcher"])
def test_ending_the_launcher_ends_every_rank(how, stored_panel, tmp_path):
    folder = tmp_path / "run-1"
    endless = config(max_epochs=10_000, early_stopping_patience=0)
    process = start([*command(stored_panel, folder, endless), "--die-with-parent"])
    wait_for_step(process, folder, 3)
    ranks = ranks_below(process.pid)
    assert sorted(ranks) == [0, 1]
    process.send_signal(signal.Signals[how.split()[0]])
    process.communicate(timeout=15)
    end = time.monotonic() + 10
    while not all(gone(pid) for pid in ranks.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert step_of(folder) >= 3


@pytest.mark.slow
def test_bad_input_is_one_line_whatever_the_number_of_processes(
    stored_panel, tmp_path, monkeypatch
):
    """And leaves nothing in the temporary folder."""
    folder, temporary = tmp_path / "run-1", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    done = run(command(stored_panel, folder, config(), "--resume"))
    assert done.returncode == 2
    assert not [path for path in temporary.iterdir() if path.name.startswith(("torch", "pymp"))]
    said = f"{folder}: no run to resume here; leave out --resume to begin one"
    assert done.stderr == f"atft_model: {said}\n"
