"""What is believed of a graph's links and their effects when neither size nor number is known.

The effects are taken to be alike, not to have a known size: the square of an effect in noise
units is gamma distributed with a mean and a shape that the graph's own effects tell, averaged over
a grid (shape 1/2 is a normal effect; above it, effects near 0 are rare, as with the moment prior
of Johnson and Rossell 2010). Because size and shape are averaged out for every graph anew, a graph
cannot confirm itself by having set them. Links are as many as there are: every number is equally
likely beforehand, and so is every choice of so many pairs (Scott and Berger 2010).
"""

import math

import numpy as np
from jaxtyping import Float, Int

SHAPES = (0.5, 1.0, 2.0, 4.0)
MEAN_SQUARES = tuple(np.geomspace(0.15, 8.0, 9).tolist())
"""Of an effect in noise units: from 0.4 to 2.8 standard deviations."""


def effects_log_prior(
    count: Int[np.ndarray, " graphs"],
    squares: Float[np.ndarray, " graphs"],
    logs: Float[np.ndarray, " graphs"],
) -> Float[np.ndarray, " graphs"]:
    """Twice the log of the density of a graph's effects, size and shape averaged out.

    Args:
        count: How many effects each graph has.
        squares: Sum of their squares, in noise units.
        logs: Sum of the logarithms of their squares.
    """
    shape, mean = (grid.ravel() for grid in np.meshgrid(SHAPES, MEAN_SQUARES))
    # Per effect b: shape^shape / (Γ(shape) mean^shape) |b|^(2 shape − 1) exp(−shape b² / mean).
    volume = shape * np.log(shape / mean) - np.array([math.lgamma(one) for one in shape])
    terms = (
        count[:, None] * volume + (shape - 0.5) * logs[:, None] - shape / mean * squares[:, None]
    )
    return 2 * (np.logaddexp.reduce(terms, axis=1) - np.log(len(shape)))


def links_log_prior(count: Int[np.ndarray, " graphs"], pairs: int) -> Float[np.ndarray, " graphs"]:
    """Twice the log probability of a choice of ``count`` linked pairs with directions.

    Which directions together are acyclic is left out: graphs are compared one by one.
    """
    choices = np.array([math.log(math.comb(pairs, linked)) for linked in range(pairs + 1)])
    return -2 * (choices[count] + count * np.log(2.0))
