"""Evaluation of scores on the test dates: one set of figures for the model and every control.

NumPy only. Each figure comes with its standard error; what cannot be computed is NaN.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from atft_model.config import setting
from atft_model.data.market_facts import (
    MarketFacts,
    daily_volatility,
    known_factors,
    left_market,
    require_panel_shape,
)
from atft_model.data.panel import Panel
from atft_model.data.splits import EXECUTION_LAG
from atft_model.errors import InputError
from atft_model.metrics.bootstrap import bootstrap_mean, bootstrap_sharpe
from atft_model.metrics.breakdown import neutral_weights, neutralized
from atft_model.metrics.inference import (
    MeanEstimate,
    best_sharpe_by_luck,
    deflated_sharpe,
    newey_west_mean,
    probabilistic_sharpe,
    sharpe,
    sharpe_difference,
    smallest_detectable,
)
from atft_model.metrics.portfolio import (
    PortfolioConfig,
    PortfolioReturns,
    TradingRules,
    breakeven_cost_bp,
    capacity,
    drawdown,
    equal_weights,
    long_short_weights,
    rank_weights,
    returns_of_weights,
    top_weights,
)
from atft_model.metrics.rank_ic import decile_returns, hit_rate, ic, icir, rank_ic

HEADLINE_HORIZON = 5
"""The horizon whose decile long-short portfolio, net of costs, the Sharpe verdict judges."""
MODEL = "model"
MARKET = "equal_weight_market"
"""The control that holds every tradable stock; it has returns but ranks nothing."""
NEUTRAL_FACTORS = ("sector", "beta", "size")
BOOTSTRAP = "_low", "_high"
"""Endings of the figures that are the ends of a bootstrap interval."""

Figure = tuple[float, float, int]
"""Value, standard error (NaN where there is none), number of dates."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How scores are turned into portfolios."""

    quantile: float = setting(0.1, "Share of stocks on each side of the long-short portfolio.")
    cost_bp: float = setting(10.0, "Cost of trading, one way, in basis points of the notional.")
    min_stocks: int = setting(30, "A date with fewer scored stocks has no rank IC and no trades.")
    entry: Literal["close", "open"] = setting(
        "close", "Price of the day after the signal at which positions are entered and left."
    )
    top_stocks: int = setting(30, "Stocks in the long-only portfolio of the highest scores.")
    neutral_to: tuple[str, ...] = setting(
        (),
        "What the traded score and the long-short books are made neutral to, of sector, beta "
        "and size. Rank IC is not.",
    )
    borrow_bp: float = setting(
        0.0, "Cost of borrowing what is sold short, in basis points a year. Large stocks cost "
        "about 30, hard ones hundreds; 0 leaves it out, and the report says so."
    )  # fmt: skip
    capital: float = setting(
        0.0, "Capital in the data's currency, for market impact; 0 trades without impact."
    )
    impact: float = setting(
        1.0, "Impact in daily volatilities of trading a whole day's value (square-root law)."
    )
    delisting_return: float = setting(
        0.0, "Return of a position after its stock's last bar. 0 is a takeover at the last price; "
        "failures returned -0.30 in New York (Shumway 1997). No source here tells them apart."
    )  # fmt: skip
    random_draws: int = setting(200, "Random scores behind the band of what luck looks like.")
    shuffles: int = setting(
        20, "Deals of the model's own scores that must find nothing; at least 10, because with "
        "fewer luck explains so much that the check could hardly fail."
    )  # fmt: skip

    def __post_init__(self) -> None:
        unknown = [name for name in self.neutral_to if name not in NEUTRAL_FACTORS]
        if unknown:
            raise InputError(
                f"evaluation: neutral_to has {', '.join(unknown)}; expected some of "
                f"{', '.join(NEUTRAL_FACTORS)}"
            )
        if self.shuffles < 10:
            raise InputError(f"evaluation: shuffles is {self.shuffles}; expected 10 or more")


