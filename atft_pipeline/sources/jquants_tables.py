"""J-Quants's columns, and how they become the raw tables.

The vendor's columns are kept in the cache under the vendor's names; everything that is a choice
(units, which rows count) is made here, on reading, so that it can be changed without asking again.
The vendor's adjusted prices (``AdjO`` to ``AdjVo``) are not even kept: each split rewrites them.
"""

import datetime as dt
from typing import TYPE_CHECKING, cast

import polars as pl

from atft_model.errors import InputError
from atft_pipeline.schemas import (
    RAW_INDICES,
    RAW_INVESTOR_FLOWS,
    RAW_LISTINGS,
    RAW_PRICES,
    RAW_STATEMENTS,
)

if TYPE_CHECKING:  # the client brings pandas; nothing here needs it loaded
    import pandas as pd

Columns = dict[str, type[pl.DataType]]


def _columns(dates: str, texts: str, numbers: str) -> Columns:
    kinds = ((dates, pl.Date), (texts, pl.String), (numbers, pl.Float64))
    return {name: dtype for names, dtype in kinds for name in names.split()}


CALENDAR = _columns("Date", "HolDiv", "")
BARS = _columns("Date", "Code UL LL", "O H L C Vo Va AdjFactor")
"""UL and LL are "1" on a day on which the price touched the upper or lower limit."""
LISTINGS = _columns("Date", "Code CoName CoNameEn S33 S33Nm Mkt MktNm", "")
INDEX = _columns("Date", "", "O H L C")
STATEMENTS = _columns(
    "DiscDate CurPerEn CurFYEn NxtFYEn",
    "DiscTime Code DiscNo DocType CurPerType",
    "Sales OP NP TA Eq FSales FOP FNP NxFSales NxFOP NxFNp ShOutFY TrShFY",
)
FLOWS = _columns(
    "PubDate StDate EnDate", "Section", "TotSell TotBuy IndSell IndBuy FrgnSell FrgnBuy"
)

NO_VALUE = ("", "-", "－")
OPEN_DAYS = ("1", "2")  # 2: a half day; 0 is closed, 3 is closed but for derivatives
ALL_SECTIONS = "TokyoNagoya"  # the sum over the other sections and Nagoya
SECTIONS = {
    "TSEPrime": "Prime", "TSEStandard": "Standard", "TSEGrowth": "Growth", "TSE1st": "1st Section",
    "TSE2nd": "2nd Section", "TSEMothers": "Mothers", "TSEJASDAQ": "JASDAQ",
}  # fmt: skip
"""Sections of the flows by the names that the listings give markets; others keep their own."""
THOUSAND_YEN = 1000.0
PERIODS = ("1Q", "2Q", "3Q", "FY")

_NO_INDEX = pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64})


def vendor_table(answer: "pd.DataFrame", columns: Columns, what: str) -> pl.DataFrame:
    """The client's pandas answer with these columns in these types; blanks are null.

    Args:
        answer: Without columns when the vendor has no rows.
        columns: Names and types; further columns are left out.
        what: The request, for errors.

    Raises:
        InputError: a column is missing or holds what is not of its type.
    """
    found = [str(name) for name in answer.columns]
    if answer.empty:
        return pl.DataFrame(schema=columns)
    absent = [name for name in columns if name not in found]
    if absent:
        raise InputError(
            f"J-Quants {what}: the answer lacks {', '.join(absent)}; found {', '.join(found)}; "
            "the API has changed: update jquants-api-client and atft_pipeline/sources"
        )
    texts = {name: _texts(cast("pd.Series", answer[name])) for name in columns}
    table = pl.DataFrame(texts, schema=dict.fromkeys(columns, pl.String))
    typed = table.select(_parsed(name, dtype) for name, dtype in columns.items())
    _refuse_unparsed(table, typed, what)
    return typed


def _texts(column: "pd.Series") -> list[str | None]:
    """Every value as text: numbers, texts and blanks may be mixed in one column."""
    texts = (
        None if unknown else str(value).strip()
        for value, unknown in zip(column, column.isna(), strict=True)
    )
    return [None if text in NO_VALUE else text for text in texts]


