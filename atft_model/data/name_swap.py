"""Neighbours who swapped names at random: what a graph is without its meaning. No torch."""

import numpy as np
from jaxtyping import Int


def swapped_names(
    neighbours: Int[np.ndarray, "stocks k"], position: int, seed: int = 1337
) -> Int[np.ndarray, "stocks k"]:
    """The neighbours of one refresh with their names swapped; -1 stays -1.

    Only stocks that are somebody's neighbour swap names, so none without a bar comes in. The draw
    depends on the seed and on the refresh date's ``position`` alone, not on other refreshes.
    """
    present = np.unique(neighbours[neighbours >= 0])
    if len(present) < 3:
        return neighbours
    own = np.arange(len(neighbours))[:, None]
    order = np.random.default_rng([seed, position]).permutation(present)
    first = np.full(len(neighbours), -1, dtype=neighbours.dtype)
    first[order] = np.roll(order, 1)  # nobody keeps the name
    after = np.full(len(neighbours), -1, dtype=neighbours.dtype)
    after[order] = np.roll(order, 2)
    swapped = np.where(neighbours >= 0, first[neighbours], -1)
    # No stock becomes its own neighbour: it takes the next name instead.
    return np.where(swapped == own, np.where(neighbours >= 0, after[neighbours], -1), swapped)
