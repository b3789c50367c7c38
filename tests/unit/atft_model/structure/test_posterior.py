"""The posterior against a slow loop, and what its prior in noise units decides."""

import numpy as np
import pytest

from atft_model.structure.dag import is_acyclic
from atft_model.structure.density import GaussianDensity
from atft_model.structure.posterior import Climber, Prior
from atft_model.structure.simulate import er_gaussian, var_with_dag


def correlations(values: np.ndarray, lags: int = 0) -> np.ndarray:
    rows = np.concatenate(
        [values[lags - lag : len(values) - lag] for lag in range(lags + 1)], axis=1
    )
    return np.corrcoef(rows.T)


def slow_log_posterior(correlation, rows, targets, graph, scale, cost):
    """Twice the log posterior, written out from its definition edge by edge."""
    fits, noise = {}, np.zeros(targets)
    for target in range(targets):
        parents = np.flatnonzero(graph[target])
        gram = correlation[np.ix_(parents, parents)]
        weights = np.linalg.solve(gram, correlation[parents, target])
        noise[target] = 1 - weights @ correlation[parents, target]
        fits[target] = parents, weights, gram
    total = 0.0
    for target, (parents, weights, gram) in fits.items():
        total -= rows * np.log(noise[target]) + cost * len(parents)
        if len(parents):
            # Effects in noise units, and their covariance around the estimate.
            unit = np.sqrt(noise[parents % targets] / noise[target])
            covariance = np.linalg.inv(gram) * noise[target] / rows * np.outer(unit, unit)
            size = weights * unit
            total += np.linalg.slogdet(covariance)[1]
            total -= np.sum(size**2) / scale**2 + 2 * len(parents) * np.log(scale)
    return total


@pytest.mark.parametrize(("scale", "lags"), [(2.0, 0), (0.7, 1)])
def test_posterior_is_the_written_out_sum(scale, lags):
    values = var_with_dag(0, 5, 300).values
    correlation = correlations(values, lags)
    climber = Climber(GaussianDensity(correlation, 300.0, 5), Prior(scale, 3.0))
    start = np.zeros((5, 5 * (lags + 1)), dtype=bool)
    total, graph = climber.climb(start)
    expected = slow_log_posterior(correlation, 300, 5, graph, scale, 3.0)
    assert total == pytest.approx(expected, abs=1e-6)
    assert total > slow_log_posterior(correlation, 300, 5, start, scale, 3.0)
    assert is_acyclic(graph[:, :5].T)


def test_no_single_change_improves_the_result():
    values = er_gaussian(3, 6, 500).values
    correlation = correlations(values)
    climber = Climber(GaussianDensity(correlation, 500.0, 6), Prior(2.0, 3.0))
    total, graph = climber.climb(np.zeros((6, 6), dtype=bool))
    for target in range(6):
        for source in range(6):
            other = graph.copy()
            other[target, source] = not other[target, source]
            if source != target and is_acyclic(other.T):
                again = slow_log_posterior(correlation, 500, 6, other, 2.0, 3.0)
                assert again <= total + 1e-5


def test_noise_units_speak_where_likelihood_is_silent():
    # A complete graph on three series: every order fits equally well; the reversed one needs
    # larger effects, measured in noise.
    rng = np.random.default_rng(0)
    dag = np.array([[0, 1.5, 1.5], [0, 0, 1.5], [0, 0, 0]])
    values = rng.standard_normal((2000, 3)) @ np.linalg.inv(np.eye(3) - dag)
    density = GaussianDensity(correlations(values), 2000.0, 3)
    true, backwards = dag.T != 0, dag != 0
    with_prior, by_bic = Climber(density, Prior(1.0, 1.0)), Climber(density, Prior(0.0, 1.0))
    assert with_prior.log_posterior(true) > with_prior.log_posterior(backwards) + 5
    assert by_bic.log_posterior(true) == pytest.approx(by_bic.log_posterior(backwards))
