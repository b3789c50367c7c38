"""Checks of a walk-forward: whose scores are pooled, and whether each saw only what came before."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from atft_model.data.splits import purge_days
from atft_pipeline.checks.evaluation import evidence_matches_checkpoint
from atft_pipeline.checks.outcome import Outcome

SHOWN = 3


@dataclass(frozen=True)
class FoldEvidence:
    """One period's stored scores with what they are said to come from.

    Attributes:
        scores: Of the model and of the random graph, test dates of the period.
        baselines: Of the same dates.
        record: The run record of the model that was trained for the period.
        weights_hash: Recomputed from its checkpoint just now.
    """

    scores: pl.DataFrame
    baselines: pl.DataFrame
    record: Mapping[str, Any]
    weights_hash: str


def folds_match_checkpoints(folds: Mapping[str, FoldEvidence], panel_hash: str) -> Outcome:
    """Every period's scores, weights, run record and baselines are of one run and this panel.

    Periods that were scored on another panel are refused: its features, targets or stocks differ.
    """
    faults = []
    for period, fold in folds.items():
        outcome = evidence_matches_checkpoint(
            {"rolling_model": fold.scores}, fold.baselines, fold.record, fold.weights_hash,
            panel_hash,
        )  # fmt: skip
        trained_for = fold.record.get("fold", {}).get("period")
        if not outcome.passed:
            faults.append(f"{period}: {outcome.figure}")
        elif trained_for != period:
            faults.append(f"{period}: the scores are of a model for {trained_for}")
    return Outcome(
        "folds_match_checkpoints",
        bool(folds) and not faults,
        _some(faults) or f"{len(folds)} periods, each of its own run, all of panel {panel_hash}",
        "one run per period, one panel; run a period again, or delete its files in rolling_model",
        numbers={"periods": len(folds), "mismatches": len(faults)},
    )


def periods_do_not_overlap(scored: Mapping[str, Sequence[dt.date]]) -> Outcome:
    """No date is scored in two periods: it would count twice, and the better model could be shown.

    Args:
        scored: The dates with scores of each period.
    """
    owner: dict[dt.date, str] = {}
    twice: dict[tuple[str, str], int] = {}
    for period, dates in scored.items():
        for day in dates:
            first = owner.setdefault(day, period)
            if first != period:
                twice[first, period] = twice.get((first, period), 0) + 1
    faults = [f"{a} and {b} share {days} dates" for (a, b), days in twice.items()]
    return Outcome(
        "periods_do_not_overlap",
        not faults,
        _some(faults) or f"{len(owner)} dates, each scored by one model",
        "each date in one period; delete the files of one of the two in rolling_model",
        numbers={"dates": len(owner), "overlaps": sum(twice.values())},
    )


def scores_are_out_of_sample(
    scored: Mapping[str, Sequence[dt.date]], records: Mapping[str, Mapping[str, Any]],
    calendar: Sequence[dt.date], horizons: tuple[int, ...],
) -> Outcome:  # fmt: skip
    """Each score's date lies behind the last training and validation label, in trading days.

    Args:
        scored: The dates with scores of each period.
        records: The run record of each period: its split as dates.
        calendar: The panel's trading dates, rising.
    """
    position = {day: place for place, day in enumerate(calendar)}
    reach = purge_days(horizons)
    faults, nearest = [], len(calendar)
    for period, dates in scored.items():
        split = records[period]["split"]
        known = max(position[dt.date.fromisoformat(split[part][1])]
                    for part in ("train", "validation"))  # fmt: skip
        ahead = position[min(dates)] - known
        nearest = min(nearest, ahead)
        if ahead <= reach:
            faults.append(
                f"{period}: scored from {min(dates)}, {ahead} trading days after its last "
                "validation date"
            )
    return Outcome(
        "scores_are_out_of_sample",
        bool(scored) and not faults,
        _some(faults) or f"scores begin {nearest} trading days or more after the last date learned",
        f"more than {reach} trading days: the longest horizon and the execution lag",
        numbers={"nearest": nearest},
    )


def every_period_is_scored(planned: Sequence[str], scored: Sequence[str]) -> Outcome:
    """Every period that the panel allows has its scores; a warning names those that lack them."""
    missing = [period for period in planned if period not in scored]
    words = f"missing: {', '.join(missing)}" if missing else f"all {len(planned)}"
    return Outcome(
        "every_period_is_scored",
        not missing,
        f"{len(planned) - len(missing)} of {len(planned)} periods; {words}",
        "each period of test_periods; run those missing as partitions of rolling_model",
        severity="WARN",
        numbers={"missing": len(missing)},
    )


def _some(faults: Sequence[str]) -> str:
    more = f"; {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more
