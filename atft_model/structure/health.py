"""The health record of the gradient stage: one row per epoch."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from atft_model.structure.graph_metrics import (
    chance_f1,
    chance_p_value,
    edge_scores,
    structural_hamming_distance,
)
from atft_model.structure.order_search import LocalScores
from atft_model.structure.threshold import GRID, choose_threshold, thresholded


@dataclass(frozen=True)
class Truth:
    """The graph that made the data, where it is known. It is reported beside, never used."""

    instant: Float[np.ndarray, "series series"]
    lagged: Float[np.ndarray, "lags series series"]


@dataclass(frozen=True)
class EpochHealth:
    """One epoch. None where there is no truth to compare with."""

    epoch: int
    loss_total: float
    loss_recon: float
    loss_sparse: float
    loss_acyclic: float
    loss_disen: float
    acyclic_weight: float
    validation_log_likelihood: float
    acyclicity: float
    gradient_norm: float
    """Mean over steps, before clipping."""
    clip_ratio: float
    """Share of steps whose gradient was clipped."""
    adjacency_gradient: float
    """Part of the gradient norm that reaches the adjacency."""
    pulled_back: float
    """Share of steps that left the domain of the acyclicity measure."""
    learning_rate: float
    edge_count: int
    """Today's and lagged edges at the threshold."""
    distinct_scores: int
    """Different sizes among the effects: few means that they move together."""
    threshold: float
    threshold_plateau: int
    threshold_at_grid_end: bool
    f1: float | None
    shd: int | None
    shd_empty: int | None
    chance_f1: float | None
    chance_p_value: float | None
    seconds: float


def read_health(
    epoch: int,
    instant: Float[np.ndarray, "series series"],
    lagged: Float[np.ndarray, "lags series series"],
    scores: LocalScores,
    truth: Truth | None,
    readings: dict[str, Any],
) -> EpochHealth:
    """The epoch's row, from the weights at its end and the readings along it."""
    chosen = choose_threshold(instant, lagged, scores)
    series = len(instant)
    against: dict[str, Any] = dict.fromkeys(
        ("f1", "shd", "shd_empty", "chance_f1", "chance_p_value")
    )
    if truth is not None:
        against = against_truth(chosen.parents[:, :series].T, truth.instant)
    sizes = np.abs(np.concatenate([instant.ravel(), lagged.ravel()]))
    return EpochHealth(
        epoch=epoch,
        edge_count=int(chosen.parents.sum()),
        distinct_scores=len(np.unique(np.round(sizes, 6))),
        threshold=chosen.value,
        threshold_plateau=chosen.plateau,
        threshold_at_grid_end=chosen.at_grid_end,
        **against,
        **readings,
    )


def against_truth(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """F1 and SHD of today's edges, beside those of the empty graph and of chance."""
    series = len(truth)
    places = series * (series - 1)
    edges, true_edges = int((found != 0).sum()), int((truth != 0).sum())
    hits = int(((found != 0) & (truth != 0)).sum())
    f1 = edge_scores(found, truth).f1
    return {
        "f1": None if math.isnan(f1) else f1,
        "shd": structural_hamming_distance(found, truth),
        "shd_empty": true_edges,
        "chance_f1": chance_f1(edges, true_edges, places) if edges + true_edges else None,
        "chance_p_value": chance_p_value(hits, edges, true_edges, places),
    }


def threshold_sweep(
    instant: Float[np.ndarray, "series series"],
    lagged: Float[np.ndarray, "lags series series"],
    truth: Truth,
) -> dict[str, object]:
    """F1 of today's edges at all 21 thresholds, and the best one: an oracle's, never used."""
    series = len(instant)
    f1 = [
        edge_scores(thresholded(instant, lagged, level)[:, :series].T, truth.instant).f1
        for level in GRID
    ]
    best = int(np.nanargmax(f1)) if not np.isnan(f1).all() else 0
    plain = [None if math.isnan(value) else value for value in f1]
    return {
        "thresholds": list(GRID), "f1": plain, "oracle_threshold": GRID[best],
        "oracle_f1": plain[best],
    }  # fmt: skip
