"""The prior of lagged edges, learned from a first graph."""

import numpy as np
import pytest

from atft_model.structure.config import SearchConfig
from atft_model.structure.decide import PRIOR_EDGES, decide, learned_lag_prior
from atft_model.structure.density import GaussianDensity
from atft_model.structure.posterior import Climber, Prior
from atft_model.structure.series import Series, make_table
from atft_model.structure.simulate import var_with_dag

COUNT = 5


@pytest.fixture(scope="module")
def first() -> tuple[Climber, np.ndarray]:
    made = var_with_dag(3, COUNT, 400)
    table = make_table(Series(made.values, tuple("abcde")), 1)
    climber = Climber(GaussianDensity(table.correlation, 400.0, COUNT), Prior(2.0, 3.0))
    return climber, climber.climb(np.zeros((COUNT, 2 * COUNT), dtype=bool))[1]


def test_each_kind_of_lag_has_the_width_and_frequency_of_its_edges(first):
    climber, graph = first
    prior = learned_lag_prior(climber, graph)
    scale, cost = np.asarray(prior.effect_scale), np.asarray(prior.edge_cost)
    fits = [climber.fit(j, tuple(np.flatnonzero(graph[j]).tolist())) for j in range(COUNT)]
    for own in (True, False):
        sizes, possible = [], 0
        for target in range(COUNT):
            weights = dict(zip(np.flatnonzero(graph[target]), fits[target].weights, strict=True))
            for source in range(COUNT):
                if (source == target) is not own:
                    continue
                possible += 1
                if COUNT + source in weights:
                    ratio = fits[source].noise_variance / fits[target].noise_variance
                    sizes.append(weights[COUNT + source] ** 2 * ratio)
        kind = np.eye(COUNT, dtype=bool) == own
        width = np.sqrt((sum(sizes) + PRIOR_EDGES * 2.0**2) / (len(sizes) + PRIOR_EDGES))
        odds = (possible - len(sizes) + PRIOR_EDGES) / (len(sizes) + PRIOR_EDGES)
        assert scale[:, COUNT:][kind] == pytest.approx(width)
        assert cost[:, COUNT:][kind] == pytest.approx(2 * np.log(odds))
        assert len(sizes) > 0


def test_edges_of_the_same_day_keep_their_prior(first):
    """It orients them, and is an assumption: a graph must not confirm itself."""
    climber, graph = first
    prior = learned_lag_prior(climber, graph)
    assert (np.asarray(prior.effect_scale)[:, :COUNT] == 2.0).all()
    assert (np.asarray(prior.edge_cost)[:, :COUNT] == 3.0).all()


def test_without_any_lagged_edge_they_become_dearer(first):
    climber, graph = first
    prior = learned_lag_prior(climber, np.zeros_like(graph))
    across = ~np.eye(COUNT, dtype=bool)
    assert (np.asarray(prior.edge_cost)[:, COUNT:][across] > 3.0).all()
    assert np.asarray(prior.effect_scale)[:, COUNT:] == pytest.approx(2.0)


def test_short_series_keep_their_weak_pasts():
    """Of 250 days: with one prior for all edges 6 of these 60 lagged edges are left out."""
    missed = 0
    for seed in (5, 6, 7):
        made = var_with_dag(seed, 10, 250)
        table = make_table(Series(made.values, tuple("abcdefghij")), 1)
        config = SearchConfig(random_starts=2, kept_starts=1)
        found = decide(table, config, np.random.default_rng(0)).parents[:, 10:].T
        missed += int(((made.lagged[0] != 0) & ~found).sum())
    assert missed <= 3
