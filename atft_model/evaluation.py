"""Evaluation of scores on the test dates: one set of figures for the model and every control.

NumPy only. Each figure comes with its standard error; what cannot be computed is NaN.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from atft_model.config import setting
from atft_model.data.panel import Panel
from atft_model.data.splits import EXECUTION_LAG
from atft_model.metrics.inference import newey_west_mean, sharpe
from atft_model.metrics.portfolio import (
    PortfolioConfig,
    PortfolioReturns,
    breakeven_cost_bp,
    drawdown,
    equal_weights,
    long_short_weights,
    returns_of_weights,
)
from atft_model.metrics.rank_ic import decile_returns, hit_rate, ic, icir, rank_ic

HEADLINE_HORIZON = 5
"""The horizon whose decile long-short portfolio, net of costs, the Sharpe verdict judges."""
MARKET = "equal_weight_market"
"""The control that holds every tradable stock; it has returns but ranks nothing."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How scores are turned into portfolios."""

    quantile: float = setting(0.1, "Share of stocks on each side of the long-short portfolio.")
    cost_bp: float = setting(10.0, "Cost of trading, one way, in basis points of the notional.")
    min_stocks: int = setting(30, "A date with fewer scored stocks has no rank IC and no trades.")


@dataclass(frozen=True)
class ScorerResult:
    """One scorer at one horizon.

    Attributes:
        figures: metric name -> (value, standard error or NaN, number of dates).
        dates: datetime64 [test dates], with ``rank_ic`` and ``ic`` of each.
        decile_mean, decile_error: mean demeaned forward return per score decile, and its error.
        returns: daily returns of the portfolio.
    """

    scorer: str
    horizon: int
    figures: dict[str, tuple[float, float, int]]
    dates: np.ndarray
    rank_ic: Float[np.ndarray, " dates"]
    decile_mean: Float[np.ndarray, " deciles"]
    decile_error: Float[np.ndarray, " deciles"]
    returns: PortfolioReturns


def dates_of_test(panel: Panel) -> slice:
    """Positions of the test part."""
    return slice(*panel.split.test)


def evaluate(
    scorer: str,
    horizon: int,
    score: Float[np.ndarray, "dates stocks"],
    panel: Panel,
    config: EvaluationConfig,
) -> ScorerResult:
    """All figures of one score on the panel's test dates.

    Args:
        score: Over all dates of the panel; only test dates are used. NaN where not scored.
    """
    days = dates_of_test(panel)
    mine = np.asarray(score[days], dtype=np.float64)
    tradable = np.asarray(panel.tradable[days])
    target = np.asarray(panel.targets[days, :, panel.horizons.index(horizon)], dtype=np.float64)
    valid = tradable & np.isfinite(mine) & np.isfinite(target)
    rank_ics = rank_ic(mine, target, valid, config.min_stocks)
    deciles = decile_returns(mine, target, valid, min_stocks=config.min_stocks)
    estimates = [newey_west_mean(column, horizon=horizon) for column in deciles.T]
    if scorer == MARKET:
        weights = equal_weights(tradable)
    else:
        weights = long_short_weights(mine, tradable, config.quantile, config.min_stocks)
    returns = _portfolio(weights, horizon, panel, config)
    figures = _ranking_figures(mine, target, valid, rank_ics, horizon, config)
    return ScorerResult(
        scorer=scorer,
        horizon=horizon,
        figures=figures | _portfolio_figures(returns),
        dates=np.array(panel.dates[days], dtype="datetime64[D]"),
        rank_ic=rank_ics,
        decile_mean=np.array([estimate.mean for estimate in estimates]),
        decile_error=np.array([estimate.standard_error for estimate in estimates]),
        returns=returns,
    )


def _portfolio(
    weights: np.ndarray, horizon: int, panel: Panel, config: EvaluationConfig
) -> PortfolioReturns:
    days = dates_of_test(panel)
    return returns_of_weights(
        weights,
        np.ones(len(weights), dtype=bool),
        np.asarray(panel.daily_return[days], dtype=np.float64),
        np.array(panel.dates[days], dtype="datetime64[D]"),
        PortfolioConfig(
            horizon=horizon,
            quantile=config.quantile,
            cost_bp=config.cost_bp,
            execution_lag=EXECUTION_LAG,
            min_stocks=config.min_stocks,
        ),
        has_bar=np.asarray(panel.observed[days]),
    )


def _ranking_figures(
    score: np.ndarray, target: np.ndarray, valid: np.ndarray, rank_ics: np.ndarray,
    horizon: int, config: EvaluationConfig,
) -> dict[str, tuple[float, float, int]]:  # fmt: skip
    figures = {}
    for name, series in (
        ("rank_ic", rank_ics),
        ("ic", ic(score, target, valid, config.min_stocks)),
        ("hit_rate", hit_rate(score, target, valid, config.min_stocks)),
    ):
        estimate = newey_west_mean(series, horizon=horizon)
        figures[name] = (estimate.mean, estimate.standard_error, estimate.T)
    figures["icir"] = (icir(rank_ics), float("nan"), figures["rank_ic"][2])
    return figures


def _portfolio_figures(returns: PortfolioReturns) -> dict[str, tuple[float, float, int]]:
    days, nan = len(returns.dates), float("nan")
    net, gross = sharpe(returns.net, returns.dates), sharpe(returns.gross, returns.dates)
    return {
        "sharpe_net": (net.value, net.standard_error, net.T),
        "sharpe_gross": (gross.value, gross.standard_error, gross.T),
        "turnover": (float(returns.turnover.mean()), nan, days),
        "max_drawdown": (float(drawdown(returns.net).min()), nan, days),
        "breakeven_cost_bp": (breakeven_cost_bp(returns), nan, days),
    }


def evaluate_all(
    scores: Iterable[tuple[str, int, Float[np.ndarray, "dates stocks"]]],
    panel: Panel,
    config: EvaluationConfig,
) -> list[ScorerResult]:
    """Every (scorer, horizon, score), and the equal-weight market per horizon beside them."""
    results = [evaluate(name, horizon, score, panel, config) for name, horizon, score in scores]
    nothing = np.full(panel.tradable.shape, np.nan)
    results += [evaluate(MARKET, horizon, nothing, panel, config) for horizon in panel.horizons]
    return results
