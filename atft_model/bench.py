"""Training throughput and memory on a random panel, by the training loop itself.

Needs no data, Dagster or Polars, so that it runs on a bare machine with a GPU.
"""

import datetime
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atft_model.config import RunConfig
from atft_model.data.batches import fit_target_scale
from atft_model.data.graph import GraphConfig, StockGraph
from atft_model.data.panel import Panel, fit_statistics
from atft_model.data.splits import SplitConfig, split_dates
from atft_model.errors import InputError
from atft_model.run import (
    build_trainer,
    check_compile,
    choose_device,
    describe_device,
    training_data,
)
from atft_model.training.loop import Progress, Trainer
from atft_model.training.reporter import Reporter

HORIZONS = (1, 5, 10, 20)


@dataclass(frozen=True)
class BenchSize:
    """What the panel looks like, and how long to measure."""

    dates: int = 600
    stocks: int = 300
    features: int = 82
    steps: int = 6
    repeats: int = 3
    monitor_rounds: int = 4


def random_panel(size: BenchSize, seed: int = 0) -> Panel:
    """Independent normal features and returns; every stock trades every day."""
    rng = np.random.default_rng(seed)
    shape = (size.dates, size.stocks)
    present = np.ones(shape, dtype=bool)
    start = datetime.date(2020, 1, 1)
    return Panel(
        features=rng.standard_normal((*shape, size.features), dtype=np.float32),
        observed=present,
        tradable=present,
        targets=0.02 * rng.standard_normal((*shape, len(HORIZONS)), dtype=np.float32),
        daily_return=0.02 * rng.standard_normal(shape, dtype=np.float32),
        sector=rng.integers(1, 12, size.stocks).astype(np.int16),
        market=rng.integers(1, 4, size.stocks).astype(np.int16),
        dates=tuple(start + datetime.timedelta(days=day) for day in range(size.dates)),
        codes=tuple(f"S{stock:05d}" for stock in range(size.stocks)),
        feature_names=tuple(f"feature_{number}" for number in range(size.features)),
        normalizers=("cross_section",) * size.features,
        horizons=HORIZONS,
        sectors=("unknown", *(f"sector_{number}" for number in range(11))),
        markets=("unknown", *(f"market_{number}" for number in range(3))),
        split=split_dates(size.dates, HORIZONS, SplitConfig()),
        source="bench",
    )


def random_graph(panel: Panel, neighbours: int, seed: int = 0) -> StockGraph:
    """One graph of random neighbours for all dates."""
    rng = np.random.default_rng(seed)
    shape = (1, len(panel.codes), neighbours)
    return StockGraph(
        refresh=np.zeros(1, dtype=np.int32),
        neighbours=rng.integers(0, len(panel.codes), shape).astype(np.int32),
        correlation=rng.random(shape, dtype=np.float32),
        panel_hash=panel.hash,
    )


def measure(config: RunConfig, size: BenchSize) -> dict[str, Any]:
    """Trains a few steps per repeat; windows per second of each, memory, and where time goes."""
    device = choose_device(config.training.device)
    check_compile(config, device)
    config = replace(config, training=replace(config.training, max_steps_per_epoch=size.steps))
    torch.manual_seed(config.training.seed)
    panel = random_panel(size)
    data = training_data(
        config, panel, random_graph(panel, GraphConfig().neighbours),
        fit_statistics(panel, panel.split.train), fit_target_scale(panel, panel.split.train),
        device,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, data, Path(folder), Reporter(), identity={})
        progress = Progress(epoch=1)
        _train(trainer, progress)
        timed = [_timed(trainer, progress, device) for _ in range(size.repeats)]
        monitors = monitor_cost(trainer, progress, size.monitor_rounds)
        # Before the hooks below: they hold on to activations.
        peak = _peak_bytes(device)
        parts, windows = time_by_part(trainer, progress, device)
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "config": asdict(config.model) | {
            "precision": config.training.precision,
            "batch_windows": config.training.batch_windows,
            "run_length": config.training.run_length,
            "kept_gib": config.training.kept_gib,
            "compile": config.training.compile,
        },
        "panel": asdict(size),
        "parameters": parameters,
        "panel_bytes": int(panel.features.nbytes),
        "windows_per_second": [windows / wall for windows, wall, _ in timed],
        "windows_per_cpu_second": [windows / cpu for windows, _, cpu in timed],
        "peak_bytes": peak,
        "compile_seconds": trainer.model.compile_seconds,
        "monitors": monitors,
        "seconds_by_part": parts,
        "windows_by_part": windows,
    }  # fmt: skip


