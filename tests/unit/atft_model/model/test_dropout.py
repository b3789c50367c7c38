import pytest
import torch

from atft_model.model.dropout import Dropout, random_bytes


def test_every_byte_of_a_word_is_uniform():
    torch.manual_seed(0)
    by_place = random_bytes(torch.Size([200_000, 8])).to(torch.int64)
    for place in range(8):
        count = torch.bincount(by_place[:, place], minlength=256).double()
        chi_square = ((count - 200_000 / 256) ** 2 / (200_000 / 256)).sum()
        assert 160 < chi_square < 360  # 255 degrees of freedom: mean 255, std 22.6


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean_are_kept_and_gradients_follow_the_mask(p: float):
    torch.manual_seed(1)
    x = torch.ones(1001, 301, requires_grad=True)
    out = Dropout(p)(x)
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_evaluation_and_zero_share_change_nothing():
    x = torch.randn(5, 3)
    assert Dropout(0.3).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_generator_decides_the_mask():
    x = torch.ones(100)
    drop = Dropout(0.5)
    torch.manual_seed(3)
    first = drop(x)
    torch.manual_seed(3)
    assert torch.equal(first, drop(x))
