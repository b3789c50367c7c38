"""The files source: what it maps, what it derives, and each thing that it refuses."""

import gzip
from datetime import date, datetime, time, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_model.errors import InputError
from atft_pipeline import schemas
from atft_pipeline.schemas import WHOLE_MARKET
from atft_pipeline.sources.files import FilesConfig, FilesSource
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.targets import forward_returns
from atft_pipeline.transforms.universe import UniverseConfig, trading_universe
from atft_pipeline.transforms.validity import quarantine_invalid

TODAY = date(2024, 6, 28)
REAL_FILE = Path(__file__).resolve().parents[5] / "shared/data/nasdaq_eod_2005_2017.parquet"

HEADER = "date,code,open,high,low,close,volume"
ROW = "2024-01-04,0007,10,11,9,10.5,1000"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def source(prices: Path, today: date = TODAY, **config: object) -> FilesSource:
    return FilesSource(FilesConfig(prices, **config), today=today)  # type: ignore[arg-type]


def bars(days: list[date], codes: list[str], **columns: object) -> pl.DataFrame:
    """One flat bar per stock and day."""
    keys = pl.DataFrame({"code": codes}).join(pl.DataFrame({"date": days}), how="cross")
    values = {"open": 10.0, "high": 11.0, "low": 9.0, "close": 10.5, "volume": 1000, **columns}
    return keys.with_columns(**{name: pl.lit(value) for name, value in values.items()})


def days(count: int, start: date = date(2020, 1, 1)) -> list[date]:
    return [start + timedelta(days=i) for i in range(count)]


# --- what is read ----------------------------------------------------------------------------


def test_csv_columns_are_mapped_and_rows_sorted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bars.csv",
        "Trade Date,Ticker,OPEN,High,low,Close,Vol,Adj Close,Adj Factor",
        "2024-01-05,NA,1,2,0.5,1.5,100,1.4,0.5",
        "",
        "2024-01-04, 0007 ,10,11,9,10.5,,10,",
    )
    frame = source(path).raw_prices()
    expected = pl.DataFrame(
        {
            "date": [date(2024, 1, 4), date(2024, 1, 5)],
            "code": ["0007", "NA"],  # zeros kept; NA is a ticker, not a missing value
            "open": [10.0, 1.0],
            "high": [11.0, 2.0],
            "low": [9.0, 0.5],
            "close": [10.5, 1.5],
            "volume": [None, 100.0],
            "turnover": pl.Series([None, None], dtype=pl.Float64),
            "adjustment_factor": [1.0, 0.5],  # blank: no split
            "limit_up": pl.Series([None, None], dtype=pl.Boolean),
            "limit_down": pl.Series([None, None], dtype=pl.Boolean),
        }
    )
    assert_frame_equal(frame, expected)
    assert "Adj Close" in source(path).missing()["unused_columns"]


def test_gzipped_csv_and_parquet_read_the_same(tmp_path: Path) -> None:
    text = f"{HEADER},turnover\n{ROW},10500\n"
    plain, zipped, parquet = (tmp_path / name for name in ("a.csv", "a.csv.gz", "a.parquet"))
    plain.write_text(text)
    zipped.write_bytes(gzip.compress(text.encode()))
    source(plain).raw_prices().with_columns(pl.col("close").cast(pl.Float32)).write_parquet(parquet)
    assert source(plain).raw_prices()["code"].to_list() == ["0007"]
    for path in (zipped, parquet):
        assert_frame_equal(source(path).raw_prices(), source(plain).raw_prices())


@pytest.mark.parametrize(
    "value",
    [
        date(2024, 1, 4),
        datetime(2024, 1, 4, 15, 30),
        20240104,
        "2024-01-04",
        "2024/01/04",
        "20240104",
        "2024-01-04T00:00:00Z",
        "2024-01-04 00:00:00+09:00",
    ],
)
def test_every_way_to_write_a_day_is_the_same_day(tmp_path: Path, value: object) -> None:
    path = tmp_path / "bars.parquet"
    bars(days(1), ["A"]).with_columns(date=pl.lit(value)).write_parquet(path)
    assert source(path).raw_prices()["date"].to_list() == [date(2024, 1, 4)]