@dataclass(frozen=True)
class TestPart:
    """The test dates, cut from the panel once for all scorers.

    Attributes:
        days: Positions of the test dates in the panel.
        dates: datetime64 of each.
        factors: What everyone has, [dates, stocks] by name.
        trials: Trained runs on record, this one included.
    """

    __test__ = False  # no test class, whatever pytest makes of its name

    panel: Panel
    config: EvaluationConfig
    days: slice
    dates: np.ndarray
    tradable: Bool[np.ndarray, "dates stocks"]
    daily_return: Float[np.ndarray, "dates stocks"]
    rules: TradingRules
    factors: Mapping[str, Float[np.ndarray, "dates stocks"]]
    sector: Int[np.ndarray, " stocks"]
    trials: int

    def target(self, horizon: int) -> Float[np.ndarray, "dates stocks"]:
        """Forward returns of a horizon."""
        index = self.panel.horizons.index(horizon)
        return np.asarray(self.panel.targets[self.days, :, index], dtype=np.float64)

    def valid(
        self, score: Float[np.ndarray, "dates stocks"], target: Float[np.ndarray, "dates stocks"]
    ) -> Bool[np.ndarray, "dates stocks"]:
        """Stocks that may be held, are scored, and whose return is known."""
        return self.tradable & np.isfinite(score) & np.isfinite(target)


@dataclass(frozen=True)
class ScorerResult:
    """One scorer at one horizon.

    Attributes:
        figures: metric name -> (value, standard error or NaN, number of dates).
        dates: datetime64 [test dates], with ``rank_ic`` of each.
        decile_mean, decile_error: mean demeaned forward return per score decile, and its error.
        returns: daily returns of the portfolio.
    """

    scorer: str
    horizon: int
    figures: dict[str, Figure]
    dates: np.ndarray
    rank_ic: Float[np.ndarray, " dates"]
    decile_mean: Float[np.ndarray, " deciles"]
    decile_error: Float[np.ndarray, " deciles"]
    returns: PortfolioReturns
    net_by_construction: dict[str, Float[np.ndarray, " days"]] = field(default_factory=dict)


def dates_of_test(panel: Panel) -> slice:
    """Positions of the test part."""
    return slice(*panel.split.test)


