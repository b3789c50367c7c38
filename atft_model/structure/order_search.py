"""Which DAG explains a correlation matrix best: a search over orders, scale-free by construction.

An order of the series says who may be whose parent; given an order, each series picks its parents
greedily (grow, then shrink) by an extended BIC, lagged series being always allowed. The search
moves one series at a time to its best place until no move helps (BOSS, Andrews et al. 2023). It
reads only correlations, so no column's unit matters.

All greedy picks of one move are computed together: a few hundred small regressions per numpy call.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

SMALLEST_GAIN = 1e-6
"""A move must raise the score by more than this: rounding never decides between equal graphs."""

COLLINEAR = 1e-6
"""Share of a candidate's variance that must be left after its rivals for it to be considered."""

MAX_SWEEPS = 50
MAX_PARENTS = 24


@dataclass(frozen=True)
class LocalScores:
    """The extended BIC of one series given parents, from correlations of all candidates.

    The first ``targets`` columns are today's series; the others (lags) are candidates only.
    """

    correlation: Float[np.ndarray, "candidates candidates"]
    rows: float
    """Effective number of rows behind the correlations."""
    penalty: float
    """Cost of one parent."""
    targets: int


@dataclass(frozen=True)
class Ordered:
    """The best graph found: total score (higher is better), order, and parents per target."""

    score: float
    order: tuple[int, ...]
    parents: Bool[np.ndarray, "targets candidates"]


class OrderSearch:
    """Moves series through an order; remembers every local result it has seen."""

    def __init__(self, scores: LocalScores) -> None:
        self.scores = scores
        self.targets, self.candidates = scores.targets, len(scores.correlation)
        self._seen: dict[tuple[int, int], tuple[float, int]] = {}

    def improve(self, start: tuple[int, ...]) -> Ordered:
        """Moves single series to their best places until none improves the score."""
        order = list(start)
        for _ in range(MAX_SWEEPS):
            moved = [self._move(order, series) for series in list(order)]
            if not any(moved):
                break
        problems = [(t, _mask(order[:i])) for i, t in enumerate(order)]
        self._solve(problems)
        parents = np.zeros((self.targets, self.candidates), dtype=bool)
        for problem in problems:
            parents[problem[0]] = self._unpack(self._seen[problem][1])
        score = sum(self._seen[problem][0] for problem in problems)
        return Ordered(score, tuple(order), parents)

    def _move(self, order: list[int], series: int) -> bool:
        """Puts ``series`` at its best place; True when that improved the score."""
        here = order.index(series)
        rest = [other for other in order if other != series]
        prefixes = [_mask(rest[:i]) for i in range(len(rest) + 1)]
        bit = 1 << series
        before = [(other, prefixes[i]) for i, other in enumerate(rest)]
        after = [(other, prefixes[i] | bit) for i, other in enumerate(rest)]
        own = [(series, prefix) for prefix in prefixes]
        # Where the series stands now, later ones have seen it: if they did not want it, they are
        # taken to choose the same without it. (Grow-shrink could differ in rare ties; the next
        # sweep's scores are computed afresh for whatever is then still unknown.)
        for with_it, without in zip(after[here:], before[here:], strict=True):
            known = self._seen.get(with_it)
            if known is not None and not known[1] & bit:
                self._seen.setdefault(without, known)
        self._solve(before + own)
        self._reuse_unwanted(before, after, series)
        self._solve(after)
        without_it = np.array([self._seen[p][0] for p in before])
        with_it = np.array([self._seen[p][0] for p in after])
        alone = np.array([self._seen[p][0] for p in own])
        totals = alone.copy()
        totals[1:] += np.cumsum(without_it)
        totals[:-1] += np.cumsum(with_it[::-1])[::-1]
        best = int(np.argmax(totals))
        if totals[best] <= totals[here] + SMALLEST_GAIN:
            return False
        rest.insert(best, series)
        order[:] = rest
        return True

    def _reuse_unwanted(
        self, before: list[tuple[int, int]], after: list[tuple[int, int]], series: int
    ) -> None:
        """Where ``series`` explains nothing beyond the parents chosen without it, and removing
        it from the candidates changes nothing, the choice with it is the same."""
        open_ = [i for i, p in enumerate(after) if p not in self._seen]
        if not open_:
            return
        targets = np.array([after[i][0] for i in open_])
        chosen = np.array([self._unpack(self._seen[before[i]][1]) for i in open_])
        gains = gain_of(self.scores, targets, chosen, series)
        for i, gain in zip(open_, gains, strict=True):
            if gain <= 0:
                self._seen[after[i]] = self._seen[before[i]]

    def _solve(self, problems: list[tuple[int, int]]) -> None:
        """Chooses parents for every (target, allowed series) not yet known."""
        new = [p for p in dict.fromkeys(problems) if p not in self._seen]
        if not new:
            return
        targets = np.array([target for target, _ in new])
        allowed = np.ones((len(new), self.candidates), dtype=bool)
        for row, (_, mask) in enumerate(new):
            allowed[row, : self.targets] = [(mask >> i) & 1 for i in range(self.targets)]
        values, parents = choose_parents(self.scores, targets, allowed)
        for problem, value, chosen in zip(new, values, parents, strict=True):
            self._seen[problem] = (float(value), _pack(chosen))

    def _unpack(self, packed: int) -> np.ndarray:
        return np.array([(packed >> i) & 1 for i in range(self.candidates)], dtype=bool)


def _mask(series: list[int]) -> int:
    mask = 0
    for one in series:
        mask |= 1 << one
    return mask


