"""What became of scores that were handed out: their rank IC once the returns are known."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from atft_model.metrics.inference import newey_west_mean
from atft_pipeline.transforms.judged_scores import rank_ic_by_date
from atft_pipeline.transforms.targets import ENTRY_LAG

REALIZED = {
    "date": pl.Date, "horizon": pl.Int32, "run_id": pl.String, "made_at": pl.Datetime("us", "UTC"),
    "counts": pl.Boolean, "due": pl.Boolean, "scored": pl.Int64, "known": pl.Int64,
    "rank_ic": pl.Float64, "rolling_rank_ic": pl.Float64, "rolling_error": pl.Float64,
    "rolling_dates": pl.Int64, "evaluated_rank_ic": pl.Float64, "evaluated_error": pl.Float64,
}  # fmt: skip
"""One row per (date, run, horizon). ``counts``: the first scores made of the date, and of a date
that the run had not learned from; only these enter the rolling mean. ``due``: the day of exit has
passed. ``known``: scored stocks whose return is known. Nothing is filled where none is."""


def realized_rank_ics(
    past: pl.DataFrame, made: pl.DataFrame, targets: pl.DataFrame, horizons: Sequence[int],
    window: int,
) -> pl.DataFrame:  # fmt: skip
    """The table ``realized_scores``.

    Args:
        past: Scores as they were made: date, code, run_id, ``score_<h>d``.
        made: One row per (date, run_id) of ``past``: made_at, test_first (the run's first date
            beyond what it learned from), evaluated_rank_ic and evaluated_error per date and run at
            the headline horizon (null: not known).
        targets: The table ``targets`` as it is now.
        window: Newest dates with a rank IC that a rolling mean spans.

    Returns:
        Columns of ``REALIZED`` by horizon, date and time made.
    """
    calendar = targets["date"].unique().sort()
    frames = [
        _of_horizon(past, _counted(made), targets, calendar, horizon, window)
        for horizon in (horizons if made.height else ())
    ]
    return pl.concat([pl.DataFrame(schema=REALIZED), *frames])


def _counted(made: pl.DataFrame) -> pl.DataFrame:
    """Which scores count: of several made of one date the first, whoever made it, if not learned.

    A later one may know what followed.
    """
    return made.sort("date", "made_at").with_columns(
        counts=(pl.int_range(pl.len()).over("date") == 0) & (pl.col("date") >= pl.col("test_first"))
    )


def _of_horizon(
    past: pl.DataFrame, made: pl.DataFrame, targets: pl.DataFrame, calendar: pl.Series,
    horizon: int, window: int,
) -> pl.DataFrame:  # fmt: skip
    score, target = f"score_{horizon}d", f"target_{horizon}d"
    days = len(calendar) - 1 - ENTRY_LAG - horizon  # the last date whose day of exit has passed
    last_due = calendar[days] if days >= 0 else None
    rows = past.select("date", "code", "run_id", score).join(
        targets.select("date", "code", target), on=["date", "code"], how="left"
    )
    found = []
    for (run,), mine in rows.group_by("run_id", maintain_order=True):
        scored = mine.group_by("date").agg(scored=pl.col(score).is_finite().sum())
        of_run = rank_ic_by_date(mine, score, target).join(scored, on="date")
        found.append(of_run.with_columns(run_id=pl.lit(run)))
    judged = made.join(pl.concat(found), on=["date", "run_id"]).sort("date", "made_at")
    judged = judged.with_columns(
        horizon=pl.lit(horizon, pl.Int32), due=pl.col("date") <= pl.lit(last_due, pl.Date),
        known=pl.col("stocks"),
    ).with_columns(pl.col("due").fill_null(False))  # fmt: skip
    return judged.with_columns(**_rolling(judged, horizon, window)).select(
        pl.col(name).cast(dtype) for name, dtype in REALIZED.items()
    )


def _rolling(judged: pl.DataFrame, horizon: int, window: int) -> dict[str, pl.Series]:
    """Mean of the newest ``window`` rank ICs up to each date, with its Newey-West error."""
    values = judged["rank_ic"].fill_null(float("nan")).to_numpy()
    enters = judged["counts"].to_numpy() & np.isfinite(values)
    mean, error = np.full(len(values), np.nan), np.full(len(values), np.nan)
    dates = np.zeros(len(values), dtype=np.int64)
    places = np.flatnonzero(enters)
    for number, place in enumerate(places):
        span = places[max(0, number + 1 - window) : number + 1]
        estimate = newey_west_mean(values[span], horizon=horizon)
        mean[place], error[place], dates[place] = estimate.mean, estimate.standard_error, len(span)
    return {
        "rolling_rank_ic": pl.Series(mean).fill_nan(None),
        "rolling_error": pl.Series(error).fill_nan(None),
        "rolling_dates": pl.Series(dates),
    }
