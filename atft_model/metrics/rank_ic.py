"""Agreement of a score with forward returns, date by date: ranks, rank IC, IC, hit rate, deciles.

The one place where a rank is computed. What a portfolio earns is in ``portfolio.py``; standard
errors and tests of these per-date series are in ``inference.py``.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float

from atft_model.errors import InputError
from atft_model.metrics.axes import require_same_shape
from atft_model.metrics.ordering import ascending_order, tied_slots

MIN_STOCKS = 30  # below this a rank correlation is mostly noise: its standard error exceeds 0.18
DECILES = 10

# Whole dates are handled in blocks of about this many cells: small enough for the last cache, and
# large enough that a step takes longer than handing the interpreter's lock to the other thread.
_CELLS_PER_BLOCK = 240_000
# NumPy's sorting and arithmetic leave the interpreter's lock, so that blocks run side by side.
_THREADS = min(4, os.cpu_count() or 1)
# The C library keeps freed blocks for itself up to the size of the largest one that it ever gave
# back. Until then it gives every block's arrays back to the kernel, and half of the time goes into
# getting them again, page by page.
_KEPT_BYTES = 16 << 20
# From so many cells on, loading numba (most of a second of the processor) costs less than it saves.
_CELLS_WORTH_COMPILED_CODE = 2_000_000


def rank_bounds(
    values: Float[np.ndarray, "dates stocks"],
) -> tuple[Float[np.ndarray, "dates stocks"], Float[np.ndarray, "dates stocks"]]:
    """Lowest and highest ordinal rank (1 = smallest) that each value's group of ties takes up.

    Args:
        values: Any order; NaN takes no part and stays NaN. Infinities are values.

    Returns:
        ``lowest`` and ``highest``: equal for a value without ties.
    """
    values = np.asarray(values, dtype=np.float64)
    lowest, highest = np.empty_like(values), np.empty_like(values)

    def work(block: slice) -> None:
        lowest[block], highest[block] = _rank_bounds_of_block(values[block])

    for_each_block(values.shape, work)
    return lowest, highest


def average_ranks(
    values: Float[np.ndarray, "dates stocks"],
) -> Float[np.ndarray, "dates stocks"]:
    """Rank within each date, 1 = smallest; ties share their average rank; NaN stays NaN."""
    values = np.asarray(values, dtype=np.float64)
    ranks = np.empty_like(values)

    def work(block: slice) -> None:
        ranks[block] = _average_ranks_of_block(values[block])

    for_each_block(values.shape, work)
    return ranks


def rank_ic(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, " dates"]:
    """Spearman correlation of score and forward return across each date's stocks.

    A date with fewer than ``min_stocks`` usable pairs, or on which either side is constant, ranks
    nothing: its rank IC is NaN, never 0, which would read as "no skill".

    Args:
        score: Model output; only its order within the date matters. NaN where not scored.
        forward_return: Return from the entry close to the close ``horizon`` days later; NaN where
            unknown.
        valid: Stocks that may be held on the date. Pairs with a non-finite side are left out.
        min_stocks: Fewest usable pairs for a defined value.

    Raises:
        InputError: The arrays are not of one shape.
    """
    require_same_shape("rank_ic", score=score, forward_return=forward_return, valid=valid)
    result = np.empty(score.shape[0])
    compiled = _compiled_if_worth_it(score.size)

    def work(block: slice) -> None:
        x = np.ascontiguousarray(score[block], dtype=np.float64)
        y = np.ascontiguousarray(forward_return[block], dtype=np.float64)
        usable = valid[block] & np.isfinite(x) & np.isfinite(y)
        if compiled:
            compiled(x, y, usable, min_stocks, result[block])
        else:
            result[block] = _rank_correlation(x, y, usable, min_stocks)

    for_each_block(score.shape, work)
    return result


def ic(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, " dates"]:
    """Pearson correlation of score and forward return per date; NaN by the rules of ``rank_ic``."""
    require_same_shape("ic", score=score, forward_return=forward_return, valid=valid)
    result = np.empty(score.shape[0])
    for block in date_blocks(score.shape):
        x, y, usable = _usable_pairs(score[block], forward_return[block], valid[block])
        result[block] = _correlation(x, y, usable, min_stocks)
    return result


def hit_rate(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, " dates"]:
    """Share of a date's stocks whose score and forward return deviate to the same side.

    The score deviates from its median of the date, the return from its mean. Because the median
    splits the scores in halves, a score without skill hits 0.5 in expectation, however skewed the
    returns are. A stock exactly on the median or on the mean takes neither side and is not counted.

    Args:
        score: As in ``rank_ic``.
        forward_return: As in ``rank_ic``.
        valid: As in ``rank_ic``.
        min_stocks: Fewest usable pairs for a defined value.

    Returns:
        Share in [0, 1]; NaN by the rules of ``rank_ic`` and where no stock takes a side.
    """
    require_same_shape("hit_rate", score=score, forward_return=forward_return, valid=valid)
    result = np.full(score.shape[0], np.nan)
    for block in date_blocks(score.shape):
        x, y, usable = _usable_pairs(score[block], forward_return[block], valid[block])
        defined = _defined(x, y, usable, min_stocks)
        x, y, usable = x[defined], y[defined], usable[defined]
        side_of_score = np.sign(x - np.nanmedian(x, axis=1, keepdims=True))
        side_of_return = np.sign(y - np.nanmean(y, axis=1, keepdims=True))
        counted = usable & (side_of_score != 0) & (side_of_return != 0)
        hits = (counted & (side_of_score == side_of_return)).sum(axis=1)
        n = counted.sum(axis=1)
        result[block][defined] = np.where(n > 0, hits / np.maximum(n, 1), np.nan)
    return result


def icir(rank_ic_by_date: Float[np.ndarray, " dates"]) -> float:
    """Mean over standard deviation (ddof 1) of a daily IC series, per day and not annualised.

    Dates with NaN are left out; NaN with fewer than two dates or without any spread. Series of
    horizons above one day overlap, so icir times the root of the number of dates is no t-statistic:
    use ``inference.newey_west_mean`` for that.
    """
    known = rank_ic_by_date[np.isfinite(rank_ic_by_date)]
    if known.size < 2 or known.min() == known.max():
        return float("nan")
    return float(known.mean() / known.std(ddof=1))


def decile_returns(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    deciles: int = DECILES,
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, "dates deciles"]:
    """Mean forward return of each score decile, less the date's mean, date by date.

    A stock belongs to the decile into which its average rank falls, so tied stocks stay together
    and no order of columns decides.

    Args:
        score: As in ``rank_ic``.
        forward_return: As in ``rank_ic``.
        valid: As in ``rank_ic``.
        deciles: Number of groups, lowest scores first.
        min_stocks: Fewest usable pairs for a defined date.

    Returns:
        Return in excess of the date's mean, as a fraction; NaN for an empty decile and on dates
        that are undefined by the rules of ``rank_ic``.
    """
    require_same_shape("decile_returns", score=score, forward_return=forward_return, valid=valid)
    if deciles < 2:
        raise InputError(f"decile_returns: deciles = {deciles}, expected 2 or more")
    result = np.full((score.shape[0], deciles), np.nan)

    def work(block: slice) -> None:
        x, y, usable = _usable_pairs(score[block], forward_return[block], valid[block])
        defined = _defined(x, y, usable, min_stocks)
        x, y, usable = x[defined], y[defined], usable[defined]
        count = usable.sum(axis=1, keepdims=True)
        # The centre of a rank's slot, (rank - 1/2) / count, lies in (0, 1): no decile overflows.
        position = (_average_ranks_of_block(x) - 0.5) / count
        group = np.floor(np.nan_to_num(position) * deciles).astype(np.int64)
        excess = np.where(usable, y - np.nanmean(y, axis=1, keepdims=True), 0.0)
        # One count over all dates; what is not usable falls into a group of its own at the end.
        day = np.arange(len(x))[:, None] * deciles
        cell = np.where(usable, group + day, len(x) * deciles).ravel()
        cells = len(x) * deciles
        n = np.bincount(cell, minlength=cells + 1)[:cells].reshape(-1, deciles)
        total = np.bincount(cell, excess.ravel(), cells + 1)[:cells].reshape(-1, deciles)
        result[block][defined] = np.where(n > 0, total / np.maximum(n, 1), np.nan)

    for_each_block(score.shape, work)
    return result


def date_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of whole dates, of one length, whose arrays stay in the processor's cache; where one
    is not enough, as many as keep every thread busy to the end."""
    if len(shape) != 2:
        raise InputError(f"ranks: an array of shape {shape}, expected [dates, stocks]")
    dates, stocks = shape
    blocks = math.ceil(dates * stocks / _CELLS_PER_BLOCK)
    if blocks > 1:
        blocks = math.ceil(blocks / _THREADS) * _THREADS
    rows = max(1, math.ceil(dates / max(1, blocks)))
    for start in range(0, dates, rows):
        yield slice(start, min(start + rows, dates))


