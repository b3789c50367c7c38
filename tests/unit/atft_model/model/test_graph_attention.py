"""Graph attention against PyTorch Geometric date by date, and against loops over stocks."""

from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GATv2Conv

from atft_model.model.graph_attention import GraphAttention
from tests.references import atft as plain
from tests.references.agreement import assert_agree

DATES, STOCKS, K, SIZE, HEADS = 3, 11, 4, 16, 4


def make(layers: int) -> GraphAttention:
    torch.manual_seed(layers)
    attention = GraphAttention(SIZE, HEADS, layers, dropout=0.1).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return attention


def market(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, neighbours and edge attributes; stock 0 has no neighbour, some have few."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(DATES, STOCKS, SIZE, generator=generator)
    order = torch.rand(DATES, STOCKS, STOCKS, generator=generator)
    order[:, torch.arange(STOCKS), torch.arange(STOCKS)] = 2.0
    neighbours = order.argsort(dim=-1)[..., :K]
    neighbours[torch.rand(DATES, STOCKS, K, generator=generator) < 0.3] = -1
    neighbours[:, 0] = -1
    edge_attr = torch.rand(DATES, STOCKS, K, 6, generator=generator)
    return x.requires_grad_(), neighbours, edge_attr.requires_grad_()


def by_torch_geometric(
    attention: GraphAttention, x: torch.Tensor, neighbours: torch.Tensor, edge_attr: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each date's own edge list through GATv2Conv layers with copied weights, in float64.

    Returns:
        The states, and the copied weights under the names of the originals.
    """
    weights = plain.weights_of(attention)
    copies = []
    for convolution in attention.convolutions:
        copy = GATv2Conv(SIZE, SIZE // HEADS, heads=HEADS, edge_dim=6, add_self_loops=False)
        copy.load_state_dict(convolution.state_dict())
        copies.append(copy.double())
    dates = []
    for day in range(DATES):
        edges = [
            (int(other), stock, place)
            for stock, listed in enumerate(neighbours[day])
            for place, other in enumerate(listed)
            if other >= 0
        ]
        edge_index = torch.tensor([[source for source, _, _ in edges], [to for _, to, _ in edges]])
        attributes = torch.stack([edge_attr[day, to, place] for _, to, place in edges]).double()
        state = x[day].double()
        for layer, copy in enumerate(copies):
            messages = copy(state, edge_index, attributes)
            state = plain.gated_skip(plain.part(weights, f"skips.{layer}"), messages, state)
        dates.append(state)
    named = {
        f"convolutions.{layer}.{name}": parameter
        for layer, copy in enumerate(copies)
        for name, parameter in copy.named_parameters()
    }
    return torch.stack(dates), named


@pytest.mark.parametrize("layers", [1, 2])
def test_it_equals_torch_geometric_date_by_date(layers):
    attention = make(layers)
    x, neighbours, edge_attr = market()
    ours = attention(x, neighbours, edge_attr)
    expected, copies = by_torch_geometric(attention, x, neighbours, edge_attr)
    leaves = {"x": x, "edge_attr": edge_attr, **dict(attention.named_parameters())}
    assert copies.keys() < leaves.keys()
    assert_agree(ours, expected, leaves, copies)


@pytest.mark.parametrize("layers", [1, 2])
def test_it_equals_loops_over_stocks_and_heads(layers):
    attention = make(layers)
    x, neighbours, edge_attr = market(seed=1)
    weights = plain.weights_of(attention)
    expected = torch.stack(
        [
            plain.graph_attention(
                weights, x[day].double(), neighbours[day].tolist(), edge_attr[day].double(), HEADS
            )
            for day in range(DATES)
        ]
    )
    leaves = {"x": x, "edge_attr": edge_attr, **dict(attention.named_parameters())}
    assert_agree(attention(x, neighbours, edge_attr), expected, leaves)


def test_missing_neighbours_carry_nothing_forward_or_back():
    attention = make(2)
    x, neighbours, edge_attr = market(seed=2)
    missing = neighbours < 0
    garbage = torch.where(missing[..., None], 1e4, edge_attr.detach()).requires_grad_()
    result = attention(x, neighbours, garbage)
    torch.testing.assert_close(result, attention(x, neighbours, edge_attr))
    result.square().sum().backward()
    assert (garbage.grad[missing] == 0).all()
    # The attention of an only neighbour is 1, whatever its edge.
    chosen = ~missing & ((~missing).sum(dim=-1, keepdim=True) > 1)
    assert (garbage.grad[chosen] != 0).any(dim=-1).all()


def test_a_stock_without_neighbours_receives_the_bias_alone():
    attention = make(1)
    x, neighbours, edge_attr = market()
    changed = x.detach().clone()
    changed[:, 1:] += 10.0
    ours = attention(x, neighbours, edge_attr)[:, 0]
    torch.testing.assert_close(ours, attention(changed, neighbours, edge_attr)[:, 0])
    weights = plain.weights_of(attention)
    alone = weights["convolutions.0.bias"].expand(DATES, SIZE)
    expected = plain.gated_skip(plain.part(weights, "skips.0"), alone, x[:, 0].double())
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_dates_do_not_see_each_other():
    attention = make(2)
    x, neighbours, edge_attr = market()
    together = attention(x, neighbours, edge_attr)
    for day in range(DATES):
        one = slice(day, day + 1)
        alone = attention(x[one], neighbours[one], edge_attr[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def test_every_edge_attribute_matters():
    attention = make(1)
    x, neighbours, edge_attr = market()
    attention(x, neighbours, edge_attr).square().sum().backward()
    assert (edge_attr.grad.abs().amax(dim=(0, 1, 2)) > 0).all()


def test_the_code_that_was_generated_for_a_layer_does_not_stay_in_the_temporary_folder():
    (convolution,) = make(1).convolutions
    for function in (convolution.propagate, convolution.edge_updater):
        code = Path(function.__code__.co_filename)
        assert code.name.startswith("torch_geometric.nn.conv.gatv2_conv_GATv2Conv_")
        assert not code.exists()


def test_on_a_cpu_autocast_leaves_it_in_float32():
    attention, (x, neighbours, edge_attr) = make(2), market()
    narrow = x.detach().bfloat16()
    full = attention(narrow.float(), neighbours, edge_attr)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(narrow, neighbours, edge_attr), full)
