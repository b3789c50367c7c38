"""Speed and memory of the stock graph: ``python benchmarks/graph.py [STOCKS] [DATES]``.

Random returns with sector factors, default 1,000 stocks × 1,250 dates; the goal is 60 s on two
cores. Prints a table and writes ``benchmarks/results/graph.json``.
"""

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from atft_model.bench import BenchSize, random_panel
from atft_model.data.graph import GraphConfig, build_graph
from atft_model.data.random_graph import random_graph

RESULT = Path(__file__).parent / "results" / "graph.json"
LIMIT_SECONDS = 60.0


def main() -> None:
    """Builds the graph and its random control once."""
    stocks, dates = (int(x) for x in sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 1250)
    panel = random_panel(BenchSize(dates=dates, stocks=stocks, features=1))
    rng = np.random.default_rng(0)
    factors = 0.01 * rng.standard_normal((dates, len(panel.sectors)), dtype=np.float32)
    panel = replace(panel, daily_return=panel.daily_return + factors[:, panel.sector])
    took = {}
    started = time.perf_counter(), time.process_time()
    graph = build_graph(panel, GraphConfig())
    took["stock_graph"] = time.perf_counter() - started[0], time.process_time() - started[1]
    started = time.perf_counter(), time.process_time()
    random_graph(graph)
    took["random graph"] = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    same = panel.sector[graph.neighbours] == panel.sector[:, None]
    size = (graph.neighbours.nbytes + graph.correlation.nbytes) / 2**20
    print(
        f"{stocks} stocks × {dates} dates, {len(graph.refresh)} refreshes, {size:.0f} MiB stored, "
        f"peak memory {peak:,.0f} MiB; {100 * same.mean():.0f} % of neighbours share the sector"
    )
    for name, (wall, cpu) in took.items():
        print(f"{name:<14}{wall:8.1f} s   ({cpu:.1f} CPU seconds)")
    print(
        f"limit {LIMIT_SECONDS:.0f} s: "
        + ("met" if took["stock_graph"][0] <= LIMIT_SECONDS else "NOT met")
    )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    figures = {name: {"seconds": wall, "cpu_seconds": cpu} for name, (wall, cpu) in took.items()}
    RESULT.write_text(json.dumps({
        "stocks": stocks, "dates": dates, "peak_mib": peak, **figures,
    }, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
