"""Normalization of the projected features before the head: ``model.adaptive_norm``."""

from torch import nn

from atft_model.errors import InputError

MIXES_DAYS: frozenset[str] = frozenset()
"""Normalizations whose output on a day depends on the window's other days."""


def adaptive_norm(kind: str, size: int) -> nn.Module:
    """The module of a name; input and output are [windows, days, size].

    Raises:
        InputError: no such normalization.
    """
    if kind == "layer_norm":
        return nn.LayerNorm(size, eps=1e-5)
    raise InputError(f"model.adaptive_norm is {kind!r}; expected 'layer_norm'")
