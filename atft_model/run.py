"""The one place that builds a run from its config: training it, and scoring with what it made.

A run folder holds ``config.json`` (resolved), ``run.json`` (identity, data, result), ``best.pt``
and ``last.pt`` (weights), ``state.pt`` (what ``--resume`` goes on from), ``health/`` and
``train.log``.
"""

import json
import logging
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from atft_model.config import RunConfig, from_dict, to_dict
from atft_model.data.artifacts import write_text_atomically
from atft_model.data.batches import (
    DevicePanel,
    TargetScale,
    fewest_batches,
    fit_target_scale,
    runs_per_batch,
    usable_dates,
)
from atft_model.data.folds import Fold, panel_of_fold
from atft_model.data.graph import StockGraph, read_graph
from atft_model.data.normalizer import TimeSeriesStatistics
from atft_model.data.panel import Panel, check_axes, fit_statistics, read_panel
from atft_model.data.random_graph import random_graph
from atft_model.data.relative import sector_share
from atft_model.data.splits import assert_purged
from atft_model.errors import InputError
from atft_model.group_lasso import linear_weights
from atft_model.losses.total import TrainingLoss
from atft_model.model.atft import ATFT, ModelShape
from atft_model.model.graph_attention import EDGE_ATTRIBUTES
from atft_model.model.initialization import initialize
from atft_model.model.native import check_kernels, compile_kernels
from atft_model.monitors.degeneracy_guard import DegeneracyGuard
from atft_model.process import cpu_multiplies_bfloat16
from atft_model.training.checkpoint import (
    FORMAT,
    check_format,
    differences,
    fill,
    load_state,
    load_weights,
    weights_files,
    weights_hash,
)
from atft_model.training.clipping import Clipping
from atft_model.training.code_state import code_state, in_words
from atft_model.training.distributed import ALONE, Group
from atft_model.training.gates import TrainingGates, explain
from atft_model.training.health_record import HealthRecord
from atft_model.training.loop import Progress, Trainer
from atft_model.training.observer import Observer
from atft_model.training.optimizer import LossScale, Schedule, build_optimizer
from atft_model.training.reporter import Reporter
from atft_model.training.scan import scan_panel
from atft_model.training.stall import StallWatch
from atft_model.training.validation import predict_quantiles

log = logging.getLogger("atft")

CHECKPOINT = "state.pt"


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where it is; asking for CUDA where it is not is an error.

    Of several CUDA devices it is the current one: ``open_group`` gives each process its own.

    Raises:
        InputError: ``cuda`` without a CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "training.device is 'cuda' but torch sees no CUDA device; set device to 'auto' or 'cpu'"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuses float16 where there is no loss scaling for it; says where bfloat16 does not pay.

    Raises:
        InputError: 16-mixed without CUDA.
    """
    if precision == "16-mixed" and device.type != "cuda":
        raise InputError(
            f"training.precision is '16-mixed' but the device is {device.type}; set precision to "
            "'bf16-mixed' or '32'"
        )
    if precision == "bf16-mixed" and device.type == "cpu" and not cpu_multiplies_bfloat16():
        log.warning(
            "bf16-mixed on a CPU without AMX or AVX-512 BF16 is no faster than '32' and less "
            "exact; set training.precision to '32'"
        )


def check_compile(config: RunConfig, device: torch.device) -> None:
    """Refuses ``training.compile`` where there is nothing to compile, or nothing to compile with.

    Raises:
        InputError: a GPU, a model that the kernels do not compute, or no compiler that works.
    """
    if not config.training.compile:
        return
    if device.type != "cpu":
        raise InputError(
            f"training.compile is on but the device is {device.type}, and only a CPU's passes are "
            "compiled; set training.compile to false"
        )
    check_kernels(config.model)


def model_shape(panel: Panel) -> ModelShape:
    """Sizes of the model's inputs and outputs."""
    return ModelShape(
        len(panel.feature_names), len(panel.horizons), len(panel.sectors), len(panel.markets),
        tuple(i for i, kind in enumerate(panel.normalizers) if kind == "cross_section"),
        panel.horizons,
    )  # fmt: skip


