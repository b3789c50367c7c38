"""The costly parts of a training step on a CPU as C++ (``kernels/``), compiled on the spot.

The same mathematics as ``feature_networks`` and ``temporal``, which is what runs without a
compiler, out of training and on a GPU. A kernel keeps a tile of rows in a core's cache through all
its passes and computes it again for the backward pass: only outputs wait in memory between the two.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from ctypes import c_int, c_long, c_uint64, c_void_p
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atft_model.config import ModelConfig
from atft_model.errors import InputError
from atft_model.model.dropout import STEPS, Dropout
from atft_model.model.feature_networks import Blocks, FeatureNetworks
from atft_model.model.temporal import TemporalEncoder

SOURCES = Path(__file__).parent / "kernels"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-fPIC",
)  # fmt: skip
MATRICES = (4, 2, 1, 1, 2)
"""Outputs, in hidden sizes, of the encoder's packed matrices: recurrent, the skip's gate, the
enrichment's input, hidden and gate."""


class Takes(NamedTuple):
    """What a kernel takes, in this order, after the number of threads."""

    sizes: int
    inputs: int
    outputs: int
    """After the dropout's seed and its number of dropped entries of 256."""


KERNELS = {
    "mix_forward": Takes(2, 4, 1),
    "mix_backward": Takes(2, 5, 5),
    "encoder_forward": Takes(4, 5, 1),
    "encoder_backward": Takes(4, 6, 6),
    "dropout_masks": Takes(1, 0, 1),
}


def compiler() -> list[str]:
    """The C++ compiler and its first arguments: what ``CXX`` says, else g++.

    Raises:
        InputError: it is not there.
    """
    said = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(said[0]) is None:
        raise InputError(
            f"training.compile is on, but there is no {said[0]} (the C++ compiler that CXX names, "
            "or else g++); install it (on Debian `apt-get install g++`), name another in CXX, or "
            "set training.compile to false"
        )
    return said


def check_kernels(model: ModelConfig) -> None:
    """Compiles the kernels for ``model``, or says why it cannot train by them.

    Raises:
        InputError: a setting that they do not compute, no compiler, or one that fails.
    """
    for setting, wrong, needed in (
        ("hidden_size", model.hidden_size % 4, "a multiple of 4"),
        ("lstm_layers", model.lstm_layers > 1, "1"),
    ):
        if wrong:
            raise InputError(
                f"training.compile is on, and model.{setting} is {getattr(model, setting)}: its "
                f"kernels need {needed}; change it, or set training.compile to false"
            )
    kernels(model.hidden_size)


@dataclass(frozen=True)
class Kernels:
    """A loaded library, and how long compiling it took."""

    library: ctypes.CDLL
    seconds: float


