"""What the model looked at: its own weights on features, days and neighbours, as it scores a batch.

Hooks on the modules of the one forward path read them while it runs; nothing is computed twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch_geometric.nn import GATv2Conv

from atft_model.data.batches import WindowBatch
from atft_model.model.atft import ATFT


@dataclass(frozen=True)
class Readout:
    """Weights behind the scores of a batch; those of windows that are not scorable mean nothing.

    Attributes:
        features: Variable selection on the signal day; sums to 1 over features.
        days: Attention of the signal day to the window's days, averaged over heads; sums to 1.
        neighbours: Graph attention to each neighbour, averaged over heads and layers; sums to 1
            over known neighbours, 0 where there is none.
    """

    features: Float[Tensor, "runs length stocks features"]
    days: Float[Tensor, "runs length stocks days"]
    neighbours: Float[Tensor, "runs length stocks k"]


@dataclass
class Recorder:
    """Keeps what the hooks see of one forward pass."""

    features: list[Tensor] = field(default_factory=list)
    days: list[Tensor] = field(default_factory=list)
    neighbours: list[Tensor] = field(default_factory=list)

    def readout(self, batch: WindowBatch) -> Readout:
        """What one forward pass of ``batch`` left.

        Raises:
            RuntimeError: not exactly one pass was recorded.
        """
        if len(self.features) != 1:
            raise RuntimeError(f"{len(self.features)} forward passes recorded, expected 1")
        runs, length, stocks = batch.scorable.shape
        all_days = batch.features.shape[1]
        selection = self.features[0].view(runs, all_days, stocks, -1)
        # The encoder takes chunks of stocks; each has all runs and dates.
        chunks = [part.view(runs, length, -1, part.shape[-1]) for part in self.days]
        known = batch.neighbours >= 0
        layers = [part.mean(dim=-1).view(known.shape) for part in self.neighbours]
        return Readout(
            features=selection[:, all_days - length :].float(),
            days=torch.cat(chunks, dim=2).float(),
            neighbours=torch.where(known, torch.stack(layers).mean(dim=0).float(), 0.0),
        )


@contextmanager
def recording(model: ATFT) -> Iterator[Recorder]:
    """Records the weights of the forward pass inside; reads only."""
    recorder = Recorder()

    def selection(module: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        recorder.features.append(output[1].detach())

    def attention(module: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        recorder.days.append(output[1].detach()[:, -1])

    def edges(module: Any, inputs: Any, output: Tensor) -> None:
        recorder.neighbours.append(output.detach())

    handles: list[Any] = [
        model.variable_selection.register_forward_hook(selection),
        model.temporal_encoder.attention.register_forward_hook(attention),
    ]
    for convolution in model.graph_attention.convolutions:
        assert isinstance(convolution, GATv2Conv)
        handles.append(convolution.register_edge_update_forward_hook(edges))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
