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


class Reach:
    """Who is whose descendant in a DAG ``graph[cause, effect]``."""

    def __init__(self, graph: Bool[np.ndarray, "series series"]) -> None:
        self.graph = graph
        self.descendants = graph.copy()
        for middle in range(len(graph)):
            self.descendants |= np.outer(self.descendants[:, middle], self.descendants[middle])

    def closes_cycle(self, cause: int, effect: int) -> bool:
        """Whether an edge from cause to effect would."""
        return cause == effect or bool(self.descendants[effect, cause])

    def another_way(self, cause: int, effect: int) -> bool:
        """Whether a path from cause to effect exists besides the edge itself."""
        through = self.graph[cause].copy()
        through[effect] = False
        return bool((through & self.descendants[:, effect]).any())
