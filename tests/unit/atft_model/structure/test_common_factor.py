"""An unobserved root: fitted right, found where it is, and the graph beneath it learned."""

import numpy as np
import pytest

from atft_model.structure.common_factor import (
    NAME,
    _without_chance,
    find_common_factor,
    with_factor,
)
from atft_model.structure.config import (
    BootstrapConfig,
    GradientConfig,
    SearchConfig,
    StructureConfig,
)
from atft_model.structure.decide import decide
from atft_model.structure.factor_model import FactorFit, FactorModel
from atft_model.structure.graph_metrics import edge_scores
from atft_model.structure.health import Truth
from atft_model.structure.learn import learn_structure, without_common_factor
from atft_model.structure.series import Series, make_table
from atft_model.structure.simulate import draw_noise, var_with_dag

COUNT = 9
NAMES = tuple("abcdefghi")
SEARCH = SearchConfig(random_starts=2)


def market_and_own_moves(seed: int, linked: bool) -> tuple[np.ndarray, np.ndarray, Truth]:
    """Groups with a market on top of their own moves, which drive each other or do not."""
    rng = np.random.default_rng(seed)
    made = var_with_dag(seed, COUNT, 500, edges_per_node=0.7)
    own = made.values if linked else draw_noise(rng, "garch_t", 500, COUNT)
    market = rng.standard_normal(500)
    values = own / own.std(0) + market[:, None] * rng.uniform(0.8, 1.2, COUNT)
    return values, market, Truth(made.instant, made.lagged)


@pytest.fixture(scope="module")
def fitted() -> tuple[FactorModel, np.ndarray, FactorFit]:
    values, _, truth = market_and_own_moves(3, linked=True)
    model = FactorModel(make_table(Series(values, NAMES), 1))
    parents = np.hstack([truth.instant.T != 0, truth.lagged[0].T != 0])
    return model, parents, model.fit(parents)


def test_likelihood_and_posterior_are_those_of_the_dense_normal(fitted):
    """All days and series as one normal vector: no circle in frequency, no EM."""
    _, _, fit = fitted
    days, count = 120, COUNT
    few = FactorModel(make_table(Series(market_and_own_moves(3, True)[0][: days + 1], NAMES), 1))
    found = few._expect(fit.effects, fit.loadings, fit.noise)
    residuals = few.rows[:, :count] - few.rows @ fit.effects.T
    shift = np.roll(np.eye(days), 1, axis=0)  # yesterday's factor, on a circle
    carried = np.kron(np.eye(days), fit.loadings[:, :1]) + np.kron(shift, fit.loadings[:, 1:])
    covariance = carried @ carried.T + np.kron(np.eye(days), np.diag(fit.noise))
    solved = np.linalg.solve(covariance, residuals.ravel())
    expected = -np.linalg.slogdet(covariance)[1] - residuals.ravel() @ solved
    assert found.log_likelihood == pytest.approx(expected, abs=0.01 * days)
    np.testing.assert_allclose(found.values, carried.T @ solved, atol=1e-9)
    error = np.eye(days) - carried.T @ np.linalg.solve(covariance, carried)
    np.testing.assert_allclose(found.covariance, error[0, :2], atol=1e-9)


def test_every_step_of_the_fit_raises_the_likelihood(fitted):
    model, parents, _ = fitted
    last, reached = model._first_guess(), []
    for _ in range(8):
        moments = model._moments(last.values, last.covariance)
        last = model._expect(*model._maximize(moments, parents))
        reached.append(last.log_likelihood)
    assert (np.diff(reached) > -1e-6).all()


def test_gains_of_single_edges_bound_what_a_new_fit_gains(fitted):
    model, parents, fit = fitted
    gain, cost = model.single_edges(parents, fit)
    for target, column in [(0, COUNT + 3), (4, COUNT + 1)]:
        more = parents.copy()
        more[target, column] = True
        gained = model.fit(more, fit).log_likelihood - fit.log_likelihood
        assert gained >= gain[target, column] - 0.2
    assert np.isinf(cost[~parents]).all()
    assert (gain[parents] == -1).all()


