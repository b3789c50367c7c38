"""Checks of past scores: unchanged since they were made, judged when due, as good as evaluated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl

from atft_model.config import setting
from atft_model.evaluation import HEADLINE_HORIZON
from atft_model.metrics.inference import newey_west_mean
from atft_pipeline.checks.outcome import Outcome


@dataclass(frozen=True)
class RealizedGates:
    """When the realized results of past scores raise an alarm."""

    window: int = setting(
        60, "Newest dates with known returns that the rolling rank IC spans: a quarter."
    )
    min_dates: int = setting(
        20, "Dates with known returns below which nothing is judged yet: a month of 5-day returns "
        "is four independent ones."
    )  # fmt: skip
    level: float = setting(
        0.05, "Level of the one-sided test that scores do worse than the evaluation of their model."
    )
    max_unknown_share: float = setting(
        0.1, "Share of dates whose returns are due and whose rank IC is not known: more means that "
        "prices are missing or codes changed."
    )  # fmt: skip


def past_scores_unchanged(made: pl.DataFrame, found: Mapping[tuple[str, str], str]) -> Outcome:
    """Every file of past scores has the content that it was made with, and none is missing.

    Args:
        made: date, run_id and content_hash of each, as written when it was made.
        found: Hash of each file that is there, by (date, run_id).
    """
    rows = made.select("date", "run_id", "content_hash").iter_rows()
    expected = {(str(day), run): digest for day, run, digest in rows}
    faults = [f"{day} by {run} is missing" for day, run in expected.keys() - found.keys()]
    faults += [f"{day} by {run} was never made" for day, run in found.keys() - expected.keys()]
    faults += [f"{day} by {run} was changed" for (day, run) in expected.keys() & found.keys()
               if expected[day, run] != found[day, run]]  # fmt: skip
    return Outcome(
        "past_scores_unchanged",
        not faults,
        "; ".join(sorted(faults)[:3]) or f"{len(expected)} scorings as they were made",
        "each file of past_scores with the hash in past_scores_made",
        numbers={"scorings": len(expected), "faults": len(faults)},
    )


def due_returns_known(realized: pl.DataFrame, gates: RealizedGates) -> Outcome:
    """Scores whose day of exit has passed have a rank IC: no missing evidence passes in silence."""
    due = realized.filter("due", "counts", pl.col("horizon") == HEADLINE_HORIZON)
    unknown = due.filter(pl.col("rank_ic").is_null())
    share = unknown.height / max(due.height, 1)
    judged = due.height - unknown.height
    named = f", not {unknown['date'][0]}" if unknown.height else ""
    return Outcome(
        "due_returns_known",
        share <= gates.max_unknown_share,
        f"{judged} of {due.height} dates with due returns have a rank IC{named}",
        f"at most {gates.max_unknown_share:.0%} without",
        severity="WARN",
        numbers={"due": due.height, "unknown": unknown.height},
    )


def realized_rank_ic_as_evaluated(realized: pl.DataFrame, gates: RealizedGates) -> Outcome:
    """The realized rank IC is not significantly below the one evaluated on test dates.

    Each date's rank IC is compared with what was evaluated of the run that scored it. The error
    has both parts: of the realized mean, and of the evaluated ones, which count as one (the test
    dates of successive models overlap). With too few dates nothing is judged, and the verdict
    says so; ``due_returns_known`` sees to it that dates do not go missing.
    """
    name = "realized_rank_ic_as_evaluated"
    threshold = (
        f"not below the evaluated one, one-sided at {gates.level:g}, on the newest {gates.window} "
        f"dates of {gates.min_dates} or more"
    )
    of_headline = realized.filter("counts", pl.col("horizon") == HEADLINE_HORIZON)
    known = of_headline.drop_nulls(["rank_ic", "evaluated_rank_ic", "evaluated_error"])
    judged = known.sort("date").tail(gates.window)
    if judged.height < max(gates.min_dates, 2):
        return Outcome(
            name, True,
            f"nothing to judge yet: {judged.height} of {of_headline.height} scored dates have "
            f"known returns and an evaluated model, {gates.min_dates} are needed",
            threshold, severity="WARN", numbers={"judged_dates": judged.height},
        )  # fmt: skip
    actual, evaluated = judged["rank_ic"].to_numpy(), judged["evaluated_rank_ic"].to_numpy()
    estimate = newey_west_mean(actual - evaluated, horizon=HEADLINE_HORIZON)
    error = math.hypot(estimate.standard_error, float(judged["evaluated_error"].to_numpy().mean()))
    t = estimate.mean / error
    return Outcome(
        name,
        # NaN compares false: an unknown error is no pass.
        t >= -NormalDist().inv_cdf(1.0 - gates.level),
        f"rank IC {float(np.mean(actual)):+.4f} on {judged.height} dates, evaluated "
        f"{float(np.mean(evaluated)):+.4f}: {estimate.mean:+.4f} ± {error:.4f} (t = {t:.1f})",
        threshold,
        severity="WARN",
        numbers={
            "judged_dates": judged.height, "realized_rank_ic": float(np.mean(actual)),
            "evaluated_rank_ic": float(np.mean(evaluated)), "difference": estimate.mean,
            "standard_error": error,
        },
    )  # fmt: skip