def test_vendor_types_become_ours(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    frame = bars(days(2), ["7203"]).with_columns(
        pl.col("code").cast(pl.Int64),
        pl.col("close").cast(pl.Decimal(10, 2)),
        pl.lit("nan").alias("open"),
    )
    frame.write_parquet(path)
    read = source(path).raw_prices()
    schemas.RAW_PRICES.validate(read, lazy=True)
    assert read["code"].to_list() == ["7203", "7203"]
    assert read["open"].null_count() == 2


def test_names_that_this_module_uses_itself_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "row,text," + HEADER.replace("date", "day"), f"x,y,{ROW}")
    assert source(path).raw_prices()["date"].to_list() == [date(2024, 1, 4)]
    write(path, "row,text," + HEADER.replace("date", "day"), f"x,y,{ROW.replace('10.5', '?')}")
    refused(path, "column 'close' holds '.' in data row 1")


def test_start_and_end_are_included(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    bars(days(10), ["A", "B"]).write_parquet(path)
    chosen = source(path, start_date=date(2020, 1, 3), end_date=date(2020, 1, 5)).raw_prices()
    assert chosen.height == 6
    assert (chosen["date"].min(), chosen["date"].max()) == (date(2020, 1, 3), date(2020, 1, 5))


def test_duplicates_and_nonsense_bars_are_delivered_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, ROW, ROW, "2024-01-05,0007,0,-1,9,inf,-5")
    assert source(path).raw_prices().height == 3


# --- a folder of files -----------------------------------------------------------------------


def folder(path: Path, **files: str) -> Path:
    """A folder with a CSV file per name; ``__`` in a name stands for a dot."""
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


NO_CODE = "date,open,high,low,close,volume"
BAR = "2024-01-04,10,11,9,10.5,1000"


def test_a_folder_of_files_per_symbol_reads_as_one_file_would(tmp_path: Path) -> None:
    whole = bars(days(30), ["0007", "BRK.B", "X"]).with_columns(volume=pl.int_range(pl.len()))
    whole.write_parquet(tmp_path / "whole.parquet")
    many = tmp_path / "many"
    many.mkdir()
    for (code,), rows in whole.group_by("code"):
        rows = rows.drop("code").sample(fraction=1.0, shuffle=True, seed=1)
        if code == "X":
            rows.rename({"date": "Trade Date", "close": "PX_LAST"}).write_parquet(many / "X.pq")
        elif code == "0007":
            (many / "0007.csv.gz").write_bytes(gzip.compress(rows.write_csv().encode()))
        else:
            rows.write_csv(many / f"{code}.csv")
    (many / "README.txt").write_text("daily bars")
    (many / ".DS_Store").write_text("x")
    one, other = source(tmp_path / "whole.parquet"), source(many)
    assert_frame_equal(other.raw_prices(), one.raw_prices())
    assert_frame_equal(other.raw_listings(), one.raw_listings())
    assert other.missing()["unused_files"].endswith("that were not read (README.txt)")
    assert "unused_files" not in one.missing()


def test_a_symbol_column_comes_before_the_name_of_the_file(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "bars",
        january__csv=f"{HEADER},sector\n{ROW},Tech\n",
        february__csv=f"{HEADER}\n{ROW.replace('01-04', '02-05')}\n",
        AAPL__csv=f"{NO_CODE},extra\n{BAR},1\n",
        EMPTY__csv=f"{NO_CODE}\n",
    )
    read = source(path).raw_prices()
    assert read["code"].to_list() == ["0007", "0007", "AAPL"]
    assert source(path).missing()["unused_columns"].endswith("(bars: extra)")
    assert "sector" not in source(path).missing()


def test_a_fault_in_a_folder_names_the_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "bars", A__csv=f"{NO_CODE}\n{BAR}\n", B__csv=f"{NO_CODE}\n")
    bad = path / "B.csv"
    for text, match in (
        (f"{NO_CODE}\n{BAR.replace('10.5', 'ten')}\n", "column 'close' holds 'ten' in data row 1"),
        (f"{NO_CODE}\n{BAR.replace('2024-01-04', '2999-01-01')}\n", "no date in the future"),
        (
            "when,what\n1,2\n",
            "no column for date, open, high, low, close, volume; found when, what",
        ),
        ("", r"is empty \(0 bytes\)"),
    ):
        bad.write_text(text)
        with pytest.raises(InputError, match=match) as caught:
            source(path).raw_prices()
        assert str(caught.value).startswith(f"{bad}: ")
        assert "\n" not in str(caught.value)