def train(
    config: RunConfig, panel_folder: Path, graph_folder: Path, folder: Path, reporter: Reporter,
    ledger: Path | None = None, resume: bool = False, fold: Fold | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """Trains a model into ``folder`` and returns the run record (also written to ``run.json``).

    Args:
        ledger: Append-only trial ledger. The run is added before ``run.json`` makes it a finished
            one, and once only: no finished run is without its line, however it was interrupted.
        resume: Go on from the checkpoint of a run that was killed in ``folder``; from the
            beginning where it was killed before its first checkpoint.
        fold: Train under this split instead of the panel's own; the run's scores are then those of
            the fold's dates.
        group: The processes that train together; all see the same folders. Each returns the
            record, the one that leads writes it.

    Raises:
        InputError: unusable panel, graph, device or settings, a run that cannot go on, or one to
            resume whose settings or data changed.
    """
    started = time.monotonic()
    device = choose_device(config.training.device)
    check_precision(config.training.precision, device)
    check_compile(config, device)
    panel, graph = read_inputs(panel_folder, graph_folder, fold)
    identity = run_identity(config, panel, graph, device, group, fold)
    state = open_folder(folder, config, identity, resume, group)
    if not config.training.skip_nan_scan:
        scan_panel(panel)
    seed_everything(config.training.seed)
    if config.training.deterministic:
        compute_deterministically(device)
    statistics = fit_statistics(panel, panel.split.train)
    scale = fit_target_scale(panel, panel.split.train)
    log_targets(panel, scale)
    share = sector_share(panel, config.loss.rank_relative_to)
    log_relative(config, share)
    data = training_data(config, panel, graph, statistics, scale, device)
    trainer = build_trainer(config, data, folder, reporter, identity, group)
    progress = begin(trainer, state)
    trainer.fit(folder, progress)
    group.wait()  # for the weights to lie in the folder
    record_checkpoint(trainer, folder, progress)
    record = {
        **run_record(config, panel, graph, statistics, scale, folder, progress),
        **how_it_ran(trainer, identity),
        "relative_to_sector": share,
        "seconds": time.monotonic() - started,
        "resumed": state is not None,
    }
    trainer.health.seal(record["checkpoint_hash"])
    if not group.leads:
        return record
    if ledger is not None:
        append_trial(ledger, record)
    write_text_atomically(folder / "run.json", json.dumps(record, indent=1))
    reporter.result({"run_id": record["run_id"], "checkpoint_hash": record["checkpoint_hash"]})
    return record


def training_panel(folder: Path, fold: Fold | None) -> Panel:
    """The panel under its own split or a fold's; says which features the fold does without."""
    panel = read_panel(folder)
    if fold is None:
        return panel
    panel = panel_of_fold(panel, fold)
    for name, reason in panel.left_out.items():
        log.info("left out of fold %s: %s: %s", fold.period, name, reason)
    return panel


def training_data(
    config: RunConfig, panel: Panel, graph: StockGraph, statistics: TimeSeriesStatistics,
    scale: TargetScale, device: torch.device,
) -> DevicePanel:  # fmt: skip
    """The panel as a run trains on it."""
    return DevicePanel(
        panel, graph, statistics, scale, config.model.lookback, device, config.loss.rank_relative_to
    )


def log_relative(config: RunConfig, share: float) -> None:
    """How much is learned relative to a sector, where scores learn to rank so."""
    if config.loss.rank_relative_to == "sector":
        log.log(
            logging.INFO if share else logging.WARNING,
            "loss.rank_relative_to is sector: %.0f%% of the training returns count relative to "
            "their sector, the others (sector unknown, or with few stocks) relative to their date",
            100 * share,
        )


def log_targets(panel: Panel, scale: TargetScale) -> None:
    """Raw mean and standard deviation of each horizon's return on training dates."""
    for horizon, mean, std in zip(panel.horizons, scale.mean, scale.std, strict=True):
        log.info("horizon_%d: mean=%.6f, std=%.6f", horizon, mean, std)


def read_inputs(
    panel_folder: Path, graph_folder: Path, fold: Fold | None
) -> tuple[Panel, StockGraph]:
    """The panel, under the fold's split where there is one, and its graph.

    Raises:
        InputError: unusable panel or graph, or a split whose parts are not purged.
    """
    panel = training_panel(panel_folder, fold)
    graph = read_graph(graph_folder, panel)
    assert_purged(panel.split, panel.horizons)
    return panel, graph


def open_folder(
    folder: Path, config: RunConfig, identity: Mapping[str, Any], resume: bool, group: Group
) -> dict[str, Any] | None:
    """Readies a run's folder; the state to go on from, None to begin.

    Raises:
        InputError: a run ended there already, or cannot go on; or the processes see other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "run.json").exists():
        raise InputError(f"{folder}: a run was trained here already; give another run id")
    state = open_checkpoint(folder, identity) if resume else None
    group.check_same(
        lambda: f"{identity['panel']} {identity['graph']} {state is None:d}",
        "panel, graph or state",
    )
    if group.leads:
        if state is None:
            clear_leftovers(folder)
        write_text_atomically(folder / "config.json", json.dumps(to_dict(config), indent=1))
    return state


def begin(trainer: Trainer, state: Mapping[str, Any] | None) -> Progress:
    """Records what the run is given, or goes on from a checkpoint; how far the run is."""
    if state is None:
        trainer.observer.record_data(trainer.data, trainer.train_dates)
        return Progress()
    progress = trainer.load_checkpoint(state)
    log.info("resumed after step %d of epoch %d", progress.step, progress.epoch)
    # No refusal: a defect that is mended on the way is a good reason to resume.
    before, now = json.loads(state["host"]).get("git"), code_state()
    if before is not None and before != now:
        log.warning("resumed with other code: was %s, is now %s", in_words(before), in_words(now))
    return progress


def how_it_ran(trainer: Trainer, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the run record that the trainer knows: device, size, steps, readings."""
    data = trainer.data
    validation = torch.from_numpy(trainer.validation_dates)
    record = {
        "device": describe_device(data.device),
        "git": code_state(),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps_per_epoch": trainer.steps_per_epoch,
        "reading_every": trainer.observer.cadence,
        "validation_dates": int(validation.sum()),
        "validation_stocks": float(data.scorable[validation].sum(dim=1).float().mean()),
        "processes": trainer.group.size,
    }
    return record | {name: identity[name] for name in ("fold", "left_out") if name in identity}


def run_identity(
    config: RunConfig, panel: Panel, graph: StockGraph, device: torch.device, group: Group,
    fold: Fold | None,
) -> dict[str, Any]:  # fmt: skip
    """What a run's next step depends on besides its state, as JSON gives it back."""
    identity = {
        "format": FORMAT,
        "config": to_dict(config),
        "panel": panel.hash,
        "features": list(panel.feature_names),
        "graph": graph.hash,
        "edge_attributes": list(EDGE_ATTRIBUTES),
        "torch": torch.__version__,
        "device": device.type,
        "processes": group.size,
    }
    if fold is not None:
        identity |= {"fold": fold.to_dict(), "left_out": panel.left_out}
    return json.loads(json.dumps(identity))


def open_checkpoint(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that a killed run in ``folder`` left; None where it left none yet.

    Raises:
        InputError: no run began there, or it began with other settings or data.
    """
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: no run to resume here; leave out --resume to begin one")
    path = folder / CHECKPOINT
    state = load_state(path) if path.exists() else None
    before = (
        json.loads(state["identity"])
        if state is not None
        else {**identity, "config": json.loads((folder / "config.json").read_text())}
    )
    changed = list(differences(before, identity))
    if changed:
        more = f" (and {len(changed) - 6} more)" if len(changed) > 6 else ""
        raise InputError(
            f"{folder}: cannot resume: {'; '.join(changed[:6])}{more}; resume with what the run "
            "began with, or train again under another run id"
        )
    if state is None:
        log.info("killed before its first checkpoint: from the beginning")
    return state


def clear_leftovers(folder: Path) -> None:
    """Removes what a killed run left: its weights and readings must not pass for the next one's."""
    if (folder / "health").exists():
        shutil.rmtree(folder / "health")
    for path in (*folder.glob("*.pt"), *folder.glob(".*.tmp")):
        path.unlink()


def build_trainer(
    config: RunConfig, data: DevicePanel, folder: Path, reporter: Reporter,
    identity: Mapping[str, Any], group: Group = ALONE,
) -> Trainer:  # fmt: skip
    """Model, optimizer, monitors and the order of dates for one run.

    Raises:
        InputError: no usable training or validation date.
    """
    panel, training = data.panel, config.training
    dates = {}
    for part in ("train", "validation"):
        dates[part] = usable_dates(data.valid, panel.split.parts()[part], training.min_stocks)
        if not dates[part].any():
            raise InputError(
                f"panel: no {part} date has {training.min_stocks} tradable stocks with a window of "
                f"{config.model.lookback} days and a known target; give more dates or stocks, or "
                "a shorter model.lookback"
            )
    windows = float(data.scorable[torch.from_numpy(dates["train"])].sum(dim=1).float().mean())
    runs = runs_per_batch(training.batch_windows, training.run_length, windows)
    steps = fewest_batches(dates["train"], training.run_length, runs)
    steps = min(steps, training.max_steps_per_epoch or steps)
    model = ATFT(config.model, model_shape(panel))
    initialize(model, config.model)
    if model.linear_part is not None:
        relative_to = config.loss.rank_relative_to
        fitted = linear_weights(panel, config.model.linear_penalty, relative_to)
        model.linear_part.weights.copy_(torch.from_numpy(fitted))
    model.to(data.device)
    if training.kept_gib is not None:
        model.keep_for_backward(int(training.kept_gib * 2**30))
    if training.compile:
        model.compile_seconds = compile_kernels(
            model.variable_selection.networks, model.temporal_encoder
        )
        log.info("training by kernels, compiled in %.1f s", model.compile_seconds)
    optimizer = build_optimizer(model, config.optimizer)
    health = HealthRecord(folder / "health", folder.name, writes=group.leads)
    log.info(
        "training %s parameters on %s%s: %d dates, about %.0f windows each, %d steps per epoch",
        f"{sum(p.numel() for p in model.parameters()):,}", describe_device(data.device),
        f" in {group.size} processes" if group.size > 1 else "",
        int(dates["train"].sum()), windows, steps,
    )  # fmt: skip
    return Trainer(
        config=config,
        model=model,
        data=data,
        loss=TrainingLoss(config, data.device, panel.horizons),
        optimizer=optimizer,
        schedule=Schedule(optimizer, config.optimizer, steps * training.max_epochs),
        clipping=Clipping(config.optimizer),
        loss_scale=LossScale(training.precision, data.device),
        guard=DegeneracyGuard(config.guard, panel.horizons),
        observer=Observer(
            model, config.monitor, health, panel.feature_names, panel.horizons, steps, group
        ),
        health=health,
        reporter=reporter,
        stall=StallWatch(config.monitor.stall_seconds, reporter.stall),
        train_dates=dates["train"],
        validation_dates=dates["validation"],
        runs_per_batch=runs,
        steps_per_epoch=steps,
        order=np.random.default_rng(training.seed),
        noise=torch.Generator().manual_seed(training.seed),
        group=group,
        identity=identity,
        checkpoint=folder / CHECKPOINT,
    )  # fmt: skip


def record_checkpoint(trainer: Trainer, folder: Path, progress: Progress) -> None:
    """Reads the best weights back from disk and records how they score the validation dates.

    Raises:
        InputError: no best checkpoint, because no epoch had a defined validation rank IC.
    """
    if not (folder / "best.pt").exists():
        trainer.health.flush()
        trainer.group.wait()
        names = trainer.data.panel.feature_names
        record = {"epochs": progress.epoch, "features": list(names)}
        causes = explain(trainer.health.folder, record, TrainingGates())
        said = "; ".join(f"{finding.name}: {finding.figure}" for finding in causes)
        raise InputError(
            "training: no epoch had a defined validation rank IC, so there is no best checkpoint "
            f"({said or 'no gate says why: look at the health record'})"
        )
    model = trainer.model
    fill(model, load_weights(folder / "best.pt"), folder)
    quantiles, _, _ = predict_quantiles(
        model, trainer.data, trainer.validation_dates, trainer.config, trainer.runs_per_batch,
        group=trainer.group,
    )  # fmt: skip
    score = quantiles[trainer.validation_dates][..., model.median].astype(np.float64)
    for index, horizon in enumerate(trainer.data.panel.horizons):
        known = np.isfinite(score[..., index])
        spread = [row[use].std() for row, use in zip(score[..., index], known, strict=True)
                  if use.sum() >= 2]  # fmt: skip
        trainer.health.add(
            progress.best_epoch, progress.step, "checkpoint", f"horizon_{horizon}",
            {"score_std": float(np.median(spread)) if spread else 0.0},
        )  # fmt: skip
    trainer.health.flush()


def run_record(
    config: RunConfig, panel: Panel, graph: StockGraph, statistics: TimeSeriesStatistics,
    scale: TargetScale, folder: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Identity of a run: what it was trained on, with what, and which weights came out."""
    checkpoints = {path.name: weights_hash(load_weights(path)) for path in weights_files(folder)}
    return {
        "format": FORMAT,
        "run_id": folder.name,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint_hash": checkpoints["best.pt"],
        "checkpoints": checkpoints,
        "panel_hash": panel.hash,
        "graph_hash": graph.hash,
        "graph": graph.kind,
        "edge_attributes": list(EDGE_ATTRIBUTES),
        "source": panel.source,
        "features": list(panel.feature_names),
        "horizons": list(panel.horizons),
        "sectors": list(panel.sectors),
        "markets": list(panel.markets),
        "split": {
            part: [str(day) for day in panel.part_dates(part)] for part in panel.split.parts()
        },
        "statistics": statistics.to_dict(),
        "target_scale": asdict(scale),
        "seed": config.training.seed,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_validation_rank_ic": progress.best_rank_ic,
        "stopped_early": progress.stopped_early,
        "steps": progress.step,
        "windows": progress.windows,
        "history": progress.history,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


@dataclass(frozen=True)
class TrainedRun:
    """A run folder, opened and verified."""

    folder: Path
    config: RunConfig
    record: Mapping[str, Any]
    statistics: TimeSeriesStatistics
    scale: TargetScale
    weights: Mapping[str, torch.Tensor]


def open_run(folder: Path) -> TrainedRun:
    """Opens a finished run after recomputing the hash of its weights.

    Raises:
        InputError: no finished run there, one of an earlier format, weights that are not those
            of the run record, or weights for other edge attributes than today's.
    """
    if not (folder / "run.json").exists():
        raise InputError(f"{folder}: no finished run here (no run.json); train the model first")
    record = json.loads((folder / "run.json").read_text())
    check_format(record.get("format"), folder)
    weights = load_weights(folder / "best.pt")
    found = weights_hash(weights)
    if found != record["checkpoint_hash"]:
        raise InputError(
            f"{folder / 'best.pt'}: weights hash {found}, the run record says "
            f"{record['checkpoint_hash']}; the checkpoint is not of this run: train again"
        )
    attributes = record["edge_attributes"]
    if attributes != list(EDGE_ATTRIBUTES):
        raise InputError(
            f"{folder}: trained with edge attributes {', '.join(attributes)}; this version has "
            f"{', '.join(EDGE_ATTRIBUTES)}: train again"
        )
    scale = {name: tuple(values) for name, values in record["target_scale"].items()}
    return TrainedRun(
        folder=folder,
        config=from_dict(json.loads((folder / "config.json").read_text()), "config.json"),
        record=record,
        statistics=TimeSeriesStatistics.from_dict(record["statistics"]),
        scale=TargetScale(**scale),
        weights=weights,
    )


def predict(
    folder: Path, panel_folder: Path, graph_folder: Path, device: str = "auto",
    with_random_graph: bool = False, newest_only: bool = False, other_graphs: Sequence[Path] = (),
) -> pa.Table:  # fmt: skip
    """Scores of every validation and test date by the run's best weights.

    A run that was trained on a fold scores the fold's validation and test dates.

    Args:
        with_random_graph: Also score the test dates with a random graph, as a control.
        newest_only: Score the newest date with a trading universe alone.
        other_graphs: Folders of further graphs of the panel, to score the test dates with as well.

    Returns:
        One row per (date, code, horizon): run_id, checkpoint_hash, panel_hash, part (validation or
        test), scorer ("model", or "model_<kind>_graph"), score (the median) and the quantiles
        ``q05``, ``q25``, ...; in units of the scaled, demeaned target.

    Raises:
        InputError: damaged run, or a panel with other features than the run was trained on.
    """
    run = open_run(folder)
    panel = read_panel(panel_folder)
    if "fold" in run.record:
        panel = panel_of_fold(panel, Fold.from_dict(run.record["fold"]))
    check_axes(panel, run.record["features"], f"run {folder.name}")
    check_groups(panel, run.record, f"run {folder.name}")
    graph = read_graph(graph_folder, panel)
    where = choose_device(device)
    model = ATFT(run.config.model, model_shape(panel)).to(where)
    fill(model, run.weights, run.folder)
    first = newest_scorable(panel) if newest_only else panel.split.validation[0]
    quantiles = quantiles_from(first, run, model, panel, graph, where)
    table = score_table(run, panel, quantiles, "model")
    controls = [random_graph(graph)] if with_random_graph else []
    names = ["random"] * len(controls)
    for other in other_graphs:
        controls.append(read_graph(other, panel))
        names.append(controls[-1].kind)
    tables = [table]
    for name, control in zip(names, controls, strict=True):
        quantiles = quantiles_from(panel.split.test[0], run, model, panel, control, where)
        tables.append(score_table(run, panel, quantiles, f"model_{name}_graph"))
    return pa.concat_tables(tables).unify_dictionaries()


def quantiles_from(
    first: int, run: TrainedRun, model: ATFT, panel: Panel, graph: StockGraph, where: torch.device
) -> np.ndarray:
    """Predicted quantiles of the dates from position ``first`` to the test part's end."""
    data = DevicePanel(panel, graph, run.statistics, run.scale, run.config.model.lookback, where)
    dates = data.scorable.any(dim=1).cpu().numpy()
    dates[:first] = False
    dates[panel.split.test[1] :] = False
    windows = float(data.scorable[first:].sum(dim=1).float().mean())
    training = run.config.training
    runs = runs_per_batch(training.batch_windows, training.run_length, windows)
    log.info("scoring %d dates of %d stocks", int(dates.sum()), len(panel.codes))
    quantiles, _, _ = predict_quantiles(model, data, dates, run.config, runs)
    return quantiles


def newest_scorable(panel: Panel) -> int:
    """Position of the newest date with a trading universe, up to the end of the test part.

    Raises:
        InputError: no stock is tradable on any date.
    """
    known = np.asarray(panel.tradable[: panel.split.test[1]])
    dates = np.flatnonzero(known.any(axis=1))
    if not dates.size:
        raise InputError("panel: no stock is tradable on any date, so there is nothing to score")
    return int(dates[-1])


def check_groups(panel: Panel, record: Mapping[str, Any], what: str) -> None:
    """Refuses sectors or markets in another order: their embeddings would change places."""
    for name, mine in (("sectors", panel.sectors), ("markets", panel.markets)):
        if list(mine) != record[name]:
            raise InputError(
                f"{what}: trained with {len(record[name])} {name}, the panel has {len(mine)} or "
                "others; train again"
            )


def score_table(run: TrainedRun, panel: Panel, quantiles: np.ndarray, scorer: str) -> pa.Table:
    """[dates, stocks, horizons, quantiles] as rows, with the identity of what made them."""
    date, stock, horizon = np.nonzero(np.isfinite(quantiles).all(axis=-1))
    values = quantiles[date, stock, horizon]
    levels = run.config.model.quantiles
    test = np.array([position >= panel.split.test[0] for position in range(len(panel.dates))])

    def named(text: str) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(date), np.int32)), [text])

    columns = {
        "run_id": named(run.record["run_id"]),
        "checkpoint_hash": named(run.record["checkpoint_hash"]),
        "panel_hash": named(panel.hash),
        "scorer": named(scorer),
        "part": pa.DictionaryArray.from_arrays(
            pa.array(test[date].astype(np.int32)), ["validation", "test"]
        ),
        "date": pa.array(np.array(panel.dates, dtype="datetime64[D]")[date]),
        "code": pa.DictionaryArray.from_arrays(pa.array(stock.astype(np.int32)), panel.codes),
        "horizon": pa.array(np.array(panel.horizons, dtype=np.int32)[horizon]),
        "score": pa.array(values[:, levels.index(0.5)].astype(np.float64)),
    }
    for position, level in enumerate(levels):
        columns[f"q{round(level * 100):02d}"] = pa.array(values[:, position].astype(np.float64))
    return pa.table(columns)


