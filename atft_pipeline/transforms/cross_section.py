"""Statistics across the stocks of one date. Each date is computed from its own rows only.

Float sums over the rows of a date are taken by NumPy, row after row, on purpose: polars, lazy or
eager, adds up a group in an order that depends on how many rows the whole frame has, so the same
date would give other bits when later dates are cut off.
"""

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from atft_model.data.normalizer import CLIP, winsorized_moments


def equal_weighted_return(bars: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Mean one-bar return of the stocks in each group, and how many stocks had a bar.

    Args:
        bars: Rows with ``return_1d`` (null where the stock has no earlier bar) and the ``by``
            columns, sorted by (code, date); the order fixes the bits of the sum.
        by: ``["date"]``, or ``["sector", "date"]``.

    Returns:
        ``by`` columns, ``members`` (stocks with a bar), ``return_1d`` (null where no member has a
        return), ``level`` (growth of 1 invested at the group's first date; an unknown return
        leaves it flat), sorted by the ``by`` columns.
    """
    keys = [_numbered(bars[column]) for column in by]
    group, size = np.zeros(bars.height, dtype=np.int64), 1
    for number, names in keys:
        group, size = group * len(names) + number, size * len(names)
    own_return = bars["return_1d"].to_numpy()
    known = np.isfinite(own_return)
    members = np.bincount(group, minlength=size)
    returns = np.bincount(group[known], minlength=size)
    total = np.bincount(group, np.where(known, own_return, 0.0), minlength=size)
    there = np.flatnonzero(members)
    mean = total[there] / np.where(returns > 0, returns, np.nan)[there]
    columns, rest = [], there
    for _, names in reversed(keys):
        columns.append(names.gather(rest % max(1, len(names))))
        rest = rest // max(1, len(names))
    groups = pl.DataFrame(columns[::-1]).with_columns(
        members=members[there], return_1d=pl.Series(mean, nan_to_null=True)
    )
    growth = (pl.col("return_1d").fill_null(0.0) + 1.0).cum_prod()
    outer = [column for column in by if column != "date"]
    return groups.with_columns(level=growth.over(outer) if outer else growth)


def _numbered(column: pl.Series) -> tuple[Int[np.ndarray, " rows"], pl.Series]:
    """Each value's place among the column's distinct values, and those, rising."""
    names = column.unique().sort()
    if column.dtype == pl.String:
        return column.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64), names
    number = column.to_physical().to_numpy().astype(np.int64)
    distinct = names.to_physical().to_numpy().astype(np.int64)
    if not len(distinct):
        return number, names
    place = np.zeros(distinct[-1] - distinct[0] + 1, dtype=np.int64)
    place[distinct - distinct[0]] = np.arange(len(distinct))
    return place[number - distinct[0]], names


def winsorized_z_scores(
    values: Float[np.ndarray, "features stocks"],
    quantiles: tuple[float, float],
    min_count: int,
) -> Float[np.ndarray, "features stocks"]:
    """Z-score of each feature among the stocks of one date.

    Values are winsorized at the two quantiles (``winsorized_moments``), scored with the mean and
    population standard deviation that this leaves, and cut at ±5.

    Returns:
        NaN where a value is unknown, and for every stock, never 0, where the date has fewer than
        ``min_count`` known values or they are equal between the quantiles: such a date ranks
        nothing.
    """
    moments = winsorized_moments(values, *quantiles)
    ranks = (moments.count >= min_count) & (moments.std > 0.0)
    std = np.where(ranks, moments.std, np.nan)[:, None]
    pulled_in = values.clip(moments.lower[:, None], moments.upper[:, None])
    return ((pulled_in - moments.mean[:, None]) / std).clip(-CLIP, CLIP)
