"""The asset graph on the smallest market that has three parts; signal-free, so skill is luck."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest
import yaml

from atft_pipeline.__main__ import exit_code, failures, main, materialize

SMALL_MODEL = {
    "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
    "training": {"max_epochs": 1, "device": "cpu"},
}
DATA_SET = "synthetic"


def config(data_dir: Path, **ops: dict[str, Any]) -> dict[str, Any]:
    """Run config of the small market under ``data_dir``."""
    return {
        "resources": {
            "market": {"config": {"stocks": 60, "dates": 420, "signal": 0.0}},
            "storage": {"config": {"data_dir": str(data_dir)}},
            "split": {"config": {"validation_fraction": 0.2, "embargo": 0}},
        },
        "ops": {name: {"config": values} for name, values in ops.items()},
    }


def run(select: str, data_dir: Path, **ops: dict[str, Any]) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return materialize(select, config(data_dir, **ops), instance)


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        f"{check.asset_key.path[-1]}:{check.check_name}": check
        for check in result.get_asset_check_evaluations()
    }


def stored(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A data dir with everything up to ``normalized_features``."""
    data_dir = tmp_path_factory.mktemp("tables")
    assert exit_code(run("*normalized_features", data_dir)) == 0
    return data_dir


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dg.ExecuteInProcessResult]:
    """A data dir with everything, and the result of the run that made it."""
    data_dir = tmp_path_factory.mktemp("whole")
    return data_dir, run("*", data_dir, trained_model=SMALL_MODEL)


@pytest.fixture
def tables_copy(tables, tmp_path) -> Path:
    return Path(shutil.copytree(tables, tmp_path / "data"))


@pytest.fixture
def whole_copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "data"))


def test_a_clean_market_is_stored_and_queryable(tables):
    with duckdb.connect(str(tables / DATA_SET / "atft.duckdb"), read_only=True) as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT code) FROM normalized_features")
        rows, stocks = row.fetchone()  # type: ignore[misc]
    assert stocks == 60
    assert rows == pl.read_parquet(tables / DATA_SET / "prices.parquet").height
    assert not (tables / DATA_SET / "rejected").exists()


def test_a_drifted_table_is_not_stored_and_downstream_does_not_run(tables_copy):
    root = tables_copy / DATA_SET
    good = (root / "normalized_features.parquet").read_bytes()
    statistics = (root / "feature_statistics.parquet").read_bytes()
    features = pl.read_parquet(root / "features.parquet")
    filled = pl.when(pl.int_range(pl.len()) % 5 < 3).then(0.0).otherwise("returns_1d")
    features.with_columns(returns_1d=filled.cast(pl.Float32)).write_parquet(
        root / "features.parquet"
    )
    result = run("key:normalized_features or key:panel or key:stock_graph", tables_copy)
    check = verdicts(result)["normalized_features:normalized_within_bounds"]
    assert not check.passed
    assert check.metadata["figure"].value.startswith("returns_1d: zero_share is 0.6")
    assert "returns_1d" in check.metadata["details"].value
    assert stored(result) == set()
    assert exit_code(result) == 1
    assert (root / "normalized_features.parquet").read_bytes() == good
    assert (root / "feature_statistics.parquet").read_bytes() == statistics
    assert not (root / "panel").exists()
    rejected = pl.read_parquet(root / "rejected" / "normalized_features.parquet")
    assert (rejected["returns_1d"] == 0).mean() > 0.5


def test_tight_bounds_name_the_features_and_keep_the_last_good_table(tables_copy):
    path = tables_copy / DATA_SET / "normalized_features.parquet"
    good = path.read_bytes()
    result = run("normalized_features", tables_copy, normalized_features={"std_upper": 0.99})
    figure = verdicts(result)["normalized_features:normalized_within_bounds"].metadata["figure"]
    assert re.search(r"\w+: std is 1.*, expected from 0.8 to 0.99", str(figure.value))
    assert exit_code(result) == 1
    assert path.read_bytes() == good


