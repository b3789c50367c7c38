"""Standard technical indicators of one price series: expressions over its own bars, oldest first.

All are free of the price's unit (ratios to the price or to a band), so that they compare across
stocks. Windowed ones are null until their window is full. Exponential ones are recursive from the
series' first bar (``adjust=False``) and null until ``span`` bars were seen: their value depends on
where the history starts, by less than ``(1 - 2/(span+1))**n`` after ``n`` bars. They are the only
expressions here that read one series and no ``bar``: what applies them goes over each series whole
(``features.Step``).
"""

import polars as pl

from atft_pipeline.transforms.returns import ratio
from atft_pipeline.transforms.windows import window_mean, window_std

BAND_BARS = 20
BAND_WIDTH = 2.0
"""Bollinger's own choice: 20 bars, bands two standard deviations either side."""


def exponential_average(value: pl.Expr, span: int) -> pl.Expr:
    """``e[t] = a v[t] + (1-a) e[t-1]``, ``a = 2/(span+1)``, from ``e[0] = v[0]``."""
    return value.ewm_mean(span=span, adjust=False, min_samples=span)


def price_to_average(price: pl.Expr, average: pl.Expr) -> pl.Expr:
    """``price / average - 1``."""
    return ratio(price, average) - 1.0


def average_gap(fast: pl.Expr, slow: pl.Expr) -> pl.Expr:
    """``fast / slow - 1`` of two averages of one price."""
    return ratio(fast, slow) - 1.0


def band_mean(price: pl.Expr) -> pl.Expr:
    """The middle of Bollinger's bands."""
    return window_mean(price, BAND_BARS)


def band_std(price: pl.Expr) -> pl.Expr:
    """The population standard deviation around it: a band is two of them away from it."""
    return window_std(price, BAND_BARS, ddof=0)


def bollinger_position(price: pl.Expr, mean: pl.Expr, std: pl.Expr) -> pl.Expr:
    """Bollinger's %b: 0 on the lower band, 1 on the upper, not bounded by them.

    ``(price - (m - 2s)) / 4s`` with :func:`band_mean` and :func:`band_std` of 20 bars. Bollinger,
    "Bollinger on Bollinger Bands" (2001). Null where the 20 prices are equal.
    """
    half = BAND_WIDTH * std
    return ratio(price - mean + half, 2.0 * half, floor=mean * 1e-9)


def bollinger_width(mean: pl.Expr, std: pl.Expr) -> pl.Expr:
    """Bollinger's BandWidth: ``4s / m`` of 20 bars."""
    return ratio(2.0 * BAND_WIDTH * std, mean)


def average_change(price: pl.Expr, bars: int) -> pl.Expr:
    """Wilder's smoothed change of the price: ``c[t] = c[t-1] + (change[t] - c[t-1]) / bars``.

    Started on the first change (he starts on the mean of the first ``bars`` changes; the two meet
    as history grows).
    """
    return _wilders_average(price.diff(), bars)


def average_move(price: pl.Expr, bars: int) -> pl.Expr:
    """The same of the change's size, up or down."""
    return _wilders_average(price.diff().abs(), bars)


def _wilders_average(value: pl.Expr, bars: int) -> pl.Expr:
    return value.ewm_mean(alpha=1.0 / bars, adjust=False, min_samples=bars)


def relative_strength_index(change: pl.Expr, move: pl.Expr) -> pl.Expr:
    """RSI in 0..100, from the averages of the changes and of their sizes.

    Wilder, "New Concepts in Technical Trading Systems" (1978): ``100 g / (g + l)`` of the averaged
    gains ``g`` and losses ``l``. An average is linear, so ``move = g + l`` and ``change = g - l``.
    Null where nothing has moved.
    """
    return 50.0 + 50.0 * ratio(change, move)


def macd(price: pl.Expr) -> pl.Expr:
    """EMA12 - EMA26; from bar 26 on."""
    return exponential_average(price, 12) - exponential_average(price, 26)


def macd_signal(line: pl.Expr) -> pl.Expr:
    """EMA9 of the macd, started on the first one, bar 26; from bar 34 on."""
    return exponential_average(line, 9)


def macd_histogram(line: pl.Expr, signal: pl.Expr, price: pl.Expr) -> pl.Expr:
    """``(macd - signal) / price``, from both of the same price.

    Appel, "Technical Analysis: Power Tools for Active Investors" (2005). Divided by the price so
    that stocks compare.
    """
    return ratio(line - signal, price)


def stochastic_k(close: pl.Expr, lowest: pl.Expr, highest: pl.Expr) -> pl.Expr:
    """Lane's fast %K in 0..100: where the close lies in the range of the last bars.

    Lane, "Lane's Stochastics", Technical Analysis of Stocks & Commodities 2(3) (1984). Null where
    the range is zero.
    """
    return 100.0 * ratio(close - lowest, highest - lowest)
