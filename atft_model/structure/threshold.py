"""From effects to edges without knowing the truth: the threshold with the best extended BIC."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.structure.dag import strongest_dag
from atft_model.structure.order_search import LocalScores, score_of

GRID = tuple(round(0.05 * step, 2) for step in range(21))
"""Absolute effects in standardized units, 0.00 to 1.00."""


@dataclass(frozen=True)
class Threshold:
    """The chosen threshold and how sure the choice is."""

    value: float
    """Middle of the run of grid points that give the same best graph."""
    plateau: int
    """How many grid points in a row give that graph."""
    at_grid_end: bool
    """Whether the run touches 0 or the grid's last point: nothing was separated from nothing."""
    parents: Bool[np.ndarray, "targets candidates"]
    scores: tuple[float, ...]
    """Minus the extended BIC at every grid point, up to a constant."""


def thresholded(
    instant: Float[np.ndarray, "series series"],
    lagged: Float[np.ndarray, "lags series series"],
    threshold: float,
) -> Bool[np.ndarray, "targets candidates"]:
    """Parents per target: effects above the threshold, today's made acyclic strongest first."""
    today = strongest_dag(np.where(np.abs(instant) > threshold, instant, 0.0))
    past = np.abs(lagged) > threshold
    return np.concatenate([today.T, *(lag.T for lag in past)], axis=1)


def choose_threshold(
    instant: Float[np.ndarray, "series series"],
    lagged: Float[np.ndarray, "lags series series"],
    scores: LocalScores,
) -> Threshold:
    """The grid point whose graph has the best extended BIC."""
    graphs: list[np.ndarray] = []
    values: list[float] = []
    dag = strongest_dag(instant)
    past = np.abs(lagged)
    for level in GRID:
        # Nested: the strongest DAG above a level is the part above it of the strongest DAG.
        today = dag & (np.abs(instant) > level)
        parents = np.concatenate([today.T, *(level < lag.T for lag in past)], axis=1)
        if graphs and (parents == graphs[-1]).all():
            values.append(values[-1])
        else:
            values.append(float(score_of(scores, np.arange(scores.targets), parents).sum()))
        graphs.append(parents)
    best = int(np.argmax(values))
    same = [i for i, graph in enumerate(graphs) if (graph == graphs[best]).all()]
    middle = same[len(same) // 2]
    ends = same[0] == 0 or same[-1] == len(GRID) - 1
    return Threshold(GRID[middle], len(same), ends, graphs[best], tuple(values))