def for_each_block(shape: tuple[int, ...], work: Callable[[slice], None]) -> None:
    """Calls ``work`` with every block of dates, several at a time where there are several.

    Blocks share no result, so the outcome does not depend on their order.
    """
    np.empty(_KEPT_BYTES, dtype=np.uint8)  # never touched, given back at once
    blocks = list(date_blocks(shape))
    if len(blocks) < 2 or _THREADS < 2:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(min(_THREADS, len(blocks))) as pool:
        list(pool.map(work, blocks))  # waits for each, and raises what a block raised


def _rank_bounds_of_block(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    missing = np.isnan(values)
    places, tied = ascending_order(values, missing)
    ranks = np.empty(values.shape)
    ranks.reshape(-1)[places] = np.arange(1.0, values.shape[1] + 1)
    ranks[missing] = np.nan
    if not tied.any():
        return ranks, ranks
    lowest, highest = ranks, ranks.copy()
    known = values.shape[1] - np.count_nonzero(missing, axis=1)
    for result, slots in zip(
        (lowest, highest), tied_slots(values, places[tied], known[tied]), strict=True
    ):
        result.reshape(-1)[places[tied]] = slots + 1.0
        result[missing] = np.nan
    return lowest, highest


def _average_ranks_of_block(values: np.ndarray) -> np.ndarray:
    lowest, highest = _rank_bounds_of_block(values)
    return lowest if lowest is highest else (lowest + highest) / 2.0


def _usable_pairs(
    score: np.ndarray, forward_return: np.ndarray, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sides as float64, NaN where the pair is not usable, and the mask of usable pairs."""
    x = np.asarray(score, dtype=np.float64)
    y = np.asarray(forward_return, dtype=np.float64)
    usable = valid & np.isfinite(x) & np.isfinite(y)
    return np.where(usable, x, np.nan), np.where(usable, y, np.nan), usable


def _defined(x: np.ndarray, y: np.ndarray, usable: np.ndarray, min_stocks: int) -> np.ndarray:
    """Dates with enough usable pairs on which neither side is constant."""
    enough = usable.sum(axis=1) >= max(min_stocks, 2)
    return enough & _varies(x, usable) & _varies(y, usable)


def _varies(x: np.ndarray, usable: np.ndarray) -> np.ndarray:
    highest = np.max(x, axis=1, where=usable, initial=-np.inf)
    lowest = np.min(x, axis=1, where=usable, initial=np.inf)
    return highest > lowest


def _compiled_if_worth_it(cells: int) -> Callable[..., None] | None:
    """``_rank_correlation`` in machine code, which gives the same bits in half the time, or None:
    for few cells, until many have been asked for, and where numba is not installed."""
    loaded = _compiled.cache_info().currsize > 0
    return _compiled() if loaded or cells >= _CELLS_WORTH_COMPILED_CODE else None


@functools.cache
def _compiled() -> Callable[..., None] | None:
    try:
        from atft_model.metrics.compiled import rank_correlations
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return rank_correlations


def _rank_correlation(
    x: np.ndarray, y: np.ndarray, usable: np.ndarray, min_stocks: int
) -> Float[np.ndarray, " dates"]:
    """Spearman correlation per date of the usable pairs.

    Without ties the ranks are 0 to n - 1 on both sides, so their means and spreads are known. With
    the stocks put in the order of x, a stock's slot is its rank in x. Put in the order of y after
    that, the sum over the ranks k in y, of k times the slot that stands there, says the rest.
    """
    count = np.count_nonzero(usable, axis=1)
    dates, stocks = x.shape
    slots = np.arange(stocks)
    places, tied_x = ascending_order(x, ~usable)
    in_order = y.take(places)
    slot, tied_y = ascending_order(in_order, slots >= count[:, None])
    n = np.maximum(count, 2).astype(np.float64)
    # A place is its slot and where its date starts. What is not usable comes last in both orders
    # and keeps its slot: k times k for each.
    total = slot.astype(np.float64) @ slots.astype(np.float64)
    total -= np.arange(dates) * float(stocks) * slots.sum()
    rest = _sum_of_squares(np.full(dates, stocks - 1)) - _sum_of_squares(count - 1)
    covariance = total - rest - n * ((n - 1) / 2) ** 2
    result = np.clip(covariance / (n * (n**2 - 1) / 12), -1.0, 1.0)
    tied = tied_x | tied_y
    if tied.any():
        n, slot = count[tied], slot[tied]
        rank_x = np.empty(x.shape)
        rank_x[tied] = np.add(*tied_slots(x, places[tied], n)) / 2
        rank_y = np.add(*tied_slots(in_order, slot, n)) / 2
        result[tied] = _correlation_of_ranks(rank_x.take(slot), rank_y, slots < n[:, None])
    return np.where(count >= max(min_stocks, 2), result, np.nan)


def _sum_of_squares(last: np.ndarray) -> np.ndarray:
    """0 + 1 + 4 + ... up to the square of ``last``; exact up to 300,000 stocks."""
    return last * (last + 1) * (2 * last + 1) / 6


def _correlation_of_ranks(
    x: np.ndarray, y: np.ndarray, usable: np.ndarray
) -> Float[np.ndarray, " dates"]:
    """Correlation of average ranks, from 0: their mean is known, and only a constant is NaN."""
    middle = (np.count_nonzero(usable, axis=1)[:, None] - 1) / 2
    dx, dy = np.where(usable, x - middle, 0.0), np.where(usable, y - middle, 0.0)
    spread = np.einsum("ij,ij->i", dx, dx) * np.einsum("ij,ij->i", dy, dy)
    defined = spread > 0
    correlation = np.einsum("ij,ij->i", dx, dy) / np.sqrt(np.where(defined, spread, 1.0))
    return np.where(defined, np.clip(correlation, -1.0, 1.0), np.nan)


def _correlation(
    x: np.ndarray, y: np.ndarray, usable: np.ndarray, min_stocks: int
) -> Float[np.ndarray, " dates"]:
    count = np.maximum(usable.sum(axis=1, keepdims=True), 1)
    dx = np.where(usable, x - np.sum(x, axis=1, where=usable, keepdims=True) / count, 0.0)
    dy = np.where(usable, y - np.sum(y, axis=1, where=usable, keepdims=True) / count, 0.0)
    # Scaled first, so that tiny or huge values neither vanish nor overflow when squared.
    dx /= np.maximum(np.abs(dx).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    dy /= np.maximum(np.abs(dy).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    product = np.einsum("ij,ij->i", dx, dy)
    scale = np.sqrt(np.einsum("ij,ij->i", dx, dx) * np.einsum("ij,ij->i", dy, dy))
    defined = _defined(x, y, usable, min_stocks)
    correlation = product / np.where(defined, scale, 1.0)
    return np.where(defined, np.clip(correlation, -1.0, 1.0), np.nan)
