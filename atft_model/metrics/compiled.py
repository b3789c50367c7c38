"""Rank ICs in machine code, by numba. ``rank_ic.py`` says what they are and when this is used.

No other module imports this one at its top: numba takes most of a second to load, and machines
without it do the same in NumPy, bit by bit.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_SIGNATURE = "void(f8[:,::1], f8[:,::1], b1[:,::1], i8, f8[::1])"

_DIGIT = 11
_DIGITS = 2**_DIGIT
_STEPS_PER_STOCK = 30
"""Of insertion: what costs more, values that float32 hardly tells apart, is sorted by comparing."""


def machine_code(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled for ``_SIGNATURE``, with the interpreter's lock left, and stored for the next
    process; where no folder may be written, compiled by each process (seconds)."""
    try:
        return njit(_SIGNATURE, nogil=True, cache=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return njit(_SIGNATURE, nogil=True)(function)


@njit(nogil=True)
def _order(values: Any, n: int, order: Any, spare: Any, counts: Any, in_order: Any) -> bool:
    """Puts the first ``n`` values in order; whether two of them are equal.

    A radix sort (Knuth, The Art of Computer Programming 3, 5.2.5) by the upper 22 bits of their
    distance from one of them as float32, and insertion for what shares them. ``order`` says where
    each came from.
    """
    eleven, low = np.uint64(_DIGIT), np.uint64(_DIGITS - 1)
    second, sign = np.uint64(_DIGITS), np.uint32(1 << 31)
    counts[:] = 0
    middle = values[n // 2]
    for i in range(n):
        bits = np.float32(values[i] - middle).view(np.uint32)
        bits ^= np.uint32(0xFFFFFFFF) if bits & sign else sign  # rises with the value
        key = np.uint64(bits >> np.uint32(32 - 2 * _DIGIT))
        spare[i] = (key << np.uint64(32)) | np.uint64(i)
        counts[key & low] += np.uint32(1)
        counts[second + (key >> eleven)] += np.uint32(1)
    first_slot, second_slot = np.uint32(0), np.uint32(0)
    for digit in range(_DIGITS):
        first_count, second_count = counts[digit], counts[digit + _DIGITS]
        counts[digit], counts[digit + _DIGITS] = first_slot, second_slot
        first_slot += first_count
        second_slot += second_count
    for i in range(n):
        digit = (spare[i] >> np.uint64(32)) & low
        slot = counts[digit]
        counts[digit] = slot + np.uint32(1)
        order[np.uint64(slot)] = spare[i]
    for i in range(n):
        digit = second + (order[i] >> np.uint64(32 + _DIGIT))
        slot = counts[digit]
        counts[digit] = slot + np.uint32(1)
        spare[np.uint64(slot)] = order[i]
    return _insert(values, n, order, spare, in_order)


@njit(nogil=True)
def _insert(values: Any, n: int, order: Any, sorted_keys: Any, in_order: Any) -> bool:
    """Reads values in the order of their keys, each put before the larger ones; whether two of
    them are equal."""
    stock_of = np.uint64(0xFFFFFFFF)
    highest, tied = -np.inf, False
    steps = _STEPS_PER_STOCK * n
    for i in range(n):
        stock = sorted_keys[i] & stock_of
        value = values[stock]
        if value > highest:
            in_order[i], order[i] = value, stock
            highest = value
            continue
        slot = i
        while slot > 0 and in_order[slot - 1] > value:
            in_order[slot], order[slot] = in_order[slot - 1], order[slot - 1]
            slot -= 1
        tied |= slot > 0 and in_order[slot - 1] == value
        in_order[slot], order[slot] = value, stock
        steps -= i - slot
        if steps < 0:
            by_value = np.argsort(values[:n])
            for other in range(n):
                order[other] = np.uint64(by_value[other])
                in_order[other] = values[by_value[other]]
            return True  # perhaps: what is done for ties holds without them
    return tied


@njit(nogil=True)
def _doubled_ranks(in_order: Any, n: int, ranks: Any) -> None:
    """Twice the rank of each slot's value less twice the mean rank; ties share their average."""
    start = 0
    while start < n:
        end = start + 1
        while end < n and in_order[end] == in_order[start]:
            end += 1
        for slot in range(start, end):
            ranks[slot] = start + end - n
        start = end


@machine_code
def rank_correlations(x: Any, y: Any, usable: Any, min_stocks: int, result: Any) -> None:
    """Spearman correlation of every date's usable pairs; NaN by the rules of ``rank_ic``.

    Sums of ranks are whole numbers, exact however they are added, so that the one division gives
    the same bits as NumPy's way. Ranks are doubled and counted from their mean: ties make halves.

    Args:
        x: [dates, stocks]; any values where not usable.
        y: Likewise.
        usable: [dates, stocks]; both sides are finite there.
        min_stocks: Fewest usable pairs for a defined value.
        result: [dates], written to.
    """
    dates, stocks = x.shape
    mine, theirs, in_order = np.empty(stocks), np.empty(stocks), np.empty(stocks)
    by_x, by_y = np.empty(stocks, np.uint64), np.empty(stocks, np.uint64)
    spare, counts = np.empty(stocks, np.uint64), np.empty(2 * _DIGITS, np.uint32)
    rank_x, rank_y = np.empty(stocks, np.int64), np.empty(stocks, np.int64)
    for date in range(dates):
        n = 0
        for stock in range(stocks):
            mine[n], theirs[n] = x[date, stock], y[date, stock]
            n += usable[date, stock]
        result[date] = np.nan
        if n < max(min_stocks, 2):
            continue
        tied = _order(mine, n, by_x, spare, counts, in_order)
        if tied:
            _doubled_ranks(in_order, n, rank_x)
        for slot in range(n):
            mine[slot] = theirs[by_x[slot]]
        tied_y = _order(mine, n, by_y, spare, counts, in_order)
        if not (tied or tied_y):
            total = 0
            for slot in range(n):
                total += slot * np.int64(by_y[slot])
            result[date] = (4 * total - n * (n - 1) ** 2) / (n * (n * n - 1) // 3)
            continue
        if not tied:
            for slot in range(n):
                rank_x[slot] = 2 * slot - n + 1
        _doubled_ranks(in_order, n, rank_y)
        xx, xy, yy = 0, 0, 0
        for slot in range(n):
            a, b = rank_x[by_y[slot]], rank_y[slot]
            xx, xy, yy = xx + a * a, xy + a * b, yy + b * b
        if xx > 0 and yy > 0:
            result[date] = min(1.0, max(-1.0, xy / math.sqrt(float(xx) * float(yy))))
