"""The stage that decides the graph: order search, then posterior, then the shape of the noise."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.structure.averaging import Averager, Belief, least_wrong, state_of
from atft_model.structure.config import SearchConfig
from atft_model.structure.density import NORMAL, GaussianDensity, HeavyTailDensity, NoiseShape
from atft_model.structure.density import noise_shape as shape_of
from atft_model.structure.order_search import LocalScores, OrderSearch
from atft_model.structure.posterior import Climber, Prior
from atft_model.structure.series import Table, correlation_of

Graph = Bool[np.ndarray, "targets candidates"]


@dataclass(frozen=True)
class Decision:
    """The graph and what it was decided with."""

    parents: Graph
    """Row j marks the candidate columns (today, then lags) that drive series j."""
    order: tuple[int, ...]
    """Series from causes to effects, one of the orders that fit the graph."""
    log_posterior: float
    """Twice its logarithm, up to a constant of the data."""
    shapes: tuple[NoiseShape, ...]
    distinct_optima: int
    """How many different graphs the starts of the order search ended in."""
    belief: Belief | None = None
    """Rows without time: how probable the graphs are that were averaged over."""
    expected_distance: float | None = None
    """With a belief: pairs whose link the decided graph is expected to have wrong."""


def decide(
    table: Table,
    config: SearchConfig,
    rng: np.random.Generator,
    orders: list[tuple[int, ...]] | None = None,
    shapes: tuple[NoiseShape, ...] | None = None,
    counts: Float[np.ndarray, " rows"] | None = None,
) -> Decision:
    """The best graph over several starting orders.

    Args:
        orders: Orders to start from beside the random ones, such as the gradient stage's.
        shapes: Noise shapes found before; without them tests on the residuals decide.
        counts: How often each row counts, for a resample; the shapes must be given then.
    """
    targets, candidates = table.series, table.rows.shape[1]
    whole = counts is None
    counts = np.ones(len(table.rows)) if counts is None else counts
    correlation = table.correlation if whole else correlation_of(table, counts)
    rows = table.effective_rows
    crowd = 2 * config.extra_penalty * np.log(candidates - 1)
    scores = LocalScores(correlation, rows, np.log(rows) + crowd, targets)
    starts = list(orders or [])
    starts += [tuple(rng.permutation(targets).tolist()) for _ in range(config.random_starts)]
    search = OrderSearch(scores)
    found = sorted((search.improve(start) for start in starts), key=lambda f: -f.score)
    distinct = {f.parents.tobytes(): f.parents for f in found}
    prior = Prior(config.effect_scale, crowd + (0.0 if config.effect_scale else np.log(rows)))
    climber = Climber(GaussianDensity(correlation, rows, targets), prior)
    climbed = [climber.climb(graph) for graph in list(distinct.values())[: config.kept_starts]]
    climbed.sort(key=lambda pair: -pair[0])
    if shapes is None:
        shapes = noise_shapes(table, climbed[0][1], config.normality_level)
    if any(shape != NORMAL for shape in shapes):
        density = HeavyTailDensity(table.rows, table.observed[:, :targets], counts, list(shapes))
        climber = Climber(density, prior)
        distinct_climbed = {graph.tobytes(): graph for _, graph in climbed}
        climbed = [climber.climb(graph) for graph in distinct_climbed.values()]
    total, parents = max(climbed, key=lambda pair: pair[0])
    if not table.lags and config.effect_scale and config.window:
        starts = [graph for _, graph in climbed] + list(distinct.values())
        return _averaged(climber, rows, starts, shapes, config)
    if table.lags and config.effect_scale:
        learned = learned_lag_prior(climber, parents)
        total, parents = Climber(climber.density, learned).climb(parents)
    return Decision(parents, topological_order(parents), total, shapes, len(distinct))


def _averaged(
    climber: Climber,
    rows: float,
    found: list[Graph],
    shapes: tuple[NoiseShape, ...],
    config: SearchConfig,
) -> Decision:
    """The graph expected to be least wrong, given all in the window around those found."""
    starts = list(dict.fromkeys(state_of(graph) for graph in found))
    belief = Averager(climber.density, rows).window(starts, config.window, config.window_graphs)
    choice = least_wrong(belief)
    return Decision(
        choice.parents, topological_order(choice.parents), climber.log_posterior(choice.parents),
        shapes, len(starts), belief, choice.expected_distance,
    )  # fmt: skip


PRIOR_EDGES = 1.0
"""Imagined edges of the first prior's width, and imagined absent ones, that count beside those
found: what few edges say about a whole kind is believed in part."""


def learned_lag_prior(climber: Climber, parents: Graph) -> Prior:
    """The prior with the width and frequency of lagged effects as a first graph has them.

    Effects of yesterday are smaller than today's, a series' own past nearly always counts, and
    another's rarely does: with one width and one cost for all three, weak lags are left out of
    short series. So each kind of lagged edge (own and across, per lag) takes its own from the
    graph found with the first prior (empirical Bayes: George and Foster 2000). Today's edges keep
    theirs: the assumption that orients them is not the data's to change.
    """
    targets, candidates = parents.shape
    scale, cost = climber.scale.copy(), climber.cost.copy()
    fits = [climber.fit(t, tuple(np.flatnonzero(row).tolist())) for t, row in enumerate(parents)]
    noise = np.array([fit.noise_variance for fit in fits])
    squares = np.zeros(parents.shape)
    for target, (row, fit) in enumerate(zip(parents, fits, strict=True)):
        chosen = np.flatnonzero(row)
        squares[target, chosen] = fit.weights**2 * noise[chosen % targets] / noise[target]
    column = np.arange(candidates)[None, :]
    own = column % targets == np.arange(targets)[:, None]
    for lag in range(1, candidates // targets):
        for kind in (own, ~own):
            edges = kind & (column // targets == lag)
            found, possible = parents[edges].sum(), edges.sum()
            scale[edges] = np.sqrt(
                (squares[edges].sum() + PRIOR_EDGES * climber.scale[edges] ** 2)
                / (found + PRIOR_EDGES)
            )
            absent = possible - found
            cost[edges] = 2 * np.log((absent + PRIOR_EDGES) / (found + PRIOR_EDGES))
    return Prior(scale, cost)


def noise_shapes(table: Table, parents: Graph, level: float) -> tuple[NoiseShape, ...]:
    """The shape of each series' residuals on its parents."""
    shapes = []
    for target, mask in enumerate(parents):
        known = table.observed[:, target]
        X, y = table.rows[known][:, mask], table.rows[known, target]
        residuals = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
        shapes.append(shape_of(residuals, level / len(parents)))
    return tuple(shapes)


def topological_order(parents: Graph) -> tuple[int, ...]:
    """Series from causes to effects (Kahn 1962), by index where the graph leaves it open.

    A cycle leaves its members out: the order is then shorter than the series are many.
    """
    targets = len(parents)
    waiting = {t: set(np.flatnonzero(parents[t, :targets]).tolist()) for t in range(targets)}
    order: list[int] = []
    while ready := [t for t, causes in waiting.items() if causes <= set(order)]:
        order.append(ready[0])
        del waiting[ready[0]]
    return tuple(order)
