"""The stocks of every date in ascending order of a value, and its ties: the inner part of a rank.

What a rank is, and what ties share, is said in ``rank_ic.py``.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Int16

_STEPS = 2**15 - 2
_MISSING = np.int16(2**15 - 1)

_SWAPS = 8
"""Passes over neighbours: in a key's group of four or five, values trade places this often."""


def ascending_order(
    values: Float[np.ndarray, "dates stocks"], missing: Bool[np.ndarray, "dates stocks"]
) -> tuple[Int[np.ndarray, "dates stocks"], Bool[np.ndarray, " dates"]]:
    """Positions along the stocks in ascending order of the values, by counting, not by comparing.

    One counting sort by keys of 16 bits puts the values in order but for those that share a key,
    of 4,000 stocks about 150, most in pairs. Neighbours that stand the wrong way round then change
    places. ``argsort`` takes twice as long, and more where AVX-512 writes slowly (AMD Zen 4).

    Args:
        values: No NaN but where they are missing.
        missing: Entries whose value is of no account; they come last, in the order they stood in.

    Returns:
        ``order`` and, per date, whether it has a tie. Tied values stand side by side in any order.
    """
    dates, stocks = values.shape
    values = np.where(missing, 0.0, values)
    order = _keys(values, missing).argsort(axis=1, kind="stable")
    start = np.arange(dates)[:, None] * stocks
    order += start
    in_order = values.take(order)
    known = stocks - np.count_nonzero(missing, axis=1)
    paired = np.arange(1, stocks + 1) < known[:, None]  # a slot and the one after it
    disordered = _swap_neighbours(in_order.reshape(-1), order.reshape(-1), paired.reshape(-1))
    order -= start
    if disordered.size:
        rows = np.unique(disordered // stocks)
        # Stable, and NaN comes last.
        anew = np.where(missing[rows], np.nan, values[rows]).argsort(axis=1, kind="stable")
        order[rows] = anew
        in_order[rows] = np.take_along_axis(values[rows], anew, axis=1)
    tied = (in_order[:, 1:] == in_order[:, :-1]) & paired[:, :-1]
    return order, tied.any(axis=1)


def tied_slots(
    values: Float[np.ndarray, "dates stocks"],
    order: Int[np.ndarray, "dates stocks"],
    known: Int[np.ndarray, " dates"],
) -> tuple[Int[np.ndarray, "dates stocks"], Int[np.ndarray, "dates stocks"]]:
    """First and last slot of the group of equal values that each slot of the order belongs to.

    Args:
        values: As they were given to ``ascending_order``.
        order: What it returned.
        known: How many of each date's values are not missing; the slots after them stand alone.
    """
    in_order = np.take_along_axis(values, order, axis=1)
    slots = np.arange(values.shape[1])
    starts = np.ones(values.shape, dtype=bool)
    starts[:, 1:] = (in_order[:, 1:] != in_order[:, :-1]) | (slots[1:] >= known[:, None])
    ends = np.ones(values.shape, dtype=bool)
    ends[:, :-1] = starts[:, 1:]
    first = np.maximum.accumulate(np.where(starts, slots, 0), axis=1)
    from_the_right = np.where(ends, slots, values.shape[1])[:, ::-1]
    return first, np.minimum.accumulate(from_the_right, axis=1)[:, ::-1]


def _keys(
    values: Float[np.ndarray, "dates stocks"], missing: Bool[np.ndarray, "dates stocks"]
) -> Int16[np.ndarray, "dates stocks"]:
    """Numbers that do not fall where the values rise: ``x / (m + |x|)`` in 65,533 steps.

    With m the date's mean size, values of any unit and with heavy tails spread over all steps.
    Where an infinite value leaves no mean, the keys mean nothing.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        size = np.abs(single)
        size += size.sum(axis=1, keepdims=True) / max(1, size.shape[1]) + np.finfo(np.float32).tiny
        single /= size
        single *= np.float32(_STEPS)
        keys = single.astype(np.int16)
    np.copyto(keys, _MISSING, where=missing)
    return keys


def _swap_neighbours(
    values: Float[np.ndarray, " slots"],
    places: Int[np.ndarray, " slots"],
    paired: Bool[np.ndarray, " slots"],
) -> Int[np.ndarray, " left"]:
    """Neighbours that stand the wrong way round change places in both arrays, again and again.

    Returns:
        The slots that still hold more than the one after them after ``_SWAPS`` passes.
    """
    left = np.flatnonzero((values[1:] < values[:-1]) & paired[:-1])
    for _ in range(_SWAPS):
        if not left.size:
            break
        # Of pairs that share a value, the first. The next is still wrong after it, and looked at.
        first = left[np.diff(left, prepend=-2) > 1]
        second = first + 1
        for array in (values, places):
            array[first], array[second] = array[second], array[first]
        near = np.concatenate([first - 1, second])
        left = np.unique(near[(values[(near + 1) % len(values)] < values[near]) & paired[near]])
    return left
