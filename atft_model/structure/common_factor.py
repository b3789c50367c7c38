"""Is a factor missing that drives most series, such as a market nobody measured apart from them?

A hidden factor links every pair of series, so a graph learned without it is dense and wrong. Here a
graph and one unobserved root are looked for together. The score is the extended BIC with the
factor integrated out; a gain over the best graph without one raises the flag. Where it is wanted,
the factor is then given to the learner as an exogenous series (``with_factor``).

The search alternates (stochastic EM: Celeux and Diebolt 1985, after the structural EM of Friedman
1997): a factor is drawn from its posterior, the learner's own stage decides a graph given the
draw, and the model is fitted to that graph. It has to be a draw. The posterior's *mean* is a
function of the series themselves: with it taken out they are tied to each other by construction,
exactly as with the average of the same series that usually stands for the market.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from atft_model.structure.config import SearchConfig
from atft_model.structure.dag import is_acyclic
from atft_model.structure.decide import decide
from atft_model.structure.factor_model import FactorFit, FactorModel, Parents
from atft_model.structure.order_search import LocalScores, OrderSearch
from atft_model.structure.series import Series, Table, make_table

NAME = "common_factor"
PERVASIVE = 0.5
"""A factor is called so when it drives at least this share of the series."""
MIN_SERIES = 5
"""Among fewer series the correlations do not tell a factor from links."""
Draw = Literal["exact", "draw", "wide"]
Use = Literal["flag", "take_out"]
FIRST_ROUNDS = 3
"""Rounds that only alternate; what they reach tells whether looking on is worth it."""
UNLIKELY = 0.5
"""A factor that saves less than minus this share of its own price after them is not there."""
MORE_ROUNDS: tuple[Draw | Literal["thin"], ...] = ("exact", "draw", "wide", "thin") * 6
"""Where each further round starts: at the graph decided given a draw with the posterior's exact
moments, given one as it falls, given one with twice its spread; or at half of the best edges."""
PATIENCE = {"flag": 2, "take_out": 6}
"""Further rounds without a better graph that end the search, by what is done about a factor."""
TRIED = 4
"""Most promising new edges, and least useful old ones, that are fitted per step of the climb."""
SLACK = 1.5
"""How far an edge's gain at the factor's present values may be from what a new fit gives."""
WORTHWHILE = 0.1
"""A better graph raises the score by more: fits end within less of their best."""
MAX_STEPS = 500
STUCK = 3
"""Rounds without a better graph that end the search."""


@dataclass(frozen=True)
class CommonFactor:
    """Evidence for one unobserved common driver.

    Attributes:
        bic_gain: Extended BIC saved by the factor; above 0 speaks for it.
        driven_share: Share of series that the factor drives.
        edges_without: Edges between series, today's and lagged, of the best graph without it.
    """

    fit: FactorFit
    parents: Parents
    bic_gain: float
    driven_share: float
    edges_without: int

    @property
    def likely(self) -> bool:
        """Whether the factor explains more than it costs, and is one of most series."""
        enough = len(self.fit.noise) >= MIN_SERIES
        return enough and self.bic_gain > 0 and self.driven_share >= PERVASIVE

    def facts(self) -> dict[str, Any]:
        """What the record keeps."""
        return {
            "likely": self.likely, "bic_gain": self.bic_gain, "driven_share": self.driven_share,
            "edges_without": self.edges_without, "edges_with": int(self.parents.sum()),
            "unknown_share": float(self.fit.covariance[0]),
        }  # fmt: skip


def find_common_factor(
    series: Series,
    lags: int,
    config: SearchConfig,
    seed: int,
    use: Use = "flag",
    order: tuple[int, ...] | None = None,
) -> CommonFactor:
    """The best graph with a factor that was found, against the best one without.

    Args:
        use: A flag needs to know whether there is one; to take it out, the graph has to be right
            too, which takes a longer search.
        order: Where the search for a graph without a factor starts, beside a random order.
    """
    rng = np.random.default_rng(seed)
    table = make_table(series, lags)
    rows, count = table.effective_rows, table.series
    cost = float(np.log(rows) + 2 * config.extra_penalty * np.log(table.rows.shape[1] - 1))
    price = cost * (lags + 1)
    search = OrderSearch(LocalScores(table.correlation, rows, cost, count))
    starts = [order] if order else []
    starts.append(tuple(rng.permutation(count).tolist()))
    plain = max((search.improve(start) for start in starts), key=lambda found: found.score)
    to_beat = plain.score - rows * count + count * price
    climber = _Climber(FactorModel(table), cost)
    few = replace(config, random_starts=1, kept_starts=2)

    def decided(found: _Found, kind: Draw) -> Parents:
        known = make_table(with_factor(series, table, found.fit, rng, kind), lags)
        return decide(known, few, rng).parents

    found = climber.at(_own_past(table))
    for _ in range(FIRST_ROUNDS):
        found = climber.at(decided(found, "exact"), found.fit)
    gain = found.score - to_beat
    if gain > -UNLIKELY * price * count and (use == "take_out" or gain < 0):
        found = climber.climb(found)
        waited = 0
        for kind in MORE_ROUNDS:
            parents = _thinned(found, table, rng) if kind == "thin" else decided(found, kind)
            reached = climber.climb(climber.at(parents, found.fit))
            better = reached.score > found.score + WORTHWHILE
            found, waited = (reached, 0) if better else (found, waited + 1)
            if waited == PATIENCE[use]:
                break
    gains = climber.model.factor_gains(found.parents, found.fit)
    return CommonFactor(
        found.fit, found.parents, float(found.score - to_beat), float(np.mean(gains > price)),
        int(plain.parents.sum()),
    )  # fmt: skip


def _thinned(found: "_Found", table: Table, rng: np.random.Generator) -> Parents:
    """The graph with half of its edges, drawn; every series keeps its own past."""
    return found.parents & (_own_past(table) | (rng.random(found.parents.shape) < 0.5))


def with_factor(
    series: Series, table: Table, fit: FactorFit, rng: np.random.Generator, kind: Draw = "exact"
) -> Series:
    """The series with a draw of the factor as one more exogenous one; the first days go.

    Args:
        table: Of ``series``; ``fit`` is its.
    """
    white = rng.standard_normal(len(fit.values))
    error = np.fft.irfft(np.fft.rfft(white) * np.sqrt(fit.spectrum), len(white))
    if kind == "wide":
        error *= 2
    if kind == "exact":
        error = _without_chance(error, table, fit)
    lags = table.lags
    factor = (fit.values + error)[:, None]
    known = factor if series.exogenous is None else np.hstack([series.exogenous[lags:], factor])
    return Series(series.values[lags:], series.names, known, (*series.exogenous_names, NAME))


def _without_chance(error: np.ndarray, table: Table, fit: FactorFit) -> np.ndarray:
    """A draw's error with the size it is expected to have, and unrelated to anything known.

    By chance a draw goes along with some series, by about one over the root of the days; taken
    out, that ties series to each other. So what it shares with them, today and before, goes.
    """
    known = np.column_stack([table.rows[:, : table.series], fit.values])
    near = range(-table.lags, table.lags + 1)
    design = np.column_stack([np.ones(len(error)), *(np.roll(known, k, axis=0) for k in near)])
    error = error - design @ np.linalg.lstsq(design, error, rcond=None)[0]
    return error * np.sqrt(fit.covariance[0] / error.var())


def _own_past(table: Table) -> Parents:
    """Every series driven by its own past alone."""
    count = table.series
    return np.hstack([np.zeros((count, count), bool), *[np.eye(count, dtype=bool)] * table.lags])


@dataclass(frozen=True)
class _Found:
    parents: Parents
    fit: FactorFit
    score: float


class _Climber:
    """Adds, removes and reverses single edges while the score with a factor rises."""

    def __init__(self, model: FactorModel, cost: float) -> None:
        self.model, self.cost = model, cost

    def at(
        self, parents: Parents, start: FactorFit | None = None, needed: float = -np.inf
    ) -> _Found:
        """A graph's fit; it ends early where the score that is needed is out of reach."""
        paid = float(self.cost * parents.sum())
        fit = self.model.fit(parents, start, needed + paid)
        return _Found(parents, fit, fit.log_likelihood - paid)

    def climb(self, here: _Found) -> _Found:
        """The best graph that single changes lead to; reversals where nothing else helps."""
        for _ in range(MAX_STEPS):
            better = self._best(self._added_or_removed(here), here)
            better = better or self._best(self._reversed(here), here)
            if better is None:
                break
            here = better
        return here

    def _best(self, graphs: Iterator[Parents], here: _Found) -> _Found | None:
        tried = [self.at(parents, here.fit, here.score) for parents in graphs]
        best = max(tried, key=lambda found: found.score, default=None)
        return best if best and best.score > here.score + WORTHWHILE else None

    def _added_or_removed(self, here: _Found) -> Iterator[Parents]:
        gain, loss = self.model.single_edges(here.parents, here.fit)
        for place in np.argsort(loss, axis=None)[:TRIED].tolist():
            if loss.flat[place] < self.cost * SLACK:
                yield _changed(here.parents, place, False)
        tried = 0
        for place in np.argsort(-gain, axis=None).tolist():
            if gain.flat[place] < self.cost / SLACK or tried == TRIED:
                break
            if not self._closes_cycle(here.parents, *divmod(place, gain.shape[1])):
                tried += 1
                yield _changed(here.parents, place, True)

    def _reversed(self, here: _Found) -> Iterator[Parents]:
        today = here.parents[:, : self.model.series]
        for target, cause in np.argwhere(today).tolist():
            turned = here.parents.copy()
            turned[target, cause] = False
            if not self._closes_cycle(turned, cause, target):
                turned[cause, target] = True
                yield turned

    def _closes_cycle(self, parents: Parents, target: int, cause: int) -> bool:
        count = self.model.series
        if cause >= count:
            return False
        graph = parents[:, :count].T.copy()
        graph[cause, target] = True
        return not is_acyclic(graph)


def _changed(parents: Parents, place: int, present: bool) -> Parents:
    changed = parents.copy()
    changed.flat[place] = present
    return changed
