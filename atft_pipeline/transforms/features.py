"""What a feature is, and how a set of them is computed. Which features there are stands in
``feature_registry``; their formulas stand in the modules beside this one.
"""

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Bool

from atft_model.errors import InputError
from atft_pipeline.transforms import flows as investor_flows
from atft_pipeline.transforms import fundamentals
from atft_pipeline.transforms.as_of import newest_known, trading_day_numbers
from atft_pipeline.transforms.market import market_series
from atft_pipeline.transforms.returns import simple_return
from atft_pipeline.transforms.sector import sector_series
from atft_pipeline.transforms.windows import bar_numbers

Group = Literal["price", "liquidity", "market", "relative", "sector", "flow", "statement", "mask"]
Scope = Literal["stock", "market", "sector", "section", "statement"]
Normalizer = Literal["cross_section", "time_series", "none"]

LISTING_COLUMNS = ("sector", "shares_outstanding", "market")

BAR_COLUMNS = ("date", "code", "open", "high", "low", "close", "volume", "turnover", "raw_close")


@dataclass(frozen=True)
class Step:
    """A column that features of a stock read and that is worked out once for all of them.

    Attributes:
        name: Column name.
        expression: As a stock feature's; it may read steps of its own kind. A recursive one is
            applied to each stock's bars by themselves, and reads no ``bar``.
        recursive: Whether a value reads all bars before it. Such a step goes over the whole history
            even where only the last dates are wanted, which for a few averages costs less than
            keeping what they were.
    """

    name: str
    expression: pl.Expr = field(repr=False, compare=False)
    recursive: bool = False

    @property
    def column(self) -> pl.Expr:
        """What an expression writes to read it."""
        return pl.col(self.name)


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    Attributes:
        name: Column name; a contract (DESIGN.md section 5).
        formula: The definition in words or maths, as printed in the docs. ``[t]`` is today.
        group: Where it stands in the docs.
        scope: What it is one value of: a stock, the whole market, a sector or a market section,
            each by date, or a company's statement, held until the next.
        needs: Source columns without which it cannot be computed, as ``table.column``, or several
            of which one is enough, separated by " or ".
        lookback: Bars of its own series that a value reads, today included; where only the last
            dates are computed, a stock feature is given no more. Trailing-year
            statistics start earlier, and recursive averages read all bars before too; their
            formula says so. Of flows and statements: trading days that the figures reach back.
        normalizer: ``cross_section`` (among the date's stocks), ``time_series`` (by statistics of
            the training dates), or ``none`` (flags and masks: 0 or 1).
        expression: Applied to the series in date order. Series of one scope stand below each other
            in one column: earlier bars are read through ``windows``, which knows where each starts,
            or with ``.over("code")``, never by a bare ``shift``. By scope it may read, besides
            ``bar``: *stock*: the columns of ``prices``, ``return_1d``, ``shares_outstanding`` (of
            the newest statement, else of the listing),
            ``market_return_1d``, ``market_return_5d``, ``market_gap_5_20``, ``sector_return_1d``,
            ``sector_members``, and trading days since the newest ``statement_days`` and
            ``flow_days``, with ``statement_quarter``; *market*: ``level``, ``return_1d``; *sector*:
            ``level``, ``return_1d``, ``members``; *section*: the columns of
            ``flows.section_series``; *statement*: those of ``fundamentals.known_statements``.
        reads: Steps of a stock feature that are worked out first.

    Raises:
        ValueError: The feature contradicts itself. A value of the whole market, or of a section of
            it, is the same for every stock of a date (or of most), so a score within the date would
            be zero throughout.
    """

    name: str
    formula: str
    group: Group
    scope: Scope
    needs: tuple[str, ...]
    lookback: int
    normalizer: Normalizer
    expression: pl.Expr = field(repr=False, compare=False)
    reads: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if self.scope in ("market", "section") and self.normalizer == "cross_section":
            raise ValueError(
                f"feature '{self.name}': a {self.scope}-wide value under a per-date z-score is "
                "always zero; use normalizer 'time_series' (or 'none' for a flag)"
            )
        if self.lookback < 1:
            raise ValueError(
                f"feature '{self.name}': lookback is {self.lookback}; a value reads at least "
                "today's bar, so give 1 or more"
            )


def compute_features(
    prices: pl.DataFrame,
    listings: pl.DataFrame,
    indices: pl.DataFrame,
    features: Sequence[Feature],
    statements: pl.DataFrame | None = None,
    flows: pl.DataFrame | None = None,
    since: dt.date | None = None,
) -> pl.DataFrame:
    """The feature table in raw units, from data up to each row's own close only.

    A row's value does not change, to the bit, when later rows are rewritten or removed.

    Args:
        prices: The ``prices`` table; any row order, keys unique.
        listings: ``code``, ``sector``, ``shares_outstanding`` of ``raw_listings``, and ``market``
            where there are flows; may lack codes.
        indices: The ``raw_indices`` table; no rows means that the market is derived from prices.
        features: What to compute, in column order.
        statements: The ``raw_statements`` table; None where there is none, and then no feature of
            statements may be among ``features``. Without rows it says that nothing was disclosed
            yet: the values are null.
        flows: The ``raw_investor_flows`` table, likewise.
        since: Only rows from this date on, with the same bits as in the whole table. The tables are
            given whole: the series of the market and the sectors and the recursive averages read
            them from the start, all other values the bars that their lookback reaches.

    Returns:
        ``date, code`` and one Float32 column per feature, one row per row of ``prices``, sorted by
        (code, date). Null where not computable (history too short, division by zero, source value
        missing); never NaN or infinite.

    Raises:
        InputError: Duplicate keys in ``prices`` or ``listings``.
        ValueError: A feature's table was not given.
    """
    _refuse_duplicates("listings", listings, ["code"])
    _refuse_absent(features, {"statements": statements, "investor_flows": flows})
    steps = _steps(features)
    read = _columns_read(features, steps)
    listed = {"market"} if flows is not None else set()
    listed |= {"shares_outstanding"} if statements is not None else set()
    bars = _stock_bars(prices, listings, read | listed)
    dated = statements is not None or flows is not None
    calendar = prices["date"].unique().sort() if dated else pl.Series(dtype=pl.Date)
    market = market_series(bars, indices) if "market" in read else None
    sectors = sector_series(bars) if "sector" in read else None
    for batch in _batches([step for step in steps if step.recursive]):
        bars = bars.with_columns(step.expression.over("stock").alias(step.name) for step in batch)
    if since is not None:
        bars = _last_bars(bars, since, _reach(features))
    by_scope: dict[Scope, pl.DataFrame] = {}
    if market is not None:
        at = _positions(bars, market, ["date"])
        by_scope["market"] = _evaluate(market, features, "market").select(pl.all().gather(at))
        bars = bars.hstack(_beside("market", market, ("return_1d", "return_5d", "gap_5_20"), at))
    if sectors is not None:
        at = _positions(bars, sectors, ["sector", "date"])
        by_scope["sector"] = _evaluate(sectors, features, "sector").select(pl.all().gather(at))
        bars = bars.hstack(_beside("sector", sectors, ("return_1d", "members"), at))
    if statements is not None:
        values, newest = _of_statements(bars, statements, features, calendar)
        shares = pl.coalesce("statement_shares", "shares_outstanding")
        by_scope["statement"] = values
        bars = bars.hstack(newest).with_columns(shares_outstanding=shares)
    if flows is not None:
        sections = investor_flows.section_series(flows, calendar, since)
        values, newest = _of_flows(bars, sections, features)
        by_scope["section"], bars = values, bars.hstack(newest)
    for batch in _batches([step for step in steps if not step.recursive]):
        bars = bars.with_columns(step.expression.alias(step.name) for step in batch)
    by_scope["stock"] = _evaluate(bars, features, "stock")
    columns = [by_scope[feature.scope][feature.name] for feature in features]
    table = bars.select("date", "code").hstack(columns)
    return table if since is None else table.filter(pl.col("date") >= since)


def _steps(features: Iterable[Feature]) -> list[Step]:
    """Those that the features read, each once."""
    steps: dict[str, Step] = {}
    for feature in features:
        for step in feature.reads:
            known = steps.setdefault(step.name, step)
            if known is not step and not known.expression.meta.eq(step.expression):
                raise ValueError(
                    f"feature '{feature.name}': its step '{step.name}' is another one elsewhere; "
                    "rename one"
                )
    return list(steps.values())


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps that read none of the others, then those that read only these, and so on."""
    left = list(steps)
    while left:
        names = {step.name for step in left}
        ready = [step for step in left if names.isdisjoint(step.expression.meta.root_names())]
        if not ready:
            raise ValueError(f"steps {', '.join(sorted(names))} read each other; let one be first")
        yield ready
        left = [step for step in left if step not in ready]


