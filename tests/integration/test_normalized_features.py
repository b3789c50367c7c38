"""What is stored beside the normalized features, and drift that keeps the last good table."""

import re
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from atft_pipeline.__main__ import exit_code
from atft_pipeline.transforms import normalize

CHECK = "normalized_features:drift_within_limits"
BESIDE = ("normalized_features", "feature_statistics", "feature_reference", "feature_drift")


def _verdicts(result):
    return {
        f"{check.asset_key.path[-1]}:{check.check_name}": check
        for check in result.get_asset_check_evaluations()
    }


def _contents(data_dir: Path) -> dict[str, bytes]:
    return {name: (data_dir / "synthetic" / f"{name}.parquet").read_bytes() for name in BESIDE}


def _move_later_rows(data_dir: Path, feature: str, standard_deviations: float) -> None:
    """Adds a multiple of the stored training std to a raw feature after the training dates."""
    root = data_dir / "synthetic"
    reference = pl.read_parquet(root / "feature_reference.parquet")
    known = reference.row(by_predicate=pl.col("feature") == feature, named=True)
    step = standard_deviations * known["std"]
    moved = pl.when(pl.col("date") > known["train_end"]).then(pl.col(feature) + step)
    pl.read_parquet(root / "features.parquet").with_columns(
        moved.otherwise(feature).cast(pl.Float32).alias(feature)
    ).write_parquet(root / "features.parquet")


def test_a_clean_market_does_not_drift_and_stores_its_reference(tables):
    with duckdb.connect(str(tables / "synthetic" / "atft.duckdb"), read_only=True) as connection:
        features = connection.execute("SELECT DISTINCT feature FROM feature_drift").fetchall()
        named = connection.execute("SELECT feature FROM feature_reference").fetchall()
        levels = connection.execute("SELECT DISTINCT level FROM feature_drift").fetchall()
    table = pl.read_parquet(tables / "synthetic" / "normalized_features.parquet")
    assert {name for (name,) in named} == set(table.columns[2:])
    assert set(features) == set(named)
    assert ("error",) not in levels


def test_the_reference_and_a_picture_of_drift_are_shown(tables_copy, run):
    result = run("normalized_features", tables_copy)
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert "rsi_14" in metadata["reference"].value
    assert "mkt_vol_20d" in metadata["statistics"].value
    assert metadata["drift"].value.startswith("![drift](data:image/png;base64,")
    assert _verdicts(result)[CHECK].metadata["worst_share_of_limit"].value < 1.0


@pytest.mark.parametrize("move", [1.0, -1.0])
def test_one_feature_that_drifts_is_named_and_nothing_is_stored(tables_copy, run, move):
    good = _contents(tables_copy)
    _move_later_rows(tables_copy, "rsi_2", move)
    result = run("key:normalized_features or key:panel", tables_copy)
    check = _verdicts(result)[CHECK]
    assert not check.passed
    assert re.match(
        r"rsi_2: (mean shift|PSI) is \S+ in (the \d+ months to )?20\d\d-\d\d, expected below",
        str(check.metadata["figure"].value),
    )
    assert check.metadata["features_at_error"].value == 1
    assert "data:image/png" in str(check.metadata["details"].value)
    assert exit_code(result) == 1
    assert list(result.get_asset_materialization_events()) == []
    assert _contents(tables_copy) == good
    rejected = pl.read_parquet(tables_copy / "synthetic" / "rejected" / "feature_drift.parquet")
    assert rejected.filter(pl.col("level") == "error")["feature"].unique().to_list() == ["rsi_2"]
    # The scores within a date, which the bounds judge, hide it.
    assert _verdicts(result)["normalized_features:normalized_within_bounds"].passed


def test_on_drift_warn_stores_the_table_and_says_so(tables_copy, run):
    _move_later_rows(tables_copy, "rsi_2", 1.0)
    result = run("normalized_features", tables_copy, normalized_features={"on_drift": "warn"})
    check = _verdicts(result)[CHECK]
    assert not check.passed
    assert check.severity.value == "WARN"
    assert exit_code(result) == 0
    drift = pl.read_parquet(tables_copy / "synthetic" / "feature_drift.parquet")
    assert drift.filter(pl.col("level") == "error")["feature"].unique().to_list() == ["rsi_2"]


def test_the_historical_column_is_named_and_the_last_good_table_stays(
    tables_copy, run, monkeypatch
):
    """Mean 200 and standard deviation 268,938 after a normalizer that does nothing."""
    path = tables_copy / "synthetic" / "features.parquet"
    rng = np.random.default_rng(0)
    features = pl.read_parquet(path)
    wild = (200 + 268_938 * rng.standard_normal(features.height)).astype(np.float32)
    features.with_columns(pl.Series("log_returns_1d", wild)).write_parquet(path)
    # A correct normalizer copes with it.
    assert exit_code(run("normalized_features", tables_copy)) == 0
    good = _contents(tables_copy)
    monkeypatch.setattr(normalize, "apply_time_series", lambda values, statistics: values)
    result = run("key:normalized_features or key:panel", tables_copy)
    check = _verdicts(result)["normalized_features:normalized_within_bounds"]
    assert not check.passed
    found = re.search(
        r"log_returns_1d \| time_series \| \d+ \| \S+ \| (\d+)", check.metadata["details"].value
    )
    assert found
    assert abs(float(found[1]) / 268_938 - 1) < 0.02
    assert "log_returns_1d: mean is" in str(check.metadata["figure"].value)
    assert exit_code(result) == 1
    assert list(result.get_asset_materialization_events()) == []
    assert _contents(tables_copy) == good


def test_a_mask_of_other_values_is_named_and_the_last_good_table_stays(tables_copy, run):
    path = tables_copy / "synthetic" / "features.parquet"
    good = _contents(tables_copy)
    half = pl.col("is_valid_ma") * 0.5
    pl.read_parquet(path).with_columns(half.cast(pl.Float32)).write_parquet(path)
    result = run("normalized_features", tables_copy)
    check = _verdicts(result)["normalized_features:normalized_within_bounds"]
    assert not check.passed
    assert str(check.metadata["figure"].value).startswith("is_valid_ma: other_share is")
    assert _contents(tables_copy) == good
