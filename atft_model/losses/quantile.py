"""Pinball loss of the predicted quantiles."""

from jaxtyping import Bool, Float
from torch import Tensor


def quantile_loss(
    quantiles: Float[Tensor, "dates stocks horizons quantiles"],
    target: Float[Tensor, "dates stocks horizons"],
    valid: Bool[Tensor, "dates stocks horizons"],
    levels: Float[Tensor, " quantiles"],
) -> Float[Tensor, ""]:
    """Mean pinball loss over valid entries and levels (Koenker & Bassett 1978).

    Zero gradient, not NaN, where nothing is valid.
    """
    error = target.unsqueeze(-1) - quantiles
    loss = (error * levels).maximum(error * (levels - 1)).mean(dim=-1)
    return (loss * valid).sum() / valid.sum().clamp(min=1)