def cut_test_part(
    panel: Panel, config: EvaluationConfig, facts: MarketFacts, trials: int = 1
) -> TestPart:
    """Everything about the test dates that does not depend on a score.

    Raises:
        InputError: facts on other axes than the panel's, or settings that need facts which the
            source lacks.
    """
    require_panel_shape(panel, facts)
    wants_size = "size" in config.neutral_to
    if (wants_size or config.capital > 0) and facts.traded_value is None:
        raise InputError(
            "evaluation: capital and neutral_to size need the traded value, which is not given; "
            "leave them out or give turnover with the prices"
        )
    if config.entry == "open" and facts.open_return is None:
        raise InputError("evaluation: entry is 'open', but open prices are not given; use 'close'")
    days = dates_of_test(panel)
    moves = facts.open_return if config.entry == "open" else panel.daily_return
    assert moves is not None

    def cut(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.asarray(array[days])

    return TestPart(
        panel=panel,
        config=config,
        days=days,
        dates=np.array(panel.dates[days], dtype="datetime64[D]"),
        tradable=np.asarray(panel.tradable[days]),
        daily_return=np.asarray(moves[days], dtype=np.float64),
        rules=TradingRules(
            has_bar=np.asarray(panel.observed[days]),
            can_buy=cut(facts.can_buy),
            can_sell=cut(facts.can_sell),
            delisted=left_market(np.asarray(panel.observed))[days],
            volatility=daily_volatility(panel)[days],
            traded_value=cut(facts.traded_value),
        ),
        factors={name: values[days] for name, values in known_factors(panel, facts).items()},
        sector=np.asarray(panel.sector),
        trials=trials,
    )


def evaluate(
    scorer: str, horizon: int, score: Float[np.ndarray, "dates stocks"], part: TestPart
) -> ScorerResult:
    """All figures of one score on the test dates.

    Args:
        score: Over all dates of the panel; only test dates are used. NaN where not scored.
    """
    config = part.config
    mine = np.asarray(score[part.days], dtype=np.float64)
    target = part.target(horizon)
    valid = part.valid(mine, target)
    rank_ics = rank_ic(mine, target, valid, config.min_stocks)
    deciles = decile_returns(mine, target, valid, min_stocks=config.min_stocks)
    estimates = [newey_west_mean(column, horizon=horizon) for column in deciles.T]
    traded = traded_score(mine, part)
    if scorer == MARKET:
        weights = equal_weights(part.tradable)
    else:
        deciles_held = long_short_weights(traded, part.tradable, config.quantile, config.min_stocks)
        weights = traded_book(deciles_held, part)
    returns = portfolio(weights, horizon, part)
    figures = _ranking_figures(mine, target, valid, rank_ics, horizon, config)
    figures |= _residual_figures(mine, target, valid, horizon, part)
    figures |= _portfolio_figures(returns, part.trials)
    others: dict[str, PortfolioReturns] = {}
    if scorer != MARKET and np.isfinite(mine).any():
        others = {
            "rank_weighted": portfolio(
                traded_book(rank_weights(traded, part.tradable, config.min_stocks), part),
                horizon, part,
            ),
            "top": portfolio(
                top_weights(traded, part.tradable, config.top_stocks, config.min_stocks),
                horizon, part,
            ),
        }  # fmt: skip
    for name, other in others.items():
        for kind in ("net", "gross"):
            estimate = sharpe(getattr(other, kind), other.dates)
            figures[f"{name}_sharpe_{kind}"] = estimate.value, estimate.standard_error, estimate.T
    return ScorerResult(
        scorer=scorer,
        horizon=horizon,
        figures=figures,
        dates=part.dates,
        rank_ic=rank_ics,
        decile_mean=np.array([estimate.mean for estimate in estimates]),
        decile_error=np.array([estimate.standard_error for estimate in estimates]),
        returns=returns,
        net_by_construction={name: other.net for name, other in others.items()},
    )


def portfolio(
    weights: Float[np.ndarray, "dates stocks"], horizon: int, part: TestPart
) -> PortfolioReturns:
    """Daily returns of weights by signal date, at the configured costs."""
    config = part.config
    return returns_of_weights(
        weights,
        np.ones(len(weights), dtype=bool),
        part.daily_return,
        part.dates,
        PortfolioConfig(
            horizon=horizon,
            quantile=config.quantile,
            cost_bp=config.cost_bp,
            execution_lag=EXECUTION_LAG,
            min_stocks=config.min_stocks,
            borrow_bp=config.borrow_bp,
            capital=config.capital,
            impact=config.impact,
            delisting_return=config.delisting_return,
        ),
        part.rules,
    )


def traded_score(
    score: Float[np.ndarray, "dates stocks"], part: TestPart
) -> Float[np.ndarray, "dates stocks"]:
    """The score as it is, or less what the factors of ``neutral_to`` explain of its ranks."""
    if not part.config.neutral_to:
        return score
    return neutralized(np.where(part.tradable, score, np.nan), *_neutral_factors(part))


def traded_book(
    weights: Float[np.ndarray, "dates stocks"], part: TestPart
) -> Float[np.ndarray, "dates stocks"]:
    """Long-short weights as they are, or without any lean to the factors of ``neutral_to``."""
    if not part.config.neutral_to:
        return weights
    return neutral_weights(weights, part.tradable, *_neutral_factors(part))


def _neutral_factors(part: TestPart) -> tuple[np.ndarray, np.ndarray | None]:
    names = part.config.neutral_to
    columns = [part.factors[name] for name in names if name != "sector"]
    factors = np.stack(columns, axis=-1) if columns else np.empty((*part.tradable.shape, 0))
    return factors, part.sector if "sector" in names else None


def _ranking_figures(
    score: np.ndarray, target: np.ndarray, valid: np.ndarray, rank_ics: np.ndarray,
    horizon: int, config: EvaluationConfig,
) -> dict[str, Figure]:  # fmt: skip
    figures = {}
    for name, series in (
        ("rank_ic", rank_ics),
        ("ic", ic(score, target, valid, config.min_stocks)),
        ("hit_rate", hit_rate(score, target, valid, config.min_stocks)),
    ):
        figures[name] = _figure(newey_west_mean(series, horizon=horizon))
    nan, dates = float("nan"), figures["rank_ic"][2]
    interval = bootstrap_mean(rank_ics)
    figures["rank_ic_low"] = interval.low, nan, dates
    figures["rank_ic_high"] = interval.high, nan, dates
    figures["rank_ic_detectable"] = smallest_detectable(figures["rank_ic"][1]), nan, dates
    figures["icir"] = icir(rank_ics), nan, dates
    return figures


def _residual_figures(
    score: np.ndarray, target: np.ndarray, valid: np.ndarray, horizon: int, part: TestPart
) -> dict[str, Figure]:
    """Rank IC of what the known factors do not explain of the score."""
    factors = np.stack(list(part.factors.values()), axis=-1)
    residual = neutralized(np.where(valid, score, np.nan), factors)
    series = rank_ic(residual, target, valid, part.config.min_stocks)
    return {"residual_rank_ic": _figure(newey_west_mean(series, horizon=horizon))}


def _portfolio_figures(returns: PortfolioReturns, trials: int) -> dict[str, Figure]:
    days, nan = len(returns.dates), float("nan")
    net, gross = sharpe(returns.net, returns.dates), sharpe(returns.gross, returns.dates)
    interval = bootstrap_sharpe(returns.net, returns.dates)
    single = {
        "sharpe_net_low": interval.low,
        "sharpe_net_high": interval.high,
        "sharpe_block_days": float(interval.block),
        "sharpe_lag": float(net.lag),
        "sharpe_detectable": smallest_detectable(net.standard_error),
        "sharpe_by_luck": best_sharpe_by_luck(trials, days),
        "probabilistic_sharpe": probabilistic_sharpe(returns.net, returns.dates),
        "deflated_sharpe": deflated_sharpe(returns.net, returns.dates, trials),
        "trials": float(trials),
        "turnover": float(returns.turnover.mean()),
        "max_drawdown": float(drawdown(returns.net).min()),
        "breakeven_cost_bp": breakeven_cost_bp(returns),
        "capacity": capacity(returns),
        "unfilled": float(returns.unfilled.mean()),
        "exposure": float(returns.exposure.mean()),
        "annual_return_net": float(returns.net.mean() * 252),
    }
    return {
        "sharpe_net": (net.value, net.standard_error, net.T),
        "sharpe_gross": (gross.value, gross.standard_error, gross.T),
        **{name: (value, nan, days) for name, value in single.items()},
    }


def evaluate_all(
    scores: Iterable[tuple[str, int, Float[np.ndarray, "dates stocks"]]], part: TestPart
) -> list[ScorerResult]:
    """Every (scorer, horizon, score), and the equal-weight market per horizon beside them.

    Where the model is among them, each result also says how far the model is ahead of it.
    """
    results = [evaluate(name, horizon, score, part) for name, horizon, score in scores]
    nothing = np.full(part.panel.tradable.shape, np.nan)
    results += [evaluate(MARKET, horizon, nothing, part) for horizon in part.panel.horizons]
    model = {r.horizon: r for r in results if r.scorer == MODEL}
    return [
        replace(r, figures=r.figures | model_ahead(model[r.horizon], r))
        if r.scorer != MODEL and r.horizon in model else r
        for r in results
    ]  # fmt: skip


def model_ahead(model: ScorerResult, control: ScorerResult) -> dict[str, Figure]:
    """Model less control, date by date on the same dates; the value over its error is a t.

    The long-only portfolio of the model is compared with the market: what picking stocks adds.
    """
    gap = newey_west_mean(model.rank_ic - control.rank_ic, horizon=model.horizon)
    figures = {"rank_ic_behind_model": _figure(gap)}
    if np.array_equal(model.returns.dates, control.returns.dates):
        dates = model.returns.dates
        figures["sharpe_net_behind_model"] = _figure(
            sharpe_difference(model.returns.net, control.returns.net, dates)
        )
        if control.scorer == MARKET and "top" in model.net_by_construction:
            excess = sharpe(model.net_by_construction["top"] - control.returns.net, dates)
            figures["top_excess_sharpe"] = excess.value, excess.standard_error, excess.T
    return figures


def _figure(estimate: MeanEstimate) -> Figure:
    return estimate.mean, estimate.standard_error, estimate.T
