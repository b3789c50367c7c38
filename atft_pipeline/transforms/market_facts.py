"""What trading needs, from the prices table onto the panel's axes: opens, limits, traded value."""

import numpy as np
import polars as pl

from atft_model.data.market_facts import MarketFacts
from atft_model.data.panel import Panel
from atft_model.errors import InputError

TRADED_VALUE_BARS = 20


def market_facts(prices: pl.DataFrame, panel: Panel) -> MarketFacts:
    """Facts of the panel's own prices.

    Args:
        prices: Adjusted bars, unique (date, code); ``limit_up`` and ``limit_down`` where the source
            knows them. At an upper limit nobody sells, so nothing can be bought; at a lower one
            nothing can be sold. A null is no limit.

    Raises:
        InputError: prices whose returns are not those of the panel.
    """
    bars = prices.sort("code", "date").with_columns(
        open_return=pl.col("open") / pl.col("open").shift(1).over("code") - 1.0,
        close_return=pl.col("close") / pl.col("close").shift(1).over("code") - 1.0,
        traded_value=pl.col("turnover").rolling_mean(TRADED_VALUE_BARS, min_samples=1).over("code"),
    )
    _require_panel_prices(on_panel(bars, "close_return", panel), panel)
    can_buy, can_sell = (
        on_panel(bars, flag, panel) != 1.0 if flag in bars.columns else None
        for flag in ("limit_up", "limit_down")
    )
    return MarketFacts(
        open_return=on_panel(bars, "open_return", panel),
        can_buy=can_buy,
        can_sell=can_sell,
        traded_value=on_panel(bars, "traded_value", panel),
    )


def on_panel(rows: pl.DataFrame, column: str, panel: Panel) -> np.ndarray:
    """A column as float64 [dates, stocks]; NaN where there is no row or a null."""
    dates = pl.DataFrame({"date": pl.Series(panel.dates, dtype=pl.Date)}).with_row_index("row")
    codes = pl.DataFrame({"code": panel.codes}).with_row_index("column")
    placed = rows.select("date", "code", value=pl.col(column).cast(pl.Float64)).join(
        dates, on="date"
    )
    placed = placed.join(codes, on="code")
    grid = np.full((len(panel.dates), len(panel.codes)), np.nan)
    values = placed["value"].fill_null(float("nan")).to_numpy()
    grid[placed["row"].to_numpy(), placed["column"].to_numpy()] = values
    return grid


def _require_panel_prices(close_return: np.ndarray, panel: Panel) -> None:
    mine = np.asarray(panel.daily_return)
    known = np.isfinite(close_return)
    if (known != np.isfinite(mine)).any() or not np.allclose(
        close_return[known], mine[known], rtol=1e-4, atol=1e-6
    ):
        raise InputError(
            "prices: their daily returns are not those of the panel; the table was built again "
            "after the panel: materialize panel and all that follows"
        )
