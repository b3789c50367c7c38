"""How much of a learned graph is the data's: block bootstrap, shifted series, rescaled columns."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from atft_model.structure.config import BootstrapConfig, SearchConfig
from atft_model.structure.decide import Decision, Graph, decide
from atft_model.structure.graph_metrics import cpdag
from atft_model.structure.series import Series, Table, make_table

NEAREST_SHIFT = 0.1
"""Share of the length that two shifted series are at least apart from where they were."""

LARGEST_RESCALING = 3.0
"""Columns are multiplied by 10 to a power drawn between minus this and this, signs at random."""


@dataclass(frozen=True)
class Chance:
    """Edges between series, and the same learned from series shifted against each other."""

    edges: int
    shuffled: tuple[int, ...]
    p_value: float
    """Probability of so many edges by chance: upper Poisson tail at the shuffles' rate."""


@dataclass(frozen=True)
class Rescaling:
    """Whether the graph is the same after every column was multiplied by some number."""

    identical: bool
    differing_edges: int


def bootstrap_frequency(
    table: Table,
    decision: Decision,
    search: SearchConfig,
    config: BootstrapConfig,
    rng: np.random.Generator,
) -> Float[np.ndarray, "targets candidates"]:
    """Share of block resamples in which each edge was found.

    Rows carry their own lags, so blocks may be joined anywhere. Each resample searches from the
    learned order and from one random order, with the learned noise shapes.
    """
    length = min(config.block_length, len(table.rows))
    blocks = -(-len(table.rows) // length)
    found = np.zeros(decision.parents.shape)
    few = replace(search, random_starts=1, kept_starts=2)
    for _ in range(config.resamples):
        starts = rng.integers(0, len(table.rows) - length + 1, size=blocks)
        drawn = (starts[:, None] + np.arange(length)).ravel()[: len(table.rows)]
        counts = np.bincount(drawn, minlength=len(table.rows)).astype(float)
        found += decide(table, few, rng, [decision.order], decision.shapes, counts).parents
    return found / max(1, config.resamples)


def against_chance(
    series: Series,
    lags: int,
    decision: Decision,
    search: SearchConfig,
    shuffles: int,
    rng: np.random.Generator,
) -> Chance:
    """Learns again from series shifted in a circle by different amounts each.

    A shift keeps a series' own past and volatility and breaks its ties to the others. The
    statistic is the number of edges between series. A rank among 19 shuffles would call one graph
    of noise in twenty a finding; counts of chance edges are close to Poisson, whose tail goes on.
    """
    few = replace(search, random_starts=1, kept_starts=1)
    edges = edges_between(decision.parents)
    times = len(series.values)
    counts = []
    for _ in range(shuffles):
        shifts = rng.integers(
            int(NEAREST_SHIFT * times), int((1 - NEAREST_SHIFT) * times), len(series.names)
        )
        columns = [np.roll(series.values[:, i], shift) for i, shift in enumerate(shifts)]
        table = make_table(replace(series, values=np.column_stack(columns)), lags)
        again = decide(table, few, rng, [decision.order], decision.shapes)
        counts.append(edges_between(again.parents))
    rate = (sum(counts) + 1) / shuffles
    return Chance(edges, tuple(counts), poisson_tail(edges, rate))


def poisson_tail(count: int, rate: float) -> float:
    """Probability of at least ``count`` events."""
    below = sum(math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(count))
    return max(0.0, 1.0 - below)


def against_rescaling(
    series: Series,
    lags: int,
    decision: Decision,
    search: SearchConfig,
    order: tuple[int, ...] | None,
    seed: int,
) -> Rescaling:
    """Decides again after every column was rescaled, with the same seed and starts.

    Rows without time are compared by their CPDAG: more is not claimed there.
    """
    rng = np.random.default_rng(seed)
    count = len(series.names)
    factors = 10 ** rng.uniform(-LARGEST_RESCALING, LARGEST_RESCALING, count)
    factors *= rng.choice([-1.0, 1.0], count)
    table = make_table(replace(series, values=series.values * factors), lags)
    again = decide(table, search, np.random.default_rng(seed), [order] if order else None)
    first, second = decision.parents, again.parents
    if not lags:
        first, second = cpdag(first.T), cpdag(second.T)
    differing = int((first != second).sum())
    return Rescaling(differing == 0, differing)


def edges_between(parents: Graph) -> int:
    """Edges from one series to another, today's and lagged; a series' own past does not count."""
    targets, candidates = parents.shape
    own = np.arange(candidates)[None, :] % targets == np.arange(targets)[:, None]
    return int((parents & ~own).sum())
