"""Every check of a learned structure is seen to pass on a good record and to fail on a fault."""

import json
from dataclasses import replace

import numpy as np
import pytest

from atft_model.errors import InputError
from atft_model.structure.checks import CHECKS, check_structure
from atft_model.structure.common_factor import find_common_factor
from atft_model.structure.config import (
    PRESETS,
    BootstrapConfig,
    GradientConfig,
    SearchConfig,
    StructureConfig,
)
from atft_model.structure.health import Truth
from atft_model.structure.learn import learn_structure
from atft_model.structure.record import Edge, read_record, write_record
from atft_model.structure.series import Series
from atft_model.structure.simulate import er_gaussian, var_with_dag

NAMES = tuple("abcdefgh")
CONFIG = StructureConfig(
    gradient=GradientConfig(epochs_per_stage=5),
    search=SearchConfig(random_starts=3),
    bootstrap=BootstrapConfig(resamples=6, shuffles=19),
)


@pytest.fixture(scope="module")
def record():
    made = var_with_dag(2, 8, 500, edges_per_node=1.0)
    series = Series(made.values, NAMES)
    return learn_structure(series, CONFIG, Truth(made.instant, made.lagged))


@pytest.fixture(scope="module")
def noise_record():
    values = np.random.default_rng(0).standard_normal((500, 8))
    return learn_structure(Series(values, NAMES), CONFIG)


def test_a_learned_graph_passes_every_check_and_is_right(record):
    assert [v.name for v in check_structure(record) if not v.passed] == []
    assert record.truth["f1"] > 0.9
    assert record.truth["lag_f1"] > 0.9
    assert len(record.truth["threshold_sweep"]["f1"]) == 21


def test_the_record_survives_the_disk(record, tmp_path):
    write_record(record, tmp_path)
    again = read_record(tmp_path)
    assert again.edges == record.edges
    assert check_structure(again) == check_structure(record)
    assert {p.name for p in tmp_path.iterdir()} == {
        "summary.json", "edges.parquet", "health.parquet", "health.json",
    }  # fmt: skip


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(InputError, match="no learned structure here"):
        read_record(tmp_path)


def test_a_record_of_an_earlier_layout_is_refused_with_the_command_that_learns_again(
    record, tmp_path
):
    write_record(record, tmp_path)
    path = tmp_path / "summary.json"
    summary = json.loads(path.read_text())
    del summary["format"]  # as the first layout had none
    path.write_text(json.dumps(summary))
    command = "structure format 1, expected 3.*materialize --select learned_structure"
    with pytest.raises(InputError, match=command):
        read_record(tmp_path)


def test_pure_noise_has_no_graph_and_is_red(noise_record):
    between = [e for e in noise_record.kept_edges if e.source != e.target]
    assert len(between) <= 2
    assert not CHECKS["not_at_chance"](noise_record).passed
    if not between:
        assert not CHECKS["edge_count_in_range"](noise_record).passed


def edge(source: str, target: str, **values) -> Edge:
    settings = {"lag": 0, "weight": 0.5, "confidence": 1.0, "link_confidence": 1.0, "kept": True}
    return Edge(source, target, **(settings | values))


ALL_PAIRS = tuple(edge(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :])


@pytest.mark.parametrize(
    ("check", "fault", "message"),
    [
        ("is_acyclic", {"edges": (edge("a", "b"), edge("b", "c"), edge("c", "a"))}, "a cycle"),
        ("edge_count_in_range", {"edges": ()}, "0 edges between series"),
        ("edge_count_in_range", {"edges": (edge("a", "a", lag=1),)}, "0 edges between series"),
        ("edge_count_in_range", {"edges": ALL_PAIRS}, "28 of 28 pairs"),
        ("not_at_chance", {"chance": {"edges": 2, "shuffled": (1, 2, 0), "p_value": 0.5}}, "p = "),
        ("not_at_chance", {"chance": {"edges": 2, "shuffled": (0, 1), "p_value": 0.09}}, "p = "),
        ("not_at_chance", {"chance": {"edges": 9, "shuffled": (0, 9), "p_value": 0.0}}, "most 9"),
        ("not_at_chance", {"chance": None}, "not measured"),
        ("scale_invariant", {"rescaling": {"identical": False, "differing_edges": 3}}, "3 edges"),
        ("scale_invariant", {"rescaling": None}, "not measured"),
        ("stable_under_bootstrap", {"edges": (edge("a", "b", confidence=0.2),)}, "0% of 1 edges"),
        ("stable_under_bootstrap", {"edges": (edge("a", "b", confidence=None),)}, "not measured"),
        ("threshold_not_at_grid_end", {"threshold": None}, "not measured"),
        ("no_hidden_factor", {"hidden_factor": None}, "not measured"),
    ],
)
def test_a_fault_is_seen(record, check, fault, message):
    verdict = CHECKS[check](replace(record, **fault))
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("route", ["gradient_instant", "gradient_lagged", "permuted_change"])
def test_an_adjacency_that_nothing_depends_on_is_seen(record, route):
    verdict = CHECKS["adjacency_is_used"](replace(record, routes=record.routes | {route: 0.0}))
    assert not verdict.passed
    assert route in verdict.message


def test_a_route_beside_the_adjacency_is_seen(record):
    verdict = CHECKS["adjacency_is_used"](replace(record, routes=record.routes | {"leak": 0.3}))
    assert not verdict.passed


def test_clipping_that_never_ends_is_seen(record):
    health = tuple(row | {"clip_ratio": 0.96} for row in record.health)
    assert not CHECKS["clip_ratio_falls"](replace(record, health=health)).passed


def test_the_historical_recipe_fails_its_checks():
    made = er_gaussian(4, 8, 400)
    gradient = replace(PRESETS["historical"]["gradient"], epochs_per_stage=10)
    config = StructureConfig(lags=0, decided_by="gradient", gradient=gradient)
    verdicts = check_structure(learn_structure(Series(made.values, NAMES), config))
    red = {v.name for v in verdicts if not v.passed}
    assert {"clip_ratio_falls", "threshold_not_at_grid_end"} <= red


def test_a_hidden_market_is_suspected_and_a_given_one_is_not():
    made = var_with_dag(401, 12, 600, edges_per_node=1.0, market=True)
    names = tuple(f"s{i}" for i in range(12))
    assert made.market is not None
    hidden = Series(made.values, names)
    given = Series(made.values, names, made.market[:, None], ("market",))
    assert find_common_factor(hidden, 1, SearchConfig(), 1337).likely
    assert not find_common_factor(given, 1, SearchConfig(), 1337).likely


def test_a_likely_hidden_factor_is_a_warning(record):
    suspicion = {"likely": True, "bic_gain": 250.0, "driven_share": 0.9}
    verdict = CHECKS["no_hidden_factor"](replace(record, hidden_factor=suspicion))
    assert not verdict.passed
    assert verdict.severity == "WARN"
    assert "give the market as exogenous" in verdict.message
