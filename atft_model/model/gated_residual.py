"""Gated linear units and gated residual networks (Lim et al. 2021, eq. 2-5)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from atft_model.model.dropout import Dropout


class GatedSkip(nn.Module):
    """LayerNorm(skip + GLU(x)): lets a layer be passed over where it does not help (eq. 5)."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.gate = nn.Linear(size, 2 * size)
        self.norm = nn.LayerNorm(size)

    def forward(
        self, x: Float[Tensor, "*batch size"], skip: Float[Tensor, "*batch size"]
    ) -> Float[Tensor, "*batch size"]:
        """Gated ``x`` on top of ``skip``."""
        return self.norm(skip + F.glu(self.gate(self.dropout(x))))


class GatedResidualNetwork(nn.Module):
    """GRN(a, c) = LayerNorm(skip(a) + GLU(W1 ELU(W2 a + W3 c))) (Lim et al. 2021, eq. 2-4)."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        dropout: float,
        context_size: int = 0,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_size or output_size
        self.input = nn.Linear(input_size, hidden)
        self.context = nn.Linear(context_size, hidden, bias=False) if context_size else None
        self.hidden = nn.Linear(hidden, output_size)
        self.skip = (
            nn.Identity() if input_size == output_size else nn.Linear(input_size, output_size)
        )
        self.gated_skip = GatedSkip(output_size, dropout)

    def forward(
        self,
        x: Float[Tensor, "*batch input"],
        context: Float[Tensor, "*#batch context"] | None = None,
    ) -> Float[Tensor, "*batch output"]:
        """The network's output; ``context`` shifts the hidden layer where the GRN has one."""
        hidden = self.input(x)
        if self.context is not None:
            if context is None:
                raise ValueError("this GatedResidualNetwork was built with a context")
            hidden = hidden + self.context(context)
        return self.gated_skip(self.hidden(F.elu(hidden)), self.skip(x))


class FeatureNetworks(nn.Module):
    """One gated residual network per feature, all in one batched product (no Python loop).

    Feature j is a scalar x_j. Its network is a GRN with input size 1 and full width:
    LayerNorm(v_j x_j + c_j + GLU(V_j dropout(W_j ELU(u_j x_j + b_j) + d_j) + e_j)). The biases
    and matrices of all features stand in one tensor each, first axis the feature.
    """

    def __init__(self, features: int, size: int, dropout: float) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(features, size))
        self.input_bias = nn.Parameter(torch.empty(features, size))
        self.skip_weight = nn.Parameter(torch.empty(features, size))
        self.skip_bias = nn.Parameter(torch.zeros(features, size))
        self.hidden_weight = nn.Parameter(torch.empty(features, size, size))
        self.hidden_bias = nn.Parameter(torch.zeros(features, 1, size))
        self.gate_weight = nn.Parameter(torch.empty(features, size, 2 * size))
        self.gate_bias = nn.Parameter(torch.zeros(features, 1, 2 * size))
        self.norm_weight = nn.Parameter(torch.ones(features, 1, size))
        self.norm_bias = nn.Parameter(torch.zeros(features, 1, size))
        self.dropout = Dropout(dropout)
        self.size = size
        # As nn.Linear would initialise each feature's own layers: uniform, 1 / sqrt(fan in).
        for parameter in (self.input_weight, self.input_bias, self.skip_weight):
            nn.init.uniform_(parameter, -1.0, 1.0)
        for parameter in (self.hidden_weight, self.gate_weight):
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def forward(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "features rows size"]:
        """Every feature through its own network."""
        scalar = x.t().unsqueeze(-1)
        inner = F.elu(scalar * self.input_weight[:, None] + self.input_bias[:, None])
        hidden = torch.baddbmm(self.hidden_bias, inner, self.hidden_weight)
        gated = F.glu(torch.baddbmm(self.gate_bias, self.dropout(hidden), self.gate_weight))
        out = scalar * self.skip_weight[:, None] + self.skip_bias[:, None] + gated
        normed = F.layer_norm(out, (self.size,))
        return torch.addcmul(self.norm_bias, normed, self.norm_weight)
