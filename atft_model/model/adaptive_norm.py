"""Normalization of the projected features before the head: ``model.adaptive_norm``.

``layer_norm`` (the default) normalizes each day's features. ``fan_san`` normalizes each channel
over the window's days, and ``fan_san_historical`` is the same stack as the system before this one
built it, kept so that its failure can be reproduced. ``none`` passes through.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from atft_model.errors import InputError

MIXES_DAYS = frozenset({"fan_san", "fan_san_historical"})
"""Normalizations whose output on a day depends on the window's other days."""

EPS = 1e-5
MAIN_FREQUENCIES = 2
"""Taken out of each window and channel, of the days // 2 + 1 that it has; the mean is one of them.
The paper takes the few that hold most of the spectrum; two leave most of a window of 20 days."""
SLICES = 3
MIN_DAYS = 5
"""Below, a slice has fewer than three days: of two, normalization leaves only which is larger."""


def adaptive_norm(kind: str, size: int, lookback: int) -> nn.Module:
    """The module of a name; input and output are [windows, days, size].

    Raises:
        InputError: no such normalization, or a window too short for its slices.
    """
    if kind == "layer_norm":
        return nn.LayerNorm(size, eps=EPS)
    if kind == "none":
        return nn.Identity()
    if kind not in MIXES_DAYS:
        raise InputError(
            f"model.adaptive_norm is {kind!r}; expected layer_norm, fan_san, fan_san_historical "
            "or none"
        )
    if lookback < MIN_DAYS:
        raise InputError(
            f"model.adaptive_norm is {kind!r} with a model.lookback of {lookback}; its slices need "
            f"at least {MIN_DAYS} days"
        )
    cut = covering_slices if kind == "fan_san" else historical_slices
    return nn.Sequential(FrequencyNorm(size), SliceNorm(size, lookback, cut(lookback)))


def covering_slices(days: int) -> list[tuple[int, int]]:
    """(first, last) of ``SLICES`` slices of one length, each half over the next, from the first day
    to the last: ``days`` = (``SLICES`` + 1) / 2 lengths."""
    length = -(-2 * days // (SLICES + 1))
    starts = [(days - length) * number // (SLICES - 1) for number in range(SLICES)]
    return [(start, start + length) for start in starts]


def historical_slices(days: int) -> list[tuple[int, int]]:
    """As many slices of days // ``SLICES``, laid half over each other as above: they end early.

    The length was chosen as if they lay side by side, the stride as if they did not. They reach day
    (``SLICES`` + 1) / (2 ``SLICES``) × ``days`` at most, two thirds of the window, and never the
    last one.
    """
    length = days // SLICES
    stride = max(1, length // 2)
    return [(number * stride, number * stride + length) for number in range(SLICES)]


class FrequencyNorm(nn.Module):
    """Frequency adaptive normalization (FAN; Ye et al. 2024, "Frequency Adaptive Normalization For
    Non-stationary Time Series Forecasting").

    The ``MAIN_FREQUENCIES`` largest Fourier components of each window and channel, found anew for
    each, are taken out (their eq. 1-3). FAN forecasts them with a network of its own and adds the
    forecast to the model's. Here no series is forecast: a learned share per channel, 0 at first,
    comes back.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.returned = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "windows days size"]) -> Float[Tensor, "windows days size"]:
        """At least float32: a Fourier transform has no half-width kernel on every device."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft(x, dim=1)
        largest = spectrum.abs().topk(MAIN_FREQUENCIES, dim=1).indices
        kept = torch.zeros_like(x[:, : spectrum.shape[1]]).scatter_(1, largest, 1.0)
        main = torch.fft.irfft(spectrum * kept, n=x.shape[1], dim=1)
        return x - main + self.returned * main


class SliceNorm(nn.Module):
    """Slice-level adaptive normalization (SAN; Liu et al. 2023, "Adaptive Normalization for
    Non-stationary Time Series Forecasting: A Temporal Slice Perspective").

    Each slice of days is normalized by its own mean and standard deviation, channel by channel
    (their eq. 1-2); a day in several slices gets the mean of them. SAN forecasts the statistics of
    slices to come and puts them back; here a learned weight and bias per channel take their place.
    A day that no slice holds stays 0, without weight and bias, and passes no gradient: this is what
    was historically wrong.
    """

    share: Tensor

    def __init__(self, size: int, days: int, slices: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.slices = tuple(slices)
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        held = [sum(first <= day < last for first, last in slices) for day in range(days)]
        held_by = torch.tensor(held, dtype=torch.float32)[:, None]
        share = torch.where(held_by > 0, 1.0 / held_by.clamp(min=1.0), 0.0)
        self.register_buffer("share", share, persistent=False)

    def forward(self, x: Float[Tensor, "windows days size"]) -> Float[Tensor, "windows days size"]:
        """Normalized days; 0 where no slice is."""
        total = torch.zeros_like(x)
        for first, last in self.slices:
            part = x[:, first:last]
            variance, mean = torch.var_mean(part, dim=1, correction=0, keepdim=True)
            normed = (part - mean) * torch.rsqrt(variance + EPS)
            total[:, first:last] += normed * self.weight + self.bias
        return total * self.share
