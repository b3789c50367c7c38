"""What must hold of a learned structure, as plain functions of its record; each can fail.

The asset's checks wrap these. If one with severity ERROR fails, the correlation graph is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from atft_model.structure.dag import is_acyclic
from atft_model.structure.record import StructureRecord

MAX_LINKED_SHARE = 0.5
CHANCE_LEVEL = 0.001
MIN_CONFIDENCE, MIN_STABLE_SHARE = 0.5, 0.75
ROUTE_FLOOR = 1e-8
"""Gradients and changes below this count as none; single precision leaves about 1e-7 of noise on
numbers of size one, but an unused parameter's gradient is exactly 0."""
LEAK_CEILING = 1e-6
CALM_CLIP_RATIO = 0.1


@dataclass(frozen=True)
class Verdict:
    """One check's answer."""

    name: str
    passed: bool
    message: str
    facts: dict[str, Any] = field(default_factory=dict)
    severity: Literal["ERROR", "WARN"] = "ERROR"


def is_acyclic_graph(record: StructureRecord) -> Verdict:
    """``is_acyclic``: today's kept edges contain no cycle, recomputed from the edges."""
    place = {name: i for i, name in enumerate(record.names)}
    graph = np.zeros((len(place), len(place)), dtype=bool)
    for edge in record.kept_edges:
        if edge.lag == 0:
            graph[place[edge.source], place[edge.target]] = True
    passed = is_acyclic(graph)
    message = f"{int(graph.sum())} edges within the day, " + ("no cycle" if passed else "a cycle")
    return Verdict("is_acyclic", passed, message)


def edge_count_in_range(record: StructureRecord) -> Verdict:
    """Neither empty nor linking more than half of all pairs within the day."""
    count = len(record.names)
    pairs = count * (count - 1) // 2
    linked = {frozenset((e.source, e.target)) for e in record.kept_edges if e.lag == 0}
    between = [e for e in record.kept_edges if e.source != e.target]
    share = len(linked) / pairs
    passed = bool(between) and share <= MAX_LINKED_SHARE
    return Verdict(
        "edge_count_in_range", passed,
        f"{len(between)} edges between series; {len(linked)} of {pairs} pairs linked within the "
        f"day ({share:.0%}; expected at least one edge and at most {MAX_LINKED_SHARE:.0%})",
        {"edges": len(between), "linked_pairs": len(linked), "pairs": pairs},
    )  # fmt: skip


def adjacency_is_used(record: StructureRecord) -> Verdict:
    """The reconstruction depends on the adjacency, and on other series through it only."""
    routes = record.routes
    needed = ["gradient_instant", "permuted_change"]
    if record.config["lags"]:
        needed.append("gradient_lagged")
    dead = [name for name in needed if not routes[name] > ROUTE_FLOOR]
    leaks = routes["leak"] > LEAK_CEILING
    passed = not dead and not leaks
    problems = [f"{name} is {routes[name]:.1e}" for name in dead]
    problems += [f"{routes['leak']:.1e} passes beside the adjacency"] if leaks else []
    message = "; ".join(problems) or "gradient reaches it, permuting it changes the reconstruction"
    return Verdict("adjacency_is_used", passed, message, dict(routes))


def not_at_chance(record: StructureRecord) -> Verdict:
    """More edges between series than in any series shifted against each other, by far."""
    chance = record.chance
    if chance is None:
        return _not_measured("not_at_chance", "no shuffles were learned")
    most = max(chance["shuffled"], default=0)
    return Verdict(
        "not_at_chance", chance["edges"] > most and chance["p_value"] <= CHANCE_LEVEL,
        f"{chance['edges']} edges between series, at most {most} in {len(chance['shuffled'])} "
        f"shuffles (p = {chance['p_value']:.4f}; expected at most {CHANCE_LEVEL})",
        {"edges": chance["edges"], "most_shuffled": most, "p_value": chance["p_value"]},
    )  # fmt: skip


