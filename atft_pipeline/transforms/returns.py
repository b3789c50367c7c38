"""Returns and volatility of one price series: expressions over its own bars, oldest first.

Every expression here reads one series (a stock, the market, a sector), or several below each other
that ``bar`` tells apart (``windows``); none looks across stocks. Ratios that could divide by zero
go through :func:`ratio`. Moving averages and oscillators belong in ``indicators``.
"""

import math

import numpy as np
import polars as pl

from atft_pipeline.transforms.windows import ago, window_mean, window_std


def ratio(numerator: pl.Expr, denominator: pl.Expr, floor: float | pl.Expr = 0.0) -> pl.Expr:
    """``numerator / denominator``, null where the denominator's size is ``floor`` or less.

    Written as a function of columns because Polars works out what stands twice in an expression
    twice, and denominators are window statistics.
    """
    if isinstance(floor, pl.Expr):
        of_columns = [numerator, denominator, floor]
        return pl.map_batches(of_columns, lambda c: _ratio(c[0], c[1], c[2]), pl.Float64)
    return pl.map_batches([numerator, denominator], lambda c: _ratio(c[0], c[1], floor), pl.Float64)


def _ratio(numerator: pl.Series, denominator: pl.Series, floor: float | pl.Series) -> pl.Series:
    quotient = numerator / denominator
    at_zero = isinstance(floor, float) and floor == 0.0
    small = denominator == 0.0 if at_zero else denominator.abs() <= floor
    return quotient.set(small, None) if small.any() else quotient


def natural_log(value: pl.Expr) -> pl.Expr:
    """``ln``, by NumPy's vector instructions: four times as fast as Polars, with the same bits."""

    def apply(column: pl.Series) -> pl.Series:
        with np.errstate(invalid="ignore", divide="ignore"):
            return pl.Series(np.log(column.fill_null(math.nan).to_numpy()), nan_to_null=True)

    return value.map_batches(apply, return_dtype=pl.Float64)


def simple_return(price: pl.Expr, bars: int) -> pl.Expr:
    """``p[t] / p[t-bars] - 1``; null on the first ``bars`` bars.

    Bars are the series' own: after a halt a one-bar return spans the halt.
    """
    return ratio(price, ago(price, bars)) - 1.0


def log_return(price: pl.Expr) -> pl.Expr:
    """``ln(p[t] / p[t-1])``; null on the first bar."""
    return natural_log(ratio(price, ago(price, 1)))


def volatility(one_bar_return: pl.Expr, bars: int) -> pl.Expr:
    """Sample standard deviation (n - 1) of the last ``bars`` returns, per day, not annualized."""
    return window_std(one_bar_return, bars)


def parkinson_volatility(high: pl.Expr, low: pl.Expr, bars: int) -> pl.Expr:
    """``sqrt(mean(ln(high/low)^2) / (4 ln 2))`` over ``bars`` bars, per day.

    Parkinson (1980), "The extreme value method for estimating the variance of the rate of return",
    Journal of Business 53(1). Counts the range within the day only: overnight gaps are not in it.
    """
    squared_range = natural_log(ratio(high, low)).pow(2)
    return (window_mean(squared_range, bars) / (4.0 * math.log(2.0))).sqrt()


def trailing_z_score(value: pl.Expr, bars: int, min_samples: int) -> pl.Expr:
    """How many sample standard deviations ``value`` lies above its own trailing mean.

    The window holds the last ``bars`` values, today's included; null with fewer than
    ``min_samples`` known values in it, or where they are all equal.
    """
    mean = window_mean(value, bars, min_samples)
    std = window_std(value, bars, min_samples=min_samples)
    return ratio(value - mean, std, floor=1e-12)