def _columns_read(features: Iterable[Feature], steps: Iterable[Step]) -> set[str]:
    """Columns that stock features read, and the scopes that must be there for the features asked
    for: a series of the market or the sectors that none of them reads is not worked out."""
    read = [f.expression for f in features if f.scope == "stock"] + [s.expression for s in steps]
    columns = {name for expression in read for name in expression.meta.root_names()}
    of_scope = {name.split("_")[0] for name in columns if name.startswith(("market_", "sector_"))}
    return columns | of_scope | {feature.scope for feature in features}


def _beside(
    scope: Scope, series: pl.DataFrame, names: Sequence[str], at: pl.Series
) -> pl.DataFrame:
    """Columns of a market or sector series at each bar, as ``<scope>_<name>``."""
    return series.select(pl.col(names).gather(at).name.prefix(f"{scope}_"))


def _reach(features: Iterable[Feature]) -> int:
    """Bars that a stock feature may read, today included."""
    return max((feature.lookback for feature in features if feature.scope == "stock"), default=1)


def _last_bars(bars: pl.DataFrame, since: dt.date, reach: int) -> pl.DataFrame:
    """Each stock's rows from a date on, and the bars before that the first of them reads.

    ``bar`` starts again where the bars were cut, so that a window that is longer than ``reach``
    is unknown and never made up of another stock's bars.
    """
    wanted = (bars["date"] >= since).to_numpy()
    code = bars["bar"].to_numpy() == 1
    stock = np.cumsum(code) - 1
    row = np.arange(bars.height)
    first_wanted = np.full(stock[-1] + 1 if len(stock) else 0, bars.height)
    np.minimum.at(first_wanted, stock[wanted], row[wanted])
    kept = bars.filter(pl.Series(row > first_wanted[stock] - reach))
    return kept.with_columns(bar_numbers(_first_of_code(kept["code"])))


