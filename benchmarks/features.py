"""Speed and memory of the features and the panel: ``python benchmarks/features.py [PRICES]``.

On a real file (default: the NASDAQ file beside the project, up to 2015-12-31): all features that
daily bars allow, and the panel of them; growth with the number of rows; how many times faster a
dozen of them are than the same by pandas ``groupby``, with the same numbers to 1e-6. On the
built-in market: all 82 features at the size of the Tokyo market, and one new day on five years,
equal to a full rebuild to the bit. Prints a table and writes ``benchmarks/results/features.json``.
Each measurement runs in its own process, so that peaks do not mix. ``--small`` takes a tenth of
everything, to see that it runs.

Tokyo-sized: a market of a quarter of the stocks, four times under other codes, because generating
four different ones would take longer than the measurement. The market has an index; a file has
none.
"""

import argparse
import datetime as dt
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from atft_model.data.panel import write_panel
from atft_model.data.splits import SplitConfig
from atft_pipeline.feature_registry import REGISTRY, available_features, unmet_needs
from atft_pipeline.sources.files import FilesConfig, FilesSource
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.features import Feature, compute_features
from atft_pipeline.transforms.incremental import (
    build_or_extend,
    built_from,
    content_hash,
    with_stored,
)
from atft_pipeline.transforms.lookahead import differences, known_at_close
from atft_pipeline.transforms.normalize import fit_and_apply
from atft_pipeline.transforms.panel import (
    build_panel,
    default_split,
    feature_rows,
    panel_codes,
    trading_calendar,
)
from atft_pipeline.transforms.panel_extension import build_or_extend_array, panel_built_from
from atft_pipeline.transforms.targets import forward_returns
from atft_pipeline.transforms.universe import trading_universe
from atft_pipeline.transforms.validity import ValidityRules, quarantine_invalid

FILE = Path("../shared/data/nasdaq_eod_2005_2017.parquet")
LAST_DATE = dt.date(2015, 12, 31)
SHARES = (0.2, 0.4, 1.0)
"""Of the file's stocks: about 0.5, 1 and 2.5 million rows."""

TOKYO = (980, 1250, 4)
"""Stocks and dates of the built-in market, and how many times it is there: 4.6 million rows."""

FIVE_YEARS = (1026, 1250)
ROUNDS = 7
SAME = 1e-6
BARS = ["high", "low", "close", "volume"]
LONGEST = 21
"""Bars before today that a value compared reads, exponential averages left aside."""

RESULT = Path(__file__).parent / "results" / "features.json"
Tables = dict[str, pl.DataFrame]
Plain = Callable[[pd.DataFrame], pd.Series]


def average(close: pd.Series, bars: int) -> pd.Series:
    return close.rolling(bars).mean()


def exponential(value: pd.Series, span: int) -> pd.Series:
    return value.ewm(span=span, adjust=False, min_periods=span).mean()


def relative_strength_index(close: pd.Series, bars: int) -> pd.Series:
    gain, loss = (
        (sign * close.diff()).clip(lower=0).ewm(alpha=1 / bars, adjust=False, min_periods=bars)
        for sign in (1, -1)
    )
    rises, falls = gain.mean(), loss.mean()
    return 100 * rises / (rises + falls)


def macd_histogram(close: pd.Series) -> pd.Series:
    line = exponential(close, 12) - exponential(close, 26)
    return (line - exponential(line, 9)) / close


def stochastic(g: pd.DataFrame, bars: int) -> pd.Series:
    lowest, highest = g.low.rolling(bars).min(), g.high.rolling(bars).max()
    return 100 * (g.close - lowest) / (highest - lowest)


PLAIN: dict[str, Plain] = {
    "returns_5d": lambda g: g.close / g.close.shift(5) - 1,
    "log_returns_1d": lambda g: np.log(g.close / g.close.shift(1)),
    "volatility_20d": lambda g: (g.close / g.close.shift(1) - 1).rolling(20).std(),
    "realized_volatility": lambda g: np.sqrt(
        (np.log(g.high / g.low) ** 2).rolling(20).mean() / (4 * np.log(2))
    ),
    "ema_20": lambda g: exponential(g.close, 20) / g.close - 1,
    "ma_gap_5_20": lambda g: average(g.close, 5) / average(g.close, 20) - 1,
    "bb_width": lambda g: 4 * g.close.rolling(20).std(ddof=0) / average(g.close, 20),
    "rsi_14": lambda g: relative_strength_index(g.close, 14),
    "macd_histogram": lambda g: macd_histogram(g.close),
    "stoch_k": lambda g: stochastic(g, 14),
    "close_to_high": lambda g: g.close / g.high - 1,
    "volume_ratio_20": lambda g: g.volume / g.volume.rolling(20).mean(),
}
"""One of each kind of formula of a stock's own bars."""


