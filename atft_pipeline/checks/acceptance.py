"""Checks of the model that is put in use: it is sound, and not worse than the one before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl

from atft_model.config import setting
from atft_model.evaluation import HEADLINE_HORIZON
from atft_model.metrics.inference import newey_west_mean, smallest_detectable
from atft_pipeline.checks.outcome import Outcome
from atft_pipeline.transforms.judged_scores import rank_ic_by_date


@dataclass(frozen=True)
class AcceptanceGates:
    """When a sound run takes the place of the model in use."""

    require_skill: bool = setting(
        False, "Also pass over runs that failed a skill verdict (Sharpe, rank IC, ...). Off: the "
        "verdicts are named in every row that the model scores."
    )  # fmt: skip
    level: float = setting(
        0.05, "Level of the one-sided test that a run is worse than the model in use: so often a "
        "run that is as good is passed over by chance."
    )  # fmt: skip
    min_common_dates: int = setting(
        60, "Test dates that both were judged on, below which nothing is compared: the run is put "
        "in use, as nothing speaks against it, and the check warns."
    )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A run against the model in use, on the test dates and stocks that both have scores of.

    Attributes:
        difference: Mean over dates of the run's rank IC less that of the model in use, at the
            headline horizon; NaN without a common date.
        standard_error: Newey-West; NaN where the difference does not vary.
        dates: Dates on which both rank ICs are defined.
        stocks: Median number of common stocks on these dates.
        missing: Why there are no scores to compare; empty where there are.
    """

    run_id: str
    before: str
    difference: float = math.nan
    standard_error: float = math.nan
    dates: int = 0
    stocks: int = 0
    missing: str = ""

    def is_judged(self, gates: AcceptanceGates) -> bool:
        """Whether there are enough dates to tell."""
        return self.dates >= max(gates.min_common_dates, 2)

    def is_worse(self, gates: AcceptanceGates) -> bool:
        """Whether the run is significantly worse than the model in use."""
        if not self.is_judged(gates):
            return False
        if math.isnan(self.standard_error):  # the same difference on every date
            return self.difference < 0
        critical = NormalDist().inv_cdf(1.0 - gates.level)
        return self.difference / self.standard_error < -critical


def compare_scores(
    run_id: str, before: str, mine: pl.DataFrame, theirs: pl.DataFrame, targets: pl.DataFrame
) -> Comparison:
    """Both runs' rank IC per date on what they have in common, and the mean of its difference.

    Args:
        mine: (date, code, score) of the run's test dates.
        theirs: The same of the model in use.
        targets: The table ``targets``; both are judged by its returns, whichever panel they knew.
    """
    target = f"target_{HEADLINE_HORIZON}d"
    common = (
        mine.select("date", "code", mine="score")
        .join(theirs.select("date", "code", theirs="score"), on=["date", "code"])
        .join(targets.select("date", "code", target), on=["date", "code"])
        .drop_nulls()
    )
    first = rank_ic_by_date(common, "mine", target)
    second = rank_ic_by_date(common, "theirs", target)
    gap = (first["rank_ic"] - second["rank_ic"]).fill_null(float("nan")).to_numpy()
    known = np.isfinite(gap)
    if not known.any():
        return Comparison(run_id, before)
    estimate = newey_west_mean(gap, horizon=HEADLINE_HORIZON)
    stocks = int(np.median(first["stocks"].to_numpy()[known]))
    return Comparison(run_id, before, estimate.mean, estimate.standard_error, estimate.T, stocks)


def blocking_checks_green(
    run_id: str | None, passed_over: Mapping[str, str], unskilled: Sequence[str]
) -> Outcome:
    """There is a run whose blocking checks all hold; which newer ones were passed over, and why.

    Args:
        run_id: The run put in use; None where there is none.
        passed_over: Newer runs, each with the reason in words.
        unskilled: Skill verdicts that the run failed; they do not block.
    """
    others = "; ".join(f"{run} {why}" for run, why in passed_over.items())
    skill = f", not shown: {', '.join(unskilled)}" if unskilled else ", skill shown"
    figure = f"run {run_id}{skill}" if run_id else "no run"
    return Outcome(
        "blocking_checks_green",
        run_id is not None,
        f"{figure}; passed over: {others}" if others else figure,
        "a trained run that trained_model and evaluation found sound",
        numbers={"passed_over": len(passed_over), "failed_skill_verdicts": len(unskilled)},
    )


def not_worse_than_before(comparisons: Sequence[Comparison], gates: AcceptanceGates) -> Outcome:
    """No sound run is newer and significantly worse than the model in use.

    A run that cannot be compared is no pass: it is put in use, and the verdict is a warning.
    """
    name = "not_worse_than_before"
    threshold = (
        f"rank IC at {HEADLINE_HORIZON} days not below that of the model in use, one-sided at "
        f"{gates.level:g}, on {gates.min_common_dates} common test dates or more"
    )
    if not comparisons:
        return Outcome(name, True, "no newer run to compare with a model in use", threshold,
                       numbers={"compared": 0})  # fmt: skip
    worse = [c for c in comparisons if c.is_worse(gates)]
    newest = comparisons[0]
    shown = worse[0] if worse else newest
    numbers: dict[str, float] = {"compared": len(comparisons), "common_dates": shown.dates,
                                 "common_stocks": shown.stocks}  # fmt: skip
    if math.isfinite(shown.difference):
        numbers["difference"] = shown.difference
    if math.isfinite(shown.standard_error):
        numbers["standard_error"] = shown.standard_error
    return Outcome(
        name,
        not worse and newest.is_judged(gates),
        in_words(shown, gates),
        threshold,
        severity="ERROR" if worse else "WARN",
        numbers=numbers,
    )


def in_words(found: Comparison, gates: AcceptanceGates) -> str:
    """What a comparison found, for a person."""
    head = f"run {found.run_id} against {found.before}"
    if found.missing:
        return f"{head}: not compared, {found.missing}"
    on = f"{found.dates} common test dates of {found.stocks} common stocks"
    if not found.is_judged(gates):
        return f"{head}: not compared, {on} are too few"
    error = found.standard_error
    if math.isnan(error):
        return f"{head}: {found.difference:+.4f} on each of {on}"
    return (
        f"{head}: {found.difference:+.4f} ± {error:.4f} (t = {found.difference / error:.1f}) on "
        f"{on}; {smallest_detectable(error):.4f} could be shown"
    )
