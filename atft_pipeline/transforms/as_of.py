"""What was public on a trading date: rows that became known at some time, joined to dates.

Everything that is not a bar of the day itself enters here. A row counts from the first trading day
on whose close it could have been acted on; the newest row that counts is found by date, never by
counting rows.
"""

import datetime as dt

import numpy as np
import polars as pl

MARKET_CLOSE = dt.time(15, 0)
"""Exchange-local. What becomes public at or after it, or at an unknown time, counts a day later.
The earliest close among the large exchanges (Tokyo until 2024): on an exchange that closes later a
disclosure of its last minutes counts a day late, which costs a little and never looks ahead."""


def counts_from(public_on: pl.Expr, public_at: pl.Expr, close: dt.time = MARKET_CLOSE) -> pl.Expr:
    """The first calendar day on whose close a disclosure is known.

    Args:
        public_on: Date.
        public_at: Exchange-local time of day; null counts as after the close.
        close: When trading ends.
    """
    before_close = (public_at < close).fill_null(False)
    return pl.when(before_close).then(public_on).otherwise(public_on.dt.offset_by("1d"))


def newest_known(keys: pl.DataFrame, rows: pl.DataFrame, by: str) -> pl.Series:
    """Position in ``rows`` of the newest that counts on each key's date; null where none does.

    Args:
        keys: ``by`` and ``date``, sorted by both.
        rows: ``by`` and ``counts_from``, sorted by both; of equal ones the last counts.
        by: Whose rows they are, such as ``code``.
    """
    placed = rows.select(by, "counts_from").with_row_index("position")
    return keys.select(by, "date").join_asof(
        placed, left_on="date", right_on="counts_from", by=by, check_sortedness=False
    )["position"]  # fmt: skip


def trading_day_numbers(days: pl.Series, calendar: pl.Series) -> pl.Series:
    """Which trading day a calendar day is, counted from the first of ``calendar``.

    A day without trading has the number of the next one. Before the first date weekdays are
    counted, as nobody says which of them were trading days: those days have negative numbers.

    Args:
        days: Dates, no nulls.
        calendar: Trading dates, rising.
    """
    dates = calendar.to_numpy().astype("datetime64[D]")
    wanted = days.to_numpy().astype("datetime64[D]")
    number = np.searchsorted(dates, wanted)
    return pl.Series(number - np.busday_count(np.minimum(wanted, dates[0]), dates[0]))
