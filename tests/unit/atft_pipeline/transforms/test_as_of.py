"""When something counts as known, and which trading day that is."""

import datetime as dt

import polars as pl
import pytest

from atft_pipeline.transforms.as_of import counts_from, newest_known, trading_day_numbers

THURSDAY, FRIDAY = dt.date(2024, 3, 7), dt.date(2024, 3, 8)
SATURDAY, MONDAY = dt.date(2024, 3, 9), dt.date(2024, 3, 11)


@pytest.mark.parametrize(
    ("time", "counts"),
    [
        (dt.time(8, 0), FRIDAY),
        (dt.time(14, 59, 59), FRIDAY),
        (dt.time(15, 0), SATURDAY),
        (dt.time(23, 0), SATURDAY),
        (None, SATURDAY),
    ],
)
def test_what_comes_after_the_close_or_at_an_unknown_time_counts_a_day_later(
    time: dt.time | None, counts: dt.date
) -> None:
    frame = pl.DataFrame(
        {"on": [FRIDAY], "at": [time]}, schema_overrides={"at": pl.Time}
    )  # fmt: skip
    assert frame.select(counts_from(pl.col("on"), pl.col("at"))).item() == counts


def test_a_later_close_is_a_setting() -> None:
    frame = pl.DataFrame({"on": [FRIDAY], "at": [dt.time(15, 20)]})
    until = frame.select(counts_from(pl.col("on"), pl.col("at"), dt.time(15, 30)))
    assert until.item() == FRIDAY


def test_the_newest_row_that_counts_is_found_by_date_and_company() -> None:
    keys = pl.DataFrame({"code": ["A", "A", "A", "B"], "date": [THURSDAY, FRIDAY, MONDAY, MONDAY]})
    rows = pl.DataFrame(
        {"code": ["A", "A", "A", "C"], "counts_from": [FRIDAY, SATURDAY, SATURDAY, THURSDAY]}
    )
    assert newest_known(keys, rows, by="code").to_list() == [None, 0, 2, None]


def test_trading_days_are_numbered_on_the_calendar_and_weekdays_before_it() -> None:
    calendar = pl.Series([THURSDAY, FRIDAY, MONDAY])
    days = [THURSDAY, SATURDAY, MONDAY, dt.date(2024, 3, 12), dt.date(2024, 3, 6)]
    numbers = trading_day_numbers(pl.Series([*days, dt.date(2024, 2, 29)]), calendar)
    assert numbers.to_list() == [0, 2, 2, 3, -1, -5]
