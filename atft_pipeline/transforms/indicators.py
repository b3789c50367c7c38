"""Standard technical indicators of one price series: expressions over its own bars, oldest first.

All are free of the price's unit (ratios to the price or to a band), so that they compare across
stocks. Windowed ones are null until their window is full. Exponential ones are recursive from the
series' first bar (``adjust=False``) and null until ``span`` bars were seen: their value depends on
where the history starts, by less than ``(1 - 2/(span+1))**n`` after ``n`` bars.
"""

import polars as pl

from atft_pipeline.transforms.returns import ratio

BAND_BARS = 20
BAND_WIDTH = 2.0
"""Bollinger's own choice: 20 bars, bands two standard deviations either side."""


def exponential_average(value: pl.Expr, span: int) -> pl.Expr:
    """``e[t] = a v[t] + (1-a) e[t-1]``, ``a = 2/(span+1)``, from ``e[0] = v[0]``."""
    return value.ewm_mean(span=span, adjust=False, min_samples=span)


def exponential_average_to_price(price: pl.Expr, span: int) -> pl.Expr:
    """``ema / price - 1``: above zero where the average stands above the price."""
    return ratio(exponential_average(price, span), price) - 1.0


def price_to_average(price: pl.Expr, bars: int) -> pl.Expr:
    """``price / mean(price over bars) - 1``."""
    return ratio(price, price.rolling_mean(bars)) - 1.0


def average_gap(price: pl.Expr, fast: int, slow: int) -> pl.Expr:
    """``mean(price over fast) / mean(price over slow) - 1``, simple averages."""
    return ratio(price.rolling_mean(fast), price.rolling_mean(slow)) - 1.0


def bollinger_position(price: pl.Expr) -> pl.Expr:
    """Bollinger's %b: 0 on the lower band, 1 on the upper, not bounded by them.

    ``(price - (m - 2s)) / 4s`` with the mean ``m`` and population standard deviation ``s`` of 20
    bars. Bollinger, "Bollinger on Bollinger Bands" (2001). Null where the 20 prices are equal.
    """
    mean = price.rolling_mean(BAND_BARS)
    half = BAND_WIDTH * price.rolling_std(BAND_BARS, ddof=0)
    return ratio(price - mean + half, 2.0 * half, floor=mean * 1e-9)


def bollinger_width(price: pl.Expr) -> pl.Expr:
    """Bollinger's BandWidth: ``4s / m`` of 20 bars (population standard deviation)."""
    std = price.rolling_std(BAND_BARS, ddof=0)
    return ratio(2.0 * BAND_WIDTH * std, price.rolling_mean(BAND_BARS))


def relative_strength_index(price: pl.Expr, bars: int) -> pl.Expr:
    """RSI in 0..100: ``100 g / (g + l)`` of the averaged gains ``g`` and losses ``l``.

    Wilder, "New Concepts in Technical Trading Systems" (1978), with his smoothing
    ``g[t] = g[t-1] + (gain[t] - g[t-1]) / bars`` started on the first change (he starts on the mean
    of the first ``bars`` changes; the two meet as history grows). Null where nothing has moved.
    """
    change = price.diff()

    def smoothed(value: pl.Expr) -> pl.Expr:
        return value.ewm_mean(alpha=1.0 / bars, adjust=False, min_samples=bars)

    gain = smoothed(change.clip(lower_bound=0.0))
    loss = smoothed((-change).clip(lower_bound=0.0))
    return 100.0 * ratio(gain, gain + loss)


def macd_histogram(price: pl.Expr) -> pl.Expr:
    """``(macd - signal) / price``: macd = EMA12 - EMA26, signal = EMA9 of macd.

    Appel, "Technical Analysis: Power Tools for Active Investors" (2005). Divided by the price so
    that stocks compare. The signal starts on the first macd, bar 26; first value on bar 34.
    """
    macd = exponential_average(price, 12) - exponential_average(price, 26)
    return ratio(macd - exponential_average(macd, 9), price)


def stochastic_k(high: pl.Expr, low: pl.Expr, close: pl.Expr, bars: int) -> pl.Expr:
    """Lane's fast %K in 0..100: where the close lies in the range of the last ``bars`` bars.

    Lane, "Lane's Stochastics", Technical Analysis of Stocks & Commodities 2(3) (1984). Null where
    the range is zero.
    """
    lowest = low.rolling_min(bars)
    return 100.0 * ratio(close - lowest, high.rolling_max(bars) - lowest)
