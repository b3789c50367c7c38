"""Checks of a trained model: from its health record and run record, never from a log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from atft_model.config import setting
from atft_pipeline.checks.outcome import Outcome, markdown_table


@dataclass(frozen=True)
class TrainingGates:
    """What the health record of a run must show."""

    min_gradient_norm: float = setting(
        1e-7, "Smallest gradient norm of any group after warm-up: float32 noise lies below it."
    )
    warmup_readings: int = setting(3, "First readings not judged: attention starts near zero.")
    min_readings_per_epoch: int = setting(
        20, "Fewer readings are no evidence, unless every step was read."
    )
    resets_warn: int = setting(5, "Head resets in one epoch above which the check warns.")
    resets_error: int = setting(10, "Head resets in one epoch above which the check fails.")
    min_score_std: float = setting(
        1e-3, "Within-date std of the score, in units of the target's std: below, stocks tie."
    )


def encoder_gradients_nonzero(
    health: pl.DataFrame, record: Mapping[str, Any], gates: TrainingGates
) -> Outcome:
    """Every group and both encoder activations received a gradient throughout; no input is dead."""
    norms = health.filter(
        pl.col("kind").is_in(["gradient", "activation_gradient"]), pl.col("metric") == "l2"
    )
    steps = norms["step"].unique().sort()
    judged = norms.filter(pl.col("step").is_in(steps[gates.warmup_readings :].implode()))
    lowest = judged.group_by("name").agg(pl.col("value").min().alias("smallest")).sort("smallest")
    inputs = (
        health.filter(pl.col("kind") == "input_gradient")
        .group_by("name")
        .agg(pl.col("value").max().alias("largest"))
    )
    dead = inputs.filter(~(pl.col("largest") > 0))["name"].sort().to_list()
    vanishing = lowest.filter(~(pl.col("smallest") > gates.min_gradient_norm))["name"].to_list()
    enough = _enough_readings(len(steps), record, gates)
    faults = []
    if not enough:
        faults.append(f"only {len(steps)} readings in {record['epochs']} epochs: no evidence")
    if vanishing:
        faults.append(f"no gradient in {', '.join(vanishing)}")
    if dead or inputs.is_empty():
        faults.append(f"{len(dead)} of {inputs.height} inputs are dead: {', '.join(dead[:5])}")
    smallest = lowest["smallest"][0] if lowest.height else float("nan")
    return Outcome(
        "encoder_gradients_nonzero",
        not faults,
        "; ".join(faults)
        or f"smallest norm {smallest:.1e} ({lowest['name'][0]}), "
        f"{inputs.height} inputs alive, {len(steps)} readings",
        f"every group above {gates.min_gradient_norm:.0e}, every input alive",
        numbers={
            "readings": len(steps),
            "dead_inputs": len(dead),
            **{f"smallest/{name}": value for name, value in lowest.iter_rows()},
        },
        details=markdown_table(["group", "smallest gradient norm"], lowest.iter_rows()),
    )


def _enough_readings(readings: int, record: Mapping[str, Any], gates: TrainingGates) -> bool:
    per_epoch = min(gates.min_readings_per_epoch, int(record["steps_per_epoch"]))
    return readings >= per_epoch * int(record["epochs"]) and readings > gates.warmup_readings


def degeneracy_resets_within_limit(health: pl.DataFrame, gates: TrainingGates) -> Outcome:
    """The guard watched, reset a head rarely, and every reset brought the spread back."""
    guard = health.filter(pl.col("kind") == "guard")
    evaluations = guard.filter(pl.col("metric") == "evaluations")["value"].max()
    resets = guard.filter(pl.col("metric") == "reset").group_by("epoch").len("resets")
    failed = guard.filter(pl.col("metric").is_in(["reset_failed", "cap_reached"])).height
    worst = int(resets["resets"].max() or 0) if resets.height else 0  # type: ignore[arg-type]
    watched = int(evaluations or 0)  # type: ignore[arg-type]
    broken = watched == 0 or failed > 0 or worst > gates.resets_error
    figure = f"{worst} resets in the worst epoch, {failed} failed, {watched} looks"
    return Outcome(
        "degeneracy_resets_within_limit",
        not broken and worst <= gates.resets_warn,
        "the guard left no heartbeat" if watched == 0 else figure,
        f"at most {gates.resets_warn} an epoch (above {gates.resets_error} fails), none failed",
        severity="ERROR" if broken else "WARN",
        numbers={"resets_worst_epoch": worst, "failed_resets": failed, "evaluations": watched},
    )


def no_nonfinite_steps(health: pl.DataFrame, record: Mapping[str, Any]) -> Outcome:
    """No step had a loss or gradient that is not finite, and every step was counted."""
    step = health.filter(pl.col("kind") == "step")
    counted = int(step.filter(pl.col("metric") == "steps")["value"].sum())
    nonfinite = int(step.filter(pl.col("metric") == "nonfinite")["value"].sum())
    return Outcome(
        "no_nonfinite_steps",
        nonfinite == 0 and counted == int(record["steps"]) > 0,
        f"{nonfinite} of {counted} recorded steps, {record['steps']} taken",
        "0, with every step recorded",
        numbers={"nonfinite_steps": nonfinite, "recorded_steps": counted},
    )


def predictions_not_degenerate(health: pl.DataFrame, gates: TrainingGates) -> Outcome:
    """The best checkpoint, read back from disk, tells stocks apart on every horizon."""
    spread = health.filter(pl.col("kind") == "checkpoint", pl.col("metric") == "score_std")
    values = dict(spread.select("name", "value").iter_rows())
    low = [name for name, value in values.items() if not value > gates.min_score_std]
    smallest = min(values.values(), default=float("nan"))
    return Outcome(
        "predictions_not_degenerate",
        bool(values) and not low,
        f"smallest within-date std {smallest:.2e}" + (f": {', '.join(low)}" if low else ""),
        f"above {gates.min_score_std:g} on every horizon",
        numbers={f"score_std/{name}": value for name, value in values.items()},
    )
