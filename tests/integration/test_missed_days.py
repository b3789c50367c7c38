"""Days without a daemon are caught up by one run, started by a real daemon."""

import datetime as dt
import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml
from daemon import ROOT, daemon
from dagster._core.scheduler.instigation import ScheduleInstigatorData

from atft_pipeline.schedules import EXCHANGE, after_each_close

AWAY = dt.timedelta(days=4)


@pytest.fixture
def project(tmp_path, monkeypatch) -> dict[str, str]:
    """The environment of a project whose runs stay in the queue: what is asked for is the test."""
    home = tmp_path / "home"
    home.mkdir()
    settings = yaml.safe_load((ROOT / "dagster_home" / "dagster.yaml").read_text())
    settings["concurrency"]["runs"] = {"max_concurrent_runs": 0}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT),
            "ATFT_DATA_DIR": str(tmp_path / "data")}  # fmt: skip


def switch_on(environment: dict[str, str], since: dt.datetime) -> None:
    """Switches the daily schedule on, as if that had been done days ago."""
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "schedule", "start", after_each_close.name,
         "-m", "atft_pipeline.definitions"],
        cwd=ROOT, env=environment, timeout=120, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    with dg.DagsterInstance.get() as instance:
        (state,) = instance.all_instigator_state()
        data = ScheduleInstigatorData(after_each_close.cron_schedule, since.timestamp())
        instance.update_instigator_state(state.with_data(data))


def finished_ticks(log: Path, process: subprocess.Popen) -> list[str]:
    """What the daemon asked for, once it has made up for all that it missed."""
    end = time.monotonic() + 150
    while True:
        assert process.poll() is None, log.read_text()
        with dg.DagsterInstance.get() as instance:
            (state,) = instance.all_instigator_state()
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
        if len(ticks) >= AWAY.days and all(tick.status.value != "STARTED" for tick in ticks):
            return [tick.status.value for tick in ticks]
        assert time.monotonic() < end, log.read_text()
        time.sleep(1)


@pytest.mark.slow
def test_a_daemon_that_was_down_for_days_starts_one_run_for_the_newest_day(project, tmp_path):
    now = dt.datetime.now(dt.UTC)
    switch_on(project, now - AWAY)
    log = tmp_path / "daemon.log"
    with daemon(project, log) as process:
        ticks = finished_ticks(log, process)
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs()
    assert len(ticks) == AWAY.days
    assert sorted(ticks) == ["SKIPPED"] * (AWAY.days - 1) + ["SUCCESS"]
    (run,) = runs
    assert run.job_name == "daily_update"
    assert run.tags["dagster/run_key"] == f"daily-{EXCHANGE.last_closed_day(now)}"
    assert run.status == dg.DagsterRunStatus.QUEUED