def _parsed(name: str, dtype: type[pl.DataType]) -> pl.Expr:
    if dtype is pl.Date:  # pandas writes the time as well
        return pl.col(name).str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
    return pl.col(name).cast(dtype, strict=False)


def _refuse_unparsed(table: pl.DataFrame, typed: pl.DataFrame, what: str) -> None:
    blank, lost = table.null_count().row(0, named=True), typed.null_count().row(0, named=True)
    for name in (name for name in typed.columns if lost[name] > blank[name]):
        value = table.filter(typed[name].is_null())[name].drop_nulls()[0]
        raise InputError(
            f"J-Quants {what}: column {name} holds {value!r}; expected {typed.schema[name]}; "
            "report it to the vendor, or leave the day out by start_date or end_date"
        )


def open_days(calendar: pl.DataFrame) -> list[dt.date]:
    """The dates on which the exchange trades, ascending."""
    traded = calendar.filter(pl.col("HolDiv").is_in(OPEN_DAYS))
    return traded["Date"].unique().sort().to_list()


def raw_prices(bars: pl.DataFrame) -> pl.DataFrame:
    """Bars of the stocks that traded, sorted by (code, date).

    The vendor lists a stock without a trade as a row of nulls, some 200 a day; other sources have
    no row for it, and neither has this table, except where a split falls on such a day: its factor
    must not be lost.
    """
    traded = pl.any_horizontal(pl.col("O", "H", "L", "C").is_not_null()) | (pl.col("Vo") > 0)
    return (
        bars.filter(traded.fill_null(False) | (pl.col("AdjFactor") != 1))
        .select(
            pl.col("Date").alias("date"),
            pl.col("Code").alias("code"),
            pl.col("O").alias("open"),
            pl.col("H").alias("high"),
            pl.col("L").alias("low"),
            pl.col("C").alias("close"),
            pl.col("Vo").alias("volume"),
            pl.col("Va").alias("turnover"),
            pl.col("AdjFactor").alias("adjustment_factor"),
            (pl.col("UL") == "1").alias("limit_up"),
            (pl.col("LL") == "1").alias("limit_down"),
        )
        .sort("code", "date", maintain_order=True)
        .select(RAW_PRICES.columns.keys())
    )


def raw_listings(
    bars: pl.DataFrame, listings: pl.DataFrame, sectors: dict[str, str], markets: dict[str, str]
) -> pl.DataFrame:
    """One row per code that has bars or is in a list of stocks, sorted by code.

    ``listed_on`` is a code's first date, null where that is the first date of all (it was listed
    some time before); ``delisted_on`` is its last one, null where it is still there on the last
    date. Name, sector and market are the latest known. The list of stocks does not tell the shares
    outstanding: each statement does, as of its day.

    Args:
        bars: Date and code of every bar, days without a trade included.
        listings: The list of stocks on some dates.
        sectors: English names by the vendor's code of one of 33 sectors.
        markets: English names by the vendor's code of the market segment.
    """
    seen = pl.concat([bars.select("Code", "Date"), listings.select("Code", "Date")])
    begin, end = seen["Date"].min(), seen["Date"].max()
    span = seen.group_by("Code").agg(
        pl.col("Date").min().alias("first"), pl.col("Date").max().alias("last")
    )
    latest = listings.sort("Code", "Date").unique("Code", keep="last")
    named = latest.select(
        "Code",
        pl.coalesce("CoNameEn", "CoName").alias("name"),
        pl.coalesce(
            pl.col("S33").replace_strict(sectors, default=None, return_dtype=pl.String), "S33Nm"
        ).alias("sector"),
        pl.coalesce(
            pl.col("Mkt").replace_strict(markets, default=None, return_dtype=pl.String), "MktNm"
        ).alias("market"),
    )
    return (
        span.join(named, on="Code", how="left")
        .select(
            pl.col("Code").alias("code"),
            "name",
            "sector",
            "market",
            pl.when(pl.col("first") > begin).then("first").alias("listed_on"),
            pl.when(pl.col("last") < end).then("last").alias("delisted_on"),
            pl.lit(None, pl.Float64).alias("shares_outstanding"),
        )
        .sort("code")
        .select(RAW_LISTINGS.columns.keys())
    )