def test_folders_that_are_none(tmp_path: Path) -> None:
    refused(folder(tmp_path / "a"), "is a folder without .parquet, .pq, .csv, .csv.gz files; found")
    refused(folder(tmp_path / "b", a__xlsx="x", b__doc="y"), "found a.xlsx, b.doc; expected a file")
    twice = folder(tmp_path / "c", A__csv=f"{NO_CODE}\n{BAR}\n")
    bars(days(1), ["A"]).drop("code").write_parquet(twice / "A.parquet")
    refused(twice, "A.csv and A.parquet both hold A; expected one file per symbol; remove one")
    refused(folder(tmp_path / "d", A__csv=f"{NO_CODE}\n"), "has columns but no rows")


# --- limit flags -----------------------------------------------------------------------------


def test_limit_flags_are_read_in_every_spelling(tmp_path: Path) -> None:
    rows = [f"{ROW.replace('-04', f'-{day:02}')},{up},{down}" for day, up, down in (
        (4, "1", "0"), (5, "TRUE", "false"), (6, "", "-"),
    )]  # fmt: skip
    path = write(tmp_path / "a.csv", f"{HEADER},UL,limit_down", *rows)
    read = source(path).raw_prices()
    schemas.RAW_PRICES.validate(read, lazy=True)
    assert read.select("limit_up", "limit_down").rows() == [
        (True, False),
        (True, False),
        (None, None),
    ]
    assert "limit_up" not in source(path).missing()
    parquet = tmp_path / "a.parquet"
    for up in (pl.lit(True), pl.lit(1)):
        bars(days(1), ["A"]).with_columns(limit_up=up).write_parquet(parquet)
        assert source(parquet).raw_prices()["limit_up"].to_list() == [True]


def test_a_limit_price_is_no_limit_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"{HEADER},limit_up", f"{ROW},120")
    refused(path, "column 'limit_up' holds '120' in data row 1 .*; expected true or false, 1 or 0")
    path = write(tmp_path / "a.csv", f"{HEADER},upper_limit", f"{ROW},120")
    assert source(path).raw_prices()["limit_up"].to_list() == [None]
    assert "limit_up" in source(path).missing()


# --- listings and indices --------------------------------------------------------------------


def test_listings_are_derived_from_bars(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    frame = bars(days(100), ["EARLY", "GONE", "HALTED", "LATE"], sector="Tech")
    day = pl.col("date")
    frame = frame.filter(
        (pl.col("code") != "GONE") | (day < date(2020, 2, 1)),
        (pl.col("code") != "HALTED") | (day < date(2020, 3, 31)),
        (pl.col("code") != "LATE") | (day > date(2020, 1, 15)),
    )
    frame.write_parquet(path)
    listings = source(path).raw_listings()
    schemas.RAW_LISTINGS.validate(listings, lazy=True)
    assert listings["code"].to_list() == ["EARLY", "GONE", "HALTED", "LATE"]
    assert listings["listed_on"].to_list() == [None, None, None, date(2020, 1, 16)]
    assert listings["delisted_on"].to_list() == [None, date(2020, 1, 31), None, None]
    assert listings["sector"].to_list() == ["Tech"] * 4


def test_listings_file_comes_before_what_bars_say(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    bars(days(100), ["A", "B"]).filter(
        (pl.col("code") != "B") | (pl.col("date") > date(2020, 1, 15))
    ).write_parquet(path)
    listed = write(
        tmp_path / "listed.csv",
        "Symbol,Company,Sector,Listing Date,Shares",
        "A,Alpha,Tech,1999-12-31,5",
        "Z,Zeta,,2001-01-01,6",
    )
    listings = source(path, listings=listed).raw_listings()
    schemas.RAW_LISTINGS.validate(listings, lazy=True)
    assert listings["code"].to_list() == ["A", "B", "Z"]
    assert listings["listed_on"].to_list() == [
        date(1999, 12, 31),
        date(2020, 1, 16),
        date(2001, 1, 1),
    ]
    assert listings["name"].to_list() == ["Alpha", None, "Zeta"]


def test_indices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, ROW)
    assert source(path).raw_indices().is_empty()
    schemas.RAW_INDICES.validate(source(path).raw_indices(), lazy=True)
    index = write(tmp_path / "TOPIX.csv", "Date,Close", "2024-01-05,101", "2024-01-04,100")
    read = source(path, indices=index).raw_indices()
    schemas.RAW_INDICES.validate(read, lazy=True)
    assert read.rows() == [(date(2024, 1, 4), "TOPIX", 100.0), (date(2024, 1, 5), "TOPIX", 101.0)]
    assert "raw_indices" not in source(path, indices=index).missing()


def test_missing_says_what_is_lacking_and_what_follows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"{HEADER},sector,adj_factor", f"{ROW},Tech,1")
    missing = source(path).missing()
    assert {"market", "shares_outstanding", "turnover", "raw_indices", "raw_statements"} <= set(
        missing
    )
    assert not {"sector", "adjustment_factor", "delisted_stocks", "unused_columns"} & set(missing)
    assert source(path).planted_return() is None


