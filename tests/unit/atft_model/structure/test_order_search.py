"""The order search against exhaustive search and plain regression."""

import itertools

import numpy as np
import pytest

from atft_model.structure.dag import is_acyclic
from atft_model.structure.order_search import (
    LocalScores,
    OrderSearch,
    choose_parents,
    gain_of,
    score_of,
)
from atft_model.structure.simulate import er_gaussian


def scores_for(seed: int, series: int = 5, rows: int = 400) -> tuple[LocalScores, np.ndarray]:
    values = er_gaussian(seed, series, rows, edges_per_node=1.5).values
    values = (values - values.mean(0)) / values.std(0)
    return LocalScores(values.T @ values / rows, float(rows), float(np.log(rows)), series), values


def slow_score(values: np.ndarray, target: int, parents: list[int]) -> float:
    """Minus the BIC by least squares."""
    rows = len(values)
    left = values[:, target]
    if parents:
        left = left - values[:, parents] @ np.linalg.lstsq(values[:, parents], left, rcond=None)[0]
    return -rows * np.log(left @ left / rows) - np.log(rows) * len(parents)


def exhaustive(values: np.ndarray) -> float:
    """The best BIC over every order and every set of predecessors."""
    series = values.shape[1]
    best_of: dict[tuple[int, tuple[int, ...]], float] = {}
    for target in range(series):
        others = [i for i in range(series) if i != target]
        for size in range(series):
            for parents in itertools.combinations(others, size):
                best_of[target, parents] = slow_score(values, target, list(parents))

    def best_within(target: int, allowed: tuple[int, ...]) -> float:
        subsets = (s for k in range(len(allowed) + 1) for s in itertools.combinations(allowed, k))
        return max(best_of[target, subset] for subset in subsets)

    return max(
        sum(best_within(t, tuple(sorted(order[:i]))) for i, t in enumerate(order))
        for order in itertools.permutations(range(series))
    )


@pytest.mark.parametrize("seed", range(4))
def test_search_reaches_the_best_score_of_all_graphs(seed):
    scores, values = scores_for(seed)
    search = OrderSearch(scores)
    starts = itertools.islice(itertools.permutations(range(5)), 0, None, 17)
    best = max((search.improve(start) for start in starts), key=lambda found: found.score)
    assert best.score == pytest.approx(exhaustive(values), abs=1e-6)
    assert is_acyclic(best.parents.T)


def test_scores_and_gains_are_those_of_least_squares():
    scores, values = scores_for(7)
    chosen = np.array([[False, True, True, False, False]])
    target = np.array([0])
    assert score_of(scores, target, chosen)[0] == pytest.approx(slow_score(values, 0, [1, 2]))
    gain = slow_score(values, 0, [1, 2, 4]) - slow_score(values, 0, [1, 2])
    assert gain_of(scores, target, chosen, 4)[0] == pytest.approx(gain)


def test_no_parent_is_chosen_that_is_not_allowed():
    scores, _ = scores_for(3)
    allowed = np.zeros((5, 5), dtype=bool)
    allowed[:, 0] = True
    _, chosen = choose_parents(scores, np.arange(5), allowed)
    assert not chosen[:, 1:].any()
    assert not chosen[0].any()


def test_copies_of_a_series_do_not_break_the_search():
    _, values = scores_for(1)
    doubled = np.column_stack([values, values[:, 0]])
    scores = LocalScores(np.corrcoef(doubled.T), 400.0, float(np.log(400)), 6)
    found = OrderSearch(scores).improve(tuple(range(6)))
    assert np.isfinite(found.score)
    assert is_acyclic(found.parents.T)
