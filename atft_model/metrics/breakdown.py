"""Where a rank IC comes from: by age of the score, by group of stocks, by period, and beyond known
factors; and whether predicted quantiles hold what they promise.

The rank IC itself is in ``rank_ic.py``; standard errors of these per-date series are in
``inference.py``.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from atft_model.errors import InputError
from atft_model.metrics.axes import require_same_shape
from atft_model.metrics.rank_ic import MIN_STOCKS, average_ranks, rank_ic

_RANK_TOLERANCE = 1e-10
"""Singular values below this share of the largest are none: factors may repeat each other."""


def rank_ic_by_age(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    ages: Sequence[int],
    min_stocks: int = MIN_STOCKS,
) -> Float[np.ndarray, "ages dates"]:
    """Rank IC per date of the scores made ``age`` trading days earlier: how fast the signal decays.

    Age 0 is ``rank_ic``. The first ``age`` dates have no score that old and are NaN.

    Args:
        score: NaN where not scored.
        forward_return: As in ``rank_ic``.
        valid: Of the forward return's date: stocks that may be held then.
        ages: Trading days, 0 or more.
        min_stocks: Fewest usable pairs for a defined value.
    """
    require_same_shape("rank_ic_by_age", score=score, forward_return=forward_return, valid=valid)
    result = np.full((len(ages), len(score)), np.nan)
    for row, age in enumerate(ages):
        if age < 0:
            raise InputError(f"rank_ic_by_age: age {age}, expected 0 or more trading days")
        if age < len(score):
            old = score[: len(score) - age]
            result[row, age:] = rank_ic(old, forward_return[age:], valid[age:], min_stocks)
    return result


def rank_ic_by_group(
    score: Float[np.ndarray, "dates stocks"],
    forward_return: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
    group: Int[np.ndarray, "dates stocks"],
    groups: Sequence[int],
    min_stocks: int,
) -> Float[np.ndarray, "groups dates"]:
    """Rank IC per date among the stocks of each group alone, such as a sector."""
    require_same_shape("rank_ic_by_group", score=score, group=group)
    parts = [rank_ic(score, forward_return, valid & (group == g), min_stocks) for g in groups]
    return np.stack(parts) if parts else np.empty((0, len(score)))


def equal_groups(
    values: Float[np.ndarray, "dates stocks"], valid: Bool[np.ndarray, "dates stocks"], groups: int
) -> Int[np.ndarray, "dates stocks"]:
    """Group of each stock by its rank within the date, 0 = smallest; -1 where unknown.

    Tied stocks stay together.
    """
    known = valid & np.isfinite(values)
    ranks = average_ranks(np.where(known, values, np.nan))
    position = (ranks - 0.5) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return np.where(known, np.floor(np.nan_to_num(position) * groups), -1).astype(np.int64)


def neutralized(
    score: Float[np.ndarray, "dates stocks"],
    factors: Float[np.ndarray, "dates stocks factors"],
    group: Int[np.ndarray, " stocks"] | None = None,
) -> Float[np.ndarray, "dates stocks"]:
    """What each date's ranks of the score keep after those of the factors are taken out.

    Per date, the least-squares residual of the score's ranks on the factors' ranks, an intercept
    and a dummy per group. It correlates with none of them. Ranks, so that no outlier decides; an
    unknown factor value counts as average, so no stock is lost.

    Args:
        score: NaN where not scored.
        factors: Such as beta and size; NaN where unknown. May have no column.
        group: Such as the sector; taken out as dummies.

    Returns:
        NaN where not scored. A date whose score is explained wholly keeps zeros only.
    """
    known = np.isfinite(score)
    residual = _unexplained(_centred_ranks(score, known), known, factors, group)
    # Rounding must not leave a ranking where nothing is left to rank.
    size = np.abs(residual).max(axis=1, keepdims=True, initial=0.0)
    return np.where(known, np.where(size < 1e-9, 0.0, residual), np.nan)


def neutral_weights(
    weights: Float[np.ndarray, "dates stocks"],
    tradable: Bool[np.ndarray, "dates stocks"],
    factors: Float[np.ndarray, "dates stocks factors"],
    group: Int[np.ndarray, " stocks"] | None = None,
) -> Float[np.ndarray, "dates stocks"]:
    """The nearest long-short book that holds nothing of the factors' ranks, and 0 of each group.

    The deciles of a neutral score are not neutral themselves: ranks are bounded, so the extremes of
    what a strong factor leaves lean against it. Here the least is added to the weights, spread over
    all tradable stocks, that takes the lean away; the book is then scaled to what it was.

    Args:
        weights: Long-short, 0 net, of tradable stocks alone.
        tradable: Stocks that may be held.
        factors: As in ``neutralized``.
        group: As in ``neutralized``.

    Returns:
        A date whose weights are explained wholly holds nothing.
    """
    residual = _unexplained(weights, tradable, factors, group)
    before = np.abs(weights).sum(axis=1, keepdims=True)
    after = np.abs(residual).sum(axis=1, keepdims=True)
    left = after > 1e-9 * before
    return np.where(left, residual * before / np.where(left, after, 1.0), 0.0)


def _unexplained(
    y: np.ndarray, known: np.ndarray, factors: np.ndarray, group: np.ndarray | None
) -> np.ndarray:
    """Least-squares residual of y, whose mean is 0, on the factors' ranks and the groups."""
    columns = [_centred_ranks(factors[..., k], known) for k in range(factors.shape[-1])]
    if group is not None:
        count = known.sum(axis=1, keepdims=True)
        for value in np.unique(group)[1:]:
            member = known & (group == value)
            share = member.sum(axis=1, keepdims=True) / np.maximum(count, 1)
            columns.append(np.where(known, member - share, 0.0))
    if not columns:
        return y
    x = np.stack(columns, axis=-1)
    gram = np.einsum("dsi,dsj->dij", x, x)
    moment = np.einsum("dsi,ds->di", x, y)
    inverse = np.linalg.pinv(gram, rcond=_RANK_TOLERANCE, hermitian=True)
    return y - np.einsum("dsi,dij,dj->ds", x, inverse, moment, optimize=True)


def quantile_coverage(
    quantiles: Float[np.ndarray, "dates stocks levels"],
    target: Float[np.ndarray, "dates stocks"],
    valid: Bool[np.ndarray, "dates stocks"],
) -> tuple[Float[np.ndarray, "dates levels"], Float[np.ndarray, " dates"]]:
    """Share of a date's targets at or below each predicted quantile, and share that cross.

    A forecast of the 5 % quantile should have 5 % of the targets below it. A stock crosses where a
    higher level has a lower value.

    Args:
        quantiles: Levels rising; in the units of ``target``.
        target: NaN where unknown.
        valid: Stocks that count.

    Returns:
        Both NaN on dates without a stock.
    """
    scored = valid & np.isfinite(quantiles).all(axis=-1)
    usable = scored & np.isfinite(target)
    below = (target[..., None] <= quantiles) & usable[..., None]
    crossed = scored & (np.diff(quantiles, axis=-1) < 0).any(axis=-1)
    return _share(below.sum(axis=1), usable.sum(axis=1)[:, None]), _share(
        crossed.sum(axis=1), scored.sum(axis=1)
    )


def _centred_ranks(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Ranks in (-1/2, 1/2), mean 0 over the known stocks; 0 where the value is unknown."""
    mine = known & np.isfinite(values)
    ranks = average_ranks(np.where(mine, values, np.nan))
    count = np.maximum(mine.sum(axis=1, keepdims=True), 1)
    return np.where(mine, (np.nan_to_num(ranks) - (count + 1) / 2) / count, 0.0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