@cache
def kernels(size: int) -> Kernels:
    """The kernels for models of hidden size ``size``, compiled now: seconds, once a process.

    Threads come from the OpenMP library that torch has already loaded: linked to another, two
    teams of threads would wait for each other on the same cores.

    Raises:
        InputError: no compiler, or one that fails.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for source in sorted(SOURCES.glob("*.cpp")):
            objects.append(f"{folder}/{source.stem}.o")
            _call([*compiler(), *FLAGS, f"-DSIZE={size}", "-c", str(source), "-o", objects[-1]])
        library = f"{folder}/kernels.so"
        _call([*compiler(), "-shared", *objects, "-o", library])
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            raise InputError(
                f"training.compile: what {shlex.join(compiler())} compiled cannot be loaded "
                f"({error}); use g++ (CXX), point TMPDIR to a folder whose files may be executed, "
                "or set training.compile to false"
            ) from error
    for name, takes in KERNELS.items():
        function = getattr(loaded, name)
        function.argtypes = [
            c_int, *[c_long] * takes.sizes, *[c_void_p] * takes.inputs, c_uint64, c_int,
            *[c_void_p] * takes.outputs,
        ]  # fmt: skip
        function.restype = None
    return Kernels(loaded, time.perf_counter() - started)


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed, said = done.returncode, done.stderr.strip()[-2000:]
    except OSError as error:
        failed, said = True, str(error)
    if failed:
        raise InputError(
            f"training.compile: {shlex.join(command)} failed ({failed}):\n{said}\n"
            "name another compiler in CXX, or set training.compile to false"
        )


@dataclass(frozen=True)
class Call:
    """What every kernel is told: by how many threads, its sizes and its dropout."""

    size: int
    """Hidden size that the kernels are compiled for."""
    sizes: tuple[int, ...]
    seed: int
    dropped: int
    threads: int = field(default_factory=torch.get_num_threads)

    def __call__(self, name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        """Runs kernel ``name`` on tensors as it takes them; only their addresses reach it.

        Raises:
            ValueError: one that is elsewhere, of another type or not contiguous.
        """
        for tensor in (*inputs, *outputs):
            found = tensor.device.type, tensor.dtype, tensor.is_contiguous()
            if found != ("cpu", torch.float32, True):
                raise ValueError(
                    f"{name}: takes contiguous float32 on the CPU, found (device, type, "
                    f"contiguous) {found}"
                )
        getattr(kernels(self.size).library, name)(
            self.threads, *self.sizes, *(tensor.data_ptr() for tensor in inputs),
            self.seed, self.dropped, *(tensor.data_ptr() for tensor in outputs),
        )  # fmt: skip


def compile_kernels(networks: FeatureNetworks, encoder: TemporalEncoder) -> float:
    """Has both compute by kernels in training on a CPU; returns the seconds that compiling took.

    Raises:
        InputError: as ``kernels`` does.
    """
    compiled = kernels(networks.size)
    networks.mixed_by = NativeMix(networks.size)
    encoder.enriched_by = NativeEnrichment(networks.size)
    return compiled.seconds


@dataclass(frozen=True)
class NativeMix:
    """``feature_networks._Mix`` by kernels; dropout from a counter instead of torch's generator."""

    size: int

    def __call__(self, blocks: Blocks, *tensors: Tensor) -> Tensor:
        call = Call(self.size, tuple(tensors[0].shape), blocks.seed, blocks.dropped)
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

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(
        self, encoder: TemporalEncoder, days: Tensor, context: Tensor, lookback: int
    ) -> Tensor:
        """Enriched days [runs * length * stocks, lookback, size].

        Args:
            days: [runs, days, stocks, size]; each window reads its days where they stand.
            context: [runs, stocks, context]
        """
        lstm, skip, enrichment = encoder.lstm, encoder.lstm_skip, encoder.enrichment
        output, into_hidden = enrichment.gated_skip, enrichment.context
        runs, all_days, stocks, size = days.shape
        expected = (runs, stocks, -1 if into_hidden is None else into_hidden.in_features)
        if size != self.size or all_days < lookback or stocks == 0 or context.shape != expected:
            raise ValueError(
                f"kernels for hidden size {self.size}, windows of {lookback} days and context "
                f"{expected} were given days {tuple(days.shape)}, context {tuple(context.shape)}"
            )
        assert into_hidden is not None
        dropped = _dropped(skip.dropout)
        if dropped != _dropped(output.dropout):
            raise ValueError("the kernels take one rate of dropout, and the encoder has two")
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
            vectors = torch.cat([
                skip.gate.bias, skip.norm.weight, skip.norm.bias, enrichment.hidden.bias,
                output.gate.bias, output.norm.weight, output.norm.bias,
            ])  # fmt: skip
            call = Call(size, (runs, all_days, stocks, lookback), seed, dropped)
            return _NativeEnrichment.apply(call, gates, days.contiguous(), held, matrices, vectors)


def _dropped(dropout: Dropout) -> int:
    return dropout.dropped if dropout.training else 0


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
        dmatrices, dvectors = (torch.zeros(ctx.call.threads, len(t)) for t in (matrices, vectors))
        ctx.call(
            "encoder_backward", (gates, days, held, forward, matrices, vectors),
            (gradient.contiguous(), dgates, ddays, dheld, dmatrices, dvectors),
        )  # fmt: skip
        dforward = _transposed(dmatrices.sum(0), days.shape[-1], back=True)
        return None, dgates, ddays, dheld, dforward, dvectors.sum(0)


def _transposed(matrices: Tensor, size: int, back: bool = False) -> Tensor:
    """The packed matrices, each [out, in], as [in, out]; or ``back``."""
    parts = matrices.split([size * size * outputs for outputs in MATRICES])
    return torch.cat(
        [part.view(size, -1).t().reshape(-1) if back else part.view(-1, size).t().reshape(-1)
         for part in parts]
    )  # fmt: skip
