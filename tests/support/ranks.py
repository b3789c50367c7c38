"""Trains in several processes (gloo) that the tests can look into: what every rank records.

The processes are forked from a server that has imported torch once, so that starting one costs
nothing. Rank 1 records as rank 0 does, in a folder of its own.
"""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from atft_model import run as run_module
from atft_model.config import RunConfig
from atft_model.settings import place_from_environment
from atft_model.training.distributed import Group, open_group
from atft_model.training.health_record import HealthRecord
from atft_model.training.loop import Trainer
from atft_model.training.reporter import Reporter

COLLAPSED = 1
"""Position of the horizon whose head begins constant."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run with faults planted, and when a rank kills itself."""

    config: RunConfig
    panel: Path
    graph: Path
    folder: Path
    resume: bool = False
    killed: tuple[int, int] | None = None
    """(rank, step)."""


def start_ranks(job: Job, size: int = 2) -> list[BaseProcess]:
    """Starts the processes of one run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["atft_model.run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=train_rank, args=(job, rank, size, port))
                 for rank in range(size)]  # fmt: skip
    for process in processes:
        process.start()
    return list(processes)


def exit_codes(processes: list[BaseProcess], seconds: float = 60.0) -> list[int | None]:
    """How they ended; one that does not is killed."""
    for process in processes:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def recorded(folder: Path, rank: int) -> list[tuple]:
    """Everything that a rank put on record: (epoch, step, kind, name, metric, value)."""
    return [tuple(row) for row in json.loads((folder.parent / f"rank-{rank}.json").read_text())]


def train_rank(job: Job, rank: int, size: int, port: int) -> None:
    """One process of a run."""
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with open_group(place_from_environment(), "cpu") as group:
        said = train_planted(job, group)
    path = job.folder.parent / f"rank-{rank}.json"
    path.write_text(json.dumps(said))


def train_planted(job: Job, group: Group) -> list[tuple]:
    """Trains with a NaN in one date and a constant head; returns what the rank recorded."""
    said: list[tuple] = []
    build, add, beat = run_module.build_trainer, HealthRecord.add, Trainer.beat

    def build_planted(*arguments) -> Trainer:
        trainer = build(*arguments)
        day = int(np.flatnonzero(trainer.train_dates)[30])
        trainer.data.features[day, 7, 2] = math.nan
        torch.nn.init.zeros_(trainer.model.head.heads[COLLAPSED].linear.weight)
        return trainer

    def add_and_say(self, epoch, step, kind, name, metrics) -> None:
        said.extend((epoch, step, kind, name, metric, float(metrics[metric])) for metric in metrics)
        add(self, epoch, step, kind, name, metrics)

    def beat_or_die(self, progress, what) -> None:
        if job.killed == (group.rank, progress.step):
            os.kill(os.getpid(), signal.SIGKILL)
        beat(self, progress, what)

    with (
        patch.object(run_module, "build_trainer", build_planted),
        patch.object(HealthRecord, "add", add_and_say),
        patch.object(Trainer, "beat", beat_or_die),
    ):
        run_module.train(
            job.config, job.panel, job.graph, job.folder, Reporter(), resume=job.resume,
            group=group,
        )  # fmt: skip
    return said
