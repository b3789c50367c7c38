"""Scores as rows, judged date by date by the returns that followed.

For tables of scores that belong to no one panel: two runs' scores side by side, or those that were
handed out day by day. Scores on a panel's axes are judged in ``atft_model/evaluation.py``.
"""

import numpy as np
import polars as pl

from atft_model.metrics.rank_ic import MIN_STOCKS, rank_ic


def rank_ic_by_date(
    rows: pl.DataFrame, score: str, forward_return: str, min_stocks: int = MIN_STOCKS
) -> pl.DataFrame:
    """Rank IC of a score on each date that the rows have.

    Args:
        rows: One per (date, code). A row whose score or return is null or NaN takes no part.
        score: Name of the score's column.
        forward_return: Name of the return's column.
        min_stocks: Fewest usable rows of a date for a defined value.

    Returns:
        date, stocks (usable rows), rank_ic (null where undefined), in date order.
    """
    if rows.is_empty():
        return pl.DataFrame(schema={"date": pl.Date, "stocks": pl.Int64, "rank_ic": pl.Float64})
    day = rows["date"].rank("dense").to_numpy().astype(np.int64) - 1
    stock = rows["code"].rank("dense").to_numpy().astype(np.int64) - 1
    shape = (int(day.max()) + 1, int(stock.max()) + 1)
    x, y = np.full(shape, np.nan), np.full(shape, np.nan)
    for grid, name in ((x, score), (y, forward_return)):
        grid[day, stock] = rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    usable = np.isfinite(x) & np.isfinite(y)
    return pl.DataFrame(
        {
            "date": rows["date"].unique().sort(),
            "stocks": usable.sum(axis=1),
            "rank_ic": pl.Series(rank_ic(x, y, usable, min_stocks)).fill_nan(None),
        }
    )
