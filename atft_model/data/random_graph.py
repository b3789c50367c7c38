"""A control: the stock graph with its meaning taken out and its shape kept. No torch."""

from dataclasses import replace

import numpy as np

from atft_model.data.graph import StockGraph
from atft_model.data.name_swap import swapped_names


def random_graph(graph: StockGraph, seed: int = 1337) -> StockGraph:
    """The same graph after its neighbours swapped names at random, anew at each refresh.

    Every stock keeps as many neighbours, with the same correlations and links beside them; who they
    are is chance. A model that does as well with it learned nothing from its neighbours.
    """
    swapped = [
        swapped_names(np.asarray(neighbours), int(position), seed)
        for neighbours, position in zip(graph.neighbours, graph.refresh, strict=True)
    ]
    return replace(graph, neighbours=np.stack(swapped), hash="")
