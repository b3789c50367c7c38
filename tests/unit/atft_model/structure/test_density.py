"""Likelihoods of one series given its parents, against scipy and slow loops."""

import numpy as np
import pytest
from scipy import stats

from atft_model.structure.density import (
    NORMAL,
    GaussianDensity,
    HeavyTailDensity,
    NoiseShape,
    conditional_variance,
    noise_shape,
)
from atft_model.structure.simulate import draw_noise


def standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def whole(rows: np.ndarray, shapes: list[NoiseShape]) -> HeavyTailDensity:
    return HeavyTailDensity(
        rows, np.ones((len(rows), len(shapes)), dtype=bool), np.ones(len(rows)), shapes
    )


def test_gaussian_fit_is_least_squares():
    rng = np.random.default_rng(0)
    rows = standardized(rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)))
    fit = GaussianDensity(np.corrcoef(rows.T), 300.0, 4).fit(0, (1, 3))
    X = rows[:, [1, 3]]
    weights, left = np.linalg.lstsq(X, rows[:, 0], rcond=None)[:2]
    np.testing.assert_allclose(fit.weights, weights)
    variance = left[0] / 300
    assert fit.noise_variance == pytest.approx(variance)
    assert fit.log_likelihood == pytest.approx(-300 * np.log(variance))
    information = X.T @ X / variance
    assert fit.log_information == pytest.approx(np.linalg.slogdet(information)[1])


def test_conditional_variance_is_the_recursion():
    noise = draw_noise(np.random.default_rng(1), "garch_t", 100, 1)[:, 0]
    shape = NoiseShape(5.0, 0.1, 0.8)
    mean = np.mean(noise**2)
    expected = [mean]
    for shock in noise[:-1]:
        expected.append(0.1 * mean + 0.1 * shock**2 + 0.8 * expected[-1])
    np.testing.assert_allclose(conditional_variance(noise, shape), expected, rtol=1e-6)


def test_student_likelihood_is_the_best_over_scales():
    rows = standardized(stats.t(4).rvs(size=(500, 2), random_state=0))
    fit = whole(rows, [NoiseShape(4.0, 0.0, 0.0), NORMAL]).fit(0, ())
    over_scales = [stats.t(4, scale=s).logpdf(rows[:, 0]).sum() for s in np.linspace(0.3, 1.2, 200)]
    assert fit.log_likelihood == pytest.approx(2 * max(over_scales), abs=0.1)


def test_normal_shape_agrees_with_the_gaussian_density():
    rng = np.random.default_rng(2)
    rows = standardized(rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)))
    heavy = whole(rows, [NORMAL] * 3)
    normal = GaussianDensity(np.corrcoef(rows.T), 400.0, 3)
    for parents in ((), (1,), (1, 2)):
        a, b = heavy.fit(0, parents), normal.fit(0, parents)
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-8)
        constant = heavy.fit(0, ()).log_likelihood
        assert a.log_likelihood - constant == pytest.approx(b.log_likelihood, abs=1e-6)
        assert a.log_information == pytest.approx(b.log_information, abs=1e-6)
    assert heavy.promising(0, ()) == normal.promising(0, ())


def test_shape_is_normal_for_normal_noise_and_clustered_for_garch():
    normal = np.random.default_rng(3).normal(size=1500)
    garch = draw_noise(np.random.default_rng(4), "garch_t", 1500, 1)[:, 0]
    assert noise_shape(normal, 0.01) == NORMAL
    assert noise_shape(garch, 0.01).alpha > 0
    assert noise_shape(garch, 0.0) == NORMAL  # level 0: the tests never reject


def test_laplace_noise_tells_cause_from_effect():
    rng = np.random.default_rng(5)
    cause = rng.laplace(size=1000)
    rows = standardized(np.column_stack([cause, cause + rng.laplace(size=1000)]))
    density = whole(rows, [NoiseShape(3.0, 0.0, 0.0)] * 2)
    forward = density.fit(0, ()).log_likelihood + density.fit(1, (0,)).log_likelihood
    backward = density.fit(1, ()).log_likelihood + density.fit(0, (1,)).log_likelihood
    assert forward > backward + 10


def test_rows_without_the_target_do_not_count():
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(200, 2))
    spoiled = rows.copy()
    spoiled[150:, 0] = 1e3
    observed = np.ones((200, 2), dtype=bool)
    observed[150:, 0] = False
    shapes = [NoiseShape(5.0, 0.0, 0.0)] * 2
    fit = HeavyTailDensity(spoiled, observed, np.ones(200), shapes).fit(0, (1,))
    cut = whole(rows[:150], shapes).fit(0, (1,))
    np.testing.assert_allclose(fit.weights, cut.weights, atol=1e-3)
