"""Past scores joined with returns that became known: what counts, what is due, what stays open."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from scipy.stats import spearmanr

from atft_pipeline.transforms.judged_scores import rank_ic_by_date
from atft_pipeline.transforms.realized import REALIZED, realized_rank_ics

STOCKS, DAYS, FIRST = 35, 50, 10
CALENDAR = [dt.date(2024, 1, 1) + dt.timedelta(days=n) for n in range(DAYS)]
CODES = [f"{n:04d}" for n in range(STOCKS)]
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def grids() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    returns = rng.normal(size=(DAYS, STOCKS))
    scores = 0.3 * returns + rng.normal(size=(DAYS, STOCKS))
    scores[20, 4] = returns[22, 5] = np.nan
    return scores, returns


def targets(returns: np.ndarray) -> pl.DataFrame:
    """Five-day returns: unknown on the last six dates."""
    day, stock = np.divmod(np.arange(DAYS * STOCKS), STOCKS)
    known = np.where(np.arange(DAYS)[:, None] < DAYS - 6, returns, np.nan)
    return pl.DataFrame(
        {"date": pl.Series(CALENDAR)[day], "code": pl.Series(CODES)[stock],
         "target_5d": known.ravel()}
    ).with_columns(pl.col("target_5d").fill_nan(None))  # fmt: skip


def past(scores: np.ndarray, run: str = "run-1", days: range = range(FIRST, DAYS)) -> pl.DataFrame:
    return pl.concat(
        pl.DataFrame({"date": CALENDAR[day], "code": CODES, "run_id": run,
                      "score_5d": pl.Series(scores[day]).fill_nan(None)})
        for day in days
    )  # fmt: skip


def made(run: str = "run-1", days: range = range(FIRST, DAYS), hours: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "date": [CALENDAR[day] for day in days],
            "run_id": run,
            "made_at": [NOON + dt.timedelta(days=day, hours=hours) for day in days],
            "test_first": CALENDAR[FIRST],
            "evaluated_rank_ic": 0.1,
            "evaluated_error": 0.02,
        }
    )


def test_rank_ics_and_their_rolling_mean_are_those_of_a_slow_loop(grids):
    scores, returns = grids
    table = realized_rank_ics(past(scores), made(), targets(returns), (5,), window=15)
    assert dict(table.schema) == REALIZED
    expected = []
    for day in range(FIRST, DAYS - 6):
        usable = np.isfinite(scores[day]) & np.isfinite(returns[day])
        expected.append(spearmanr(scores[day][usable], returns[day][usable]).statistic)
    judged = table.filter(pl.col("rank_ic").is_not_null())
    assert judged["date"].to_list() == CALENDAR[FIRST : DAYS - 6]
    np.testing.assert_allclose(judged["rank_ic"].to_numpy(), expected, atol=1e-12)
    newest = expected[-15:]
    fit = sm.OLS(newest, np.ones(15)).fit(cov_type="HAC", cov_kwds={"maxlags": 8})
    assert judged["rolling_rank_ic"][-1] == pytest.approx(np.mean(newest), abs=1e-12)
    assert judged["rolling_error"][-1] == pytest.approx(fit.bse[0], rel=1e-9)
    assert judged["rolling_dates"].to_list() == [min(n, 15) for n in range(1, len(expected) + 1)]


def test_unknown_returns_are_neither_filled_nor_due(grids):
    scores, returns = grids
    table = realized_rank_ics(past(scores), made(), targets(returns), (5,), window=15)
    open_ = table.filter(~pl.col("due"))
    assert open_["date"].to_list() == CALENDAR[DAYS - 6 :]
    assert open_["rank_ic"].null_count() == open_.height
    assert open_["known"].to_list() == [0] * 6
    assert open_["rolling_rank_ic"].null_count() == open_["rolling_error"].null_count() == 6
    assert open_["rolling_dates"].to_list() == [0] * 6
    assert table["rolling_error"][0] is None  # of a single date
    assert not table["rolling_error"].is_nan().any()
    by_date = {row["date"]: row for row in table.iter_rows(named=True)}
    halted, unscored = by_date[CALENDAR[22]], by_date[CALENDAR[20]]
    assert (halted["scored"], halted["known"]) == (STOCKS, STOCKS - 1)
    assert (unscored["scored"], unscored["known"]) == (STOCKS - 1, STOCKS - 1)


def test_a_scored_stock_that_left_the_tables_is_scored_and_not_known(grids):
    scores, returns = grids
    gone = past(scores, days=range(12, 13)).head(1).with_columns(code=pl.lit("gone"))
    table = realized_rank_ics(
        pl.concat([past(scores), gone]), made(), targets(returns), (5,), window=15
    )
    row = table.filter(pl.col("date") == CALENDAR[12]).row(0, named=True)
    assert (row["scored"], row["known"]) == (STOCKS + 1, STOCKS)


def test_of_two_scorings_of_a_date_the_first_counts(grids):
    scores, returns = grids
    knows = past(returns, "run-2", range(12, 14))
    both = pl.concat([past(scores), knows])
    index = pl.concat([made("run-2", range(12, 14), hours=1), made()])  # in any order
    table = realized_rank_ics(both, index, targets(returns), (5,), window=15)
    alone = realized_rank_ics(past(scores), made(), targets(returns), (5,), window=15)
    late = table.filter(pl.col("run_id") == "run-2")
    assert late["rank_ic"].to_list() == pytest.approx([1.0, 1.0])
    assert late["counts"].any() is False
    assert late["rolling_rank_ic"].null_count() == 2
    assert table.filter("counts").equals(alone)


def test_dates_that_the_run_learned_from_do_not_count(grids):
    scores, returns = grids
    index = made().with_columns(test_first=pl.lit(CALENDAR[30]))
    table = realized_rank_ics(past(scores), index, targets(returns), (5,), window=15)
    assert table.filter("counts")["date"].min() == CALENDAR[30]
    assert table.filter(~pl.col("counts"))["rolling_rank_ic"].null_count() == 20


def test_on_a_calendar_shorter_than_the_horizon_nothing_is_due(grids):
    scores, returns = grids
    days = range(FIRST, FIRST + 3)
    short = targets(returns).filter(pl.col("date").is_in([CALENDAR[d] for d in days]))
    short = short.with_columns(target_5d=pl.lit(None, pl.Float64))
    table = realized_rank_ics(past(scores, days=days), made(days=days), short, (5,), window=15)
    assert table["due"].to_list() == [False] * 3
    assert table["rank_ic"].null_count() == 3


def test_without_past_scores_the_table_is_empty(grids):
    nothing = made().clear()
    table = realized_rank_ics(pl.DataFrame(), nothing, targets(grids[1]), (1, 5), window=15)
    assert (table.height, dict(table.schema)) == (0, REALIZED)


def test_a_date_with_too_few_stocks_ranks_nothing(grids):
    scores, returns = grids
    rows = past(scores, days=range(12, 14)).join(targets(returns), on=["date", "code"])
    thin = rows.filter((pl.col("date") != CALENDAR[12]) | (pl.col("code") < CODES[29]))
    found = rank_ic_by_date(thin, "score_5d", "target_5d")
    assert found["stocks"].to_list() == [29, STOCKS]
    assert found["rank_ic"].is_null().to_list() == [True, False]
    assert rank_ic_by_date(rows.clear(), "score_5d", "target_5d").height == 0
