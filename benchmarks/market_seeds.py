"""How much of what the built-in market plants a preset finds, and its rivals, seed by seed.

``python benchmarks/market_seeds.py [--seeds 1337 1 2 3 4] [--signal 1] [--out results.json]``. Each
market is drawn, made into a panel and a graph by the pipeline's own functions, trained on by the
command line of the library, and scored on the test dates against realised returns. Beside the rank
IC, ``planted`` is the rank correlation of a score with the planted return itself: it says the same
with a tenth of the noise, and only a drawn market can tell it. ``expected`` is the mean rank IC
with new signs of the noise, which is the target less the planted return: without the luck of one
draw. ``network`` is the model without its linear part, where it has one; ``ridge_sector`` is ridge
fitted to returns relative to their sector, as the preset learns from.
"""

import argparse
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from atft_model.baselines import ridge
from atft_model.config import RunConfig, read_run_file, resolve
from atft_model.data.graph import GraphConfig, build_graph, read_graph, write_graph
from atft_model.data.panel import Panel, read_panel, write_panel
from atft_model.data.splits import SplitConfig
from atft_model.metrics.inference import newey_west_mean
from atft_model.metrics.rank_ic import rank_ic
from atft_model.model.atft import ATFT
from atft_model.run import model_shape, open_run, predict, quantiles_from, train
from atft_model.training.checkpoint import fill
from atft_model.training.reporter import Reporter
from atft_model.training.validation import nanmean
from atft_pipeline.feature_registry import REGISTRY, available_features, unmet_needs
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.boosted_trees import boosted_trees
from atft_pipeline.transforms.features import compute_features
from atft_pipeline.transforms.normalize import fit_and_apply
from atft_pipeline.transforms.panel import build_panel, default_split, trading_calendar
from atft_pipeline.transforms.targets import forward_returns
from atft_pipeline.transforms.universe import UniverseConfig, trading_universe
from atft_pipeline.transforms.validity import ValidityRules, quarantine_invalid

MODELS = ("model", "network", "ridge", "ridge_sector", "lightgbm", "oracle")
DEALS = 20
"""Of a market's noise; then what is left of its luck is a tenth of its standard error or less."""


def build(seed: int, signal: float, folder: Path) -> tuple[Panel, np.ndarray]:
    """The market's panel and graph under ``folder``, and its planted return [dates, stocks, h]."""
    market = SyntheticMarket(SyntheticConfig(seed=seed, signal=signal))
    listings, statements = market.raw_listings(), market.raw_statements()
    flows = market.raw_investor_flows()
    prices = split_adjust(*quarantine_invalid(market.raw_prices(), ValidityRules()))
    universe = trading_universe(prices, listings, UniverseConfig())
    tables = {"prices": prices, "listings": listings, "statements": statements,
              "investor_flows": flows}  # fmt: skip
    kept, _ = available_features(unmet_needs(tables))
    features = compute_features(prices, listings, market.raw_indices(), kept, statements, flows)
    calendar = trading_calendar(prices)
    split = default_split(calendar, universe, SplitConfig())
    by_name = {feature.name: feature for feature in REGISTRY}
    done = fit_and_apply(
        features, [by_name[name] for name in features.columns[2:]],
        calendar[split.train[0]], calendar[split.train[1] - 1],
    )  # fmt: skip
    contract = tuple(by_name[name] for name in done.table.columns[2:])
    panel = build_panel(prices, universe, forward_returns(prices), features, done.table, contract,
                        listings, split, market.name)  # fmt: skip
    write_panel(panel, folder / "panel")
    stored = read_panel(folder / "panel")
    write_graph(build_graph(stored, GraphConfig()), folder / "graph")
    return stored, on_panel(market.planted_return(), stored)


def on_panel(planted: Any, panel: Panel) -> np.ndarray:
    """float64 [dates, stocks, horizons] of a table by (date, code); NaN without a row."""
    grid = np.full(panel.targets.shape, np.nan)
    day = {date: i for i, date in enumerate(panel.dates)}
    stock = {code: i for i, code in enumerate(panel.codes)}
    columns = [f"target_{horizon}d" for horizon in panel.horizons]
    for date, code, *values in planted.select("date", "code", *columns).iter_rows():
        if date in day and code in stock:
            grid[day[date], stock[code]] = values
    return grid


def model_scores(panel: Panel, folder: Path, config: RunConfig) -> np.ndarray:
    """Scores [dates, stocks, horizons] by a run trained with these settings; NaN where none."""
    train(config, folder / "panel", folder / "graph", folder / "run", Reporter())
    rows = predict(folder / "run", folder / "panel", folder / "graph")
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    grid = np.full(panel.targets.shape, np.nan)
    days = np.array(panel.dates, dtype="datetime64[D]")
    day = np.searchsorted(days, frame["date"].to_numpy().astype("datetime64[D]"))
    stock = np.searchsorted(np.array(panel.codes), frame["code"].cast(pl.String).to_numpy())
    horizon = np.searchsorted(panel.horizons, frame["horizon"].to_numpy())
    grid[day, stock, horizon] = frame["score"].to_numpy()
    return grid


