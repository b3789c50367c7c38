"""Forward returns: what the model is trained to rank. Nothing is filled in where one is unknown."""

from collections.abc import Sequence

import polars as pl

HORIZONS = (1, 5, 10, 20)
ENTRY_LAG = 1  # a signal from close t can be traded at close t + 1 at the earliest


def forward_returns(prices: pl.DataFrame, horizons: Sequence[int] = HORIZONS) -> pl.DataFrame:
    """``target_h = close[t + 1 + h] / close[t + 1] - 1``, in days of the market calendar.

    The calendar is the sorted dates of ``prices``. Entry and exit are found by date, not by
    counting a stock's own bars: a stock without a bar on the entry or the exit date has no target
    for that horizon (null), and neither have the last ``1 + h`` dates.

    Args:
        prices: Adjusted bars, unique (date, code).
        horizons: Holding periods in trading days.

    Returns:
        ``targets``: date, code, then one Float64 column per horizon; one row per row of
        ``prices``, sorted by (code, date).

    Raises:
        ValueError: When a (date, code) of ``prices`` is repeated.
    """
    closes = prices.select("date", "code", "close")
    calendar = prices.select(pl.col("date").unique().sort())
    codes = prices.select(pl.col("code").unique().sort())
    # Every stock on every date, null where it has no bar: on this grid a shift counts days of the
    # market. Never larger than one feature of the panel, which is dense as well.
    grid = codes.join(calendar, how="cross").join(
        closes, on=["date", "code"], how="left", maintain_order="left"
    )
    if grid.height != codes.height * calendar.height:  # a join that validates costs six times this
        raise ValueError("prices: a (date, code) is repeated; expected unique keys")
    entry = pl.col("close").shift(-ENTRY_LAG)
    returns = {
        f"target_{horizon}d": (pl.col("close").shift(-ENTRY_LAG - horizon) / entry - 1).over("code")
        for horizon in horizons
    }
    targets = grid.with_columns(**returns).filter(pl.col("close").is_not_null())
    return targets.select("date", "code", *returns)
