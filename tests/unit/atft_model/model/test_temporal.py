"""The temporal encoder against an unrolled LSTM and a softmax over observed days alone."""

import pytest
import torch

from atft_model.model.temporal import InterpretableAttention, TemporalEncoder
from tests.references import atft as plain
from tests.references.agreement import assert_agree

WINDOWS, DAYS, SIZE, HEADS, CONTEXT = 6, 7, 16, 4, 5


def windows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Days, which were observed, context: window 0 is whole, 1 has its last day, 2 has none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(WINDOWS, DAYS, SIZE, generator=generator)
    observed = torch.rand(WINDOWS, DAYS, generator=generator) > 0.4
    observed[:, -1] = True
    observed[0] = True
    observed[1, :-1] = False
    observed[2] = False
    context = torch.randn(WINDOWS, 1, CONTEXT, generator=generator)
    return x.requires_grad_(), observed, context.requires_grad_()


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


@pytest.fixture
def attention() -> InterpretableAttention:
    torch.manual_seed(1)
    module = InterpretableAttention(SIZE, HEADS)
    randomise(module)
    return module


def encoder(layers: int) -> TemporalEncoder:
    torch.manual_seed(layers)
    module = TemporalEncoder(SIZE, HEADS, layers, CONTEXT, dropout=0.1).eval()
    randomise(module)
    return module


def test_attention_equals_a_softmax_over_observed_days(attention):
    x, observed, _ = windows()
    ours, shares = attention(x, observed)
    weights = plain.weights_of(attention)
    pairs = [
        plain.attention(weights, x[window].double(), observed[window].tolist(), HEADS)
        for window in range(WINDOWS)
    ]
    expected_shares = torch.stack([share for _, share in pairs])
    torch.testing.assert_close(shares.double(), expected_shares, rtol=1e-5, atol=1e-5)
    expected = torch.stack([attended for attended, _ in pairs])
    assert_agree(ours, expected, {"x": x, **dict(attention.named_parameters())})


def test_days_that_were_not_observed_have_no_weight(attention):
    x, observed, _ = windows()
    _, shares = attention(x, observed)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(WINDOWS, DAYS))
    for window in (0, 1, 3, 4, 5):
        assert (shares[window][:, ~observed[window]] == 0).all()
        assert (shares[window][:, observed[window]] > 0).all()
    torch.testing.assert_close(shares[2], torch.full((DAYS, DAYS), 1 / DAYS))


def test_what_an_unobserved_day_holds_reaches_no_other_day(attention):
    x, observed, _ = windows()
    hidden = ~observed[3]
    assert hidden.any()
    changed = x.detach().clone()
    changed[3, hidden] = 1e3
    ours, again = attention(x, observed)[0][3], attention(changed, observed)[0][3]
    torch.testing.assert_close(ours[~hidden], again[~hidden])
    ours[~hidden].square().sum().backward()
    assert (x.grad[3, hidden] == 0).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_the_lstm_equals_an_unrolled_loop_behind_its_gated_skip(layers):
    module = encoder(layers)
    x, _, _ = windows()
    ours = module.lstm_skip(module.lstm(x)[0], x)
    weights = plain.weights_of(module)
    expected = torch.stack(
        [
            plain.gated_skip(
                plain.part(weights, "lstm_skip"),
                plain.lstm(plain.part(weights, "lstm"), window.double(), layers),
                window.double(),
            )
            for window in x
        ]
    )
    names = ("lstm.", "lstm_skip.")
    leaves = {name: p for name, p in module.named_parameters() if name.startswith(names)}
    assert_agree(ours, expected, {"x": x, **leaves})


@pytest.mark.parametrize("layers", [1, 2])
def test_the_encoder_equals_its_parts_window_by_window(layers):
    module = encoder(layers)
    x, observed, context = windows()
    ours = module(x, observed, context)
    weights = plain.weights_of(module)
    expected = torch.stack(
        [
            plain.temporal_encoder(
                weights, x[window].double(), observed[window].tolist(),
                context[window, 0].double(), HEADS, layers,
            )
            for window in range(WINDOWS)
        ]
    )  # fmt: skip
    leaves = {"x": x, "context": context, **dict(module.named_parameters())}
    assert_agree(ours, expected, leaves)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_day_alone_is_the_last_of_all_days(layers):
    module = encoder(layers)
    x, observed, context = windows()
    leaves = {"x": x, "context": context, **dict(module.named_parameters())}
    last = module(x, observed, context, last_day_only=True)
    assert_agree(last, module(x, observed, context)[:, -1:].double(), leaves)


def test_windows_do_not_see_each_other():
    module = encoder(1)
    x, observed, context = windows()
    together = module(x, observed, context)
    alone = torch.cat(
        [module(x[w : w + 1], observed[w : w + 1], context[w : w + 1]) for w in range(WINDOWS)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
