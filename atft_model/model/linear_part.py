"""The linear part: what a regression on the last day's inputs adds to the network's score."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

ROUNDING = 1e-5
"""Of its mean, the spread of a linear score below which it is rounding and not worth a move."""


class LinearPart(nn.Module):
    """Moves a network's quantiles by a linear score, more for long horizons than for short ones.

    Of horizon h the score is, up to its scale, z(network) + h / ``days`` · z(linear), with z the
    standard score within the date: a combination of forecasts with fixed weights (Bates & Granger
    1969; weights that are fitted on the dates that both were fitted on would trust the one that
    fits those better). Labels of long horizons overlap, so there are few of them, and what has
    less freedom errs less.

    The move is in units of the network's own spread: a network that gives every stock of a date the
    same still does so with a linear part, so whatever watches the score sees the network.
    """

    weights: Tensor
    share: Tensor

    def __init__(self, features: int, horizons: tuple[int, ...], days: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(features, len(horizons)))
        share = torch.tensor([horizon / days for horizon in horizons])
        self.register_buffer("share", share, persistent=False)

    def forward(
        self,
        quantiles: Float[Tensor, "runs length stocks horizons quantiles"],
        x: Float[Tensor, "runs length stocks features"],
        scorable: Bool[Tensor, "runs length stocks"],
        median: int,
    ) -> Float[Tensor, "runs length stocks horizons quantiles"]:
        """Every quantile of a stock moved by the same; the date is that of its scorable stocks."""
        counted = scorable[..., None]
        linear = x.float() @ self.weights
        network = quantiles[..., median]
        linear_mean, linear_std = moments(linear, counted)
        _, network_std = moments(network.float(), counted)
        least = ROUNDING * linear_mean.abs() + torch.finfo(torch.float32).tiny
        standard = (linear - linear_mean) / (linear_std + least)
        return quantiles + (self.share * network_std * standard)[..., None].to(quantiles.dtype)


def moments(
    x: Float[Tensor, "runs length stocks horizons"], counted: Bool[Tensor, "runs length stocks 1"]
) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation over each date's counted stocks; 0 without any."""
    x = torch.where(counted, x, 0.0)
    count = counted.sum(dim=2, keepdim=True).clamp(min=1)
    mean = x.sum(dim=2, keepdim=True) / count
    square = torch.where(counted, (x - mean).square(), 0.0).sum(dim=2, keepdim=True) / count
    return mean, square.sqrt()
