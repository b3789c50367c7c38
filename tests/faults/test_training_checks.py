"""Each check of trained_model and evaluation is seen to fail."""

import math

import polars as pl
import pytest
import torch

from atft_model.config import GuardConfig
from atft_model.monitors.degeneracy_guard import DegeneracyGuard, reset_head
from atft_model.training.optimizer import guarded_step
from atft_pipeline.checks.evaluation import (
    SkillGates,
    evidence_matches_checkpoint,
    rank_ic_positive,
    sharpe_above_threshold,
)
from atft_pipeline.checks.model import (
    TrainingGates,
    degeneracy_resets_within_limit,
    encoder_gradients_nonzero,
    no_nonfinite_steps,
    predictions_not_degenerate,
)

GATES = TrainingGates()
RECORD = {"epochs": 1, "steps_per_epoch": 20, "steps": 20}


def health(**changes: float) -> pl.DataFrame:
    """A healthy record of one epoch; ``changes`` name what is broken."""
    rows = []
    for step in range(1, 21):
        rows.append((step, "gradient", "gat", "l2", changes.get("gat", 1e-2)))
        rows.append((step, "activation_gradient", "projected_features", "l2", 1e-2))
        rows.append((step, "input_gradient", "returns_1d", "l2", changes.get("returns_1d", 1e-3)))
        rows.append((step, "step", "train", "steps", 1.0))
        rows.append((step, "step", "train", "nonfinite", changes.get("nonfinite", 0.0)))
    if changes.get("heartbeat", 1):
        rows.append((20, "guard", "heartbeat", "evaluations", 20.0))
    rows += [(20, "guard", "horizon_1", "reset", 0.0)] * int(changes.get("resets", 0))
    rows += [(20, "guard", "horizon_1", "reset_failed", 0.0)] * int(changes.get("failed", 0))
    rows.append((20, "checkpoint", "horizon_5", "score_std", changes.get("score_std", 0.1)))
    frame = pl.DataFrame(rows, schema=["step", "kind", "name", "metric", "value"], orient="row")
    return frame.with_columns(epoch=pl.lit(1))


def test_a_healthy_record_passes():
    record = health()
    assert encoder_gradients_nonzero(record, RECORD, GATES).passed
    assert degeneracy_resets_within_limit(record, GATES).passed
    assert no_nonfinite_steps(record, RECORD).passed
    assert predictions_not_degenerate(record, GATES).passed


@pytest.mark.parametrize(
    ("changes", "named"), [({"gat": 0.0}, "gat"), ({"returns_1d": 0.0}, "returns_1d")]
)
def test_a_dead_group_or_input_is_named(changes, named):
    outcome = encoder_gradients_nonzero(health(**changes), RECORD, GATES)
    assert outcome.stops
    assert named in outcome.figure


def test_no_looks_are_no_evidence():
    few = health().filter(pl.col("step") > 12)
    assert encoder_gradients_nonzero(few, RECORD, GATES).stops
    assert degeneracy_resets_within_limit(health(heartbeat=0), GATES).stops
    assert not no_nonfinite_steps(few, RECORD).passed


def test_resets_warn_then_fail():
    warned = degeneracy_resets_within_limit(health(resets=6), GATES)
    assert not warned.passed
    assert not warned.stops
    assert degeneracy_resets_within_limit(health(resets=11), GATES).stops
    assert degeneracy_resets_within_limit(health(failed=1), GATES).stops


def test_nonfinite_steps_and_constant_scores_fail():
    assert no_nonfinite_steps(health(nonfinite=1.0), RECORD).stops
    assert predictions_not_degenerate(health(score_std=1e-8), GATES).stops
    nothing = health().filter(pl.col("kind") != "checkpoint")
    assert predictions_not_degenerate(nothing, GATES).stops


def test_skill_is_judged_by_the_lower_bound():
    assert sharpe_above_threshold(3.0, 1.0, 200, SkillGates()).passed
    assert not sharpe_above_threshold(1.5, 1.0, 200, SkillGates()).passed
    assert not rank_ic_positive(0.01, 0.01, 200, SkillGates()).passed
    assert not rank_ic_positive(math.nan, math.nan, 0, SkillGates()).passed


@pytest.mark.parametrize("column", ["run_id", "checkpoint_hash", "panel_hash"])
def test_evidence_of_another_run_is_refused(column):
    right = {"run_id": "r", "checkpoint_hash": "w", "panel_hash": "p"}
    good, bad = pl.DataFrame([right]), pl.DataFrame([{**right, column: "stale"}])
    assert evidence_matches_checkpoint(good, good, right, "w", "p").passed
    assert evidence_matches_checkpoint(bad, good, right, "w", "p").stops
    assert evidence_matches_checkpoint(good, good, right, "tampered", "p").stops


def test_guard_resets_and_sees_recovery_or_failure():
    guard = DegeneracyGuard(GuardConfig(patience=2, recovery_readings=2), (5,))
    events = [[e.what for e in guard.evaluate({5: std})] for std in (0.0, 0.0, 1e-3)]
    assert events == [[], ["dropped", "reset"], ["recovered"]]
    events = [[e.what for e in guard.evaluate({5: 0.0})] for _ in range(4)]
    assert events[-1] == ["reset_failed"]
    capped = DegeneracyGuard(GuardConfig(patience=1, max_resets_per_epoch=0), (5,))
    assert [e.what for e in capped.evaluate({5: 0.0})] == ["dropped", "cap_reached"]


def test_reset_moves_an_all_zero_head_and_clears_its_state():
    head = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    head(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.nn.init.zeros_(head.weight)
    reset_head(head, optimizer, 0.05, torch.Generator().manual_seed(0))
    assert (head.weight != 0).all()
    assert not optimizer.state


def test_a_nonfinite_step_changes_nothing():
    layer = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    before = [p.detach().clone() for p in layer.parameters()]
    for finite in (False, True):
        optimizer.zero_grad()
        layer(torch.full((1, 3), 1.0 if finite else math.inf)).sum().backward()
        guarded_step(optimizer, torch.tensor(finite))
        same = all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
        assert same is not finite
