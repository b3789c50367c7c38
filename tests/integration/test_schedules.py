"""The schedules ask for the right day, once, and are off until switched on."""

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from atft_model.errors import InputError
from atft_pipeline.definitions import defs
from atft_pipeline.resources import exchange
from atft_pipeline.schedules import after_each_close, daily_update, each_month, retrain

JAPAN = ZoneInfo("Asia/Tokyo")


def asked(schedule: dg.ScheduleDefinition, moment: str) -> dg.RunRequest:
    """What the schedule asks for at a moment in Japan."""
    at = dt.datetime.fromisoformat(moment).replace(tzinfo=JAPAN)
    (request,) = (
        schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=at)).run_requests
        or []
    )
    return request


def test_the_daily_run_is_for_the_day_that_has_closed():
    request = asked(after_each_close, "2026-11-20 19:00")
    assert request.run_key == "daily-2026-11-20"
    assert request.tags["trading_day"] == "2026-11-20"


def test_a_weekend_and_a_holiday_ask_for_the_day_before_them_which_runs_once():
    """Dagster starts a run key once: a day that ran is not repeated, one that was missed runs."""
    keys = {asked(after_each_close, f"2026-11-{day} 19:00").run_key for day in (20, 21, 22, 23)}
    assert keys == {"daily-2026-11-20"}  # Friday, weekend, Labour Thanksgiving Day
    assert asked(after_each_close, "2026-11-24 19:00").run_key == "daily-2026-11-24"


def test_the_retraining_has_one_name_a_month():
    assert asked(each_month, "2026-12-01 06:00").run_key == "retrain-2026-12"


def test_the_ticks_are_at_the_exchange_s_local_time_after_the_vendor_has_the_day():
    assert (after_each_close.cron_schedule, each_month.cron_schedule) == ("0 19 * * *", "0 6 1 * *")
    for schedule in (after_each_close, each_month):
        assert schedule.execution_timezone == "Asia/Tokyo"
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED


def names(job: Any) -> set[str]:
    graph = defs.resolve_job_def(job.name).asset_layer.asset_graph
    return {key.path[-1] for key in graph.executable_asset_keys}


def test_the_jobs_cover_the_graph_and_do_not_train_daily():
    assert {"raw_prices", "prices", "normalized_features", "panel", "stock_graph"} <= names(
        daily_update
    )
    assert "trained_model" not in names(daily_update)
    assert {"latest_scores", "realized_scores"} <= names(daily_update)
    assert names(retrain) == {
        "trained_model", "predictions", "baselines", "evaluation", "accepted_model",
    }  # fmt: skip


def test_training_keeps_its_pool_in_the_scheduled_job():
    node = defs.resolve_job_def("retrain").get_node_named("trained_model")
    assert node.definition.pool == "gpu"


def test_neither_what_comes_in_nor_what_goes_out_may_grow_old():
    policies = {asset.key.path[-1]: asset.freshness_policy
                for asset in defs.resolve_all_asset_specs()}  # fmt: skip
    daily = dg.FreshnessPolicy.time_window(
        warn_window=dt.timedelta(days=5), fail_window=dt.timedelta(days=8)
    )
    assert policies["raw_prices"] == policies["latest_scores"] == daily


def test_an_unknown_exchange_is_said(monkeypatch):
    monkeypatch.setenv("ATFT_EXCHANGE", "osaka")
    with pytest.raises(InputError, match="ATFT_EXCHANGE is 'osaka'; expected one of tokyo, new_yo"):
        exchange()
