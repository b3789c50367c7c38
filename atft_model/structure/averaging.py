"""Rows without time: the graph that is expected to be least wrong, given all that fit well.

Without lags the data seldom single out one graph. The most probable one can be an odd one out
among many that agree on other links, so the decision is Bayes's: of the graphs within Occam's
window (Madigan and Raftery 1994: those not much less probable than the best), found best first
from where the search ended, the one with the smallest expected distance. The probabilities say how
sure each edge is. Graphs are compared as in ``posterior.py``, in noise units, but with the prior
of ``effects.py``, which asks neither how large effects are nor how many.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.structure.dag import Reach
from atft_model.structure.density import Density, Fit
from atft_model.structure.effects import effects_log_prior, links_log_prior
from atft_model.structure.graph_metrics import cpdag
from atft_model.structure.posterior import Parents

COMPARED = 0.999
"""Share of the probability whose graphs are compared with each other."""

MOST_COMPARED = 400
AT_ONCE = 512
"""Graphs scored in one NumPy call: bounds memory."""

State = tuple[Parents, ...]
"""A graph: the parents of every series."""

Change = dict[int, Parents]
"""Some series' new parents."""


@dataclass(frozen=True)
class Belief:
    """The graphs in the window, most probable first."""

    graphs: Bool[np.ndarray, "graphs targets targets"]
    """Row j of each marks the parents of series j."""
    probabilities: Float[np.ndarray, " graphs"]
    """Given that the graph is one of them; they sum to 1."""
    complete: bool
    """Whether the window was searched to its edge, or the search reached its limit of graphs."""

    def edge_probability(self) -> Float[np.ndarray, "targets targets"]:
        """[j, i]: the probability of i → j."""
        return np.einsum("g,gji->ji", self.probabilities, self.graphs)


@dataclass(frozen=True)
class Choice:
    """The graph that is expected to be least wrong."""

    parents: Bool[np.ndarray, "targets targets"]
    expected_distance: float
    """Pairs whose link differs between its CPDAG and the true one, on average over the belief."""


