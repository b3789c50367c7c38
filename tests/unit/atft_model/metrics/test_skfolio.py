"""The figures that skfolio defines as we do, to 1e-10.

It is an extra of its own because it brings scikit-learn and cvxpy (200 MB):
``pip install -e '.[dev,oracles]' -c constraints.txt``; without it these tests are skipped.
"""

import numpy as np
import pytest

from atft_model.metrics.inference import (
    best_sharpe_by_luck,
    deflated_sharpe,
    probabilistic_sharpe,
    sharpe,
)
from atft_model.metrics.portfolio import drawdown

measures = pytest.importorskip("skfolio.measures")
portfolio = pytest.importorskip("skfolio.portfolio")

RNG = np.random.default_rng(11)
DATES = np.busday_offset("2015-01-01", np.arange(600), roll="forward")
ANNUAL = np.sqrt(252)
RETURNS = {
    "normal": 0.0004 + 0.01 * RNG.standard_normal(600),
    "heavy tails": 0.0006 + 0.01 * RNG.standard_t(3, 600),
    "skewed": 0.01 * RNG.exponential(size=600) - 0.011,
}


@pytest.fixture(params=list(RETURNS))
def returns(request: pytest.FixtureRequest) -> np.ndarray:
    return RETURNS[request.param]


def test_the_sharpe_ratio(returns: np.ndarray) -> None:
    theirs = portfolio.BasePortfolio(returns, observations=DATES).annualized_sharpe_ratio
    assert sharpe(returns, DATES).value == pytest.approx(theirs, abs=1e-10)


def test_the_drawdown_of_compounded_capital(returns: np.ndarray) -> None:
    theirs = measures.get_drawdowns(returns, compounded=True)
    np.testing.assert_allclose(drawdown(returns), theirs, atol=1e-10)
    assert -drawdown(returns).min() == pytest.approx(measures.max_drawdown(theirs), abs=1e-10)


@pytest.mark.parametrize("benchmark", [0.0, 0.7])
def test_the_probabilistic_sharpe(returns: np.ndarray, benchmark: float) -> None:
    theirs = measures.probabilistic_sharpe_ratio(returns, benchmark / ANNUAL)
    assert probabilistic_sharpe(returns, DATES, benchmark) == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("trials", [1, 2, 10, 500])
def test_the_deflated_sharpe_of_trials_with_the_spread_of_luck(
    returns: np.ndarray, trials: int
) -> None:
    luck = measures.expected_max_sharpe_ratio(trials, 1 / np.sqrt(len(returns) - 1))
    assert best_sharpe_by_luck(trials, len(returns)) == pytest.approx(luck * ANNUAL, abs=1e-10)
    theirs = measures.probabilistic_sharpe_ratio(returns, luck)
    assert deflated_sharpe(returns, DATES, trials) == pytest.approx(theirs, abs=1e-10)
