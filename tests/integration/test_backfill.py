"""A backfill of the walk-forward's periods, as the UI starts it, run by a real daemon."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from daemon import ROOT, daemon
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from atft_pipeline.__main__ import exit_code, materialize
from atft_pipeline.assets.walk_forward import rolling_model

DATA_SET = "synthetic"
QUARTERS = ["2016-Q2", "2016-Q3"]
PATIENCE = 600
UNDER_WAY = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)

LAUNCH = """
mutation Launch($backfillParams: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfillParams) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> dict[str, str]:
    """The environment of the project as it is deployed: its own dagster.yaml."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster_home" / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)}


def launch(environment: dict[str, str], run_config: dict, answer: Path) -> str:
    """Asks for both quarters as the UI does; the backfill's id."""
    params = {
        "assetSelection": [{"path": rolling_model.key.path}],
        "partitionNames": QUARTERS,
        "runConfigData": json.dumps(run_config),
    }
    subprocess.run(
        [Path(sys.executable).with_name("dagster-graphql"), "-m", "atft_pipeline.definitions",
         "-t", LAUNCH, "-v", json.dumps({"backfillParams": params}),
         "-o", answer],
        cwd=ROOT, env=environment, timeout=120, check=True,
    )  # fmt: skip
    launched = json.loads(answer.read_text())["data"]["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return launched["backfillId"]


def ended(backfill: str, process: subprocess.Popen, log: Path) -> PartitionBackfill:
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, log.read_text()
        with dg.DagsterInstance.get() as instance:
            found = instance.get_backfill(backfill)
        assert found is not None
        if found.status not in UNDER_WAY:
            return found
        assert time.monotonic() < end, log.read_text()
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_backfill_trains_the_periods_one_by_one(tables_copy, config, small_model, project):
    settings = config(tables_copy, rolling_model=small_model)
    with dg.DagsterInstance.get() as instance:
        assert exit_code(materialize("key:test_periods", settings, instance)) == 0
    log = tables_copy / "daemon.log"
    backfill = launch(project, settings, tables_copy / "answer.json")
    with daemon(project, log) as process:
        assert ended(backfill, process, log).status == BulkActionStatus.COMPLETED_SUCCESS
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_run_records(
            dg.RunsFilter(tags={"dagster/backfill": backfill}), ascending=True
        )
        assert sorted(run.dagster_run.tags["dagster/partition"] for run in runs) == QUARTERS
        assert {run.dagster_run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        # The pool of the device holds one: the second's training waits for the first's end.
        steps = [
            step
            for run in runs
            for step in instance.get_run_step_stats(run.dagster_run.run_id)
            if step.step_key == "rolling_model"
        ]
        (_, first_end), (second_start, _) = sorted((s.start_time, s.end_time) for s in steps)
        assert first_end <= second_start
        assert exit_code(materialize("key:walk_forward_evaluation", settings, instance)) == 0
    scores = pl.read_parquet(tables_copy / DATA_SET / "rolling_model" / "*.parquet")
    assert scores["run_id"].n_unique() == len(QUARTERS)
