"""The costly parts of a training step on a CPU as C++ (``kernels/``), compiled on the spot.

The same mathematics as ``feature_networks`` and ``temporal``, which is what runs without a
compiler, out of training and on a GPU. A kernel keeps a tile of rows in a core's cache through all
its passes and computes it again for the backward pass: nothing waits in memory between the two.
"""

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from ctypes import c_int, c_long, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atft_model.errors import InputError
from atft_model.model.dropout import STEPS
from atft_model.model.feature_networks import Blocks, FeatureNetworks
from atft_model.model.temporal import TemporalEncoder

SOURCES = Path(__file__).parent / "kernels"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-fPIC",
)  # fmt: skip
KERNELS = {
    "mix_forward": (2, 4, 1),
    "mix_backward": (2, 5, 5),
    "encoder_forward": (4, 5, 1),
    "encoder_backward": (4, 6, 6),
    "dropout_masks": (1, 0, 1),
}
"""How many sizes each takes; tensors before its dropout (seed, dropped of 256), and after."""
log = logging.getLogger(__name__)


def compiler() -> str:
    """The C++ compiler: what ``CXX`` names, else g++.

    Raises:
        InputError: neither is there.
    """
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    for name in named or ["g++"]:
        found = shutil.which(name)
        if found:
            return found
    raise InputError(
        f"training.compile is on, but no C++ compiler is found (CXX names {named[0]!r})"
        if named
        else "training.compile is on, but no C++ compiler is found; install one (on Debian "
        "`apt-get install g++`), name it in CXX, or set training.compile to false"
    )


@cache
def kernels(size: int) -> ctypes.CDLL:
    """The kernels for models of hidden size ``size``, compiled now: seconds, once a process.

    Threads come from the OpenMP library that torch has already loaded: linked to another, two
    teams of threads would wait for each other on the same cores.

    Raises:
        InputError: no compiler, one that fails, or a size that is no multiple of 4.
    """
    if size % 4:
        raise InputError(
            f"training.compile is on, and model.hidden_size is {size}: its kernels need a multiple "
            "of 4; change it, or set training.compile to false"
        )
    command = [compiler(), *FLAGS, f"-DSIZE={size}"]
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for source in sorted(SOURCES.glob("*.cpp")):
            objects.append(f"{folder}/{source.stem}.o")
            _call([*command, "-c", str(source), "-o", objects[-1]])
        library = f"{folder}/kernels.so"
        _call([command[0], "-shared", *objects, "-o", library])
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            raise InputError(
                f"training.compile: what {command[0]} compiled cannot be loaded ({error}); use g++ "
                "(CXX), or set training.compile to false"
            ) from error
    for name, (sizes, before, after) in KERNELS.items():
        function = getattr(loaded, name)
        function.argtypes = (
            [c_int]
            + [c_long] * sizes
            + [c_void_p] * before
            + [c_uint64, c_int]
            + [c_void_p] * after
        )
        function.restype = None
    return loaded


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"training.compile: {shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}\n"
            "name another compiler in CXX, or set training.compile to false"
        )


@dataclass(frozen=True)
class Call:
    """What every kernel is told: by whom it is computed, its sizes and its dropout."""

    library: ctypes.CDLL
    sizes: tuple[int, ...]
    seed: int
    dropped: int

    def __call__(self, name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        """Runs kernel ``name``; all tensors float32, contiguous."""
        for tensor in (*inputs, *outputs):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise ValueError(f"{name}: takes contiguous float32, was given {tensor.dtype}")
        getattr(self.library, name)(
            torch.get_num_threads(), *self.sizes, *(tensor.data_ptr() for tensor in inputs),
            self.seed, self.dropped, *(tensor.data_ptr() for tensor in outputs),
        )  # fmt: skip


def compile_kernels(networks: FeatureNetworks, encoder: TemporalEncoder) -> float:
    """Has both compute by kernels in training on a CPU; returns the seconds that compiling took.

    Raises:
        InputError: as ``kernels`` does, or more than one LSTM layer.
    """
    if encoder.lstm.num_layers > 1:
        raise InputError(
            f"training.compile is on, and model.lstm_layers is {encoder.lstm.num_layers}: its "
            "kernels have one; change it, or set training.compile to false"
        )
    started = time.perf_counter()
    library = kernels(networks.size)
    networks.mixed_by = NativeMix(library)
    encoder.enriched_by = NativeEnrichment(library)
    return time.perf_counter() - started


@dataclass(frozen=True)
class NativeMix:
    """``feature_networks._Mix`` by kernels; dropout from a counter instead of torch's generator."""

    library: ctypes.CDLL

    def __call__(self, blocks: Blocks, *tensors: Tensor) -> Tensor:
        x = tensors[0]
        call = Call(self.library, tuple(x.shape), blocks.seed, blocks.dropped)
        return _NativeMix.apply(call, blocks.scale, *tensors)


class _NativeMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, scale: float, *tensors: Tensor) -> Tensor:
        w, beta = tensors[1], tensors[-1]
        mixed = w @ beta
        call("mix_forward", _packed(scale, tensors), (mixed,))
        ctx.save_for_backward(*tensors)
        ctx.call, ctx.scale = call, scale
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tensors = ctx.saved_tensors
        w, beta = tensors[1], tensors[-1]
        gradient = gradient.contiguous()
        xt, wt, vectors, weight = _packed(ctx.scale, tensors)
        transposed = weight.transpose(1, 2).contiguous()
        dx, dw = torch.empty_like(xt), torch.empty_like(wt)
        dvectors, dweight = torch.zeros_like(vectors), torch.zeros_like(weight)
        ctx.call(
            "mix_backward",
            (xt, wt, vectors, weight, transposed),
            (gradient, dx, dw, dvectors, dweight),
        )
        du, db, dv, dc, dgamma, *dbias = dvectors.unbind(1)
        return (
            None, None, dx.t(), dw.t() + gradient @ beta.t(), du, db, dv, dc,
            dweight.mul_(ctx.scale), torch.cat(dbias, dim=-1).unsqueeze(1), dgamma,
            w.t() @ gradient,
        )  # fmt: skip


