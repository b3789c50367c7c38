"""Tables that a user brings as Parquet or CSV: which columns are what, and what cannot be used.

What belongs here: column names as vendors spell them, the file formats, and the refusals that a
person can act on. Whether a single bar is credible is not decided here but in
``transforms.validity``: bars are returned as delivered, defects included.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

import polars as pl

from atft_model.errors import InputError
from atft_pipeline.schemas import LIMIT_FLAGS, WHOLE_MARKET


@dataclass(frozen=True)
class FilesConfig:
    """Where a user's files lie and which dates of them to use (both ends included).

    ``prices`` is one file, or a folder of files of one symbol each.
    """

    prices: Path
    listings: Path | None = None
    indices: Path | None = None
    statements: Path | None = None
    flows: Path | None = None
    start_date: date | None = None
    end_date: date | None = None

    def __post_init__(self) -> None:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise InputError(
                f"files source: start_date {self.start_date} is after end_date {self.end_date}; "
                "expected start_date <= end_date; swap them"
            )


@dataclass(frozen=True)
class Column:
    """One column that a table may bring.

    ``aliases`` are further names by which vendors call it, best first. Names are compared without
    case, spaces and punctuation: ``Adj Factor``, ``adj_factor`` and ``AdjFactor`` are one name.
    A ``past`` day is one on which something happened, so it cannot lie in the future.
    """

    name: str
    kind: Literal["date", "text", "number", "flag", "time"]
    aliases: tuple[str, ...] = ()
    required: bool = False
    past: bool = False


DATE = Column(
    "date",
    "date",
    ("trade_date", "trading_date", "business_date", "price_date", "datetime", "timestamp", "day"),
    required=True,
    past=True,
)
CODE = Column(
    "code",
    "text",
    ("symbol", "ticker", "sym", "local_code", "stock_code", "security_code", "ts_code", "tic"),
    required=True,
)
CLOSE = Column("close", "number", ("c", "close_price", "closing_price", "px_last"), required=True)
SECTOR = Column("sector", "text", ("sector_name", "gics_sector", "sector33", "sector33_code"))
MARKET = Column("market", "text", ("market_name", "market_code", "market_segment", "exchange"))

# A vendor's adjusted close is on no list: it is rewritten after every split and dividend, so that
# it differs from the price that was seen on the day. A "split factor" is on no list either: some
# vendors mean 0.5 by it and others 2.0 for the same 2:1 split.
PRICE_COLUMNS = (
    DATE,
    CODE,
    Column("open", "number", ("o", "open_price", "opening_price", "px_open"), required=True),
    Column("high", "number", ("h", "high_price", "px_high"), required=True),
    Column("low", "number", ("l", "low_price", "px_low"), required=True),
    CLOSE,
    Column("volume", "number", ("vol", "vo", "v", "trading_volume", "px_volume"), required=True),
    Column("turnover", "number", ("turnover_value", "va", "traded_value", "dollar_volume")),
    Column("adjustment_factor", "number", ("adj_factor",)),
    SECTOR,
    MARKET,
    # An "upper limit" is no alias: with most vendors that is the limit itself, a price.
    Column("limit_up", "flag", ("limit_up_flag", "is_limit_up", "hit_limit_up", "ul")),
    Column("limit_down", "flag", ("limit_down_flag", "is_limit_down", "hit_limit_down", "ll")),
)
LISTING_COLUMNS = (
    CODE,
    Column("name", "text", ("company_name", "company", "security_name", "stock_name")),
    SECTOR,
    MARKET,
    Column("listed_on", "date", ("listing_date", "list_date", "ipo_date", "first_trade_date")),
    Column("delisted_on", "date", ("delisting_date", "delist_date", "last_trade_date")),
    Column("shares_outstanding", "number", ("shares_out", "issued_shares", "number_of_shares")),
)
INDEX_COLUMNS = (
    DATE,
    Column("index", "text", ("index_name", "index_code", "name", *CODE.aliases, "code")),
    CLOSE,
)

STATEMENT_COLUMNS = (
    CODE,
    Column(
        "disclosed_on", "date", ("disclosed_date", "disc_date", "announcement_date", "filing_date"),
        required=True, past=True,
    ),
    Column("disclosed_at", "time", ("disclosed_time", "disc_time", "announcement_time")),
    Column(
        "fiscal_year_end", "date", ("current_fiscal_year_end_date", "cur_fy_en", "fy_end"),
        required=True,
    ),
    Column("period", "text", ("type_of_current_period", "cur_per_type", "fiscal_period")),
    Column("document", "text", ("type_of_document", "doc_type", "form")),
    Column("sales", "number", ("net_sales", "revenue", "revenues")),
    Column("operating_profit", "number", ("op", "operating_income")),
    Column("net_profit", "number", ("profit", "np", "net_income")),
    Column("total_assets", "number", ("ta", "assets")),
    Column("equity", "number", ("eq", "shareholders_equity", "net_assets")),
    Column("forecast_sales", "number", ("forecast_net_sales", "f_sales", "sales_guidance")),
    Column("forecast_operating_profit", "number", ("f_op", "operating_profit_guidance")),
    Column("forecast_net_profit", "number", ("forecast_profit", "f_np", "net_profit_guidance")),
    Column("shares_outstanding", "number", ("shares_out", "issued_shares", "number_of_shares")),
)  # fmt: skip
FLOW_COLUMNS = (
    Column("published_on", "date", ("published_date", "pub_date"), required=True, past=True),
    Column("first_date", "date", ("start_date", "st_date", "week_start"), required=True),
    Column("last_date", "date", ("end_date", "en_date", "week_end"), required=True),
    Column("section", "text", ("market", "market_section")),
    Column("foreign_buy", "number", ("foreigners_purchases", "frgn_buy", "foreigners_buy")),
    Column("foreign_sell", "number", ("foreigners_sales", "frgn_sell", "foreigners_sell")),
    Column("individual_buy", "number", ("individuals_purchases", "ind_buy", "individuals_buy")),
    Column("individual_sell", "number", ("individuals_sales", "ind_sell", "individuals_sell")),
    Column("total_buy", "number", ("total_purchases", "tot_buy")),
    Column("total_sell", "number", ("total_sales", "tot_sell")),
)

RAW_PRICES = (
    *("date", "code", "open", "high", "low", "close"),
    *("volume", "turnover", "adjustment_factor"),
    *LIMIT_FLAGS,
)
LISTING_FIELDS = tuple(column.name for column in LISTING_COLUMNS)
STATEMENT_FIELDS = tuple(column.name for column in STATEMENT_COLUMNS)
FLOW_FIELDS = tuple(column.name for column in FLOW_COLUMNS)
DTYPES = {
    "date": pl.Date,
    "text": pl.String,
    "number": pl.Float64,
    "flag": pl.Boolean,
    "time": pl.Time,
}
PERIODS = ("1Q", "2Q", "3Q", "FY")
NO_VALUE = ("", "na", "n/a", "#n/a", "nan", "nat", "null", "none", "-")  # as files spell it

# A stock counts as gone when its last bar is this much older than the file's last date: longer
# than a usual trading halt, shorter than anybody would keep a dead stock in a portfolio.
DELISTED_AFTER_DAYS = 30
# Of the stocks of a real market about 4 to 8 % a year are delisted; over two years a file in
# which fewer than this share ended was chosen from the survivors.
SURVIVORS_ENDED_SHARE = 0.03
SURVIVORS_MIN_DAYS = 730
# Splits touch fewer than one bar in a thousand. A factor column that differs from 1 on more than
# one bar in twenty holds a cumulative factor, which must not be accumulated again.
MAX_SPLIT_SHARE = 0.05
MIN_SPLIT_ROWS = 20


class FilesSource:
    """A ``MarketSource`` over a prices file and, optionally, files of the other tables.

    Files are Parquet, CSV or gzipped CSV, by extension. Prices may be a folder of such files, one
    per symbol, as vendors ship them: a file without a symbol column holds the symbol that it is
    named after (``BRK.B.csv.gz`` holds BRK.B). Without a listings file the listings are derived
    from the bars. Nothing is kept between calls: each reads its file again.

    Args:
        config: Paths and the dates to use.
        today: Later dates than this cannot be and are refused; the present day if not given.

    Raises:
        InputError: From any method, when a file cannot be used.
    """

    name = "files"

    def __init__(self, config: FilesConfig, today: date | None = None) -> None:
        self.config = config
        self.today = today or date.today()

    def raw_prices(self) -> pl.DataFrame:
        """Bars as delivered, sorted by (code, date); rows of one key keep the file's order.

        Prices and volumes that the file leaves blank are null. A file without adjustment factors,
        and a blank factor, means 1: no split. Turnover and the limit flags are null where the file
        has none.
        """
        table = _open_prices(self.config.prices)
        frame = _read_dates(table, self.config, self.today, RAW_PRICES)
        frame = frame.with_columns(pl.col("adjustment_factor").fill_nan(None).fill_null(1.0))
        _refuse_cumulative_factor(frame, table)
        return frame.sort("code", "date", maintain_order=True)

    def raw_listings(self) -> pl.DataFrame:
        """One row per code of either file, sorted by code.

        Where the listings file does not say, ``listed_on`` is the first bar, unless that is the
        first date of the data (then unknown: null), and ``delisted_on`` is the last bar, if it is
        more than ``DELISTED_AFTER_DAYS`` before the end of the data, else null.
        """
        derived = self._listings_from_bars()
        if self.config.listings is None:
            return derived
        table = _open_table(self.config.listings, LISTING_COLUMNS)
        given = _collect(table.parsed(self.today, LISTING_FIELDS), table.path)
        _refuse_empty(given, table)
        _refuse_repeats(given, ["code"], table)
        _refuse_strangers(given, derived, table)
        fields = LISTING_FIELDS[1:]
        merged = given.join(derived, on="code", how="full", coalesce=True, suffix="_derived")
        return merged.select(
            "code", *(pl.coalesce(field, f"{field}_derived") for field in fields)
        ).sort("code")

    def raw_indices(self) -> pl.DataFrame:
        """Index closes sorted by (index, date); without an indices file, no rows.

        A file without a column that names the index holds one index, named after the file.
        """
        if self.config.indices is None:
            return pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64})
        table = _open_table(self.config.indices, INDEX_COLUMNS)
        frame = _read_dates(table, self.config, self.today, ("date", "index", "close"))
        stem = table.path.name.split(".")[0]
        frame = frame.with_columns(pl.col("index").fill_null(stem)).sort("index", "date")
        _refuse_repeats(frame, ["date", "index"], table)
        unusable = frame.filter(
            ~(pl.col("close").is_finite() & (pl.col("close") > 0)).fill_null(False)
        )
        if not unusable.is_empty():
            day, index, close = unusable.row(0)
            raise InputError(
                f"{table.path}: close of index {index} on {day} is {close}; "
                "expected a positive number; correct or remove the row"
            )
        return frame

    def raw_statements(self) -> pl.DataFrame:
        """Disclosures up to the configured end, by (code, disclosed_on); no rows without a file.

        Earlier ones than ``start_date`` are kept: growth compares with the year before. A row
        without a time counts as disclosed after the close.
        """
        if self.config.statements is None:
            return _no_rows(STATEMENT_COLUMNS)
        table = _open_table(self.config.statements, STATEMENT_COLUMNS)
        frame = self._read_until_end(table, STATEMENT_FIELDS, "disclosed_on")
        _refuse_other_periods(frame, table)
        return frame.sort("code", "disclosed_on", "disclosed_at", nulls_last=True,
                          maintain_order=True)  # fmt: skip

    def raw_investor_flows(self) -> pl.DataFrame:
        """Weekly flows published up to the configured end; no rows without a file.

        Sorted by (published_on, first_date, section). Rows without a section are of the whole
        market.
        """
        if self.config.flows is None:
            return _no_rows(FLOW_COLUMNS)
        table = _open_table(self.config.flows, FLOW_COLUMNS)
        frame = self._read_until_end(table, FLOW_FIELDS, "published_on")
        _refuse_early_publication(frame, table)
        frame = frame.with_columns(pl.col("section").fill_null(WHOLE_MARKET))
        return frame.sort("published_on", "first_date", "section", maintain_order=True)

    def _read_until_end(self, table: "_Table", names: tuple[str, ...], public: str) -> pl.DataFrame:
        """The rows that were public by ``end_date``; refuses when there are none."""
        frame = _collect(_parsed(table, self.today, names), table.path)
        _refuse_empty(frame, table)
        end = self.config.end_date or date.max
        chosen = frame.filter(pl.col(public) <= end)
        if chosen.is_empty():
            raise InputError(
                f"{table.path}: no rows with {public} up to {end}; the file starts on "
                f"{frame[public].min()}; change end_date"
            )
        return chosen

    def planted_return(self) -> None:
        """None: nobody knows the expected returns of a real market."""
        return None

    def missing(self) -> dict[str, str]:
        """What the files lack and what that means for the run, by table or column."""
        prices = _open_prices(self.config.prices)
        has = set(prices.columns)
        unused = {prices.path.name: prices.unused}
        if self.config.listings is not None:
            listings = _open_table(self.config.listings, LISTING_COLUMNS)
            has |= set(listings.columns)
            unused[listings.path.name] = listings.unused
        for table, path, wanted in (
            ("raw_indices", self.config.indices, INDEX_COLUMNS),
            ("raw_statements", self.config.statements, STATEMENT_COLUMNS),
            ("raw_investor_flows", self.config.flows, FLOW_COLUMNS),
        ):
            if path is not None:
                opened = _open_table(path, wanted)
                has |= {table, *({"shares_outstanding"} & set(opened.columns))}
                unused[path.name] = opened.unused
        reasons = {name: reason for name, reason in LACKS.items() if name not in has}
        if survivors := self._survivors_only():
            reasons["delisted_stocks"] = survivors
        ignored = [f"{file}: {', '.join(names)}" for file, names in unused.items() if names]
        if ignored:
            reasons["unused_columns"] = f"columns that were not read ({'; '.join(ignored)})"
        if isinstance(prices, _Folder) and prices.other_files:
            reasons["unused_files"] = (
                f"{prices.path.name}: files and folders in it that were not read "
                f"({_some(prices.other_files)})"
            )
        return reasons

    def _bars_by_code(self) -> pl.DataFrame:
        """First and last bar of each code within the configured dates; latest sector, market."""
        table = _open_prices(self.config.prices)
        latest = [pl.col(name).sort_by("date").drop_nulls().last() for name in ("sector", "market")]
        bars = table.parsed(self.today, ("date", "code", "sector", "market"))
        by_code = (
            bars.filter(_within(self.config))
            .group_by("code")
            .agg(pl.col("date").min().alias("first"), pl.col("date").max().alias("last"), *latest)
        )
        return _collect(by_code, table.path)

    def _listings_from_bars(self) -> pl.DataFrame:
        begin, end = pl.col("first").min(), pl.col("last").max()
        gone = pl.col("last") < end - pl.duration(days=DELISTED_AFTER_DAYS)
        return (
            self._bars_by_code()
            .select(
                "code",
                pl.lit(None, pl.String).alias("name"),
                "sector",
                "market",
                pl.when(pl.col("first") > begin).then("first").alias("listed_on"),
                pl.when(gone).then("last").alias("delisted_on"),
                pl.lit(None, pl.Float64).alias("shares_outstanding"),
            )
            .sort("code")
        )

    def _survivors_only(self) -> str | None:
        bars = self._bars_by_code()
        begin, end = pl.col("first").min(), pl.col("last").max()
        early = end - pl.col("last") > pl.duration(days=DELISTED_AFTER_DAYS)
        facts = bars.select(days=(end - begin).dt.total_days(), ended=early.mean(), end=end)
        days, ended, last = facts.row(0)
        if bars.is_empty() or days < SURVIVORS_MIN_DAYS or ended >= SURVIVORS_ENDED_SHARE:
            return None
        return (
            f"{1 - ended:.0%} of {bars.height} stocks still trade at the end ({last}): the file "
            "seems to hold survivors only, so results on it look better than they were"
        )


# What ``missing`` says of a table or column that no file brings.
LACKS = {
    "sector": "no sectors: sector features are left out, no same-sector edges",
    "market": "no market segments: no same-market edges",
    "name": "no company names: stocks are shown by code",
    "listed_on": "no listing dates: taken from each stock's first bar",
    "delisted_on": "no delisting dates: taken from each stock's last bar where it ends early",
    "shares_outstanding": "no shares outstanding: turnover_rate is left out",
    "turnover": "no traded value: taken as raw close times volume",
    "adjustment_factor": (
        "no adjustment factors: prices are used as given; splits that the vendor already worked in "
        "make the early price level, and any price floor on it, depend on later splits"
    ),
    "limit_up": "no price limit flags: no stock is taken to be at its daily limit",
    "raw_indices": "no index: the market series is the equal-weighted return of the universe",
    "raw_statements": "no company statements: statement features are left out",
    "raw_investor_flows": "no investor flows: flow features are left out",
}


# --- one file as a table ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """A file whose columns were understood; its values were not looked at yet."""

    path: Path
    rows: pl.LazyFrame
    schema: pl.Schema
    wanted: tuple[Column, ...]
    columns: dict[str, str]  # our name -> the file's name
    unused: tuple[str, ...]
    symbol: str | None = None  # what a file without a symbol column is named after
    in_folder: bool = False  # one of many small files

    def parsed(self, today: date, names: Iterable[str]) -> pl.LazyFrame:
        """The named columns in our names and types, all values looked at."""
        return _parsed(self, today, names)

    def value(self, column: Column) -> pl.Expr:
        """The column in our name and type; all null where the file lacks it."""
        if column is CODE and self.symbol is not None:
            return pl.lit(self.symbol).alias(column.name)
        if column.name not in self.columns:
            return pl.lit(None, DTYPES[column.kind]).alias(column.name)
        found = self.columns[column.name]
        try:
            value = _parse(column, pl.col(found), self.schema[found])
        except InputError as error:
            raise InputError(f"{self.path}: column {found!r} {error}") from None
        if column.kind == "date" and not self.schema[found].is_temporal() and not self.in_folder:
            value = self._looked_up(found, value)
        return value.alias(column.name)

    def _looked_up(self, found: str, value: pl.Expr) -> pl.Expr:
        """The same value, worked out once per distinct text: a day stands on thousands of rows."""
        texts = _collect(self.rows.select(pl.col(found).unique()), self.path)
        days = texts.select(text=pl.col(found), day=value).drop_nulls()
        return pl.col(found).replace_strict(
            days["text"], days["day"], default=None, return_dtype=pl.Date
        )


@dataclass(frozen=True)
class _Folder:
    """A folder of files with daily bars, each understood by itself; to its user one table."""

    path: Path
    tables: tuple[_Table, ...]
    other_files: tuple[str, ...]  # what lies beside them and is not read

    @property
    def columns(self) -> dict[str, str]:
        """Our name -> the name in the first file that has it."""
        found: dict[str, str] = {}
        for table in self.tables:
            found = table.columns | found
        return found

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns of any file that nothing asks for."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.unused))

    def parsed(self, today: date, names: Iterable[str]) -> pl.LazyFrame:
        """The rows of all files.

        Each is read and looked at by itself: one query over some hundreds of CSV files exhausts
        the threads of Polars and never returns.
        """
        names = tuple(names)
        frames = []
        for table in self.tables:
            read = replace(table, rows=_collect(table.rows, table.path).lazy())
            frames.append(_collect(read.parsed(today, names), table.path))
        return pl.concat(frames).lazy()


def _open_prices(path: Path) -> _Table | _Folder:
    if not path.is_dir():
        return _open_table(path, PRICE_COLUMNS)
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    files = [name for name in names if _ending(name) and (path / name).is_file()]
    others = tuple(name for name in names if name not in files)
    if not files:
        raise InputError(
            f"{path}: is a folder without {', '.join(ENDINGS)} files; found "
            f"{_some(others) if others else 'nothing'}; expected a file of daily bars per symbol; "
            "name a file, or the folder that holds them"
        )
    tables = tuple(_open_table(path / name, PRICE_COLUMNS, _symbol(name)) for name in files)
    first_of: dict[str, _Table] = {}
    for table in tables:
        if table.symbol is None:
            continue
        first = first_of.setdefault(table.symbol, table)
        if first is not table:
            raise InputError(
                f"{path}: {first.path.name} and {table.path.name} both hold {table.symbol}; "
                "expected one file per symbol; remove one of them"
            )
    return _Folder(path, tables, others)


ENDINGS = (".parquet", ".pq", ".csv", ".csv.gz")


def _ending(name: str) -> str | None:
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)


def _symbol(name: str) -> str:
    """What a file is named after: its name without the ending."""
    return name[: -len(_ending(name) or "")]


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _open_table(path: Path, wanted: tuple[Column, ...], symbol: str | None = None) -> _Table:
    """A file; ``symbol``, given in a folder, is its code where it has no column for one."""
    rows = _scan(path)
    schema = _schema(rows, path)
    columns, unused = _map_columns(path, list(schema), wanted, CODE if symbol else None)
    named_after = None if CODE.name in columns else symbol
    return _Table(path, rows, schema, wanted, columns, unused, named_after, symbol is not None)


def _scan(path: Path) -> pl.LazyFrame:
    """The file's rows, text and all; a CSV's blank lines are no rows."""
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a Parquet or CSV file; correct the path")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; expected one Parquet or CSV file; name the file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes); expected daily data; get the file again")
    ending = _ending(path.name)
    if ending in (".parquet", ".pq"):
        return pl.scan_parquet(path)
    if ending is not None:
        # As text: codes keep their leading zeros, and a value that is no number can be named.
        try:
            text = pl.scan_csv(path, infer_schema=False)
        except (pl.exceptions.ComputeError, pl.exceptions.NoDataError, OSError) as error:
            raise _unreadable(path, error) from error
        return text.filter(~pl.all_horizontal(pl.all().is_null()))
    raise InputError(
        f"{path}: ending {path.suffix!r} is not known; expected .parquet, .csv or .csv.gz; "
        "convert or rename the file"
    )


def _schema(rows: pl.LazyFrame, path: Path) -> pl.Schema:
    try:
        return rows.collect_schema()
    except (pl.exceptions.ComputeError, pl.exceptions.NoDataError, OSError) as error:
        raise _unreadable(path, error) from error


def _collect(rows: pl.LazyFrame, path: Path) -> pl.DataFrame:
    try:
        return rows.collect()
    except (pl.exceptions.ComputeError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{path}: cannot be read ({cause}); expected an intact Parquet or UTF-8 CSV file; "
        "get or write the file again"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _map_columns(
    path: Path, found: list[str], wanted: tuple[Column, ...], not_needed: Column | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which of the file's columns is which of ours, and which of them nothing asks for."""
    columns: dict[str, str] = {}
    for column in wanted:
        for alias in (column.name, *column.aliases):
            same = [name for name in found if _plain(name) == _plain(alias)]
            if len(same) > 1:
                raise InputError(
                    f"{path}: columns {', '.join(same)} all mean {column.name}; "
                    "expected one; remove or rename the others"
                )
            if same:
                columns[column.name] = same[0]
                break
    lacking = [
        column
        for column in wanted
        if column.required and column is not not_needed and column.name not in columns
    ]
    if lacking:
        raise _unmapped(path, found, wanted, lacking)
    return columns, tuple(name for name in found if name not in columns.values())


