"""The prediction head against steps added up one by one; quantiles that cannot cross."""

import pytest
import torch

from atft_model.config import ModelConfig
from atft_model.model.head import PredictionHead
from tests.references import atft as plain
from tests.references.agreement import assert_agree

SIZE, HORIZONS = 16, 4


def make(quantiles: tuple[float, ...], spread: float = 0.2) -> PredictionHead:
    torch.manual_seed(0)
    head = PredictionHead(SIZE, HORIZONS, quantiles, dropout=0.1).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return head


@pytest.mark.parametrize("quantiles", [ModelConfig().quantiles, (0.5,), (0.1, 0.5), (0.5, 0.9)])
def test_it_equals_steps_added_up_one_by_one(quantiles):
    head = make(quantiles)
    x = torch.randn(9, SIZE, requires_grad=True)
    weights, median = plain.weights_of(head), quantiles.index(0.5)
    expected = torch.stack([plain.prediction_head(weights, row.double(), median) for row in x])
    assert_agree(head(x), expected, {"x": x, **dict(head.named_parameters())})


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_no_weights_and_no_state_make_quantiles_cross(spread):
    head = make(ModelConfig().quantiles, spread)
    for scale in (0.0, 1e-3, 1.0, 1e3):
        quantiles = head(scale * torch.randn(200, SIZE))
        assert torch.isfinite(quantiles).all()
        assert (quantiles.diff(dim=-1) >= 0).all()


def test_the_score_is_free_of_the_spread_between_quantiles():
    head = make(ModelConfig().quantiles)
    x = torch.randn(9, SIZE)
    before = head(x)
    with torch.no_grad():
        for one in head.heads:
            one.linear.bias[[0, 1, 3, 4]] += 3.0
    after = head(x)
    assert torch.equal(before[..., 2], after[..., 2])
    assert (after[..., 4] > before[..., 4]).all()
    assert (after[..., 0] < before[..., 0]).all()


def test_horizons_have_heads_of_their_own():
    head = make(ModelConfig().quantiles)
    head(torch.randn(9, SIZE))[:, 1].sum().backward()
    moved = [
        one.linear.weight.grad is not None and bool(one.linear.weight.grad.any())
        for one in head.heads
    ]
    assert moved == [False, True, False, False]
