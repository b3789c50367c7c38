"""Gradients of the encoder's activations, against a loop; parts of a step count as one."""

import math

import numpy as np
import pytest
import torch

from atft_model.config import ModelConfig
from atft_model.model.atft import ATFT, ModelShape
from atft_model.monitors.encoder_hooks import EncoderHooks, EncoderSpread


@pytest.fixture(scope="module")
def model() -> ATFT:
    torch.manual_seed(0)
    return ATFT(ModelConfig(hidden_size=16, lookback=4), ModelShape(3, 2, 2, 2)).eval()


@pytest.fixture(scope="module")
def hooks(model) -> EncoderHooks:
    return EncoderHooks(model, log_lines=False)


def backward_of(hooks: EncoderHooks, gradient: torch.Tensor, active: bool = True) -> None:
    """A pass in which the first activation receives this gradient."""
    activation = torch.ones_like(gradient, requires_grad=True)
    with hooks.watching(active):
        (hooks.modules["projected_features"](activation) * gradient).sum().backward()


@pytest.mark.parametrize("where", [0, 1])
def test_norm_and_largest_element_are_over_all_parts(hooks, where):
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(7, 4, 16, generator=generator), torch.randn(5, 4, 16, generator=generator)]
    parts[where][2, 1, 3] = -9.0  # the largest in size is below zero
    for part in parts:
        backward_of(hooks, part)
    squares, largest = hooks.take()
    elements = np.concatenate([part.double().numpy().ravel() for part in parts])
    assert float(squares[0]) == pytest.approx(np.square(elements).sum(), rel=1e-5)
    assert float(largest[0]) == 9.0
    assert hooks.take()[0].tolist() == [0.0, 0.0]  # taken; the other one received nothing


def test_a_broken_gradient_is_not_smoothed_over(hooks):
    broken = torch.zeros(3, 4, 16)
    broken[1, 1, 1] = math.nan
    backward_of(hooks, broken)
    squares, largest = hooks.take()
    assert math.isnan(squares[0])
    assert math.isnan(largest[0])


def test_nothing_is_read_while_not_watching(hooks):
    backward_of(hooks, torch.ones(3, 4, 16), active=False)
    assert hooks.take()[0].tolist() == [0.0, 0.0]


def test_the_encoders_spread_is_that_of_a_loop_over_dates(model):
    """A date with one scorable stock has no spread and does not count."""
    runs, length, stocks, size = 2, 3, 6, 16
    generator = torch.Generator().manual_seed(5)
    scorable = torch.rand(runs, length, stocks, generator=generator) < 0.6
    scorable[0, 1], scorable[1, 2] = False, False
    scorable[1, 2, 4] = True
    state = torch.randn(runs * length * stocks, size, generator=generator)
    spread = EncoderSpread(model)
    for active in (True, True, False):
        with spread.watching(active, scorable):
            spread.module(state, state)
    taken = spread.take()
    assert taken is not None
    output = spread.module(state, state).detach().double().view(-1, stocks, size).numpy()
    stds = [
        stocks_of_date[chosen].std(axis=0).mean()
        for stocks_of_date, chosen in zip(output, scorable.flatten(0, 1).numpy(), strict=True)
        if chosen.sum() > 1
    ]
    assert len(stds) == 4
    assert taken.tolist() == pytest.approx([2 * sum(stds), 2 * len(stds)], rel=1e-5)
    assert spread.take() is None