def test_a_file_of_survivors_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    every_week = days(1000)[::7]
    frame = bars(every_week, ["A", "B", "C", "D"])
    frame.write_parquet(path)
    assert "100% of 4 stocks still trade" in source(path).missing()["delisted_stocks"]
    frame.filter((pl.col("code") != "B") | (pl.col("date") < date(2021, 1, 1))).write_parquet(path)
    assert "delisted_stocks" not in source(path).missing()


# --- what is refused -------------------------------------------------------------------------


def refused(path: Path, match: str, **config: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        source(path, **config).raw_prices()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "when,symbol,open,high,low,price,volume", ROW)
    refused(
        path,
        "no column for date, close; found when, symbol, open, high, low, price, volume; "
        "needed date, code, open, high, low, close, volume; date may be called trade_date, .*; "
        "close may be called c, close_price, .*; rename the columns",
    )


@pytest.mark.parametrize("name", ["adj_close", "Adj Close", "adjusted_close", "close_adj"])
def test_adjusted_close_is_never_close(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.csv", HEADER.replace("close", name), ROW)
    refused(path, f"no column for close; .*; {name} is never taken")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"{HEADER},Close", f"{ROW},12")
    refused(path, "columns close, Close all mean close; expected one")


@pytest.mark.parametrize("column", ["open", "close", "volume"])
def test_prices_as_text(tmp_path: Path, column: str) -> None:
    good, bad = ROW.split(","), ROW.split(",")
    bad[HEADER.split(",").index(column)] = "ten"
    path = write(tmp_path / "a.csv", HEADER, ",".join(good), ",".join(bad), ",".join(bad))
    refused(
        path, rf"column '{column}' holds 'ten' in data row 2 \(2 such rows\); expected a number"
    )
    parquet = tmp_path / "a.parquet"
    pl.read_csv(path).write_parquet(parquet)
    refused(parquet, f"column '{column}' holds 'ten' in data row 2")


@pytest.mark.parametrize("value", ["31/12/2023", "2023-13-01", "20231301", "2023-12-31x", "soon"])
def test_dates_that_are_none(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "a.csv", HEADER, ROW, ROW.replace("2024-01-04", value))
    refused(path, f"column 'date' holds '{value}' in data row 2 .1 such row.; expected a day")


def test_dates_as_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bars(days(1), ["A"]).with_columns(date=pl.lit(1704326400)).write_parquet(path)
    refused(path, "column 'date' holds '1704326400' in data row 1")


@pytest.mark.parametrize("column", ["date", "code"])
def test_rows_without_a_key(tmp_path: Path, column: str) -> None:
    bad = ROW.split(",")
    bad[HEADER.split(",").index(column)] = ""
    path = write(tmp_path / "a.csv", HEADER, ROW, ",".join(bad))
    refused(path, f"column '{column}' holds None in data row 2")


