"""Moments over the valid stocks of a date, shared by the losses and the guard."""

from jaxtyping import Bool, Float
from torch import Tensor


def at_least_one(count: Tensor | int) -> Tensor | int:
    """What a mean over ``count`` entries divides by: their number; 1 for none, so that 0 stays."""
    return max(count, 1) if isinstance(count, int) else count.clamp(min=1)


def masked_mean(
    value: Float[Tensor, "dates stocks horizons"], valid: Bool[Tensor, "dates stocks horizons"]
) -> Float[Tensor, "dates 1 horizons"]:
    """Mean over a date's valid stocks; 0 where there are none."""
    return (value * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def masked_variance(
    value: Float[Tensor, "dates stocks horizons"], valid: Bool[Tensor, "dates stocks horizons"]
) -> Float[Tensor, "dates 1 horizons"]:
    """Population variance over a date's valid stocks; 0 where there are none."""
    return masked_mean((value - masked_mean(value, valid)).square(), valid)
