"""Checks of past scores, each seen to fail."""

import datetime as dt
import math

import polars as pl
import pytest
import statsmodels.api as sm

from atft_pipeline.checks.realized import (
    RealizedGates,
    due_returns_known,
    past_scores_unchanged,
    realized_rank_ic_as_evaluated,
)
from atft_pipeline.transforms.realized import REALIZED

GATES = RealizedGates()
DATES = [dt.date(2024, 1, 1) + dt.timedelta(days=n) for n in range(100)]
MADE = pl.DataFrame({"date": DATES[:2], "run_id": "run-1", "content_hash": ["aa", "bb"]})
FOUND = {("2024-01-01", "run-1"): "aa", ("2024-01-02", "run-1"): "bb"}


def realized(values: list[float | None], evaluated: float | None = 0.05) -> pl.DataFrame:
    """Rows at 5 days, one per date."""
    table = pl.DataFrame({"date": DATES[: len(values)], "rank_ic": values}).with_columns(
        horizon=5, counts=True, due=True, evaluated_rank_ic=pl.lit(evaluated),
        evaluated_error=pl.lit(0.01),
    )  # fmt: skip
    missing = [pl.lit(None).alias(name) for name in REALIZED if name not in table.columns]
    return table.with_columns(missing).select(
        pl.col(name).cast(dtype) for name, dtype in REALIZED.items()
    )


def test_files_as_they_were_made_pass():
    outcome = past_scores_unchanged(MADE, FOUND)
    assert outcome.passed
    assert outcome.figure == "2 scorings as they were made"
    assert past_scores_unchanged(MADE.clear(), {}).passed


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (FOUND | {("2024-01-02", "run-1"): "cc"}, "2024-01-02 by run-1 was changed"),
        ({("2024-01-01", "run-1"): "aa"}, "2024-01-02 by run-1 is missing"),
        (FOUND | {("2024-01-03", "run-2"): "dd"}, "2024-01-03 by run-2 was never made"),
    ],
)
def test_a_changed_missing_or_foreign_file_stops(found, fault):
    outcome = past_scores_unchanged(MADE, found)
    assert outcome.stops
    assert outcome.figure == fault


def test_returns_that_are_due_and_unknown_are_told():
    table = realized([0.1] * 8 + [None] * 2)
    outcome = due_returns_known(table, GATES)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert outcome.figure == "8 of 10 dates with due returns have a rank IC, not 2024-01-09"
    assert due_returns_known(table.with_columns(due=pl.col("rank_ic").is_not_null()), GATES).passed
    assert due_returns_known(realized([]), GATES).figure.startswith("0 of 0 dates")


def test_only_what_counts_at_the_headline_horizon_has_to_be_known():
    table = realized([0.1] * 9 + [None])
    assert due_returns_known(table, GATES).passed  # one of ten is the limit
    others = realized([None] * 10)
    for beside in (others.with_columns(counts=False),
                   others.with_columns(horizon=pl.lit(1, pl.Int32))):  # fmt: skip
        assert due_returns_known(pl.concat([table, beside]), GATES).passed


def test_only_the_headline_horizon_in_the_order_of_dates_is_judged():
    good = realized(swing(0.05, 60))
    other = realized(swing(-0.5, 60)).with_columns(horizon=pl.lit(1, pl.Int32))
    assert realized_rank_ic_as_evaluated(pl.concat([good, other]), GATES).passed
    turned = realized(swing(0.06, 60) + swing(-0.3, 40))
    assert not realized_rank_ic_as_evaluated(turned.reverse(), GATES).passed


def test_an_evaluation_without_an_error_is_no_measure():
    table = realized(swing(-0.3, 60)).with_columns(evaluated_error=pl.lit(None, pl.Float64))
    assert "0 of 60" in realized_rank_ic_as_evaluated(table, GATES).figure


def test_a_single_date_is_never_judged():
    gates = RealizedGates(min_dates=0)
    assert "nothing to judge" in realized_rank_ic_as_evaluated(realized([-0.9]), gates).figure


def test_as_many_dates_as_are_needed_are_judged():
    outcome = realized_rank_ic_as_evaluated(realized(swing(-0.5, 20)), GATES)
    assert not outcome.passed


def test_the_test_is_one_sided_at_its_level():
    """t between the one-sided limit of 5 % (-1.645) and the two-sided one (-1.96)."""
    table = realized(swing(0.05, 60))
    at_zero = realized_rank_ic_as_evaluated(table, GATES).numbers
    shift = 1.8 * at_zero["standard_error"] + at_zero["difference"]
    outcome = realized_rank_ic_as_evaluated(
        table.with_columns(rank_ic=pl.col("rank_ic") - shift), GATES
    )
    assert "(t = -1.8)" in outcome.figure
    assert not outcome.passed


def swing(level: float, days: int) -> list[float | None]:
    return [level + 0.1 * math.sin(1.7 * day) for day in range(days)]


def test_scores_that_do_worse_than_evaluated_warn_with_both_errors():
    values = swing(-0.02, 60)
    outcome = realized_rank_ic_as_evaluated(realized(values), GATES)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    fit = sm.OLS([v - 0.05 for v in values], [1.0] * 60).fit(
        cov_type="HAC", cov_kwds={"maxlags": 8}
    )
    assert outcome.numbers["difference"] == pytest.approx(fit.params[0])
    assert outcome.numbers["standard_error"] == pytest.approx(math.hypot(fit.bse[0], 0.01))
    assert "on 60 dates, evaluated +0.0500" in outcome.figure


def test_scores_that_do_as_well_or_better_pass():
    assert realized_rank_ic_as_evaluated(realized(swing(0.05, 60)), GATES).passed
    assert realized_rank_ic_as_evaluated(realized(swing(0.30, 60)), GATES).passed


def test_only_the_newest_dates_and_those_that_count_are_judged():
    values = swing(-0.3, 40) + swing(0.06, 60)
    assert realized_rank_ic_as_evaluated(realized(values), GATES).passed
    early = realized(values).with_columns(counts=pl.col("date") < DATES[40])
    assert not realized_rank_ic_as_evaluated(early, GATES).passed


def test_too_few_dates_are_counted_and_not_judged():
    outcome = realized_rank_ic_as_evaluated(realized([-0.9] * 19 + [None] * 3), GATES)
    assert outcome.passed
    assert outcome.figure.startswith("nothing to judge yet: 19 of 22 scored dates")
    assert outcome.numbers == {"judged_dates": 19}
    unevaluated = realized(swing(-0.3, 60), evaluated=None)
    assert "0 of 60" in realized_rank_ic_as_evaluated(unevaluated, GATES).figure


def test_an_error_that_is_unknown_is_no_pass():
    assert not realized_rank_ic_as_evaluated(realized([0.9] * 30), GATES).passed
