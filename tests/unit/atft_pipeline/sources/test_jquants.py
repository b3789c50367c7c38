"""The J-Quants source against a local server that speaks the documented API.

The vendor's own client runs; only its base address is another, and the clock does not really wait.
"""

import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import polars as pl
import pytest
from jquants_server import (
    EMPTY_DAY,
    FIRST_OF_NEW,
    KEY,
    LAST_OF_DELISTED,
    SPLIT_DAY,
    Fault,
    Vendor,
    answers,
    breaks_off,
    fails_with,
    hangs_up,
    is_slow,
    well,
)
from polars.testing import assert_frame_equal

from atft_model.errors import InputError
from atft_pipeline import schemas
from atft_pipeline.sources.jquants import JQuantsConfig, JQuantsSource
from atft_pipeline.sources.jquants_plan import PLANS
from atft_pipeline.sources.lock import exclusive
from atft_pipeline.sources.pace import Pace

BAR_COLUMNS = ["Date", "Code", "UL", "LL", "O", "H", "L", "C", "Vo", "Va", "AdjFactor"]
EVENING = datetime(2024, 2, 20, 9, tzinfo=UTC)  # 18:00 in Tokyo, on an open day
TABLES = {
    "raw_prices": schemas.RAW_PRICES,
    "raw_listings": schemas.RAW_LISTINGS,
    "raw_indices": schemas.RAW_INDICES,
    "raw_statements": schemas.RAW_STATEMENTS,
    "raw_investor_flows": schemas.RAW_INVESTOR_FLOWS,
}


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, now: datetime = EVENING) -> None:
        self.time = now
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def server() -> Iterator[Vendor]:
    with Vendor() as vendor:
        yield vendor


