"""The market series, its regime, and a stock's relation to it.

Market features are computed once, on the date series (columns ``level`` and ``return_1d``), and
joined to the stocks. Relation features run over a stock's own bars, with the market's columns of
the same dates beside them.
"""

import numpy as np
import polars as pl

from atft_pipeline.transforms.cross_section import equal_weighted_return
from atft_pipeline.transforms.indicators import average_gap, exponential_average
from atft_pipeline.transforms.returns import ratio, simple_return, volatility
from atft_pipeline.transforms.windows import (
    bar_numbers,
    window_covariance,
    window_max,
    window_mean,
    window_std,
    window_var,
)

YEAR_BARS = 252
MIN_YEAR_BARS = 60
"""Trailing-year statistics start after 60 values: a whole year would mute the first year."""

BETA_BARS = 60
VARIANCE_FLOOR = 1e-16
"""A daily standard deviation below 1e-8 is rounding: nothing can be measured against it."""

GAP_ROUNDING = 1e-9


def index_name(indices: pl.DataFrame) -> str | None:
    """The index that serves as the market: on the earliest date, the first name in order.

    None where the table has no rows; the market is then derived from the stocks.
    """
    if indices.is_empty():
        return None
    return indices.sort("date", "index")["index"][0]


def market_series(bars: pl.DataFrame, indices: pl.DataFrame) -> pl.DataFrame:
    """The market by date: ``date, bar, level, return_1d, return_5d, gap_5_20``.

    From the first index (:func:`index_name`) where there is one; a date that it lacks has no market
    value. Otherwise derived: the mean return of the date's stocks, equally weighted, and the growth
    of 1 invested in it.

    Args:
        bars: Stock bars sorted by (code, date), with ``return_1d``.
        indices: The ``raw_indices`` table; may have no rows.
    """
    name = index_name(indices)
    if name is None:
        series, own_return = equal_weighted_return(bars, ["date"]), pl.col("return_1d")
    else:
        series = indices.filter(pl.col("index") == name).sort("date").rename({"close": "level"})
        own_return = simple_return(pl.col("level"), 1)
    level = pl.col("level")
    return series.with_columns(bar_numbers(np.arange(series.height) == 0)).select(
        "date",
        "bar",
        "level",
        own_return.alias("return_1d"),
        return_5d=simple_return(level, 5),
        gap_5_20=average_gap(window_mean(level, 5), window_mean(level, 20)),
    )


def bull_market(level: pl.Expr, bars: int = 200) -> pl.Expr:
    """1 where the level is above its mean over ``bars`` bars, else 0."""
    return (level > window_mean(level, bars)).cast(pl.Float64)


def high_volatility(one_bar_return: pl.Expr) -> pl.Expr:
    """1 where 20-day volatility is over a standard deviation above its trailing-year mean."""
    current = volatility(one_bar_return, 20)
    mean = window_mean(current, YEAR_BARS, MIN_YEAR_BARS)
    std = window_std(current, YEAR_BARS, min_samples=MIN_YEAR_BARS)
    return (current > mean + std).cast(pl.Float64)


def drawdown_from_peak(level: pl.Expr) -> pl.Expr:
    """``level / max(level over the trailing year) - 1``: 0 on a new high, else below 0.

    The peak is that of the last 252 bars up to today, never of the whole history.
    """
    return ratio(level, window_max(level, YEAR_BARS, MIN_YEAR_BARS)) - 1.0


def exponential_slope(level: pl.Expr, span: int, bars: int) -> pl.Expr:
    """``ema[t] / ema[t-bars] - 1`` of the recursive average over ``span``."""
    return simple_return(exponential_average(level, span), bars)


def _paired(stock_return: pl.Expr, market_return: pl.Expr) -> pl.Expr:
    """The stock's return where the market's is known too: both windows then hold the same days."""
    return pl.when(market_return.is_not_null()).then(stock_return)


def beta(stock_return: pl.Expr, market_return: pl.Expr) -> pl.Expr:
    """``cov(r, m) / var(m)`` over the stock's last 60 bars, all 60 pairs known.

    Null where the market did not move. After a halt the stock's return spans several market days.
    """
    own = _paired(stock_return, market_return)
    covariance = window_covariance(own, market_return, BETA_BARS)
    return ratio(covariance, window_var(market_return, BETA_BARS), VARIANCE_FLOOR)


def alpha(stock_return: pl.Expr, market_return: pl.Expr, stock_beta: pl.Expr) -> pl.Expr:
    """``r - beta m``: the part of a return that the market's does not explain."""
    return stock_return - stock_beta * market_return


def idiosyncratic_share(stock_return: pl.Expr, market_return: pl.Expr) -> pl.Expr:
    """Residual over total volatility, ``sqrt(1 - corr(r, m)^2)`` of 60 bars, in 0..1."""
    own = _paired(stock_return, market_return)
    covariance = window_covariance(own, market_return, BETA_BARS)
    market_variance = window_var(market_return, BETA_BARS)
    own_variance = window_var(own, BETA_BARS)
    explained = ratio(
        ratio(covariance.pow(2), market_variance, VARIANCE_FLOOR), own_variance, VARIANCE_FLOOR
    )
    return (1.0 - explained).clip(0.0, 1.0).sqrt()


def beta_stability(stock_beta: pl.Expr) -> pl.Expr:
    """``1 / (1 + std(beta over 60 bars))``: near 1 where the 60-day beta hardly moved."""
    return 1.0 / (1.0 + window_std(stock_beta, BETA_BARS))


def trend_alignment(stock_gap: pl.Expr, market_gap: pl.Expr) -> pl.Expr:
    """1 where stock and market trend the same way (equal sign of their 5/20 gap), else 0.

    A gap below 1e-9 is rounding of a price that stood still, and has the sign 0.
    """

    def direction(gap: pl.Expr) -> pl.Expr:
        return gap.sign() * (gap.abs() > GAP_ROUNDING).cast(pl.Float64)

    return (direction(stock_gap) == direction(market_gap)).cast(pl.Float64)