def test_dates_in_the_future(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, ROW, ROW.replace("2024-01-04", "2024-06-29"))
    refused(path, "'2024-06-29' in data row 2 .*no date in the future .today is 2024-06-28.")
    assert source(path, today=date(2024, 6, 29)).raw_prices().height == 2
    far = write(tmp_path / "b.csv", HEADER, ROW.replace("2024-01-04", "2999-01-01"))
    with pytest.raises(InputError, match="no date in the future"):  # the present day by default
        FilesSource(FilesConfig(far)).raw_prices()


def test_columns_of_a_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bars(days(1), ["A"], close=True).write_parquet(path)
    refused(path, "column 'close' is to be close but holds Boolean; expected a number")
    bars(days(1), ["A"]).with_columns(code=pl.lit(7203.0)).write_parquet(path)
    refused(path, "column 'code' is to be code but holds Float64; expected text")
    bars(days(1), ["A"]).with_columns(date=pl.lit(0.5)).write_parquet(path)
    refused(path, "column 'date' is to be date but holds Float64; expected a day")


def test_files_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path / "no.csv", "no such file")
    refused(write(tmp_path / "a.xlsx", "x"), "ending '.xlsx' is not known")
    (tmp_path / "empty.csv").touch()
    refused(tmp_path / "empty.csv", r"is empty \(0 bytes\)")
    refused(write(tmp_path / "blank.csv", "", ""), "cannot be read")
    refused(write(tmp_path / "head.csv", HEADER), "has columns but no rows")


def test_files_that_are_damaged(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    bars(days(500), ["A", "B"], close=1.0).write_parquet(whole)
    data = whole.read_bytes()
    middle = len(data) // 2
    damaged = tmp_path / "a.parquet"
    for content in (b"hello", data[:middle], data[:4] + b"\x99" * middle + data[4 + middle :]):
        damaged.write_bytes(content)
        refused(damaged, "cannot be read .*; expected an intact Parquet or UTF-8 CSV file")
    zipped = tmp_path / "a.csv.gz"
    zipped.write_bytes(gzip.compress(f"{HEADER}\n{ROW}\n".encode())[:40])
    refused(zipped, "cannot be read")
    latin = tmp_path / "latin.csv"
    latin.write_bytes(f"{HEADER}\n{ROW.replace('0007', 'Nestlé')}\n".encode("latin1"))
    refused(latin, "cannot be read .*utf-8")
    refused(write(tmp_path / "ragged.csv", HEADER, f"{ROW},1,2"), "cannot be read")


def test_no_rows_within_the_dates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, ROW, ROW.replace("01-04", "01-09"))
    refused(
        path,
        "no rows from 2024-02-01 to the end; the file holds 2024-01-04 to 2024-01-09; change start",
        start_date=date(2024, 2, 1),
    )
    with pytest.raises(InputError, match="start_date 2024-02-01 is after end_date 2024-01-01"):
        FilesConfig(path, start_date=date(2024, 2, 1), end_date=date(2024, 1, 1))


def test_cumulative_factors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bars(days(100), ["A"]).with_columns(
        adj_factor=pl.when(pl.col("date") < date(2020, 3, 1)).then(1.0).otherwise(2.0)
    ).write_parquet(path)
    refused(path, "column 'adj_factor' differs from 1 on 40 of 100 rows, .* cumulative")


def test_listings_and_indices_that_cannot_be_used(tmp_path: Path) -> None:
    prices = write(tmp_path / "a.csv", HEADER, ROW)
    other = tmp_path / "b.csv"

    def listings(*lines: str) -> None:
        source(prices, listings=write(other, *lines)).raw_listings()

    def indices(*lines: str) -> None:
        source(prices, indices=write(other, *lines)).raw_indices()

    with pytest.raises(InputError, match=r"b\.csv: A stands on more than one row; .* per code"):
        listings("code,sector", "A,x", "A,y")
    with pytest.raises(InputError, match=r"b\.csv: column 'ipo_date' holds 'once' in data row 1"):
        listings("code,ipo_date", "A,once", "B,")
    with pytest.raises(InputError, match=r"b\.csv: has columns but no rows"):
        listings("code,sector")
    with pytest.raises(InputError, match=r"b\.csv: 2024-01-04, X stands on more than one row"):
        indices("date,index,close", "2024-01-04,X,1", "2024-01-04,X,2")
    with pytest.raises(
        InputError, match=r"b\.csv: close of index X on 2024-01-04 is 0.0; expected"
    ):
        indices("date,index,close", "2024-01-04,X,0")
    with pytest.raises(InputError, match=r"b\.csv: close of index X on 2024-01-04 is None"):
        indices("date,index,close", "2024-01-04,X,")
    with pytest.raises(
        InputError,
        match=r"b\.csv: none of its 2 codes \(a, b\) has bars; the prices hold 0007; expected",
    ):
        listings("code,sector", "a,x", "b,y")
    with pytest.raises(InputError, match=r"b\.csv: no column for close"):
        indices("date,index", "2024-01-04,X")