@pytest.fixture
def vendor(server: Vendor, monkeypatch: pytest.MonkeyPatch) -> Vendor:
    """The server as good as new, reached directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.reset()
    return server


def source(
    vendor: Vendor, cache: Path, now: datetime | FakeClock = EVENING, **settings: object
) -> JQuantsSource:
    given = {"api_key": KEY, "plan": "light", "base_url": vendor.url, **settings}
    clock = now if isinstance(now, FakeClock) else FakeClock(now)
    return JQuantsSource(JQuantsConfig(cache=cache, **given), clock)  # type: ignore[arg-type]


def days_asked(vendor: Vendor, path: str = "/equities/bars/daily") -> list[str]:
    """The dates asked for since the last look, in order."""
    asked = [line.removeprefix(f"{path} date=") for line in vendor.asked if f"{path} d" in line]
    vendor.asked.clear()
    return asked


# --- what the tables hold --------------------------------------------------------------------


def test_prices_are_the_raw_bars_of_stocks_that_traded(vendor: Vendor, tmp_path: Path) -> None:
    frame = source(vendor, tmp_path).raw_prices()
    names = ("O", "H", "L", "C", "Vo", "Va", "AdjFactor")
    rows = [
        (day, bar["Code"], *(bar[name] for name in names), bar["UL"] == "1", bar["LL"] == "1")
        for day in vendor.open_days(vendor.published_until)
        for bar in vendor.bars(day)
        if bar["C"] is not None or bar["AdjFactor"] != 1
    ]
    expected = pl.DataFrame(rows, schema=frame.schema, orient="row").sort("code", "date")
    assert_frame_equal(frame, expected)
    assert frame.height == 119 + 1  # every traded bar, and the split of a stock that did not trade


def test_a_split_on_a_day_without_a_trade_is_kept(vendor: Vendor, tmp_path: Path) -> None:
    frame = source(vendor, tmp_path).raw_prices()
    silent = frame.filter(code="99840")
    row = silent.row(by_predicate=pl.col("date") == SPLIT_DAY, named=True)
    assert (row["close"], row["adjustment_factor"]) == (None, 0.5)
    assert date(2024, 1, 10) not in silent["date"]


def test_the_vendors_adjusted_history_is_nowhere(vendor: Vendor, tmp_path: Path) -> None:
    source(vendor, tmp_path).raw_prices()
    for path in tmp_path.rglob("bars/**/*.parquet"):
        kept = pl.read_parquet(path)
        assert kept.columns == BAR_COLUMNS
        assert 7e9 not in kept.select(pl.col(pl.Float64)).unpivot()["value"]


def test_limit_flags_are_kept_and_delivered(vendor: Vendor, tmp_path: Path) -> None:
    source(vendor, tmp_path).raw_prices()
    kept = pl.read_parquet(tmp_path / "bars/2024/2024-02-20.parquet")
    assert dict(zip(kept["Code"], kept["UL"], strict=True)) == {
        "13010": "1", "22220": "0", "72030": "0", "99840": "0",
    }  # fmt: skip


def test_listings_know_the_first_and_last_date_of_each_stock(
    vendor: Vendor, tmp_path: Path
) -> None:
    frame = source(vendor, tmp_path).raw_listings()
    spans = {row["code"]: (row["listed_on"], row["delisted_on"]) for row in frame.to_dicts()}
    assert spans == {
        "11110": (None, LAST_OF_DELISTED),
        "13010": (None, None),
        "22220": (FIRST_OF_NEW, None),
        "72030": (None, None),
        "99840": (None, None),
    }
    assert frame.row(0, named=True) | {"listed_on": None, "delisted_on": None} == {
        "code": "11110", "name": "Co 11110", "sector": "Transportation Equipment",
        "market": "Prime", "listed_on": None, "delisted_on": None, "shares_outstanding": None,
    }  # fmt: skip


def test_daily_listings_ask_for_the_list_of_every_date(vendor: Vendor, tmp_path: Path) -> None:
    monthly = source(vendor, tmp_path / "a").raw_listings()
    assert days_asked(vendor, "/equities/master") == ["2024-01-04", "2024-02-01", "2024-02-20"]
    daily = source(vendor, tmp_path / "b", daily_listings=True).raw_listings()
    assert len(days_asked(vendor, "/equities/master")) == 32
    assert_frame_equal(daily, monthly)


def test_a_stock_in_the_newest_list_is_not_delisted(vendor: Vendor, tmp_path: Path) -> None:
    vendor.late = {(date(2024, 2, 20), "13010")}  # the other stocks' bars are out
    frame = source(vendor, tmp_path).raw_listings()
    assert frame.filter(pl.col("delisted_on").is_not_null())["code"].to_list() == ["11110"]


def test_indices_are_the_closes_of_topix(vendor: Vendor, tmp_path: Path) -> None:
    frame = source(vendor, tmp_path).raw_indices()
    days = vendor.open_days(vendor.published_until)
    expected = pl.DataFrame(
        {"date": days, "index": ["TOPIX"] * 32, "close": [2000.0 + day.day for day in days]}
    )
    assert_frame_equal(frame, expected)


def test_statements_take_each_figure_to_its_fiscal_year(vendor: Vendor, tmp_path: Path) -> None:
    frame = source(vendor, tmp_path).raw_statements()
    rows = [
        {name: value for name, value in row.items() if value is not None}
        for row in frame.to_dicts()
    ]
    assert rows == [
        {
            "code": "13010", "disclosed_on": date(2024, 2, 6),
            "fiscal_year_end": date(2024, 3, 31), "document": "EarnForecastRevision",
            "forecast_operating_profit": 5000.0,
        },
        {
            "code": "72030", "disclosed_on": date(2024, 2, 6), "disclosed_at": time(15),
            "fiscal_year_end": date(2024, 3, 31), "period": "3Q",
            "document": "3QFinancialStatements_Consolidated_IFRS", "sales": 34022715e6,
            "operating_profit": 4240217e6, "net_profit": 3947277e6, "total_assets": 87e12,
            "equity": 33e12, "forecast_sales": 43.5e12, "forecast_operating_profit": 4.9e12,
            "forecast_net_profit": 4.5e12, "shares_outstanding": 900.0,
        },
        {
            "code": "99840", "disclosed_on": date(2024, 2, 14), "disclosed_at": time(11, 30),
            "fiscal_year_end": date(2023, 12, 31), "period": "FY",
            "document": "FYFinancialStatements_Consolidated_JP", "sales": 100.0,
            "operating_profit": -10.0, "net_profit": -20.0, "total_assets": 500.0, "equity": -5.0,
            "shares_outstanding": 1000.0,
        },
        {
            "code": "99840", "disclosed_on": date(2024, 2, 14), "disclosed_at": time(11, 30),
            "fiscal_year_end": date(2024, 12, 31),
            "document": "FYFinancialStatements_Consolidated_JP", "forecast_sales": 110.0,
            "forecast_operating_profit": 20.0, "forecast_net_profit": 10.0,
        },
    ]  # fmt: skip


def test_flows_are_in_yen_and_without_the_total_of_all_sections(
    vendor: Vendor, tmp_path: Path
) -> None:
    frame = source(vendor, tmp_path).raw_investor_flows()
    assert frame["published_on"].to_list() == [
        date(2024, 1, 4) + timedelta(days=7 * week) for week in range(7)
    ]
    assert frame["section"].unique().to_list() == ["Prime"]
    assert frame.row(0, named=True) == {
        "published_on": date(2024, 1, 4), "first_date": date(2023, 12, 25),
        "last_date": date(2023, 12, 29), "section": "Prime", "foreign_buy": 30_000.0,
        "foreign_sell": 20_000.0, "individual_buy": 5_000.0, "individual_sell": 6_000.0,
        "total_buy": 100_000.0, "total_sell": 100_000.0,
    }  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_tables_keep_their_contract_and_a_second_run_asks_for_nothing_but_an_empty_today(
    vendor: Vendor, tmp_path: Path, table: str
) -> None:
    first = getattr(source(vendor, tmp_path), table)()
    TABLES[table].validate(first, lazy=True)
    vendor.asked.clear()
    second = getattr(source(vendor, tmp_path), table)()
    assert_frame_equal(first, second)
    assert [line for line in vendor.asked if "date=2024-02-20" not in line] == []


def test_nothing_is_planted_in_a_real_market(vendor: Vendor, tmp_path: Path) -> None:
    assert source(vendor, tmp_path).planted_return() is None


# --- what is asked for, and when again -------------------------------------------------------


def test_the_first_sync_asks_for_the_calendar_and_each_open_day_once(
    vendor: Vendor, tmp_path: Path
) -> None:
    source(vendor, tmp_path).raw_prices()
    days = vendor.open_days(date(2024, 2, 20))
    expected = ["/markets/calendar", *(f"/equities/bars/daily date={day}" for day in days)]
    assert vendor.asked == expected
    assert vendor.requests == len(expected)


@pytest.mark.parametrize("table", TABLES)
def test_every_page_of_an_answer_comes(vendor: Vendor, tmp_path: Path, table: str) -> None:
    some = {"start_date": date(2024, 2, 5), "end_date": date(2024, 2, 14)}
    whole = getattr(source(vendor, tmp_path / "whole", **some), table)()
    requests = vendor.requests
    vendor.page_size = 1
    paged = getattr(source(vendor, tmp_path / "paged", **some), table)()
    assert_frame_equal(paged, whole)
    assert vendor.requests > 2 * requests


def test_the_next_day_asks_for_what_is_new_or_may_be_corrected(
    vendor: Vendor, tmp_path: Path
) -> None:
    source(vendor, tmp_path).raw_prices()
    vendor.asked.clear()
    vendor.published_until = date(2024, 2, 21)
    source(vendor, tmp_path, EVENING + timedelta(days=1)).raw_prices()
    assert vendor.asked[0] == "/markets/calendar"
    assert days_asked(vendor) == [  # answers that came less than 7 days after the date, and the new
        f"2024-02-{day}" for day in (14, 15, 16, 19, 20, 21)
    ]


def test_after_an_absence_what_had_not_settled_is_asked_for_once_more(
    vendor: Vendor, tmp_path: Path
) -> None:
    source(vendor, tmp_path).raw_prices()
    vendor.asked.clear()
    vendor.published_until = date(2024, 3, 29)
    source(vendor, tmp_path, EVENING + timedelta(days=38)).raw_prices()
    asked = days_asked(vendor)
    assert (asked[0], asked[-1], len(asked)) == ("2024-02-14", "2024-03-29", 32)


def test_a_correction_of_a_recent_day_replaces_it(vendor: Vendor, tmp_path: Path) -> None:
    first = source(vendor, tmp_path).raw_prices()
    vendor.corrections[date(2024, 2, 19), "13010"] = {"C": 1234.5}
    second = source(vendor, tmp_path, EVENING + timedelta(hours=2)).raw_prices()
    changed = second.join(first, on=second.columns, how="anti", nulls_equal=True)
    assert changed.select("date", "code", "close").rows() == [(date(2024, 2, 19), "13010", 1234.5)]
    assert second.height == first.height


def test_a_day_that_has_settled_is_not_asked_for_again(vendor: Vendor, tmp_path: Path) -> None:
    first = source(vendor, tmp_path).raw_prices()
    vendor.corrections[date(2024, 1, 19), "13010"] = {"C": 1234.5}
    second = source(vendor, tmp_path, EVENING + timedelta(hours=2)).raw_prices()
    assert_frame_equal(first, second)


def test_a_day_that_is_not_out_yet_is_asked_for_at_once_again(
    vendor: Vendor, tmp_path: Path
) -> None:
    vendor.published_until = date(2024, 2, 19)
    assert source(vendor, tmp_path).raw_prices()["date"].max() == date(2024, 2, 19)
    days_asked(vendor)
    vendor.published_until = date(2024, 2, 20)
    frame = source(vendor, tmp_path, EVENING + timedelta(minutes=5)).raw_prices()
    assert frame["date"].max() == date(2024, 2, 20)
    assert days_asked(vendor) == ["2024-02-20"]


def test_an_open_day_without_bars_is_remembered_as_closed(
    vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    while_fresh = datetime(2024, 1, 18, 9, tzinfo=UTC)
    source(vendor, tmp_path, while_fresh).raw_prices()
    assert str(EMPTY_DAY) in days_asked(vendor)
    assert "none on" not in caplog.text
    source(vendor, tmp_path).raw_prices()
    assert str(EMPTY_DAY) in days_asked(vendor)
    assert "calendar, which are not asked for again: 1 (2024-01-17)" in caplog.text
    source(vendor, tmp_path, EVENING + timedelta(days=1)).raw_prices()
    assert str(EMPTY_DAY) not in days_asked(vendor)


def test_empty_days_are_not_believed_before_a_later_day_has_bars(
    vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.published_until = date(2024, 1, 31)  # the vendor has been down for weeks
    assert source(vendor, tmp_path).raw_prices()["date"].max() == date(2024, 1, 31)
    assert "2024-02" not in caplog.text
    vendor.published_until = date(2024, 2, 20)
    frame = source(vendor, tmp_path, EVENING + timedelta(hours=2)).raw_prices()
    assert frame["date"].n_unique() == 31


def test_an_empty_answer_takes_no_rows_back(
    vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = source(vendor, tmp_path).raw_prices()
    vendor.published_until = date(2024, 2, 16)  # the vendor has lost two days
    second = source(vendor, tmp_path, EVENING + timedelta(hours=2)).raw_prices()
    assert_frame_equal(first, second)
    assert "bars 2024-02-20: empty now; the rows are kept" in caplog.text


def test_a_longer_history_asks_only_for_the_earlier_days(vendor: Vendor, tmp_path: Path) -> None:
    source(vendor, tmp_path, start_date=date(2024, 2, 1)).raw_prices()
    vendor.asked.clear()
    frame = source(vendor, tmp_path, start_date=date(2024, 1, 25)).raw_prices()
    assert frame["date"].min() == date(2024, 1, 25)
    assert vendor.asked[0] == "/markets/calendar from=2024-01-25 to=2024-02-20"
    assert days_asked(vendor) == [f"2024-01-{day}" for day in (25, 26, 29, 30, 31)]


def test_dates_bound_every_table(vendor: Vendor, tmp_path: Path) -> None:
    bounds = {"start_date": date(2024, 1, 15), "end_date": date(2024, 2, 9)}
    market = source(vendor, tmp_path, **bounds)
    for table, column in (
        ("raw_prices", "date"), ("raw_indices", "date"), ("raw_statements", "disclosed_on"),
        ("raw_investor_flows", "published_on"),
    ):  # fmt: skip
        dates = getattr(market, table)()[column]
        assert len(dates)
        assert bounds["start_date"] <= dates.min() <= dates.max() <= bounds["end_date"]
    requests = vendor.requests
    source(vendor, tmp_path, EVENING + timedelta(days=40), **bounds).raw_prices()
    assert vendor.requests == requests  # a past that has settled, the calendar included


def test_a_damaged_file_is_asked_for_again(
    vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = source(vendor, tmp_path).raw_prices()
    days_asked(vendor)
    torn, other = (tmp_path / f"bars/2024/2024-01-{day}.parquet" for day in ("11", "12"))
    torn.write_bytes(torn.read_bytes()[:100])
    pl.DataFrame({"Date": [1]}).write_parquet(other)
    assert_frame_equal(source(vendor, tmp_path).raw_prices(), first)
    assert days_asked(vendor) == ["2024-01-11", "2024-01-12"]
    assert "cannot be read" in caplog.text
    assert "other columns" in caplog.text


def test_a_damaged_file_that_cannot_be_asked_for_again_is_left_out(
    vendor: Vendor, tmp_path: Path
) -> None:
    first = source(vendor, tmp_path).raw_prices()
    (tmp_path / "bars/2024/2024-01-11.parquet").write_bytes(b"PAR1")
    vendor.window = (date(2024, 2, 1), date(2024, 2, 20))
    frame = source(vendor, tmp_path).raw_prices()
    assert_frame_equal(frame, first.filter(pl.col("date") != date(2024, 1, 11)))


# --- what a plan covers ----------------------------------------------------------------------


def test_only_dates_that_the_plan_covers_are_asked_for(vendor: Vendor, tmp_path: Path) -> None:
    vendor.window = (date(2024, 1, 22), date(2024, 2, 13))
    frame = source(vendor, tmp_path).raw_prices()
    assert (frame["date"].min(), frame["date"].max()) == vendor.window
    outside = [day for day in days_asked(vendor) if not "2024-01-22" <= day <= "2024-02-13"]
    assert len(outside) == 1  # the first refusal tells which dates are covered


def test_days_that_the_plan_no_longer_covers_stay(vendor: Vendor, tmp_path: Path) -> None:
    vendor.window = (date(2024, 1, 22), date(2024, 2, 13))
    source(vendor, tmp_path).raw_prices()
    vendor.window = (date(2024, 1, 29), date(2024, 2, 20))
    frame = source(vendor, tmp_path, EVENING + timedelta(days=7)).raw_prices()
    assert (frame["date"].min(), frame["date"].max()) == (date(2024, 1, 22), date(2024, 2, 20))


def test_spans_are_cut_to_the_plan_and_asked_for_again_when_it_grows(
    vendor: Vendor, tmp_path: Path
) -> None:
    vendor.window = (date(2024, 1, 22), date(2024, 2, 13))
    long_after = EVENING + timedelta(days=400)
    frame = source(vendor, tmp_path, long_after).raw_indices()
    assert (frame["date"].min(), frame["date"].max()) == vendor.window
    vendor.window = None
    frame = source(vendor, tmp_path, long_after + timedelta(hours=2)).raw_indices()
    assert (frame["date"].min(), frame["date"].max()) == (date(2024, 1, 4), date(2024, 2, 20))


def test_a_window_without_an_end_is_understood(vendor: Vendor, tmp_path: Path) -> None:
    message = "Your subscription covers the following dates: 2024-02-01 ~ . If you want more data"
    vendor.faults = [well, fails_with(400, message)]
    assert source(vendor, tmp_path).raw_prices()["date"].min() == date(2024, 2, 1)


def test_dates_that_no_plan_covers_are_an_error(vendor: Vendor, tmp_path: Path) -> None:
    vendor.window = (date(2022, 1, 1), date(2022, 12, 31))
    market = source(vendor, tmp_path, start_date=date(2024, 1, 1))
    with pytest.raises(InputError, match=r"no trading day from 2024-01-01 to 2024-02-20; the plan "
                       r"covers 2022-01-01 to 2022-12-31; change start_date"):  # fmt: skip
        market.raw_prices()


def test_a_window_that_holds_the_refused_date_is_an_error(vendor: Vendor, tmp_path: Path) -> None:
    vendor.faults = [well] + [
        fails_with(400, "Your subscription covers the following dates: 2000-01-01 ~ 2030-01-01.")
    ] * 2
    with pytest.raises(InputError, match=r"refused, although the plan covers 2000-01-01 to"):
        source(vendor, tmp_path).raw_prices()


def test_the_free_plan_does_not_ask_for_what_it_lacks(vendor: Vendor, tmp_path: Path) -> None:
    market = source(vendor, tmp_path, plan="free")
    assert market.raw_indices().is_empty()
    assert market.raw_investor_flows().is_empty()
    assert vendor.requests == 0
    for table, schema in TABLES.items():
        if table in market.missing():
            schema.validate(getattr(market, table)(), lazy=True)
    assert set(market.missing()) == {"raw_indices", "raw_investor_flows", "shares_outstanding"}


def test_a_table_that_the_plan_turns_out_to_lack_is_named(
    vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.not_in_plan = {"/equities/investor-types"}
    market = source(vendor, tmp_path)
    assert "raw_investor_flows" not in market.missing()
    assert market.raw_investor_flows().is_empty()
    assert market.missing()["raw_investor_flows"] == (
        "no investor flows: flow features are left out (J-Quants: This API is not available on "
        "your subscription.)"
    )
    assert "not available on your subscription" in caplog.text


def test_bars_that_the_plan_lacks_are_an_error(vendor: Vendor, tmp_path: Path) -> None:
    vendor.not_in_plan = {"/equities/bars/daily"}
    with pytest.raises(InputError, match=r"J-Quants bars: refused \(This API is not available on"):
        source(vendor, tmp_path).raw_prices()


# --- faults of server and network ------------------------------------------------------------


PASSING: dict[str, tuple[Fault, str]] = {
    "500": (fails_with(500, "Internal Server Error"), "500 Internal Server Error"),
    "503": (fails_with(503), "503 failed"),
    "429": (fails_with(429, "Too Many Requests"), "429 Too Many Requests"),
    "torn": (breaks_off(announced=True), "the answer broke off"),
    "torn, no length": (breaks_off(announced=False), r"no JSON or broke off \(\d+ bytes\)"),
    "slow": (is_slow(0.5), "no answer within 0.2 s"),
    "no answer": (hangs_up, "no connection"),
    "210": (answers({"message": "nothing"}, 210), "status 210, which holds no data"),
    "no list": (answers({"message": "maintenance"}), "the answer holds no list 'data'"),
    "no table": (answers([1, 2]), "the answer holds no list 'data'"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_waited_out(
    vendor: Vendor, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault, reason = PASSING[name]
    vendor.page_size = 3
    vendor.faults = [well] * 32 + [fault, well, fault, fault]  # the calendar has 31 pages
    patience = 0.2 if name == "slow" else 30.0
    market = source(vendor, tmp_path / "a", timeout_seconds=patience, end_date=date(2024, 1, 9))
    frame = market.raw_prices()
    assert not vendor.faults
    clean = source(vendor, tmp_path / "b", end_date=date(2024, 1, 9)).raw_prices()
    assert_frame_equal(frame, clean)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 3
    assert all(re.search(reason, record.message) for record in warnings)


def test_a_lasting_fault_ends_the_sync_and_the_next_one_goes_on(
    vendor: Vendor, tmp_path: Path
) -> None:
    clock = FakeClock()
    vendor.faults = [well] * 7 + [fails_with(503, "maintenance")] * 3
    with pytest.raises(InputError, match=r"^J-Quants /equities/bars/daily\?date=2024-01-15: no "
                       r"usable answer in 3 attempts \(last: 503 maintenance\); what was fetched "
                       r"before is kept; run again later to go on$"):  # fmt: skip
        source(vendor, tmp_path, clock, attempts=3).raw_prices()
    assert days_asked(vendor)[-3:] == ["2024-01-15"] * 3
    frame = source(vendor, tmp_path, clock).raw_prices()
    assert days_asked(vendor)[0] == "2024-01-15"
    assert_frame_equal(frame, source(vendor, tmp_path / "new").raw_prices())


def test_after_429_the_wait_is_long_and_grows(vendor: Vendor, tmp_path: Path) -> None:
    clock = FakeClock()
    vendor.faults = [fails_with(429, "Too Many Requests")] * 4
    source(vendor, tmp_path, clock, end_date=date(2024, 1, 5)).raw_prices()
    assert [wait for wait in clock.slept if wait > 1.5] == [30.0, 60.0, 120.0, 240.0]


def test_retry_after_is_obeyed_within_reason(vendor: Vendor, tmp_path: Path) -> None:
    clock = FakeClock()
    vendor.faults = [
        fails_with(503, headers={"Retry-After": "17"}),
        fails_with(429, headers={"Retry-After": "90000"}),
        fails_with(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    source(vendor, tmp_path, clock, end_date=date(2024, 1, 5)).raw_prices()
    assert [wait for wait in clock.slept if wait > 1.5] == [17.0, 600.0, 8.0]


def test_a_page_that_names_itself_as_the_next_is_no_endless_loop(
    vendor: Vendor, tmp_path: Path
) -> None:
    page = {"data": [{"Date": "2024-01-04", "HolDiv": "1"}], "pagination_key": "again"}
    vendor.faults = [answers(page)] * 5  # the first may name it, the second must not
    with pytest.raises(InputError, match="a page names itself as the next one"):
        source(vendor, tmp_path, attempts=3).raw_prices()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_an_error_at_once(vendor: Vendor, tmp_path: Path, status: int) -> None:
    vendor.faults = [fails_with(status, "The incoming api key is invalid or expired.")]
    with pytest.raises(InputError, match=rf"refused with {status} \(The incoming api key is "
                       r"invalid or expired\.\); expected a valid API key of an active plan; check "
                       r"JQUANTS_API_KEY"):  # fmt: skip
        source(vendor, tmp_path).raw_prices()
    assert vendor.requests == 1


def test_a_wrong_key_is_refused_by_the_server(vendor: Vendor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check JQUANTS_API_KEY"):
        source(vendor, tmp_path, api_key="another").raw_prices()


def test_another_refusal_is_an_error_at_once(vendor: Vendor, tmp_path: Path) -> None:
    vendor.faults = [fails_with(400, "This API requires at least 1 parameter")]
    with pytest.raises(
        InputError, match=r"/markets/calendar: refused with 400 \(This API requires"
    ):
        source(vendor, tmp_path).raw_prices()
    assert vendor.requests == 1


def test_a_redirect_is_not_followed_as_it_would_take_the_key_along(
    vendor: Vendor, tmp_path: Path
) -> None:
    with Vendor() as elsewhere:
        vendor.faults = [fails_with(302, "moved", {"Location": f"{elsewhere.url}/equities/master"})]
        with pytest.raises(InputError, match=r"refused with 302 \(moved\)"):
            source(vendor, tmp_path).raw_prices()
        assert elsewhere.requests == 0


def test_rows_of_another_date_are_refused(vendor: Vendor, tmp_path: Path) -> None:
    vendor.faults = [well, answers({"data": vendor.bars(date(2024, 1, 5))})]
    with pytest.raises(InputError, match=r"bars of 2024-01-04: 4 of 4 rows are of other dates "
                       r"\(first: 2024-01-05\)"):  # fmt: skip
        source(vendor, tmp_path).raw_prices()
    assert not (tmp_path / "bars").exists()


def test_a_value_of_another_type_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    vendor.corrections[date(2024, 1, 5), "13010"] = {"C": "12a"}
    with pytest.raises(InputError, match=r"bars of 2024-01-05: column C holds '12a'; expected"):
        source(vendor, tmp_path).raw_prices()


def test_an_answer_without_a_needed_column_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    bare = [{"Date": "2024-01-04", "Code": "13010", "O": 1.0}]
    vendor.faults = [well, answers({"data": bare})]
    with pytest.raises(InputError, match=r"bars of 2024-01-04: the answer lacks UL, LL, H, L, C, "
                       r"Vo, Va, AdjFactor; found Date, Code, O"):  # fmt: skip
        source(vendor, tmp_path).raw_prices()


def test_a_column_that_the_client_itself_misses_is_named(vendor: Vendor, tmp_path: Path) -> None:
    vendor.faults = [well, answers({"data": [{"DiscDate": "2024-01-04", "Code": "13010"}]})]
    with pytest.raises(InputError, match=r"statements of 2024-01-04: the answer lacks columns .*"
                       "DiscTime.* update jquants-api-client"):  # fmt: skip
        source(vendor, tmp_path).raw_statements()


def test_no_bars_at_all_are_an_error(vendor: Vendor, tmp_path: Path) -> None:
    vendor.published_until = date(2023, 1, 1)
    with pytest.raises(InputError, match="no bars from the start to today"):
        source(vendor, tmp_path, end_date=None).raw_prices()


# --- the key ---------------------------------------------------------------------------------


ECHO = f"you sent {KEY}, {KEY}"
LOUD: dict[str, list[Fault]] = {
    "healthy": [],
    "key refused": [well] * 5 + [fails_with(403, ECHO)],
    "request refused": [well] * 5 + [fails_with(400, ECHO)],
    "lasting fault": [well] * 5 + [fails_with(500, ECHO)] * 2,
    "redirect": [fails_with(302, ECHO, {"Location": f"/v2/{KEY}"})],
    "silence": [well] * 5 + [hangs_up] * 2,
    "torn": [well] * 5 + [breaks_off(announced=True)] * 2,
    "no page": [well] * 5 + [answers({"message": ECHO})] * 2,
    "not in plan": [well] * 5 + [fails_with(403, f"{ECHO} not available on your subscription")],
}


@pytest.mark.parametrize("name", LOUD)
def test_the_key_is_in_no_log_no_file_and_no_error(
    vendor: Vendor, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)  # also of urllib3 and whatever else has a logger
    vendor.faults = LOUD[name]
    market = source(vendor, tmp_path, attempts=2)
    with nullcontext() if name == "healthy" else pytest.raises(InputError) as error:
        market.raw_prices()
    if error:
        assert KEY not in "".join(traceback.format_exception(error.value, chain=True))
        assert KEY not in str(error.value.__context__)
        assert "\n" not in str(error.value)
    assert vendor.requests > 0
    assert caplog.records
    assert KEY not in caplog.text
    assert KEY not in repr(market) + repr(market.config) + str(market.config) + str(vars(market))
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_the_clients_own_configuration_is_not_read(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jquants-api.toml").write_text("[jquants-api-client]\napi_key = 'another\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JQUANTS_API_KEY", "another")
    assert source(vendor, tmp_path / "cache").raw_indices().height == 32


def test_the_file_search_would_find_the_key(tmp_path: Path) -> None:
    (tmp_path / "leak").write_text(f"... {KEY} ...")
    assert KEY.encode() in (tmp_path / "leak").read_bytes()


@pytest.mark.parametrize("key", ["", " ", f"{KEY}\n", f"{KEY} x", "schlüssel", f"{KEY}\r\nX: y"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"JQUANTS_API_KEY: found {len(key)} characters") as error:
        JQuantsConfig(key, tmp_path)
    assert KEY not in str(error.value)
    assert "schl" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": "gold"}, "ATFT_JQUANTS_PLAN is 'gold'; expected one of free, light, standard"),
        ({"base_url": "http://api.jquants.com/v2"}, "expected https://, as the API key would be"),
        (
            {"start_date": date(2024, 2, 1), "end_date": date(2024, 1, 1)},
            "start_date 2024-02-01 is after end_date 2024-01-01",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        JQuantsConfig(KEY, tmp_path, **settings)  # type: ignore[arg-type]


# --- pace and progress -----------------------------------------------------------------------


def test_the_plans_are_those_of_the_vendors_page() -> None:
    assert {name: plan.requests_per_minute for name, plan in PLANS.items()} == {
        "free": 5, "light": 60, "standard": 120, "premium": 500,
    }  # fmt: skip


@pytest.mark.parametrize("per_minute", [5, 60])
def test_no_minute_holds_more_requests_than_the_plan_allows(
    tmp_path: Path, per_minute: int
) -> None:
    clock = FakeClock()
    sent: list[float] = []
    for _ in range(4):  # four processes, one after the other
        pace = Pace(per_minute, clock, tmp_path / "stamp")
        for _ in range(per_minute):
            pace.wait()
            sent.append(clock.now().timestamp())
            clock.time += timedelta(milliseconds=3)
    for begin in sent:
        # The float seconds of a date have a resolution of a microsecond.
        assert sum(begin - 1e-5 <= moment < begin + 60 - 1e-3 for moment in sent) <= per_minute
    assert sent[-1] - sent[0] < 60 * 4  # and no slower than that


def test_every_page_and_every_attempt_is_paced(vendor: Vendor, tmp_path: Path) -> None:
    clock, sent = FakeClock(), []
    vendor.on_request = lambda count: sent.append(clock.now())
    vendor.page_size = 30
    vendor.faults = [well] * 5 + [fails_with(500), well, hangs_up]
    source(vendor, tmp_path, clock, plan="free", end_date=date(2024, 1, 9)).raw_prices()
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(sent)]
    assert len(gaps) == vendor.requests - 1
    assert min(gaps) > 11.999


@pytest.mark.parametrize("stamp", ["", "17:30", "9e99", "nan"])
def test_a_strange_time_stamp_costs_one_interval_at_most(tmp_path: Path, stamp: str) -> None:
    (tmp_path / "stamp").write_text(stamp)
    clock = FakeClock()
    Pace(5, clock, tmp_path / "stamp").wait()
    assert sum(clock.slept) <= 12.0


def test_progress_is_logged_with_the_time_left(
    vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source(vendor, tmp_path, plan="free").raw_prices()
    lines = [record.message for record in caplog.records if "J-Quants bars" in record.message]
    assert lines[0] == (
        "J-Quants bars: 32 of 32 parts to ask for, 0 kept; at 5 requests a minute at least 6 min"
    )
    assert "J-Quants bars: 2 asked for, 30 to go, 6 min left" in lines
    assert "J-Quants bars: 31 asked for, 1 to go, 12 s left" in lines
    assert "J-Quants bars: 32 asked for, 0 to go, 0 s left" in lines


# --- kills and company -----------------------------------------------------------------------


class Killed(BaseException):
    """Ends the process here, as far as the code can tell."""


def test_a_sync_ended_at_any_write_goes_on_where_it_was(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"start_date": date(2024, 1, 22), "end_date": date(2024, 1, 31)}
    clean = source(vendor, tmp_path / "clean", **limits).raw_prices()
    vendor.asked.clear()
    rename = os.replace
    cache = tmp_path / "cache"
    for _ in range(8):  # the first ends after the calendar, each further one a day later
        stored = iter([True])

        def store(temporary: Path, path: Path, stored: Iterator[bool] = stored) -> None:
            if not next(stored, False):
                raise Killed
            rename(temporary, path)

        monkeypatch.setattr(os, "replace", store)
        with pytest.raises(Killed):
            source(vendor, cache, **limits).raw_prices()
        assert len(list(cache.rglob("*.tmp"))) == 1
    monkeypatch.undo()
    assert_frame_equal(source(vendor, cache, **limits).raw_prices(), clean)
    assert not list(cache.rglob("*.tmp"))
    asked = days_asked(vendor)
    assert sorted(set(asked)) == [str(day) for day in vendor.open_days(date(2024, 1, 31))[-8:]]
    assert len(asked) == 8 + 8  # the day in work is asked for again, no other


CHILD = """
import datetime as dt, sys
from pathlib import Path
from atft_pipeline.sources.jquants import JQuantsConfig, JQuantsSource