@contextmanager
def measured(name: str, into: dict[str, Any]) -> Iterator[None]:
    """Wall seconds, and CPU seconds of all threads, as ``<name>_seconds`` and ``<name>_cpu``."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    after = resource.getrusage(resource.RUSAGE_SELF)
    into[f"{name}_seconds"] = time.perf_counter() - started
    into[f"{name}_cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def of_file(path: Path) -> Tables:
    """What the pipeline's assets would hand to the features."""
    source = FilesSource(FilesConfig(prices=path, end_date=LAST_DATE))
    tables = {name: getattr(source, name)() for name in ("raw_listings", "raw_indices")}
    return tables | {
        "prices": split_adjust(*quarantine_invalid(source.raw_prices(), ValidityRules()))
    }


def of_market(stocks: int, dates: int, copies: int = 1) -> Tables:
    """The built-in market's tables; further copies have codes of their own and the same bars."""
    market = SyntheticMarket(SyntheticConfig(stocks=stocks, dates=dates))
    tables = {
        name: getattr(market, f"raw_{name}")()
        for name in ("prices", "listings", "statements", "investor_flows", "indices")
    }
    prices = split_adjust(*quarantine_invalid(tables["prices"], ValidityRules()))

    def copied(table: pl.DataFrame) -> pl.DataFrame:
        return pl.concat(
            table.with_columns(code=pl.format("{}_{}", "code", pl.lit(n))) for n in range(copies)
        )

    return {
        "prices": copied(prices).sort("code", "date"),
        "raw_listings": copied(tables["listings"]),
        "raw_statements": copied(tables["statements"]),
        "raw_investor_flows": tables["investor_flows"],
        "raw_indices": tables["indices"],
    }


def some_stocks(given: Tables, share: float) -> Tables:
    """The first ``share`` of the stocks."""
    codes = given["prices"]["code"].unique().sort()
    kept = codes.head(max(1, round(share * len(codes))))
    return given | {"prices": given["prices"].filter(pl.col("code").is_in(kept.implode()))}


def computed(
    given: Tables, features: tuple[Feature, ...], since: dt.date | None = None
) -> pl.DataFrame:
    return compute_features(
        given["prices"], given["raw_listings"], given["raw_indices"], features,
        given.get("raw_statements"), given.get("raw_investor_flows"), since,
    )  # fmt: skip


def available(given: Tables) -> tuple[Feature, ...]:
    tables = {name.removeprefix("raw_"): table for name, table in given.items()}
    return available_features(unmet_needs(tables))[0]


def all_features(make: Callable[..., Tables], arguments: tuple, share: float, results: Any) -> None:
    given = some_stocks(make(*arguments), share)
    features = available(given)
    result: dict[str, Any] = {"mib_before": peak_mib(), "features": len(features)}
    with measured("features", result):
        table = computed(given, features)
    results.put(result | {"rows": table.height, "peak_mib": peak_mib()})


class PanelTables:
    """All that a panel is built from."""

    def __init__(self, given: Tables, table: pl.DataFrame, features: tuple[Feature, ...]) -> None:
        self.prices, self.listings, self.features = given["prices"], given["raw_listings"], table
        self.universe = trading_universe(given["prices"], given["raw_listings"])
        self.targets = forward_returns(given["prices"])
        self.calendar, self.codes = trading_calendar(self.prices), panel_codes(self.prices)
        self.split = default_split(self.calendar, self.universe, SplitConfig())
        first, end = self.split.train
        done = fit_and_apply(table, features, self.calendar[first], self.calendar[end - 1])
        self.normalized, self.contract = done.table, done.features

    def publish(self, root: Path, record: pl.DataFrame | None) -> tuple[str, pl.DataFrame]:
        """As the asset does, short of its checks; the version, and the record beside it."""
        rows = feature_rows(self.features, self.normalized, self.contract)
        now = panel_built_from(rows, self.contract, self.codes)
        array = build_or_extend_array(rows, self.calendar, self.codes, now, record, root)
        panel = build_panel(
            self.prices, self.universe, self.targets, self.features, self.normalized,
            self.contract, self.listings, self.split, "benchmark", {}, array.values,
        )  # fmt: skip
        version = write_panel(panel, root, array.file)
        return version, with_stored(now, version)


def whole_panel(path: Path, share: float, results: Any) -> None:
    given = some_stocks(of_file(path), share)
    features = available(given)
    tables = PanelTables(given, computed(given, features), features)
    result: dict[str, Any] = {"rows": tables.features.height, "features": len(tables.contract)}
    with tempfile.TemporaryDirectory() as folder, measured("panel", result):
        tables.publish(Path(folder), None)
    results.put(result | {"peak_mib": peak_mib()})