def network_scores(panel: Panel, folder: Path) -> np.ndarray:
    """Scores [dates, stocks, horizons] of the test dates by the run's network alone."""
    run = open_run(folder / "run")
    device = torch.device("cpu")
    model = ATFT(run.config.model, model_shape(panel))
    linear = torch.zeros_like(run.weights["linear_part.weights"])
    fill(model, {**run.weights, "linear_part.weights": linear}, run.folder)
    graph = read_graph(folder / "graph", panel)
    quantiles = quantiles_from(panel.split.test[0], run, model, panel, graph, device)
    return quantiles[..., model.median].astype(np.float64)


def judge(panel: Panel, scores: dict[str, np.ndarray], planted: np.ndarray) -> list[dict[str, Any]]:
    """Per scorer and horizon, over the test dates."""
    rows = []
    test = slice(*panel.split.test)
    tradable = np.asarray(panel.tradable[test])
    for name, score in scores.items():
        for index, horizon in enumerate(panel.horizons):
            target = np.asarray(panel.targets[test, :, index], dtype=np.float64)
            mine, truth = score[test, :, index], planted[test, :, index]
            common = np.isfinite(scores["model"][test, :, index]) & tradable
            daily = rank_ic(mine, target, common)
            estimate = newey_west_mean(daily, horizon=horizon)
            found = newey_west_mean(rank_ic(mine, truth, common))
            rows.append(
                {
                    "scorer": name, "horizon": horizon, "rank_ic": estimate.mean,
                    "standard_error": estimate.standard_error, "planted": found.mean,
                    "expected": expected_rank_ic(mine, target, truth, common),
                }
            )  # fmt: skip
    return rows


def expected_rank_ic(
    score: np.ndarray, target: np.ndarray, planted: np.ndarray, valid: np.ndarray
) -> float:
    """Mean rank IC over ``DEALS`` markets with this one's planted return and other noise.

    The noise is the target less the planted return, demeaned within the date; each stock keeps the
    size of its own, for volatile stocks have more of both, and gets a sign of its own anew. Every
    scorer meets the same deals. All arrays [dates, stocks].
    """
    rng = np.random.default_rng(0)
    known = valid & np.isfinite(target) & np.isfinite(planted)
    noise = np.where(known, target - planted, 0.0)
    noise -= noise.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    found = []
    for _ in range(DEALS):
        dealt = planted + rng.choice([-1.0, 1.0], noise.shape) * noise
        found.append(nanmean(rank_ic(score, dealt, known)))
    return float(np.mean(found))


def one_market(seed: int, signal: float, config: RunConfig) -> list[dict[str, Any]]:
    """Draws, trains, scores and judges; the files go."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        panel, planted = build(seed, signal, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        scores = {"model": model_scores(panel, folder, config)}
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        if config.model.linear_days is not None:
            scores["network"] = network_scores(panel, folder)
        trees = boosted_trees(panel)
        for name, to in (("ridge", "date"), ("ridge_sector", "sector")):
            scores[name] = np.stack([ridge(panel, h, to) for h in panel.horizons], axis=-1)
        scores["lightgbm"] = np.stack([trees[h] for h in panel.horizons], axis=-1)
        scores["oracle"] = planted
        rows = judge(panel, scores, planted)
    return [{"seed": seed, "signal": signal, "cpu_seconds": seconds, **row} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds as Markdown, and the model's share of the oracle."""
    seeds = sorted({row["seed"] for row in rows})
    horizons = sorted({row["horizon"] for row in rows})
    lines = [f"| {len(seeds)} markets | " + " | ".join(f"{h}d" for h in horizons) + " |"]
    lines.append("|---|" + "---:|" * len(horizons))

    def mean(name: str, horizon: int, key: str) -> float:
        return float(np.mean([row[key] for row in rows
                              if row["scorer"] == name and row["horizon"] == horizon]))  # fmt: skip

    models = [name for name in MODELS if any(row["scorer"] == name for row in rows)]
    for name in models:
        cells = [f"{mean(name, horizon, 'rank_ic'):+.4f}" for horizon in horizons]
        lines.append(f"| rank IC, {name} | " + " | ".join(cells) + " |")
    if any(row["signal"] for row in rows):
        for name in models:
            cells = [f"{mean(name, h, 'expected'):+.4f}" for h in horizons]
            lines.append(f"| rank IC expected over other noise, {name} | " + " | ".join(cells)
                         + " |")  # fmt: skip
        for name in models[:-1]:
            cells = [f"{mean(name, h, 'rank_ic') / mean('oracle', h, 'rank_ic'):.0%}"
                     for h in horizons]  # fmt: skip
            lines.append(f"| share of the oracle, {name} | " + " | ".join(cells) + " |")
            cells = [f"{mean(name, h, 'planted'):.2f}" for h in horizons]
            lines.append(f"| correlation with the planted return, {name} | " + " | ".join(cells)
                         + " |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Runs the seeds one after the other; what is done so far is printed and written each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2, 3, 4])
    parser.add_argument("--signal", type=float, default=1.0)
    parser.add_argument("--run-file", type=Path, help="settings over the preset quick, or another")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/market_seeds.json"))
    options = parser.parse_args()
    preset, values = read_run_file(options.run_file) if options.run_file else (None, {})
    config = resolve(preset or "quick", [(str(options.run_file), values)])
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        rows += one_market(seed, options.signal, config)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(rows, indent=1))
        os.replace(temporary, options.out)
        print(f"after seed {seed}:\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