def test_a_market_is_found_and_its_values_too():
    values, market, _ = market_and_own_moves(3, linked=True)
    found = find_common_factor(Series(values, NAMES), 1, SEARCH, 1337)
    assert found.likely
    assert found.driven_share > 0.5
    assert abs(np.corrcoef(found.fit.values, market[1:])[0, 1]) > 0.9


def test_without_a_market_none_is_likely():
    series = Series(var_with_dag(5, COUNT, 300).values, NAMES)
    assert not find_common_factor(series, 1, SEARCH, 1337).likely
    config = StructureConfig(common_factor="take_out", search=SEARCH)
    kept, taken_out = without_common_factor(series, config)
    assert kept is series
    assert taken_out is None
    few = Series(market_and_own_moves(3, True)[0][:, :4], NAMES[:4])
    assert not find_common_factor(few, 1, SEARCH, 1337).likely  # too few to tell


def test_gaps_are_no_factor():
    """Expected values stand in for missing ones and vary less; that is nothing a root explains."""
    values = var_with_dag(5, COUNT, 400).values
    gaps = np.random.default_rng(0).random(values.shape) < 0.05
    series = Series(np.where(gaps, np.nan, values), NAMES)
    assert find_common_factor(series, 1, SEARCH, 1337).bic_gain < 0


def test_units_do_not_matter():
    values, _, _ = market_and_own_moves(4, linked=True)
    units = 10 ** np.random.default_rng(0).uniform(-3, 3, COUNT)
    first = find_common_factor(Series(values, NAMES), 1, SEARCH, 1337)
    second = find_common_factor(Series(values * units, NAMES), 1, SEARCH, 1337)
    assert (first.parents == second.parents).all()
    assert first.bic_gain == pytest.approx(second.bic_gain, abs=1e-3)


def test_an_exact_draw_shares_nothing_with_the_series_by_chance(fitted):
    _, _, fit = fitted
    values, _, _ = market_and_own_moves(3, linked=True)
    series = Series(values, NAMES)
    table = make_table(series, 1)
    drawn = with_factor(series, table, fit, np.random.default_rng(0))
    assert drawn.exogenous_names == (NAME,)
    assert drawn.exogenous is not None
    error = drawn.exogenous[:, 0] - fit.values
    assert np.abs(table.rows.T @ error).max() / len(error) < 1e-3
    assert error.var() == pytest.approx(fit.covariance[0])
    loose = with_factor(series, table, fit, np.random.default_rng(0), "draw").exogenous
    assert loose is not None
    assert np.abs(table.rows.T @ (loose[:, 0] - fit.values)).max() / len(error) > 2e-3
    again = _without_chance(error, table, fit)
    np.testing.assert_allclose(again, error, atol=1e-9)


def decided(series: Series) -> np.ndarray:
    decision = decide(make_table(series, 1), SEARCH, np.random.default_rng(0))
    return decision.parents


def test_taken_out_it_leaves_the_graph():
    values, _, truth = market_and_own_moves(6, linked=True)
    series = Series(values, NAMES)
    config = StructureConfig(common_factor="take_out", search=SEARCH)
    without, factor = without_common_factor(series, config)
    assert factor is not None
    assert without.exogenous_names == (NAME,)
    found = edge_scores(decided(without)[:, :COUNT].T, truth.instant).f1
    left_in = edge_scores(decided(series)[:, :COUNT].T, truth.instant).f1
    assert found >= 0.8
    assert left_in < found - 0.2


def test_taken_out_it_invents_no_graph():
    values, _, _ = market_and_own_moves(6, linked=False)
    config = StructureConfig(
        common_factor="take_out", gradient=GradientConfig(epochs_per_stage=1), search=SEARCH,
        bootstrap=BootstrapConfig(resamples=0, shuffles=0),
    )  # fmt: skip
    record = learn_structure(Series(values, NAMES), config)
    assert len([edge for edge in record.kept_edges if edge.source != edge.target]) <= 1
    assert record.common_factor is not None
    assert len(record.common_factor["values"]) == record.rows + 1  # the table's first day is a lag
    assert record.exogenous_names == (NAME,)
    assert record.hidden_factor is not None
    assert not record.hidden_factor["likely"]  # none is left
