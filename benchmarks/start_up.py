"""What Dagster's commands cost before any work: ``python benchmarks/start_up.py [REPEATS]``.

Loads the definitions, and materializes a small asset (``raw_listings`` of a market of 20 stocks) as
a person types it, each in a process of its own. Processor seconds count all threads of the process
and its children, so they mean something on a shared machine too. What the asset itself takes is
the time between the start and the end of its step in Dagster's event log; it is taken off both.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import dagster as dg

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "start_up.json"
ASSET = "raw_listings"
CONFIG = {"resources": {"market": {"config": {"stocks": 20, "dates": 300}}}}
REPEATS = 5
Measured = TypeVar("Measured")
LIMITS = {"definitions": 3.0, "over the work": 5.0}
"""Processor seconds."""


def cost(arguments: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds by the clock, processor seconds) of this Python with arguments."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def own_seconds(home: Path) -> float:
    """What the newest run's only step took, by the event log."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs(limit=1)
        (step,) = instance.get_run_step_stats(run.run_id)
        assert step.end_time is not None
        assert step.start_time is not None
        return step.end_time - step.start_time


def spread(values: Sequence[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measures and prints; the first of each is not counted: it compiles and fills caches."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text((ROOT / "dagster_home" / "dagster.yaml").read_text())
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ATFT_", "DAGSTER_"))}
        environment = kept | {
            "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(home), "OMP_NUM_THREADS": "1",
            "ATFT_DATA_DIR": str(Path(folder) / "data"),
            "DAGSTER_MODULE_NAME": "atft_pipeline.definitions",
        }  # fmt: skip
        load = ["-c", "import atft_pipeline.definitions"]
        command = ["-m", "dagster", "asset", "materialize", "--select", ASSET,
                   "--config-json", json.dumps(CONFIG)]  # fmt: skip
        loads = repeated(repeats, lambda: cost(load, environment))
        runs = repeated(repeats, lambda: (*cost(command, environment), own_seconds(home)))
    figures = {
        "definitions": [cpu for _, cpu in loads],
        "definitions, by the clock": [wall for wall, _ in loads],
        f"materialize {ASSET}": [cpu for _, cpu, _ in runs],
        f"materialize {ASSET}, by the clock": [wall for wall, _, _ in runs],
        "its step, by the clock": [own for _, _, own in runs],
        "over the work": [cpu - own for _, cpu, own in runs],
        "over the work, by the clock": [wall - own for wall, _, own in runs],
    }
    for name, values in figures.items():
        limit = LIMITS.get(name)
        verdict = f"   limit {limit:g} s: " if limit else ""
        verdict += ("met" if statistics.median(values) < limit else "NOT met") if limit else ""
        print(f"{name:<40}{spread(values)}{verdict}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")


def repeated(times: int, measure: Callable[[], Measured]) -> list[Measured]:
    """The measurements after the first."""
    return [measure() for _ in range(times + 1)][1:]


if __name__ == "__main__":
    main()
