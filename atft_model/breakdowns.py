"""Where the model's rank IC comes from, as rows of one table: age, sector, size, year, month,
predicted quantiles. NumPy only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from atft_model.evaluation import ScorerResult, TestPart
from atft_model.metrics.breakdown import (
    equal_groups,
    quantile_coverage,
    rank_ic_by_age,
    rank_ic_by_group,
)
from atft_model.metrics.inference import newey_west_mean, sharpe

AGES = (0, 1, 2, 3, 5, 10, 20)
"""Trading days that a score is old when it is used: the decay of the signal."""
SIZES = ("small", "middle", "large")
MIN_STOCKS_IN_GROUP = 10
MIN_DAYS_FOR_SHARPE = 60
"""Days below which a year's or a month's Sharpe ratio is not shown: its error exceeds 2."""


@dataclass(frozen=True)
class Row:
    """One figure of one group: breakdown, group, metric, value, standard error, dates."""

    horizon: int
    breakdown: str
    group: str
    metric: str
    value: float
    standard_error: float
    dates: int


def breakdown_rows(
    result: ScorerResult, score: Float[np.ndarray, "dates stocks"], part: TestPart
) -> list[Row]:
    """Rank IC by age of the score, sector, size, year and month; Sharpe by year.

    Args:
        result: Of the same score.
        score: Over all dates of the panel.
    """
    return [*_by_age(result, score, part), *_by_group(result, score, part), *_by_period(result)]


def coverage_rows(
    horizon: int,
    quantiles: Float[np.ndarray, "dates stocks levels"],
    levels: Sequence[float],
    demeaned_std: float,
    part: TestPart,
) -> list[Row]:
    """Share of the targets below each predicted quantile, and share of stocks that cross.

    Args:
        quantiles: Test dates; in units of the scaled target.
        levels: Of the quantiles, rising.
        demeaned_std: What the run divided its targets of this horizon by.
    """
    target = part.target(horizon)
    scored = part.tradable & np.isfinite(quantiles).all(axis=-1)
    raw = np.where(scored & np.isfinite(target), target, np.nan)
    known = np.isfinite(raw)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = np.where(known, raw, 0.0).sum(axis=1, keepdims=True) / count
    covered, crossed = quantile_coverage(quantiles, (raw - mean) / demeaned_std, scored)
    rows = [
        _row(horizon, "quantile", f"{level:g}", "coverage", covered[:, position])
        for position, level in enumerate(levels)
    ]
    return [*rows, _row(horizon, "quantile", "all", "crossing", crossed)]


def _by_age(result: ScorerResult, score: np.ndarray, part: TestPart) -> Iterator[Row]:
    target, horizon = part.target(result.horizon), result.horizon
    mine = np.asarray(score[part.days], dtype=np.float64)
    by_age = rank_ic_by_age(mine, target, part.tradable, AGES, part.config.min_stocks)
    for age, series in zip(AGES, by_age, strict=True):
        yield _row(horizon, "age", str(age), "rank_ic", series)


def _by_group(result: ScorerResult, score: np.ndarray, part: TestPart) -> Iterator[Row]:
    target, horizon = part.target(result.horizon), result.horizon
    mine = np.asarray(score[part.days], dtype=np.float64)
    valid = part.valid(mine, target)
    kinds = [("sector", np.broadcast_to(part.sector, mine.shape), part.panel.sectors)]
    if "size" in part.factors:
        kinds.append(("size", equal_groups(part.factors["size"], valid, len(SIZES)), SIZES))
    for breakdown, group, names in kinds:
        present = [g for g in range(len(names)) if (valid & (group == g)).any()]
        smallest = min(MIN_STOCKS_IN_GROUP, part.config.min_stocks)
        found = rank_ic_by_group(mine, target, valid, np.asarray(group, dtype=np.int64), present,
                                 smallest)  # fmt: skip
        for g, series in zip(present, found, strict=True):
            yield _row(horizon, breakdown, names[g], "rank_ic", series)


def _by_period(result: ScorerResult) -> Iterator[Row]:
    """Years and months. A month is too short to estimate its own autocorrelations: all periods
    take the long-run variance of the whole series, over their own number of dates."""
    returns, horizon = result.returns, result.horizon
    whole = newey_west_mean(result.rank_ic, horizon=horizon)
    per_date = whole.standard_error * np.sqrt(whole.T)
    for breakdown, unit in (("year", "Y"), ("month", "M")):
        periods = result.dates.astype(f"datetime64[{unit}]")
        of_returns = returns.dates.astype(f"datetime64[{unit}]")
        for period in np.unique(periods):
            name = str(period)
            series = result.rank_ic[periods == period]
            series = series[np.isfinite(series)]
            if series.size:
                error = float(per_date / np.sqrt(series.size))
                yield Row(horizon, breakdown, name, "rank_ic", float(series.mean()), error,
                          int(series.size))  # fmt: skip
            mine = of_returns == period
            total = float(np.prod(1.0 + returns.net[mine]) - 1.0) if mine.any() else float("nan")
            yield Row(horizon, breakdown, name, "return_net", total, float("nan"), int(mine.sum()))
            if mine.sum() >= MIN_DAYS_FOR_SHARPE:
                of_period = sharpe(returns.net[mine], returns.dates[mine])
                yield Row(horizon, breakdown, name, "sharpe_net", of_period.value,
                          of_period.standard_error, of_period.T)  # fmt: skip


def _row(horizon: int, breakdown: str, group: str, metric: str, series: np.ndarray) -> Row:
    estimate = newey_west_mean(series, horizon=horizon)
    return Row(horizon, breakdown, group, metric, estimate.mean, estimate.standard_error,
               estimate.T)  # fmt: skip
