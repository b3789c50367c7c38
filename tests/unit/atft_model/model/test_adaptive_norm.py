"""Normalization over a window's days against a loop over channels, frequencies and slices."""

import pytest
import torch
from torch import nn

from atft_model.errors import InputError
from atft_model.model.adaptive_norm import (
    MIN_DAYS,
    adaptive_norm,
    covering_slices,
    historical_slices,
)
from tests.references import atft as plain
from tests.references.agreement import assert_agree

SIZE = 8
SLICES = {"fan_san": covering_slices, "fan_san_historical": historical_slices}


def make(kind: str, days: int) -> nn.Module:
    """Random weights, so that a dropped one is seen."""
    torch.manual_seed(days)
    module = adaptive_norm(kind, SIZE, days)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def windows(days: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(days)
    return torch.randn(4, days, SIZE, generator=generator).requires_grad_()


@pytest.mark.parametrize("kind", ["fan_san", "fan_san_historical"])
@pytest.mark.parametrize("days", [5, 12, 20, 21])
def test_it_equals_a_loop_forward_and_gradient(kind, days):
    module, x = make(kind, days), windows(days)
    weights = plain.weights_of(module)
    expected = torch.stack(
        [plain.fan_san(weights, window.double(), SLICES[kind](days)) for window in x]
    )
    assert_agree(module(x), expected, {"x": x, **dict(module.named_parameters())})


@pytest.mark.parametrize("days", range(MIN_DAYS, 130))
def test_corrected_slices_hold_every_day_and_historical_ones_never_the_last(days):
    held = {day for first, last in covering_slices(days) for day in range(first, last)}
    assert held == set(range(days))
    assert all(last - first >= 3 for first, last in covering_slices(days))
    reached = max(last for _, last in historical_slices(days))
    assert reached <= 2 * days / 3 + 1
    assert reached < days


@pytest.mark.parametrize("days", [5, 20, 60])
def test_the_historical_spelling_is_exactly_zero_on_the_last_day_and_passes_no_gradient(days):
    module, x = make("fan_san_historical", days), windows(days)
    last = module(x)[:, -1]
    assert torch.equal(last, torch.zeros_like(last))
    found = torch.autograd.grad(last.sum(), [x, *module.parameters()])
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found)


@pytest.mark.parametrize("days", [5, 20, 60])
def test_the_corrected_spelling_lives_on_the_last_day(days):
    module, x = make("fan_san", days), windows(days)
    last = module(x)[:, -1]
    assert last.std(dim=0).min() > 0.1
    found = torch.autograd.grad(last.square().sum(), [x, *module.parameters()])
    assert all(gradient.abs().max() > 1e-3 for gradient in found)
    assert (found[0].abs().amax(dim=(0, 2)) > 0).all(), "a day that the frequencies do not reach"


def test_what_a_pure_wave_leaves_is_its_returned_share():
    """Two frequencies are all of it: with nothing returned nothing is left."""
    day = torch.arange(20.0)
    wave = 3.0 + torch.sin(2 * torch.pi * 4 * day / 20)
    x = wave[None, :, None].expand(1, 20, SIZE)
    module = adaptive_norm("fan_san", SIZE, 20)[0]
    assert module(x).abs().max() < 1e-5
    with torch.no_grad():
        module.returned.fill_(0.5)
    torch.testing.assert_close(module(x), 0.5 * x)


def test_half_width_input_is_normalized_in_full_width():
    module = adaptive_norm("fan_san", SIZE, 20)
    found = module(windows(20).to(torch.bfloat16))
    assert found.dtype == torch.float32


def test_none_changes_nothing():
    x = windows(20)
    assert torch.equal(adaptive_norm("none", SIZE, 20)(x), x)


@pytest.mark.parametrize("kind", ["fan_san", "fan_san_historical"])
def test_a_window_too_short_for_its_slices_is_refused(kind):
    with pytest.raises(InputError, match=r"lookback of 4; its slices need at least 5 days"):
        adaptive_norm(kind, SIZE, 4)


def test_another_name_is_refused():
    with pytest.raises(InputError, match="'batch_norm'; expected layer_norm, fan_san"):
        adaptive_norm("batch_norm", SIZE, 20)
