"""How close does the structure learner come to known graphs, on every row of docs/structure.md?

    python -m benchmarks.structure --seeds 1000:1010 --out benchmarks/results/structure
    python -m benchmarks.structure --case var20 --case noise

Each case is simulated afresh per seed, standardized inside the learner, and learned by
``learn_structure`` as it is used everywhere else. Peers run in an environment of their own on the
same files: ``--export DIR`` writes every case's series and truth (``<case>-<seed>.npz``), and
``--score DIR`` scores what a peer left there (``<case>-<seed>-<peer>.npz`` with ``instant`` and
``lagged`` in this project's orientation, plus ``seconds``).
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from atft_model.structure import simulate
from atft_model.structure.checks import check_structure
from atft_model.structure.config import PRESETS, StructureConfig
from atft_model.structure.graph_metrics import cpdag, edge_scores, structural_hamming_distance
from atft_model.structure.health import Truth
from atft_model.structure.learn import learn_structure
from atft_model.structure.record import StructureRecord
from atft_model.structure.series import Series
from atft_model.structure.simulate import Simulated, er_gaussian, var_with_dag

HARSH_GARCH = {"GARCH_ALPHA": 0.15, "GARCH_BETA": 0.83, "GARCH_DEGREES": 4.0}
"""Heavier than daily returns: infinite kurtosis, volatility half-life of seven weeks."""

WEAK_LAGS = {"SELF_LAG_WEIGHTS": (0.1, 0.3), "CROSS_LAG_WEIGHTS": (0.1, 0.2)}


def pure_noise(seed: int, noise: simulate.Noise = "gaussian", series: int = 20) -> Simulated:
    """Series without any link."""
    values = simulate.draw_noise(np.random.default_rng(seed), noise, 1000, series)
    return Simulated(values, np.zeros((series, series)), np.zeros((1, series, series)))


def lingam(seed: int) -> Simulated:
    """ER2 without time, Laplace noise: only the noise's shape tells cause from effect."""
    rng = np.random.default_rng(seed)
    dag = simulate.random_dag(rng, 20, 2.0, (0.5, 2.0))
    values = simulate.draw_noise(rng, "laplace", 1000, 20) @ np.linalg.inv(np.eye(20) - dag)
    return Simulated(values, dag, np.zeros((0, 20, 20)))


def unequal_noise(seed: int, series: int = 20) -> Simulated:
    """ER2 as in the first row, but noise sizes differ by up to a factor of four."""
    rng = np.random.default_rng(seed)
    dag = simulate.random_dag(rng, series, 2.0, (0.5, 2.0))
    noise = rng.standard_normal((1000, series)) * rng.uniform(0.5, 2.0, series)
    return Simulated(
        noise @ np.linalg.inv(np.eye(series) - dag), dag, np.zeros((0, series, series))
    )


def with_constants(make: Callable[[int], Simulated], values: dict[str, object]):
    """The same generator with some of its constants replaced."""

    def changed(seed: int) -> Simulated:
        before = {name: getattr(simulate, name) for name in values}
        for name, value in values.items():
            setattr(simulate, name, value)
        try:
            return make(seed)
        finally:
            for name, value in before.items():
                setattr(simulate, name, value)

    return changed


def with_gaps(make: Callable[[int], Simulated]):
    """The same series with 5 % of the values missing at random."""

    def changed(seed: int) -> Simulated:
        made = make(seed)
        gaps = np.random.default_rng(seed).random(made.values.shape) < 0.05
        return replace(made, values=np.where(gaps, np.nan, made.values))

    return changed


def without_market(make: Callable[[int], Simulated]):
    """The same series with the market not given."""
    return lambda seed: replace(make(seed), market=None)


def garch_t(seed: int, **options: int) -> Simulated:
    return var_with_dag(seed, noise="garch_t", **options)  # type: ignore[arg-type]


def market(seed: int) -> Simulated:
    return var_with_dag(seed, market=True)