class Clock:
    time = dt.datetime.fromisoformat(sys.argv[4])
    def now(self): return self.time
    def sleep(self, seconds): self.time += dt.timedelta(seconds=seconds)

config = JQuantsConfig(sys.argv[1], Path(sys.argv[2]), plan="light", base_url=sys.argv[3])
JQuantsSource(config, Clock()).raw_prices()
"""


def start_sync(vendor: Vendor, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, KEY, str(cache), vendor.url, EVENING.isoformat()],
        env=os.environ | {"POLARS_MAX_THREADS": "1"},
    )


def test_a_killed_process_loses_and_corrupts_nothing(vendor: Vendor, tmp_path: Path) -> None:
    clean = source(vendor, tmp_path / "clean").raw_prices()
    requests, cache = vendor.requests, tmp_path / "cache"
    vendor.requests = 0
    for kill_at in (3, 20):  # requests since the first start
        process: list[subprocess.Popen[bytes]] = []
        ready = threading.Event()

        def kill(count: int, at: int = kill_at, process: list = process, ready=ready) -> None:
            if count == at:
                ready.wait(10)
                process[0].send_signal(signal.SIGKILL)

        vendor.on_request = kill
        process.append(start_sync(vendor, cache))
        ready.set()
        assert process[0].wait(60) == -signal.SIGKILL
        for path in cache.rglob("[0-9]*.parquet"):
            assert pl.read_parquet(path).columns == BAR_COLUMNS
    vendor.on_request = lambda count: None
    assert_frame_equal(source(vendor, cache).raw_prices(), clean)
    assert vendor.requests <= requests + 2  # the requests under way at the kills, and no more
    assert not list(cache.rglob("*.tmp"))


def test_what_a_killed_process_had_begun_is_removed(vendor: Vendor, tmp_path: Path) -> None:
    for name in ("bars/2024/.2024-01-04.parquet.999.tmp", "calendar/.calendar.parquet.999.tmp"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"PAR1")
    source(vendor, tmp_path).raw_prices()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_sync_fails_and_names_the_process_that_is_at_it(
    vendor: Vendor, tmp_path: Path
) -> None:
    said = rf"held by process {os.getpid()} \(the sync of J-Quants bars\)"
    failed: list[str] = []

    def start_another(count: int) -> None:
        if count == 10:
            with pytest.raises(InputError, match=said) as error:
                source(vendor, tmp_path, lock_wait_seconds=0.0).raw_statements()
            failed.append(str(error.value))

    vendor.on_request = start_another
    source(vendor, tmp_path).raw_prices()
    assert "the sync of J-Quants statements waited 0 s" in failed[0]


def test_a_second_sync_waits_and_asks_for_nothing_that_the_first_fetched(
    vendor: Vendor, tmp_path: Path
) -> None:
    frames: list[pl.DataFrame] = []
    other = threading.Thread(
        target=lambda: frames.append(source(vendor, tmp_path, lock_wait_seconds=60).raw_prices())
    )
    vendor.on_request = lambda count: other.start() if count == 10 else None
    frames.append(source(vendor, tmp_path).raw_prices())
    other.join()
    assert_frame_equal(*frames)
    assert len(days_asked(vendor)) == 32


def test_reading_waits_for_the_lock_too(vendor: Vendor, tmp_path: Path) -> None:
    market = source(vendor, tmp_path, lock_wait_seconds=0.0)
    market.raw_prices()
    with (
        exclusive(tmp_path / ".lock", "a test", 0.0),
        pytest.raises(InputError, match=r"\(a test\)"),
    ):
        market.raw_prices()


def test_configs_that_differ_in_the_key_alone_share_a_cache(vendor: Vendor, tmp_path: Path) -> None:
    first = source(vendor, tmp_path)
    frame = first.raw_prices()
    requests = vendor.requests
    renewed = JQuantsSource(replace(first.config, api_key="renewed"), FakeClock())
    assert_frame_equal(renewed.raw_prices(), frame)
    assert vendor.requests == requests
