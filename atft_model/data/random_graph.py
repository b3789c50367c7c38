"""A control: the stock graph with its meaning taken out and its shape kept. No torch."""

from dataclasses import replace

import numpy as np

from atft_model.data.graph import StockGraph


def random_graph(graph: StockGraph, seed: int = 1337) -> StockGraph:
    """The same graph after its neighbours swapped names at random, anew at each refresh.

    Every stock keeps as many neighbours, with the same correlations beside them; who they are is
    chance. A model that does as well with it learned nothing from its neighbours. Only stocks that
    are somebody's neighbour swap names, so none without a bar comes in.
    """
    rng = np.random.default_rng(seed)
    neighbours = np.array(graph.neighbours)
    own = np.arange(neighbours.shape[1])[:, None]
    for refresh in neighbours:
        present = np.unique(refresh[refresh >= 0])
        if len(present) < 3:
            continue
        order = rng.permutation(present)
        renamed = np.full(neighbours.shape[1], -1, dtype=neighbours.dtype)
        renamed[order] = np.roll(order, 1)  # nobody keeps the name
        after = np.full(neighbours.shape[1], -1, dtype=neighbours.dtype)
        after[order] = np.roll(order, 2)
        swapped = np.where(refresh >= 0, renamed[refresh], -1)
        # No stock becomes its own neighbour: it takes the next name instead.
        refresh[:] = np.where(swapped == own, np.where(refresh >= 0, after[refresh], -1), swapped)
    return replace(graph, neighbours=neighbours, hash="")
