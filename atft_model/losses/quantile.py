"""Pinball loss of the predicted quantiles."""

from jaxtyping import Bool, Float
from torch import Tensor

from atft_model.losses.cross_section import at_least_one


def quantile_loss(
    quantiles: Float[Tensor, "dates stocks horizons quantiles"],
    target: Float[Tensor, "dates stocks horizons"],
    valid: Bool[Tensor, "dates stocks horizons"],
    levels: Float[Tensor, " quantiles"],
    entries: int | None = None,
) -> Float[Tensor, ""]:
    """Mean pinball loss over valid entries and levels (Koenker & Bassett 1978).

    Zero gradient, not NaN, where nothing is valid.

    Args:
        entries: Valid entries of the whole batch, where this is a part of one.
    """
    error = target.unsqueeze(-1) - quantiles
    loss = (error * levels).maximum(error * (levels - 1)).mean(dim=-1)
    return (loss * valid).sum() / at_least_one(valid.sum() if entries is None else entries)
