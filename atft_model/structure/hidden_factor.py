"""Is a factor missing that drives most series, such as a market that was not given?

A hidden factor links every pair of series, so a sparse graph is learned dense and wrong. The flag
compares two models by extended BIC: the graph as it is, and a graph with one unobserved root. The
second is fitted by structural EM (Friedman 1997): the factor's expected values and their
uncertainty given the present graph, then a new order search with the factor as a candidate parent
of everything. It starts from a factor analysis.
"""

from dataclasses import dataclass

import numpy as np

from atft_model.structure.config import SearchConfig
from atft_model.structure.order_search import LocalScores, OrderSearch, regressions
from atft_model.structure.series import RIDGE, Table

STEPS = 20
FACTOR_STEPS = 50
ENOUGH = 1.0
"""A step that raises the score by less than this ends the fit."""

PERVASIVE = 0.5
"""A factor is called so when it drives at least this share of the series."""


@dataclass(frozen=True)
class HiddenFactor:
    """Evidence for one unobserved common driver."""

    likely: bool
    bic_gain: float
    """Extended BIC saved by the factor; above 0 speaks for it."""
    driven_share: float
    """Share of series that the factor drives."""
    edges_without: int
    edges_with: int
    """Edges between series, today's and lagged, without and with the factor."""


def find_hidden_factor(table: Table, config: SearchConfig, order: tuple[int, ...]) -> HiddenFactor:
    """Fits the graph with and without one hidden root, both starting from ``order``."""
    rows, count = table.effective_rows, table.series
    cost = np.log(rows) + 2 * config.extra_penalty * np.log(table.rows.shape[1] - 1)
    plain = OrderSearch(LocalScores(table.correlation, rows, cost, count)).improve(order)
    plain_score = plain.score - rows * count
    factor, uncertainty = _one_factor(table.rows[:, :count])
    best = (-np.inf, 0.0, 0)
    for _ in range(STEPS):
        spread = np.sqrt(np.mean(factor**2) + uncertainty)
        augmented = _augment(table.correlation, table.rows.T @ factor / len(factor) / spread)
        scores = LocalScores(augmented, rows, cost, count)
        found = OrderSearch(scores).improve(order)
        order = found.order
        loadings, noise, residuals = _split(scores, found.parents, table.rows)
        score = _marginal(residuals, loadings, noise, rows) - cost * found.parents.sum()
        reached = (score, float(np.mean(loadings != 0)), int(found.parents[:, :-1].sum()))
        stalled = score < best[0] + ENOUGH
        best = max(best, reached)
        if stalled:
            break
        precision = 1 + np.sum(loadings**2 / noise)
        factor = residuals @ (loadings / noise) / precision
        uncertainty = 1 / precision
    gain = best[0] - plain_score
    return HiddenFactor(
        likely=bool(gain > 0 and best[1] >= PERVASIVE), bic_gain=float(gain),
        driven_share=best[1], edges_without=int(plain.parents.sum()), edges_with=best[2],
    )  # fmt: skip


def _one_factor(today: np.ndarray) -> tuple[np.ndarray, float]:
    """Expected values and variance of one factor without any graph (factor analysis by EM)."""
    sample = today.T @ today / len(today)
    values, vectors = np.linalg.eigh(sample)
    loadings = vectors[:, -1] * np.sqrt(values[-1] / 2)
    noise = np.full(len(sample), 0.5)
    for _ in range(FACTOR_STEPS):
        precision = 1 + np.sum(loadings**2 / noise)
        gain = loadings / noise / precision
        spread = gain @ sample @ gain + 1 / precision
        loadings = sample @ gain / spread
        noise = np.maximum(np.diagonal(sample) - loadings * (sample @ gain), 0.05)
    precision = 1 + np.sum(loadings**2 / noise)
    return today @ (loadings / noise) / precision, 1 / precision


def _augment(correlation: np.ndarray, toward: np.ndarray) -> np.ndarray:
    """The correlations with the factor as one more column."""
    size = len(correlation)
    wide = np.eye(size + 1)
    wide[:size, :size] = correlation
    wide[size, :size] = wide[:size, size] = toward
    return wide + RIDGE * np.eye(size + 1)


def _split(scores: LocalScores, parents: np.ndarray, rows: np.ndarray):
    """Loadings on the factor, noise variances, and residuals on everything else."""
    targets = np.arange(scores.targets)
    _, weights, left, index, real = regressions(scores, targets, parents)
    effects = np.zeros(parents.shape)
    np.put_along_axis(effects, index, np.where(real, weights, 0.0), axis=1)
    residuals = rows[:, : scores.targets] - rows @ effects[:, :-1].T
    return effects[:, -1], left, residuals


def _marginal(residuals: np.ndarray, loadings: np.ndarray, noise: np.ndarray, rows: float) -> float:
    """Twice the log likelihood of residuals with covariance diag(noise) + loadings·loadingsᵀ."""
    covariance = np.diag(noise) + np.outer(loadings, loadings)
    sample = residuals.T @ residuals / len(residuals)
    log_det = np.linalg.slogdet(covariance)[1]
    return -rows * float(log_det + np.trace(np.linalg.solve(covariance, sample)))
