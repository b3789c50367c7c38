"""Series that share one unobserved root: its most likely values, and how sure they are.

The model is x_t = Wᵀx_t + Σ_l A_lᵀx_{t−l} + Σ_l λ_l f_{t−l} + e_t with f white, of variance 1 and
never seen. Its lags enter too: where series react to each other's own moves only, a lagged edge
carries yesterday's factor with the opposite sign. For a given graph everything is fitted by EM
(Dempster, Laird, Rubin 1977). The factor's posterior is computed on a circle of days, where it is
diagonal in frequency; of a few hundred days, the ends weigh next to nothing.

What does not belong here: which graph (``common_factor.py``).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.structure.density import FLOOR
from atft_model.structure.series import RIDGE, Table

STEPS = 60
ENOUGH = 0.05
"""A step that raises twice the log likelihood by less than this ends the fit."""
HOPELESS = 20.0
"""A fit ends early when this many more steps as good as its last would not reach what it needs."""
SMALLEST_NOISE = 0.01
"""Share of a series' variance that no fit explains: a factor that is one of the series is none."""
START_SHARE = 0.5
"""Of the first principal component's variance that the first step takes to be the factor's."""

Parents = Bool[np.ndarray, "series columns"]


@dataclass(frozen=True)
class FactorFit:
    """A graph with its factor, fitted.

    Attributes:
        effects: Of the graph's edges; 0 elsewhere.
        loadings: Effect of the factor on each series, today and after each lag.
        noise: Variance that is left, in standardized units.
        values: Expected factor on each row's day, given all days.
        spectrum: What remains unknown of it: variance of its error by frequency.
        covariance: The same by days apart.
        log_likelihood: Twice the marginal one, up to a constant of the data.
    """

    effects: Float[np.ndarray, "series columns"]
    loadings: Float[np.ndarray, "series lags_and_today"]
    noise: Float[np.ndarray, " series"]
    values: Float[np.ndarray, " rows"]
    spectrum: Float[np.ndarray, " frequencies"]
    covariance: Float[np.ndarray, " lags_and_today"]
    log_likelihood: float


