"""The drift limits on the data that they were calibrated on (docs/drift.md)."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from atft_pipeline.__main__ import exit_code, materialize
from atft_pipeline.checks.drift import DriftLimits, judge
from atft_pipeline.transforms.drift import measure_drift

REAL = Path(__file__).parents[3] / "shared" / "data" / "nasdaq_eod_2005_2017.parquet"
MARKETS = {f"seed {seed}": {"seed": seed} for seed in (1337, 1, 2, 3, 4)}
# What comes after 2015 stays unseen.
MARKETS["real file"] = {
    "source": "files", "prices": str(REAL), "start_date": "2010-01-01", "end_date": "2015-12-31",
}  # fmt: skip


@pytest.fixture(params=MARKETS)
def folder(request, tmp_path) -> Path:
    """The tables of a clean market, whose drift check held without a warning."""
    if request.param == "real file" and not REAL.exists():
        pytest.skip(f"{REAL} is not here")
    resources = {
        "market": {"config": MARKETS[request.param]},
        "storage": {"config": {"data_dir": str(tmp_path), "dataset": "clean"}},
    }
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize("*normalized_features", {"resources": resources}, instance)
    assert exit_code(result) == 0
    (check,) = [
        found
        for found in result.get_asset_check_evaluations()
        if found.check_name == "drift_within_limits"
    ]
    assert check.passed, check.metadata["figure"].value
    return tmp_path / "clean"


@pytest.mark.slow
def test_a_clean_market_passes_and_a_move_by_one_std_does_not(folder):
    reference = pl.read_parquet(folder / "feature_reference.parquet").filter(
        pl.col("normalizer") != "none"
    )
    drift = pl.read_parquet(folder / "feature_drift.parquet").filter(pl.col("months") > 1)
    lasting = dict(drift.select("feature", "mean_shift").iter_rows())
    later = pl.read_parquet(folder / "features.parquet").filter(
        pl.col("date") > reference["train_end"][0]
    )
    for target in (1.0, -1.0):
        moved = later.with_columns(
            pl.col(known["feature"]) + (target - lasting[known["feature"]]) * known["std"]
            for known in reference.iter_rows(named=True)
        )
        judged = judge(measure_drift(moved, reference), DriftLimits())
        level = judged.group_by("feature").agg(
            pl.col("scope").first(),
            failed=(pl.col("level") == "error").any(),
            named=(pl.col("level") != "ok").any(),
        )
        assert level.filter(~pl.col("named"))["feature"].to_list() == []
        stocks = level.filter(~pl.col("scope").is_in(["market", "section"]))
        assert stocks.filter(~pl.col("failed"))["feature"].to_list() == []