def append_trial(ledger: Path, record: Mapping[str, Any]) -> int:
    """Adds a run to the append-only trial ledger, once; returns how many trials it now holds.

    One line of JSON per trained run. Clean-up never touches it: the number of trials deflates the
    Sharpe ratio of all of them. A run that is already there, with the same weights, is the same
    trial: it was interrupted between this line and its run record.
    """
    ledger.parent.mkdir(parents=True, exist_ok=True)
    keys = ("run_id", "finished_at", "checkpoint_hash", "panel_hash", "best_validation_rank_ic")
    line = {key: record[key] for key in keys}
    if "fold" in record:
        line["period"] = record["fold"]["period"]
    identity = ("run_id", "checkpoint_hash", "panel_hash")
    if ledger.exists():
        for text in ledger.read_text().splitlines():
            known = json.loads(text)
            if all(known.get(key) == line[key] for key in identity):
                return count_trials(ledger)
    with ledger.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return count_trials(ledger)


def count_trials(ledger: Path) -> int:
    """Trials on record; 0 where there is no ledger yet.

    Each trained run is one. The folds of a walk-forward are one together, as one strategy comes out
    of them: as many as the period that was trained most often.
    """
    if not ledger.exists():
        return 0
    lines = [json.loads(text) for text in ledger.read_text().splitlines()]
    periods = Counter(line["period"] for line in lines if "period" in line)
    return len(lines) - periods.total() + max(periods.values(), default=0)


def seed_everything(seed: int) -> None:
    """Seeds the first weights; the order of dates, noise and dropout have seeds of their own."""
    torch.manual_seed(seed)


def compute_deterministically(device: torch.device) -> None:
    """Asks CUDA for kernels that give the same bits each time; nothing to ask of a CPU.

    A warning names what has no such kernel: whether its bits differ is for the run to show.
    """
    if device.type != "cuda":
        return
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"
