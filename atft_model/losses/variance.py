"""The variance penalty: keeps the scores of a date apart."""

from jaxtyping import Bool, Float
from torch import Tensor

from atft_model.losses.cross_section import at_least_one, masked_variance


def variance_penalty(
    score: Float[Tensor, "dates stocks horizons"],
    valid: Bool[Tensor, "dates stocks horizons"],
    std_floor: float,
    min_stocks: int,
    ranked: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over dates and horizons of -log(variance of the score within the date).

    The squared ``std_floor`` of the degeneracy guard is added inside the logarithm: finite for a
    constant score, and the gradient is alive down to that floor. (A clamp at 1e-8 is dead below a
    standard deviation of 1e-4.)

    Args:
        ranked: (date, horizon) of the whole batch with enough stocks, where this is a part of one.
    """
    variance = masked_variance(score, valid).squeeze(1)
    counted = valid.sum(dim=1) >= min_stocks
    penalty = -(variance + std_floor**2).log()
    return (penalty * counted).sum() / at_least_one(counted.sum() if ranked is None else ranked)
