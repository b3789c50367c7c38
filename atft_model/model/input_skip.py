"""The input skip: a short gated path from the signal day's inputs to the score."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

READOUT = 0.25
"""First weights of the read-out: near nothing, so that no random score has to be unlearned."""


class InputSkip(nn.Module):
    """A gated linear unit of a stock's last day and the mean of its neighbours' units, read out.

    z = (A x + a) * sigmoid(B x + b), score += C z + D mean over neighbours of z: the gated skip
    around a block of Lim et al. 2021 (eq. 5), here around the whole encoder, with a fixed mean over
    the graph (the propagation of Wu et al. 2019, without self-loops). What is linear in the inputs,
    the product of two of them, and what the neighbours did today reach the score in one step, where
    through selection, normalizations and attention they take thousands of noisy ones to be found.

    It reads only inputs that differ between the stocks of a date (``columns``). A market-wide one
    says which date it is, and a gate that knows the date learns each training date by heart.

    Gaussian noise on its inputs while training is a ridge penalty on what they do (Bishop 1995).
    """

    columns: Tensor

    def __init__(self, columns: tuple[int, ...], units: int, horizons: int, noise: float) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.noise = noise
        self.units = nn.Linear(len(columns), 2 * units)
        self.own = nn.Linear(units, horizons)
        self.others = nn.Linear(units, horizons, bias=False)
        for readout in (self.own, self.others):
            nn.init.uniform_(readout.weight, -READOUT, READOUT)
        nn.init.zeros_(self.own.bias)

    def forward(
        self,
        x: Float[Tensor, "dates stocks features"],
        neighbours: Int[Tensor, "dates stocks k"],
    ) -> Float[Tensor, "dates stocks horizons"]:
        """What is added to every quantile of a horizon; a stock without neighbours has its own."""
        x = x[..., self.columns]
        if self.training:
            x = x + self.noise * torch.randn_like(x)
        units = F.glu(self.units(x))
        return self.own(units) + self.others(neighbour_mean(units, neighbours))


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