def raw_indices(closes: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Closes by index name, sorted by (index, date); days without a close are left out."""
    tables = [
        table.select(
            pl.col("Date").alias("date"), pl.lit(name).alias("index"), pl.col("C").alias("close")
        )
        for name, table in closes.items()
    ]
    rows = pl.concat(tables) if tables else _NO_INDEX
    rows = rows.drop_nulls("close").unique(["date", "index"], keep="last", maintain_order=True)
    return rows.sort("index", "date").select(RAW_INDICES.columns.keys())


def raw_statements(summaries: pl.DataFrame) -> pl.DataFrame:
    """Disclosures sorted by (code, disclosed_on, disclosed_at).

    Figures are the consolidated ones, or the company's only ones. A full-year report also brings
    the first forecast of the next year; as forecasts belong to the year that ``fiscal_year_end``
    names, that is a row of its own. Rows that hold forecasts only have no period, and neither have
    the reports of a fourth or fifth quarter of a fiscal year that was made longer.
    """
    actuals = {
        "sales": "Sales", "operating_profit": "OP", "net_profit": "NP", "total_assets": "TA",
        "equity": "Eq",
    }  # fmt: skip
    forecasts = {"sales": "FSales", "operating_profit": "FOP", "net_profit": "FNP"}
    of_next_year = {"sales": "NxFSales", "operating_profit": "NxFOP", "net_profit": "NxFNp"}
    known = pl.any_horizontal(pl.col(list(actuals.values())).is_not_null())
    shares = pl.col("ShOutFY") - pl.col("TrShFY").fill_null(0.0)
    common = (
        pl.col("Code").alias("code"),
        pl.col("DiscDate").alias("disclosed_on"),
        pl.col("DiscTime").str.slice(0, 5).str.to_time("%H:%M").alias("disclosed_at"),
        pl.col("DocType").alias("document"),
        "DiscNo",
    )
    year = summaries.select(
        *common,
        pl.col("CurFYEn").alias("fiscal_year_end"),
        pl.when(known & pl.col("CurPerType").is_in(PERIODS)).then("CurPerType").alias("period"),
        *(pl.col(column).alias(name) for name, column in actuals.items()),
        *(pl.col(column).alias(f"forecast_{name}") for name, column in forecasts.items()),
        shares.alias("shares_outstanding"),
    )
    planned = pl.any_horizontal(pl.col(list(of_next_year.values())).is_not_null())
    next_year = summaries.filter(planned & pl.col("NxtFYEn").is_not_null()).select(
        *common,
        pl.col("NxtFYEn").alias("fiscal_year_end"),
        *(pl.col(column).alias(f"forecast_{name}") for name, column in of_next_year.items()),
    )
    order = ("code", "disclosed_on", "disclosed_at", "DiscNo", "fiscal_year_end")
    rows = pl.concat([year, next_year], how="diagonal").unique(maintain_order=True)
    return rows.sort(*order, maintain_order=True).select(RAW_STATEMENTS.columns.keys())


def raw_investor_flows(published: pl.DataFrame) -> pl.DataFrame:
    """Values in yen by week and section, sorted by (section, first_date, published_on)."""
    values = {
        "foreign_buy": "FrgnBuy", "foreign_sell": "FrgnSell", "individual_buy": "IndBuy",
        "individual_sell": "IndSell", "total_buy": "TotBuy", "total_sell": "TotSell",
    }  # fmt: skip
    return (
        published.filter(pl.col("Section") != ALL_SECTIONS)
        .unique(maintain_order=True)
        .select(
            pl.col("PubDate").alias("published_on"),
            pl.col("StDate").alias("first_date"),
            pl.col("EnDate").alias("last_date"),
            pl.col("Section").replace(SECTIONS).alias("section"),
            *((pl.col(column) * THOUSAND_YEN).alias(name) for name, column in values.items()),
        )
        .sort("section", "first_date", "published_on", maintain_order=True)
        .select(RAW_INVESTOR_FLOWS.columns.keys())
    )
