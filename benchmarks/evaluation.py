"""Speed of the evaluation metrics: ``python benchmarks/evaluation.py [--years 20 --stocks 4000]``.

Two questions. How long do rank IC, deciles, portfolio and 1,000 bootstrap draws take for years of a
whole market at four horizons? And how many times faster is the rank IC than pandas ``groupby`` with
scipy, on the same data, with the same result? The answer is printed and written as JSON to
``benchmarks/results/``.
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


def against_pandas(data: dict[str, Any]) -> dict[str, float]:
    """Seconds of our rank IC and of pandas groupby with scipy on the same dates, and the gap."""
    import pandas as pd
    from scipy import stats

    dates = min(COMPARED_DATES, len(data["dates"]) - 30)
    score, target = data["score"][:dates], data["targets"][5][:dates]
    valid = data["tradable"][:dates] & np.isfinite(target)
    day, stock = np.nonzero(valid)
    frame = pd.DataFrame({"day": day, "score": score[day, stock], "target": target[day, stock]})

    started = time.perf_counter()
    theirs = frame.groupby("day")[["score", "target"]].apply(
        lambda part: stats.spearmanr(part["score"], part["target"]).statistic
    )
    slow = time.perf_counter() - started
    fast = []
    ours = np.empty(0)
    for _ in range(5):
        started = time.perf_counter()
        ours = rank_ic(score, target, valid)
        fast.append(time.perf_counter() - started)
    return {
        "pandas_scipy_seconds": slow,
        "rank_ic_seconds": min(fast),
        "times_faster": slow / min(fast),
        "largest_difference": float(np.abs(ours - theirs.to_numpy()).max()),
    }


def main() -> None:
    """Runs both, prints and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--stocks", type=int, default=4000)
    options = parser.parse_args()
    data = market(options.years * 252, options.stocks)
    started = time.perf_counter()
    parts = evaluate_everything(data)
    total = time.perf_counter() - started
    result = {
        "dates": options.years * 252, "stocks": options.stocks, "horizons": len(HORIZONS),
        "bootstrap_draws": DRAWS, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "seconds": total, "parts": parts, "against_pandas": against_pandas(data),
    }  # fmt: skip
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
