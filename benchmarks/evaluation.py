"""Speed of the evaluation metrics: ``python benchmarks/evaluation.py [--years 20 --stocks 4000]``.

Two questions. How long do rank IC, deciles, portfolio and 1,000 bootstrap draws take for years of a
whole market at four horizons? And how many times faster is the rank IC than what one would write,
``frame.groupby("date").apply(lambda day: spearmanr(day.score, day.target).statistic)``, on the same
data, with the same result? By the clock, with the cores there are, and in processor seconds, which
other processes disturb less. The answer is printed and written as JSON to ``benchmarks/results/``.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from atft_model.metrics.bootstrap import bootstrap_mean, bootstrap_sharpe
from atft_model.metrics.inference import newey_west_mean, sharpe
from atft_model.metrics.portfolio import PortfolioConfig, TradingRules, portfolio_returns
from atft_model.metrics.rank_ic import decile_returns, rank_ic

HORIZONS = (1, 5, 10, 20)
DRAWS = 1000
COMPARED_DATES = 252
COMPARED_STOCKS = (300, 1000, 4000)
ROUNDS = 5


def market(dates: int, stocks: int) -> dict[str, Any]:
    """Scores, returns and a universe with gaps, halts and missing scores."""
    rng = np.random.default_rng(1337)
    daily = 0.02 * rng.standard_normal((dates, stocks))
    observed = rng.random((dates, stocks)) > 0.01
    daily[~observed] = np.nan
    logs = np.cumsum(np.log1p(np.nan_to_num(daily)), axis=0)
    targets = {}
    for horizon in HORIZONS:
        target = np.full((dates, stocks), np.nan)
        target[: -horizon - 1] = np.expm1(logs[1 + horizon :] - logs[1:-horizon])
        targets[horizon] = target
    return {
        "score": rng.standard_normal((dates, stocks)),
        "daily": daily,
        "observed": observed,
        "tradable": observed & (rng.random((dates, stocks)) > 0.05),
        "targets": targets,
        "dates": np.busday_offset("2000-01-03", np.arange(dates), roll="forward"),
    }


def evaluate_everything(data: dict[str, Any]) -> dict[str, float]:
    """All figures of one scorer at four horizons; the seconds of each part."""
    parts = dict.fromkeys(("rank_ic", "deciles", "portfolio", "bootstrap"), 0.0)

    def timed(part: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = function()
        parts[part] += time.perf_counter() - started
        return result

    score, tradable, dates = data["score"], data["tradable"], data["dates"]
    rules = TradingRules(has_bar=data["observed"])
    for horizon in HORIZONS:
        target = data["targets"][horizon]
        series = timed("rank_ic", lambda t=target: rank_ic(score, t, tradable))
        timed("deciles", lambda t=target: decile_returns(score, t, tradable))
        config = PortfolioConfig(horizon=horizon)
        returns = timed("portfolio", lambda c=config: portfolio_returns(
            score, data["daily"], tradable, dates, c, rules))  # fmt: skip
        newey_west_mean(series, horizon=horizon)
        sharpe(returns.net, returns.dates)
        timed("bootstrap", lambda s=series: bootstrap_mean(s, draws=DRAWS))
        timed("bootstrap", lambda r=returns: bootstrap_sharpe(r.net, r.dates, draws=DRAWS))
    return parts


def against_pandas(stocks: int) -> dict[str, float]:
    """Our rank IC and pandas groupby with scipy on the same dates: seconds, ratios and the gap."""
    import pandas as pd
    from scipy import stats

    data = market(COMPARED_DATES + max(HORIZONS) + 1, stocks)
    score, target = data["score"][:COMPARED_DATES], data["targets"][5][:COMPARED_DATES]
    valid = data["tradable"][:COMPARED_DATES] & np.isfinite(target)
    day, stock = np.nonzero(valid)
    frame = pd.DataFrame(
        {"date": data["dates"][day], "score": score[day, stock], "target": target[day, stock]}
    )
    theirs, slow = best_of(
        2,
        lambda: frame.groupby("date").apply(
            lambda day: stats.spearmanr(day.score, day.target).statistic
        ),
    )
    ours, fast = best_of(ROUNDS, lambda: rank_ic(score, target, valid))
    return {
        "stocks": stocks,
        "pandas_scipy_seconds": slow[0],
        "rank_ic_seconds": fast[0],
        "times_faster": slow[0] / fast[0],
        "times_less_processor_time": slow[1] / fast[1],
        "largest_difference": float(np.abs(ours - theirs.to_numpy()).max()),
    }


def best_of(rounds: int, function: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """The result, and the least seconds by the clock and of the processor."""
    result, clock, processor = None, [], []
    for _ in range(rounds):
        began, busy = time.perf_counter(), time.process_time()
        result = function()
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - busy)
    return result, (min(clock), min(processor))


def main() -> None:
    """Runs both, prints and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--stocks", type=int, default=4000)
    options = parser.parse_args()
    data = market(options.years * 252, options.stocks)
    parts, (total, busy) = best_of(1, lambda: evaluate_everything(data))
    result = {
        "dates": options.years * 252, "stocks": options.stocks, "horizons": len(HORIZONS),
        "bootstrap_draws": DRAWS, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "seconds": total, "processor_seconds": busy, "parts": parts,
        "against_pandas": [against_pandas(stocks) for stocks in COMPARED_STOCKS],
    }  # fmt: skip
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