# --- statements and flows --------------------------------------------------------------------

STATEMENTS = (
    "Local Code,DisclosedDate,DisclosedTime,CurrentFiscalYearEndDate,TypeOfCurrentPeriod,NetSales,"
    "OperatingProfit,Profit,TotalAssets,Equity,ForecastOperatingProfit"
)
FLOWS = "PublishedDate,StartDate,EndDate,Section,ForeignersPurchases,ForeignersSales,TotalSales"
WEEK = "2024-01-11,2024-01-01,2024-01-05,Prime,10,12,100"


def test_statements_are_mapped_typed_and_in_order(tmp_path: Path) -> None:
    prices = write(tmp_path / "a.csv", HEADER, ROW)
    path = write(
        tmp_path / "statements.csv",
        STATEMENTS,
        "0007,2024-02-09,,2024-03-31,3Q,300,,20,,,50",
        "0007,2024-02-09,14:30,2024-03-31,,,,,,,40",
        "0007,2022-02-09,15:00:00,2022-03-31,3Q,200,30,15,900,400,40",
        "0007,2024-03-01,9:00:00,2024-03-31,3Q,300,,20,,,50",
    )
    early = {"start_date": date(2024, 1, 1), "end_date": date(2024, 2, 29)}
    read = source(prices, statements=path, **early).raw_statements()
    schemas.RAW_STATEMENTS.validate(read, lazy=True)
    assert read["disclosed_on"].to_list() == [date(2022, 2, 9), *[date(2024, 2, 9)] * 2]
    assert read["disclosed_at"].to_list() == [time(15), time(14, 30), None]
    assert read["period"].to_list() == ["3Q", None, "3Q"]
    assert read["forecast_operating_profit"].to_list() == [40.0, 40.0, 50.0]
    assert read["operating_profit"].to_list() == [30.0, None, None]
    assert read["forecast_sales"].null_count() == 3, "the file has no such column"
    assert "raw_statements" not in source(prices, statements=path).missing()
    assert "shares_outstanding" in source(prices, statements=path).missing()
    with_shares = write(tmp_path / "s.csv", "code,disclosed_on,fiscal_year_end,shares_out")
    assert "shares_outstanding" not in source(prices, statements=with_shares).missing()


def test_flows_are_mapped_typed_and_in_order(tmp_path: Path) -> None:
    prices = write(tmp_path / "a.csv", HEADER, ROW)
    later = "2024-01-18,2024-01-08,2024-01-12,Prime,,,90"
    path = write(tmp_path / "flows.csv", FLOWS, later, WEEK)
    read = source(prices, flows=path).raw_investor_flows()
    schemas.RAW_INVESTOR_FLOWS.validate(read, lazy=True)
    assert read["published_on"].to_list() == [date(2024, 1, 11), date(2024, 1, 18)]
    assert read["foreign_sell"].to_list() == [12.0, None]
    assert read["total_buy"].null_count() == 2
    early = source(prices, flows=path, end_date=date(2024, 1, 17)).raw_investor_flows()
    assert early.height == 1
    assert "raw_investor_flows" not in source(prices, flows=path).missing()
    whole = write(tmp_path / "whole.csv", FLOWS.replace(",Section", ""), WEEK.replace(",Prime", ""))
    assert source(prices, flows=whole).raw_investor_flows()["section"].to_list() == [WHOLE_MARKET]


