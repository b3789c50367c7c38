"""The kernels against the same slow references as what they replace, dropout included."""

import copy
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_compiler
from torch import Tensor, nn

from atft_model.config import RunConfig, resolve
from atft_model.errors import InputError
from atft_model.model import native
from atft_model.model.dropout import STEPS
from atft_model.model.feature_networks import FeatureNetworks
from atft_model.model.native import (
    Call,
    NativeEnrichment,
    NativeMix,
    check_kernels,
    compile_kernels,
    kernels,
)
from atft_model.model.temporal import TemporalEncoder
from atft_model.run import check_compile, train
from atft_model.training.reporter import Reporter
from tests.references.agreement import assert_agree

pytestmark = needs_compiler
FEATURES, HEADS, CONTEXT = 7, 4, 6
SIZES = [16, 20, 128]
"""One vector a row; narrow vectors; many, with several panels and several cuts of a product."""
SEED = 11


@pytest.fixture(scope="module", params=SIZES)
def size(request) -> int:
    return request.param


def masks(size: int, rows: int, dropped: int, seed: int = SEED) -> Tensor:
    """[rows, size]: 1 where kept."""
    found = torch.empty(rows, size)
    Call(size, (rows,), seed, dropped)("dropout_masks", (), (found,))
    return found


@pytest.fixture
def seeded(monkeypatch):
    """Every pass has the same dropout."""
    randint = torch.randint
    monkeypatch.setattr(
        torch, "randint",
        lambda *a, **k: torch.tensor(SEED) if a == (2**62, ()) else randint(*a, **k),
    )  # fmt: skip


