"""Returns and volatility of one price series: expressions over its own bars, oldest first.

Every expression here reads one series (a stock, the market, a sector) and is applied with
``.over("code")`` or on the series itself; none looks across stocks. Ratios that could divide by
zero go through :func:`ratio`. Moving averages and oscillators belong in ``indicators``.
"""

import math

import polars as pl


def ratio(numerator: pl.Expr, denominator: pl.Expr, floor: float | pl.Expr = 0.0) -> pl.Expr:
    """``numerator / denominator``, null where the denominator's size is ``floor`` or less."""
    return pl.when(denominator.abs() > floor).then(numerator / denominator)


def simple_return(price: pl.Expr, bars: int) -> pl.Expr:
    """``p[t] / p[t-bars] - 1``; null on the first ``bars`` bars.

    Bars are the series' own: after a halt a one-bar return spans the halt.
    """
    return ratio(price, price.shift(bars)) - 1.0


def log_return(price: pl.Expr) -> pl.Expr:
    """``ln(p[t] / p[t-1])``; null on the first bar."""
    return ratio(price, price.shift(1)).log()


def volatility(one_bar_return: pl.Expr, bars: int) -> pl.Expr:
    """Sample standard deviation (n - 1) of the last ``bars`` returns, per day, not annualized."""
    return one_bar_return.rolling_std(bars, ddof=1)


def parkinson_volatility(high: pl.Expr, low: pl.Expr, bars: int) -> pl.Expr:
    """``sqrt(mean(ln(high/low)^2) / (4 ln 2))`` over ``bars`` bars, per day.

    Parkinson (1980), "The extreme value method for estimating the variance of the rate of return",
    Journal of Business 53(1). Counts the range within the day only: overnight gaps are not in it.
    """
    squared_range = ratio(high, low).log().pow(2)
    mean = squared_range.rolling_mean(bars).clip(lower_bound=0.0)
    return (mean / (4.0 * math.log(2.0))).sqrt()


def trailing_z_score(value: pl.Expr, bars: int, min_samples: int) -> pl.Expr:
    """How many sample standard deviations ``value`` lies above its own trailing mean.

    The window holds the last ``bars`` values, today's included; null with fewer than
    ``min_samples`` known values in it, or where they are all equal.
    """
    mean = value.rolling_mean(bars, min_samples=min_samples)
    std = value.rolling_std(bars, min_samples=min_samples, ddof=1)
    return ratio(value - mean, std, floor=1e-12)
