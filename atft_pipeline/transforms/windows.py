"""Statistics of the last bars of a series, each worked out from its own window alone.

Polars' rolling functions carry a running sum from the start of the column, so that the low bits of
a value depend on all that came before it. Here they do not: a window holding the same values has
the same bits wherever the column starts, so that a table can be extended from its last bars and be
equal to one built anew (``transforms/incremental``).

Series stand below each other in one column, and ``bar`` (:func:`bar_numbers`) says where each
starts. No ``.over`` is needed, which would cost more than the statistics: a window that would reach
into the series above is null. Recursive averages read all bars before and belong in ``indicators``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

BAR = pl.col("bar")
"""Which bar of its series a row is, 1 on the first."""

BLOCK = 16384
"""Rows worked on at a time: all arrays of a step then fit in a core's cache (1 MiB of it)."""

Column = Float[np.ndarray, " rows"]


def bar_numbers(first: Bool[np.ndarray, " rows"]) -> pl.Series:
    """``bar`` of each row, counted from 1.

    Args:
        first: Whether a row is the first of its series.
    """
    start = np.flatnonzero(first).astype(np.int32)
    bar = np.arange(1, len(first) + 1, dtype=np.int32)
    bar -= np.repeat(start, np.diff(start, append=len(first)))
    return pl.Series("bar", bar)


def ago(value: pl.Expr, bars: int) -> pl.Expr:
    """The value ``bars`` bars earlier; null on the first ``bars`` bars."""
    return pl.when(bars < BAR).then(value.shift(bars))


def window_mean(value: pl.Expr, bars: int, min_samples: int | None = None) -> pl.Expr:
    """Mean of the last ``bars`` values, this one included.

    Null where one of them is unknown or not there yet; with ``min_samples``, where fewer than that
    many are known.
    """
    if min_samples is None:
        return _over_windows(lambda x: _full_mean(x, bars), bars, value)
    return _on_columns(lambda bar, x: _partial_moments(x, bar, bars, min_samples)[0], value)


def window_std(value: pl.Expr, bars: int, ddof: int = 1, min_samples: int | None = None) -> pl.Expr:
    """Standard deviation of the last ``bars`` values around their own mean; null as the mean is."""
    if min_samples is None:
        return _over_windows(
            lambda x: np.sqrt(_full_products(x, x, bars) / (bars - ddof)), bars, value
        )

    def std(bar: Int[np.ndarray, " rows"], x: Column) -> Column:
        _, squares, known = _partial_moments(x, bar, bars, min_samples)
        return np.sqrt(squares / (known - ddof))

    return _on_columns(std, value)


def window_var(value: pl.Expr, bars: int, ddof: int = 0) -> pl.Expr:
    """Variance of the last ``bars`` values, all of them known."""
    return _over_windows(lambda x: _full_products(x, x, bars) / (bars - ddof), bars, value)


def window_covariance(left: pl.Expr, right: pl.Expr, bars: int) -> pl.Expr:
    """Population covariance of the last ``bars`` pairs, all of them known."""
    return _over_windows(lambda x, y: _full_products(x, y, bars) / bars, bars, left, right)


def window_max(value: pl.Expr, bars: int, min_samples: int | None = None) -> pl.Expr:
    """Largest of the last ``bars`` values; null as the mean is."""
    if min_samples is None:
        return _over_windows(lambda x: _full_max(x, bars), bars, value)
    return _on_columns(lambda bar, x: _partial_max(x, bar, bars, min_samples), value)


def window_min(value: pl.Expr, bars: int) -> pl.Expr:
    """Smallest of the last ``bars`` values, all of them known."""
    return _over_windows(lambda x: -_full_max(-x, bars), bars, value)


def _on_columns(statistic: Callable[..., Column], *values: pl.Expr) -> pl.Expr:
    """A statistic of whole columns and their bar numbers, as an expression; NaN is null."""

    def apply(columns: Sequence[pl.Series]) -> pl.Series:
        *arrays, bar = (column.to_numpy() for column in columns)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return pl.Series(statistic(bar, *arrays), nan_to_null=True)

    # Nulls filled by Polars, because to_numpy() fills them one by one, five times slower.
    known = [value.cast(pl.Float64).fill_null(math.nan) for value in values]
    return pl.map_batches([*known, BAR], apply, return_dtype=pl.Float64)


def _over_windows(statistic: Callable[..., Column], bars: int, *values: pl.Expr) -> pl.Expr:
    """A statistic of full windows, block by block.

    Args:
        statistic: From columns of ``n`` rows to the ``n - bars + 1`` last rows' values.
        bars: Length of a window.
        values: What it reads.
    """

    def over(bar: Int[np.ndarray, " rows"], *columns: Column) -> Column:
        result = np.empty(len(bar))
        for start, end in _blocks(len(bar), bars):
            result[start:end] = statistic(*(x[start - bars + 1 : end] for x in columns))
        result[bar < bars] = np.nan
        return result

    return _on_columns(over, *values)


def _blocks(rows: int, bars: int) -> Iterator[tuple[int, int]]:
    for start in range(bars - 1, rows, BLOCK):
        yield start, min(start + BLOCK, rows)