def _unmapped(
    path: Path, found: list[str], wanted: tuple[Column, ...], lacking: list[Column]
) -> InputError:
    needed = ", ".join(column.name for column in wanted if column.required)
    names = "; ".join(f"{c.name} may be called {', '.join(c.aliases)}" for c in lacking)
    adjusted = [name for name in found if re.search(r"^adj(usted)?(?!.*factor)|adj$", _plain(name))]
    never = f"; {', '.join(adjusted)} is never taken (it is rewritten after later splits)"
    return InputError(
        f"{path}: no column for {', '.join(column.name for column in lacking)}; "
        f"found {', '.join(found)}; needed {needed}; {names}{never if adjusted else ''}; "
        "rename the columns"
    )


# --- values ----------------------------------------------------------------------------------


def _parse(column: Column, raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The column in its own type; null where blank and where it does not parse."""
    text = isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)
    if column.kind == "text" and (text or dtype.is_integer()):
        return raw.cast(pl.String).str.strip_chars().replace("", None)
    if column.kind == "number" and (dtype.is_numeric() or dtype.is_decimal()):
        return raw.cast(pl.Float64)
    if column.kind == "number" and text:
        number = raw.cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
        return number.fill_nan(None)
    if column.kind == "flag" and isinstance(dtype, pl.Boolean):
        return raw
    if column.kind == "flag" and (text or dtype.is_integer()):
        word = raw.cast(pl.String).str.strip_chars().str.to_lowercase()
        return word.replace_strict(FLAGS, default=None, return_dtype=pl.Boolean)
    if column.kind == "time" and isinstance(dtype, pl.Time):
        return raw
    if column.kind == "time" and text:
        return _parse_time(raw.cast(pl.String).str.strip_chars())
    if column.kind == "date" and isinstance(dtype, pl.Date):
        return raw
    if column.kind == "date" and isinstance(dtype, pl.Datetime):
        return raw.dt.date()
    if column.kind == "date" and (text or dtype.is_integer()):
        return _parse_day(raw.cast(pl.String).str.strip_chars())
    raise InputError(
        f"is to be {column.name} but holds {dtype}; expected {EXPECTED[column.kind]}; "
        "convert the column"
    )


def _parse_day(text: pl.Expr) -> pl.Expr:
    """ISO days and times (2015-12-31, 2015/12/31T00:00:00Z) and 20151231; nothing else.

    31/12/2015 is refused: nobody can tell 3/4/2015 from 4/3/2015.
    """
    day = text.str.extract(r"^(\d{4}-\d\d?-\d\d?|\d{4}/\d\d?/\d\d?|\d{8})(?:[T ]\d\d:.*)?$")
    return pl.coalesce(
        *(day.str.to_date(form, strict=False) for form in ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"))
    )


def _parse_time(text: pl.Expr) -> pl.Expr:
    """15:00 and 15:00:00, exchange-local; nothing else."""
    return pl.coalesce(text.str.to_time(form, strict=False) for form in ("%H:%M:%S", "%H:%M"))


def _may_fail(column: Column, dtype: pl.DataType) -> bool:
    """Whether a cell of this type can hold something that does not parse."""
    return not (
        column.kind == "text"
        or (column.kind == "flag" and isinstance(dtype, pl.Boolean))
        or (column.kind == "number" and dtype.is_numeric())
        or (column.kind in ("date", "time") and dtype.is_temporal())
    )


def _given(raw: pl.Expr) -> pl.Expr:
    """Whether a file's cell says anything at all."""
    return ~raw.cast(pl.String).str.strip_chars().str.to_lowercase().is_in(NO_VALUE)


FUTURE = "future "  # marks the count of a column's days that are still to come

EXPECTED = {
    "date": "a day such as 2015-12-31 or 20151231",
    "number": "a number such as 1234.5",
    "text": "text or a whole number",
    "flag": "true or false, 1 or 0",
    "time": "a time of day such as 15:00",
}
FLAGS = {"1": True, "true": True, "0": False, "false": False}


def _parsed(table: _Table, today: date, names: Iterable[str]) -> pl.LazyFrame:
    """The named columns in our names and types, after a pass that makes sure that all parse."""
    kept = {column.name: column for column in table.wanted}
    columns = [kept[name] for name in names]
    values = {column: table.value(column) for column in columns}
    bad = _bad_rows(table, values, today)
    counts = table.rows.select(rule.sum().alias(name) for name, rule in bad.items())
    for name, count in _collect(counts, table.path).row(0, named=True).items():
        if count:
            raise _first_unparsable(table, name, bad[name], count, today)
    return table.rows.select(values.values())


def _bad_rows(table: _Table, values: dict[Column, pl.Expr], today: date) -> dict[str, pl.Expr]:
    """Which rows hold something that does not parse, by column; of dates, also "future"."""
    bad: dict[str, pl.Expr] = {}
    for column, value in values.items():
        if column.name not in table.columns:
            continue
        found = table.columns[column.name]
        if column.required and column.kind != "number":
            bad[column.name] = value.is_null()  # a row without its key is no row
        elif _may_fail(column, table.schema[found]):
            bad[column.name] = value.is_null() & _given(pl.col(found))
        if column.past:
            bad[f"{FUTURE}{column.name}"] = value > today
    return bad


def _first_unparsable(
    table: _Table, name: str, rule: pl.Expr, count: int, today: date
) -> InputError:
    column = next(c for c in table.wanted if c.name == name.removeprefix(FUTURE))
    found = table.columns[column.name]
    first = table.rows.with_row_index("data row", offset=1).filter(rule).head(1)
    first = first.select("data row", pl.col(found).cast(pl.String))
    row, value = _collect(first, table.path).row(0)
    expected = EXPECTED[column.kind]
    if name.startswith(FUTURE):
        expected = f"no date in the future (today is {today})"
    return InputError(
        f"{table.path}: column {found!r} holds {value!r} in data row {row} "
        f"({count} such row{'s' if count > 1 else ''}); expected {expected}; "
        "correct or remove the rows"
    )


# --- rows ------------------------------------------------------------------------------------


def _within(config: FilesConfig) -> pl.Expr:
    return pl.col("date").is_between(
        config.start_date or date.min, config.end_date or date.max, closed="both"
    )


def _read_dates(
    table: _Table | _Folder, config: FilesConfig, today: date, names: tuple[str, ...]
) -> pl.DataFrame:
    """The table's rows of the configured dates; refuses when there are none."""
    rows = table.parsed(today, names)
    frame = _collect(rows.filter(_within(config)), table.path)
    if frame.is_empty():
        days = _collect(
            rows.select(first=pl.col("date").min(), last=pl.col("date").max()), table.path
        )
        first, last = days.row(0)
        if first is None:
            _refuse_empty(frame, table)
        raise InputError(
            f"{table.path}: no rows from {config.start_date or 'the start'} to "
            f"{config.end_date or 'the end'}; the file holds {first} to {last}; "
            "change start_date or end_date"
        )
    return frame


def _refuse_empty(frame: pl.DataFrame, table: _Table | _Folder) -> None:
    if frame.is_empty():
        raise InputError(
            f"{table.path}: has columns but no rows; expected one row or more; get the file again"
        )


def _refuse_repeats(frame: pl.DataFrame, key: list[str], table: _Table) -> None:
    repeated = frame.select(key).filter(frame.select(key).is_duplicated())
    if not repeated.is_empty():
        values = ", ".join(str(value) for value in repeated.row(0))
        raise InputError(
            f"{table.path}: {values} stands on more than one row; expected one row per "
            f"{' and '.join(key)}; remove the others"
        )


def _refuse_strangers(given: pl.DataFrame, traded: pl.DataFrame, table: _Table) -> None:
    """Listings that share no code with the bars would be dropped without a word."""
    if given.join(traded, on="code", how="semi").is_empty():
        raise InputError(
            f"{table.path}: none of its {given.height} codes ({_some(tuple(given['code']))}) has "
            f"bars; the prices hold {_some(tuple(traded['code']))}; expected the same codes in "
            "both; write them alike"
        )


def _no_rows(columns: tuple[Column, ...]) -> pl.DataFrame:
    return pl.DataFrame(schema={column.name: DTYPES[column.kind] for column in columns})


def _refuse_other_periods(frame: pl.DataFrame, table: _Table) -> None:
    other = frame.filter(~pl.col("period").is_in(PERIODS))
    if not other.is_empty():
        raise InputError(
            f"{table.path}: column {table.columns['period']!r} holds {other['period'][0]!r} "
            f"({other.height} such rows); expected {', '.join(PERIODS)}, or nothing where a row "
            "has forecasts only; rename the periods"
        )


def _refuse_early_publication(frame: pl.DataFrame, table: _Table) -> None:
    """A week that was published before it was over was given the wrong date: a look-ahead."""
    early = frame.filter(
        (pl.col("published_on") < pl.col("last_date"))
        | (pl.col("last_date") < pl.col("first_date"))
    )
    if not early.is_empty():
        published, first, last = early.row(0)[:3]
        raise InputError(
            f"{table.path}: {early.height} rows such as {first} to {last}, published {published}; "
            "expected first_date <= last_date <= published_on; correct the days"
        )


def _refuse_cumulative_factor(frame: pl.DataFrame, table: _Table | _Folder) -> None:
    splits = frame.filter(pl.col("adjustment_factor") != 1.0).height
    if splits >= MIN_SPLIT_ROWS and splits > MAX_SPLIT_SHARE * frame.height:
        raise InputError(
            f"{table.path}: column {table.columns['adjustment_factor']!r} differs from 1 on "
            f"{splits} of {frame.height} rows, so it seems to be cumulative; expected 1 except on "
            "the first day after a split (0.5 for 2:1); divide each row by the one before"
        )