def _of_statements(
    bars: pl.DataFrame, statements: pl.DataFrame, features: Sequence[Feature], calendar: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Statement features on every bar until they are stale, and what stock features read."""
    known = fundamentals.known_statements(statements)
    newest = newest_known(bars, known, by="code")
    days = trading_day_numbers(bars["date"], calendar) - (
        trading_day_numbers(known["counts_from"], calendar).gather(newest)
    )
    values = _evaluate(known, features, "statement").select(pl.all().gather(newest))
    believed = (days <= fundamentals.STALE_DAYS).fill_null(False)
    columns = {
        "statement_days": days,
        "statement_quarter": known["quarter"].gather(newest),
        "statement_shares": known["shares_outstanding"].gather(newest),
    }
    return values.select(pl.when(believed).then(pl.all())), pl.DataFrame(columns)


def _of_flows(
    bars: pl.DataFrame, series: pl.DataFrame, features: Sequence[Feature]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Flow features of each bar's market section, and what the mask reads."""
    position = _positions(investor_flows.section_of(bars, series), series, ["section", "date"])
    values = _evaluate(series, features, "section").select(pl.all().gather(position))
    return values, series.select(flow_days=pl.col("days_since").gather(position))


def _refuse_absent(features: Sequence[Feature], tables: Mapping[str, pl.DataFrame | None]) -> None:
    absent = tuple(f"{name}." for name, frame in tables.items() if frame is None)
    for feature in features:
        unmet = [need for need in feature.needs if need.startswith(absent)]
        if unmet:
            raise ValueError(
                f"feature '{feature.name}' needs {', '.join(unmet)}, which is not there; give the "
                "table, or leave the feature out (available_features)"
            )


def _refuse_duplicates(table: str, frame: pl.DataFrame, key: list[str]) -> None:
    duplicates = frame.select(key).is_duplicated()
    if duplicates.any():
        first = frame.filter(duplicates).select(key).row(0)
        raise InputError(
            f"{table}: {duplicates.sum()} rows share their ({', '.join(key)}), the first is "
            f"{', '.join(str(value) for value in first)}; expected one row per key; remove or "
            "quarantine the repeats"
        )


def _stock_bars(prices: pl.DataFrame, listings: pl.DataFrame, read: Set[str]) -> pl.DataFrame:
    """Prices sorted by (code, date) with ``stock`` (the code's number from 0), ``bar``,
    ``return_1d`` and those of the listing's columns that are read."""
    bars = prices.select(BAR_COLUMNS)
    first = _first_of_code(bars["code"])
    if not _rises(bars, first):
        bars = bars.sort("code", "date")
        first = _first_of_code(bars["code"])
        if not _rises(bars, first):
            _refuse_duplicates("prices", bars, ["date", "code"])
    columns = [name for name in LISTING_COLUMNS if name in listings.columns and name in read]
    listed = (
        bars.select("code")
        .filter(pl.Series(first))
        .join(listings.select("code", *columns), on="code", how="left", maintain_order="left")
    )
    # Sorted numbers are put into groups faster than codes.
    stock = pl.Series("stock", np.cumsum(first, dtype=np.uint32) - np.uint32(1)).set_sorted()
    return bars.with_columns(
        stock, bar_numbers(first), *(listed[name].gather(stock) for name in columns)
    ).with_columns(return_1d=simple_return(pl.col("close"), 1))


def _rises(bars: pl.DataFrame, first: Bool[np.ndarray, " rows"]) -> bool:
    """Whether the rows are sorted by (code, date) and no key stands twice."""
    later = (bars["date"] > bars["date"].shift(1)).fill_null(True) | pl.Series(first)
    codes = bars["code"].filter(pl.Series(first))
    return bool(later.all()) and bool((codes > codes.shift(1)).all())


def _first_of_code(code: pl.Series) -> Bool[np.ndarray, " rows"]:
    """Whether a row is the first of its code, in rows sorted by code."""
    return (code != code.shift(1)).fill_null(True).to_numpy()


def _evaluate(series: pl.DataFrame, features: Sequence[Feature], scope: Scope) -> pl.DataFrame:
    """The features of one scope on their series, as finite Float32 or null.

    Division by zero is guarded where it can happen; the last step here also turns into null what
    overflows Float32, so that nothing but numbers and nulls reaches the table.
    """
    values = series.select(
        feature.expression.cast(pl.Float32).alias(feature.name)
        for feature in features
        if feature.scope == scope
    )
    return pl.DataFrame([_finite(column) for column in values])


def _finite(column: pl.Series) -> pl.Series:
    """Null where a value is not finite; the column itself where all are, in one piece: a file of
    several pieces has other bytes.

    A sum is finite only if all its terms are, and takes an eighth of the time of looking at each.
    """
    column = column.rechunk()
    if math.isfinite(column.sum()):
        return column
    finite = column.is_finite()
    return column if finite.all() else pl.select(pl.when(finite).then(column)).to_series()


def _positions(bars: pl.DataFrame, series: pl.DataFrame, key: list[str]) -> pl.Series:
    """Where in a market or sector series each bar's value stands; null where there is none."""
    placed = series.select(key).with_row_index("position")
    return bars.select(key).join(placed, on=key, how="left", maintain_order="left")["position"]
