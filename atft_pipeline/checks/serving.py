"""Checks of the scores that the model in use hands out."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from atft_model.config import setting
from atft_pipeline.checks.outcome import Outcome
from atft_pipeline.checks.record import RunVerdicts


@dataclass(frozen=True)
class ServingGates:
    """What the newest scores must meet."""

    min_stocks: int = setting(30, "Fewest stocks with scores: below, a rank tells nothing.")
    min_covered_share: float = setting(
        0.9, "Share of the date's tradable stocks that have scores: the rest lack a whole window."
    )
    min_distinct_share: float = setting(
        0.5, "Share of distinct values among a horizon's scores: a collapsed head repeats one."
    )
    score_std_floor: float = setting(1e-6, "Smallest standard deviation of a horizon's scores.")


def integrity_failures(
    verdicts: Mapping[str, RunVerdicts | None], weights_hash: str
) -> tuple[str, ...]:
    """Why a run may not be used, as names of checks; empty when every blocking check is green.

    A run that an asset never judged, or judged with other weights, counts as failed.

    Args:
        verdicts: Of the run, by the asset that judged it.
        weights_hash: Recomputed from the checkpoint just now.
    """
    failed = []
    for asset, verdict in verdicts.items():
        if verdict is None:
            failed.append(f"{asset}:not_judged")
        elif verdict.checkpoint_hash != weights_hash:
            failed.append(f"{asset}:judged_other_weights")
        else:
            failed += [f"{asset}:{name}" for name in verdict.failed_integrity]
    return tuple(failed)


def scores_are_current(scored: dt.date, last: dt.date) -> Outcome:
    """The scores are those of the panel's last date: neither stale nor of another day."""
    return Outcome(
        "scores_are_current",
        scored == last,
        f"scores of {scored}, the panel ends on {last}",
        "the panel's last date; with no tradable stock on it, look at trading_universe",
        numbers={"days_behind": (last - scored).days},
    )


def scores_not_degenerate(
    scores: pl.DataFrame, tradable: int, horizons: Sequence[int], gates: ServingGates
) -> Outcome:
    """At every horizon most tradable stocks have a finite score, and the scores tell them apart.

    Args:
        scores: One row per stock with ``score_<h>d``.
        tradable: Stocks in the date's trading universe.
    """
    faults = []
    stocks = scores.height
    if stocks < max(gates.min_stocks, gates.min_covered_share * tradable):
        faults.append(f"{stocks} of {tradable} tradable stocks have scores")
    numbers: dict[str, float] = {"stocks": stocks, "tradable": tradable}
    for horizon in horizons:
        column = scores[f"score_{horizon}d"]
        finite = column.is_not_null() & column.is_finite()
        if not finite.all():
            faults.append(f"{horizon} days: {stocks - int(finite.sum())} scores are not finite")
            continue
        spread = column.std()
        numbers[f"score_std_{horizon}d"] = spread = spread if isinstance(spread, float) else 0.0
        distinct = column.n_unique() / max(stocks, 1)
        if spread < gates.score_std_floor or distinct < gates.min_distinct_share:
            faults.append(f"{horizon} days: std {spread:.2g}, {distinct:.0%} distinct values")
    return Outcome(
        "scores_not_degenerate",
        not faults,
        "; ".join(faults[:3]) or f"{stocks} of {tradable} tradable stocks, all apart",
        f"{gates.min_stocks} stocks and {gates.min_covered_share:.0%} of the universe or more, "
        f"std of {gates.score_std_floor:g} and {gates.min_distinct_share:.0%} distinct or more",
        numbers=numbers,
    )


def model_is_sound(run_id: str, failed: Sequence[str], allowed: bool) -> Outcome:
    """The run's integrity checks hold; failed ones pass only where config says so in words."""
    words = f"failed {', '.join(failed)}" if failed else "every blocking check is green"
    told = "; used all the same: allow_failed_checks is true" if failed and allowed else ""
    return Outcome(
        "model_is_sound",
        not failed or allowed,
        f"run {run_id}: {words}{told}",
        "no failed integrity check, or allow_failed_checks: true",
        numbers={"failed_checks": len(failed)},
    )
