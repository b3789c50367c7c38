"""The acyclicity of weights that are being learned: the log-det measure and its domain."""

import torch
from jaxtyping import Float
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
