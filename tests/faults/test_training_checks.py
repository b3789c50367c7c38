"""The guard and the guarded step are seen to fail."""

import math

import torch

from atft_model.config import GuardConfig
from atft_model.monitors.degeneracy_guard import DegeneracyGuard, reset_head
from atft_model.training.optimizer import guarded_step


def test_guard_resets_and_sees_recovery_or_failure():
    guard = DegeneracyGuard(GuardConfig(patience=2, recovery_readings=2), (5,))
    events = [[e.what for e in guard.evaluate({5: std})] for std in (0.0, 0.0, 1e-3)]
    assert events == [[], ["dropped", "reset"], ["recovered"]]
    events = [[e.what for e in guard.evaluate({5: 0.0})] for _ in range(4)]
    assert events[-1] == ["reset_failed"]
    capped = DegeneracyGuard(GuardConfig(patience=1, max_resets_per_epoch=0), (5,))
    assert [e.what for e in capped.evaluate({5: 0.0})] == ["dropped", "cap_reached"]


def said(guard: DegeneracyGuard, *readings: float) -> list[list[str]]:
    return [[event.what for event in guard.evaluate({5: std})] for std in readings]


def test_low_readings_count_only_in_a_row():
    guard = DegeneracyGuard(GuardConfig(patience=2), (5,))
    assert said(guard, 0.0, 1e-3, 0.0, 1e-3) == [[]] * 4
    assert said(guard, 0.0, 0.0)[-1] == ["dropped", "reset"]


def test_a_reading_of_nothing_is_neither_a_collapse_nor_a_recovery():
    guard = DegeneracyGuard(GuardConfig(patience=1, recovery_readings=2), (5,))
    assert said(guard, math.nan, 0.0, math.nan, math.nan, 0.0, 0.0) == [
        [], ["dropped", "reset"], [], [], [], ["reset_failed"],
    ]  # fmt: skip


def test_the_cap_holds_within_an_epoch_and_is_said_once_in_a_while():
    guard = DegeneracyGuard(GuardConfig(patience=2, max_resets_per_epoch=1), (5,))
    assert said(guard, 0.0, 0.0, 1e-3)[1:] == [["dropped", "reset"], ["recovered"]]
    capped = ["dropped", "cap_reached"]
    assert said(guard, 0.0, 0.0, 0.0, 0.0) == [[], capped, [], capped]
    guard.start_epoch()
    assert said(guard, 0.0, 0.0)[-1] == ["dropped", "reset"]


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