class FactorModel:
    """Fits one table's graphs; remembers what does not depend on the graph."""

    def __init__(self, table: Table) -> None:
        self.rows, self.series, self.lags = table.rows, table.series, table.lags
        count, self.columns = self.rows.shape
        # Expected values stand in for missing ones, and vary less: correlations know by how much.
        self.moments_of_rows = table.correlation
        self._weight = table.effective_rows / count
        self._frequency = 2 * np.pi * np.fft.rfftfreq(count)
        # A real series' spectrum holds each frequency twice but the first and, if even, the last.
        self._times = np.full(len(self._frequency), 2.0)
        self._times[0] = 1.0
        if count % 2 == 0:
            self._times[-1] = 1.0
        self._turns = np.exp(-1j * np.outer(np.arange(self.lags + 1), self._frequency))

    def fit(
        self, parents: Parents, start: FactorFit | None = None, needed: float = -np.inf
    ) -> FactorFit:
        """EM until it stands still.

        Args:
            start: The fit of a similar graph; without it a principal component.
            needed: Twice the log likelihood below which nobody cares for the result.
        """
        last = start or self._first_guess()
        moments = self._moments(last.values, last.covariance)
        reached = -np.inf
        for _ in range(STEPS):
            last = self._expect(*self._maximize(moments, parents))
            moved = last.log_likelihood - reached
            reached = last.log_likelihood
            if moved < ENOUGH or reached + HOPELESS * moved < needed:
                break
            moments = self._moments(last.values, last.covariance)
        return last

    def single_edges(
        self, parents: Parents, fit: FactorFit
    ) -> tuple[Float[np.ndarray, "series columns"], Float[np.ndarray, "series columns"]]:
        """What each absent edge would gain and each present one would cost, the factor kept.

        Twice the log likelihood at the factor's present moments, a bound from below on what a new
        fit gains. Absent edges' costs are infinite; gains are -1 where there is nothing to add.
        """
        moments = self._moments(fit.values, fit.covariance)
        count, columns = len(self.rows), self.columns
        gain = np.full(parents.shape, -1.0)
        cost = np.full(parents.shape, np.inf)
        everything = np.diagonal(moments)[:columns]
        for target in range(self.series):
            index = self._regressors(parents[target])
            inverse = np.linalg.inv(moments[np.ix_(index, index)])
            weights = inverse @ moments[index, target]
            left = moments[target, target] - weights @ moments[index, target]
            cross = moments[index, :columns]
            spread = everything - (cross * (inverse @ cross)).sum(axis=0)
            toward = moments[target, :columns] - weights @ cross
            share = np.minimum(toward**2 / (np.maximum(spread, FLOOR) * left), 1 - FLOOR)
            free = ~parents[target] & (spread > RIDGE)
            free[target] = False
            gain[target, free] = -self._weight * count * np.log1p(-share[free])
            edges = int(parents[target].sum())
            lost = weights[:edges] ** 2 / (np.diagonal(inverse)[:edges] * left)
            cost[target, index[:edges]] = self._weight * count * np.log1p(lost)
        return gain, cost

    def factor_gains(self, parents: Parents, fit: FactorFit) -> Float[np.ndarray, " series"]:
        """Twice the log likelihood that each series' loadings save, the factor kept."""
        moments = self._moments(fit.values, fit.covariance)
        gains = np.zeros(self.series)
        for target in range(self.series):
            without = np.flatnonzero(parents[target])
            weights = np.linalg.solve(moments[np.ix_(without, without)], moments[without, target])
            alone = moments[target, target] - weights @ moments[without, target]
            gains[target] = len(self.rows) * np.log(max(alone, FLOOR) / fit.noise[target])
        return self._weight * gains

    def _regressors(self, parents: Bool[np.ndarray, " columns"]) -> np.ndarray:
        """A series' parents, then the factor today and before."""
        return np.r_[np.flatnonzero(parents), self.columns + np.arange(self.lags + 1)]

    def _first_guess(self) -> FactorFit:
        """The first principal component of today's columns, half of its variance the factor's."""
        today = self.moments_of_rows[: self.series, : self.series]
        sizes, directions = np.linalg.eigh(today)
        loadings = np.zeros((self.series, self.lags + 1))
        loadings[:, 0] = directions[:, -1] * np.sqrt(START_SHARE * sizes[-1])
        nothing = np.zeros((self.series, self.columns))
        return self._expect(nothing, loadings, np.full(self.series, START_SHARE))

    def _expect(self, effects: np.ndarray, loadings: np.ndarray, noise: np.ndarray) -> FactorFit:
        """The factor's posterior, and the likelihood with the factor integrated out."""
        count = len(self.rows)
        residuals = self.rows[:, : self.series] - self.rows @ effects.T
        weighed = loadings / noise[:, None]
        evidence = residuals @ weighed
        toward = sum(np.roll(evidence[:, lag], -lag) for lag in range(self.lags + 1))
        precision = 1 + np.real(
            np.einsum("lw,lm,mw->w", self._turns.conj(), loadings.T @ weighed, self._turns)
        )
        values = np.fft.irfft(np.fft.rfft(toward) / precision, count)
        covariance = np.array([
            (self._times * np.cos(lag * self._frequency) / precision).sum() / count
            for lag in range(self.lags + 1)
        ])  # fmt: skip
        volume = count * np.log(noise).sum() + (self._times * np.log(precision)).sum()
        left = np.hstack([np.eye(self.series), np.zeros((self.series, self.columns - self.series))])
        left -= effects
        squares = ((left @ self.moments_of_rows) * left).sum(axis=1)
        misfit = count * (squares / noise).sum() - toward @ values
        likelihood = -self._weight * float(volume + misfit)
        return FactorFit(effects, loadings, noise, values, 1 / precision, covariance, likelihood)

    def _moments(self, values: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Second moments of all columns and of the factor today and before, its doubt included."""
        count, columns, lags = len(self.rows), self.columns, np.arange(self.lags + 1)
        factor = np.column_stack([np.roll(values, lag) for lag in lags])
        moments = np.zeros((columns + len(lags),) * 2)
        moments[:columns, :columns] = self.moments_of_rows
        moments[:columns, columns:] = self.rows.T @ factor / count
        moments[columns:, :columns] = moments[:columns, columns:].T
        apart = np.abs(np.subtract.outer(lags, lags))
        moments[columns:, columns:] = factor.T @ factor / count + covariance[apart]
        return moments

    def _maximize(self, moments: np.ndarray, parents: Parents):
        """Every series regressed on its parents and the factor."""
        effects = np.zeros((self.series, self.columns))
        loadings = np.zeros((self.series, self.lags + 1))
        noise = np.zeros(self.series)
        for target in range(self.series):
            index = self._regressors(parents[target])
            weights = np.linalg.solve(moments[np.ix_(index, index)], moments[index, target])
            split = len(index) - self.lags - 1
            effects[target, index[:split]] = weights[:split]
            loadings[target] = weights[split:]
            left = moments[target, target] - weights @ moments[index, target]
            noise[target] = max(left, SMALLEST_NOISE)
        return effects, loadings, noise
