"""Training throughput beside pytorch-forecasting and neuralforecast: ``make bench-peers``.

All train on windows of one random panel (82 features, hidden 64, 4 heads; forward, loss, backward
and optimizer step), in turns and each in its own process, so that what else the machine does falls
on all of them. Prints a table of medians, spreads and ratios; ``benchmarks/results/peers.json`` has
every round. Ours is the training loop itself, graph, four horizons and monitors included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from atft_model.bench import BenchSize, random_panel

HERE = Path(__file__).parent
RESULT = HERE / "results" / "peers.json"
BFLOAT16 = ["--precision", "bf16-mixed"]
PEERS = {
    "pytorch-forecasting": ["pytorch-forecasting"],
    "pytorch-forecasting, bfloat16": ["pytorch-forecasting", *BFLOAT16],
    "neuralforecast": ["neuralforecast"],
    "neuralforecast, bfloat16": ["neuralforecast", *BFLOAT16],
}
LONG_RUNS = ["--run-length", "60"]
SHORT_RUNS = ["--run-length", "8"]
ROOM = ["--kept-gib", "12"]
OURS = {
    "ours, compiled": [*LONG_RUNS, "--compile"],
    "ours, compiled, runs of 8 dates": [*SHORT_RUNS, "--compile"],
    "ours": [*LONG_RUNS, *ROOM],
    "ours, bfloat16": [*LONG_RUNS, *ROOM, *BFLOAT16],
    "ours, runs of 8 dates": SHORT_RUNS,
}
"""Long runs share the most; runs of 8 dates are what the presets train with. Without kernels, that
nothing is computed twice takes room; with them nothing is kept."""


def main() -> None:
    """Every contestant once a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--lookbacks", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256, help="windows per step of the peers")
    parser.add_argument("--width", type=int, default=64, help="of pytorch-forecasting's networks "
                        "per feature; its default is 8")  # fmt: skip
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=(*OURS, *PEERS), default=(*OURS, *PEERS))
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    if not options.python.exists():
        raise SystemExit(f"{options.python}: not there; make bench-peers builds it")
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        panel = random_panel(BenchSize())
        np.save(folder / "features.npy", panel.features)
        np.save(folder / "targets.npy", panel.targets)
        for lookback in options.lookbacks:
            for number in range(options.rounds):
                for name in options.only:
                    row = {"lookback": lookback, "round": number, "name": name}
                    row |= (peer if name in PEERS else ours)(name, lookback, folder, options)
                    rounds.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rounds, indent=1) + "\n")
    print(table(rounds))


def ours(name: str, lookback: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """``python -m atft_model bench`` with one repeat."""
    out = folder / "ours.json"
    command = ["-m", "atft_model", "bench", "--lookback", str(lookback), "--repeats", "1",
               "--steps", str(options.steps), "--monitor-rounds", "0", "--json", str(out),
               *OURS[name]]  # fmt: skip
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(out.read_text())
    return {
        "windows_per_second": found["windows_per_second"][0],
        "windows_per_cpu_second": found["windows_per_cpu_second"][0],
        **{
            key: found[key]
            for key in ("parameters", "threads", "torch", "peak_bytes", "compile_seconds")
        },
    }


def peer(name: str, lookback: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The worker, in the peers' environment."""
    command = [str(HERE / "peers_worker.py"), str(folder), *PEERS[name],
               "--lookback", str(lookback), "--batch", str(options.batch),
               "--width", str(options.width), "--steps", str(options.steps)]  # fmt: skip
    # PYTHONPATH would let this environment's packages into the other one.
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(options.python), *command], check=True, capture_output=True, text=True, env=clean
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rounds: list[dict[str, Any]]) -> str:
    """Medians with their range, and how many times faster ours are, round by round."""
    columns = {"ours, compiled": "compiled, times faster (range)",
               "ours, compiled, runs of 8 dates": "in runs of 8 dates (range)",
               "ours": "not compiled (range)"}  # fmt: skip
    names = {row["name"] for row in rounds}
    columns = {name: title for name, title in columns.items() if name in names}
    lines = [f"| lookback | | windows/s (range) | {' | '.join(columns.values())} |",
             "|" + "---|" * (3 + len(columns))]  # fmt: skip
    for lookback in sorted({row["lookback"] for row in rounds}):
        here = [row for row in rounds if row["lookback"] == lookback]
        for name in dict.fromkeys(row["name"] for row in here):
            speeds = speeds_of(here, name)
            ratios = [
                f"{np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})"
                for first in columns
                for ratio in [speeds_of(here, first) / speeds]
            ]
            lines.append(
                f"| {lookback} | {name} | {np.median(speeds):,.0f} ({speeds.min():,.0f} to "
                f"{speeds.max():,.0f}) | {' | '.join(ratios)} |"
            )
    return "\n".join(lines)


def speeds_of(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """Windows per second of each round."""
    return np.array([row["windows_per_second"] for row in rows if row["name"] == name])


if __name__ == "__main__":
    main()
