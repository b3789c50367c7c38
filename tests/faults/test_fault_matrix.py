"""The fault matrix: each planted fault is caught by the gate meant for it; clean runs by none."""

from pathlib import Path

import pytest

from atft_model.faults import FAULTS, Fault, Result, as_markdown, try_fault

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught_by_the_gate_meant_for_it(fault):
    result = try_fault(fault)
    assert result.caught, f"{result.seen}; others: {result.others}"
    assert result.steps == (50 if fault.at_once else None)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]
)
def test_a_clean_run_raises_no_alarm(seed):
    assert try_fault(Fault(f"clean, seed {seed}", "", ""), seed).others == ()


def test_a_fault_that_is_not_planted_is_not_caught():
    """The matrix does not say "caught" of its own accord."""
    for fault in FAULTS:
        if fault.caught_by in ("no_dead_inputs", "refusal"):
            harmless = Fault(fault.name, fault.caught_by, fault.words, at_once=fault.at_once)
            assert not try_fault(harmless).caught
            return
    raise AssertionError


def test_the_page_lists_every_fault():
    page = (ROOT / "docs" / "faults.md").read_text()
    for fault in FAULTS:
        assert f"| {fault.name} | {fault.caught_by} |" in page
    assert "20 of 20 clean runs" in page
    assert "not caught" not in page


def test_a_fault_that_went_unnoticed_is_shown_so():
    page = as_markdown([Result("wrong | thing", "no_dead_inputs", False, "all fine", 50, ())])
    assert "**not caught** by no_dead_inputs" in page