def scale_invariant(record: StructureRecord) -> Verdict:
    """The same graph after every column was rescaled."""
    if record.rescaling is None:
        return _not_measured("scale_invariant", "no rescaled series were learned")
    differing = record.rescaling["differing_edges"]
    return Verdict(
        "scale_invariant", record.rescaling["identical"],
        f"{differing} edges differ after every column was rescaled",
        {"differing_edges": differing},
    )  # fmt: skip


def stable_under_bootstrap(record: StructureRecord) -> Verdict:
    """Most edges decided between series are found again in most resamples."""
    between = [e for e in record.edges if e.source != e.target]
    confidences = [e.confidence for e in between if e.confidence is not None]
    if not confidences:
        return _not_measured("stable_under_bootstrap", "no edge between series was bootstrapped")
    share = float(np.mean([c >= MIN_CONFIDENCE for c in confidences]))
    return Verdict(
        "stable_under_bootstrap", share >= MIN_STABLE_SHARE,
        f"{share:.0%} of {len(confidences)} edges have a confidence of at least {MIN_CONFIDENCE} "
        f"(expected {MIN_STABLE_SHARE:.0%})",
        {"stable_share": share, "mean_confidence": float(np.mean(confidences))},
    )  # fmt: skip


def threshold_not_at_grid_end(record: StructureRecord) -> Verdict:
    """The chosen threshold separates edges from non-edges: both lie on the grid."""
    threshold = record.threshold
    if threshold is None:
        return _not_measured("threshold_not_at_grid_end", "no threshold was chosen")
    return Verdict(
        "threshold_not_at_grid_end", not threshold["at_grid_end"],
        f"threshold {threshold['value']:.2f}, the same graph on {threshold['plateau']} grid points"
        + (", which touch the end of the grid" if threshold["at_grid_end"] else ""),
        {"threshold": threshold["value"], "plateau": threshold["plateau"]},
    )  # fmt: skip


def clip_ratio_falls(record: StructureRecord) -> Verdict:
    """However often the gradient was clipped at the start, hardly any step is at the end."""
    ratios = [row["clip_ratio"] for row in record.health]
    part = max(1, len(ratios) // 4)
    first, last = float(np.mean(ratios[:part])), float(np.mean(ratios[-part:]))
    return Verdict(
        "clip_ratio_falls", last <= CALM_CLIP_RATIO,
        f"{first:.0%} of steps clipped in the first quarter of epochs, {last:.0%} in the last "
        f"(expected at most {CALM_CLIP_RATIO:.0%})",
        {"first": first, "last": last},
    )  # fmt: skip


def no_hidden_factor(record: StructureRecord) -> Verdict:
    """A warning: one unobserved common driver explains the series better than the graph."""
    factor = record.hidden_factor
    if factor is None:
        return _not_measured("no_hidden_factor", "not looked for", "WARN")
    return Verdict(
        "no_hidden_factor", not factor["likely"],
        f"a hidden factor changes the extended BIC by {factor['bic_gain']:+.0f} and drives "
        f"{factor['driven_share']:.0%} of the series"
        + ("; give the market as exogenous, or take_out the common_factor"
           if factor["likely"] else ""),
        dict(factor), "WARN",
    )  # fmt: skip


def _not_measured(name: str, why: str, severity: Literal["ERROR", "WARN"] = "ERROR") -> Verdict:
    """What was not measured has not been shown to hold."""
    return Verdict(name, False, f"not measured: {why}", severity=severity)


CHECKS: dict[str, Callable[[StructureRecord], Verdict]] = {
    "is_acyclic": is_acyclic_graph,
    "edge_count_in_range": edge_count_in_range,
    "adjacency_is_used": adjacency_is_used,
    "not_at_chance": not_at_chance,
    "scale_invariant": scale_invariant,
    "stable_under_bootstrap": stable_under_bootstrap,
    "threshold_not_at_grid_end": threshold_not_at_grid_end,
    "clip_ratio_falls": clip_ratio_falls,
    "no_hidden_factor": no_hidden_factor,
}


def check_structure(record: StructureRecord) -> list[Verdict]:
    """All verdicts, in the order above."""
    return [check(record) for check in CHECKS.values()]
