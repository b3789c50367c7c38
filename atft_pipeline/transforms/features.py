"""What a feature is, and how a set of them is computed. Which features there are stands in
``feature_registry``; their formulas stand in ``returns``, ``indicators``, ``liquidity``, ``market``
and ``sector``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from atft_model.errors import InputError
from atft_pipeline.transforms.market import market_series
from atft_pipeline.transforms.returns import simple_return
from atft_pipeline.transforms.sector import sector_series

Group = Literal["price", "liquidity", "market", "relative", "sector", "mask"]
Scope = Literal["stock", "market", "sector"]
Normalizer = Literal["cross_section", "time_series", "none"]

BAR_COLUMNS = ("date", "code", "open", "high", "low", "close", "volume", "turnover", "raw_close")


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    Attributes:
        name: Column name; a contract (DESIGN.md section 5).
        formula: The definition in words or maths, as printed in the docs. ``[t]`` is today.
        group: Where it stands in the docs.
        scope: What it is one value of: a stock, the whole market, or a sector, each by date.
        needs: Source columns without which it cannot be computed, as ``table.column``.
        lookback: Bars of its own series that a value reads, today included. Trailing-year
            statistics start earlier, and recursive averages read all bars before too; their
            formula says so.
        normalizer: ``cross_section`` (among the date's stocks), ``time_series`` (by statistics of
            the training dates), or ``none`` (flags and masks: 0 or 1).
        expression: Applied to the series in date order. By scope it may read: *stock*, run over
            each code: the columns of ``prices``, ``return_1d``, ``shares_outstanding``,
            ``market_return_1d``, ``market_return_5d``, ``market_gap_5_20``, ``sector_return_1d``,
            ``sector_members``; *market*: ``level``, ``return_1d``; *sector*, run over each sector:
            ``level``, ``return_1d``, ``members``.

    Raises:
        ValueError: The feature contradicts itself. A market-wide value is the same for every stock
            of a date, so a score within the date would be zero throughout.
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
        if self.scope == "market" and self.normalizer == "cross_section":
            raise ValueError(
                f"feature '{self.name}': a market-wide value under a per-date z-score is always "
                "zero; use normalizer 'time_series' (or 'none' for a flag)"
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
) -> pl.DataFrame:
    """The feature table in raw units, from data up to each row's own close only.

    A row's value does not change, to the bit, when later rows are rewritten or removed.

    Args:
        prices: The ``prices`` table; any row order, keys unique.
        listings: ``code``, ``sector``, ``shares_outstanding`` of ``raw_listings``; may lack codes.
        indices: The ``raw_indices`` table; no rows means that the market is derived from prices.
        features: What to compute, in column order.

    Returns:
        ``date, code`` and one Float32 column per feature, one row per row of ``prices``, sorted by
        (code, date). Null where not computable (history too short, division by zero, source value
        missing); never NaN or infinite.

    Raises:
        InputError: Duplicate keys in ``prices`` or ``listings``.
    """
    _refuse_duplicates("prices", prices, ["date", "code"])
    _refuse_duplicates("listings", listings, ["code"])
    bars = _stock_bars(prices, listings)
    market = market_series(bars, indices)
    sectors = sector_series(bars)
    bars = bars.join(
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
    by_scope = {
        "stock": _evaluate(bars, features, "stock", over="code"),
        "market": _spread(bars, _evaluate(market, features, "market"), market, ["date"]),
        "sector": _spread(
            bars, _evaluate(sectors, features, "sector", over="sector"), sectors, ["sector", "date"]
        ),
    }
    columns = [by_scope[feature.scope][feature.name] for feature in features]
    return bars.select("date", "code").hstack(columns)


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
    """Prices sorted by (code, date) with ``return_1d``, ``sector`` and ``shares_outstanding``."""
    own_return = simple_return(pl.col("close"), 1).over("code")
    return (
        prices.select(BAR_COLUMNS)
        .sort("code", "date")
        .with_columns(return_1d=own_return)
        .join(
            listings.select("code", "sector", "shares_outstanding"),
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
