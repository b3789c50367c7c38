"""A real Dagster daemon, for tests of what happens by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def daemon(
    environment: dict[str, str], log: Path, *code: str
) -> Iterator[subprocess.Popen]:  # fmt: skip
    """A real daemon, in a process group that ends with it; by default it loads the definitions."""
    where = code or ("-m", "atft_pipeline.definitions")
    with background(["-m", "dagster._daemon", "run", *where], environment, log) as process:
        yield process


@contextmanager
def background(
    arguments: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen]:
    """This Python with arguments, in a process group that ends with the context, if not before."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