def groups_of_stocks(seed: int, linked: bool = True) -> Simulated:
    """Averages of the stocks of 11 groups, sized as the built-in market's, over 658 days: market,
    the group's own moves (a VAR with as many links within the day as groups, or none) and stocks'
    own. The market is not given, and is no average of anything else."""
    rng = np.random.default_rng(seed + 10_000)
    groups, days, each = 11, 658, 27
    made = var_with_dag(seed, groups, days, "garch_t", edges_per_node=1.0)
    own = made.values if linked else simulate.draw_noise(rng, "garch_t", days, groups)
    market = simulate.draw_noise(rng, "garch_t", days, 1)
    beta = rng.normal(1.0, 0.2, (groups, each)).clip(0.4, 1.6).mean(axis=1)
    rest = simulate.draw_noise(rng, "garch_t", days, groups * each).reshape(days, groups, each)
    values = 0.008 * market * beta + 0.0081 * own / own.std(axis=0) + 0.012 * rest.mean(axis=2)
    nothing = 0.0 if not linked else 1.0
    return Simulated(values, nothing * made.instant, nothing * made.lagged)


TAKEN_OUT = ("market_taken_out", "groups_linked", "groups_unlinked")
"""Cases in which the learner estimates what drives most series instead of warning of it."""

CASES: dict[str, Callable[[int], Simulated]] = {
    "er2_d20": er_gaussian,
    "var20": var_with_dag,
    "var20_laplace": lambda seed: var_with_dag(seed, noise="laplace"),
    "var20_garch_t": garch_t,
    "var20_t250": lambda seed: var_with_dag(seed, times=250),
    "var50": lambda seed: var_with_dag(seed, 50),
    "market_given": market,
    "market_hidden": without_market(market),
    "er2_d10": lambda seed: er_gaussian(seed, 10),
    "var20_garch_t_t250": lambda seed: garch_t(seed, times=250),
    "noise": pure_noise,
    "market_taken_out": without_market(market),
    "groups_linked": groups_of_stocks,
    "groups_unlinked": lambda seed: groups_of_stocks(seed, linked=False),
    # Beyond the table: where the assumptions are strained.
    "noise_garch_t": lambda seed: pure_noise(seed, "garch_t"),
    "er2_d20_unequal_noise": unequal_noise,
    "er2_d20_laplace": lingam,
    "var20_gaps": with_gaps(var_with_dag),
    "var20_harsh_garch_t": with_constants(garch_t, HARSH_GARCH),
    "var20_weak_lags": with_constants(var_with_dag, WEAK_LAGS),
    "var20_weak_lags_garch_t": with_constants(garch_t, WEAK_LAGS),
}


def as_series(made: Simulated) -> Series:
    """What the learner is given: values, names, and the market where there is one."""
    names = tuple(f"s{i:02d}" for i in range(made.values.shape[1]))
    if made.market is None:
        return Series(made.values, names)
    return Series(made.values, names, made.market[:, None], ("market",))


def config_for(
    made: Simulated, preset: str, full: bool, effect_scale: float | None
) -> StructureConfig:
    """The preset; without ``full`` no bootstrap and no shuffles (their cost is their number)."""
    config = StructureConfig(lags=len(made.lagged), **PRESETS[preset])
    if effect_scale is not None:
        config = replace(config, search=replace(config.search, effect_scale=effect_scale))
    if full:
        return config
    return replace(config, bootstrap=replace(config.bootstrap, resamples=0, shuffles=0))


