"""Tokyo's trading days by rule, against the lists that exchange and Cabinet Office print."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from atft_pipeline.exchange_hours import EXCHANGES

TOKYO = EXCHANGES["tokyo"]
JAPAN = ZoneInfo("Asia/Tokyo")
# Weekdays on which the exchange was or will be closed.
CLOSED = {
    2024: "1-1 1-2 1-3 1-8 2-12 2-23 3-20 4-29 5-3 5-6 7-15 8-12 9-16 9-23 10-14 11-4 12-31",
    2025: "1-1 1-2 1-3 1-13 2-11 2-24 3-20 4-29 5-5 5-6 7-21 8-11 9-15 9-23 10-13 11-3 11-24 12-31",
    2026: "1-1 1-2 1-12 2-11 2-23 3-20 4-29 5-4 5-5 5-6 7-20 8-11 9-21 9-22 9-23 10-12 11-3 11-23 "
    "12-31",
}
TRADING_DAYS = {2024: 245, 2025: 243}  # as the exchange reports them


def days_of(year: int) -> list[dt.date]:
    first = dt.date(year, 1, 1)
    return [first + dt.timedelta(days=n) for n in range((dt.date(year + 1, 1, 1) - first).days)]


@pytest.mark.parametrize("year", CLOSED)
def test_tokyo_is_closed_on_the_days_that_the_lists_name(year):
    found = [f"{day.month}-{day.day}" for day in days_of(year)
             if day.weekday() < 5 and not TOKYO.is_open(day)]  # fmt: skip
    assert found == CLOSED[year].split()


@pytest.mark.parametrize("year", TRADING_DAYS)
def test_tokyo_trades_as_many_days_as_the_exchange_reports(year):
    assert sum(TOKYO.is_open(day) for day in days_of(year)) == TRADING_DAYS[year]


def test_tokyo_closes_half_an_hour_later_since_5_november_2024():
    assert TOKYO.close(dt.date(2024, 11, 1)) == dt.datetime(2024, 11, 1, 15, 0, tzinfo=JAPAN)
    assert TOKYO.close(dt.date(2024, 11, 5)) == dt.datetime(2024, 11, 5, 15, 30, tzinfo=JAPAN)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2024-11-01 17:59", "2024-10-31"),  # the close at 15:00, and three hours
        ("2024-11-01 18:00", "2024-11-01"),
        ("2024-11-05 18:00", "2024-11-01"),  # the close at 15:30; the 4th was a holiday
        ("2024-11-05 18:30", "2024-11-05"),
        ("2026-01-04 12:00", "2025-12-30"),  # New Year and a weekend
        ("2026-09-23 19:00", "2026-09-18"),  # a day between two holidays is one
    ],
)
def test_the_last_closed_day(now, day):
    moment = dt.datetime.fromisoformat(now).replace(tzinfo=JAPAN)
    assert TOKYO.last_closed_day(moment) == dt.date.fromisoformat(day)
    assert TOKYO.last_closed_day(moment.astimezone(dt.UTC)) == dt.date.fromisoformat(day)


def test_new_york_closes_in_its_own_time_zone():
    new_york = EXCHANGES["new_york"]
    # Summer time: 16:00 there is 20:00 UTC; in winter it is 21:00. Two hours later bars are there.
    assert str(new_york.last_closed_day(dt.datetime(2026, 7, 1, 22, tzinfo=dt.UTC))) == "2026-07-01"
    assert str(new_york.last_closed_day(dt.datetime(2026, 1, 7, 22, tzinfo=dt.UTC))) == "2026-01-06"
