"""A real Dagster daemon, for tests of what happens by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def daemon(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A real daemon with the project's definitions, in a process group that ends with it."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-m", "atft_pipeline.definitions"],
            cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
