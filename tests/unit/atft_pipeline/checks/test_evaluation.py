"""Every verdict on an evaluation, seen to hold and seen to fail."""

import polars as pl
import pytest
from scipy import stats

from atft_model.controls import ShuffledControl
from atft_pipeline.checks.evaluation import (
    SHUFFLED_CHANCE_LIMIT,
    SkillGates,
    evaluation_path_equals_training_path,
    metrics_not_identical_to_previous_run,
    rank_ic_above_baselines,
    sharpe_above_threshold,
    sharpe_significant,
    shuffled_control_finds_nothing,
)

NAN = float("nan")
GATES = SkillGates()


def _figures(
    value: float = 2.0, error: float = 0.4, low: float = 1.3, deflated: float = 0.99
) -> dict[str, tuple[float, float, int]]:
    return {
        "sharpe_net": (value, error, 500), "sharpe_net_low": (low, NAN, 500),
        "sharpe_lag": (5.0, NAN, 500), "deflated_sharpe": (deflated, NAN, 500),
        "sharpe_by_luck": (0.8, NAN, 500), "trials": (7.0, NAN, 500),
    }  # fmt: skip


def test_a_sharpe_whose_interval_lies_above_the_levels_holds() -> None:
    outcome = sharpe_above_threshold(_figures(), GATES)
    assert outcome.passed
    assert "lower bound 1.22 (Newey-West 1.22, bootstrap 1.30)" in outcome.figure
    assert "T=500, lag 5" in outcome.figure


@pytest.mark.parametrize(
    ("value", "error", "low", "severity"),
    [
        (0.849, 1.0, -1.1, "ERROR"),  # the number of old: a year of returns cannot tell it from 0
        (2.0, 0.4, -0.1, "ERROR"),  # the bootstrap alone says no
        (0.9, 0.5, 0.2, "ERROR"),  # the normal interval alone says no
        (1.0, 0.4, 0.3, "WARN"),
        (NAN, NAN, NAN, "ERROR"),
        (2.0, 0.4, NAN, "ERROR"),
    ],
)
def test_the_lower_of_both_bounds_counts(value, error, low, severity) -> None:
    outcome = sharpe_above_threshold(_figures(value, error, low), GATES)
    assert not outcome.passed
    assert outcome.severity == severity


def test_a_level_of_ones_own_counts() -> None:
    strict = SkillGates(min_sharpe=1.25)
    assert sharpe_above_threshold(_figures(), strict).severity == "ERROR"
    assert not sharpe_above_threshold(_figures(), strict).passed


@pytest.mark.parametrize(
    ("deflated", "holds"), [(0.99, True), (0.95, True), (0.94, False), (NAN, False)]
)
def test_a_sharpe_is_significant_beyond_luck(deflated, holds) -> None:
    outcome = sharpe_significant(_figures(deflated=deflated), GATES)
    assert outcome.passed is holds
    assert "against 0.80, the best of 7 trials without skill" in outcome.figure


def test_the_model_has_to_be_ahead_of_every_baseline() -> None:
    ahead = {"ridge": (0.02, 0.005, 200), "reversal_1d": (0.03, 0.004, 200)}
    assert rank_ic_above_baselines(ahead, GATES).passed
    ahead["lightgbm"] = (0.004, 0.005, 200)
    outcome = rank_ic_above_baselines(ahead, GATES)
    assert not outcome.passed
    assert outcome.figure.startswith("ahead of 2 of 3; least of lightgbm: +0.0040 ± 0.0050 (t = 0")
    assert not rank_ic_above_baselines({"ridge": (NAN, NAN, 0)}, GATES).passed
    assert not rank_ic_above_baselines({}, GATES).passed


def test_a_shuffled_score_that_ranks_returns_is_a_fault() -> None:
    clean = {1: ShuffledControl(0.0001, 0.3, 20), 5: ShuffledControl(-0.0007, -2.1, 20)}
    assert shuffled_control_finds_nothing(clean).passed
    leak = clean | {5: ShuffledControl(0.02, 21.0, 20)}
    outcome = shuffled_control_finds_nothing(leak)
    assert outcome.stops
    assert "mean rank IC +0.0200 over 20 deals at 5 days, +21.0 standard errors" in outcome.figure
    assert "chance of 1.3e-14" in outcome.figure
    undefined = ShuffledControl(NAN, NAN, 0)
    assert shuffled_control_finds_nothing(clean | {10: undefined}).stops
    assert shuffled_control_finds_nothing({5: undefined}).stops


def test_few_deals_have_to_be_further_out_to_be_a_fault() -> None:
    """Six standard errors of four deals come by luck once in a hundred; of a hundred, never."""
    assert shuffled_control_finds_nothing({5: ShuffledControl(0.004, 6.0, 4)}).passed
    assert shuffled_control_finds_nothing({5: ShuffledControl(0.004, 6.0, 100)}).stops
    edge = stats.t.isf(SHUFFLED_CHANCE_LIMIT / 2, 19)
    assert shuffled_control_finds_nothing({5: ShuffledControl(0.1, edge - 0.01, 20)}).passed
    assert shuffled_control_finds_nothing({5: ShuffledControl(0.1, edge + 0.01, 20)}).stops


def _evaluation(weights: str, factor: float = 1.0) -> pl.DataFrame:
    metrics = ["rank_ic", "sharpe_net", "turnover"]
    return pl.DataFrame(
        {
            "checkpoint_hash": [weights] * 6,
            "scorer": ["model"] * 3 + ["ridge"] * 3,
            "horizon": [5] * 6,
            "metric": metrics * 2,
            "value": [0.0213 * factor, 0.849123456 * factor, NAN, 0.01, 0.2, 0.3],
        }
    )


def test_other_weights_with_the_same_figures_are_a_copied_file() -> None:
    """The historical failure: the same Sharpe to 17 digits in every run."""
    now = _evaluation("new")
    assert metrics_not_identical_to_previous_run(now, None).passed
    assert metrics_not_identical_to_previous_run(now, _evaluation("new")).passed  # a rerun
    assert metrics_not_identical_to_previous_run(now, _evaluation("old", 1.001)).passed
    for factor in (1.0, 1 + 1e-9):
        outcome = metrics_not_identical_to_previous_run(now, _evaluation("old", factor))
        assert outcome.stops
        assert outcome.figure == "2 of 2 figures equal those of weights old to 6 digits"


RECORD = {
    "best_epoch": 2,
    "history": [
        {"epoch": 1, "val_rank_ic_1d": 0.9, "val_rank_ic_5d": 0.9},
        {"epoch": 2, "val_rank_ic_1d": 0.031, "val_rank_ic_5d": 0.052},
    ],
}


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ({1: 0.031, 5: 0.052}, True),
        ({1: 0.0312, 5: 0.0515}, True),
        ({1: 0.031, 5: 0.040}, False),  # dropout left on
        ({1: NAN, 5: 0.052}, False),
    ],
)
def test_scores_of_another_path_than_trainings_are_refused(found, holds) -> None:
    outcome = evaluation_path_equals_training_path(found, RECORD)
    assert outcome.passed is holds
    if found[5] == 0.040:
        assert outcome.figure == "5-day validation rank IC 0.0400, training recorded 0.0520"
