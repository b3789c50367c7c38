"""Directed acyclic graphs: whether one is, and pruning weights to one. NumPy only, no torch."""

import numpy as np
from jaxtyping import Bool, Float


def is_acyclic(graph: Bool[np.ndarray, "series series"]) -> bool:
    """Whether no series reaches itself (Kahn 1962: causes are taken away until none is left)."""
    left = np.arange(len(graph))
    while len(left):
        roots = ~graph[np.ix_(left, left)].any(axis=0)
        if not roots.any():
            return False
        left = left[~roots]
    return True


def strongest_dag(
    weights: Float[np.ndarray, "series series"],
) -> Bool[np.ndarray, "series series"]:
    """Edges taken by falling size, each kept unless it would close a cycle; zeros are no edges."""
    dag = np.zeros(weights.shape, dtype=bool)
    reach = np.eye(len(weights), dtype=bool)
    order = np.argsort(-np.abs(weights), axis=None, kind="stable")
    for cause, effect in zip(*np.unravel_index(order, weights.shape), strict=True):
        if weights[cause, effect] == 0:
            break
        if cause != effect and not reach[effect, cause]:
            dag[cause, effect] = True
            reach |= np.outer(reach[:, cause], reach[effect])
    return dag
