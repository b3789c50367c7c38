"""What it means that a layer equals its reference: forward and every gradient, to 1e-5."""

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 1e-5
FAINT = 0.01
"""A gradient tensor is held to 1e-5 of its own largest element, or of this share of the largest
gradient of all: some are zero in exact arithmetic (a key's bias under a softmax)."""


def assert_agree(
    ours: Tensor,
    reference: Tensor,
    leaves: Mapping[str, Tensor],
    copies: Mapping[str, Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Both outputs, and the gradients of the same random functional of them for each leaf.

    Args:
        ours: float32.
        reference: float64, made from the same leaves.
        leaves: float32 parameters and inputs, by the name to report.
        copies: the leaves that the reference was made from instead, where it has its own.
        tolerance: of the gradients.
    """
    torch.testing.assert_close(ours.double(), reference, rtol=TOLERANCE, atol=TOLERANCE)
    assert reference.abs().max() > 0.01, "outputs near zero agree with anything"
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    mine = gradients(ours, direction, leaves)
    theirs = gradients(reference, direction.double(), {**leaves, **(copies or {})})
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 0
    for name, expected in theirs.items():
        own = float(expected.abs().max())
        error = float((mine[name] - expected).abs().max())
        allowed = tolerance * max(own, FAINT * largest)
        assert error <= allowed, f"{name}: off by {error:.1e}, largest element {own:.1e}"


def gradients(output: Tensor, direction: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of <output, direction> for each leaf, in float64."""
    found = torch.autograd.grad((output * direction).sum(), list(leaves.values()))
    return {name: gradient.double() for name, gradient in zip(leaves, found, strict=True)}
