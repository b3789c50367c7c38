"""From raw series to the standardized table that every stage reads: today's columns, then lags.

Exogenous series are regressed out of every column with coefficients of the rows given (today's
and lagged values of them), which equals letting them enter as parents of everything. Missing
values stay missing until ``expected_values`` replaces them by what the other values of the same
row lead one to expect; they are never filled with 0, and a missing target never counts.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from atft_model.errors import InputError

MIN_ROWS_PER_SERIES = 3
EM_STEPS = 25
EM_TOLERANCE = 1e-4
RIDGE = 1e-6
"""Added to the diagonal of a correlation before it is inverted: two copies of one series are a
finding, not a crash."""


@dataclass(frozen=True)
class Series:
    """Named series in raw units; NaN is missing."""

    values: Float[np.ndarray, "times series"]
    names: tuple[str, ...]
    exogenous: Float[np.ndarray, "times exogenous"] | None = None
    exogenous_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Standardized rows: columns 0..series−1 are today, then lag 1, lag 2, ..."""

    rows: Float[np.ndarray, "rows columns"]
    """Mean 0 and variance 1 per column over observed values; missing ones hold expected values."""
    observed: Bool[np.ndarray, "rows columns"]
    correlation: Float[np.ndarray, "columns columns"]
    series: int
    lags: int
    exogenous_effects: Float[np.ndarray, "exogenous_columns series"]
    """Per standard deviation of the series and of the exogenous column (today, then lags)."""

    @property
    def effective_rows(self) -> float:
        """Rows, counted by the share of today's values that was observed."""
        return float(self.observed[:, : self.series].mean() * len(self.rows))


def make_table(series: Series, lags: int) -> Table:
    """Lags, exogenous series out, standardized, expected values in.

    Raises:
        InputError: too few rows, a constant series, missing exogenous values, infinite values.
    """
    _check(series, lags)
    values = _standardize(series.values)
    rows = _with_lags(values, lags)
    count = values.shape[1]
    effects = np.zeros((0, count))
    if series.exogenous is not None and series.exogenous.shape[1]:
        outside = _with_lags(_standardize(series.exogenous), lags)
        rows, effects = _regress_out(rows, outside)
        effects = effects[:, :count]
    rows = _standardize(rows)
    observed = np.isfinite(rows)
    rows, covariance = expected_values(rows)
    spread = np.sqrt(np.diagonal(covariance))
    correlation = covariance / np.outer(spread, spread)
    return Table(rows, observed, correlation, count, lags, effects)


def correlation_of(table: Table, weights: Float[np.ndarray, " rows"]) -> np.ndarray:
    """Correlations with rows counted ``weights`` times (a bootstrap resample)."""
    if table.observed.all():
        rows = table.rows - weights @ table.rows / weights.sum()
        covariance = (rows * weights[:, None]).T @ rows / weights.sum()
    else:
        chosen = np.repeat(np.arange(len(weights)), weights.astype(int))
        rows = np.where(table.observed, table.rows, np.nan)[chosen]
        covariance = expected_values(_standardize(rows))[1]
    covariance = covariance + RIDGE * np.eye(len(covariance))
    spread = np.sqrt(np.diagonal(covariance))
    return covariance / np.outer(spread, spread)


def expected_values(
    rows: Float[np.ndarray, "rows columns"],
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "columns columns"]]:
    """Missing values replaced by their expectation given the rest of the row, and the covariance.

    The EM algorithm for a normal distribution (Dempster, Laird, Rubin 1977): unbiased when values
    are missing at random given what is observed. Rows are grouped by which columns they lack.
    """
    missing = ~np.isfinite(rows)
    filled = np.where(missing, 0.0, rows)  # the first step's start, replaced below
    identity = np.eye(rows.shape[1])
    covariance = filled.T @ filled / len(rows) + RIDGE * identity
    if not missing.any():
        return rows, covariance
    patterns, group = np.unique(missing, axis=0, return_inverse=True)
    members = [np.flatnonzero(group.ravel() == index) for index in range(len(patterns))]
    mean = np.zeros(rows.shape[1])
    for _ in range(EM_STEPS):
        precision = np.linalg.inv(covariance)
        uncertain = np.zeros_like(covariance)
        for pattern, index in zip(patterns, members, strict=True):
            if not pattern.any():
                continue
            own = np.linalg.inv(precision[np.ix_(pattern, pattern)])
            rest = filled[np.ix_(index, ~pattern)] - mean[~pattern]
            filled[np.ix_(index, pattern)] = (
                mean[pattern] - rest @ precision[np.ix_(~pattern, pattern)] @ own
            )
            uncertain[np.ix_(pattern, pattern)] += len(index) * own
        mean = filled.mean(axis=0)
        centered = filled - mean
        updated = (centered.T @ centered + uncertain) / len(rows) + RIDGE * identity
        moved = np.abs(updated - covariance).max()
        covariance = updated
        if moved < EM_TOLERANCE:
            break
    return filled, covariance


def _with_lags(values: np.ndarray, lags: int) -> np.ndarray:
    times = len(values)
    return np.concatenate([values[lags - lag : times - lag] for lag in range(lags + 1)], axis=1)


def _standardize(values: np.ndarray) -> np.ndarray:
    return (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)


def _regress_out(rows: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of every column on the exogenous columns, over its own observed rows."""
    design = np.column_stack([np.ones(len(outside)), outside])
    left, effects = rows.copy(), np.zeros((outside.shape[1], rows.shape[1]))
    for column in range(rows.shape[1]):
        known = np.isfinite(rows[:, column])
        solution = np.linalg.lstsq(design[known], rows[known, column], rcond=None)[0]
        left[:, column] -= design @ solution
        effects[:, column] = solution[1:]
    return left, effects


def _check(series: Series, lags: int) -> None:
    values = series.values
    times, count = values.shape
    if count != len(series.names):
        raise InputError(f"series: {count} columns but {len(series.names)} names")
    if count < 2:
        raise InputError(f"series: {count} column; a structure needs at least 2")
    needed = MIN_ROWS_PER_SERIES * count * (lags + 1) + lags
    if times < needed:
        raise InputError(
            f"series: {times} rows for {count} series with {lags} lags; expected at least "
            f"{needed}: give more rows, fewer series or fewer lags"
        )
    if np.isinf(values).any():
        raise InputError("series: infinite values; leave missing values empty instead")
    known = np.isfinite(values)
    for index, name in enumerate(series.names):
        column = values[known[:, index], index]
        if len(column) < times / 2:
            raise InputError(
                f"series {name!r}: {len(column)} of {times} values present; expected at least "
                "half: leave it out"
            )
        if np.ptp(column) <= 1e-12 * np.abs(column).max():
            raise InputError(f"series {name!r} is constant; leave it out")
    if series.exogenous is not None:
        if not np.isfinite(series.exogenous).all():
            raise InputError(
                f"exogenous series {', '.join(series.exogenous_names)}: missing values; "
                "give them complete, or as ordinary series"
            )
        if len(series.exogenous) != times:
            raise InputError(f"exogenous: {len(series.exogenous)} rows, series: {times} rows")
