"""The blocks of ``feature_networks`` as two functions that torch.compile fuses, for a CPU.

The same mathematics as there, which is what runs without a compiler. Fused, a number in bfloat16 is
converted on the way, so that under autocast products and kept intermediates can be of that type.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atft_model.errors import InputError
from atft_model.model.dropout import random_bytes
from atft_model.model.feature_networks import (
    BLOCK_FEATURES,
    BLOCK_ROWS,
    EPS,
    Blocks,
    FeatureNetworks,
)


@dataclass(frozen=True)
class Passes:
    """The two passes of a block: ``block_forward`` and ``block_backward``, compiled or not."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]


def check_compiler() -> None:
    """Refuses a machine on which torch.compile finds no C++ compiler.

    Raises:
        InputError: no compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "training.compile is on, but no C++ compiler is found; install one (on Debian "
            "`apt-get install g++`), name it in CXX, or set training.compile to false"
        ) from error


def compile_mix(networks: FeatureNetworks, dtype: torch.dtype) -> None:
    """Has ``networks`` mix by compiled passes in training on a CPU, and compiles them now.

    One graph a pass: the counts of a block's features and rows stay open. ``compile_seconds`` says
    how long it took; what torch keeps in its cache makes the next process much faster.

    Args:
        dtype: bfloat16 where training runs under autocast, else float32.
    """
    started = time.perf_counter()
    passes = Passes(torch.compile(block_forward), torch.compile(block_backward))
    features, size = networks.input_weight.shape
    count, rows = min(features, BLOCK_FEATURES), BLOCK_ROWS
    xw, gradient = torch.zeros(2, count, rows), torch.zeros(rows, size)
    vectors = torch.zeros(count, 7, size)
    weight = torch.zeros(count, size, 2 * size, dtype=dtype)
    random = torch.zeros(count, rows, size, dtype=torch.uint8) if networks.dropped else None
    _leave_open(xw, 1, 2)
    _leave_open(gradient, 0)
    _leave_open(vectors, 0)
    _leave_open(weight, 0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if random is not None:
            _leave_open(random, 0, 1)
        _, *kept = passes.forward(xw, vectors, weight, random, networks.dropped)
        passes.backward(xw, gradient, vectors, weight, random, networks.dropped, *kept)
    networks.mixed_by = partial(CompiledMix.apply, passes)
    networks.compile_seconds = time.perf_counter() - started


def _leave_open(tensor: Tensor, *axes: int) -> None:
    torch._dynamo.maybe_mark_dynamic(tensor, axes)


def block_forward(
    xw: Tensor, vectors: Tensor, weight: Tensor, random: Tensor | None, dropped: int
) -> tuple[Tensor, ...]:
    """Some features' networks on some rows, weighted and summed.

    Minima and maxima instead of comparisons, which cost several times as much once fused.

    Args:
        xw: The features' values and their weights in the mix [2, features, rows].
        vectors: [features, 7, size]: what scales and shifts the input, the skip (2 each) and the
            norm (its scale), and the bias of value and gate.
        weight: Merged and times dropout's scale [features, size, 2 size]; products and what is
            kept are of its type.
        random: uint8 [features, rows, size]; an entry below ``dropped`` is dropped.

    Returns:
        The sum over features [rows, size], without the norm's shift; and what ``block_backward``
        needs: the matrix's input, value, gate, normed output and 1 / standard deviation.
    """
    x, w = xw.unsqueeze(-1)
    u, b, v, c, gamma, value_bias, gate_bias = vectors.unsqueeze(2).unbind(1)
    size, wide, kept = gamma.shape[-1], vectors.dtype, weight.dtype
    raised = x * u + b
    inner = raised.clamp(min=0) + (torch.exp(raised.clamp(max=0)) - 1)
    if random is not None:
        inner = inner * _kept_mask(random, dropped, wide)
    inner = inner.to(kept)
    both = torch.bmm(inner, weight)
    value = both[..., :size].to(wide) + value_bias
    gate = torch.sigmoid(both[..., size:].to(wide) + gate_bias)
    gated = value * gate
    out = x * v + c + gated
    centred = out - out.mean(-1, keepdim=True)
    inverse_std = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    normed = centred * inverse_std
    mixed = (normed * (gamma * w)).sum(0)
    return mixed, inner, value.to(kept), gate.to(kept), normed.to(kept), inverse_std


def block_backward(
    xw: Tensor, gradient: Tensor, vectors: Tensor, weight: Tensor, random: Tensor | None,
    dropped: int, inner: Tensor, value: Tensor, gate: Tensor, normed: Tensor, inverse_std: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of ``xw``, ``vectors`` and ``weight`` from that of the sum [rows, size].

    As ``_through_norm`` and ``_through_gate`` in ``feature_networks``.
    """
    x, w = xw.unsqueeze(-1)
    u, _, v, _, gamma, _, _ = vectors.unsqueeze(2).unbind(1)
    size, wide, kept = gamma.shape[-1], vectors.dtype, inner.dtype
    value, gate, normed = value.to(wide), gate.to(wide), normed.to(wide)
    product = normed * gradient
    dw = (product * gamma).sum(-1)
    total = (gamma[:, 0] @ gradient.t()).unsqueeze(-1)
    dnormed = gamma * gradient - total / size - normed * (dw.unsqueeze(-1) / size)
    dout = dnormed * (inverse_std * w)
    dvalue = dout * gate
    dgate = dvalue * value * (1 - gate)
    # Each half converted by itself: after the cat, it would be stored twice.
    dboth = torch.cat([dvalue.to(kept), dgate.to(kept)], dim=-1)
    dweight = torch.bmm(inner.transpose(1, 2), dboth)
    slope = inner.to(wide).clamp(max=0) + 1
    if random is not None:
        slope = slope * _kept_mask(random, dropped, wide)
    draised = torch.bmm(dboth, weight.transpose(1, 2)).to(wide) * slope
    dx = (dout * v).sum(-1) + (draised * u).sum(-1)
    dvectors = torch.stack(
        [(draised * x).sum(1), draised.sum(1), (dout * x).sum(1), dout.sum(1),
         (product * w).sum(1)], dim=1,
    )  # fmt: skip
    dbias = dboth.to(wide).sum(1).unflatten(-1, (2, size))
    return torch.stack([dx, dw]), torch.cat([dvectors, dbias], dim=1), dweight


