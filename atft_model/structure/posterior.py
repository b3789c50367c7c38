"""The last word on the graph: a posterior whose prior speaks in noise units, climbed edge by edge.

The extended BIC of ``order_search`` cannot tell the graphs of one Markov class apart, and in small
dense graphs several classes come within a point of each other. What separates them without looking
at any column's unit is how large the effects would have to be: the effect of one standard deviation
of the parent's *own noise*, measured in standard deviations of the child's own noise, is of
order one in the graph that made the data and needs to be large and cancelling in its rivals. So
effects in noise units get a normal prior of width ``effect_scale``, and graphs are compared by the
Laplace approximation of their marginal likelihood. Rescaling a column leaves noise units as they
are. The prior is an assumption: see docs/structure.md for what it does where noise sizes differ.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.structure.dag import Reach
from atft_model.structure.density import Density, Fit
from atft_model.structure.order_search import SMALLEST_GAIN

MAX_STEPS = 500

Parents = tuple[int, ...]


@dataclass(frozen=True)
class Prior:
    """What is believed about effects before the data."""

    effect_scale: float | Float[np.ndarray, "targets candidates"]
    """Width of the normal prior of an effect in noise units, of all or of each possible edge; the
    number 0 leaves the extended BIC."""
    edge_cost: float | Float[np.ndarray, "targets candidates"]
    """Cost of an edge: twice the log odds against it before the data, plus, where
    ``effect_scale`` is 0, the log of the rows."""


class Climber:
    """Adds, removes and reverses single edges while the posterior rises."""

    def __init__(self, density: Density, prior: Prior) -> None:
        self.density = density
        self.prior = prior
        self._fits: dict[tuple[int, Parents], Fit] = {}
        edges = density.targets, density.candidates
        self.by_scale = bool(np.any(prior.effect_scale))
        self.scale = np.broadcast_to(np.asarray(prior.effect_scale, dtype=float), edges)
        self.cost = np.broadcast_to(np.asarray(prior.edge_cost, dtype=float), edges)

    def climb(
        self, start: Bool[np.ndarray, "targets candidates"]
    ) -> tuple[float, Bool[np.ndarray, "targets candidates"]]:
        """The best graph reached from ``start`` and twice its log posterior, up to a constant."""
        state = _State(self, [tuple(np.flatnonzero(row).tolist()) for row in start])
        for _ in range(MAX_STEPS):
            best, best_total = None, state.total + SMALLEST_GAIN
            for change in self._changes(state):
                total = state.total_after(change)
                if total > best_total:
                    best, best_total = change, total
            if best is None:
                break
            state.apply(best)
        graph = np.zeros_like(start)
        for target, parents in enumerate(state.parents):
            graph[target, list(parents)] = True
        return state.total, graph

    def log_posterior(self, graph: Bool[np.ndarray, "targets candidates"]) -> float:
        """Twice the log posterior of a given graph, up to a constant."""
        return _State(self, [tuple(np.flatnonzero(row).tolist()) for row in graph]).total

    def fit(self, target: int, parents: Parents) -> Fit:
        """The remembered regression of ``target`` on ``parents``."""
        key = (target, parents)
        if key not in self._fits:
            self._fits[key] = self.density.fit(target, parents)
        return self._fits[key]

    def _changes(self, state: "_State"):
        """Every acyclic single-edge change, as {target: new parents}."""
        reach = Reach(state.arrows())
        for target, parents in enumerate(state.parents):
            for gone in parents:
                left = tuple(p for p in parents if p != gone)
                yield {target: left}
                if gone < self.density.targets and not reach.another_way(gone, target):
                    yield {target: left, gone: _with(state.parents[gone], target)}
            for new in self.density.promising(target, parents):
                if new >= self.density.targets or not reach.closes_cycle(new, target):
                    yield {target: _with(parents, new)}


def _with(parents: Parents, new: int) -> Parents:
    return tuple(sorted((*parents, new)))


class _State:
    """One graph with everything its posterior is made of."""

    def __init__(self, climber: Climber, parents: list[Parents]) -> None:
        self.climber = climber
        self.parents = parents
        targets = climber.density.targets
        self.own = np.zeros(targets)
        self.log_noise = np.zeros(targets)
        self.squares = np.zeros((targets, targets))
        self.counts = np.zeros((targets, targets))
        for target in range(targets):
            self._set(target, parents[target])
        self.total = self._total()

    def _set(self, target: int, parents: Parents) -> None:
        climber, targets = self.climber, len(self.own)
        fit = climber.fit(target, parents)
        edges = list(parents)
        self.log_noise[target] = np.log(fit.noise_variance)
        self.squares[:, target] = 0.0
        self.counts[:, target] = 0.0
        self.own[target] = fit.log_likelihood - climber.cost[target, edges].sum()
        if climber.by_scale and parents:
            units = np.array(parents) % targets
            scale = climber.scale[target, edges]
            np.add.at(self.squares[:, target], units, (fit.weights / scale) ** 2)
            np.add.at(self.counts[:, target], units, 1.0)
            self.own[target] -= fit.log_information + len(parents) * self.log_noise[target]
            self.own[target] -= 2 * np.log(scale).sum()

    def _total(self) -> float:
        """Twice the log posterior: likelihoods, volumes and the prior of effects."""
        if not self.climber.by_scale:
            return float(self.own.sum())
        noise = np.exp(self.log_noise)
        size = noise @ self.squares @ (1 / noise)
        return float(self.own.sum() + self.counts.sum(axis=1) @ self.log_noise - size)

    def total_after(self, change: dict[int, Parents]) -> float:
        """The posterior with some targets' parents replaced; the state stays as it is."""
        kept = [
            (t, self.own[t], self.log_noise[t], self.squares[:, t].copy(), self.counts[:, t].copy())
            for t in change
        ]
        for target, parents in change.items():
            self._set(target, parents)
        total = self._total()
        for t, own, log_noise, squares, counts in kept:
            self.own[t], self.log_noise[t] = own, log_noise
            self.squares[:, t], self.counts[:, t] = squares, counts
        return total

    def apply(self, change: dict[int, Parents]) -> None:
        """Replaces some targets' parents."""
        for target, parents in change.items():
            self.parents[target] = parents
            self._set(target, parents)
        self.total = self._total()

    def arrows(self) -> Bool[np.ndarray, "targets targets"]:
        """Today's edges, [cause, effect]."""
        targets = len(self.own)
        arrows = np.zeros((targets, targets), dtype=bool)
        for target, parents in enumerate(self.parents):
            arrows[[p for p in parents if p < targets], target] = True
        return arrows
