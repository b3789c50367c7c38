"""Scores that were handed out: kept as they were made, and judged once their returns are known."""

import json
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.data.artifacts import file_hash
from atft_model.evaluation import HEADLINE_HORIZON, MODEL
from atft_pipeline.checks.outcome import spec, verdicts
from atft_pipeline.checks.realized import (
    RealizedGates,
    due_returns_known,
    past_scores_unchanged,
    realized_rank_ic_as_evaluated,
)
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.report.plots import figure_to_png_data_uri, plot_rank_ic
from atft_pipeline.storage import PAST_SCORES, Storage, write_parquet
from atft_pipeline.transforms.realized import realized_rank_ics
from atft_pipeline.transforms.targets import HORIZONS

ASSET = "realized_scores"
MADE = "past_scores_made"
MADE_COLUMNS = {
    "date": pl.Date, "run_id": pl.String, "made_at": pl.Datetime("us", "UTC"),
    "stocks": pl.Int64, "content_hash": pl.String, "test_first": pl.Date,
    "evaluated_rank_ic": pl.Float64, "evaluated_error": pl.Float64,
}  # fmt: skip
"""One row per scoring of a date by a run, with what the run had been found to be worth by then."""


@dg.asset(
    group_name="serving", kinds={"numpy", "parquet"}, output_required=False,
    deps=["latest_scores"], config_schema=fields_of(RealizedGates),
    check_specs=[
        spec(ASSET, "past_scores_unchanged",
             "Past scores are, to the byte, what they were when they were made."),
        spec(ASSET, "due_returns_known",
             "Past scores whose day of exit has passed have a rank IC."),
        spec(ASSET, "realized_rank_ic_as_evaluated",
             "The rank IC of past scores is not significantly below the one evaluated of the "
             "models that made them.", kind="skill"),
    ],
    description="What became of past scores: the rank IC per date and horizon once the returns "
                "are known, and its rolling mean with its error.",
)  # fmt: skip
@plain_failures
def realized_scores(
    context: dg.AssetExecutionContext, storage: Storage, targets: pl.DataFrame
) -> Iterator[Any]:
    """Reads the scores as they were made, verifies that, and joins the returns known by now."""
    gates = build(RealizedGates, context.op_execution_context.op_config)
    with storage.one_run_at_a_time(PAST_SCORES):
        made, parts = read_made(storage), storage.read_parts(PAST_SCORES)
        hashes = {name: file_hash(storage.part_path(PAST_SCORES, name)) for name in parts}
    found = {_date_and_run(name): digest for name, digest in hashes.items()}
    unchanged = past_scores_unchanged(made, found)
    if unchanged.stops:
        yield unchanged.result(ASSET)
        return
    past = pl.concat(parts.values()) if parts else pl.DataFrame()
    table = realized_rank_ics(past, made, targets, HORIZONS, gates.window)
    outcomes = [
        unchanged,
        due_returns_known(table, gates),
        realized_rank_ic_as_evaluated(table, gates),
    ]
    yield from verdicts(ASSET, outcomes, table, realized_metadata(table), storage)


def keep_past_scores(storage: Storage, folder: Path, table: pl.DataFrame, now: datetime) -> str:
    """Adds a date's scores to those ever made; the same date and run again changes nothing.

    Returns:
        What was done, in words.
    """
    day, name = table["date"][0], f"{table['date'][0]}_{folder.name}"
    with storage.one_run_at_a_time(PAST_SCORES):
        made, path = read_made(storage), storage.part_path(PAST_SCORES, name)
        if not made.filter(pl.col("date") == day, pl.col("run_id") == folder.name).is_empty():
            return f"{day} by {folder.name} stays as it was first made"
        if not path.exists():  # else a run was killed after writing it
            write_parquet(table.with_columns(made_at=pl.lit(now)), path)
        kept = pl.read_parquet(path)
        value, error = evaluated_rank_ic(folder)
        row = {
            "date": day, "run_id": folder.name, "made_at": kept["made_at"][0],
            "stocks": kept.height, "content_hash": file_hash(path),
            "test_first": first_unlearned_date(folder), "evaluated_rank_ic": value,
            "evaluated_error": error,
        }  # fmt: skip
        storage.write_table(MADE, pl.concat([made, pl.DataFrame([row], schema=MADE_COLUMNS)]))
    return f"{day} by {folder.name}, {kept.height} stocks"


def read_made(storage: Storage) -> pl.DataFrame:
    """One row per scoring ever made, in the order in which they were."""
    stored = storage.read_if_stored(MADE)
    return pl.DataFrame(schema=MADE_COLUMNS) if stored is None else stored


def first_unlearned_date(folder: Path) -> date:
    """The first date of the run's test part: none before it can show what the run is worth."""
    record = json.loads((folder / "run.json").read_text())
    return date.fromisoformat(record["split"]["test"][0])


def evaluated_rank_ic(folder: Path) -> tuple[float | None, float | None]:
    """The run's own rank IC on test dates at the headline horizon, with its error; None unknown."""
    path = folder / "evaluation" / "evaluation.parquet"
    if not path.exists():
        return None, None
    figures = pl.read_parquet(path).filter(
        pl.col("scorer") == MODEL,
        pl.col("horizon") == HEADLINE_HORIZON,
        pl.col("metric") == "rank_ic",
    )
    value, error = figures.select("value", "standard_error").row(0)
    return (value, error) if np.isfinite([value, error]).all() else (None, None)


def realized_metadata(table: pl.DataFrame) -> dict[str, Any]:
    """What the UI shows and plots: the newest rolling rank IC by horizon, and its picture."""
    known = table.filter("counts").drop_nulls("rank_ic")
    metadata: dict[str, Any] = {"dates": known["date"].n_unique(), "scorings": table.height}
    for horizon in HORIZONS:
        newest = known.filter(pl.col("horizon") == horizon).tail(1)
        if newest.height:
            metadata[f"rolling_rank_ic_{horizon}d"] = newest["rolling_rank_ic"][0]
    if known.height:
        shown = known.with_columns(scorer=pl.lit(MODEL))
        picture = figure_to_png_data_uri(plot_rank_ic(shown, HEADLINE_HORIZON))
        metadata["rank_ic"] = dg.MetadataValue.md(f"![rank IC]({picture})")
    return metadata


def _date_and_run(part: str) -> tuple[str, str]:
    day, _, run = part.partition("_")
    return day, run


ASSETS = [realized_scores]