def _full_mean(x: Column, bars: int) -> Column:
    """By doubling: sums of 1, 2, 4, ... values, put together to ``bars`` of them.

    Few additions, in an order that the length of the window fixes, and rounding errors that grow
    with its logarithm.
    """
    total: Column | None = None
    taken, size, sums = 0, 1, x
    while True:
        if bars & size:
            # Sums that end ``taken`` rows before the newest; each entry ends one row later.
            part = sums[: len(sums) - taken] if taken else sums
            part = part[len(part) - (len(x) - bars + 1) :]
            total = part if total is None else total + part
            taken += size
        if taken == bars:
            break
        sums = sums[size:] + sums[:-size]
        size *= 2
    assert total is not None  # bars is 1 or more, so some bit is set
    return total / bars


def _full_products(x: Column, y: Column, bars: int) -> Column:
    """Sum of the products of the deviations from the window's own two means.

    By doubling, as the mean: of two stretches of n and m bars with sums X, Y and such products P,
    the whole has ``P1 + P2 + (X2/m - X1/n) (Y2/m - Y1/n) nm / (n + m)`` (Chan, Golub and LeVeque,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979). Nothing
    large is subtracted from something large, and it takes a third of the operations of a pass for
    each bar of the window.
    """
    rows = len(x) - bars + 1
    total: Products | None = None
    taken, size, part = 0, 1, Products(x, y, None)
    while True:
        if bars & size:
            # The products that end ``taken`` rows before the newest, as for the mean.
            older = part.ending_before(taken, rows)
            total = older if total is None else older.followed_by(total, size, taken)
            taken += size
        if taken == bars:
            break
        part = part.shifted(0, size).followed_by(part.shifted(size, 0), size, size)
        size *= 2
    assert total is not None  # bars is 1 or more, so some bit is set
    return np.zeros(rows) if total.products is None else total.products


@dataclass(frozen=True)
class Products:
    """Of stretches of one length: sums of two columns, and of the products of their deviations.

    Attributes:
        x, y: One array where the columns are one.
        products: None where a stretch is a single bar, which does not deviate.
    """

    x: Column
    y: Column
    products: Column | None

    def shifted(self, start: int, end: int) -> "Products":
        """Without the first ``start`` rows and the last ``end``."""
        rows = slice(start, len(self.x) - end)
        x = self.x[rows]
        y = x if self.y is self.x else self.y[rows]
        return Products(x, y, None if self.products is None else self.products[rows])

    def ending_before(self, taken: int, rows: int) -> "Products":
        """The ``rows`` last of those that end ``taken`` rows before the newest."""
        return self.shifted(len(self.x) - taken - rows, taken)

    def followed_by(self, newer: "Products", size: int, newer_size: int) -> "Products":
        """The stretches of ``size`` bars and of ``newer_size`` right after them, as one."""
        one = self.y is self.x
        apart = _apart(self.x, newer.x, size, newer_size)
        apart *= apart if one else _apart(self.y, newer.y, size, newer_size)
        apart *= 0.5 / size if size == newer_size else size * newer_size / (size + newer_size)
        for products in (self.products, newer.products):
            if products is not None:
                apart += products
        x = self.x + newer.x
        return Products(x, x if one else self.y + newer.y, apart)


def _apart(older: Column, newer: Column, size: int, newer_size: int) -> Column:
    """Difference of the means, from the sums; of stretches of one length, of the sums."""
    if size == newer_size:
        return newer - older
    gap = newer / newer_size
    gap -= older / size
    return gap


def _partial_moments(
    x: Column, bar: Int[np.ndarray, " rows"], bars: int, min_samples: int
) -> tuple[Column, Column, Column]:
    """Mean, squared deviations and number of the known values among the last ``bars``.

    NaN with fewer than ``min_samples``. One pass over the column per bar of the window: for series
    of a market or a sector, not of thousands of stocks.
    """
    known = np.isfinite(x)
    filled = np.where(known, x, 0.0)
    total, count = np.zeros(len(x)), np.zeros(len(x))
    for lag in range(min(bars, len(x))):
        there = known[: len(x) - lag] & (bar[lag:] > lag)
        total[lag:] += np.where(there, filled[: len(x) - lag], 0.0)
        count[lag:] += there
    count[count < min_samples] = np.nan
    mean = total / count
    squares = np.zeros(len(x))
    for lag in range(min(bars, len(x))):
        there = known[: len(x) - lag] & (bar[lag:] > lag)
        squares[lag:] += np.where(there, (filled[: len(x) - lag] - mean[lag:]) ** 2, 0.0)
    return mean, squares, count


def _full_max(x: Column, bars: int) -> Column:
    """By doubling; NaN where a value is."""
    size, best = 1, x
    while 2 * size <= bars:
        best = np.maximum(best[size:], best[:-size])
        size *= 2
    rest = bars - size  # the last two windows may overlap
    return np.maximum(best[rest:], best[: len(best) - rest])


def _partial_max(x: Column, bar: Int[np.ndarray, " rows"], bars: int, min_samples: int) -> Column:
    """Largest known value; one pass over the column per bar of the window, as for the moments."""
    known = np.isfinite(x)
    filled = np.where(known, x, -np.inf)
    best, count = np.full(len(x), -np.inf), np.zeros(len(x), dtype=np.int32)
    for lag in range(min(bars, len(x))):
        there = bar[lag:] > lag
        best[lag:] = np.where(there, np.maximum(best[lag:], filled[: len(x) - lag]), best[lag:])
        count[lag:] += there & known[: len(x) - lag]
    return np.where(count >= min_samples, best, np.nan)