def _pack(chosen: np.ndarray) -> int:
    return int.from_bytes(np.packbits(chosen, bitorder="little").tobytes(), "little")


def choose_parents(
    scores: LocalScores,
    targets: np.ndarray,
    allowed: Bool[np.ndarray, "problems candidates"],
) -> tuple[Float[np.ndarray, " problems"], Bool[np.ndarray, "problems candidates"]]:
    """Grow-shrink per problem: adds the best parent while it pays, then drops those that do not.

    Returns:
        Scores (minus the extended BIC, up to a constant per target) and the chosen parents.
    """
    chosen = np.zeros(allowed.shape, dtype=bool)
    pending = np.arange(len(targets))
    for _ in range(3):
        grown = _grow(scores, targets[pending], allowed[pending], chosen[pending])
        kept = _shrink(scores, targets[pending], grown)
        chosen[pending] = kept
        pending = pending[(kept != grown).any(axis=1)]
        if not len(pending):
            break
    return score_of(scores, targets, chosen), chosen


def _grow(
    scores: LocalScores, targets: np.ndarray, allowed: np.ndarray, forced: np.ndarray
) -> np.ndarray:
    """Forward selection, starting from ``forced`` parents. Partial covariances are updated one
    Gram-Schmidt step per added parent."""
    chosen = np.zeros_like(allowed)
    active = np.arange(len(targets))
    rest = scores.correlation[targets].copy()
    spread = np.ones_like(rest)
    own = np.ones(len(targets))
    basis = np.zeros((len(targets), MAX_PARENTS, allowed.shape[1]))
    open_ = allowed.copy()
    open_[np.arange(len(targets)), targets] = False
    to_force = forced.copy()
    for step in range(MAX_PARENTS):
        r, v = rest[active], spread[active]
        free = open_[active] & (v > COLLINEAR)
        share = np.where(free, r * r / np.maximum(v, COLLINEAR), -1.0)
        share = np.where(to_force[active] & free, 10.0 + share, share)
        best = share.argmax(axis=1)
        line = np.arange(len(active))
        gained = share[line, best]
        is_forced = gained >= 10.0
        left = 1 - np.where(is_forced, 0.0, gained) / np.maximum(own[active], COLLINEAR)
        pays = -scores.rows * np.log(np.maximum(left, COLLINEAR)) > scores.penalty
        go = (gained > 0) & (is_forced | pays)
        if not go.any():
            break
        active, best = active[go], best[go]
        line = np.arange(len(active))
        chosen[active, best] = True
        to_force[active, best] = False
        open_[active, best] = False
        past = basis[active, :step]
        scale = np.sqrt(spread[active, best])
        direction = scores.correlation[best]
        if step:
            direction = direction - np.einsum(
                "bk,bkp->bp", past[line, :, best], past, optimize=False
            )
        direction = direction / scale[:, None]
        basis[active, step] = direction
        toward = rest[active, best] / scale
        rest[active] -= direction * toward[:, None]
        spread[active] -= direction**2
        own[active] -= toward**2
    return chosen


def _shrink(scores: LocalScores, targets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Backward elimination of parents whose loss costs less than their penalty."""
    chosen = chosen.copy()
    active = np.flatnonzero(chosen.sum(axis=1) > 1)
    while len(active):
        inverse, weights, left, index, real = regressions(scores, targets[active], chosen[active])
        diagonal = np.diagonal(inverse, axis1=1, axis2=2)
        loss = scores.rows * np.log1p(weights**2 / (diagonal * left[:, None]))
        loss = np.where(real, loss, np.inf)
        worst = loss.argmin(axis=1)
        line = np.arange(len(active))
        drop = loss[line, worst] < scores.penalty
        active, column = active[drop], index[line, worst][drop]
        chosen[active, column] = False
    return chosen


def regressions(scores: LocalScores, targets: np.ndarray, chosen: np.ndarray):
    """Inverse parent correlation, weights and residual variance, padded to the largest problem."""
    size = max(1, int(chosen.sum(axis=1).max()))
    index = np.argsort(~chosen, axis=1, kind="stable")[:, :size]
    line = np.arange(len(targets))[:, None]
    real = chosen[line, index]
    gram = scores.correlation[index[:, :, None], index[:, None, :]]
    pad = real[:, :, None] & real[:, None, :]
    gram = np.where(pad, gram, np.eye(size))
    toward = np.where(real, scores.correlation[targets[:, None], index], 0.0)
    inverse = np.linalg.inv(gram)
    weights = (inverse @ toward[:, :, None])[:, :, 0]
    left = np.maximum(1 - (weights * toward).sum(axis=1), COLLINEAR)
    return inverse, weights, left, index, real


def score_of(scores: LocalScores, targets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Minus the extended BIC of given parents, up to a constant per target."""
    left = regressions(scores, targets, chosen)[2]
    return -scores.rows * np.log(left) - scores.penalty * chosen.sum(axis=1)


def gain_of(
    scores: LocalScores, targets: np.ndarray, chosen: np.ndarray, series: int
) -> np.ndarray:
    """What adding ``series`` to the chosen parents gains, penalty included."""
    inverse, weights, left, index, real = regressions(scores, targets, chosen)
    cross = np.where(real, scores.correlation[series, index], 0.0)
    projected = (inverse @ cross[:, :, None])[:, :, 0]
    spread = np.maximum(1 - (projected * cross).sum(axis=1), COLLINEAR)
    toward = scores.correlation[targets, series] - (weights * cross).sum(axis=1)
    share = np.minimum(toward**2 / (spread * left), 1 - COLLINEAR)
    return -scores.rows * np.log1p(-share) - scores.penalty
