"""What may be pooled: each check of a walk-forward holds, and is seen to fail."""

import datetime as dt
from dataclasses import replace

import polars as pl
import pytest

from atft_pipeline.checks.walk_forward import (
    FoldEvidence,
    every_period_is_scored,
    folds_match_checkpoints,
    periods_do_not_overlap,
    scores_are_out_of_sample,
)

CALENDAR = [dt.date(2018, 1, 1) + dt.timedelta(days=i) for i in range(300)]


def _fold(period: str, panel: str = "p") -> FoldEvidence:
    identity = {"run_id": f"run-{period}", "checkpoint_hash": f"w-{period}", "panel_hash": panel}
    scores = pl.DataFrame({name: [value] * 2 for name, value in identity.items()})
    baselines = pl.DataFrame({"panel_hash": [panel]})
    return FoldEvidence(scores, baselines, {**identity, "fold": {"period": period}}, f"w-{period}")


def test_folds_of_one_panel_hold() -> None:
    outcome = folds_match_checkpoints({p: _fold(p) for p in ("2018", "2019")}, "p")
    assert outcome.passed
    assert "2 periods" in outcome.figure


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        (_fold("2019", panel="other"), "2019: rolling_model: panel_hash is ['other']"),
        (replace(_fold("2019"), weights_hash="x"), "2019: rolling_model: checkpoint_hash is"),
        (replace(_fold("2019"), baselines=pl.DataFrame({"panel_hash": ["q"]})),
         "2019: baselines are of another panel"),
        (_fold("2018"), "2019: the scores are of a model for 2018"),
        (replace(_fold("2019"), scores=pl.concat([_fold("2019").scores, _fold("2018").scores])),
         "2019: rolling_model: run_id is ['run-2018', 'run-2019']"),
    ],
)  # fmt: skip
def test_evidence_of_another_run_or_panel_stops(fold, words) -> None:
    outcome = folds_match_checkpoints({"2018": _fold("2018"), "2019": fold}, "p")
    assert outcome.stops
    assert outcome.figure.startswith(words)


def test_no_fold_at_all_is_no_evidence() -> None:
    assert folds_match_checkpoints({}, "p").stops


def test_dates_scored_twice_stop() -> None:
    apart = {"2018": CALENDAR[:100], "2019": CALENDAR[100:200]}
    assert periods_do_not_overlap(apart).passed
    outcome = periods_do_not_overlap({"2018": CALENDAR[:101], "2018-Q2": CALENDAR[98:200]})
    assert outcome.stops
    assert outcome.figure == "2018 and 2018-Q2 share 3 dates"


def test_scores_within_reach_of_a_label_stop() -> None:
    split = {"train": [CALENDAR[0], CALENDAR[50]], "validation": [CALENDAR[80], CALENDAR[100]]}
    record = {"split": {name: [str(day) for day in days] for name, days in split.items()}}
    horizons = (1, 20)

    def judge(first: int):
        return scores_are_out_of_sample(
            {"2018": CALENDAR[first:]}, {"2018": record}, CALENDAR, horizons
        )

    assert judge(122).passed
    assert judge(121).stops  # the label of position 100 ends with the close of 121
    assert "scored from 2018-05-02, 21 trading days after" in judge(121).figure


def test_missing_periods_are_named_and_warn() -> None:
    assert every_period_is_scored(["2018", "2019"], ["2019", "2018"]).passed
    outcome = every_period_is_scored(["2017", "2018", "2019"], ["2018"])
    assert not outcome.passed
    assert not outcome.stops
    assert outcome.figure == "1 of 3 periods; missing: 2017, 2019"
