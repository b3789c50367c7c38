"""How likely one series is, given its parents: Gaussian noise, or heavy tails with clustered volatility."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

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
    noise_variance: float
    """Variance of what the parents leave, in standardized units."""
    log_information: float
    """Log determinant of the information matrix of the weights."""


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
            return Fit(0.0, np.zeros(0), 1.0, 0.0)
        index = list(parents)
        gram = self.correlation[np.ix_(index, index)]
        toward = self.correlation[index, target]
        weights = np.linalg.solve(gram, toward)
        left = max(1.0 - float(weights @ toward), FLOOR)
        volume = np.linalg.slogdet(gram)[1] + len(index) * np.log(self.rows / left)
        return Fit(-self.rows * float(np.log(left)), weights, left, float(volume))

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
