"""The guard, the guarded step and each check of evaluation are seen to fail."""

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
