"""Variable selection: each feature through its own network, mixed by learned weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from atft_model.model.feature_networks import FeatureNetworks
from atft_model.model.gated_residual import GatedResidualNetwork


class VariableSelection(nn.Module):
    """Variable selection network (Lim et al. 2021, section 4.2, eq. 6-8).

    The selection weights are a softmax over features of a GRN on all feature embeddings; the
    output is the weighted sum of the feature networks' outputs. It sees one (date, stock) at a
    time, so overlapping windows share it. The embedding of a scalar feature is linear in it, so
    the weight network reads the scalars themselves: a linear layer on stacked linear embeddings
    is a linear layer on the scalars.
    """

    def __init__(self, features: int, size: int, dropout: float) -> None:
        super().__init__()
        self.networks = FeatureNetworks(features, size, dropout)
        self.weights = GatedResidualNetwork(features, features, dropout, hidden_size=size)

    def forward(
        self, x: Float[Tensor, "rows features"]
    ) -> tuple[Float[Tensor, "rows size"], Float[Tensor, "rows features"]]:
        """The mixed embedding, and the weights that made it (they sum to 1)."""
        weights = torch.softmax(self.weights(x), dim=-1)
        return self.networks.mix(x, weights), weights