def test_an_integrity_failure_exits_1_and_keeps_the_last_prices(tables_copy):
    path = tables_copy / DATA_SET / "prices.parquet"
    good = path.read_bytes()
    result = run(
        "key:prices or key:trading_universe", tables_copy, prices={"max_quarantined_share": 0.0}
    )
    check = verdicts(result)["prices:quarantined_share_within_limit"]
    assert not check.passed
    assert check.metadata["rows/duplicate_key"].value > 0
    assert exit_code(result) == 1
    assert "trading_universe" not in stored(result)
    assert path.read_bytes() == good
    assert (tables_copy / DATA_SET / "rejected" / "prices.parquet").exists()


def test_the_whole_graph_runs_and_integrity_holds(whole):
    _, result = whole
    assert failures(result) == []
    failed = {name for name, check in verdicts(result).items() if not check.passed}
    assert failed <= {"evaluation:sharpe_above_threshold", "evaluation:rank_ic_positive"}
    assert stored(result) == {key.path[-1] for key in every_asset()}


def every_asset() -> set[dg.AssetKey]:
    from atft_pipeline.definitions import defs

    return set(defs.resolve_asset_graph().get_all_asset_keys())


def test_a_signal_free_market_shows_no_skill_and_exits_0(whole):
    _, result = whole
    found = verdicts(result)
    assert not found["evaluation:sharpe_above_threshold"].passed
    assert not found["evaluation:rank_ic_positive"].passed
    assert exit_code(result) == 0


def test_evaluation_is_queryable_and_reported(whole):
    data_dir, result = whole
    root = data_dir / DATA_SET
    record = (root / "models" / "current.json").read_text()
    with duckdb.connect(str(root / "atft.duckdb"), read_only=True) as connection:
        (run_id,) = connection.execute("SELECT DISTINCT run_id FROM evaluation").fetchall()
        scorers = connection.execute("SELECT DISTINCT scorer FROM evaluation").fetchall()
        assert connection.execute("SELECT count(*) FROM daily_returns").fetchone() != (0,)
    assert run_id[0] in record
    assert {"model", "shuffled_model"} < {scorer for (scorer,) in scorers}
    (materialization,) = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == "evaluation"
    ]
    report = Path(str(materialization.metadata["report"].value))
    assert report == root / "reports" / f"{run_id[0]}.html"
    text = report.read_text()
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert run_id[0] in text
    assert "normalized_within_bounds" in text


@pytest.mark.parametrize("column", ["run_id", "checkpoint_hash", "panel_hash"])
def test_predictions_of_another_run_are_refused(whole_copy, column):
    root = whole_copy / DATA_SET
    good = (root / "evaluation.parquet").read_bytes()
    predictions = pl.read_parquet(root / "predictions.parquet")
    predictions.with_columns(pl.lit("another").alias(column)).write_parquet(
        root / "predictions.parquet"
    )
    result = run("evaluation", whole_copy)
    check = verdicts(result)["evaluation:evidence_matches_checkpoint"]
    assert not check.passed
    assert f"predictions: {column} is ['another']" in str(check.metadata["figure"].value)
    assert stored(result) == set()
    assert exit_code(result) == 1
    assert (root / "evaluation.parquet").read_bytes() == good


def test_cuda_without_a_gpu_fails_in_one_line_and_keeps_the_model(whole_copy):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    current = whole_copy / DATA_SET / "models" / "current.json"
    good = current.read_bytes()
    result = run("trained_model", whole_copy, trained_model={"training": {"device": "cuda"}})
    assert failures(result) == [
        "trained_model: training.device is 'cuda' but torch sees no CUDA device; "
        "set device to 'auto' or 'cpu'"
    ]
    assert exit_code(result) == 1
    assert current.read_bytes() == good


def test_the_command_runs_in_a_process_of_its_own(tmp_path):
    """Its output holds verdicts and no warning of Dagster's."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "data")))
    done = subprocess.run(
        [sys.executable, "-m", "atft_pipeline", "run", "--select", "raw_listings",
         "--config", str(path)],
        env={"DAGSTER_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"holds.*raw_listings:contract_holds +60 rows", done.stdout)
    assert "Warning" not in done.stdout + done.stderr


def test_the_command_without_dagster_home_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    assert main(["run"]) == 2
    assert capsys.readouterr().err == (
        "atft_pipeline: DAGSTER_HOME is not set; start with make run, or source activate.sh first\n"
    )
