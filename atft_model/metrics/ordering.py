"""The stocks of every date in ascending order of a value, and its ties: the inner part of a rank.

What a rank is, and what ties share, is said in ``rank_ic.py``.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

_ABOVE_INFINITY = np.uint32(0xFF800001)
_SWAPS = 3
"""Passes over neighbours: three values that float32 cannot tell apart need no more."""


def ascending_order(
    values: Float[np.ndarray, "dates stocks"], missing: Bool[np.ndarray, "dates stocks"]
) -> tuple[Int[np.ndarray, "dates stocks"], Bool[np.ndarray, " dates"]]:
    """Positions along the stocks in ascending order of the values, by counting, not by comparing.

    Two counting sorts of 16 bits each order the values as float32; what float32 cannot tell apart
    is then compared as it is. ``argsort`` takes as long or, where AVX-512 writes slowly, more than
    twice as long.

    Args:
        values: No NaN but where they are missing.
        missing: Entries whose value is of no account; they come last, in the order they stood in.

    Returns:
        ``order`` and, per date, whether it has a tie. Tied values stand side by side in any order.
    """
    keys = _keys(values, missing)
    row = np.arange(len(values))[:, None] * values.shape[1]
    low = keys.astype(np.uint16).argsort(axis=1, kind="stable")
    low += row
    high = (keys >> np.uint32(16)).astype(np.uint16).take(low).argsort(axis=1, kind="stable")
    high += row
    order = low.take(high)
    in_order = keys.take(order)
    order -= row
    tied = np.any(in_order[:, 1:] == in_order[:, :-1], axis=1)
    if tied.any():
        order[tied], tied[tied] = _compared(values[tied], missing[tied], order[tied])
    return order, tied


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


def _keys(values: np.ndarray, missing: np.ndarray) -> UInt32[np.ndarray, "dates stocks"]:
    """Numbers in the order of the values as float32; the missing ones differ, above all others."""
    with np.errstate(over="ignore"):  # what is infinite as float32 is compared as it is
        single = values.astype(np.float32)
    single += np.float32(0.0)  # makes one zero of two
    bits = single.view(np.uint32)
    # All bits of negative numbers are turned, of the others the sign alone.
    turned = (single.view(np.int32) >> 31).view(np.uint32)
    turned |= np.uint32(0x80000000)
    bits ^= turned
    slots = np.arange(values.shape[1], dtype=np.uint32)
    np.copyto(bits, _ABOVE_INFINITY + slots, where=missing)
    return bits


def _compared(
    values: np.ndarray, missing: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The order after neighbours that stand the wrong way round were swapped, and who has ties.

    Dates on which a few swaps are not enough are sorted anew.
    """
    known = values.shape[1] - np.count_nonzero(missing, axis=1)
    in_order = np.take_along_axis(values, order, axis=1)
    counted = np.arange(1, values.shape[1]) < known[:, None]
    for _ in range(_SWAPS):
        row, slot = np.nonzero((in_order[:, 1:] < in_order[:, :-1]) & counted)
        if not row.size:
            break
        apart = np.diff(row * values.shape[1] + slot, prepend=-2) > 1  # of overlapping pairs, one
        row, slot = row[apart], slot[apart]
        for array in (in_order, order):
            array[row, slot], array[row, slot + 1] = array[row, slot + 1], array[row, slot]
    wrong = np.any((in_order[:, 1:] < in_order[:, :-1]) & counted, axis=1)
    if wrong.any():
        # Stable, with the missing ones moved behind a true infinity afterwards.
        anew = np.argsort(np.where(missing[wrong], np.inf, values[wrong]), axis=1, kind="stable")
        last = np.take_along_axis(missing[wrong], anew, axis=1)
        order[wrong] = np.take_along_axis(anew, np.argsort(last, axis=1, kind="stable"), axis=1)
        in_order[wrong] = np.take_along_axis(values[wrong], order[wrong], axis=1)
    return order, np.any((in_order[:, 1:] == in_order[:, :-1]) & counted, axis=1)
