"""Runs published structure learners on the files of ``benchmarks/structure.py --export``.

    make bench-structure-peers

Runs in an environment of its own (``.venv-structure-peers``), which has numpy and the peers and
nothing of this project. Each peer gets the series standardized, as the learner does, and the market
as one more series where there is one (none of them has exogenous series); its edges into and out
of the market are dropped. Settings are the peers' own defaults, or their papers' where there is no
default, and are said below.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

Found = tuple[np.ndarray, np.ndarray]
"""Today's effects [cause, effect], and lagged ones [lag, cause, effect]; 0 is no edge."""


def dagma(values: np.ndarray, lags: int) -> Found:
    """DAGMA (Bello, Aragam, Ravikumar 2022), linear: lambda1 0.03 and threshold 0.3 as in its
    paper. It knows no time: lagged values are further variables, and what they point to counts."""
    from dagma.linear import DagmaLinear

    count = values.shape[1]
    rows = with_lags(values, lags)
    weights = DagmaLinear(loss_type="l2").fit(rows, lambda1=0.03, w_threshold=0.3)
    lagged = [weights[count * lag : count * (lag + 1), :count] for lag in range(1, lags + 1)]
    return weights[:count, :count], np.array(lagged).reshape(lags, count, count)


def var_lingam(values: np.ndarray, lags: int) -> Found:
    """VAR-LiNGAM (Hyvärinen et al. 2010), its own pruning (adaptive lasso); without time
    DirectLiNGAM."""
    import lingam

    count = values.shape[1]
    if not lags:
        model = lingam.DirectLiNGAM(random_state=0)
        model.fit(values)
        return model.adjacency_matrix_.T, np.zeros((0, count, count))
    model = lingam.VARLiNGAM(lags=lags, criterion=None, prune=True, random_state=0)
    model.fit(values)
    matrices = model.adjacency_matrices_
    lagged = [matrices[lag].T for lag in range(1, lags + 1)]
    return matrices[0].T, np.array(lagged).reshape(lags, count, count)


def pcmci_plus(values: np.ndarray, lags: int) -> Found:
    """PCMCI+ (Runge 2020), partial correlation, its default level 0.01. What it leaves unoriented
    is given the truth's benefit nowhere: the smaller index is the cause."""
    from tigramite import data_processing
    from tigramite.independence_tests.parcorr import ParCorr
    from tigramite.pcmci import PCMCI

    count = values.shape[1]
    learner = PCMCI(data_processing.DataFrame(values), ParCorr(), verbosity=0)
    found = learner.run_pcmciplus(tau_min=0, tau_max=lags, pc_alpha=0.01)
    graph, size = found["graph"], found["val_matrix"]
    effects = np.zeros((lags + 1, count, count))
    for cause, effect, lag in zip(*np.nonzero(graph != ""), strict=True):
        mark = graph[cause, effect, lag]
        undecided = mark in ("o-o", "x-x") and cause < effect
        if mark == "-->" or undecided:
            effects[lag, cause, effect] = size[cause, effect, lag]
    return effects[0], effects[1:]


PEERS: dict[str, tuple[str, Callable[[np.ndarray, int], Found]]] = {
    "dagma": ("dagma", dagma),
    "varlingam": ("lingam", var_lingam),
    "pcmciplus": ("tigramite", pcmci_plus),
}


def with_lags(values: np.ndarray, lags: int) -> np.ndarray:
    """Today's columns, then yesterday's."""
    times = len(values)
    return np.concatenate([values[lags - lag : times - lag] for lag in range(lags + 1)], axis=1)


def run(path: Path, peer: str) -> None:
    """One peer on one file; leaves ``<case>-<seed>-<peer>.npz`` beside it."""
    out = path.with_name(f"{path.stem}-{peer}.npz")
    if out.exists():
        return
    case = np.load(path)
    values, lags = case["values"], len(case["lagged"])
    count = values.shape[1]
    if "market" in case:
        values = np.column_stack([values, case["market"]])
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    started = time.process_time()
    instant, lagged = PEERS[peer][1](values, lags)
    seconds = time.process_time() - started
    np.savez(out, instant=instant[:count, :count], lagged=lagged[:, :count, :count],
             seconds=seconds)  # fmt: skip
    print(f"{path.stem} {peer} {version(PEERS[peer][0])}: {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as structure.py --export wrote it")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="default: all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers' own, about their own dependencies
    cases = [p for p in sorted(options.folder.glob("*.npz")) if p.stem.count("-") == 1]
    for path in cases:
        for peer in options.peer or PEERS:
            run(path, peer)


if __name__ == "__main__":
    main()
