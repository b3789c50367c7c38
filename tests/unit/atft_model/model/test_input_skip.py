"""The input skip against a loop over stocks; what it may read, and what it can find."""

import numpy as np
import pytest
import torch

from atft_model.config import ModelConfig
from atft_model.errors import InputError
from atft_model.losses.ranking import rank_loss
from atft_model.model.atft import ATFT, ModelShape
from atft_model.model.head import PredictionHead
from atft_model.model.input_skip import InputSkip
from tests.references import atft as plain
from tests.references.agreement import assert_agree

RANKED = (0, 2, 3)
FEATURES, STOCKS, K, HORIZONS, UNITS = 5, 7, 3, 4, 6


def make(noise: float = 0.5) -> InputSkip:
    torch.manual_seed(0)
    skip = InputSkip(RANKED, UNITS, noise).eval()
    with torch.no_grad():
        for parameter in skip.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return skip


def day(dates: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and neighbours; some places are empty, and stock 0 has no neighbour at all."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(dates, STOCKS, FEATURES, generator=generator)
    neighbours = torch.randint(-1, STOCKS, (dates, STOCKS, K), generator=generator)
    neighbours[:, 0] = -1
    return x, neighbours


def test_it_equals_a_loop_over_stocks_forward_and_gradient():
    skip, (x, neighbours) = make(), day()
    x.requires_grad_()
    weights = plain.weights_of(skip)
    expected = torch.stack(
        [
            plain.input_skip(weights, date.double(), listed.tolist(), RANKED)
            for date, listed in zip(x, neighbours, strict=True)
        ]
    )
    assert_agree(skip(x, neighbours), expected, {"x": x, **dict(skip.named_parameters())})


def test_market_wide_inputs_are_not_read():
    skip, (x, neighbours) = make(), day()
    other = x.clone()
    other[..., 1] += 9.0
    other[..., 4] = torch.nan
    assert torch.equal(skip(other, neighbours), skip(x, neighbours))
    other[..., 2] += 1.0
    assert not torch.equal(skip(other, neighbours), skip(x, neighbours))


def test_only_neighbours_on_the_list_are_heard():
    skip, (x, neighbours) = make(), day()
    neighbours[:, 1] = torch.tensor([2, -1, 3])
    changed = x.clone()
    changed[:, [0, 4, 5, 6]] = torch.nan  # places of -1 point at stock 0 before they are masked
    found, expected = skip(changed, neighbours)[:, 1], skip(x, neighbours)[:, 1]
    assert torch.equal(found, expected)
    changed[:, 3] = x[:, 3] + 1.0
    assert not torch.equal(skip(changed, neighbours)[:, 1], expected)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_there_is_noise_in_training_alone_and_of_the_size_asked_for(noise):
    x, nobody = torch.zeros(1, 4000, FEATURES), torch.full((1, 4000, 1), -1)
    skip, seen = make(noise), []
    skip.units.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    skip(x, nobody)
    skip.train()
    skip(x, nobody)
    assert float(seen[0].std()) == 0
    assert float(seen[1].std()) == pytest.approx(noise, rel=0.05)


def test_a_stock_without_neighbours_has_its_own_units_alone():
    units = make()(*day())
    assert (units[:, 0, UNITS:] == 0).all()
    assert (units[:, 0, :UNITS] != 0).all()


def test_the_head_alone_makes_the_score():
    """Whatever the input skip says: a shared part that is dead gives every stock the same."""
    config = ModelConfig(hidden_size=16, lookback=3, input_skip=4)
    model = ATFT(config, ModelShape(FEATURES, HORIZONS, 2, 2, RANKED)).eval()
    state = torch.randn(50, 16 + 2 * 4)
    assert (model.head(state)[..., model.median].std(dim=0) > 1e-3).all()
    torch.nn.init.zeros_(model.head.shared.gated_skip.norm.weight)
    assert (model.head(state).std(dim=0) == 0).all()


def test_a_panel_without_a_ranked_feature_is_refused():
    config = ModelConfig(hidden_size=16, lookback=3, input_skip=4)
    with pytest.raises(InputError, match=r"no feature is normalized across .*set it to 0"):
        ATFT(config, ModelShape(FEATURES, HORIZONS, 2, 2))


def test_it_finds_a_linear_part_a_product_and_what_neighbours_did():
    """The three kinds of signal that the built-in market plants, at a rank IC of about 0.5."""
    generator = torch.Generator().manual_seed(2)
    dates, stocks = 40, 60
    x = torch.randn(dates, stocks, FEATURES, generator=generator)
    group = torch.arange(stocks) // 6 * 6
    neighbours = group[:, None] + torch.arange(6)
    neighbours = torch.where(neighbours == torch.arange(stocks)[:, None], -1, neighbours)
    neighbours = neighbours.expand(dates, -1, -1).contiguous()
    a, b, c = x[..., 0], x[..., 2], x[..., 3]
    others = a.view(dates, -1, 6).mean(dim=2).repeat_interleave(6, dim=1) * 6 / 5 - a / 5
    parts = [c, a * torch.tanh(b), others * 5**0.5]
    target = torch.stack([sum(parts) + 3 * torch.randn(dates, stocks, generator=generator)] * 4, -1)
    torch.manual_seed(0)
    skip = InputSkip(RANKED, 4, noise=0.1)
    head = PredictionHead(2 * 4, HORIZONS, (0.25, 0.5, 0.75), dropout=0.0)
    optimizer = torch.optim.Adam([*skip.parameters(), *head.parameters()], lr=2e-2)
    valid = torch.ones_like(target, dtype=torch.bool)
    for _ in range(150):
        loss = rank_loss(head(skip(x, neighbours))[..., 1], target, valid, 20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    skip.eval()
    score = head(skip(x, neighbours))[..., 0, 1].detach().flatten().numpy()
    for part in parts:
        assert np.corrcoef(score, part.flatten().numpy())[0, 1] > 0.3
