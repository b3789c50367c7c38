"""One gated residual network per feature, batched, and their weighted sum in cache-sized blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from atft_model.model.dropout import STEPS, kept_mask

EPS = 1e-5
BLOCK_ROWS = 256
BLOCK_FEATURES = 16
"""A block of so many rows and features stays in a core's cache while it is worked on."""
KEPT_BYTES = 2**30 // 10
"""Intermediates that one forward pass keeps for its backward pass; later blocks are recomputed."""


class FeatureNetworks(nn.Module):
    """A gated residual network (Lim et al. 2021, eq. 2-5) per feature, without a Python loop.

    Feature j is a scalar x_j, so its network is a GRN with input size 1 and full width:
    LayerNorm(v_j x_j + c_j + GLU(V_j (W_j ELU(u_j x_j + b_j) + d_j) + e_j)). The biases and
    matrices of all features stand in one tensor each, first axis the feature. Dropout falls on the
    ELU's output, so that W_j and V_j are one linear map and are multiplied once a step, not once
    a row: a third less arithmetic than with dropout between them.
    """

    def __init__(self, features: int, size: int, dropout: float) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(features, size))
        self.input_bias = nn.Parameter(torch.empty(features, size))
        self.skip_weight = nn.Parameter(torch.empty(features, size))
        self.skip_bias = nn.Parameter(torch.zeros(features, size))
        self.hidden_weight = nn.Parameter(torch.empty(features, size, size))
        self.hidden_bias = nn.Parameter(torch.zeros(features, 1, size))
        self.gate_weight = nn.Parameter(torch.empty(features, size, 2 * size))
        self.gate_bias = nn.Parameter(torch.zeros(features, 1, 2 * size))
        self.norm_weight = nn.Parameter(torch.ones(features, size))
        self.norm_bias = nn.Parameter(torch.zeros(features, size))
        self.dropped = round(dropout * STEPS)
        self.size = size
        self.kept_bytes: int | None = None
        """In place of ``KEPT_BYTES``."""
        self.mixed_by: Callable[..., Tensor] = _Mix.apply
        """What mixes in training on a CPU; ``native`` puts compiled kernels in its place."""
        # As nn.Linear would initialise each feature's own layers: uniform, 1 / sqrt(fan in).
        for parameter in (self.input_weight, self.input_bias, self.skip_weight):
            nn.init.uniform_(parameter, -1.0, 1.0)
        for parameter in (self.hidden_weight, self.gate_weight):
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def forward(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "features rows size"]:
        """Every feature through its own network."""
        scalar = x.t().unsqueeze(-1)
        inner = F.elu(scalar * self.input_weight[:, None] + self.input_bias[:, None])
        inner = F.dropout(inner, self.dropped / STEPS, self.training)
        weight, bias = self.merged()
        out = scalar * self.skip_weight[:, None] + self.skip_bias[:, None]
        out = out + F.glu(torch.baddbmm(bias, inner, weight))
        normed = F.layer_norm(out, (self.size,), eps=EPS)
        return torch.addcmul(self.norm_bias[:, None], normed, self.norm_weight[:, None])

    def merged(self) -> tuple[Tensor, Tensor]:
        """The hidden layer and the gate as one linear map: [features, size, 2 size] and bias."""
        weight = torch.bmm(self.hidden_weight, self.gate_weight)
        return weight, torch.baddbmm(self.gate_bias, self.hidden_bias, self.gate_weight)

    def mix(
        self, x: Float[Tensor, "rows features"], weights: Float[Tensor, "rows features"]
    ) -> Float[Tensor, "rows size"]:
        """The sum over features of ``weights`` times their networks' outputs.

        On a CPU by ``_Mix``: the same numbers with a fraction of the memory traffic. There autocast
        has no say: bfloat16's conversions cost what its faster products save.
        """
        if x.device.type != "cpu":
            return torch.einsum("fns,nf->ns", self(x), weights)
        dropped = self.dropped if self.training else 0
        seed = int(torch.randint(2**62, ())) if dropped else 0
        kept_bytes = KEPT_BYTES if self.kept_bytes is None else self.kept_bytes
        own = self.input_weight.dtype
        mix = self.mixed_by if self.training else _Mix.apply
        with torch.autocast("cpu", enabled=False):
            weight, bias = self.merged()
            return mix(
                Blocks(dropped, seed, kept_bytes), x.to(own), weights.to(own),
                self.input_weight, self.input_bias, self.skip_weight, self.skip_bias, weight, bias,
                self.norm_weight, self.norm_bias,
            )  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """How a pass is cut up, and what decides its dropout: each block has a seed of its own."""

    dropped: int
    seed: int
    kept_bytes: int

    @property
    def scale(self) -> float:
        """Of what dropout leaves, so that the mean stays."""
        return STEPS / (STEPS - self.dropped)

    def over(self, x: Tensor) -> list[tuple[int, slice, slice]]:
        """(seed, rows, features) of every block."""
        rows, features = x.shape
        corners = [(r, f) for r in range(0, rows, BLOCK_ROWS)
                   for f in range(0, features, BLOCK_FEATURES)]  # fmt: skip
        return [(self.seed + number, slice(r, r + BLOCK_ROWS), slice(f, f + BLOCK_FEATURES))
                for number, (r, f) in enumerate(corners)]  # fmt: skip

    def dropout_mask(self, x: Tensor, seed: int) -> Tensor | None:
        """Of the shape of ``x``, 1 where kept and 0 where dropped; None when nothing is."""
        if not self.dropped:
            return None
        return kept_mask(x, self.dropped, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class _Kept:
    """What the backward pass of a block needs; [features, rows, size] unless said."""

    inner: Tensor
    mask: Tensor | None
    value: Tensor
    """Before the gate; a view of ``both``, as is ``gate``."""
    gate: Tensor
    both: Tensor
    normed: Tensor
    inverse_std: Tensor
    """[features, rows, 1]"""

    @property
    def bytes(self) -> int:
        """Of memory."""
        return 20 * self.inner.numel()


class _Mix(torch.autograd.Function):
    """``FeatureNetworks`` and the weighted sum over features, forward and backward by hand.

    Autograd would make some forty passes over [features, rows, size] tensors, each larger than any
    cache. Here a block makes all its passes, in place, before the next one starts. With
    n = normed output, g = gradient of the mixed row, the backward pass uses that the gradient of n
    is w γ ⊙ g, so the two means of LayerNorm's derivative are matrix products.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Blocks, *tensors: Tensor) -> Tensor:
        x, w, u, b, v, c, weight, bias, gamma, beta = tensors
        mixed = w @ beta
        kept: dict[int, _Kept] = {}
        room = blocks.kept_bytes if any(ctx.needs_input_grad) else 0
        for seed, rows, of in blocks.over(x):
            block = _block(
                x[rows, of], u[of], b[of], v[of], c[of], weight[of], bias[of], blocks, seed
            )
            weighted = block.normed * w[rows, of].t().unsqueeze(-1)
            for one, scale in zip(weighted, gamma[of], strict=True):
                mixed[rows].addcmul_(one, scale)
            room -= block.bytes
            if room > 0:
                kept[seed] = block
        ctx.save_for_backward(*tensors)
        ctx.blocks, ctx.kept = blocks, kept
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w, u, b, v, c, weight, bias, gamma, beta = ctx.saved_tensors
        gradient = gradient.contiguous()
        grads = [torch.zeros_like(t) for t in (u, b, v, c, weight, bias, gamma)]
        du, db, dv, dc, dweight, dbias, dgamma = grads
        dx = torch.zeros_like(x) if ctx.needs_input_grad[1] else None  # only monitors ask for it
        dw = gradient @ beta.t()
        dbeta = w.t() @ gradient
        for seed, rows, of in ctx.blocks.over(x):
            kept = ctx.kept.pop(seed, None) or _block(
                x[rows, of], u[of], b[of], v[of], c[of], weight[of], bias[of], ctx.blocks, seed
            )
            dout = _through_norm(
                kept, w[rows, of], gamma[of], gradient[rows], dw[rows, of], dgamma[of]
            )
            x1 = torch.stack([x[rows, of].t(), torch.ones_like(x[rows, of].t())], dim=1)
            skip = torch.bmm(x1, dout)
            dv[of] += skip[:, 0]
            dc[of] += skip[:, 1]
            dpre = _through_gate(
                kept, dout, weight[of], x1[:, 1:], dweight[of], dbias[of], ctx.blocks.scale
            )
            inner = torch.bmm(x1, dpre)
            du[of] += inner[:, 0]
            db[of] += inner[:, 1]
            if dx is not None:
                dscalar = torch.bmm(dpre, u[of].unsqueeze(-1))
                dscalar.baddbmm_(dout, v[of].unsqueeze(-1))
                dx[rows, of] += dscalar.squeeze(-1).t()
        return None, dx, dw, du, db, dv, dc, dweight, dbias, dgamma, dbeta


def _block(
    x: Tensor, u: Tensor, b: Tensor, v: Tensor, c: Tensor, weight: Tensor, bias: Tensor,
    blocks: Blocks, seed: int,
) -> _Kept:  # fmt: skip
    """The networks of some features on some rows, up to the normed output."""
    scalar = x.t().unsqueeze(-1)
    inner = F.elu_(torch.addcmul(b[:, None], scalar, u[:, None]))
    mask = blocks.dropout_mask(inner, seed)
    if mask is not None:
        inner.mul_(mask)
    both = torch.baddbmm(bias, inner, weight, alpha=blocks.scale)
    value, gate = both.chunk(2, dim=-1)
    gate.sigmoid_()
    out = torch.addcmul(c[:, None], scalar, v[:, None]).addcmul_(value, gate)
    normed, _, inverse_std = torch.native_layer_norm(out, out.shape[-1:], None, None, EPS)
    return _Kept(inner, mask, value, gate, both, normed, inverse_std)


def _through_norm(
    kept: _Kept, w: Tensor, gamma: Tensor, gradient: Tensor, dw: Tensor, dgamma: Tensor
) -> Tensor:
    """Gradient of LayerNorm's input [features, rows, size]; adds to ``dw`` and ``dgamma``.

    With m = γ ⊙ g: w / σ (m - mean(m) - n mean(m n)), means over ``size``.
    """
    size = gamma.shape[-1]
    product = kept.normed * gradient
    along = torch.bmm(product, gamma.unsqueeze(-1)).squeeze(-1)
    dw += along.t()
    weights = w.t()
    dgamma += torch.bmm(weights.unsqueeze(1), product).squeeze(1)
    total = (gamma @ gradient.t()).unsqueeze(-1)
    # size (mean(m) - m) + n sum(m n), then times -w / (size σ): the same with fewer passes.
    dout = torch.addcmul(total, gradient, gamma[:, None], value=-size, out=product)
    dout.addcmul_(kept.normed, along.unsqueeze(-1))
    return dout.mul_(kept.inverse_std * weights.unsqueeze(-1) / -size)


def _through_gate(
    kept: _Kept, dout: Tensor, weight: Tensor, ones: Tensor, dweight: Tensor, dbias: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """Gradient before the ELU [features, rows, size]; adds to ``dweight`` and ``dbias``."""
    dboth = torch.empty_like(kept.both)
    dvalue, dgate = dboth.chunk(2, dim=-1)
    torch.mul(dout, kept.gate, out=dvalue)
    torch.ops.aten.sigmoid_backward.grad_input(dout * kept.value, kept.gate, grad_input=dgate)
    dbias += torch.bmm(ones, dboth)
    dweight.baddbmm_(kept.inner.transpose(1, 2), dboth, alpha=scale)
    dinner = torch.bmm(dboth, weight.transpose(1, 2)).mul_(scale)
    if kept.mask is not None:
        dinner.mul_(kept.mask)
    return torch.ops.aten.elu_backward(dinner, 1.0, 1.0, 1.0, True, kept.inner)
