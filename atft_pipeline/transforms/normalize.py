"""Normalization of the feature table, and the statistics that show whether it worked.

Each feature has its own normalizer. Per-date scores see their own date only. Time-series statistics
see training dates only; their arithmetic is in ``atft_model.data.normalizer``, because training
applies it to every split. The bounds that the statistics must meet are in ``schemas``.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from atft_model.data.normalizer import (
    LOWER_QUANTILE,
    UPPER_QUANTILE,
    TimeSeriesStatistics,
    apply_time_series,
    fit_time_series,
)
from atft_model.errors import InputError
from atft_pipeline.schemas import ALL_FEATURES
from atft_pipeline.transforms.cross_section import winsorized_z_scores
from atft_pipeline.transforms.features import Feature, Normalizer

MIN_CROSS_SECTION = 20
"""Stocks. Below it a quantile at 1 % is the minimum and one stock moves every other's score."""

CROSS_SECTION_QUANTILES = (0.01, 0.99)


@dataclass(frozen=True)
class Normalized:
    """The normalized table and what made it.

    Attributes:
        table: ``date, code`` and the Float32 columns of ``features``; null where unknown.
        features: Those kept, in registry order.
        statistics: Of the time-series features among them.
        left_out: Feature name to the reason that it says nothing on the training dates.
    """

    table: pl.DataFrame
    features: tuple[Feature, ...]
    statistics: TimeSeriesStatistics
    left_out: dict[str, str]


def normalize_cross_section(table: pl.DataFrame, features: Sequence[Feature]) -> pl.DataFrame:
    """Z-scores among each date's stocks, for the ``cross_section`` features; others untouched.

    Winsorized at the date's 1 % and 99 % quantiles, then scored, then cut at ±5. A date with fewer
    than ``MIN_CROSS_SECTION`` known values, or whose values are equal, is null there, never 0: a
    table of zeros looks normalized and carries nothing.
    """
    names = _names(features, "cross_section")
    order = np.argsort(table["date"].to_physical().to_numpy(), kind="stable")
    values = _matrix(table, names)
    scores = np.empty_like(values)
    for rows in np.split(order, _last_rows(table["date"][order])):
        date_values = values[rows].T.astype(np.float64)
        scores[rows] = winsorized_z_scores(
            date_values, CROSS_SECTION_QUANTILES, MIN_CROSS_SECTION
        ).T
    return table.with_columns(_columns(scores, names))


def _last_rows(ordered_date: pl.Series) -> Int[np.ndarray, " cuts"]:
    """Where one date ends and the next begins, in rows ordered by date."""
    return np.flatnonzero(np.diff(ordered_date.to_physical().to_numpy())) + 1


def fit_and_apply(
    table: pl.DataFrame, features: Sequence[Feature], train_start: dt.date, train_end: dt.date
) -> Normalized:
    """The normalized table of one split.

    Args:
        table: The ``features`` table, raw units.
        features: Its columns' definitions, in column order.
        train_start: First training date, included.
        train_end: Last training date, included. No later row affects any statistic.

    Raises:
        InputError: No row on training dates, or none of them has ``MIN_CROSS_SECTION`` stocks.
    """
    in_training = pl.col("date").is_between(train_start, train_end)
    training = table.filter(in_training)
    _refuse_thin_training(training, table, train_start, train_end)
    left_out = constant_features(training, features)
    kept = [feature for feature in features if feature.name not in left_out]
    result = normalize_cross_section(
        table.select("date", "code", *(feature.name for feature in kept)), kept
    )
    unscored = _never_scored(result.filter(in_training), kept)
    left_out |= unscored
    kept = [feature for feature in kept if feature.name not in unscored]
    names = _names(kept, "time_series")
    statistics = fit_time_series(_matrix(training, names), names)
    scores = apply_time_series(_matrix(table, names), statistics)
    result = result.drop(unscored).with_columns(_columns(scores, names))
    return Normalized(result, tuple(kept), statistics, left_out)


def constant_features(training: pl.DataFrame, features: Sequence[Feature]) -> dict[str, str]:
    """Features that say nothing on the training rows, each with the reason in words.

    Nearly constant means that the 0.5 % and 99.5 % quantiles coincide: 99 % of rows or more hold
    one value, and the standard deviation is that of a few outliers.
    """
    reasons: dict[str, str] = {}
    for feature in features:
        column = training[feature.name].drop_nulls()
        if column.is_empty():
            reasons[feature.name] = "no known value on training dates"
        elif column.min() == column.max():
            reasons[feature.name] = f"constant on training dates: always {column[0]:g}"
        else:
            lower = column.quantile(LOWER_QUANTILE, "linear")
            if lower == column.quantile(UPPER_QUANTILE, "linear"):
                reasons[feature.name] = (
                    f"nearly constant on training dates: {lower:g} on 99 % of rows or more"
                )
    return reasons


