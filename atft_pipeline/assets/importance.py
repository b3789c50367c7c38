"""Tables ``feature_importance`` and ``neighbour_importance``, stored beside the predictions."""

import json
import shutil
from pathlib import Path

import dagster as dg
import polars as pl

from atft_model.data.artifacts import write_text_atomically
from atft_pipeline.importance_groups import importance_groups
from atft_pipeline.processes import run_model_process
from atft_pipeline.storage import Storage

TABLES = ("feature_importance", "neighbour_importance")


def store_importance(
    context: dg.AssetExecutionContext, storage: Storage, run: Path, panel: Path, graph: Path
) -> None:
    """Measures in the model's own process what the run's scores of test dates rest on."""
    folder = storage.root / "scratch" / f"importance-{context.run.run_id}"
    groups = folder / "groups.json"
    try:
        write_text_atomically(groups, json.dumps(importance_groups()))
        run_model_process(
            context,
            ["importance", "--run", str(run), "--panel", str(panel), "--graph", str(graph),
             "--groups", str(groups), "--out", str(folder)],
        )  # fmt: skip
        for name in TABLES:
            storage.write_table(name, pl.read_parquet(folder / f"{name}.parquet"))
    finally:
        shutil.rmtree(folder)


def importance_of(storage: Storage, run_id: str, checkpoint: str) -> pl.DataFrame:
    """Rows of both tables that are of these weights; of others none, and none where never stored.

    Returns:
        (kind, name, neighbour, importance, standard_error); neighbour is null where there is none.
    """
    frames = [
        storage.read_table(name, "evaluation").filter(
            pl.col("run_id") == run_id, pl.col("checkpoint_hash") == checkpoint
        )
        for name in TABLES
        if storage.has_table(name)
    ]
    if not frames:
        return pl.DataFrame()
    columns = ("kind", "name", "neighbour", "importance", "standard_error")
    return pl.concat(frames, how="diagonal").select(columns)
