"""Scores of the newest date by the model in use, and every score that was ever handed out."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.data.panel import Panel, read_panel
from atft_pipeline.assets.acceptance import (
    failures_of_run,
    finished_run,
    run_in_use,
    skill_not_shown,
)
from atft_pipeline.assets.evaluation import scores_of_run
from atft_pipeline.assets.realized import keep_past_scores
from atft_pipeline.checks.outcome import spec, verdicts
from atft_pipeline.checks.serving import (
    ServingGates,
    model_is_sound,
    scores_are_current,
    scores_not_degenerate,
)
from atft_pipeline.config_schema import build_part, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.freshness import DAILY
from atft_pipeline.storage import Storage


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
                "rank 1 is the highest score. Beside it: past_scores, all that were ever made.",
)  # fmt: skip
@plain_failures
def latest_scores(
    context: dg.AssetExecutionContext, storage: Storage, accepted_model: Path, panel: Path,
    stock_graph: Path,
) -> Iterator[Any]:  # fmt: skip
    """Refuses an unsound model before scoring; what it scored is judged before it is stored."""
    options = context.op_execution_context.op_config
    name = options["run_id"] or str(run_in_use(accepted_model))
    folder = finished_run(accepted_model, name, "latest_scores: run_id")
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
    kept = "none, a check failed"
    if not any(outcome.stops for outcome in outcomes):
        kept = keep_past_scores(storage, folder, table, datetime.now(UTC))
        context.log.info(f"past_scores: {kept}")
    metadata = {
        "run_id": folder.name, "date": str(scored),
        "failed_checks": ", ".join(failed) or "none",
        "allow_failed_checks": options["allow_failed_checks"], "past_scores": kept,
    }  # fmt: skip
    yield from verdicts("latest_scores", outcomes, table, metadata, storage)


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


ASSETS = [latest_scores]
