"""How likely one series is, given its parents: normal noise, or heavy tails in clusters."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

TOKEN_GAIN = 4.0
"""Twice the log likelihood that a new parent must promise before it is tried. A prior never pays
this much back for an edge."""

FLOOR = 1e-9
"""Smallest residual variance of a standardized series: keeps logarithms finite."""


@dataclass(frozen=True)
class Fit:
    """One series regressed on a set of parents."""

    log_likelihood: float
    """Twice the maximized log likelihood, up to a constant of the series."""
    weights: Float[np.ndarray, " parents"]
    """Effects, in standardized units, in the order of the parents."""
    variances: Float[np.ndarray, " parents"]
    """Squared standard errors of the effects."""
    noise_variance: float
    """Variance of what the parents leave, in standardized units."""
    log_information: float
    """Log determinant of the information matrix of the weights."""


@runtime_checkable
class Density(Protocol):
    """Fits one target on candidate columns; column c < targets is today's series c."""

    targets: int
    candidates: int

    def fit(self, target: int, parents: tuple[int, ...]) -> Fit:
        """Regression of ``target`` on ``parents`` (sorted candidate columns)."""
        ...

    def promising(self, target: int, parents: tuple[int, ...]) -> list[int]:
        """Columns outside ``parents`` that could raise the likelihood by more than a token."""
        ...


class GaussianDensity:
    """Least squares from the correlations of all columns."""

    def __init__(
        self, correlation: Float[np.ndarray, "candidates candidates"], rows: float, targets: int
    ) -> None:
        self.correlation = correlation
        self.rows = rows
        self.targets = targets
        self.candidates = len(correlation)

    def fit(self, target: int, parents: tuple[int, ...]) -> Fit:
        """See ``Density.fit``."""
        if not parents:
            return Fit(0.0, np.zeros(0), np.zeros(0), 1.0, 0.0)
        index = list(parents)
        gram = self.correlation[np.ix_(index, index)]
        toward = self.correlation[index, target]
        weights = np.linalg.solve(gram, toward)
        left = max(1.0 - float(weights @ toward), FLOOR)
        volume = np.linalg.slogdet(gram)[1] + len(index) * np.log(self.rows / left)
        variances = np.diagonal(np.linalg.inv(gram)) * left / self.rows
        return Fit(-self.rows * float(np.log(left)), weights, variances, left, float(volume))

    def promising(self, target: int, parents: tuple[int, ...]) -> list[int]:
        """See ``Density.promising``."""
        rest = self.correlation[target].copy()
        spread = np.ones(self.candidates)
        own = 1.0
        if parents:
            index = list(parents)
            cross = self.correlation[:, index]
            solved = np.linalg.solve(self.correlation[np.ix_(index, index)], cross.T)
            weights = solved[:, target]
            rest = rest - cross @ weights
            spread = 1.0 - (cross * solved.T).sum(axis=1)
            own = max(rest[target], FLOOR)
        spread[[target, *parents]] = np.inf
        share = np.minimum(rest**2 / (np.maximum(spread, FLOOR) * own), 1 - FLOOR)
        return np.flatnonzero(-self.rows * np.log1p(-share) > TOKEN_GAIN).tolist()


@dataclass(frozen=True)
class NoiseShape:
    """What one series' noise looks like beyond its size."""

    degrees: float
    """Degrees of freedom of the Student-t; infinite for a normal one."""
    alpha: float
    """Share of yesterday's squared shock in today's variance."""
    beta: float
    """Share of yesterday's variance in today's."""


NORMAL = NoiseShape(np.inf, 0.0, 0.0)
DEGREES = (3.0, 4.0, 5.0, 7.0, 10.0, 20.0)
CLUSTERING = ((0.0, 0.0), (0.05, 0.94), (0.05, 0.9), (0.1, 0.88), (0.1, 0.8), (0.2, 0.75))
MEMORY = 120
"""Days after which a shock no longer counts in the variance: below 0.1 % of its weight."""
ITERATIONS = 5


def noise_shape(residuals: Float[np.ndarray, " rows"], level: float) -> NoiseShape:
    """The shape that fits best among a few, or normal where tests do not reject it.

    Two tests at half the level each: Jarque and Bera's for tails, Engle's for clustering (one
    lag of the squares, chi-square with one degree of freedom).
    """
    z = (residuals - residuals.mean()) / residuals.std()
    count = len(z)
    jarque_bera = count / 6 * (np.mean(z**3) ** 2 + (np.mean(z**4) - 3) ** 2 / 4)
    squares = z**2 - 1
    engle = count * (np.mean(squares[1:] * squares[:-1]) / np.mean(squares**2)) ** 2
    tails = np.exp(-jarque_bera / 2)  # chi-square with 2 degrees of freedom
    clustered = math.erfc(math.sqrt(engle / 2))
    if not level or min(tails, clustered) > level / 2:
        return NORMAL
    shapes = [NoiseShape(v, a, b) for v in DEGREES for a, b in CLUSTERING]
    shapes += [NoiseShape(np.inf, a, b) for a, b in CLUSTERING]
    ones = np.ones(count)
    return max(shapes, key=lambda shape: _likelihood(z, shape, ones)[0])