def monitor_cost(trainer: Trainer, progress: Progress, rounds: int) -> dict[str, Any]:
    """What all monitors cost, as a share of a step without any.

    On: everything that can be read, at the cadence of an epoch of so many steps. Off: no gradients,
    hooks or lines, and one reading an epoch. Each round takes the same steps once on and once off,
    in an order that turns from round to round, so that a drift of the machine cancels. On a CPU in
    processor seconds.

    Returns:
        ``share``: the rounds' median, None without any; ``shares`` of each round; ``reading_every``
        and ``steps``.
    """
    observer = trainer.observer
    before = observer.config, observer.hooks.log_lines, observer.cadence
    shares = []
    for number in range(rounds):
        seconds = {}
        for on in (True, False) if number % 2 == 0 else (False, True):
            observer.config = replace(
                before[0], gradient_monitor=on, encoder_hooks=on, adaptive_norm_debug=on
            )
            observer.hooks.log_lines = on
            observer.cadence = before[2] if on else trainer.steps_per_epoch + 1
            # The same dates in both, and none in the middle of a cycle of readings.
            trainer.order = np.random.default_rng(number)
            progress.step = 0
            seconds[on] = _clocked(trainer, progress)
        shares.append(seconds[True] / seconds[False] - 1)
    observer.config, observer.hooks.log_lines, observer.cadence = before
    return {
        "share": float(np.median(shares)) if shares else None,
        "shares": shares,
        "reading_every": float(before[2]),
        "steps": float(trainer.steps_per_epoch),
    }


def _clocked(trainer: Trainer, progress: Progress) -> float:
    """Seconds of one epoch's steps: of the processor on a CPU, else of the clock."""
    device = trainer.data.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait(device)
    started = clock()
    _train(trainer, progress)
    _wait(device)
    return clock() - started


def _timed(trainer: Trainer, progress: Progress, device: torch.device) -> tuple[int, float, float]:
    """Windows, wall seconds and CPU seconds of one epoch's steps.

    CPU seconds, of all threads, can be compared on a machine that is shared with other work.
    """
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    windows = _train(trainer, progress)
    _wait(device)
    return windows, time.perf_counter() - wall, time.process_time() - cpu


def _train(trainer: Trainer, progress: Progress) -> int:
    """One epoch's steps; the windows seen."""
    before = progress.windows
    progress.step_in_epoch = 0
    trainer.train_epoch(progress)
    return progress.windows - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    """On the GPU, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_by_part(
    trainer: Trainer, progress: Progress, device: torch.device
) -> tuple[dict[str, dict[str, float]], int]:
    """Seconds of one epoch's steps in each part, forward and backward; and the windows seen.

    Measured with hooks that wait for the device, so the sum is a little above an undisturbed step;
    ``rest`` is what lies outside the named parts: batches, losses, clipping, monitors. Where the
    encoder's intermediates are computed again, that is part of its forward time.
    """
    model = trainer.model
    encoder = model.temporal_encoder
    parts: dict[str, list[nn.Module]] = {
        "variable selection": [model.variable_selection],
        **(
            {"lstm": [encoder.lstm], "enrichment": [encoder.lstm_skip, encoder.enrichment]}
            if encoder.enriched_by is None
            else {"lstm, enrichment": [encoder.enriched_by]}
        ),
        "attention": [encoder.attention, encoder.attention_skip],
        "graph attention": [model.graph_attention],
        "head": [model.backbone_projection, model.adaptive_norm, model.gated_residual, model.head],
    }
    clock: dict[str, dict[str, float]] = {part: {"forward": 0.0, "backward": 0.0} for part in parts}
    clock["optimizer"] = {"step": 0.0}
    handles: list[Any] = [model.variable_selection.register_forward_pre_hook(with_gradient)]
    handles += [
        handle
        for part, modules in parts.items()
        for module in modules
        for handle in _watch(module, clock[part], device)
    ]
    start, stop = _stopwatch(clock["optimizer"], device)
    handles += [
        trainer.optimizer.register_step_pre_hook(start("step")),
        trainer.optimizer.register_step_post_hook(stop("step")),
    ]
    _wait(device)
    started = time.perf_counter()
    windows = _train(trainer, progress)
    _wait(device)
    whole = time.perf_counter() - started
    for handle in handles:
        handle.remove()
    named = sum(sum(seconds.values()) for seconds in clock.values())
    return clock | {"rest": {"all": whole - named}}, windows


def with_gradient(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Makes the first module's inputs ask for a gradient: else its backward pass seems to end where
    it begins, because a module's backward ends where its inputs have theirs."""
    return tuple(x if x.requires_grad else x.detach().requires_grad_() for x in inputs)


