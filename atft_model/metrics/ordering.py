"""The stocks of every date in ascending order of a value, and its ties: the inner part of a rank.

What a rank is, and what ties share, is said in ``rank_ic.py``.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Int16

_STEPS = 2**15 - 2

_SAMPLE = 64
"""Of so many of a date's values the mean size is taken; any size will do that is not far off."""

_SWAPS = 8
"""Passes over neighbours: in a key's group of four or five, values trade places this often."""


def ascending_order(
    values: Float[np.ndarray, "dates stocks"], missing: Bool[np.ndarray, "dates stocks"]
) -> tuple[Int[np.ndarray, "dates stocks"], Bool[np.ndarray, " dates"]]:
    """Places of every date's values in ascending order, by counting, not by comparing.

    One counting sort by keys of 16 bits puts the values in order but for those that share a key,
    of 4,000 stocks about 150, most in pairs. Neighbours that stand the wrong way round then change
    places. ``argsort`` takes twice as long, and more where AVX-512 writes slowly (AMD Zen 4).

    Args:
        values: No NaN but where they are missing.
        missing: Entries whose value is of no account; they come last, in the order they stood in.

    Returns:
        ``places`` in the flattened array, so that ``values.take(places)`` is in order, and, per
        date, whether it has a tie. Tied values stand side by side in any order.
    """
    dates, stocks = values.shape
    if not stocks:
        return np.zeros((dates, 0), dtype=np.int64), np.zeros(dates, dtype=bool)
    starts = np.arange(dates) * stocks
    places = _keys(values, missing).argsort(axis=1, kind="stable")
    places += starts[:, None]
    in_order = values.take(places)
    # NaN is neither less than its neighbour nor equal to it.
    for row, known in zip(in_order, stocks - np.count_nonzero(missing, axis=1), strict=True):
        row[known:] = np.nan
    tied, disordered = _swap_neighbours(in_order.reshape(-1), places.reshape(-1), stocks)
    if disordered.size:
        rows = np.unique(disordered // stocks)
        # Stable, and NaN comes last.
        anew = np.where(missing[rows], np.nan, values[rows])
        order = anew.argsort(axis=1, kind="stable")
        places[rows] = order + starts[rows, None]
        sorted_anew = np.take_along_axis(anew, order, axis=1)
        tied[rows] = (sorted_anew[:, 1:] == sorted_anew[:, :-1]).any(axis=1)
    return places, tied


def tied_slots(
    values: Float[np.ndarray, "all_dates stocks"],
    places: Int[np.ndarray, "dates stocks"],
    known: Int[np.ndarray, " dates"],
) -> tuple[Int[np.ndarray, "dates stocks"], Int[np.ndarray, "dates stocks"]]:
    """First and last slot of the group of equal values that each slot of the order belongs to.

    Args:
        values: As they were given to ``ascending_order``.
        places: What it returned, of the dates that are asked for.
        known: How many of each date's values are not missing; the slots after them stand alone.
    """
    in_order = values.take(places)
    slots = np.arange(values.shape[1])
    starts = np.ones(in_order.shape, dtype=bool)
    starts[:, 1:] = (in_order[:, 1:] != in_order[:, :-1]) | (slots[1:] >= known[:, None])
    ends = np.ones(in_order.shape, dtype=bool)
    ends[:, :-1] = starts[:, 1:]
    first = np.maximum.accumulate(np.where(starts, slots, 0), axis=1)
    from_the_right = np.where(ends, slots, values.shape[1])[:, ::-1]
    return first, np.minimum.accumulate(from_the_right, axis=1)[:, ::-1]


def _keys(
    values: Float[np.ndarray, "dates stocks"], missing: Bool[np.ndarray, "dates stocks"]
) -> Int16[np.ndarray, "dates stocks"]:
    """Numbers that do not fall where the values rise: ``x / (m + |x|)`` in 65,533 steps.

    With m the mean size of some of the date's values, values of any unit and with heavy tails
    spread over all steps. Where an infinite value leaves no mean, the keys mean nothing.
    """
    some = slice(None, None, max(1, values.shape[1] // _SAMPLE))
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.sum(np.abs(values[:, some]), axis=1, where=~missing[:, some], keepdims=True)
        single = values.astype(np.float32)
        divisor = np.abs(single)
        divisor += (size / _SAMPLE).astype(np.float32) + np.finfo(np.float32).tiny
        single /= divisor
        single *= np.float32(_STEPS)
        keys = single.astype(np.int16)
    # -2**15 where known and 2**15 - 1 where missing, in steps that are each done 32 at a time.
    lowest = -missing.astype(np.int16) ^ np.int16(-(2**15))
    return np.maximum(keys, lowest, out=keys)


def _swap_neighbours(
    values: Float[np.ndarray, " slots"], places: Int[np.ndarray, " slots"], stocks: int
) -> tuple[Bool[np.ndarray, " dates"], Int[np.ndarray, " left"]]:
    """Neighbours that stand the wrong way round change places in both arrays, again and again.

    Returns:
        The dates on which equal values were seen side by side, and the slots that still hold more
        than the one after them after ``_SWAPS`` passes.
    """
    slots = len(values)
    tied = np.zeros(slots // stocks, dtype=bool)
    within = np.ones(slots, dtype=bool)  # the slot after it belongs to the same date
    within[stocks - 1 :: stocks] = False
    looked_at = np.flatnonzero((values[1:] <= values[:-1]) & within[:-1])
    for _ in range(_SWAPS):
        wrong = values[looked_at + 1] < values[looked_at]
        tied[looked_at[~wrong] // stocks] = True
        left = looked_at[wrong]
        if not left.size:
            break
        # Of pairs that share a value, the first. The next is still wrong after it, and looked at.
        first = left[np.diff(left, prepend=-2) > 1]
        second = first + 1
        for array in (values, places):
            array[first], array[second] = array[second], array[first]
        near = np.stack([first - 1, second], axis=1).reshape(-1)
        near = near[within[near]]
        looked_at = near[values[near + 1] <= values[near]]
    return tied, looked_at[values[looked_at + 1] < values[looked_at]]
