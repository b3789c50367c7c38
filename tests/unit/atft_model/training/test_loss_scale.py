"""Float16 gradients are read and clipped as those of the loss itself."""

import pytest
import torch

from atft_model.config import resolve
from atft_model.errors import InputError
from atft_model.run import check_precision
from atft_model.training.optimizer import LossScale, guarded_step

CPU = torch.device("cpu")


def layer_and_optimizer() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)


def test_gradients_are_unscaled_before_anything_reads_them():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = []
    for precision in ("32", "16-mixed"):
        layer, optimizer = layer_and_optimizer()
        scale = LossScale(precision, CPU)
        x.grad = None
        scale.backward(layer(x).square().mean())
        scale.unscale(optimizer)
        assert x.grad is not None
        found.append((layer.weight.grad, scale.inverse() * x.grad, x.grad.norm()))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])
    assert found[1][2] > 1000 * found[0][2]  # what hooks see was scaled


def test_an_overflow_lowers_the_scale_and_moves_nothing():
    layer, optimizer = layer_and_optimizer()
    before = layer.weight.detach().clone()
    scale = LossScale("16-mixed", CPU)
    first = scale.inverse()
    scale.backward((layer(torch.ones(1, 3)) * 1e38).sum())
    scale.unscale(optimizer)
    assert layer.weight.grad is not None
    norm = layer.weight.grad.norm()
    assert not torch.isfinite(norm)
    guarded_step(optimizer, torch.isfinite(norm))
    scale.update()
    assert torch.equal(layer.weight, before)
    assert scale.inverse() == 2 * first


def test_full_width_needs_no_scale():
    assert LossScale("32", CPU).inverse() == 1.0
    assert not LossScale("bf16-mixed", CPU).enabled


def test_float16_without_cuda_is_one_clear_line():
    with pytest.raises(InputError, match="'16-mixed' but the device is cpu"):
        check_precision("16-mixed", CPU)
    check_precision("16-mixed", torch.device("cuda"))
    assert resolve("quick", [("t", {"training": {"precision": "16-mixed"}})])


@pytest.mark.parametrize("amx", [False, True])
def test_bfloat16_on_a_cpu_that_has_no_units_for_it_says_that_it_does_not_pay(
    amx, caplog, monkeypatch
):
    monkeypatch.setattr("atft_model.run.cpu_multiplies_bfloat16", lambda: amx)
    check_precision("bf16-mixed", CPU)
    check_precision("bf16-mixed", torch.device("cuda"))
    assert ["AMX" in record.getMessage() for record in caplog.records] == [True] * (not amx)
