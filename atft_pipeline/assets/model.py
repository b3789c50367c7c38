"""The trained model: trained in its own process, judged by its records, then put in use."""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from atft_model import settings
from atft_model.config import PRESETS, RunConfig, read_run_file, resolve, to_dict
from atft_model.data.artifacts import write_text_atomically
from atft_model.errors import InputError
from atft_model.training.code_state import in_words
from atft_model.training.health_record import read_health
from atft_pipeline.checks.model import SKILL, TrainingGates, model_check_specs, model_outcomes
from atft_pipeline.checks.outcome import verdicts
from atft_pipeline.checks.record import write_verdicts
from atft_pipeline.config_schema import build, fields_of, run_config_fields
from atft_pipeline.failures import plain_failures
from atft_pipeline.processes import run_model_process
from atft_pipeline.report.plots import figure_to_png_data_uri, plot_gradients, plot_training
from atft_pipeline.resources import default_preset, is_plain_name
from atft_pipeline.storage import Storage, table_metadata

ASSET = "trained_model"

CONFIG = {
    "preset": dg.Field(
        dg.Noneable(str), is_required=False, default_value=None,
        description=f"{', '.join(PRESETS)}. Empty: the run file's, else ATFT_PRESET, else quick.",
    ),
    "run_file": dg.Field(
        dg.Noneable(str), is_required=False, default_value=None,
        description="run.toml with settings over the preset; fields given here win over it.",
    ),
    "resume": dg.Field(
        dg.Noneable(str), is_required=False, default_value=None,
        description="Run id of a run that was killed or cancelled: goes on from its checkpoint, "
                    "to the weights of an undisturbed run. The other fields as it began.",
    ),
    "nproc": dg.Field(
        int, is_required=False, default_value=1,
        description="Processes on this machine that train together, one per GPU: they share out "
                    "each batch of the settings, so raise batch_windows with them.",
    ),
    "torchrun": dg.Field(
        str, is_required=False, default_value="",
        description="Further arguments of torchrun, for several machines that see the same data "
                    "dir: this one is '--nnodes=2 --node-rank=0 --master-addr=HOST'.",
    ),
    "gates": dg.Field(dg.Shape(fields_of(TrainingGates)), is_required=False),
    **run_config_fields(),
}  # fmt: skip

NOT_SETTINGS = ("preset", "run_file", "resume", "nproc", "torchrun", "gates")
"""Fields that are no settings of the training itself."""


@dg.asset(
    group_name="model", kinds={"pytorch"}, output_required=False, io_manager_key="versions",
    pool="gpu", config_schema=CONFIG,
    check_specs=model_check_specs(ASSET),
    description="ATFT-GAT-FAN, trained on the panel's train dates, chosen on validation dates.",
)  # fmt: skip
@plain_failures
def trained_model(
    context: dg.AssetExecutionContext, storage: Storage, panel: Path, stock_graph: Path
) -> Iterator[Any]:
    """Trains, judges the health record, and points ``models/current.json`` at a sound run."""
    options = dict(context.op_execution_context.op_config)
    resume = options.get("resume")
    run_id = resume or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    folder = storage.models / run_id
    if resume and not (is_plain_name(resume) and folder.is_dir()):
        raise InputError(f"resume is {resume!r}; expected the name of a folder in {folder.parent}")
    train_run(context, storage, options, folder, panel, stock_graph,
              ["--resume"] if resume else [])  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    health = pl.DataFrame(pl.from_arrow(read_health(folder / "health")))
    gates = build(TrainingGates, options.get("gates", {}))
    outcomes = model_outcomes(folder, gates)
    write_verdicts(folder, ASSET, outcomes, SKILL, record["checkpoint_hash"])
    if not any(outcome.stops for outcome in outcomes):
        pointer = json.dumps({"hash": run_id})
        write_text_atomically(storage.models / "current.json", pointer)
    # A checkpoint is no table: its rows are those of its training's epochs.
    metadata = run_metadata(record, health) | table_metadata(epochs_table(record))
    yield from verdicts(ASSET, outcomes, record["checkpoint_hash"], metadata)
    failed = [outcome.name for outcome in outcomes if outcome.stops]
    if failed:
        # Said here, because Dagster's own word for a Pipes step without an output misleads.
        raise dg.Failure(f"not put in use, failed {', '.join(failed)}", allow_retries=False)


