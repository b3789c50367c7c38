"""Feature networks against a loop over features, and the blocked sum against autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atft_model.model import feature_networks
from atft_model.model.feature_networks import FeatureNetworks

FEATURES, SIZE, ROWS = 7, 16, 40


@pytest.fixture
def networks() -> FeatureNetworks:
    torch.manual_seed(1)
    networks = FeatureNetworks(FEATURES, SIZE, dropout=0.25)
    for parameter in networks.parameters():  # no zeros that would hide a fault
        parameter.data.add_(torch.randn(parameter.shape) * 0.3)
    return networks


def one_network(networks: FeatureNetworks, j: int, scalar: Tensor) -> Tensor:
    inner = F.elu(scalar * networks.input_weight[j] + networks.input_bias[j])
    hidden = inner @ networks.hidden_weight[j] + networks.hidden_bias[j]
    gated = F.glu(hidden @ networks.gate_weight[j] + networks.gate_bias[j])
    out = scalar * networks.skip_weight[j] + networks.skip_bias[j] + gated
    return F.layer_norm(out, (SIZE,)) * networks.norm_weight[j] + networks.norm_bias[j]


def gradients(out: Tensor, networks: FeatureNetworks, *inputs: Tensor) -> list[Tensor]:
    direction = torch.linspace(-1, 1, out.numel()).view_as(out)
    return list(torch.autograd.grad(out, [*inputs, *networks.parameters()], direction))


def mixed_by_loop(networks: FeatureNetworks, x: Tensor, weights: Tensor) -> Tensor:
    outputs = [one_network(networks, j, x[:, j : j + 1]) for j in range(FEATURES)]
    return sum((weights[:, j : j + 1] * outputs[j] for j in range(FEATURES)), torch.zeros(()))


@pytest.mark.parametrize(
    ("kept_bytes", "block_rows"), [(2**30, 13), (0, 13), (20_000, 13), (0, 512)]
)
def test_the_mix_equals_a_loop_over_features(monkeypatch, networks, kept_bytes, block_rows):
    monkeypatch.setattr(feature_networks, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(feature_networks, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(feature_networks, "BLOCK_FEATURES", 3)
    networks.eval()
    x = torch.randn(ROWS, FEATURES, requires_grad=True)
    weights = torch.softmax(torch.randn(ROWS, FEATURES), -1).requires_grad_()
    mine, slow = networks.mix(x, weights), mixed_by_loop(networks, x, weights)
    torch.testing.assert_close(mine, slow, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        gradients(mine, networks, x, weights), gradients(slow, networks, x, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_unmixed_outputs_equal_the_loop_too(networks):
    networks.eval()
    x = torch.randn(ROWS, FEATURES)
    slow = torch.stack([one_network(networks, j, x[:, j : j + 1]) for j in range(FEATURES)])
    torch.testing.assert_close(networks(x), slow, rtol=1e-5, atol=1e-5)


def test_backward_sees_the_dropout_of_forward_whether_kept_or_recomputed(monkeypatch, networks):
    """In float64 against finite differences under a fixed seed."""
    monkeypatch.setattr(feature_networks, "BLOCK_ROWS", 3)
    monkeypatch.setattr(feature_networks, "BLOCK_FEATURES", 4)
    networks.double().train()
    x = torch.randn(5, FEATURES, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, FEATURES, dtype=torch.float64, requires_grad=True)

    def fixed(x: Tensor, weights: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(5)
        return networks.mix(x, weights)

    for kept_bytes in (0, 2**30):
        monkeypatch.setattr(feature_networks, "KEPT_BYTES", kept_bytes)
        assert torch.autograd.gradcheck(fixed, (x, weights, *networks.parameters()), fast_mode=True)


def test_on_a_cpu_autocast_leaves_the_mix_in_float32(networks):
    networks.eval()
    x, weights = torch.randn(ROWS, FEATURES), torch.rand(ROWS, FEATURES, dtype=torch.bfloat16)
    full = networks.mix(x, weights.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = networks.mix(x, weights)
    assert torch.equal(mixed, full)


def test_a_room_of_its_own_takes_the_place_of_the_default(monkeypatch, networks):
    """A block that was not kept is computed again, once in each pass."""
    computed = []
    block = feature_networks._block
    monkeypatch.setattr(
        feature_networks, "_block", lambda *rest: computed.append(1) or block(*rest)
    )
    x, weights = torch.randn(ROWS, FEATURES), torch.rand(ROWS, FEATURES)
    counts = {}
    for networks.kept_bytes in (0, None, 2**30):
        computed.clear()
        networks.mix(x, weights).sum().backward()
        counts[networks.kept_bytes] = len(computed)
    assert counts == {0: 2, None: 1, 2**30: 1}


def test_dropout_zeroes_its_share_and_changes_with_the_seed(networks):
    blocks = feature_networks.Blocks(dropped=64, seed=3, kept_bytes=0)
    mask = blocks.dropout_mask(torch.empty(8, 100, 64), 3)
    assert mask is not None
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.75, abs=0.01)
    networks.train()
    x, weights = torch.randn(ROWS, FEATURES), torch.rand(ROWS, FEATURES)
    assert not torch.equal(networks.mix(x, weights), networks.mix(x, weights))
