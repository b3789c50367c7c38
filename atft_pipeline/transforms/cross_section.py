"""Statistics across the stocks of one date. Each date is computed from its own rows only.

Float sums over the rows of a date are taken by NumPy, row after row, on purpose: polars, lazy or
eager, adds up a group in an order that depends on how many rows the whole frame has, so the same
date would give other bits when later dates are cut off.
"""

import numpy as np
import polars as pl
from jaxtyping import Float

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
    groups = (
        bars.group_by(by)
        .agg(pl.len().alias("members"), pl.col("return_1d").count().alias("known"))
        .sort(by)
    )
    group = bars.select(by).join(
        groups.select(by).with_row_index("group"), on=by, how="left", maintain_order="left"
    )["group"]
    total = np.bincount(
        group.to_numpy(), bars["return_1d"].fill_null(0.0).to_numpy(), minlength=groups.height
    )
    mean = pl.when(pl.col("known") > 0).then(pl.Series(total) / pl.col("known"))
    growth = (pl.col("return_1d").fill_null(0.0) + 1.0).cum_prod()
    outer = [column for column in by if column != "date"]
    return groups.select(*by, "members", return_1d=mean).with_columns(
        level=growth.over(outer) if outer else growth
    )


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
