"""Checks of an evaluation: whose evidence it is, and whether there is skill."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from atft_model.config import setting
from atft_pipeline.checks.outcome import Outcome


@dataclass(frozen=True)
class SkillGates:
    """When a model counts as skilled. Both judge a lower bound: a point estimate is luck."""

    min_sharpe: float = setting(
        0.0, "Net Sharpe (h = 5, decile long-short) that the lower 95 % bound must exceed."
    )
    min_rank_ic: float = setting(0.0, "Rank IC at h = 5 that the lower 95 % bound must exceed.")


def sharpe_above_threshold(value: float, error: float, days: int, gates: SkillGates) -> Outcome:
    """The lower end of the net Sharpe ratio's 95 % interval lies above the threshold."""
    return _lower_bound("sharpe_above_threshold", "net Sharpe", value, error, days,
                        gates.min_sharpe, digits=2)  # fmt: skip


def rank_ic_positive(value: float, error: float, days: int, gates: SkillGates) -> Outcome:
    """The lower end of the rank IC's 95 % interval (Newey-West) lies above the threshold."""
    return _lower_bound("rank_ic_positive", "rank IC", value, error, days,
                        gates.min_rank_ic, digits=4)  # fmt: skip


def _lower_bound(
    name: str, what: str, value: float, error: float, days: int, threshold: float, digits: int
) -> Outcome:
    lower = value - 1.96 * error
    numbers = {"value": value, "standard_error": error, "lower_bound": lower, "dates": days}
    return Outcome(
        name,
        lower > threshold,
        f"{what} {value:.{digits}f} ± {error:.{digits}f} (T={days}), lower bound "
        f"{lower:.{digits}f}",
        f"lower bound above {threshold:g}",
        numbers={key: number for key, number in numbers.items() if math.isfinite(number)},
    )


def evidence_matches_checkpoint(
    predictions: pl.DataFrame,
    baselines: pl.DataFrame,
    record: Mapping[str, Any],
    weights_hash: str,
    panel_hash: str,
) -> Outcome:
    """Scores, weights on disk, run record and panel all belong together.

    Args:
        weights_hash: Recomputed from the checkpoint file just now.
        panel_hash: Recomputed from the panel's files just now.
    """
    expected = {
        "run_id": record["run_id"],
        "checkpoint_hash": weights_hash,
        "panel_hash": panel_hash,
    }
    faults = [
        f"predictions: {column} is {found}, expected {value}"
        for column, value in expected.items()
        if (found := predictions[column].unique().sort().to_list()) != [value]
    ]
    if baselines["panel_hash"].unique().to_list() != [panel_hash]:
        faults.append("baselines are of another panel")
    if record["checkpoint_hash"] != weights_hash:
        faults.append(f"run record says weights {record['checkpoint_hash']}, found {weights_hash}")
    if record["panel_hash"] != panel_hash:
        faults.append(f"the run was trained on panel {record['panel_hash']}, this is {panel_hash}")
    return Outcome(
        "evidence_matches_checkpoint",
        not faults,
        "; ".join(faults[:2])
        or f"run {record['run_id']}, weights {weights_hash}, panel {panel_hash}",
        "one run, one checkpoint, one panel",
        numbers={"mismatches": len(faults)},
    )