def _packed(scale: float, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and w [features, rows], the vectors [features, 7, size], the scaled weight."""
    x, w, u, b, v, c, weight, bias, gamma, _ = tensors
    vectors = torch.stack([u, b, v, c, gamma, *bias.squeeze(1).chunk(2, dim=-1)], dim=1)
    return x.t().contiguous(), w.t().contiguous(), vectors, weight * scale


class NativeEnrichment(nn.Module):
    """``TemporalEncoder.enrich`` on every window of the runs, by kernels, in float32.

    A module of its own for hooks; it has no parameters.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.library = library

    def forward(
        self, encoder: TemporalEncoder, days: Tensor, context: Tensor, lookback: int
    ) -> Tensor:
        """Enriched days [runs * length * stocks, lookback, size].

        Args:
            days: [runs, days, stocks, size]; each window reads its days where they stand.
            context: [runs, stocks, context]
        """
        lstm, skip, enrichment = encoder.lstm, encoder.lstm_skip, encoder.enrichment
        into_hidden = enrichment.context
        if into_hidden is None:
            raise ValueError("this encoder was built without a context")
        dropped = skip.dropout.dropped
        seed = int(torch.randint(2**62, ())) if dropped else 0
        with torch.autocast("cpu", enabled=False):
            days = days.float()
            gates = F.linear(
                days, lstm.get_parameter("weight_ih_l0"),
                lstm.get_parameter("bias_ih_l0") + lstm.get_parameter("bias_hh_l0"),
            )  # fmt: skip
            held = into_hidden(context.float()) + enrichment.input.bias
            scale = STEPS / (STEPS - dropped)
            matrices = torch.cat([
                matrix.reshape(-1) for matrix in (
                    lstm.get_parameter("weight_hh_l0"), skip.gate.weight * scale,
                    enrichment.input.weight, enrichment.hidden.weight,
                    enrichment.gated_skip.gate.weight * scale,
                )
            ])  # fmt: skip
            output = enrichment.gated_skip
            vectors = torch.cat([
                skip.gate.bias, skip.norm.weight, skip.norm.bias, enrichment.hidden.bias,
                output.gate.bias, output.norm.weight, output.norm.bias,
            ])  # fmt: skip
            sizes = (*days.shape[:3], lookback)
            call = Call(self.library, sizes, seed, dropped)
            return _NativeEnrichment.apply(call, gates, days.contiguous(), held, matrices, vectors)


class _NativeEnrichment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        gates, days, held, matrices, vectors = tensors
        runs, all_days, stocks, lookback = call.sizes
        windows = runs * (all_days - lookback + 1) * stocks
        enriched = torch.empty(windows, lookback, days.shape[-1])
        forward = _transposed(matrices, days.shape[-1])
        call("encoder_forward", (gates, days, held, forward, vectors), (enriched,))
        ctx.save_for_backward(*tensors)
        ctx.call = call
        return enriched

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gates, days, held, matrices, vectors = ctx.saved_tensors
        forward = _transposed(matrices, days.shape[-1])
        dgates, ddays, dheld = (torch.zeros_like(tensor) for tensor in (gates, days, held))
        threads = torch.get_num_threads()
        dmatrices, dvectors = (torch.zeros(threads, len(t)) for t in (matrices, vectors))
        ctx.call(
            "encoder_backward", (gates, days, held, forward, matrices, vectors),
            (gradient.contiguous(), dgates, ddays, dheld, dmatrices, dvectors),
        )  # fmt: skip
        dforward = _transposed(dmatrices.sum(0), days.shape[-1], back=True)
        return None, dgates, ddays, dheld, dforward, dvectors.sum(0)


def _transposed(matrices: Tensor, size: int, back: bool = False) -> Tensor:
    """The packed matrices, each [out, in], as [in, out]; or ``back``."""
    parts = matrices.split([size * size * outputs for outputs in (4, 2, 1, 1, 2)])
    return torch.cat(
        [part.view(size, -1).t().reshape(-1) if back else part.view(-1, size).t().reshape(-1)
         for part in parts]
    )  # fmt: skip
