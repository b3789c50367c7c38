"""Variable selection: each feature through its own network, mixed by learned weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atft_model.model.gated_residual import FeatureNetworks, GatedResidualNetwork

CPU_BLOCK_BYTES = 8 * 2**20
"""Of one [features, rows, size] intermediate on a CPU: about what its caches hold of it."""


class VariableSelection(nn.Module):
    """Variable selection network (Lim et al. 2021, section 4.2, eq. 6-8).

    The selection weights are a softmax over features of a GRN on all feature embeddings; the
    output is the weighted sum of the feature networks' outputs. It sees one (date, stock) at a
    time, so overlapping windows share it. The embedding of a scalar feature is linear in it, so
    the weight network reads the scalars themselves: a linear layer on stacked linear embeddings
    is a linear layer on the scalars.

    The intermediates are ``features`` times wider than input and output, and there are a dozen of
    them: by far the most memory of the model. On a CPU the rows go through in blocks that stay in
    its caches, and the backward pass computes a block again rather than read it back from memory,
    with the same dropout: no slower, and the memory of one block instead of all.
    """

    def __init__(self, features: int, size: int, dropout: float) -> None:
        super().__init__()
        self.networks = FeatureNetworks(features, size, dropout)
        self.weights = GatedResidualNetwork(features, features, dropout, hidden_size=size)
        self.block_rows = max(1, CPU_BLOCK_BYTES // (4 * features * size))

    def forward(
        self, x: Float[Tensor, "rows features"]
    ) -> tuple[Float[Tensor, "rows size"], Float[Tensor, "rows features"]]:
        """The mixed embedding, and the weights that made it (they sum to 1)."""
        if x.device.type != "cpu" or len(x) <= self.block_rows:
            return self.select(x)
        blocks = x.split(self.block_rows)
        if torch.is_grad_enabled():
            parts = [checkpoint(self.select, block, use_reentrant=False) for block in blocks]
        else:
            parts = [self.select(block) for block in blocks]
        mixed, weights = zip(*parts, strict=True)
        return torch.cat(mixed), torch.cat(weights)

    def select(
        self, x: Float[Tensor, "rows features"]
    ) -> tuple[Float[Tensor, "rows size"], Float[Tensor, "rows features"]]:
        """What ``forward`` gives, of one block of rows."""
        weights = torch.softmax(self.weights(x), dim=-1)
        embedded = self.networks(x)
        mixed = torch.einsum("fns,nf->ns", embedded, weights)
        return mixed, weights
