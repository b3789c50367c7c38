"""The model in use, and its scores of the newest date."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.data.artifacts import write_text_atomically
from atft_model.data.panel import Panel, read_panel
from atft_model.errors import InputError
from atft_pipeline.assets.walk_forward import scores_of_run
from atft_pipeline.checks.outcome import spec, verdicts
from atft_pipeline.checks.record import RunVerdicts, read_verdicts
from atft_pipeline.checks.serving import (
    ServingGates,
    blocking_checks_green,
    integrity_failures,
    model_is_sound,
    scores_are_current,
    scores_not_degenerate,
)
from atft_pipeline.config_schema import build_part, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.freshness import DAILY
from atft_pipeline.resources import is_plain_name
from atft_pipeline.storage import Storage

JUDGES = ("trained_model", "evaluation")
"""Assets whose blocking checks a run has to pass before it is put in use."""


@dg.asset(
    group_name="serving", kinds={"pytorch"}, output_required=False, io_manager_key="versions",
    deps=["evaluation"],
    config_schema={
        "require_skill": dg.Field(
            bool, is_required=False, default_value=False,
            description="Also pass over runs that failed a skill verdict (Sharpe, rank IC, ...). "
            "Off: they are named in every row that the model scores.",
        ),
    },
    check_specs=[
        spec("accepted_model", "blocking_checks_green",
             "The newest run that trained_model and evaluation found sound is the one in use."),
    ],
    description="Points models/accepted.json at the newest trained run whose blocking checks are "
                "green; the table accepted_models keeps what was in use since when.",
)  # fmt: skip
@plain_failures
def accepted_model(
    context: dg.AssetExecutionContext, storage: Storage, trained_model: Path
) -> Iterator[Any]:
    """Looks at the runs from the newest on, and takes the first that is sound."""
    require_skill = context.op_execution_context.op_config["require_skill"]
    refused: dict[str, tuple[str, ...]] = {}
    chosen, record, unskilled = None, {}, ()
    for folder in runs_from_newest(trained_model):
        failed = failures_of_run(folder)
        unskilled = skill_not_shown(folder)
        bars = (*failed, *unskilled) if require_skill else failed
        if not bars:
            chosen, record = folder, json.loads((folder / "run.json").read_text())
            break
        refused[folder.name] = bars
    outcome = blocking_checks_green(
        chosen.name if chosen else None, refused, unskilled if chosen else ()
    )
    if chosen is None:
        yield outcome.result("accepted_model")
        return
    accept(storage, record, unskilled)
    metadata = {
        "run_id": chosen.name, "panel_hash": record["panel_hash"],
        "trained": record["finished_at"], "skill_not_shown": ", ".join(unskilled) or "none",
    }  # fmt: skip
    yield from verdicts("accepted_model", [outcome], record["checkpoint_hash"], metadata)


def runs_from_newest(models: Path) -> list[Path]:
    """Folders of finished runs, by when they finished."""
    finished = {path.parent: json.loads(path.read_text())["finished_at"]
                for path in models.glob("*/run.json")}  # fmt: skip
    return sorted(finished, key=lambda folder: (finished[folder], folder.name), reverse=True)


def failures_of_run(folder: Path) -> tuple[str, ...]:
    """Integrity checks that a run failed, its weights hashed anew."""
    from atft_model.training.checkpoint import load_weights, weights_hash

    found = weights_hash(load_weights(folder / "best.pt"))
    return integrity_failures(verdicts_of_run(folder), found)


def verdicts_of_run(folder: Path) -> dict[str, RunVerdicts | None]:
    """What each judge found on a run."""
    return {asset: read_verdicts(folder, asset) for asset in JUDGES}


def skill_not_shown(folder: Path) -> tuple[str, ...]:
    """Skill verdicts that a run failed."""
    found = verdicts_of_run(folder)
    return tuple(f"{asset}:{name}" for asset, verdict in found.items() if verdict
                 for name in verdict.failed_skill)  # fmt: skip


def accept(storage: Storage, record: dict[str, Any], unskilled: tuple[str, ...]) -> None:
    """Points ``accepted.json`` at a run and adds a line to the history; the same run adds none."""
    pointer = storage.models / "accepted.json"
    before = json.loads(pointer.read_text())["hash"] if pointer.exists() else None
    if before == record["run_id"]:
        return
    line = pl.DataFrame(
        {
            "accepted_at": [datetime.now(UTC)], "run_id": [record["run_id"]],
            "checkpoint_hash": [record["checkpoint_hash"]], "panel_hash": [record["panel_hash"]],
            "before": pl.Series([before], dtype=pl.String),
            "skill_not_shown": [", ".join(unskilled)],
        }
    )  # fmt: skip
    known = storage.has_table("accepted_models")
    history = [storage.read_table("accepted_models", "accepted_model")] if known else []
    storage.write_table("accepted_models", pl.concat([*history, line]))
    # Last: a killed run leaves the old model in use, and the next one finds what is missing.
    write_text_atomically(pointer, json.dumps({"hash": record["run_id"]}))


@dg.asset(
    group_name="serving", kinds={"pytorch", "parquet"}, output_required=False, pool="gpu",
    freshness_policy=DAILY,
    config_schema={
        "run_id": dg.Field(
            dg.Noneable(str), is_required=False, default_value=None,
            description="Score with this run instead of the accepted one.",
        ),
        "allow_failed_checks": dg.Field(
            bool, is_required=False, default_value=False,
            description="Score with a run although its integrity checks failed or were never "
            "made; every row then names them.",
        ),
        **fields_of(ServingGates),
    },
    check_specs=[
        spec("latest_scores", "model_is_sound",
             "The model's integrity checks hold, or config allows the failed ones in words."),
        spec("latest_scores", "scores_are_current", "The scores are of the panel's last date."),
        spec("latest_scores", "scores_not_degenerate",
             "Most tradable stocks have a score, and the scores tell them apart."),
    ],
    description="Scores and ranks of the newest date by the accepted model: one row per stock, "
                "rank 1 is the highest score.",
)  # fmt: skip
@plain_failures
def latest_scores(
    context: dg.AssetExecutionContext, storage: Storage, accepted_model: Path, panel: Path,
    stock_graph: Path,
) -> Iterator[Any]:  # fmt: skip
    """Refuses an unsound model before scoring; what it scored is judged before it is stored."""
    options = context.op_execution_context.op_config
    folder = chosen_run(accepted_model, options["run_id"])
    failed = failures_of_run(folder)
    sound = model_is_sound(folder.name, failed, options["allow_failed_checks"])
    if sound.stops:
        yield sound.result("latest_scores")
        raise dg.Failure(f"no scores: {sound.figure}", allow_retries=False)
    opened = read_panel(panel)
    long = scores_of_run(context, storage, folder, panel, stock_graph, ("--newest",))
    table = ranked(long, opened, failed, skill_not_shown(folder))
    scored = table["date"][0] if table.height else opened.dates[0]
    tradable = int(np.asarray(opened.tradable[opened.dates.index(scored)]).sum())
    gates = build_part(ServingGates, options)
    outcomes = [
        sound,
        scores_are_current(scored, opened.dates[-1]),
        scores_not_degenerate(table, tradable, opened.horizons, gates),
    ]
    metadata = {
        "run_id": folder.name, "date": str(scored),
        "failed_checks": ", ".join(failed) or "none",
        "allow_failed_checks": options["allow_failed_checks"],
    }  # fmt: skip
    yield from verdicts("latest_scores", outcomes, table, metadata, storage)


def chosen_run(models: Path, run_id: str | None) -> Path:
    """The accepted run's folder, or that of the run asked for.

    Raises:
        InputError: a run id that names no finished run of this data set.
    """
    name = run_id or json.loads((models / "accepted.json").read_text())["hash"]
    folder = models / name
    if not (is_plain_name(name) and (folder / "run.json").exists()):
        raise InputError(
            f"latest_scores: run_id is {name!r}; expected the name of a finished run in {models}"
        )
    return folder


def ranked(
    long: pl.DataFrame, panel: Panel, failed: tuple[str, ...], unskilled: tuple[str, ...]
) -> pl.DataFrame:
    """One row per stock: score and rank per horizon (1 = highest score), and what made them."""
    identity = ["run_id", "checkpoint_hash", "panel_hash"]
    wide = long.select("date", "code", *identity).unique(maintain_order=True)
    for horizon in panel.horizons:
        mine = long.filter(pl.col("horizon") == horizon).select(
            "code",
            pl.col("score").alias(f"score_{horizon}d"),
            pl.col("score").rank("min", descending=True).cast(pl.Int32).alias(f"rank_{horizon}d"),
        )
        wide = wide.join(mine, on="code", how="left", maintain_order="left")
    values = [f"{kind}_{horizon}d" for horizon in panel.horizons for kind in ("score", "rank")]
    return wide.select(
        "date", "code", *values, *identity,
        failed_checks=pl.lit(", ".join(failed)), skill_not_shown=pl.lit(", ".join(unskilled)),
    ).sort("code")  # fmt: skip


ASSETS = [accepted_model, latest_scores]