def one_new_day(stocks: int, dates: int, results: Any) -> None:
    """From tables in memory to the table in memory and the panel on disk, and their records."""
    given = of_market(stocks, dates)
    days = trading_calendar(given["prices"])
    before = {name: known_at_close(table, days[-2]) for name, table in given.items()}
    stored = computed(before, REGISTRY)
    record = with_stored(built_from(before, REGISTRY), content_hash(stored))
    expected = computed(given, REGISTRY)
    result: dict[str, Any] = {"rows": expected.height, "features": len(REGISTRY)}
    with tempfile.TemporaryDirectory() as folder:
        root, whole = Path(folder) / "extended", Path(folder) / "whole"
        root.mkdir(), whole.mkdir()
        _, panel_record = PanelTables(before, stored, REGISTRY).publish(root, None)
        tables = PanelTables(given, expected, REGISTRY)
        with measured("features", result):
            now = built_from(given, REGISTRY)
            table, done = build_or_extend(
                given["prices"], now, stored, record,
                lambda since: computed(given, REGISTRY, since),
            )  # fmt: skip
            with_stored(now, content_hash(table))
        if done.since != days[-1] or differences(expected, table):
            raise SystemExit(f"the extended table is not the rebuilt one: {done}")
        with measured("panel", result):
            version, _ = tables.publish(root, panel_record)
        if version != tables.publish(whole, None)[0]:
            raise SystemExit("the extended panel is not the rebuilt one")
    results.put(result | {"what": done.in_words(table), "peak_mib": peak_mib()})


def against_pandas(path: Path, share: float, results: Any) -> None:
    """Both on the same stocks, in turns."""
    given = some_stocks(of_file(path), share)
    prices = given["prices"].sort("code", "date")
    dozen = tuple(feature for feature in REGISTRY if feature.name in PLAIN)
    frame = prices.to_pandas()
    ours, theirs = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        mine = computed(given | {"prices": prices}, dozen)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        plain = {
            name: frame.groupby("code", group_keys=False)[BARS].apply(formula)
            for name, formula in PLAIN.items()
        }
        theirs.append(time.perf_counter() - started)
    worst, redone = 0.0, 0
    for name, column in plain.items():
        values = mine[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        if (np.isfinite(values) != np.isfinite(column)).any():
            raise SystemExit(f"{name}: pandas knows other values than ours")
        expected = column.to_numpy().copy()
        apart = np.flatnonzero(_gap(values, expected) > SAME)
        for row in apart:  # pandas' running sums, or ours? From this window's bars alone:
            expected[row] = PLAIN[name](frame.iloc[row - LONGEST : row + 1]).iloc[-1]
        worst, redone = max(worst, np.nanmax(_gap(values, expected))), redone + len(apart)
    if worst > SAME:
        raise SystemExit(f"largest difference {worst:.1e}; at most {SAME} wanted")
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    results.put({"rows": prices.height, "features": len(dozen), "ours_seconds": min(ours),
                 "pandas_seconds": min(theirs), "ratios": ratios, "worst_gap": worst,
                 "windows_done_again": redone})  # fmt: skip


def _gap(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.abs(left - right) / np.maximum(1.0, np.abs(right))


def in_own_process(work: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__}: exit status {process.exitcode}")
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the features and the panel.")
    parser.add_argument("prices", type=Path, nargs="?", default=FILE)
    parser.add_argument("--small", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    path, scale = options.prices, 0.1 if options.small else 1.0
    stocks, dates, copies = TOKYO
    runs = [(of_file, (path,), scale * share) for share in SHARES]
    runs.append((of_market, (round(scale * stocks), dates, copies), 1.0))
    sizes = []
    for run in runs:
        size = in_own_process(all_features, *run)
        sizes.append(size)
        print(f"{size['rows']:>10,} rows × {size['features']} features: "
              f"{size['features_seconds']:6.1f} s (CPU {size['features_cpu']:.1f}), "
              f"{size['features_seconds'] / size['rows'] * 1e6:5.2f} µs a row, peak "
              f"{size['peak_mib']:,.0f} MiB (inputs {size['mib_before']:,.0f})",
              flush=True)  # fmt: skip
    panel = in_own_process(whole_panel, path, scale)
    print(f"panel of {panel['rows']:,} rows × {panel['features']} features: "
          f"{panel['panel_seconds']:.1f} s (CPU {panel['panel_cpu']:.1f}), peak of all "
          f"{panel['peak_mib']:,.0f} MiB", flush=True)  # fmt: skip
    day = in_own_process(one_new_day, round(scale * FIVE_YEARS[0]), FIVE_YEARS[1])
    print(f"one new day on {day['rows']:,} rows × {day['features']} features: "
          f"{day['features_seconds'] + day['panel_seconds']:.2f} s, features "
          f"{day['features_seconds']:.2f} (CPU {day['features_cpu']:.2f}), panel "
          f"{day['panel_seconds']:.2f} (CPU {day['panel_cpu']:.2f}); equal to a full rebuild to "
          f"the bit", flush=True)  # fmt: skip
    pandas = in_own_process(against_pandas, path, scale)
    print(f"{pandas['features']} features of {pandas['rows']:,} rows: "
          f"{np.median(pandas['ratios']):.1f} ({pandas['ratios'][0]:.1f} to "
          f"{pandas['ratios'][-1]:.1f}) times pandas groupby's speed, largest difference "
          f"{pandas['worst_gap']:.1e}, {pandas['windows_done_again']} windows of which pandas did "
          "alone, without what its running sums keep of earlier prices")  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"sizes": sizes, "panel": panel, "one_new_day": day, "pandas": pandas}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
