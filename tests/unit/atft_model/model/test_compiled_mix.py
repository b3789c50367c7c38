"""The compiled mix against the plain one: the same sums, gradients and dropout.

Its passes are plain functions, so that all but the compiling itself is tested without it.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from atft_model.config import TrainingConfig, resolve
from atft_model.errors import InputError
from atft_model.model import compiled_mix, feature_networks
from atft_model.model.compiled_mix import (
    CompiledMix,
    Passes,
    block_backward,
    block_forward,
    compile_mix,
)
from atft_model.model.feature_networks import FeatureNetworks
from atft_model.run import check_compile, train
from atft_model.training.reporter import Reporter

FEATURES, SIZE, ROWS = 7, 16, 40
NOT_COMPILED = partial(CompiledMix.apply, Passes(block_forward, block_backward))


@pytest.fixture(autouse=True)
def blocks_of_several_sizes(monkeypatch):
    monkeypatch.setattr(feature_networks, "BLOCK_ROWS", 15)
    monkeypatch.setattr(feature_networks, "BLOCK_FEATURES", 4)


def networks_with(dropout: float) -> FeatureNetworks:
    torch.manual_seed(1)
    networks = FeatureNetworks(FEATURES, SIZE, dropout)
    for parameter in networks.parameters():  # no zeros that would hide a fault
        parameter.data.add_(torch.randn(parameter.shape) * 0.3)
    return networks


def sums_and_gradients(networks: FeatureNetworks, autocast: bool = False) -> list[Tensor]:
    """Of one forward and backward pass in training, at fixed inputs and a fixed seed."""
    torch.manual_seed(2)
    x = torch.randn(ROWS, FEATURES, requires_grad=True)
    weights = torch.softmax(torch.randn(ROWS, FEATURES), -1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mixed = networks.mix(x, weights)
    direction = torch.linspace(-1, 1, mixed.numel()).view_as(mixed)
    found = torch.autograd.grad(mixed, [x, weights, *networks.parameters()], direction)
    return [mixed.detach(), *found]


def assert_alike(networks: FeatureNetworks, compiled: list[Tensor], autocast: bool) -> None:
    """To 1e-5 in float32; in bfloat16, of 8 bits, to 2 % of a tensor's largest entry."""
    networks.mixed_by = feature_networks._Mix.apply
    for mine, plain in zip(compiled, sums_and_gradients(networks, autocast), strict=True):
        assert mine.dtype == plain.dtype
        if autocast:
            assert (mine - plain).abs().max() < 0.02 * plain.abs().max()
        else:
            torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept_bytes", [0, 20_000, 2**30])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_passes_equal_the_plain_mix_dropout_included(dropout, kept_bytes, autocast):
    networks = networks_with(dropout)
    networks.kept_bytes, networks.mixed_by = kept_bytes, NOT_COMPILED
    assert_alike(networks, sums_and_gradients(networks, autocast), autocast)


def test_in_float64_the_gradients_are_those_of_finite_differences():
    networks = networks_with(0.25).double()
    networks.mixed_by = NOT_COMPILED
    x = torch.randn(5, FEATURES, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, FEATURES, dtype=torch.float64, requires_grad=True)

    def fixed(x: Tensor, weights: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(5)
        return networks.mix(x, weights)

    assert torch.autograd.gradcheck(fixed, (x, weights, *networks.parameters()), fast_mode=True)


def test_out_of_training_the_plain_mix_runs_in_float32():
    networks = networks_with(0.25).eval()
    networks.mixed_by = NOT_COMPILED
    with_compiled = sums_and_gradients(networks, autocast=True)
    networks.mixed_by = feature_networks._Mix.apply
    for mine, plain in zip(with_compiled, sums_and_gradients(networks), strict=True):
        assert torch.equal(mine, plain)


def test_what_exceeds_the_room_is_computed_again():
    networks, computed = networks_with(0.25), []

    def counted(*inputs: Tensor) -> tuple[Tensor, ...]:
        computed.append(1)
        return block_forward(*inputs)

    networks.mixed_by = partial(CompiledMix.apply, Passes(counted, block_backward))
    blocks = 3 * 2
    # Of 15 rows × 4 features × 16: a byte, and 4 × 4 (float32) or 4 × 2 (bfloat16), and one float.
    for autocast, bytes_each in ((False, 960 * 17 + 240), (True, 960 * 9 + 240)):
        counts = {}
        for kept_bytes in (0, bytes_each + 1, 2**30):
            networks.kept_bytes = kept_bytes
            computed.clear()
            sums_and_gradients(networks, autocast)
            counts[kept_bytes] = len(computed)
        assert counts == {0: 2 * blocks, bytes_each + 1: 2 * blocks - 1, 2**30: blocks}


def test_a_run_without_a_compiler_is_refused_before_it_begins(tmp_path):
    """Before its panel is looked for, which is not there."""
    on, off = (
        resolve("quick", [("test", {"training": {"compile": compiled, "device": "cpu"}})])
        for compiled in (True, False)
    )
    said = r"no C\+\+ compiler is found; install one .* set training\.compile to false"
    for settings, refusal in ((on, said), (off, "panel")):
        with (
            torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
            pytest.raises(InputError, match=refusal),
        ):
            train(settings, tmp_path / "panel", tmp_path / "graph", tmp_path / "run", Reporter())


def test_on_a_gpu_there_is_nothing_to_compile():
    with pytest.raises(InputError, match="device is cuda, and only a CPU's passes are compiled"):
        check_compile(TrainingConfig(compile=True), torch.device("cuda"))
    check_compile(TrainingConfig(), torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_equals_the_plain_mix_with_one_graph_a_pass(monkeypatch, dtype):
    monkeypatch.setattr(compiled_mix, "BLOCK_FEATURES", 4)
    networks, autocast = networks_with(0.25), dtype == torch.bfloat16
    state = torch.get_rng_state()
    compile_mix(networks, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    assert networks.compile_seconds is not None
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = sums_and_gradients(networks, autocast)
    assert_alike(networks, compiled, autocast)
