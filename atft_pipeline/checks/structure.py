"""Checks of the learned structure, and of whether a stock graph may be made of it."""

from collections.abc import Sequence

import dagster as dg

from atft_model.structure.checks import CHECKS, Verdict
from atft_pipeline.checks.outcome import Outcome, spec

ASSET = "learned_structure"

STATES: dict[str, str] = {
    "is_acyclic": "No group drives itself within the day, by whatever way.",
    "edge_count_in_range": "Some links, and at most half of all pairs within the day.",
    "adjacency_is_used": "Series reach each other through the learned links and no other way.",
    "not_at_chance": "More links than in the same series shifted against each other.",
    "scale_invariant": "The same graph after every series was rescaled.",
    "stable_under_bootstrap": "Most links are found again in resamples of the days.",
    "threshold_not_at_grid_end": "The threshold separates links from non-links.",
    "clip_ratio_falls": "At the end few steps were clipped.",
    "no_hidden_factor": "No unobserved series drives most of the others.",
}
"""Each check on ``learned_structure`` and what it states."""

NOT_USED = "the learned graph is not used"


def structure_check_specs() -> list[dg.AssetCheckSpec]:
    """The checks as Dagster announces them; none stops the run, which has another graph."""
    return [spec(ASSET, name, states, kind="skill") for name, states in STATES.items()]


def structure_outcomes(verdicts: Sequence[Verdict]) -> list[Outcome]:
    """Verdicts in the form of all checks. A failure only warns: it bars the graph, not the run."""
    return [
        Outcome(
            verdict.name,
            verdict.passed,
            verdict.message,
            "holds" if verdict.severity == "WARN" else f"holds; else {NOT_USED}",
            severity="WARN",
            numbers={name: float(value) for name, value in verdict.facts.items()
                     if isinstance(value, int | float)},
        )
        for verdict in verdicts
    ]  # fmt: skip


def not_learned(reason: str) -> list[Outcome]:
    """Every check, failed: what was not learned has not been shown to hold."""
    return [
        Outcome(name, False, f"not learned: {reason}", f"holds; else {NOT_USED}", severity="WARN")
        for name in CHECKS
    ]


def graph_is_as_configured(wanted: str, refused: str | None) -> Outcome:
    """The stock graph is the one that its config asks for, not the correlation graph instead.

    Args:
        refused: Why the learned links cannot be used; None where they can be or nobody asked.
    """
    needs = wanted in ("learned", "both")
    return Outcome(
        "graph_is_as_configured", not (needs and refused),
        f"graph {wanted!r} was asked for, the correlation graph is used: {refused}"
        if needs and refused else f"graph {wanted!r}",
        "every check of learned_structure holds" if needs else "no learned links are needed",
        severity="WARN",
    )  # fmt: skip
