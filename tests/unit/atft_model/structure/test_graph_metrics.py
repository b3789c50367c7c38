"""Distances between graphs, against brute force and scipy."""

import itertools

import numpy as np
import pytest
from scipy.stats import hypergeom

from atft_model.structure.dag import is_acyclic
from atft_model.structure.graph_metrics import (
    chance_f1,
    chance_p_value,
    cpdag,
    edge_scores,
    structural_hamming_distance,
)


def v_structures(dag):
    linked = dag | dag.T
    nodes = range(len(dag))
    return {
        (a, c, b) for a, b, c in itertools.permutations(nodes, 3)
        if dag[a, c] and dag[b, c] and not linked[a, b]
    }  # fmt: skip


def class_by_enumeration(dag):
    """Union of all DAGs with the same links and the same v-structures (Verma and Pearl 1990)."""
    links = np.argwhere(np.triu(dag | dag.T))
    union = np.zeros_like(dag)
    for flips in itertools.product((False, True), repeat=len(links)):
        other = np.zeros_like(dag)
        for (a, b), flip in zip(links, flips, strict=True):
            other[(b, a) if flip else (a, b)] = True
        if is_acyclic(other) and v_structures(other) == v_structures(dag):
            union |= other
    return union


@pytest.mark.parametrize("seed", range(25))
def test_cpdag_is_the_union_of_all_equivalent_dags(seed):
    rng = np.random.default_rng(seed)
    dag = np.triu(rng.random((5, 5)) < 0.5, 1)
    order = rng.permutation(5)
    dag = dag[np.ix_(order, order)]
    np.testing.assert_array_equal(cpdag(dag), class_by_enumeration(dag))


def test_a_reversed_edge_counts_once_in_shd_and_twice_in_f1():
    truth = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool)
    found = np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=bool)
    assert structural_hamming_distance(found, truth) == 1
    assert edge_scores(found, truth).f1 == pytest.approx(0.5)


def test_scores_without_edges_are_nan_or_zero():
    empty, truth = np.zeros((3, 3)), np.triu(np.ones((3, 3)), 1)
    assert np.isnan(edge_scores(empty, empty).f1)
    assert edge_scores(empty, truth).f1 == 0
    assert np.isnan(edge_scores(empty, truth).precision)


@pytest.mark.parametrize(("hits", "edges", "true_edges"), [(0, 5, 7), (3, 10, 12), (7, 7, 7)])
def test_chance_p_value_is_the_hypergeometric_tail(hits, edges, true_edges):
    expected = hypergeom(90, true_edges, edges).sf(hits - 1)
    assert chance_p_value(hits, edges, true_edges, 90) == pytest.approx(expected)


def test_chance_f1_is_the_mean_over_random_graphs():
    rng = np.random.default_rng(0)
    truth = np.zeros(90, dtype=bool)
    truth[:12] = True
    draws = [edge_scores(rng.permutation(90) < 20, truth).f1 for _ in range(4000)]
    assert chance_f1(20, 12, 90) == pytest.approx(np.mean(draws), abs=0.005)
