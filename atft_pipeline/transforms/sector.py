"""Sector series: the equal-weighted mean of the member stocks, by sector and date.

Membership is the listing table's current sector: a stock that moved counts in its present sector
throughout. A sector with fewer than ``MIN_SECTOR_STOCKS`` stocks on a day is no cross-section: its
features are null there, and the mask ``is_sec_cs_valid`` says so.
"""

import polars as pl

from atft_pipeline.transforms.cross_section import equal_weighted_return
from atft_pipeline.transforms.windows import bar_numbers

MIN_SECTOR_STOCKS = 5


def sector_series(bars: pl.DataFrame) -> pl.DataFrame:
    """``sector, date, bar, members, return_1d, level``, sorted by (sector, date).

    Args:
        bars: Stock bars sorted by (code, date), with ``sector`` (null where unknown: such stocks
            count in no sector) and ``return_1d``.
    """
    members = bars.select("sector", "date", "return_1d").filter(pl.col("sector").is_not_null())
    series = equal_weighted_return(members, ["sector", "date"])
    first = (series["sector"] != series["sector"].shift(1)).fill_null(True)
    return series.with_columns(bar_numbers(first.to_numpy()))


def where_enough_members(value: pl.Expr, members: pl.Expr) -> pl.Expr:
    """``value`` where the sector has at least ``MIN_SECTOR_STOCKS`` stocks that day, else null."""
    return pl.when(members >= MIN_SECTOR_STOCKS).then(value)


def has_enough_members(members: pl.Expr) -> pl.Expr:
    """1 where the sector is known and large enough that day, else 0; never null."""
    return (members >= MIN_SECTOR_STOCKS).fill_null(False).cast(pl.Float64)
