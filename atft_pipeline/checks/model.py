"""Checks of a trained model: the verdicts of ``atft_model.training.gates`` in Dagster's form."""

from pathlib import Path

import dagster as dg

from atft_model.training.gates import Finding, TrainingGates, judge, open_evidence
from atft_pipeline.checks.outcome import Outcome, markdown_table, spec

CHECKS: dict[str, str] = {
    "encoder_gradients_nonzero": "Gradients reach every part, at every reading of every epoch.",
    "every_parameter_receives_gradient": "No tensor is without gradient or always exactly zero.",
    "no_dead_inputs": "Every input varies and passes a gradient.",
    "gradients_within_range": "Gradient norms lie where those of clean runs did.",
    "updates_within_limit": "A step moves the weights by a small share of their size.",
    "inputs_within_range": "Normalized inputs are of a normalized size.",
    "targets_well_scaled": "No horizon's mean return is as large as its spread.",
    "cross_sections_wide_enough": "A date of a training batch holds enough stocks to rank.",
    "validation_uses_graph": "Validation sees as dense a graph as training.",
    "encoder_tells_stocks_apart": "The encoder gives the stocks of a date different states.",
    "degeneracy_resets_within_limit": "The head rarely collapsed, and recovered.",
    "predictions_not_degenerate": "The saved weights tell stocks apart.",
    "no_nonfinite_steps": "No step had a loss or gradient that is not finite.",
    "skipped_batches_zero": "No batch was left out.",
    "clip_ratio_falls": "At the end few steps were clipped.",
    "loss_decreases": "The training loss fell.",
    "validation_beats_chance": "The best validation rank IC is more than luck.",
    "run_is_complete": "All epochs or an early stop; every record is of these weights.",
}
"""Each check on ``trained_model`` and what it states."""

SKILL = ("validation_beats_chance",)
"""Which of them judge the model's skill, not whether the run can be trusted."""


def model_check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks as Dagster announces them."""
    return [
        spec(asset, name, states, "skill" if name in SKILL else "integrity")
        for name, states in CHECKS.items()
    ]


def model_outcomes(folder: Path, gates: TrainingGates) -> list[Outcome]:
    """Every verdict on the run in ``folder``, recomputed from its files."""
    return [outcome(finding) for finding in judge(open_evidence(folder), gates)]


def outcome(finding: Finding) -> Outcome:
    """A finding in the form of all checks."""
    return Outcome(
        finding.name,
        finding.passed,
        finding.figure,
        finding.threshold,
        severity=finding.severity,
        numbers=finding.numbers,
        details=markdown_table(*finding.table) if finding.table else None,
    )
