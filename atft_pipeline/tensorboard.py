"""``python -m atft_pipeline.tensorboard``: health records as TensorBoard event files.

The health record is the one account of a run; these files are a view of it. With ``--serve`` they
grow as the record does, while a run trains.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from atft_model.training.health_record import SCHEMA
from atft_pipeline.resources import Market, data_folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CURVES = (
    "gradient",
    "update",
    "activation_gradient",
    "encoder_spread",
    "loss",
    "step",
    "score_std",
    "epoch",
    "guard",
)
"""Kinds of readings that are curves over steps."""
LOOK_SECONDS = 5.0
"""Between looks for new readings; a run in training writes them at least every 30 s."""


class RunEvents:
    """The event files of one run, which follow the parts of its health record.

    A reading is the scalar ``kind/name/metric`` at its step, such as
    ``gradient/temporal_encoder/l2``.
    """

    def __init__(self, health: Path, out: Path) -> None:
        self.health, self.out = health, out
        self._seen: dict[str, tuple[int, int]] = {}
        self._writer: SummaryWriter | None = None

    def update(self) -> int:
        """Adds the parts that are new; how many.

        A run that goes on from a checkpoint takes back what it wrote after it: then all is written
        anew, as it is the first time.
        """
        parts = {part.name: part.stat() for part in sorted(self.health.glob("part-*.parquet"))}
        found = {name: (stat.st_mtime_ns, stat.st_size) for name, stat in parts.items()}
        if self._writer is None or any(
            found.get(name) != what for name, what in self._seen.items()
        ):
            self._begin()
        new = [name for name in found if name not in self._seen]
        for name in new:
            self._add(self.health / name)
        self._seen = found
        return len(new)

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        shutil.rmtree(self.out, ignore_errors=True)
        self._seen, self._writer = {}, SummaryWriter(str(self.out))

    def _add(self, part: Path) -> None:
        assert self._writer is not None
        for row in pq.read_table(part, schema=SCHEMA).to_pylist():
            if row["kind"] in CURVES:
                tag = f"{row['kind']}/{row['name']}/{row['metric']}"
                self._writer.add_scalar(tag, row["value"], row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Follower:
    """The event files of all runs of a data set."""

    def __init__(self, models: Path, out: Path) -> None:
        self.models, self.out = models, out
        self.runs: dict[str, RunEvents] = {}

    def update(self) -> list[str]:
        """Converts what is new; the ids of the runs that have readings."""
        for health in sorted(self.models.glob("*/health")):
            if any(health.glob("part-*.parquet")):
                run_id = health.parent.name
                events = self.runs.setdefault(run_id, RunEvents(health, self.out / run_id))
                try:
                    events.update()
                except FileNotFoundError:
                    continue  # taken back by a run that is being resumed: the next look sees it
        return list(self.runs)

    def close(self) -> None:
        """Ends the event files."""
        for events in self.runs.values():
            events.close()


def command(logs: Path, port: int) -> list[str]:
    """TensorBoard on a folder of event files, for this machine alone."""
    return [
        sys.executable, "-m", "tensorboard.main", "--logdir", str(logs),
        "--host", "127.0.0.1", "--port", str(port), "--reload_interval", f"{LOOK_SECONDS:.0f}",
    ]  # fmt: skip


def serve(follower: Follower, port: int) -> int:
    """Runs TensorBoard, and follows the runs until it ends; its exit code."""
    # A stop by the system is one by hand: TensorBoard must not outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(command(follower.out, port))
    try:
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            follower.update()
    except KeyboardInterrupt:
        print("stopped")
        return 0
    finally:
        process.terminate()
        process.wait()
    return process.returncode


def main(arguments: list[str] | None = None) -> int:
    """Converts every run of the data set; prints where the event files lie."""
    parser = argparse.ArgumentParser(prog="python -m atft_pipeline.tensorboard")
    parser.add_argument("--out", type=Path, help="folder of event files (default: the data set's)")
    parser.add_argument("--serve", action="store_true", help="show them, as they grow")
    parser.add_argument("--port", type=int, default=6006, help="default 6006")
    options = parser.parse_args(arguments)
    root = data_folder(None, None, Market().name())
    follower = Follower(root / "models", options.out or root / "tensorboard")
    written = follower.update()
    print(f"{len(written)} runs written to {follower.out}", flush=True)
    if not written:
        print(f"no run in {follower.models} has readings yet: curves appear once one trains")
    try:
        return serve(follower, options.port) if options.serve else 0
    finally:
        follower.close()


if __name__ == "__main__":
    raise SystemExit(main())
