"""Series whose graph is known, for tests and for ``benchmarks/structure.py``.

The model of every generator is x_t = Wᵀx_t + A₁ᵀx_{t−1} + b·market_t + e_t, with W acyclic.
``W[i, j]`` is the effect of series i on series j on the same day, ``A[l - 1, i, j]`` after l days.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from atft_model.errors import InputError

Noise = Literal["gaussian", "laplace", "garch_t"]

WARM_UP = 200
"""Days simulated before the first one kept, so that the start leaves no trace."""

INSTANT_WEIGHTS = (0.3, 0.8)
SELF_LAG_WEIGHTS = (0.2, 0.5)
CROSS_LAG_WEIGHTS = (0.2, 0.4)
MARKET_WEIGHTS = (0.5, 1.5)
MAX_SPECTRAL_RADIUS = 0.95
"""Draws whose companion matrix is larger explode or nearly so, and are drawn again."""

GARCH_ALPHA, GARCH_BETA, GARCH_DEGREES = 0.1, 0.85, 5.0
"""As in daily returns: volatility half-life of two to three weeks, kurtosis far above 3."""


@dataclass(frozen=True)
class Simulated:
    """Raw (not standardized) series and what made them."""

    values: Float[np.ndarray, "times series"]
    instant: Float[np.ndarray, "series series"]
    lagged: Float[np.ndarray, "lags series series"]
    market: Float[np.ndarray, " times"] | None = None


def random_dag(
    rng: np.random.Generator, series: int, edges_per_node: float, weights: tuple[float, float]
) -> Float[np.ndarray, "series series"]:
    """An Erdős–Rényi DAG: every pair is linked with the probability that gives
    ``edges_per_node`` × series edges on average, in a random order, signs at random.

    Benchmarks call edges_per_node 2 "ER2".
    """
    chance = min(1.0, 2 * edges_per_node / (series - 1))
    upper = np.triu(rng.random((series, series)) < chance, 1)
    strength = rng.uniform(*weights, size=(series, series))
    strength *= rng.choice([-1.0, 1.0], size=(series, series))
    order = rng.permutation(series)
    dag = np.zeros((series, series))
    dag[np.ix_(order, order)] = upper * strength
    return dag


def er_gaussian(
    seed: int, series: int = 20, rows: int = 1000, edges_per_node: float = 2.0
) -> Simulated:
    """Independent rows of a linear Gaussian DAG, noise variance 1 everywhere, |weights| 0.5 to 2.

    The classic case of NOTEARS and its successors, which read the answer off the raw variances.
    """
    rng = np.random.default_rng(seed)
    dag = random_dag(rng, series, edges_per_node, (0.5, 2.0))
    noise = rng.standard_normal((rows, series))
    values = noise @ np.linalg.inv(np.eye(series) - dag)
    return Simulated(values, dag, np.zeros((0, series, series)))


def var_with_dag(
    seed: int,
    series: int = 20,
    times: int = 1000,
    noise: Noise = "gaussian",
    edges_per_node: float = 2.0,
    market: bool = False,
) -> Simulated:
    """A VAR(1) with an instantaneous DAG.

    Every series has an effect on its own tomorrow, and ``series`` random pairs have one across
    (on average). With ``market`` a white factor enters all series on the same day.
    """
    rng = np.random.default_rng(seed)
    identity = np.eye(series)
    while True:
        instant = random_dag(rng, series, edges_per_node, INSTANT_WEIGHTS)
        lagged = np.diag(_signed(rng, SELF_LAG_WEIGHTS, (series,)))
        cross = (rng.random((series, series)) < 1 / (series - 1)) & ~np.eye(series, dtype=bool)
        lagged = lagged + cross * _signed(rng, CROSS_LAG_WEIGHTS, (series, series))
        spread = np.linalg.inv(identity - instant)
        if np.abs(np.linalg.eigvals(lagged @ spread)).max() < MAX_SPECTRAL_RADIUS:
            break
    total = times + WARM_UP
    shocks = draw_noise(rng, noise, total, series)
    factor = rng.standard_normal(total) if market else np.zeros(total)
    loadings = _signed(rng, MARKET_WEIGHTS, (series,))
    values = np.zeros((total, series))
    for time in range(1, total):
        pushed = values[time - 1] @ lagged + loadings * factor[time] + shocks[time]
        values[time] = pushed @ spread
    return Simulated(
        values[WARM_UP:], instant, lagged[None], factor[WARM_UP:] if market else None
    )  # fmt: skip


def draw_noise(
    rng: np.random.Generator, noise: Noise, times: int, series: int
) -> Float[np.ndarray, "times series"]:
    """Independent noise of variance 1 per series."""
    if noise == "gaussian":
        return rng.standard_normal((times, series))
    if noise == "laplace":
        return rng.laplace(scale=np.sqrt(0.5), size=(times, series))
    if noise == "garch_t":
        return _garch_t(rng, times, series)
    raise InputError(f"noise {noise!r} is unknown; expected gaussian, laplace or garch_t")


def _garch_t(
    rng: np.random.Generator, times: int, series: int
) -> Float[np.ndarray, "times series"]:
    """GARCH(1, 1) with Student-t innovations, each series with a volatility of its own."""
    innovations = rng.standard_t(GARCH_DEGREES, size=(times, series))
    innovations *= np.sqrt((GARCH_DEGREES - 2) / GARCH_DEGREES)
    noise = np.zeros((times, series))
    variance = np.ones(series)
    for time in range(times):
        noise[time] = np.sqrt(variance) * innovations[time]
        variance = (
            1 - GARCH_ALPHA - GARCH_BETA
            + GARCH_ALPHA * noise[time] ** 2
            + GARCH_BETA * variance
        )  # fmt: skip
    return noise


def _signed(rng: np.random.Generator, size: tuple[float, float], shape: tuple[int, ...]):
    return rng.uniform(*size, size=shape) * rng.choice([-1.0, 1.0], size=shape)
