"""Days without a daemon are caught up by one run, started by a real daemon."""

import datetime as dt
import os
import subprocess
import sys
import time
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import yaml
from daemon import ROOT, daemon
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorState, ScheduleInstigatorData

from atft_pipeline.schedules import EXCHANGE, after_each_close

AWAY = dt.timedelta(days=4)
TOKYO = ZoneInfo("Asia/Tokyo")


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
        state = daily_state(instance)
        data = ScheduleInstigatorData(after_each_close.cron_schedule, since.timestamp())
        instance.update_instigator_state(state.with_data(data))


def daily_state(instance: dg.DagsterInstance) -> InstigatorState:
    """What Dagster keeps of the one schedule that is on."""
    (state,) = instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE)
    return state


def caught_up(log: Path, process: subprocess.Popen) -> list[str]:
    """How the ticks ended that the daemon made up for."""
    end = time.monotonic() + 150
    while True:
        assert process.poll() is None, log.read_text()
        with dg.DagsterInstance.get() as instance:
            state = daily_state(instance)
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
        found = [tick.status.value for tick in ticks]
        if found and "STARTED" not in found:
            return found
        assert time.monotonic() < end, log.read_text()
        time.sleep(1)


@pytest.mark.slow
def test_a_daemon_that_was_down_for_days_starts_one_run_for_the_newest_day(project, tmp_path):
    now = dt.datetime.now(dt.UTC)
    switch_on(project, now - AWAY)
    log = tmp_path / "daemon.log"
    with daemon(project, log) as process:
        assert caught_up(log, process) == ["SUCCESS"]
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
    assert run.job_name == "daily_update"
    assert run.status == dg.DagsterRunStatus.QUEUED
    last_tick = dt.datetime.combine(now.astimezone(TOKYO).date(), dt.time(19), TOKYO)
    if last_tick > now:
        last_tick -= dt.timedelta(days=1)
    assert run.tags["dagster/run_key"] == f"daily-{EXCHANGE.last_closed_day(last_tick)}"
