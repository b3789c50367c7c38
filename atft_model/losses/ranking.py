"""Within-date rank correlation as a loss."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atft_model.losses.cross_section import masked_mean, masked_variance


def target_ranks(
    target: Float[Tensor, "dates stocks horizons"], valid: Bool[Tensor, "dates stocks horizons"]
) -> Float[Tensor, "dates stocks horizons"]:
    """Ranks of the target within each date and horizon, scaled to [-1, 1]; 0 where not valid.

    Ties, which continuous returns do not have, fall in stock order.
    """
    ordered = target.masked_fill(~valid, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    count = valid.sum(dim=1, keepdim=True).clamp(min=2)
    return torch.where(valid, 2.0 * ordered / (count - 1) - 1.0, 0.0)


def rank_loss(
    score: Float[Tensor, "dates stocks horizons"],
    target: Float[Tensor, "dates stocks horizons"],
    valid: Bool[Tensor, "dates stocks horizons"],
    min_stocks: int,
    weights: Float[Tensor, " horizons"] | None = None,
    whole: float | None = None,
) -> Float[Tensor, ""]:
    """Mean over dates and horizons of 1 - correlation(score, rank of target).

    The score's own ranks have no gradient; its correlation with the target's ranks does, and a
    monotone score maximises both. The score's deviation is floored at 1e-6 so that a collapsed
    score gives a large but finite gradient. Dates with fewer than ``min_stocks`` are left out.

    Args:
        weights: Of the horizons in the mean; all alike by default.
        whole: Weights of the (date, horizon) of the whole batch with enough stocks added up, where
            this is a part of one.
    """
    ranks = target_ranks(target, valid)
    centred_score = score - masked_mean(score, valid)
    centred_rank = ranks - masked_mean(ranks, valid)
    covariance = masked_mean(centred_score * centred_rank, valid)
    spread = (masked_variance(score, valid) + 1e-12).sqrt()
    rank_spread = (masked_variance(ranks, valid) + 1e-12).sqrt()
    correlation = (covariance / (spread * rank_spread)).squeeze(1)
    counted = (valid.sum(dim=1) >= min_stocks).to(score.dtype)
    if weights is not None:
        counted = counted * weights
    least = torch.finfo(counted.dtype).tiny  # no date counts: zero loss, not NaN
    divisor = counted.sum().clamp(min=least) if whole is None else max(whole, least)
    return ((1.0 - correlation) * counted).sum() / divisor
