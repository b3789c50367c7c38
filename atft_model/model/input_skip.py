"""The input skip: a short gated path from the signal day's inputs to the prediction head."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class InputSkip(nn.Module):
    """Gated linear units of a stock's last day, and their mean over its neighbours.

    z = (A x + a) * sigmoid(B x + b), out = [z, mean over neighbours of z]: a skip around the whole
    encoder with the gated linear units of Lim et al. 2021 (eq. 5), and a fixed mean over the graph
    (the propagation of Wu et al. 2019, without self-loops). What is linear in the inputs, the
    product of two of them, and what the neighbours did today reach the head in one step, where
    through selection, normalizations and attention they take thousands of noisy ones to be found.
    The head reads it beside the encoder's state, so that no score is made anywhere but in the head.

    It reads only inputs that differ between the stocks of a date (``columns``). A market-wide one
    says which date it is, and a gate that knows the date learns each training date by heart.

    Gaussian noise on its inputs while training is a ridge penalty on what they do (Bishop 1995).
    """

    columns: Tensor

    def __init__(self, columns: tuple[int, ...], units: int, noise: float) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.noise = noise
        self.units = nn.Linear(len(columns), 2 * units)

    def forward(
        self,
        x: Float[Tensor, "dates stocks features"],
        neighbours: Int[Tensor, "dates stocks k"],
    ) -> Float[Tensor, "dates stocks units"]:
        """The stock's own units, then its neighbours' mean ones: 0 where it has none."""
        x = x[..., self.columns]
        if self.training:
            x = x + self.noise * torch.randn_like(x)
        units = F.glu(self.units(x))
        return torch.cat([units, neighbour_mean(units, neighbours)], dim=-1)


def neighbour_mean(
    x: Float[Tensor, "dates stocks size"], neighbours: Int[Tensor, "dates stocks k"]
) -> Float[Tensor, "dates stocks size"]:
    """Mean over the neighbours of each stock; -1 is none, and a stock without any has 0."""
    dates, stocks, k = neighbours.shape
    known = neighbours >= 0
    places = neighbours.clamp(min=0).reshape(dates, stocks * k, 1).expand(-1, -1, x.shape[-1])
    theirs = x.gather(1, places).view(dates, stocks, k, -1)
    total = torch.where(known[..., None], theirs, 0.0).sum(dim=2)
    return total / known.sum(dim=2, keepdim=True).clamp(min=1)