class Averager:
    """Twice the log posterior of any graph of today's series, many at a time."""

    def __init__(self, density: Density, rows: float) -> None:
        """``rows``: the effective number of rows behind the density."""
        if density.candidates != density.targets:
            raise ValueError("lagged candidates: averaging is for rows without time")
        self.density, self.targets = density, density.targets
        self.price = float(np.log(rows))
        self._fits: dict[tuple[int, Parents], Fit] = {}

    def log_posteriors(self, states: list[State]) -> Float[np.ndarray, " graphs"]:
        """Of whole graphs, up to a constant of the data."""
        empty: State = ((),) * self.targets
        return self._after(empty, [dict(enumerate(state)) for state in states])

    def window(self, starts: list[State], width: float, most: int) -> Belief:
        """Every graph found within ``width`` of the best, in twice the log posterior.

        Args:
            starts: Graphs to begin from.
            most: Graphs whose neighbours are scored, at most; those of the most probable first.
        """
        seen = dict(zip(starts, self.log_posteriors(starts).tolist(), strict=True))
        best, waiting = max(seen.values()), [(-value, state) for state, value in seen.items()]
        heapq.heapify(waiting)
        expanded = 0
        while waiting and -waiting[0][0] >= best - width and expanded < most:
            state = heapq.heappop(waiting)[1]
            changes = {_changed(state, change): change for change in self._changes(state)}
            new = {other: change for other, change in changes.items() if other not in seen}
            values = self._after(state, list(new.values())).tolist()
            for other, value in zip(new, values, strict=True):
                seen[other] = value
                best = max(best, value)
                if value >= best - width:
                    heapq.heappush(waiting, (-value, other))
            expanded += 1
        kept = sorted((item for item in seen.items() if item[1] >= best - width),
                      key=lambda item: -item[1])  # fmt: skip
        weights = np.exp((np.array([value for _, value in kept]) - best) / 2)
        complete = not waiting or -waiting[0][0] < best - width
        graphs = np.array([self._matrix(state) for state, _ in kept])
        return Belief(graphs, weights / weights.sum(), complete)

    def fit(self, target: int, parents: Parents) -> Fit:
        """The remembered regression of ``target`` on ``parents``."""
        key = (target, parents)
        if key not in self._fits:
            self._fits[key] = self.density.fit(target, parents)
        return self._fits[key]

    def _changes(self, state: State) -> Iterator[Change]:
        """Every acyclic single-edge change, and edges turned with their ends' parents exchanged."""
        reach = Reach(self._matrix(state).T)
        for target, parents in enumerate(state):
            for cause in range(self.targets):
                if cause in parents:
                    left = tuple(p for p in parents if p != cause)
                    yield {target: left}
                    if not reach.another_way(cause, target):
                        yield from self._turned(state, cause, target, left)
                elif not reach.closes_cycle(cause, target):
                    yield {target: tuple(sorted((*parents, cause)))}

    def _turned(self, state: State, cause: int, target: int, left: Parents) -> Iterator[Change]:
        """cause → target turned around.

        Turned alone, an edge often leaves a graph that fits badly, with good ones behind it. With
        the parents of both ends given to each the fit stays; what is then idle is dropped.
        """
        both = tuple(sorted({*left, *state[cause]}))
        alone = tuple(sorted((*state[cause], target)))
        shared = self._needed(cause, tuple(sorted((*both, target))))
        for first in dict.fromkeys((left, self._needed(target, both))):
            for second in dict.fromkeys((alone, shared)):
                yield {target: first, cause: second}

    def _needed(self, target: int, parents: Parents) -> Parents:
        """The parents left when the least useful go, one by one, as long as BIC allows it."""
        while parents:
            fewer = [tuple(p for p in parents if p != gone) for gone in parents]
            fits = [self.fit(target, some).log_likelihood for some in fewer]
            best = int(np.argmax(fits))
            if fits[best] < self.fit(target, parents).log_likelihood - self.price:
                break
            parents = fewer[best]
        return parents

    def _after(self, state: State, changes: list[Change]) -> np.ndarray:
        parts = [
            self._scored(state, changes[first : first + AT_ONCE])
            for first in range(0, len(changes), AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _scored(self, state: State, changes: list[Change]) -> np.ndarray:
        """Twice the log posterior after each change.

        Per series: the likelihood, the volume of its effects (Laplace) and their squares with
        half a look at their errors, which keeps the logarithm of an effect near 0 finite.
        """
        graphs, targets = len(changes), self.targets
        base = [self._piece(target, parents) for target, parents in enumerate(state)]
        own, noise, logs = (
            np.tile(np.array([piece[k] for piece in base], dtype=float), (graphs, 1))
            for k in range(3)
        )
        squares = np.tile(np.array([piece[3] for piece in base]), (graphs, 1, 1))
        places = [(i, target) for i, change in enumerate(changes) for target in change]
        pieces = [self._piece(target, change[target]) for change in changes for target in change]
        if pieces:
            line, target = np.array(places).T
            for k, table in enumerate((own, noise, logs, squares)):
                table[line, target] = np.array([piece[k] for piece in pieces])
        edges = squares > 0  # [graph, effect, cause]
        count = edges.sum(axis=(1, 2))
        # The cause's noise over the effect's, per edge: effects in noise units.
        ratios = (edges.sum(axis=1) * noise).sum(axis=1) - (edges.sum(axis=2) * noise).sum(axis=1)
        size = np.einsum("gji,gi,gj->g", squares, np.exp(noise), np.exp(-noise))
        prior = effects_log_prior(count, size, logs.sum(axis=1) + ratios)
        pairs = targets * (targets - 1) // 2
        return own.sum(axis=1) + ratios + prior + links_log_prior(count, pairs)

    def _piece(self, target: int, parents: Parents) -> tuple[float, float, float, np.ndarray]:
        """Likelihood with volume, log noise variance, and effects squared: logs, and by cause."""
        fit = self.fit(target, parents)
        squares = np.zeros(self.targets)
        sizes = fit.weights**2 + fit.variances
        squares[list(parents)] = sizes
        volume = len(parents) * np.log(2 * np.pi) - fit.log_information
        own = fit.log_likelihood + volume
        return own, float(np.log(fit.noise_variance)), float(np.log(sizes).sum()), squares

    def _matrix(self, state: State) -> np.ndarray:
        graph = np.zeros((self.targets, self.targets), dtype=bool)
        for target, parents in enumerate(state):
            graph[target, list(parents)] = True
        return graph


def state_of(parents: Bool[np.ndarray, "targets targets"]) -> State:
    """The graph as tuples, which can be looked up."""
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in parents)


def least_wrong(belief: Belief) -> Choice:
    """The graph whose CPDAG is on average nearest to the true one's, more probable ones first.

    Distance is the number of pairs whose link differs; directions that no data could tell apart
    are not held against a graph.
    """
    enough = int(np.searchsorted(np.cumsum(belief.probabilities), COMPARED)) + 1
    few = min(enough, MOST_COMPARED, len(belief.graphs))
    weights = belief.probabilities[:few] / belief.probabilities[:few].sum()
    classes = np.array([cpdag(graph.T) for graph in belief.graphs[:few]]).astype(int)
    upper = np.triu_indices(belief.graphs.shape[1], 1)
    links = (classes + 2 * classes.transpose(0, 2, 1))[:, upper[0], upper[1]]
    expected = np.array([weights @ (links != one).sum(axis=1) for one in links])
    best = int(np.flatnonzero(expected <= expected.min() + 1e-9)[0])
    return Choice(belief.graphs[best], float(expected[best]))


def _changed(state: State, change: Change) -> State:
    return tuple(change.get(target, parents) for target, parents in enumerate(state))