def feature_statistics(
    table: pl.DataFrame, features: Sequence[Feature], start: dt.date, end: dt.date
) -> pl.DataFrame:
    """What the columns look like between two dates, both included.

    Returns:
        One row per feature: ``feature, normalizer, rows, mean, std, null_share, zero_share, min,
        max, other_share``; then the row ``__all__`` (normalizer ``continuous``) for every value of
        the continuous features together. ``std`` is the population's; ``zero_share`` is the share
        of known values that are exactly 0, ``other_share`` of a flag's that are neither 0 nor 1
        (null for others). Null where a column has no known value.
    """
    rows = table.filter(pl.col("date").is_between(start, end))
    each = pl.concat(_describe(rows[feature.name], feature.normalizer) for feature in features)
    return pl.concat([each, _pooled(each.filter(pl.col("normalizer") != "none"))])


def _describe(column: pl.Series, normalizer: str) -> pl.DataFrame:
    value = pl.col("value")
    other = (~value.is_in([0.0, 1.0])).mean() if normalizer == "none" else pl.lit(None, pl.Float64)
    return pl.DataFrame({"value": column.cast(pl.Float64)}).select(
        feature=pl.lit(column.name),
        normalizer=pl.lit(normalizer),
        rows=pl.len().cast(pl.Int64),
        mean=value.mean(),
        std=value.std(ddof=0),
        null_share=value.is_null().mean(),
        zero_share=(value == 0.0).mean(),
        min=value.min(),
        max=value.max(),
        other_share=other,
    )


def _pooled(each: pl.DataFrame) -> pl.DataFrame:
    """One row for all values of several columns, from the columns' own rows."""
    known = pl.col("rows") * (1.0 - pl.col("null_share"))
    mean = (pl.col("mean") * known).sum() / known.sum()
    square = ((pl.col("std").pow(2) + pl.col("mean").pow(2)) * known).sum() / known.sum()
    return each.select(
        feature=pl.lit(ALL_FEATURES),
        normalizer=pl.lit("continuous"),
        rows=pl.col("rows").sum(),
        mean=mean,
        std=(square - mean.pow(2)).sqrt(),
        null_share=1.0 - known.sum() / pl.col("rows").sum(),
        zero_share=(pl.col("zero_share") * known).sum() / known.sum(),
        min=pl.col("min").min(),
        max=pl.col("max").max(),
        other_share=pl.lit(None, pl.Float64),
    )


def _names(features: Sequence[Feature], normalizer: Normalizer) -> list[str]:
    return [feature.name for feature in features if feature.normalizer == normalizer]


def _refuse_thin_training(
    training: pl.DataFrame, table: pl.DataFrame, train_start: dt.date, train_end: dt.date
) -> None:
    span = f"{train_start} to {train_end}"
    if training.is_empty():
        raise InputError(
            f"normalization: no feature row on training dates {span}; the table holds "
            f"{table['date'].min()} to {table['date'].max()}; move the split"
        )
    most = training.group_by("date").len()["len"].max()
    if isinstance(most, int) and most < MIN_CROSS_SECTION:
        raise InputError(
            f"normalization: at most {most} stocks on any training date, {span}; scores within a "
            f"date need {MIN_CROSS_SECTION}; give more stocks"
        )


def _never_scored(training: pl.DataFrame, features: Sequence[Feature]) -> dict[str, str]:
    """Cross-section features that no training date could score."""
    return {
        name: f"no training date has {MIN_CROSS_SECTION} stocks with differing values"
        for name in _names(features, "cross_section")
        if training[name].null_count() == training.height
    }


def _matrix(table: pl.DataFrame, names: Sequence[str]) -> Float[np.ndarray, "rows features"]:
    """The columns as float32, null turned into NaN; no name gives a matrix without columns."""
    values = table.select(names).to_numpy()
    return values.astype(np.float32, copy=False).reshape(table.height, len(names))


def _columns(scores: Float[np.ndarray, "rows features"], names: Sequence[str]) -> list[pl.Series]:
    """One Float32 column per feature, NaN turned into null."""
    return [
        pl.Series(name, np.ascontiguousarray(scores[:, column]), dtype=pl.Float32).fill_nan(None)
        for column, name in enumerate(names)
    ]