def randomised(module: nn.Module, by: float) -> nn.Module:
    """No zeros that would hide a fault."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def networks_of(size: int, dropout: float) -> FeatureNetworks:
    torch.manual_seed(1)
    networks = FeatureNetworks(FEATURES, size, dropout)
    randomised(networks, 0.2)
    networks.mixed_by = NativeMix(size)
    return networks


def mixed_by_loop(networks: FeatureNetworks, x: Tensor, shares: Tensor) -> Tensor:
    """Feature by feature, in float64; the masks are of (feature, row)."""
    rows, features = x.shape
    weights = {name: p.double() for name, p in networks.named_parameters()}
    kept = masks(networks.size, features * rows, networks.dropped).double()
    total = torch.zeros(rows, networks.size, dtype=torch.float64)
    for j in range(features):
        one = {name: value[j] for name, value in weights.items()}
        scalar = x[:, j : j + 1].double()
        inner = F.elu(scalar * one["input_weight"] + one["input_bias"])
        inner = inner * kept[j * rows : (j + 1) * rows] * STEPS / (STEPS - networks.dropped)
        hidden = inner @ one["hidden_weight"] + one["hidden_bias"]
        out = F.glu(hidden @ one["gate_weight"] + one["gate_bias"])
        out = out + scalar * one["skip_weight"] + one["skip_bias"]
        normed = F.layer_norm(out, (networks.size,)) * one["norm_weight"] + one["norm_bias"]
        total = total + shares[:, j : j + 1].double() * normed
    return total


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("rows", [5, 113])  # part of a tile; two and a part
def test_the_mix_equals_a_loop_over_features(seeded, size, rows, dropout):
    networks = networks_of(size, dropout)
    x = torch.randn(rows, FEATURES, requires_grad=True)
    shares = torch.softmax(torch.randn(rows, FEATURES), -1).requires_grad_()
    leaves = {"x": x, "shares": shares, **dict(networks.named_parameters())}
    assert_agree(networks.mix(x, shares), mixed_by_loop(networks, x, shares), leaves)


@pytest.mark.parametrize("by", [1e-3, 300.0])
def test_gates_that_are_shut_and_units_that_barely_move_are_exact(seeded, by):
    """Where an exponential overflows, or loses all digits beside 1."""
    networks = networks_of(16, 0.0)
    with torch.no_grad():
        for parameter in (networks.input_weight, networks.input_bias, networks.gate_weight):
            parameter.mul_(by)
    x = torch.randn(60, FEATURES, requires_grad=True)
    shares = torch.softmax(torch.randn(60, FEATURES), -1).requires_grad_()
    leaves = {"x": x, "shares": shares, **dict(networks.named_parameters())}
    assert_agree(networks.mix(x, shares), mixed_by_loop(networks, x, shares), leaves)


class GivenMask(nn.Module):
    """Dropout by a mask of [windows, days, size]."""

    def __init__(self, kept: Tensor, dropped: int) -> None:
        super().__init__()
        self.factors = kept * STEPS / (STEPS - dropped)
        self.dropped = dropped

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


def encoder_of(size: int, dropout: float) -> TemporalEncoder:
    torch.manual_seed(2)
    encoder = TemporalEncoder(size, HEADS, 1, CONTEXT, dropout)
    return randomised(encoder, 0.1)


# Part of a tile; several tiles, blocks of stocks and runs; single dates of many stocks.
SHAPES = [(1, 1, 3, 4), (2, 11, 13, 5), (3, 1, 61, 2)]


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("runs", "length", "stocks", "lookback"), SHAPES)
def test_the_encoder_equals_one_window_after_the_other(
    seeded, size, runs, length, stocks, lookback, dropout
):
    """In float64, each window copied out, by torch's own LSTM (itself held to an unrolled loop in
    test_temporal.py); the masks are of (window, day)."""
    encoder = encoder_of(size, dropout)
    days = torch.randn(runs, length + lookback - 1, stocks, size, requires_grad=True)
    context = torch.randn(runs, stocks, CONTEXT, requires_grad=True)
    ours = NativeEnrichment(size)(encoder, days, context, lookback)

    windows, dropped = runs * length * stocks, encoder.lstm_skip.dropout.dropped
    slow = encoder_of(size, dropout).double()
    kept = masks(size, windows * lookback * 2, dropped).double()
    kept = kept.view(windows, lookback, 2, size)
    slow.lstm_skip.dropout = GivenMask(kept[:, :, 0], dropped)
    slow.enrichment.gated_skip.dropout = GivenMask(kept[:, :, 1], dropped)
    copied = days.double().unfold(1, lookback, 1).permute(0, 1, 2, 4, 3).flatten(0, 2)
    held = context.double()[:, None].expand(-1, length, -1, -1).reshape(windows, 1, CONTEXT)
    used = [name for name, _ in encoder.named_parameters() if not name.startswith("attention")]
    mine, theirs = dict(encoder.named_parameters()), dict(slow.named_parameters())
    inputs = {"days": days, "context": context}
    assert_agree(
        ours, slow.enrich(copied, held), {name: mine[name] for name in used} | inputs,
        {name: theirs[name] for name in used},
    )  # fmt: skip


def passes(size: int) -> list[Tensor]:
    """Outputs and gradients of both kernels, with dropout."""
    networks, encoder = networks_of(size, 0.25), encoder_of(size, 0.25)
    torch.manual_seed(3)
    x, shares = torch.randn(300, FEATURES), torch.rand(300, FEATURES)
    days, context = torch.randn(2, 12, 25, size), torch.randn(2, 25, CONTEXT)
    mixed = networks.mix(x, shares)
    enriched = NativeEnrichment(size)(encoder, days, context, 5)
    (mixed.square().sum() + enriched.square().sum()).backward()
    parameters = [*networks.parameters(), *encoder.parameters()]
    return [mixed, enriched, *(p.grad for p in parameters if p.grad is not None)]


def test_the_same_seed_gives_the_same_bits_and_other_threads_the_same_numbers():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = passes(16), passes(16)
        torch.set_num_threads(1)
        alone = passes(16)
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_dropout_zeroes_its_share_of_every_row_and_unit_and_no_pattern_is_seen(size):
    rows, dropped = 20_000, 64
    kept = masks(size, rows, dropped)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.75, abs=0.003)
    error = (0.75 * 0.25 / rows) ** 0.5
    assert (kept.mean(0) - 0.75).abs().max() < 5 * error
    centred = (kept - 0.75) / (0.75 * 0.25) ** 0.5
    between_units = centred.T @ centred / rows - torch.eye(size)
    between_rows = (centred[1:] * centred[:-1]).mean(0)
    assert max(between_units.abs().max(), between_rows.abs().max()) < 5.5 * rows**-0.5
    other = masks(size, rows, dropped, SEED + 10**9)
    assert ((other - 0.75) / 0.1875**0.5 * centred).mean().abs() < 5 * (rows * size) ** -0.5


def test_masks_do_not_hang_on_the_width_of_vectors():
    """The units of 20, in vectors of 4, have the masks that they have among 128, in widest ones."""
    assert torch.equal(masks(20, 50, 64), masks(128, 50, 64)[:, :20])


def test_a_step_drops_anew():
    networks, encoder = networks_of(16, 0.25), encoder_of(16, 0.25)
    x, shares = torch.randn(9, FEATURES), torch.rand(9, FEATURES)
    assert not torch.equal(networks.mix(x, shares), networks.mix(x, shares))
    enrich, inputs = NativeEnrichment(16), (torch.randn(1, 6, 9, 16), torch.randn(1, 9, CONTEXT), 4)
    assert not torch.equal(enrich(encoder, *inputs), enrich(encoder, *inputs))
    encoder.eval()  # a part that is frozen inside a model in training
    assert torch.equal(enrich(encoder, *inputs), enrich(encoder, *inputs))
    encoder.train().lstm_skip.dropout.dropped = 0
    with pytest.raises(ValueError, match="one rate of dropout, and the encoder has two"):
        enrich(encoder, *inputs)


def test_a_number_that_is_none_stays_visible():
    networks, encoder = networks_of(16, 0.0), encoder_of(16, 0.0)
    x, days = torch.randn(100, FEATURES), torch.randn(1, 6, 20, 16)
    x[50, 3], days[0, 2, 7, 1] = torch.nan, torch.nan
    mixed = networks.mix(x, torch.rand(100, FEATURES))
    assert torch.isnan(mixed).any(-1).nonzero().flatten().tolist() == [50]
    enrich = NativeEnrichment(16)
    enriched = enrich(encoder, days, torch.randn(1, 20, CONTEXT), 4).view(3, 20, 4, 16)
    bad = torch.isnan(enriched).all(-1)
    expected = torch.zeros(3, 20, 4, dtype=torch.bool)
    for position in range(3):
        expected[position, 7, 2 - position :] = True
    assert torch.equal(bad, expected)
    (mixed.sum() + enriched.sum()).backward()
    assert torch.isnan(networks.hidden_weight.grad[3]).any()
    assert not torch.isnan(networks.hidden_weight.grad[2]).any()
    assert torch.isnan(encoder.lstm.weight_hh_l0.grad).any()


def test_compiled_parts_are_copied_and_stored_like_others():
    networks, encoder = networks_of(16, 0.25), encoder_of(16, 0.25)
    assert compile_kernels(networks, encoder) == kernels(16).seconds > 0
    assert isinstance(encoder.enriched_by, NativeEnrichment)
    assert not list(encoder.enriched_by.parameters())
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert copied.enriched_by.size == 16
        assert copied.state_dict().keys() == encoder_of(16, 0.25).state_dict().keys()
    assert copy.deepcopy(networks).mixed_by == networks.mixed_by == NativeMix(16)


def test_only_numbers_that_a_kernel_takes_reach_it():
    call = Call(16, (3,), SEED, 0)
    for wrong in (
        torch.empty(3, 16, dtype=torch.float64), torch.empty(16, 3).t(),
        torch.empty(3, 16, device="meta"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="dropout_masks: takes contiguous float32 on the CPU"):
            call("dropout_masks", (), (wrong,))


@pytest.mark.parametrize(
    ("days", "context", "lookback"),
    [((1, 6, 9, 20), (1, 9, CONTEXT), 4), ((1, 6, 9, 16), (2, 9, CONTEXT), 4),
     ((1, 6, 9, 16), (1, 8, CONTEXT), 4), ((1, 6, 9, 16), (1, 9, CONTEXT + 1), 4),
     ((1, 6, 9, 16), (1, 9, CONTEXT), 7), ((1, 6, 0, 16), (1, 0, CONTEXT), 4)],
)  # fmt: skip
def test_inputs_of_another_shape_do_not_reach_the_encoder(days, context, lookback):
    with pytest.raises(ValueError, match="kernels for hidden size 16, windows of"):
        NativeEnrichment(16)(encoder_of(16, 0.0), torch.zeros(days), torch.zeros(context), lookback)


def test_every_kernel_has_the_threads_that_torch_has(monkeypatch):
    given, threads = [], torch.get_num_threads()
    library = SimpleNamespace(dropout_masks=lambda threads, *_: given.append(threads))
    monkeypatch.setattr(native, "kernels", lambda size: SimpleNamespace(library=library))
    try:
        for number in (2, 1):
            torch.set_num_threads(number)
            masks(16, 3, 0)
    finally:
        torch.set_num_threads(threads)
    assert given == [2, 1]


def compiled(**settings: object) -> RunConfig:
    return resolve(
        "quick",
        [("test", {"model": settings, "training": {"compile": True, "device": "cpu"}})],
    )  # fmt: skip


def test_what_the_kernels_do_not_compute_is_refused():
    with pytest.raises(InputError, match=r"hidden_size is 18: its kernels need a multiple of 4"):
        check_kernels(compiled(hidden_size=18, heads=2).model)
    with pytest.raises(InputError, match=r"lstm_layers is 2: its kernels need 1"):
        check_kernels(compiled(lstm_layers=2).model)
    with pytest.raises(InputError, match="device is cuda, and only a CPU's passes are compiled"):
        check_compile(compiled(), torch.device("cuda"))
    check_compile(resolve("quick"), torch.device("cuda"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("#!/bin/sh\necho no such flag >&2; exit 3\n",
         r"(?s)encoder\.cpp.* failed \(3\):\nno such flag.*another compiler in CXX"),
        ("no program\n", r"(?s) failed \(.*Exec format error"),
        ("#!/bin/sh\nfor last; do :; done\necho no library > $last\n",
         r"compiler one two compiled cannot be loaded .*; use g\+\+ \(CXX\), point TMPDIR"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_told_with_its_words(monkeypatch, tmp_path, lines, said):
    broken = tmp_path / "compiler"
    broken.write_text(lines)
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", f"{broken} one two")
    with pytest.raises(InputError, match=said):
        check_kernels(compiled(hidden_size=28, heads=2).model)  # compiled once a process: no other


def test_a_run_without_a_compiler_is_refused_before_it_begins(monkeypatch, tmp_path):
    """Before its panel is looked for, which is not there."""
    places = tmp_path / "panel", tmp_path / "graph", tmp_path / "run"
    on = compiled(hidden_size=28, heads=2)
    off = replace(on, training=replace(on.training, compile=False))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"there is no no-such-compiler \(the C\+\+ compiler that"):
        train(on, *places, Reporter())
    with pytest.raises(InputError, match="panel"):
        train(off, *places, Reporter())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no g\+\+ .*; install it .* set training\.compile to fa"):
        train(on, *places, Reporter())