def train_run(
    context: dg.AssetExecutionContext, storage: Storage, options: dict[str, Any], folder: Path,
    panel: Path, graph: Path, extra: list[str],
) -> None:  # fmt: skip
    """Trains into ``folder`` in a process of its own; its epochs are observations of the asset.

    Args:
        options: Fields of ``CONFIG``.
        extra: Further arguments of ``python -m atft_model train``.
    """
    resolved = folder / "requested.json"
    write_text_atomically(resolved, json.dumps(to_dict(run_config(options)), indent=1))

    def on_message(message: dict[str, Any]) -> None:
        if "epoch" in message:
            partition = context.partition_key if context.has_partition_key else None
            context.log_event(dg.AssetObservation(
                context.asset_key, metadata=_numbers(message["epoch"]), partition=partition
            ))  # fmt: skip
        if "stall" in message:
            report_stall(context, message["stall"])

    run_model_process(
        context,
        ["train", "--panel", str(panel), "--graph", str(graph), "--out", str(folder),
         "--resolved", str(resolved), "--ledger", str(storage.ledger),
         "--nproc", str(options["nproc"]), f"--torchrun={options['torchrun']}", *extra],
        on_message,
    )  # fmt: skip


def run_config(options: dict[str, Any]) -> RunConfig:
    """The resolved settings: preset, environment, run file, then the fields given here."""
    layers: list[tuple[str, dict[str, Any]]] = [("environment", settings.from_environment())]
    preset = None
    if options.get("run_file"):
        preset, values = read_run_file(Path(options["run_file"]))
        layers.append((options["run_file"], values))
    explicit = {key: value for key, value in options.items()
                if key not in NOT_SETTINGS}  # fmt: skip
    layers.append(("run config", explicit))
    return resolve(options.get("preset") or preset or default_preset(), layers)


def report_stall(context: dg.AssetExecutionContext, stall: dict[str, Any]) -> None:
    """A warning in the run's log and an observation of the asset, while training hangs."""
    words = (
        f"no progress for {stall['seconds']:.0f} s, after {stall['after']}: terminate the run, "
        "then resume it"
    )
    context.log.warning(words)
    observed = {"stalled_seconds": float(stall["seconds"]), "stalled_after": stall["after"]}
    partition = context.partition_key if context.has_partition_key else None
    context.log_event(dg.AssetObservation(
        context.asset_key, description=words, metadata=observed, partition=partition
    ))  # fmt: skip


def epochs_table(record: dict[str, Any]) -> pl.DataFrame:
    """One row per epoch."""
    return pl.DataFrame(record["history"])


def gradients_table(health: pl.DataFrame) -> pl.DataFrame:
    """(step, group, l2) of the gradient readings."""
    return health.filter(pl.col("kind") == "gradient", pl.col("metric") == "l2").select(
        "step", group="name", l2="value"
    )


def run_metadata(record: dict[str, Any], health: pl.DataFrame) -> dict[str, Any]:
    """What the UI shows of a finished run."""
    curves = figure_to_png_data_uri(plot_training(epochs_table(record)))
    gradients = figure_to_png_data_uri(plot_gradients(gradients_table(health)))
    return {
        "run_id": record["run_id"],
        "panel_hash": record["panel_hash"],
        "epochs": record["epochs"],
        "best_epoch": record["best_epoch"],
        "validation_rank_ic": record["best_validation_rank_ic"],
        "windows_per_second": record["windows"] / record["seconds"],
        "seconds": record["seconds"],
        "code": in_words(record["git"]),
        "training": dg.MetadataValue.md(f"![training curves]({curves})"),
        "gradients": dg.MetadataValue.md(f"![gradient norms]({gradients})"),
    }


def _numbers(values: dict[str, float]) -> dict[str, Any]:
    return {name: float(value) for name, value in values.items()}


ASSETS = [trained_model]
