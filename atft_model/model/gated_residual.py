"""Gated linear units and gated residual networks (Lim et al. 2021, eq. 2-5)."""

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
