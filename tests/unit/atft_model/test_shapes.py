"""Declared shapes are enforced while tests run (tests/conftest.py): a wrong one is refused."""

import jaxtyping
import pytest
import torch

from atft_model.losses.variance import variance_penalty
from atft_model.model.graph_attention import flat_edges


def test_shapes_that_do_not_fit_each_other_are_refused():
    score, valid = torch.randn(2, 9, 3), torch.ones(2, 8, 3, dtype=torch.bool)
    variance_penalty(score[:, :8], valid, 1e-6, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        variance_penalty(score, valid, 1e-6, 2)
    neighbours = torch.zeros(2, 9, 4, dtype=torch.int64)
    flat_edges(neighbours, torch.zeros(2, 9, 4, 6))
    with pytest.raises(jaxtyping.TypeCheckError):
        flat_edges(neighbours, torch.zeros(2, 9, 5, 6))
