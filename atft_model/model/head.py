"""The prediction head: a shared part and one head per horizon, whose quantiles cannot cross."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from atft_model.model.gated_residual import GatedResidualNetwork


class QuantileHead(nn.Module):
    """Quantiles of one horizon: a free median, and positive steps away from it on either side."""

    def __init__(self, size: int, quantiles: tuple[float, ...]) -> None:
        super().__init__()
        self.median = quantiles.index(0.5)
        self.linear = nn.Linear(size, len(quantiles))

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch quantiles"]:
        """Rising quantiles; the one at 0.5 is the raw linear output, so its scale is free."""
        raw = self.linear(x)
        median = raw[..., self.median : self.median + 1]
        below = F.softplus(raw[..., : self.median]).flip(-1).cumsum(-1).flip(-1)
        above = F.softplus(raw[..., self.median + 1 :]).cumsum(-1)
        return torch.cat([median - below, median, median + above], dim=-1)


class PredictionHead(nn.Module):
    """Shared gated residual network, then a quantile head per horizon.

    ``skip_size`` numbers of an input skip stand beside the ``size`` of the encoder's state.
    """

    def __init__(
        self, size: int, horizons: int, quantiles: tuple[float, ...], dropout: float,
        skip_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shared = GatedResidualNetwork(size + skip_size, size, dropout)
        self.heads = nn.ModuleList(QuantileHead(size, quantiles) for _ in range(horizons))

    def forward(
        self, x: Float[Tensor, "*batch input"]
    ) -> Float[Tensor, "*batch horizons quantiles"]:
        """Quantiles per horizon."""
        shared = self.shared(x)
        return torch.stack([head(shared) for head in self.heads], dim=-2)
