"""When the project works by itself: each trading day after the close, and a retraining a month.

Both are off until switched on in the UI (Automation). What a run does is the assets' business.
"""

import dagster as dg

from atft_pipeline.resources import exchange

EXCHANGE = exchange()

daily_update = dg.define_asset_job(
    "daily_update",
    selection=dg.AssetSelection.groups("raw", "core", "features", "graph")
    | dg.AssetSelection.assets("latest_scores", "realized_scores"),
    description="Syncs raw tables, brings everything up to the panel and the stock graph up to "
                "date, scores the newest day and judges past scores whose returns are known by "
                "now; drift is a check of normalized_features.",
)  # fmt: skip

retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets(
        "trained_model", "predictions", "baselines", "evaluation", "accepted_model"
    ),
    description="Trains on the newest panel, evaluates the model and accepts it if it is sound.",
)


@dg.schedule(
    job=daily_update, cron_schedule="0 19 * * *", execution_timezone=EXCHANGE.zone,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="After each trading day's close: the exchange's calendar says which day that is.",
)  # fmt: skip
def after_each_close(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Asks for the newest closed day, under its name: Dagster starts a name once.

    So a weekend or holiday repeats nothing. After days without a daemon, Dagster makes up for the
    last of the ticks that it missed as soon as one runs. A sync fetches all days that are missing:
    one run catches up on any number of them.
    """
    day = EXCHANGE.last_closed_day(context.scheduled_execution_time)
    return dg.RunRequest(run_key=f"daily-{day}", tags={"trading_day": str(day)})


@dg.schedule(
    job=retrain, cron_schedule="0 6 1 * *", execution_timezone=EXCHANGE.zone,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="On the first day of each month, before trading.",
)  # fmt: skip
def each_month(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Asks for the month's model."""
    return dg.RunRequest(run_key=f"retrain-{context.scheduled_execution_time:%Y-%m}")


JOBS = [daily_update, retrain]
SCHEDULES = [after_each_close, each_month]
