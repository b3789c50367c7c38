"""Weights are named by a hash of what they are, whatever the file they lie in."""

import torch

from atft_model.training.checkpoint import load_weights, save_weights, weights_hash


def test_the_hash_is_of_names_types_shapes_and_values_and_of_no_order():
    first, second = torch.arange(6.0), torch.ones(2)
    whole = {"first": first, "second": second}
    others = [
        {"other": first, "second": second},
        {"first": first.view(2, 3), "second": second},
        {"first": first.view(torch.int32), "second": second},
        {"first": first + torch.tensor([0.0] * 5 + [1e-6]), "second": second},
        {"first": first},
    ]
    hashes = {weights_hash(weights) for weights in [whole, *others]}
    assert len(hashes) == 1 + len(others)
    assert weights_hash({"second": second, "first": first.clone()}) == weights_hash(whole)


def test_saved_weights_have_the_hash_that_was_returned_and_leave_nothing_beside_them(tmp_path):
    weights = {"first": torch.randn(3, 2)}
    assert save_weights(tmp_path / "best.pt", weights) == weights_hash(weights)
    assert weights_hash(load_weights(tmp_path / "best.pt")) == weights_hash(weights)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
