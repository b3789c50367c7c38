"""Speed and memory of the features: ``python benchmarks/features.py [PRICES.parquet]``.

On a real file (default: the NASDAQ file beside the project, up to 2015-12-31): seconds and peak
memory of all features that daily bars allow, growth with the number of rows, and how many times
faster a dozen of them are than the same by pandas ``groupby``, with the same numbers to 1e-6.
Prints a table and writes ``benchmarks/results/features.json``. Each size runs in its own process,
so that peaks do not mix.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from atft_pipeline.feature_registry import REGISTRY, available_features, unmet_needs
from atft_pipeline.sources.files import FilesConfig, FilesSource
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.features import compute_features
from atft_pipeline.transforms.validity import ValidityRules, quarantine_invalid

FILE = Path("../shared/data/nasdaq_eod_2005_2017.parquet")
LAST_DATE = date(2015, 12, 31)
SHARES = (0.25, 0.5, 1.0)
PANDAS_STOCKS = 150
RESULT = Path(__file__).parent / "results" / "features.json"
Plain = Callable[[pd.DataFrame], pd.Series]


def average(close: pd.Series, bars: int) -> pd.Series:
    return close.rolling(bars).mean()


def exponential(close: pd.Series, span: int) -> pd.Series:
    return close.ewm(span=span, adjust=False, min_periods=span).mean()


PLAIN: dict[str, Plain] = {
    "returns_1d": lambda g: g.close / g.close.shift(1) - 1,
    "returns_5d": lambda g: g.close / g.close.shift(5) - 1,
    "log_returns_1d": lambda g: np.log(g.close / g.close.shift(1)),
    "volatility_5d": lambda g: (g.close / g.close.shift(1) - 1).rolling(5).std(),
    "volatility_20d": lambda g: (g.close / g.close.shift(1) - 1).rolling(20).std(),
    "ema_5": lambda g: exponential(g.close, 5) / g.close - 1,
    "ema_20": lambda g: exponential(g.close, 20) / g.close - 1,
    "ma_gap_5_20": lambda g: average(g.close, 5) / average(g.close, 20) - 1,
    "price_to_sma20": lambda g: g.close / average(g.close, 20) - 1,
    "bb_width": lambda g: 4 * g.close.rolling(20).std(ddof=0) / average(g.close, 20),
    "volume_ratio_5": lambda g: g.volume / g.volume.rolling(5).mean(),
    "volume_ratio_20": lambda g: g.volume / g.volume.rolling(20).mean(),
}


def tables(path: Path) -> dict[str, pl.DataFrame]:
    """What the pipeline's assets would hand to the features."""
    source = FilesSource(FilesConfig(prices=path, end_date=LAST_DATE))
    valid, quarantine = quarantine_invalid(source.raw_prices(), ValidityRules())
    return {
        "prices": split_adjust(valid, quarantine),
        "listings": source.raw_listings(),
        "indices": source.raw_indices(),
    }


def some_stocks(given: dict[str, pl.DataFrame], share: float) -> dict[str, pl.DataFrame]:
    """The first ``share`` of the stocks."""
    codes = given["prices"]["code"].unique().sort()
    kept = codes.head(max(1, round(share * len(codes))))
    return given | {"prices": given["prices"].filter(pl.col("code").is_in(kept.implode()))}


def all_features(path: Path, share: float, results: Any) -> None:
    given = some_stocks(tables(path), share)
    kept, _ = available_features(unmet_needs({"prices": given["prices"],
                                              "listings": given["listings"]}))  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    table = compute_features(given["prices"], given["listings"], given["indices"], kept)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put({"rows": table.height, "features": len(kept), "seconds": seconds,
                 "peak_mib": peak / 1024, "mib_before": before / 1024})  # fmt: skip


def against_pandas(path: Path, results: Any) -> None:
    """Both on the same stocks; ours also computes what pandas does not: it has no cheaper way."""
    given = tables(path)
    codes = given["prices"]["code"].unique().sort().head(PANDAS_STOCKS)
    prices = given["prices"].filter(pl.col("code").is_in(codes.implode())).sort("code", "date")
    dozen = [feature for feature in REGISTRY if feature.name in PLAIN]
    frame = prices.to_pandas()
    ours, theirs = [], []
    for _ in range(3):
        started = time.perf_counter()
        mine = compute_features(prices, given["listings"], given["indices"], dozen)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        plain = {
            name: frame.groupby("code", group_keys=False)[["close", "volume"]].apply(formula)
            for name, formula in PLAIN.items()
        }
        theirs.append(time.perf_counter() - started)
    mine = mine.sort("code", "date")
    worst = 0.0
    for name, column in plain.items():
        theirs_values = column.to_numpy()
        values = mine[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        known = np.isfinite(values) & np.isfinite(theirs_values)
        gap = np.abs(values - theirs_values)[known] / np.maximum(1.0, np.abs(theirs_values[known]))
        worst = max(worst, float(gap.max()))
        if (np.isfinite(values) != known).any():
            raise SystemExit(f"{name}: pandas knows fewer values than ours")
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    results.put({"rows": prices.height, "features": len(dozen), "ours_seconds": min(ours),
                 "pandas_seconds": min(theirs), "ratios": ratios, "worst_gap": worst})  # fmt: skip


def in_own_process(work: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    result = results.get()
    process.join()
    return result


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    sizes = [in_own_process(all_features, path, share) for share in SHARES]
    for size in sizes:
        print(f"{size['rows']:>10,} rows × {size['features']} features: {size['seconds']:6.1f} s, "
              f"{size['seconds'] / size['rows'] * 1e6:5.1f} µs a row, peak {size['peak_mib']:,.0f} "
              f"MiB (inputs {size['mib_before']:,.0f})")  # fmt: skip
    pandas = in_own_process(against_pandas, path)
    print(f"{pandas['features']} features of {PANDAS_STOCKS} stocks: "
          f"{pandas['ratios'][0]:.0f} to {pandas['ratios'][-1]:.0f} times pandas groupby's speed, "
          f"largest difference {pandas['worst_gap']:.1e}")  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"sizes": sizes, "pandas": pandas}, indent=1) + "\n")


if __name__ == "__main__":
    main()
