"""The whole learner on small cases with a known graph."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from atft_model.errors import InputError
from atft_model.structure.confidence import edges_between, poisson_tail
from atft_model.structure.config import (
    BootstrapConfig,
    GradientConfig,
    SearchConfig,
    StructureConfig,
)
from atft_model.structure.decide import decide, topological_order
from atft_model.structure.health import Truth
from atft_model.structure.learn import learn_structure
from atft_model.structure.series import Series, make_table
from atft_model.structure.simulate import Noise, draw_noise, random_dag, var_with_dag

BARE = StructureConfig(
    gradient=GradientConfig(epochs_per_stage=3),
    search=SearchConfig(random_starts=4),
    bootstrap=BootstrapConfig(resamples=0, shuffles=0),
)


def named(values: np.ndarray) -> Series:
    return Series(values, tuple(f"s{i}" for i in range(values.shape[1])))


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "garch_t"])
def test_a_known_graph_is_found(noise: Noise):
    made = var_with_dag(11, 8, 600, noise)
    record = learn_structure(named(made.values), BARE, Truth(made.instant, made.lagged))
    assert record.truth is not None
    assert record.truth["shd"] <= 1
    assert record.truth["lag_f1"] >= 0.85
    heavy = sum(n["degrees"] is not None or n["alpha"] > 0 for n in record.noise.values())
    assert (heavy >= 6) == (noise != "gaussian")


def test_weights_are_those_that_made_the_data():
    made = var_with_dag(12, 5, 4000, edges_per_node=1.0)
    record = learn_structure(named(made.values), BARE, Truth(made.instant, made.lagged))
    spread = made.values.std(0)
    for edge in record.edges:
        source, target = int(edge.source[1:]), int(edge.target[1:])
        true = (made.instant if edge.lag == 0 else made.lagged[0])[source, target]
        assert edge.weight == pytest.approx(true * spread[source] / spread[target], abs=0.06)


def test_gaps_do_not_hide_the_graph():
    made = var_with_dag(13, 8, 800)
    gaps = np.random.default_rng(0).random(made.values.shape) < 0.05
    series = named(np.where(gaps, np.nan, made.values))
    record = learn_structure(series, BARE, Truth(made.instant, made.lagged))
    assert record.truth is not None
    assert record.truth["shd"] <= 2
    assert record.missing_share == pytest.approx(0.05, abs=0.01)


def test_non_normal_noise_orients_what_time_and_classes_leave_open():
    rng = np.random.default_rng(14)
    chain = np.diag([0.8] * 4, 1)
    values = draw_noise(rng, "laplace", 1500, 5) @ np.linalg.inv(np.eye(5) - chain)
    record = learn_structure(
        named(values), replace(BARE, lags=0), Truth(chain, np.zeros((0, 5, 5)))
    )
    assert record.truth is not None
    assert record.truth["shd"] == 0


def test_the_same_seed_learns_the_same_record():
    series = named(var_with_dag(15, 6, 300).values)
    config = replace(BARE, bootstrap=BootstrapConfig(resamples=4, shuffles=3))
    first, second = learn_structure(series, config), learn_structure(series, config)
    assert first.edges == second.edges
    assert first.chance == second.chance


def test_the_truth_is_reported_and_never_used():
    made = var_with_dag(16, 6, 300)
    truth = Truth(made.instant, made.lagged)
    with_truth = learn_structure(named(made.values), BARE, truth)
    without = learn_structure(named(made.values), BARE)
    assert with_truth.edges == without.edges
    assert without.truth is None


def test_rows_without_time_say_how_probable_each_edge_is():
    series = named(var_with_dag(16, 6, 300).values)
    record = learn_structure(series, replace(BARE, lags=0))
    assert all(edge.probability is not None and 0 < edge.probability <= 1 for edge in record.edges)
    assert record.expected_distance is not None
    assert record.expected_distance >= 0
    in_time = learn_structure(series, BARE)
    assert all(edge.probability is None for edge in in_time.edges)
    assert in_time.expected_distance is None


def test_unsure_edges_are_not_kept():
    made = var_with_dag(17, 8, 150, edges_per_node=1.0)
    config = replace(BARE, bootstrap=BootstrapConfig(resamples=10, shuffles=0))
    record = learn_structure(named(made.values), config)
    assert record.threshold is not None
    for edge in record.edges:
        assert edge.confidence is not None
        assert edge.kept == (edge.confidence > record.threshold["value"])


def test_two_lags_are_told_apart():
    rng = np.random.default_rng(18)
    values = rng.standard_normal((800, 4))
    values[2:, 1] += 0.5 * values[:-2, 0]
    values[1:, 3] += 0.5 * values[:-1, 2]
    record = learn_structure(named(values), replace(BARE, lags=2))
    assert ("s0", "s1", 2) in {(e.source, e.target, e.lag) for e in record.edges}
    assert ("s2", "s3", 1) in {(e.source, e.target, e.lag) for e in record.edges}


def test_no_links_within_noise():
    values = draw_noise(np.random.default_rng(19), "garch_t", 800, 8)
    table = make_table(named(values), 1)
    decision = decide(table, SearchConfig(random_starts=3), np.random.default_rng(0))
    assert edges_between(decision.parents) <= 2


@pytest.mark.parametrize(("count", "rate"), [(0, 0.3), (2, 0.5), (46, 1.2)])
def test_chance_tail_is_scipys_poisson(count, rate):
    expected = stats.poisson(rate).sf(count - 1)
    assert poisson_tail(count, rate) == pytest.approx(expected, abs=1e-12)


def test_order_puts_causes_first():
    dag = random_dag(np.random.default_rng(20), 10, 2.0, (1.0, 1.0))
    order = topological_order(dag.T != 0)
    place = np.argsort(order)
    assert all(place[a] < place[b] for a, b in np.argwhere(dag))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (None, {"lags": -1}, "structure.lags is -1; expected at least 0"),
        (None, {"bootstrap": BootstrapConfig(block_length=0)}, "block_length is 0"),
        (None, {"gradient": GradientConfig(acyclic_schedule=())}, "acyclic_schedule is empty"),
        (None, {"gradient": GradientConfig(validation_share=1.0)}, "expected between 0 and 1"),
    ],
)
def test_settings_that_cannot_learn_are_refused(section, values, message):
    with pytest.raises(InputError, match=message):
        replace(BARE, **values)
