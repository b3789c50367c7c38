"""The kernels against the same slow references as what they replace, dropout included."""

import pytest
import torch
import torch.nn.functional as F
from compiler import needs_compiler
from torch import Tensor, nn

from atft_model.config import TrainingConfig, resolve
from atft_model.errors import InputError
from atft_model.model import native
from atft_model.model.dropout import STEPS
from atft_model.model.feature_networks import FeatureNetworks
from atft_model.model.native import Call, compile_kernels, kernels
from atft_model.model.temporal import TemporalEncoder
from atft_model.run import check_compile, train
from atft_model.training.reporter import Reporter
from tests.references.agreement import assert_agree

pytestmark = needs_compiler
FEATURES, HEADS, CONTEXT = 7, 4, 6
SIZES = [16, 12, 64]
"""One vector a row; narrow vectors; several vectors a row, and several panels of a product."""
SEED = 11


@pytest.fixture(scope="module", params=SIZES)
def size(request) -> int:
    return request.param


def masks(size: int, rows: int, dropped: int, seed: int = SEED) -> Tensor:
    """[rows, size]: 1 where kept."""
    found = torch.empty(rows, size)
    Call(kernels(size), (rows,), seed, dropped)("dropout_masks", (), (found,))
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
    networks.mixed_by = native.NativeMix(kernels(size))
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
    ours = native.NativeEnrichment(kernels(size))(encoder, days, context, lookback)

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
    enriched = native.NativeEnrichment(kernels(size))(encoder, days, context, 5)
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


def test_a_step_drops_anew():
    networks = networks_of(16, 0.25)
    x, shares = torch.randn(9, FEATURES), torch.rand(9, FEATURES)
    assert not torch.equal(networks.mix(x, shares), networks.mix(x, shares))


def test_a_number_that_is_none_stays_visible():
    networks, encoder = networks_of(16, 0.0), encoder_of(16, 0.0)
    x, days = torch.randn(100, FEATURES), torch.randn(1, 6, 20, 16)
    x[50, 3], days[0, 2, 7, 1] = torch.nan, torch.nan
    mixed = networks.mix(x, torch.rand(100, FEATURES))
    assert torch.isnan(mixed).any(-1).nonzero().flatten().tolist() == [50]
    enrich = native.NativeEnrichment(kernels(16))
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


def test_out_of_training_the_plain_parts_compute():
    networks, encoder = networks_of(16, 0.0).eval(), encoder_of(16, 0.0)
    x, shares = torch.randn(9, FEATURES), torch.rand(9, FEATURES)
    with_kernels = networks.mix(x, shares)
    assert torch.equal(with_kernels, FeatureNetworks.mix(plain_copy(networks), x, shares))
    assert compile_kernels(networks, encoder) >= 0
    assert isinstance(encoder.enriched_by, native.NativeEnrichment)
    assert not list(encoder.enriched_by.parameters())


def plain_copy(networks: FeatureNetworks) -> FeatureNetworks:
    copy = FeatureNetworks(FEATURES, networks.size, 0.0).eval()
    copy.load_state_dict(networks.state_dict())
    return copy


def test_numbers_of_another_type_are_not_read_as_float32():
    call = Call(kernels(16), (3,), SEED, 0)
    for wrong in (torch.empty(3, 16, dtype=torch.float64), torch.empty(16, 3).t()):
        with pytest.raises(ValueError, match="dropout_masks: takes contiguous float32"):
            call("dropout_masks", (), (wrong,))


def compiled(**model: int) -> None:
    config = resolve("quick", [("test", {"model": model})]).model
    size = config.hidden_size
    compile_kernels(
        FeatureNetworks(FEATURES, size, 0.1),
        TemporalEncoder(size, config.heads, config.lstm_layers, CONTEXT, 0.1),
    )


def test_what_the_kernels_do_not_compute_is_refused(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"hidden_size is 18: its kernels need a multiple of 4"):
        compiled(hidden_size=18, heads=2)
    with pytest.raises(InputError, match=r"lstm_layers is 2: its kernels have one"):
        compiled(lstm_layers=2)
    with pytest.raises(InputError, match="device is cuda, and only a CPU's passes are compiled"):
        check_compile(TrainingConfig(compile=True), torch.device("cuda"))
    check_compile(TrainingConfig(), torch.device("cuda"))
    # Once a process, so of a size that no other test has compiled.
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(InputError, match=r"(?s)false .*encoder\.cpp.* failed:.*another compiler"):
        compiled(hidden_size=20, heads=2)
    broken = tmp_path / "compiler"
    broken.write_text("#!/bin/sh\nfor last; do :; done\necho no library > $last\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(InputError, match=r"compiled cannot be loaded .*; use g\+\+"):
        compiled(hidden_size=20, heads=2)


def test_a_run_without_a_compiler_is_refused_before_it_begins(monkeypatch, tmp_path):
    """Before its panel is looked for, which is not there."""
    on, off = (
        resolve("quick", [("test", {"training": {"compile": compiled, "device": "cpu"}})])
        for compiled in (True, False)
    )
    places = tmp_path / "panel", tmp_path / "graph", tmp_path / "run"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"no C\+\+ compiler is found \(CXX names 'no-such-comp"):
        train(on, *places, Reporter())
    with pytest.raises(InputError, match="panel"):
        train(off, *places, Reporter())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"found; install one .* set training\.compile to false"):
        train(on, *places, Reporter())
