"""Hooks go with the block that they were made for, however it ends."""

import pytest
import torch

from atft_model.monitors.hooked import hooked


@pytest.fixture
def layers() -> list[torch.nn.Linear]:
    return [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]


def counts(layers: list[torch.nn.Linear]) -> list[int]:
    return [len(layer._forward_hooks) for layer in layers]


def fail_inside(layers: list[torch.nn.Linear]) -> None:
    with hooked(layer.register_forward_hook(lambda *_: None) for layer in layers):
        assert counts(layers) == [1, 1]
        raise RuntimeError("inside")


def test_hooks_stay_inside_and_go_even_when_the_block_fails(layers):
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside(layers)
    assert counts(layers) == [0, 0]


def test_a_hook_that_cannot_be_made_takes_those_before_it_along(layers):
    def handles():
        yield layers[0].register_forward_hook(lambda *_: None)
        raise RuntimeError("second")

    with pytest.raises(RuntimeError, match="second"), hooked(handles()):
        raise AssertionError
    assert counts(layers) == [0, 0]