def _watch(module: nn.Module, clock: dict[str, float], device: torch.device) -> list[Any]:
    start, stop = _stopwatch(clock, device)
    return [
        module.register_forward_pre_hook(start("forward")),
        module.register_forward_hook(stop("forward")),
        module.register_full_backward_pre_hook(start("backward")),
        module.register_full_backward_hook(stop("backward")),
    ]


Hooks = Callable[[str], Callable[..., None]]


def _stopwatch(clock: dict[str, float], device: torch.device) -> tuple[Hooks, Hooks]:
    """Hooks that start, and that stop and add to ``clock``, by what is timed."""
    began: dict[str, float] = {}

    def start(what: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            _wait(device)
            began[what] = time.perf_counter()

        return hook

    def stop(what: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            _wait(device)
            clock[what] += time.perf_counter() - began[what]

        return hook

    return start, stop


def memory_limit(panel_bytes: int) -> int:
    """What training may take at its peak: twice the panel (on disk and on the device) + 1.5 GiB."""
    return 2 * panel_bytes + 3 * 2**29


def show(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """The result as a table for a terminal; with an earlier one, its figures beside it."""
    speeds, per_cpu = result["windows_per_second"], result["windows_per_cpu_second"]
    limit = memory_limit(result["panel_bytes"])
    met = "within" if result["peak_bytes"] <= limit else "ABOVE"
    lines = [
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}",
        f"{result['panel']['stocks']} stocks, {result['panel']['features']} features, lookback "
        f"{result['config']['lookback']}, hidden {result['config']['hidden_size']}, batch "
        f"{result['config']['batch_windows']}, runs of {result['config']['run_length']}, "
        f"{result['config']['precision']}, {result['parameters']:,} parameters",
        f"{'windows/s':<20}{np.median(speeds):>12,.0f}   "
        f"({min(speeds):,.0f} to {max(speeds):,.0f} in {len(speeds)} repeats; "
        f"{np.median(per_cpu):,.0f} per CPU second)",
        f"{'peak memory, MiB':<20}{result['peak_bytes'] / 2**20:>12,.0f}   "
        f"({met} 2 × panel + 1.5 GiB = {limit / 2**20:,.0f})",
    ]
    if result["compile_seconds"] is not None:
        lines.append(
            f"{'compiling, s':<20}{result['compile_seconds']:>12,.1f}   (before all that is timed)"
        )
    monitors, shares = result["monitors"], result["monitors"]["shares"]
    if shares:
        lines.append(
            f"{'monitors':<20}{100 * monitors['share']:>10.1f} %   ({100 * min(shares):.1f} to "
            f"{100 * max(shares):.1f} in {len(shares)} rounds; of a step without any; a reading "
            f"every {monitors['reading_every']:.0f} of {monitors['steps']:.0f} steps)"
        )
    lines += _parts_table(result, before)
    return "\n".join(lines)


def _parts_table(result: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Microseconds a window and share of each part."""
    rows = []
    whole = sum(_microseconds(result).values())
    earlier = _microseconds(before) if before else {}
    heads = ["part", "µs/window", "share"] + ["before", "times faster"] * bool(before)
    for part, took in [*_microseconds(result).items(), ("whole step", whole)]:
        cells = [part, f"{took:.1f}", f"{100 * took / whole:.0f} %"]
        if before:
            then = sum(earlier.values()) if part == "whole step" else earlier.get(part)
            cells += ["", ""] if then is None else [f"{then:.1f}", f"{then / max(took, 1e-9):.1f}"]
        rows.append(cells)
    return [f"{row[0]:<20}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in [heads, *rows]]


def _microseconds(result: dict[str, Any]) -> dict[str, float]:
    """Of each part, per window: the same unit whatever the batch."""
    windows = result["windows_by_part"]
    return {
        part: 1e6 * sum(seconds.values()) / windows
        for part, seconds in result["seconds_by_part"].items()
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """What ``write_result`` wrote.

    Raises:
        InputError: no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: no benchmark result; write one with bench --json")
    return json.loads(path.read_text())