def test_without_their_files_statements_and_flows_have_no_rows(tmp_path: Path) -> None:
    files = source(write(tmp_path / "a.csv", HEADER, ROW))
    schemas.RAW_STATEMENTS.validate(files.raw_statements(), lazy=True)
    schemas.RAW_INVESTOR_FLOWS.validate(files.raw_investor_flows(), lazy=True)
    assert files.raw_statements().is_empty()
    assert files.raw_investor_flows().is_empty()
    assert {"raw_statements", "raw_investor_flows"} <= set(files.missing())


def test_statements_and_flows_that_cannot_be_used(tmp_path: Path) -> None:
    prices = write(tmp_path / "a.csv", HEADER, ROW)
    other = tmp_path / "b.csv"

    def statements(row: str, header: str = STATEMENTS, **config: object) -> None:
        source(prices, statements=write(other, header, row), **config).raw_statements()

    def flows(row: str, header: str = FLOWS, **config: object) -> None:
        source(prices, flows=write(other, header, row), **config).raw_investor_flows()

    good = "0007,2024-02-09,14:30,2024-03-31,3Q,300,,20,,,50"
    with pytest.raises(InputError, match=r"b\.csv: no column for disclosed_on, fiscal_year_end;"):
        statements("0007,1", header="code,sales")
    with pytest.raises(InputError, match=r"'DisclosedTime' holds 'noon' .* a time of day such as"):
        statements(good.replace("14:30", "noon"))
    with pytest.raises(InputError, match=r"'DisclosedDate' holds None in data row 1"):
        statements(good.replace("2024-02-09", ""))
    with pytest.raises(InputError, match=r"'2024-12-09' in data row 1 .*no date in the future"):
        statements(good.replace("2024-02-09", "2024-12-09"))
    with pytest.raises(InputError, match=r"'TypeOfCurrentPeriod' holds 'Q3' .* expected 1Q, 2Q"):
        statements(good.replace("3Q", "Q3"))
    with pytest.raises(InputError, match=r"no rows with disclosed_on up to 2024-01-31; the file"):
        statements(good, end_date=date(2024, 1, 31))
    with pytest.raises(InputError, match=r"b\.csv: no column for last_date;"):
        flows("2024-01-11,2024-01-01,Prime", header="PublishedDate,StartDate,Section")
    with pytest.raises(InputError, match=r"published 2024-01-04; .* last_date <= published_on"):
        flows(WEEK.replace("2024-01-11", "2024-01-04"))
    with pytest.raises(InputError, match=r"b\.csv: has columns but no rows"):
        source(prices, flows=write(other, FLOWS)).raw_investor_flows()


# --- the real file ---------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_FILE.exists(), reason=f"the shared real file is not at {REAL_FILE}")
def test_real_file_goes_through_to_targets() -> None:
    """Three weeks around 2011-08-02, whose bars the vendor mixed up with those of the next day."""
    files = source(REAL_FILE, start_date=date(2011, 7, 18), end_date=date(2011, 8, 12))
    raw = files.raw_prices()
    valid, quarantine = quarantine_invalid(raw)
    prices = split_adjust(valid, quarantine)
    config = UniverseConfig(min_history_days=5, max_stocks=100)
    universe = trading_universe(prices, files.raw_listings(), config)
    targets = forward_returns(prices)
    for schema, frame in (
        (schemas.RAW_PRICES, raw),
        (schemas.QUARANTINE, quarantine),
        (schemas.PRICES, prices),
        (schemas.TRADING_UNIVERSE, universe),
        (schemas.TARGETS, targets),
    ):
        schema.validate(frame, lazy=True)

    reasons = dict(quarantine["reason"].value_counts().iter_rows())
    assert sum(reasons.values()) + valid.height == raw.height > 18_000
    assert reasons["zero_volume"] > 20
    assert reasons["open_outside_range"] > 600
    assert reasons["sparse_date"] > 300
    mixed_up = date(2011, 8, 2)
    assert mixed_up in raw["date"]
    assert mixed_up not in prices["date"]
    assert universe.group_by("date").len()["len"].unique().to_list() == [100]
    assert targets.height == prices.height
    assert targets["target_1d"].drop_nulls().abs().max() < 1  # type: ignore[operator]