def conditional_variance(
    residuals: Float[np.ndarray, " rows"], shape: NoiseShape
) -> Float[np.ndarray, " rows"]:
    """The GARCH(1, 1) variance of each day from the days before it, with the mean as target."""
    squares = residuals**2
    mean = squares.mean()
    if not shape.alpha:
        return np.full(len(residuals), mean)
    kernel = shape.alpha * shape.beta ** np.arange(min(MEMORY, len(residuals) - 1))
    past = np.convolve(squares - mean, kernel)[: len(residuals) - 1]
    variance = np.full(len(residuals), mean)
    variance[1:] += past
    return np.maximum(variance, 0.05 * mean)


def _likelihood(
    residuals: np.ndarray, shape: NoiseShape, counts: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Twice the log likelihood, each row's weight in the next regression, and its curvature."""
    variance = conditional_variance(residuals, shape)
    u = residuals**2 / variance
    total = counts.sum()
    v = shape.degrees
    if np.isinf(v):
        scale = max(float(counts @ u) / total, FLOOR)
        pull = np.ones_like(u)
        log_density = -0.5 * np.log(2 * np.pi) - 0.5 * u / scale
        curvature = 1.0
    else:
        scale = (v - 2) / v
        for _ in range(3):
            scale = max(float(counts @ ((v + 1) / (v + u / scale) * u)) / total, FLOOR)
        pull = (v + 1) / (v + u / scale)
        constant = math.lgamma((v + 1) / 2) - math.lgamma(v / 2) - 0.5 * math.log(v * math.pi)
        log_density = constant - (v + 1) / 2 * np.log1p(u / scale / v)
        curvature = (v + 1) / (v + 3)
    log_density = log_density - 0.5 * np.log(scale * variance)
    size = counts / (scale * variance)
    return 2 * float(counts @ log_density), pull * size, curvature * size


class HeavyTailDensity:
    """Student-t noise with GARCH(1, 1) volatility, shape fixed per target, size fitted each time.

    Regressions are reweighted least squares. Where noise is not normal, its likelihood also tells
    cause from effect: the right direction leaves the least likely coincidences (Shimizu 2006).
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "rows candidates"],
        observed: Bool[np.ndarray, "rows targets"],
        counts: Float[np.ndarray, " rows"],
        shapes: list[NoiseShape],
    ) -> None:
        self.rows = rows
        self.counts = observed * counts[:, None]
        self.shapes = shapes
        self.targets = len(shapes)
        self.candidates = rows.shape[1]
        self._promising: dict[tuple[int, tuple[int, ...]], list[int]] = {}

    def fit(self, target: int, parents: tuple[int, ...]) -> Fit:
        """See ``Density.fit``."""
        return self._regress(target, parents)[0]

    def promising(self, target: int, parents: tuple[int, ...]) -> list[int]:
        """See ``Density.promising``; by the score test at the fit."""
        key = (target, parents)
        if key not in self._promising:
            _, residuals, pull, size = self._regress(target, parents)
            toward = self.rows.T @ (pull * residuals)
            spread = np.einsum("n,np,np->p", size, self.rows, self.rows)
            if parents:
                X = self.rows[:, list(parents)]
                cross = self.rows.T @ (X * size[:, None])
                solved = np.linalg.solve(
                    cross[list(parents)] + FLOOR * np.eye(len(parents)), cross.T
                )
                spread = spread - (cross * solved.T).sum(axis=1)
            spread[[target, *parents]] = np.inf
            gain = toward**2 / np.maximum(spread, FLOOR)
            self._promising[key] = np.flatnonzero(gain > TOKEN_GAIN).tolist()
        return self._promising[key]

    def _regress(self, target: int, parents: tuple[int, ...]):
        y, counts, shape = self.rows[:, target], self.counts[:, target], self.shapes[target]
        X = self.rows[:, list(parents)]
        ridge = FLOOR * np.eye(len(parents))
        weights = np.linalg.solve(X.T @ (X * counts[:, None]) + ridge, X.T @ (counts * y))
        residuals = y - X @ weights
        likelihood, pull, size = _likelihood(residuals, shape, counts)
        for _ in range(ITERATIONS if parents and shape != NORMAL else 0):
            trial = np.linalg.solve(X.T @ (X * pull[:, None]) + ridge, X.T @ (pull * y))
            left = y - X @ trial
            reached = _likelihood(left, shape, counts)
            if reached[0] <= likelihood + 1e-3:
                break
            weights, residuals, (likelihood, pull, size) = trial, left, reached
        variance = max(float(counts @ residuals**2 / counts.sum()), FLOOR)
        information = X.T @ (X * size[:, None]) + ridge
        volume = float(np.linalg.slogdet(information)[1]) if parents else 0.0
        errors = np.diagonal(np.linalg.inv(information))
        return Fit(likelihood, weights, errors, variance, volume), residuals, pull, size
