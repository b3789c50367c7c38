"""Averaging over graphs: against every DAG there is, and what the average decides."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, special, stats

from atft_model.structure.averaging import Averager, Belief, least_wrong, state_of
from atft_model.structure.config import SearchConfig
from atft_model.structure.dag import Reach, is_acyclic
from atft_model.structure.decide import decide
from atft_model.structure.density import GaussianDensity
from atft_model.structure.effects import MEAN_SQUARES, SHAPES, effects_log_prior
from atft_model.structure.graph_metrics import cpdag, structural_hamming_distance
from atft_model.structure.series import Series, Table, make_table
from atft_model.structure.simulate import er_gaussian, random_dag, var_with_dag

ROWS = 60.0
GRID = list(itertools.product(SHAPES, MEAN_SQUARES))


def few_series(count: int) -> np.ndarray:
    """Correlations of so few rows that no graph is certain."""
    rng = np.random.default_rng(count)
    dag = random_dag(rng, count, 1.0, (0.4, 1.0))
    values = rng.standard_normal((int(ROWS), count)) @ np.linalg.inv(np.eye(count) - dag)
    return np.asarray(np.corrcoef(values.T))


@functools.cache
def every_dag(count: int) -> list[np.ndarray]:
    """[effect, cause] of each."""
    places = [(i, j) for i in range(count) for j in range(count) if i != j]
    graphs = []
    for chosen in itertools.product((False, True), repeat=len(places)):
        graph = np.zeros((count, count), dtype=bool)
        for (i, j), present in zip(places, chosen, strict=True):
            graph[i, j] = present
        if is_acyclic(graph.T):
            graphs.append(graph)
    return graphs


@functools.cache
def every_log_posterior(count: int) -> np.ndarray:
    correlation = few_series(count)
    return np.array([slow_log_posterior(correlation, graph) for graph in every_dag(count)])


def slow_log_posterior(correlation: np.ndarray, graph: np.ndarray) -> float:
    """Written out from its definition, effect by effect; up to a constant of the data."""
    count, total, effects = len(graph), 0.0, []
    fits, noise = [], []
    for target, row in enumerate(graph):
        causes = np.flatnonzero(row)
        gram, toward = correlation[np.ix_(causes, causes)], correlation[causes, target]
        weights = np.linalg.solve(gram, toward)
        noise.append(1 - weights @ toward)
        fits.append((causes, weights, np.linalg.inv(gram) * noise[-1] / ROWS))
    for target, (causes, weights, covariance) in enumerate(fits):
        unit = np.array([np.sqrt(noise[cause] / noise[target]) for cause in causes])
        total += -ROWS / 2 * np.log(noise[target])
        if len(causes):
            in_noise_units = covariance * np.outer(unit, unit)
            total += np.linalg.slogdet(2 * np.pi * in_noise_units)[1] / 2
            effects += list(np.sqrt((weights * unit) ** 2 + np.diagonal(in_noise_units)))
    size = np.array(effects)
    shape, mean = (np.array(grid)[:, None] for grid in zip(*GRID, strict=True))
    densities = stats.gamma.pdf(size**2, shape, scale=mean / shape) * size
    total += np.log(densities.prod(axis=1).mean())
    links = len(effects)
    return total - np.log(special.comb(count * (count - 1) // 2, links) * 2.0**links)


@pytest.mark.parametrize(("count", "graphs"), [(3, 25), (4, 543)])
def test_probabilities_are_those_of_every_dag_there_is(count, graphs):
    correlation = few_series(count)
    dags = every_dag(count)
    assert len(dags) == graphs  # Robinson 1973
    averager = Averager(GaussianDensity(correlation, ROWS, count), ROWS)
    belief = averager.window([((),) * count], 1e6, graphs)
    assert belief.complete
    assert len(belief.graphs) == graphs
    logs = every_log_posterior(count)
    expected = np.exp(logs - special.logsumexp(logs))
    found = {state_of(g): p for g, p in zip(belief.graphs, belief.probabilities, strict=True)}
    np.testing.assert_allclose([found[state_of(g)] for g in dags], expected, rtol=1e-6)
    edges = np.array([p * g for p, g in zip(expected, dags, strict=True)]).sum(axis=0)
    np.testing.assert_allclose(belief.edge_probability(), edges, atol=1e-9)
    assert 0.02 < edges.max() < 0.98  # the data leave something open


def test_a_window_keeps_the_graphs_within_it_and_says_when_it_was_cut_short():
    correlation = few_series(4)
    averager = Averager(GaussianDensity(correlation, ROWS, 4), ROWS)
    belief = averager.window([((),) * 4], 6.0, 500)
    logs = 2 * every_log_posterior(4)
    assert belief.complete
    assert len(belief.graphs) == (logs >= logs.max() - 6.0).sum()
    assert not averager.window([((),) * 4], 6.0, 2).complete


def test_the_density_of_an_effect_is_one():
    def density(effect: float) -> float:
        one, square = np.array([1]), np.array([effect**2])
        return float(np.exp(effects_log_prior(one, square, np.log(square))[0] / 2))

    assert 2 * integrate.quad(density, 0, np.inf, limit=200)[0] == pytest.approx(1.0, abs=1e-6)


def test_least_wrong_is_not_always_the_most_probable():
    """Of four series: one graph for itself, and three that agree on what it lacks."""
    odd, agreed = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    odd[1, 0] = True
    agreed[3, [0, 1]] = True
    variants = [agreed.copy() for _ in range(3)]
    variants[1][2, 3] = True
    variants[2][3, 2] = True
    belief = Belief(np.array([odd, *variants]), np.array([0.4, 0.2, 0.2, 0.2]), True)
    choice = least_wrong(belief)

    def loss(graph: np.ndarray) -> float:
        return sum(
            p * structural_hamming_distance(cpdag(graph.T), cpdag(other.T))
            for p, other in zip(belief.probabilities, belief.graphs, strict=True)
        )

    losses = [loss(graph) for graph in belief.graphs]
    assert choice.expected_distance == pytest.approx(min(losses))
    assert losses[0] > min(losses)
    assert not (choice.parents == odd).all()


def table_of(values: np.ndarray, lags: int = 0) -> Table:
    return make_table(Series(values, tuple(f"s{i}" for i in range(values.shape[1]))), lags)


def distance(seed: int, config: SearchConfig) -> int:
    made = er_gaussian(seed, 10)
    found = decide(table_of(made.values), config, np.random.default_rng(0)).parents.T
    return structural_hamming_distance(cpdag(found), cpdag(made.instant != 0))


def test_dense_graphs_without_time_are_decided_better_than_by_the_best_one():
    few = SearchConfig(random_starts=2)
    averaged = [distance(seed, few) for seed in (7004, 7005)]
    alone = [distance(seed, replace(few, window=0.0)) for seed in (7004, 7005)]
    assert averaged == [0, 0]
    assert sum(alone) >= 4


def test_good_graphs_behind_bad_ones_are_found():
    """Single edges lead from this graph to none as probable as the true one; turned ones do."""
    made = er_gaussian(7002, 10)
    table = table_of(made.values)
    start = decide(table, SearchConfig(random_starts=1, window=0.0), np.random.default_rng(0))
    averager = Averager(GaussianDensity(table.correlation, 1000.0, 10), 1000.0)
    belief = averager.window([state_of(start.parents)], 16.0, 200)
    assert state_of(made.instant.T != 0) in {state_of(graph) for graph in belief.graphs}


def test_only_rows_without_time_and_with_a_prior_are_averaged():
    rows = table_of(er_gaussian(0, 5, 300).values)
    few = SearchConfig(random_starts=1)
    averaged = decide(rows, few, np.random.default_rng(0))
    assert averaged.belief is not None
    assert averaged.expected_distance is not None
    np.testing.assert_allclose(averaged.belief.probabilities.sum(), 1.0)
    in_time = table_of(var_with_dag(0, 5, 300).values, 1)
    for table, config in [
        (in_time, few),
        (rows, SearchConfig(random_starts=1, window=0.0)),
        (rows, SearchConfig(random_starts=1, effect_scale=0.0)),
    ]:
        assert decide(table, config, np.random.default_rng(0)).belief is None
    with pytest.raises(ValueError, match="rows without time"):
        Averager(GaussianDensity(in_time.correlation, 299.0, 5), 299.0)


def test_reach_knows_cycles_and_other_ways():
    graph = np.zeros((4, 4), dtype=bool)
    graph[[0, 1, 0], [1, 2, 2]] = True  # 0 → 1 → 2 and 0 → 2
    reach = Reach(graph)
    assert reach.another_way(0, 2)
    assert not reach.another_way(0, 1)
    for cause, effect in itertools.permutations(range(4), 2):
        closed = graph.copy()
        closed[cause, effect] = True
        assert reach.closes_cycle(cause, effect) is not is_acyclic(closed)
    assert reach.closes_cycle(3, 3)
