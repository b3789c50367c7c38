"""Checks of the learned structure and of the graph that is made of it: each seen to fail."""

from dataclasses import replace

import numpy as np
import pytest

from atft_model.data.graph import GraphConfig, build_graph
from atft_model.data.group_links import GroupLinks
from atft_model.data.toy_panel import make_panel
from atft_model.structure.checks import CHECKS, check_structure
from atft_model.structure.groups import links_of
from atft_model.structure.record import Edge
from atft_model.structure.stored import StoredStructure
from atft_pipeline.assets.graph import links_to_score
from atft_pipeline.checks.structure import (
    STATES,
    graph_is_as_configured,
    not_learned,
    structure_check_specs,
    structure_outcomes,
)
from atft_pipeline.checks.tables import stocks_have_neighbours
from tests.support.structure_record import EDGES, NAMES, sound_record

ROUTES = sound_record().routes

FAULTS = {
    "is_acyclic": {"edges": (*EDGES, Edge("banks", "metals", 0, 0.2, 0.9, 0.9, True))},
    "edge_count_in_range": {"edges": ()},
    "adjacency_is_used": {"routes": ROUTES | {"gradient_instant": 0.0}},
    "not_at_chance": {"chance": {"edges": 4, "shuffled": (5, 3), "p_value": 0.3}},
    "scale_invariant": {"rescaling": {"identical": False, "differing_edges": 3}},
    "stable_under_bootstrap": {
        "edges": tuple(Edge(e.source, e.target, e.lag, e.weight, 0.2, 0.2, True) for e in EDGES)
    },
    "threshold_not_at_grid_end": {"threshold": {"value": 0.0, "plateau": 2, "at_grid_end": True}},
    "clip_ratio_falls": {"health": tuple({"clip_ratio": 0.9} for _ in range(8))},
    "no_hidden_factor": {"hidden_factor": {"likely": True, "bic_gain": 80.0, "driven_share": 0.9}},
}


def test_every_check_of_the_library_is_one_of_the_asset():
    assert list(STATES) == list(CHECKS) == list(FAULTS)
    assert [spec.name for spec in structure_check_specs()] == list(CHECKS)
    assert not any(spec.blocking for spec in structure_check_specs())


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_its_check_as_a_warning(name):
    sound = structure_outcomes(check_structure(sound_record()))
    assert all(outcome.passed for outcome in sound)
    broken = {o.name: o for o in structure_outcomes(check_structure(sound_record(**FAULTS[name])))}
    assert not broken[name].passed
    assert not broken[name].stops  # the run has another graph


def test_what_was_not_learned_holds_nowhere():
    outcomes = not_learned("too few days")
    assert [o.name for o in outcomes] == list(CHECKS)
    assert not any(o.passed or o.stops for o in outcomes)


@pytest.mark.parametrize(
    ("wanted", "refused", "passes"),
    [
        ("correlation", "is_acyclic: a cycle", True),
        ("random", "is_acyclic: a cycle", True),
        ("learned", "is_acyclic: a cycle", False),
        ("both", "is_acyclic: a cycle", False),
        ("learned", None, True),
    ],
)
def test_a_graph_in_anothers_place_is_said(wanted, refused, passes):
    outcome = graph_is_as_configured(wanted, refused)
    assert outcome.passed is passes
    assert not outcome.stops
    assert passes or "the correlation graph is used: is_acyclic" in outcome.figure


def test_refused_links_are_scored_as_a_control_but_not_those_of_another_panel():
    refused = StoredStructure(sound_record(**FAULTS["clip_ratio_falls"]), "", {"A": "banks"}, "p1")
    assert refused.refusal("p1") is not None
    assert links_to_score(refused, "p1") is not None
    assert links_to_score(refused, "p2") is None
    own_past = tuple(e for e in EDGES if e.source == e.target)
    alone = replace(refused, record=sound_record(edges=own_past))
    assert links_to_score(alone, "p1") is None
    assert links_to_score(replace(refused, record=None, reason="too few days"), "p1") is None


def test_only_stocks_of_driven_groups_must_have_neighbours():
    panel = make_panel(dates=240, stocks=40)
    group_of = {code: NAMES[i % 4] for i, code in enumerate(panel.codes)}
    links = links_of(sound_record(), group_of)
    config = GraphConfig(neighbours=4, graph="learned")
    graph = build_graph(panel, config, links=links)
    share = stocks_have_neighbours(graph, panel, links)
    assert share.passed
    assert not stocks_have_neighbours(graph, panel).passed  # counts those that nobody drives too
    nobody = GroupLinks(links.group_of, np.zeros_like(links.between), links.attributes)
    empty = build_graph(panel, config, links=nobody)
    assert not stocks_have_neighbours(empty, panel, nobody).passed
