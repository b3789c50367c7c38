"""How much of a stock trades: expressions over the stock's own bars, oldest first."""

import polars as pl

from atft_pipeline.transforms.returns import ratio
from atft_pipeline.transforms.windows import window_mean


def volume_ratio(volume: pl.Expr, bars: int) -> pl.Expr:
    """``volume / mean(volume over bars)``, today included: between 0 and ``bars``.

    ``volume`` is split-adjusted, so a split does not look like a burst of trading.
    """
    return ratio(volume, window_mean(volume, bars))


def turnover_rate(turnover: pl.Expr, raw_close: pl.Expr, shares_outstanding: pl.Expr) -> pl.Expr:
    """Share of the company that changed hands: ``(turnover / raw_close) / shares_outstanding``.

    Traded value over the raw close gives shares in the day's own units (exact where the vendor's
    turnover is price times volume, else up to the day's range). ``shares_outstanding`` is that of
    the newest statement, or the listing table's single figure where there is none: between a split
    and the next statement (with listings, before the split) it is in other units, so levels across
    a split do not compare; ranks within a date nearly do.
    """
    return ratio(ratio(turnover, raw_close), shares_outstanding)
