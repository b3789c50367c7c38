"""Trains variants of one recipe on stored panels, several seeds each, and compares rank ICs.

Shared by ``adaptive_norm.py`` and ``run_length.py``; no script of its own. Each data set is a
folder with ``panel`` and ``stock_graph``, as ``make run`` leaves it in ``data/synthetic``; with
``planted_return.parquet`` beside them scores are also compared with what was planted: the same rank
correlation without the noise of realized returns.
"""

import argparse
import json
import logging
import resource
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from atft_model.config import resolve, to_dict
from atft_model.data.panel import Panel, read_panel
from atft_model.metrics.rank_ic import rank_ic
from atft_model.run import predict, train
from atft_model.training.reporter import Reporter

HEADLINE = 5
Variants = Mapping[str, Mapping[str, Any]]


def arguments(description: str) -> argparse.ArgumentParser:
    """What every ablation can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[Path("data/synthetic")],
        help="folders with panel and stock_graph; several market seeds",
    )
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each variant")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=36, help="per epoch")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--out", type=Path, help="JSON file; runs that it holds are not repeated")
    return parser  # fmt: skip


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The preset ``quick`` at the size asked for; every epoch is run, the best one is kept."""
    return {
        "model": {"hidden_size": options.hidden},
        "training": {"max_epochs": options.epochs, "max_steps_per_epoch": options.steps,
                     "early_stopping_patience": 0},
    }  # fmt: skip


def run_variants(variants: Variants, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per data set, seed and variant; seeds outermost, so that a cut is balanced."""
    logging.getLogger("atft").setLevel(logging.WARNING)
    done = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    known = {(r["data"], r["seed"], r["variant"]): r for r in done}
    for seed in range(options.seeds):
        for data in options.data:
            for name, changes in variants.items():
                key = str(data), seed, name
                if key in known:
                    continue
                known[key] = {"data": str(data), "seed": seed, "variant": name,
                              **one_run(data, seed, changes, options)}  # fmt: skip
                print(json.dumps(known[key]), flush=True)
                if options.out:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    options.out.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    return list(known.values())


def one_run(
    data: Path, seed: int, changes: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Trains one model and scores the test dates."""
    config = resolve("quick", [("recipe", recipe(options)), ("variant", changes),
                               ("seed", {"training": {"seed": seed}})])  # fmt: skip
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        record = train(config, data / "panel", data / "stock_graph", folder, Reporter())
        scores = predict(folder, data / "panel", data / "stock_graph")
    panel = read_panel(data / "panel")
    found = test_scores(scores, panel)
    days = slice(*panel.split.test)
    figures = mean_rank_ics(found, np.asarray(panel.targets[days], dtype=np.float64))
    result = {
        "validation": record["best_validation_rank_ic"],
        "test": float(np.mean(list(figures.values()))),
        "test_headline": figures[HEADLINE],
        "best_epoch": record["best_epoch"],
        "windows": record["windows"],
        "steps": record["steps"],
        "cpu_seconds": cpu_seconds() - before,
        "config": to_dict(config)["training"],
    }
    planted = planted_returns(data / "planted_return.parquet", panel)
    if planted is not None:
        result["planted"] = float(np.mean(list(mean_rank_ics(found, planted).values())))
    return result


def test_scores(table: Any, panel: Panel) -> np.ndarray:
    """Scores of the test dates [dates, stocks, horizons]; NaN where there are none."""
    first, last = panel.split.test
    found = np.full((last - first, len(panel.codes), len(panel.horizons)), np.nan)
    rows = table.filter(np.array(table["part"].to_pylist()) == "test")
    date = {day: i for i, day in enumerate(panel.dates[first:last])}
    code = {name: i for i, name in enumerate(panel.codes)}
    horizon = {days: i for i, days in enumerate(panel.horizons)}
    place = (
        [date[day] for day in rows["date"].to_pylist()],
        [code[name] for name in rows["code"].to_pylist()],
        [horizon[days] for days in rows["horizon"].to_pylist()],
    )
    found[place] = rows["score"].to_numpy()
    return found


def planted_returns(path: Path, panel: Panel) -> np.ndarray | None:
    """Expected returns of the test dates [dates, stocks, horizons]; None where nobody knows."""
    if not path.exists():
        return None
    first, last = panel.split.test
    table = pq.read_table(path).to_pydict()
    found = np.full((last - first, len(panel.codes), len(panel.horizons)), np.nan)
    date = {day: i for i, day in enumerate(panel.dates[first:last])}
    code = {name: i for i, name in enumerate(panel.codes)}
    columns = [table[f"target_{days}d"] for days in panel.horizons]
    for row, (day, name) in enumerate(zip(table["date"], table["code"], strict=True)):
        if day in date and name in code:
            found[date[day], code[name]] = [
                np.nan if column[row] is None else column[row] for column in columns
            ]
    return found


def mean_rank_ics(scores: np.ndarray, returns: np.ndarray) -> dict[int, float]:
    """Mean rank IC over dates by horizon (1, 5, 10, 20)."""
    found = {}
    for index, horizon in enumerate((1, 5, 10, 20)):
        mine, theirs = scores[..., index], returns[..., index]
        found[horizon] = float(
            np.nanmean(rank_ic(mine, theirs, np.isfinite(mine) & np.isfinite(theirs), 30))
        )
    return found


def compared(records: Sequence[Mapping[str, Any]], variants: Sequence[str], first: str) -> str:
    """A Markdown table: means, spread over runs, and the paired difference from ``first``."""
    figures = [name for name in ("validation", "test", "test_headline", "planted")
               if all(name in r for r in records)]  # fmt: skip
    titles = {"validation": "validation rank IC", "test": "test rank IC",
              "test_headline": f"test rank IC, {HEADLINE} days",
              "planted": "correlation with what was planted"}  # fmt: skip
    heads = [title for name in figures for title in (titles[name], f"less {first}")]
    lines = ["| variant | runs | " + " | ".join(heads) + " | CPU seconds |",
             "|---|---|" + "---|" * (len(heads) + 1)]  # fmt: skip
    for variant in variants:
        mine = [r for r in records if r["variant"] == variant]
        cells = [variant, str(len(mine))]
        for name in figures:
            base = {(r["data"], r["seed"]): r[name] for r in records if r["variant"] == first}
            values = np.array([r[name] for r in mine])
            gaps = np.array([r[name] - base[r["data"], r["seed"]] for r in mine
                             if (r["data"], r["seed"]) in base])  # fmt: skip
            cells.append(f"{values.mean():.4f} ({values.min():.4f} to {values.max():.4f})")
            error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else np.nan
            cells.append("" if variant == first else f"{gaps.mean():+.4f} ± {error:.4f}")
        cells.append(f"{np.median([r['cpu_seconds'] for r in mine]):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_seconds() -> float:
    """Of this process, all threads: comparable on a shared machine."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
