"""Variable selection against one small gated residual network per feature, in a loop."""

import pytest
import torch

from atft_model.model.variable_selection import VariableSelection
from tests.references import atft as plain
from tests.references.agreement import assert_agree

ROWS = 33


def make(features: int, size: int) -> VariableSelection:
    """Random weights everywhere: biases and norms too, so that a dropped one is seen."""
    torch.manual_seed(features)
    selection = VariableSelection(features, size, dropout=0.1).eval()
    with torch.no_grad():
        for parameter in selection.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return selection


@pytest.mark.parametrize(
    ("rows", "features", "size"),
    [(ROWS, 1, 16), (ROWS, 5, 16), (ROWS, 7, 32), (ROWS, 82, 16), (850, 82, 32)],
)
def test_it_equals_a_loop_over_features_forward_and_gradient(rows, features, size):
    """Also with so many rows that they go through in several blocks."""
    selection = make(features, size)
    x = torch.randn(rows, features, requires_grad=True)
    mixed, share = selection(x)
    expected, expected_share = plain.variable_selection(plain.weights_of(selection), x.double())
    leaves = {"x": x, **dict(selection.named_parameters())}
    if features == 1:  # a softmax over one feature is 1, whatever its weights
        torch.testing.assert_close(share, torch.ones_like(share))
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("weights.")}
    else:
        torch.testing.assert_close(share.double(), expected_share, rtol=1e-5, atol=1e-5)
    assert_agree(mixed, expected, leaves)


def test_the_weights_sum_to_one_and_differ_between_rows():
    _, share = make(12, 16)(torch.randn(ROWS, 12))
    torch.testing.assert_close(share.sum(dim=-1), torch.ones(ROWS))
    assert (share > 0).all()
    assert share.std(dim=0).max() > 1e-3


def test_extreme_inputs_stay_finite():
    selection = make(6, 16)
    x = torch.full((3, 6), 5.0) * torch.tensor([[1.0], [-1.0], [0.0]])
    mixed, share = selection(x.requires_grad_())
    mixed.sum().backward()
    assert torch.isfinite(mixed).all()
    assert torch.isfinite(share).all()
    assert all(torch.isfinite(p.grad).all() for p in selection.parameters())


def test_rows_do_not_see_each_other():
    selection = make(6, 16)
    x = torch.randn(ROWS, 6)
    alone = torch.cat([selection(row[None])[0] for row in x])
    torch.testing.assert_close(selection(x)[0], alone, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only():
    selection = make(6, 16)
    x = torch.randn(ROWS, 6)
    assert torch.equal(selection(x)[0], selection(x)[0])
    selection.train()
    assert not torch.equal(selection(x)[0], selection(x)[0])


def test_the_gradient_is_that_of_the_dropout_that_the_forward_pass_drew():
    """A block computed again in the backward pass with other dropout would give another gradient.

    Derivative along the gradient, by central difference with the same random numbers.
    """
    selection = make(82, 16).train().double()
    x = torch.randn(1700, 82, dtype=torch.float64)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return selection(x)[0].square().mean()

    parameters = list(selection.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients)).item()
    step, sides = 1e-4, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=sign * step / norm)
            sides.append(loss().item())
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(norm, rel=1e-4)
