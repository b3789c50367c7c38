"""Norms per tensor and group, against a loop in double precision."""

import math

import numpy as np
import pytest
import torch

from atft_model.config import ModelConfig
from atft_model.model.atft import ATFT, ModelShape
from atft_model.monitors.gradient_monitor import GradientMonitor


@pytest.fixture
def model() -> ATFT:
    """Gradients drawn at random, of very different sizes; none for one tensor, zeros for one."""
    torch.manual_seed(0)
    model = ATFT(ModelConfig(hidden_size=16, lookback=4), ModelShape(3, 2, 2, 2))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (number % 9 - 6)
    model.backbone_projection.bias.grad = None
    model.backbone_projection.weight.grad = torch.zeros_like(model.backbone_projection.weight)
    return model


def test_each_groups_gradient_is_that_of_a_loop(model):
    monitor = GradientMonitor(model, warn_norm=0.0)
    norms = monitor.gradient_norms()
    assert norms.dtype == torch.float32
    readings = monitor.readings(norms.numpy(), show=False)
    for group, parameters in model.monitor_groups().items():
        gradients = [p.grad.double().numpy() for p in parameters.values() if p.grad is not None]
        elements = np.concatenate([gradient.ravel() for gradient in gradients])
        assert readings[group].l2 == pytest.approx(np.linalg.norm(elements), rel=1e-6)
        assert readings[group].max == pytest.approx(np.abs(elements).max(), rel=1e-6)
        assert readings[group].with_gradient == len(gradients)
    assert readings["backbone_projection"].zero == 1
    assert readings["backbone_projection"].none == 1
    assert readings["backbone_projection"].small == 1
    assert math.isnan(monitor.take_largest()["backbone_projection.bias"])


def test_the_largest_element_is_that_of_all_readings_since_it_was_taken(model):
    monitor = GradientMonitor(model, warn_norm=0.0)
    for element in (3.0, 7.0, 2.0):
        model.missing_day.grad = torch.full_like(model.missing_day, element)
        monitor.readings(monitor.gradient_norms().numpy(), show=False)
    assert monitor.take_largest()["missing_day"] == 7.0
    monitor.readings(monitor.gradient_norms().numpy(), show=False)
    assert monitor.take_largest()["missing_day"] == 2.0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_one_broken_element_is_not_smoothed_over(model, broken):
    model.missing_day.grad[0] = broken
    norms = GradientMonitor(model, warn_norm=0.0).gradient_norms().numpy()
    bad = [index for index in range(norms.shape[1]) if not np.isfinite(norms[:, index]).all()]
    assert len(bad) == 2  # the tensor without a gradient, and this one
    assert repr(broken) in {repr(float(norms[1, index])) for index in bad}


def test_the_update_is_the_length_of_the_step_over_that_of_the_weights_before_it(model):
    monitor = GradientMonitor(model, warn_norm=0.0)
    for step in (0.1, 0.001):  # what is kept of one step is not taken for the next one's
        before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
        monitor.remember()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += step * torch.randn_like(parameter)
        ratios = monitor.update_ratios(monitor.update_norms().numpy())
        after = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
        for group, parameters in model.monitor_groups().items():
            moved = math.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in parameters))
            size = math.sqrt(sum((before[n] ** 2).sum() for n in parameters))
            assert ratios[group] == pytest.approx(moved / size, rel=1e-3)
