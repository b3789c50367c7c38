"""Acyclicity of a weighted graph: the log-det measure, its domain, and pruning to a DAG."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

LARGEST_RADIUS = 0.9
"""Spectral radius of W∘W to which a step that left the domain is pulled back."""


def log_det_acyclicity(adjacency: Float[Tensor, "series series"]) -> Float[Tensor, ""]:
    """−log det(I − W∘W): 0 exactly for a DAG, positive else, and blind to no cycle's length.

    DAGMA (Bello, Aragam, Ravikumar 2022) with s = 1. Defined where the spectral radius of W∘W is
    below 1; ``pull_into_domain`` keeps it there.
    """
    identity = torch.eye(len(adjacency), dtype=adjacency.dtype)
    return -torch.linalg.slogdet(identity - adjacency * adjacency)[1]


@torch.no_grad()
def pull_into_domain(adjacency: Float[Tensor, "series series"]) -> bool:
    """Shrinks ``adjacency`` in place where a step left the domain; True when it did."""
    radius = torch.linalg.eigvals(adjacency * adjacency).abs().max()
    if radius < 1:
        return False
    adjacency *= torch.sqrt(LARGEST_RADIUS / radius)
    return True


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
