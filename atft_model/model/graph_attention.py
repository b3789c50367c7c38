"""Graph attention over the stocks of one date, with PyTorch Geometric's GATv2."""

import tempfile
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from atft_model.data.group_links import LINK_ATTRIBUTES
from atft_model.model.gated_residual import GatedSkip

EDGE_ATTRIBUTES = ("correlation", "same_sector", "same_market", *LINK_ATTRIBUTES)
"""One layout for every graph: links are 0 where the graph has none."""


def flat_edges(
    neighbours: Int[Tensor, "graphs stocks k"],
    edge_attr: Float[Tensor, "graphs stocks k attributes"],
) -> tuple[Int[Tensor, "2 edges"], Float[Tensor, "edges attributes"]]:
    """Edges neighbour -> stock of many dates as one graph with disjoint parts.

    Missing neighbours (-1) become edges of one extra node onto itself, so the number of edges does
    not depend on the data and nothing waits for the device.
    """
    graphs, stocks, k = neighbours.shape
    sink = graphs * stocks
    node = torch.arange(sink, device=neighbours.device).view(graphs, stocks, 1)
    first = node[:, :1]
    missing = neighbours < 0
    source = torch.where(missing, sink, neighbours + first)
    target = torch.where(missing, sink, node.expand(graphs, stocks, k))
    return torch.stack([source.flatten(), target.flatten()]), edge_attr.flatten(0, 2)


def remove_generated_code(convolution: nn.Module) -> None:
    """Deletes what PyTorch Geometric left of a layer in the temporary folder.

    Every process writes the code that it generates for a class there, imports it, and never looks
    at the file again: two files for each run, fold and scoring.
    """
    assert isinstance(convolution, GATv2Conv)
    for function in (convolution.propagate, convolution.edge_updater):
        code = Path(function.__code__.co_filename)
        if code.parent == Path(tempfile.gettempdir()) and code.name.startswith("torch_geometric."):
            code.unlink(missing_ok=True)


class GraphAttention(nn.Module):
    """Layers of GATv2 (Brody et al. 2022) with edge attributes, each behind a gated skip.

    A stock without neighbours receives only the layer's bias. Dates do not see each other.
    """

    def __init__(self, size: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            GATv2Conv(
                size,
                size // heads,
                heads=heads,
                edge_dim=len(EDGE_ATTRIBUTES),
                add_self_loops=False,
            )
            for _ in range(layers)
        )
        for convolution in self.convolutions:
            remove_generated_code(convolution)
        self.skips = nn.ModuleList(GatedSkip(size, dropout) for _ in range(layers))

    def forward(
        self,
        x: Float[Tensor, "graphs stocks size"],
        neighbours: Int[Tensor, "graphs stocks k"],
        edge_attr: Float[Tensor, "graphs stocks k attributes"],
    ) -> Float[Tensor, "graphs stocks size"]:
        """Each stock's state with what its neighbours add.

        On a CPU in float32, whatever autocast says: gathering neighbours takes three times as long
        in bfloat16.
        """
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self(x.float(), neighbours, edge_attr.float())
        graphs, stocks, size = x.shape
        edges, attributes = flat_edges(neighbours, edge_attr.to(x.dtype))
        for convolution, skip in zip(self.convolutions, self.skips, strict=True):
            nodes = torch.cat([x.reshape(-1, size), x.new_zeros(1, size)])
            messages = convolution(nodes, edges, attributes)[:-1]
            x = skip(messages.view(graphs, stocks, size), x)
        return x