def _kept_mask(random: Tensor, dropped: int, dtype: torch.dtype) -> Tensor:
    """As ``dropout.kept_mask``, from its random bytes."""
    return (random.to(dtype) - (dropped - 1)).clamp(0, 1)


@dataclass(frozen=True)
class _Packed:
    """All that the blocks of a pass read, in few tensors: each costs a check at every call."""

    xw: Tensor
    vectors: Tensor
    weight: Tensor

    @staticmethod
    def of(blocks: Blocks, tensors: tuple[Tensor, ...]) -> "_Packed":
        x, w, u, b, v, c, weight, bias, gamma, _ = tensors
        biases = bias.view(len(u), 2, -1)
        return _Packed(
            torch.stack([x.t(), w.t()]),
            torch.cat([torch.stack([u, b, v, c, gamma], dim=1), biases], dim=1),
            (weight * blocks.scale).to(blocks.dtype),
        )

    def over(
        self, blocks: Blocks
    ) -> Iterator[tuple[int, slice, slice, tuple[Tensor, Tensor, Tensor]]]:
        """(seed, rows, features, inputs) of every block."""
        for seed, rows, of in blocks.over(self.xw[0].t()):
            inputs = self.xw[:, of, rows].contiguous(), self.vectors[of], self.weight[of]
            yield seed, rows, of, inputs


def _random(blocks: Blocks, xw: Tensor, size: int, seed: int) -> Tensor | None:
    """The bytes behind ``Blocks.dropout_mask``."""
    if not blocks.dropped:
        return None
    shape = torch.Size((*xw.shape[1:], size))
    return random_bytes(shape, torch.Generator().manual_seed(seed))


class CompiledMix(torch.autograd.Function):
    """What ``_Mix`` computes, from the same blocks and the same dropout, by compiled passes."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, blocks: Blocks, *tensors: Tensor) -> Tensor:
        w, beta = tensors[1], tensors[-1]
        mixed = w @ beta
        kept: dict[int, list[Tensor | None]] = {}
        room = blocks.kept_bytes if any(ctx.needs_input_grad) else 0
        for seed, rows, _, inputs in _Packed.of(blocks, tensors).over(blocks):
            random = _random(blocks, inputs[0], mixed.shape[-1], seed)
            part, *rest = passes.forward(*inputs, random, blocks.dropped)
            mixed[rows] += part
            block = [random, *rest]
            room -= sum(tensor.nbytes for tensor in block if tensor is not None)
            if room > 0:
                kept[seed] = block
        ctx.save_for_backward(*tensors)
        ctx.passes, ctx.blocks, ctx.kept = passes, blocks, kept
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        blocks, passes, tensors = ctx.blocks, ctx.passes, ctx.saved_tensors
        w, beta = tensors[1], tensors[-1]
        gradient = gradient.contiguous()
        packed = _Packed.of(blocks, tensors)
        dxw = torch.stack([torch.zeros_like(packed.xw[0]), beta @ gradient.t()])
        dvectors, dweight = torch.zeros_like(packed.vectors), torch.zeros_like(tensors[6])
        with torch.autocast("cpu", enabled=False):
            for seed, rows, of, inputs in packed.over(blocks):
                block = ctx.kept.pop(seed, None)
                if block is None:
                    random = _random(blocks, inputs[0], beta.shape[-1], seed)
                    _, *rest = passes.forward(*inputs, random, blocks.dropped)
                else:
                    random, *rest = block
                xw, *weights = inputs
                parts = passes.backward(xw, gradient[rows], *weights, random, blocks.dropped, *rest)
                dxw[:, of, rows] += parts[0]
                dvectors[of] += parts[1]
                dweight[of] += parts[2]
        du, db, dv, dc, dgamma, *dbias = dvectors.unbind(1)
        return (
            None, None, dxw[0].t(), dxw[1].t(), du, db, dv, dc, dweight.mul_(blocks.scale),
            torch.cat(dbias, dim=-1).unsqueeze(1), dgamma, w.t() @ gradient,
        )  # fmt: skip
