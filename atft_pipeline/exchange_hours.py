"""When an exchange is open: the last trading day whose close has passed, at any moment.

By rule, for scheduling: no network and no vendor is needed to know whether tomorrow is a holiday.
Which days were in fact traded is what the bars say.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class Exchange:
    """Trading days and closing times.

    Attributes:
        zone: IANA time zone of the closing times.
        closes: (first day on which it holds, closing time), oldest first.
        is_holiday: Whether a weekday is closed.
        publication: From the close until a vendor has the day's bars: the daily run waits for it.
    """

    zone: str
    closes: tuple[tuple[dt.date, dt.time], ...]
    is_holiday: Callable[[dt.date], bool]
    publication: dt.timedelta

    def is_open(self, day: dt.date) -> bool:
        """Whether the exchange trades on the day."""
        return day.weekday() < 5 and not self.is_holiday(day)

    def close(self, day: dt.date) -> dt.datetime:
        """When trading ends on the day, in the exchange's time zone."""
        time = [time for first, time in self.closes if first <= day][-1]
        return dt.datetime.combine(day, time, ZoneInfo(self.zone))

    def last_closed_day(self, now: dt.datetime) -> dt.date:
        """The newest trading day whose close, and the wait for the vendor, lie behind ``now``."""
        day = now.astimezone(ZoneInfo(self.zone)).date()
        while not (self.is_open(day) and self.close(day) + self.publication <= now):
            day -= dt.timedelta(days=1)
        return day


def is_tokyo_holiday(day: dt.date) -> bool:
    """Japan's public holidays and the exchange's own: 31 December, 2 and 3 January.

    By the holiday law as it stands since 2022 (2020 and 2021 had days moved for the Olympics):
    a holiday on a Sunday is made up for on the next day that is none, and a day between two
    holidays is one.
    """
    if (day.month, day.day) in ((12, 31), (1, 2), (1, 3)):
        return True
    before, after = day - dt.timedelta(days=1), day + dt.timedelta(days=1)
    if _is_named(day) or (_is_named(before) and _is_named(after)):
        return True
    while _is_named(before):
        if before.weekday() == 6:
            return True
        before -= dt.timedelta(days=1)
    return False


def _is_named(day: dt.date) -> bool:
    """Whether the law names the day, before substitutes."""
    fixed = ((1, 1), (2, 11), (2, 23), (4, 29), (5, 3), (5, 4), (5, 5), (8, 11), (11, 3), (11, 23))
    mondays = {(1, 2), (7, 3), (9, 3), (10, 2)}  # (month, which Monday of it)
    if (day.month, day.day) in fixed:
        return True
    if day.weekday() == 0 and (day.month, (day.day + 6) // 7) in mondays:
        return True
    return (day.month, day.day) in ((3, _equinox(day.year, 20.8431)),
                                    (9, _equinox(day.year, 23.2488)))  # fmt: skip


def _equinox(year: int, day_in_1980: float) -> int:
    """Day of the month, 1980 to 2099, by the formula of Japan's National Astronomical Observatory's
    almanac: the drift of 0.242194 days a year less the leap days."""
    return int(day_in_1980 + 0.242194 * (year - 1980) - (year - 1980) // 4)


EXCHANGES = {
    "tokyo": Exchange(
        "Asia/Tokyo",
        ((dt.date.min, dt.time(15, 0)), (dt.date(2024, 11, 5), dt.time(15, 30))),
        is_tokyo_holiday,
        dt.timedelta(hours=3),  # J-Quants has bars by 16:30 and the day's statements by 18:00
    ),
    # No holidays: on one the daily run finds nothing new.
    "new_york": Exchange(
        "America/New_York", ((dt.date.min, dt.time(16, 0)),), lambda day: False,
        dt.timedelta(hours=2),
    ),
}  # fmt: skip
