"""The features asset computes what has changed, says so, and stores the same bytes otherwise."""

from pathlib import Path

import dagster as dg
import polars as pl

from atft_model.data.artifacts import file_hash
from atft_pipeline.__main__ import materialize


def computed(data_dir: Path, select: str = "features", dates: int = 300) -> str:
    """Materializes; what the asset says of the rows that it computed."""
    config = {
        "resources": {
            "market": {"config": {"stocks": 60, "dates": dates}},
            "storage": {"config": {"data_dir": str(data_dir)}},
            "lookahead": {"config": {"cuts": 1}},
        },
    }
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(select, config, instance)
    assert result.success
    return str(result.asset_materializations_for_node("features")[-1].metadata["computed"].value)


def test_features_are_extended_and_an_unchanged_run_stores_the_same_bytes(tmp_path):
    table, record = (
        tmp_path / "synthetic" / f"{name}.parquet" for name in ("features", "features_built_from")
    )
    assert computed(tmp_path, "*features").endswith("no table with a record of its inputs yet")
    stored = file_hash(table), file_hash(record)

    assert computed(tmp_path).startswith("0 rows computed, ")
    assert (file_hash(table), file_hash(record)) == stored

    prices = tmp_path / "synthetic" / "prices.parquet"
    bars = pl.read_parquet(prices)
    last = bars["date"].max()
    bars.filter(pl.col("date") < last).write_parquet(prices)
    assert computed(tmp_path).endswith(f"prices new or changed from {last} on")
    bars.write_parquet(prices)
    said = computed(tmp_path)
    assert said.startswith(f"{bars.filter(pl.col('date') == last).height} rows computed, ")
    assert (file_hash(table), file_hash(record)) == stored