def graph_of(record: StructureRecord, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Kept edges as matrices: today's, and lagged."""
    place = {name: i for i, name in enumerate(record.names)}
    found = np.zeros((lags + 1, len(place), len(place)))
    for edge in record.kept_edges:
        found[edge.lag, place[edge.source], place[edge.target]] = edge.weight
    return found[0], found[1:]


def score(instant: np.ndarray, lagged: np.ndarray, made: Simulated) -> dict[str, float]:
    """Every distance of the table. ``cross_lag_f1`` leaves out a series' own past."""
    across = ~np.eye(instant.shape[0], dtype=bool)
    return {
        "shd": structural_hamming_distance(instant, made.instant),
        "cpdag_shd": structural_hamming_distance(cpdag(instant), cpdag(made.instant)),
        "f1": edge_scores(instant, made.instant).f1,
        "lag_f1": edge_scores(lagged, made.lagged).f1,
        "cross_lag_f1": edge_scores(lagged * across, made.lagged * across).f1,
        "edges": float((instant != 0).sum()),
        "lag_edges_between": float((lagged * across != 0).sum()),
        "true_edges": float((made.instant != 0).sum()),
    }


def run_case(
    name: str, seed: int, preset: str, full: bool, effect_scale: float | None
) -> dict[str, float]:
    """Learns one simulated case and scores it."""
    made = CASES[name](seed)
    config = config_for(made, preset, full, effect_scale)
    if name in TAKEN_OUT:
        config = replace(config, common_factor="take_out")
    started, cpu = time.perf_counter(), time.process_time()
    record = learn_structure(as_series(made), config, Truth(made.instant, made.lagged))
    row = score(*graph_of(record, config.lags), made)
    row["seconds"], row["cpu_seconds"] = time.perf_counter() - started, time.process_time() - cpu
    until_decided = ("common_factor", "table", "gradient", "decision")
    row["learn_seconds"] = sum(record.seconds[part] for part in until_decided)
    row["learn_cpu_seconds"] = sum(record.processor_seconds[part] for part in until_decided)
    if record.rescaling:
        row["rescaled_same"] = float(record.rescaling["identical"])
    assert record.hidden_factor is not None
    row["hidden_factor"] = float(record.hidden_factor["likely"])
    if full:
        for verdict in check_structure(record):
            row[f"pass/{verdict.name}"] = float(verdict.passed)
    return {"case": name, "seed": seed, **row}  # type: ignore[dict-item]


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over seeds, leaving out what is undefined."""
    out = {}
    for key in rows[0]:
        if key not in ("case", "seed"):
            values = np.array([row[key] for row in rows], dtype=float)
            out[key] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return out


def export(folder: Path, cases: list[str], seeds: range) -> None:
    """Every case for peers: values, market (if given) and truth."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in cases:
        for seed in seeds:
            made = CASES[name](seed)
            extra = {} if made.market is None else {"market": made.market}
            np.savez(folder / f"{name}-{seed}.npz", values=made.values, instant=made.instant,
                     lagged=made.lagged, **extra)  # fmt: skip


def score_peers(folder: Path) -> None:
    """Scores ``<case>-<seed>-<peer>.npz`` against the truth of ``CASES``."""
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for path in sorted(folder.glob("*-*-*.npz")):
        case, seed, peer = path.stem.split("-", 2)
        found = np.load(path)
        row = score(found["instant"], found["lagged"], CASES[case](int(seed)))
        results.setdefault((case, peer), []).append(row | {"seconds": float(found["seconds"])})
    for (case, peer), rows in results.items():
        print_row(f"{case} {peer} ({len(rows)})", mean_row(rows))


def print_row(name: str, row: dict[str, float]) -> None:
    """One line, numbers first."""
    print(name, " ".join(f"{key}={value:.3f}" for key, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--seeds", default="1000:1010", help="first:end")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--full", action="store_true", help="with bootstrap and shuffles")
    parser.add_argument("--effect-scale", type=float, help="0: extended BIC alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for rows.json")
    parser.add_argument("--export", type=Path, help="write the cases for peers and stop")
    parser.add_argument("--score", type=Path, help="score peers' results and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = options.case or list(CASES)
    first, end = (int(part) for part in options.seeds.split(":"))
    if options.export:
        return export(options.export, cases, range(first, end))
    if options.score:
        return score_peers(options.score)
    rows: list[dict[str, float]] = []
    for name in cases:
        mine = [
            run_case(name, seed, options.preset, options.full, options.effect_scale)
            for seed in range(first, end)
        ]
        print_row(f"{name} ({len(mine)})", mean_row(mine))
        rows += mine
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        facts = {
            "machine": platform.processor() or platform.machine(),
            "threads": options.threads,
            "preset": options.preset,
            "effect_scale": options.effect_scale,
            "rows": rows,
        }
        (options.out / "rows.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
