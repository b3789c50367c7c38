"""A newer model against the one in use: what is compared, what bars it, what is only warned of."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from scipy.stats import spearmanr

from atft_pipeline.checks.acceptance import (
    AcceptanceGates,
    Comparison,
    blocking_checks_green,
    compare_scores,
    not_worse_than_before,
)

GATES = AcceptanceGates()
DATES = [dt.date(2024, 1, 1) + dt.timedelta(days=n) for n in range(90)]
CODES = [f"{n:04d}" for n in range(40)]


def rows(values: np.ndarray, name: str, dates=DATES, codes=CODES) -> pl.DataFrame:
    """A grid [dates, codes] as rows; NaN has none."""
    day, stock = np.nonzero(np.isfinite(values))
    return pl.DataFrame(
        {"date": pl.Series(dates)[day], "code": pl.Series(codes)[stock], name: values[day, stock]}
    )


def market(skill: float, other: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, and two scores that know ``skill`` and ``other`` of them."""
    rng = np.random.default_rng(seed)
    shape = (len(DATES), len(CODES))
    returns = rng.normal(size=shape)
    return returns, *(share * returns + rng.normal(size=shape) for share in (skill, other))


def compared(mine: np.ndarray, theirs: np.ndarray, returns: np.ndarray) -> Comparison:
    return compare_scores("new", "old", rows(mine, "score"), rows(theirs, "score"),
                          rows(returns, "target_5d"))  # fmt: skip


def test_the_difference_and_its_error_are_those_of_a_slow_loop_on_what_is_common():
    returns, mine, theirs = market(0.2, 0.3)
    mine[:20], theirs[80:] = np.nan, np.nan  # other test periods
    mine[:, 35:], theirs[:, :3] = np.nan, np.nan  # other stocks
    returns[30] = np.nan  # not yet known
    found = compared(mine, theirs, returns)
    gaps = []
    for day in range(20, 80):
        if day == 30:
            continue
        ours, old = (spearmanr(score[day, 3:35], returns[day, 3:35]).statistic
                     for score in (mine, theirs))  # fmt: skip
        gaps.append(ours - old)
    # The lag that 59 dates of 5-day returns get: 2 (5 - 1).
    fit = sm.OLS(gaps, np.ones(len(gaps))).fit(cov_type="HAC", cov_kwds={"maxlags": 8})
    assert (found.dates, found.stocks) == (59, 32)
    assert found.difference == pytest.approx(np.mean(gaps), abs=1e-12)
    assert found.standard_error == pytest.approx(fit.bse[0], rel=1e-9)


def test_a_stock_that_one_of_them_left_unscored_counts_for_neither():
    returns, mine, theirs = market(0.2, 0.3)
    mine[:, 30:] = np.nan
    bare = compared(mine, theirs, returns)
    known, other = rows(mine, "score"), rows(theirs, "score")
    missing = other.join(known, on=["date", "code"], how="anti")
    listed = pl.concat([known, missing.with_columns(score=pl.lit(None, pl.Float64))])
    assert listed["score"].null_count() == 10 * len(DATES)
    found = compare_scores("new", "old", listed, other, rows(returns, "target_5d"))
    assert found == bare


def test_a_run_that_is_clearly_worse_is_an_error_and_one_that_is_better_is_none():
    returns, mine, theirs = market(0.0, 0.5)
    worse, better = compared(mine, theirs, returns), compared(theirs, mine, returns)
    outcome = not_worse_than_before([worse], GATES)
    assert outcome.stops
    assert outcome.figure.startswith("run new against old: -0.")
    assert "on 90 common test dates of 40 common stocks" in outcome.figure
    assert not_worse_than_before([better], GATES).passed


def test_a_difference_within_its_error_is_none():
    found = Comparison("new", "old", difference=-0.01, standard_error=0.0062, dates=90, stocks=40)
    assert not found.is_worse(GATES)  # t = -1.61, one-sided 5 % is -1.645
    assert found.is_worse(AcceptanceGates(level=0.06))
    assert Comparison("new", "old", -0.01, 0.006, 90, 40).is_worse(GATES)


def test_too_few_common_dates_are_said_and_do_not_bar():
    returns, mine, theirs = market(0.0, 0.9)
    found = compared(mine[:59], theirs, returns)
    assert not found.is_worse(GATES)
    outcome = not_worse_than_before([found], GATES)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert "not compared, 59 common test dates of 40 common stocks are too few" in outcome.figure
    assert found.is_worse(AcceptanceGates(min_common_dates=59))


def test_a_single_date_has_no_error_and_is_never_judged():
    found = Comparison("new", "old", -0.5, dates=1)
    assert not found.is_worse(AcceptanceGates(min_common_dates=0))


def test_nothing_in_common_is_no_figure():
    returns, mine, theirs = market(0.0, 0.9)
    theirs[:45], mine[45:] = np.nan, np.nan
    outcome = not_worse_than_before([compared(mine, theirs, returns)], GATES)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert "0 common test dates" in outcome.figure
    assert "difference" not in outcome.numbers


def test_the_same_scores_are_not_worse():
    returns, mine, _ = market(0.2, 0.2)
    found = compared(mine, mine, returns)
    assert (found.difference, np.isnan(found.standard_error)) == (0.0, True)
    outcome = not_worse_than_before([found], GATES)
    assert outcome.passed
    assert outcome.numbers.keys() == {"compared", "common_dates", "common_stocks", "difference"}
    assert Comparison("new", "old", -0.01, dates=90).is_worse(GATES)


def test_scores_that_are_missing_are_named():
    outcome = not_worse_than_before([Comparison("new", "old", missing="old has none")], GATES)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert outcome.figure == "run new against old: not compared, old has none"


def test_a_worse_run_shows_though_an_older_one_is_taken():
    worse = Comparison("newest", "old", -0.05, 0.01, 90, 40)
    fine = Comparison("newer", "old", 0.01, 0.01, 90, 40)
    outcome = not_worse_than_before([fine, worse], GATES)
    assert outcome.stops
    assert outcome.figure.startswith("run newest against old: -0.0500")
    assert not_worse_than_before([], GATES).passed


def test_no_sound_run_stops_and_says_why() -> None:
    outcome = blocking_checks_green(None, {"r2": "failed trained_model:no_dead_inputs"}, ())
    assert outcome.stops
    assert outcome.figure == "no run; passed over: r2 failed trained_model:no_dead_inputs"
    assert blocking_checks_green("r1", {}, ("evaluation:sharpe_significant",)).passed
