"""What a feature is, and how a set of them is computed. Which features there are stands in
``feature_registry``; their formulas stand in the modules beside this one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from atft_model.errors import InputError
from atft_pipeline.transforms import flows as investor_flows
from atft_pipeline.transforms import fundamentals
from atft_pipeline.transforms.as_of import newest_known, trading_day_numbers
from atft_pipeline.transforms.market import market_series
from atft_pipeline.transforms.returns import simple_return
from atft_pipeline.transforms.sector import sector_series

Group = Literal["price", "liquidity", "market", "relative", "sector", "flow", "statement", "mask"]
Scope = Literal["stock", "market", "sector", "section", "statement"]
Normalizer = Literal["cross_section", "time_series", "none"]

BAR_COLUMNS = ("date", "code", "open", "high", "low", "close", "volume", "turnover", "raw_close")


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
        lookback: Bars of its own series that a value reads, today included. Trailing-year
            statistics start earlier, and recursive averages read all bars before too; their
            formula says so. Of flows and statements: trading days that the figures reach back.
        normalizer: ``cross_section`` (among the date's stocks), ``time_series`` (by statistics of
            the training dates), or ``none`` (flags and masks: 0 or 1).
        expression: Applied to the series in date order. By scope it may read: *stock*, run over
            each code: the columns of ``prices``, ``return_1d``, ``shares_outstanding`` (of the
            newest statement, else of the listing),
            ``market_return_1d``, ``market_return_5d``, ``market_gap_5_20``, ``sector_return_1d``,
            ``sector_members``, and trading days since the newest ``statement_days`` and
            ``flow_days``, with ``statement_quarter``; *market*: ``level``, ``return_1d``; *sector*,
            run over each sector: ``level``, ``return_1d``, ``members``; *section*: the columns of
            ``flows.section_series``; *statement*: those of ``fundamentals.known_statements``.

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
) -> pl.DataFrame:
    """The feature table in raw units, from data up to each row's own close only.

    A row's value does not change, to the bit, when later rows are rewritten or removed.

    Args:
        prices: The ``prices`` table; any row order, keys unique.
        listings: ``code``, ``sector``, ``shares_outstanding`` of ``raw_listings``, and ``market``
            where there are flows; may lack codes.
        indices: The ``raw_indices`` table; no rows means that the market is derived from prices.
        features: What to compute, in column order.
        statements: The ``raw_statements`` table; None or no rows where the source has none, and
            then no feature of statements may be among ``features``.
        flows: The ``raw_investor_flows`` table, likewise.

    Returns:
        ``date, code`` and one Float32 column per feature, one row per row of ``prices``, sorted by
        (code, date). Null where not computable (history too short, division by zero, source value
        missing); never NaN or infinite.

    Raises:
        InputError: Duplicate keys in ``prices`` or ``listings``.
        ValueError: A feature's table was not given.
    """
    _refuse_duplicates("prices", prices, ["date", "code"])
    _refuse_duplicates("listings", listings, ["code"])
    _refuse_absent(features, {"statements": statements, "investor_flows": flows})
    bars = _stock_bars(prices, listings)
    calendar = bars["date"].unique().sort()
    market = market_series(bars, indices)
    sectors = sector_series(bars)
    by_scope: dict[Scope, pl.DataFrame] = {
        "market": _spread(bars, _evaluate(market, features, "market"), market, ["date"]),
        "sector": _spread(
            bars, _evaluate(sectors, features, "sector", over="sector"), sectors, ["sector", "date"]
        ),
    }
    if statements is not None and not statements.is_empty():
        values, newest = _of_statements(bars, statements, features, calendar)
        shares = pl.coalesce("statement_shares", "shares_outstanding")
        by_scope["statement"] = values
        bars = bars.hstack(newest).with_columns(shares_outstanding=shares)
    if flows is not None and not flows.is_empty():
        values, newest = _of_flows(bars, flows, features, calendar)
        by_scope["section"], bars = values, bars.hstack(newest)
    by_scope["stock"] = _evaluate(
        _beside_market_and_sector(bars, market, sectors), features, "stock", over="code"
    )
    columns = [by_scope[feature.scope][feature.name] for feature in features]
    return bars.select("date", "code").hstack(columns)


def _beside_market_and_sector(
    bars: pl.DataFrame, market: pl.DataFrame, sectors: pl.DataFrame
) -> pl.DataFrame:
    """Bars with the market's columns of the date and the stock's sector's."""
    return bars.join(
        market.drop("level").select("date", pl.exclude("date").name.prefix("market_")),
        on="date",
        how="left",
        maintain_order="left",
    ).join(
        sectors.drop("level").select(
            "sector", "date", pl.col("return_1d", "members").name.prefix("sector_")
        ),
        on=["sector", "date"],
        how="left",
        maintain_order="left",
    )


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
    bars: pl.DataFrame, flows: pl.DataFrame, features: Sequence[Feature], calendar: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Flow features of each bar's market section, and what the mask reads."""
    series = investor_flows.section_series(flows, calendar)
    scores = _evaluate(series, features, "section").get_columns()
    values = series.select(flow_days="days_since").hstack(scores)
    spread = _spread(investor_flows.section_of(bars, series), values, series, ["section", "date"])
    return spread.drop("flow_days"), spread.select("flow_days")


def _refuse_absent(features: Sequence[Feature], tables: Mapping[str, pl.DataFrame | None]) -> None:
    absent = tuple(
        f"{name}." for name, frame in tables.items() if frame is None or frame.is_empty()
    )
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


def _stock_bars(prices: pl.DataFrame, listings: pl.DataFrame) -> pl.DataFrame:
    """Prices sorted by (code, date) with ``return_1d`` and the listing's columns."""
    own_return = simple_return(pl.col("close"), 1).over("code")
    columns = ["code", "sector", "shares_outstanding"]
    if "market" in listings.columns:
        columns.append("market")
    return (
        prices.select(BAR_COLUMNS)
        .sort("code", "date")
        .with_columns(return_1d=own_return)
        .join(
            listings.select(columns),
            on="code",
            how="left",
            maintain_order="left",
        )
    )


def _evaluate(
    series: pl.DataFrame, features: Sequence[Feature], scope: Scope, over: str | None = None
) -> pl.DataFrame:
    """The features of one scope on their series, as finite Float32 or null.

    Division by zero is guarded where it can happen; the last step here also turns into null what
    overflows Float32, so that nothing but numbers and nulls reaches the table.
    """
    values = series.select(
        (feature.expression.over(over) if over else feature.expression)
        .cast(pl.Float32)
        .alias(feature.name)
        for feature in features
        if feature.scope == scope
    )
    return values.select(pl.when(pl.all().is_finite()).then(pl.all()))


def _spread(
    bars: pl.DataFrame, values: pl.DataFrame, series: pl.DataFrame, key: list[str]
) -> pl.DataFrame:
    """Values of a market or sector series, on every stock row with the same key."""
    if not values.columns:
        return values
    return (
        bars.select(key)
        .join(series.select(key).hstack(values), on=key, how="left", maintain_order="left")
        .drop(key)
    )
