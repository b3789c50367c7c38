"""The model in use and its scores: what holds, and what is refused."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from atft_pipeline.checks.outcome import Outcome
from atft_pipeline.checks.record import RunVerdicts, read_verdicts, write_verdicts
from atft_pipeline.checks.serving import (
    ServingGates,
    integrity_failures,
    model_is_sound,
    scores_are_current,
    scores_not_degenerate,
)

GREEN = RunVerdicts("w", (), ("sharpe_significant",))


def test_a_run_is_sound_when_every_judge_found_it_so_on_these_weights() -> None:
    assert integrity_failures({"trained_model": GREEN, "evaluation": GREEN}, "w") == ()


@pytest.mark.parametrize(
    ("verdict", "failed"),
    [
        (None, "evaluation:not_judged"),
        (RunVerdicts("v", (), ()), "evaluation:judged_other_weights"),
        (RunVerdicts("w", ("evidence_matches_checkpoint",), ()),
         "evaluation:evidence_matches_checkpoint"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_is_told_apart(verdict, failed) -> None:
    assert integrity_failures({"trained_model": GREEN, "evaluation": verdict}, "w") == (failed,)


def test_verdicts_survive_the_run_folder(tmp_path) -> None:
    outcomes = [
        Outcome("no_dead_inputs", False, "", ""),
        Outcome("loss_decreases", False, "", "", severity="WARN"),
        Outcome("run_is_complete", True, "", ""),
        Outcome("rank_ic_positive", False, "", ""),
    ]
    assert read_verdicts(tmp_path, "evaluation") is None
    write_verdicts(tmp_path, "evaluation", outcomes, ("rank_ic_positive",), "w")
    found = read_verdicts(tmp_path, "evaluation")
    assert found == RunVerdicts("w", ("no_dead_inputs",), ("rank_ic_positive",))


def test_stale_scores_stop() -> None:
    day = dt.date(2020, 1, 2)
    assert scores_are_current(day, day).passed
    outcome = scores_are_current(day, dt.date(2020, 1, 6))
    assert outcome.stops
    assert outcome.figure == "scores of 2020-01-02, the panel ends on 2020-01-06"


def _scores(values: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"score_1d": values, "score_5d": values[::-1].copy()})


GOOD = np.random.default_rng(0).normal(0, 0.01, 50)


def test_scores_that_tell_stocks_apart_hold() -> None:
    assert scores_not_degenerate(_scores(GOOD), 55, (1, 5), ServingGates()).passed


@pytest.mark.parametrize(
    ("values", "tradable", "words"),
    [
        (np.full(50, 0.3), 50, "1 days: std 0, 2% distinct values"),
        (np.where(np.arange(50) < 45, 0.1, GOOD), 50, "1 days: std"),
        (1e-8 * GOOD, 50, "1 days: std"),
        (np.where(np.arange(50) == 0, np.nan, GOOD), 50, "1 days: 1 scores are not finite"),
        (GOOD[:29], 29, "29 of 29 tradable stocks"),
        (GOOD, 60, "50 of 60 tradable stocks"),
    ],
)
def test_degenerate_scores_stop(values, tradable, words) -> None:
    outcome = scores_not_degenerate(_scores(values), tradable, (1, 5), ServingGates())
    assert outcome.stops
    assert outcome.figure.startswith(words)


def test_failed_checks_pass_only_when_told_in_words() -> None:
    assert model_is_sound("r", (), False).passed
    assert model_is_sound("r", ("evaluation:not_judged",), False).stops
    told = model_is_sound("r", ("evaluation:not_judged",), True)
    assert told.passed
    assert "allow_failed_checks is true" in told.figure
