"""The Tokyo market from J-Quants (API V2): what is asked for, when again, and what is kept.

Everything that was ever answered is kept, one file per date (the calendar, indices and investor
flows: per year or month), and only what is new or may still be corrected is asked for: see
``JQuantsSource._is_due``. How to ask is in ``jquants_client``, what the columns become in
``jquants_tables``, how files are kept in ``part_cache``. ``docs/sources.md`` is for users.
"""

import datetime as dt
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import polars as pl

from atft_model.config import setting
from atft_model.errors import InputError
from atft_pipeline.sources import jquants_tables as tables
from atft_pipeline.sources.jquants_plan import (
    PLANS,
    WITHOUT,
    NotInPlanError,
    OutsidePlanError,
    Window,
)
from atft_pipeline.sources.lock import exclusive
from atft_pipeline.sources.pace import Clock, Pace, SystemClock
from atft_pipeline.sources.part_cache import Kept, Part, PartCache, remove_leftovers

if TYPE_CHECKING:  # loads pandas, which only this source needs: an extra, imported when used
    import pandas as pd

    from atft_pipeline.sources.jquants_client import PacedClient

TOKYO = dt.timezone(dt.timedelta(hours=9), "JST")
BASE_URL = "https://api.jquants.com/v2"
PROGRESS_SECONDS = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JQuantsConfig:
    """How the market is fetched and kept.

    Raises:
        InputError: a setting that cannot be.
    """

    api_key: str = field(repr=False)
    cache: Path
    plan: str = setting("free", "free, light, standard or premium; sets the pace of requests.")
    start_date: dt.date | None = None  # all that the plan covers
    end_date: dt.date | None = None  # today in Tokyo
    daily_listings: bool = setting(
        False, "Ask for the list of stocks on every date. Else on each month's first date and on "
        "the newest: listing and delisting days are exact either way, as every listed stock has "
        "a bar each day, and a fifth to a half of all requests is saved."
    )  # fmt: skip
    settle_days: int = setting(
        7, "A date is asked for again until an answer came this many days after it: corrections "
        "come within days."
    )  # fmt: skip
    recheck_minutes: int = setting(
        60, "What is not settled is asked for again only when its answer is older than this, so "
        "that the assets of one run do not ask for the same."
    )  # fmt: skip
    timeout_seconds: float = setting(30.0, "How long the server may be silent.")
    attempts: int = setting(6, "How often a page is asked for before the sync gives up.")
    lock_wait_seconds: float = setting(600.0, "How long to wait for another run's sync.")
    base_url: str = setting(BASE_URL, "The API's address; another one only in tests.")

    def __post_init__(self) -> None:
        if not re.fullmatch("[!-~]+", self.api_key):
            raise InputError(
                f"JQUANTS_API_KEY: found {len(self.api_key)} characters, some of them blanks, line "
                "breaks or other than ASCII; expected the API key of the J-Quants dashboard; copy "
                "it again"
            )
        if self.plan not in PLANS:
            raise InputError(
                f"ATFT_JQUANTS_PLAN is {self.plan!r}; expected one of {', '.join(PLANS)}"
            )
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise InputError(
                f"jquants source: start_date {self.start_date} is after end_date {self.end_date}; "
                "expected start_date <= end_date; swap them"
            )
        address = urlsplit(self.base_url)
        if address.scheme != "https" and address.hostname not in ("127.0.0.1", "localhost"):
            raise InputError(
                f"jquants source: base_url is {self.base_url!r}; expected https://, as the API key "
                "would be sent in the clear"
            )


@dataclass(frozen=True)
class _Feed:
    """One table of the vendor.

    Attributes:
        name: Its folder in the cache.
        columns: What is kept of it.
        ask: The client's call for these dates, both included; a daily table is asked for one.
        dated_by: The column whose dates must lie within those asked for; None where the vendor may
            answer with other dates.
        raw_table: The raw table that some plans lack; None where every plan has it.
    """

    name: str
    columns: tables.Columns
    ask: "Callable[[PacedClient, dt.date, dt.date], pd.DataFrame]"
    dated_by: str | None
    raw_table: str | None = None


def _ask_calendar(client: "PacedClient", first: dt.date, last: dt.date) -> "pd.DataFrame":
    if first == dt.date.min:  # without dates the vendor gives all that it has
        return client.get_mkt_calendar()
    return client.get_mkt_calendar(from_yyyymmdd=str(first), to_yyyymmdd=str(last))


CALENDAR = _Feed("calendar", tables.CALENDAR, _ask_calendar, None)
BARS = _Feed(
    "bars", tables.BARS,
    lambda client, day, _: client.get_eq_bars_daily(date_yyyymmdd=str(day)), "Date",
)  # fmt: skip
LISTINGS = _Feed(
    "listings", tables.LISTINGS,
    lambda client, day, _: client.get_eq_master(date=str(day)), None,
)  # fmt: skip
STATEMENTS = _Feed(
    "statements", tables.STATEMENTS,
    lambda client, day, _: client.get_fin_summary_cursor(date_yyyymmdd=str(day))[0], "DiscDate",
)  # fmt: skip
TOPIX = _Feed(
    "topix", tables.INDEX,
    lambda client, first, last: client.get_idx_bars_daily_topix(str(first), str(last)),
    "Date", "raw_indices",
)  # fmt: skip
FLOWS = _Feed(
    "investor_flows", tables.FLOWS,
    lambda client, first, last: client.get_eq_investor_types("", str(first), str(last)),
    "PubDate", "raw_investor_flows",
)  # fmt: skip


class JQuantsSource:
    """A ``MarketSource`` that fetches what is new and reads the rest from its cache.

    Each ``raw_*`` method brings its own table up to date first, under the cache's lock.

    Args:
        config: The plan, the dates and the cache.
        clock: The computer's if not given.

    Raises:
        InputError: From any method, when the vendor refuses or gives no usable answer. What was
            fetched until then is kept.
    """

    name = "jquants"

    def __init__(self, config: JQuantsConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.window = Window()
        self.lacks = {
            table: f"{WITHOUT[table]} (ATFT_JQUANTS_PLAN is {config.plan})"
            for table in PLANS[config.plan].lacks
        }

    def raw_prices(self) -> pl.DataFrame:
        """Raw bars of the stocks that traded, with the factor of a split on its first day.

        Raises:
            InputError: not one bar in the configured dates.
        """
        with self._syncing(BARS) as sync:
            frame = tables.raw_prices(sync.table(BARS, _daily(sync.open_days())))
        if frame.is_empty():
            raise InputError(
                f"J-Quants: no bars from {self.config.start_date or 'the start'} to "
                f"{self.config.end_date or 'today'}; the plan covers {self.window}; change "
                "start_date or end_date"
            )
        return frame

    def raw_listings(self) -> pl.DataFrame:
        """One row per stock that ever was in the bars, with its first and last date."""
        with self._syncing(LISTINGS) as sync:
            days = sync.open_days()
            bars = sync.table(BARS, _daily(days), ["Date", "Code"])
            asked = _daily(days if self.config.daily_listings else _month_starts(days))
            listings = sync.table(LISTINGS, asked)
            return tables.raw_listings(bars, listings, *sync.english_names())

    def raw_indices(self) -> pl.DataFrame:
        """TOPIX; no rows where the plan lacks it."""
        closes = {"TOPIX": self._spans(TOPIX, _years)} if "raw_indices" not in self.lacks else {}
        return tables.raw_indices(closes)

    def raw_statements(self) -> pl.DataFrame:
        """Disclosures of every trading day."""
        with self._syncing(STATEMENTS) as sync:
            return tables.raw_statements(sync.table(STATEMENTS, _daily(sync.open_days())))

    def raw_investor_flows(self) -> pl.DataFrame:
        """Weekly values by investor type; no rows where the plan lacks them."""
        if "raw_investor_flows" in self.lacks:
            return tables.raw_investor_flows(pl.DataFrame(schema=tables.FLOWS))
        return tables.raw_investor_flows(self._spans(FLOWS, _months))

    def planted_return(self) -> None:
        """None: nobody knows the expected returns of a real market."""
        return None

    def missing(self) -> dict[str, str]:
        """What the vendor or the plan lacks."""
        return self.lacks | {
            "shares_outstanding": "the list of stocks has none: each statement gives the number "
            "as of its day"
        }

    def _spans(self, feed: _Feed, spans: Callable[[list[dt.date]], list[Part]]) -> pl.DataFrame:
        with self._syncing(feed) as sync:
            return sync.table(feed, spans(sync.open_days()))

    @contextmanager
    def _syncing(self, feed: _Feed) -> Iterator["_Sync"]:
        config, client = self.config, _client_module()
        doing = f"the sync of J-Quants {feed.name}"
        with exclusive(config.cache / ".lock", doing, config.lock_wait_seconds):
            remove_leftovers(config.cache)
            per_minute = PLANS[config.plan].requests_per_minute
            pace = Pace(per_minute, self.clock, config.cache / ".last_request")
            connection = client.PacedClient(
                config.api_key, config.base_url, pace, config.timeout_seconds, config.attempts
            )
            with closing(connection):
                yield _Sync(self, connection)


@dataclass(frozen=True)
class _Answer:
    """Rows, and whether all dates of the part were asked for."""

    rows: pl.DataFrame
    complete: bool


class _Sync:
    """One hold of the lock: brings tables up to date and reads them."""

    def __init__(self, source: JQuantsSource, client: "PacedClient") -> None:
        self.source = source
        self.config = source.config
        self.client = client
        self.now = source.clock.now()
        self.end = min(self.config.end_date or dt.date.max, _in_tokyo(self.now))

    def open_days(self) -> list[dt.date]:
        """The trading days of the configured dates that have come, as far as any answer told.

        A new calendar is laid over the kept one: a plan whose window moves on forgets old days.

        Raises:
            InputError: not one.
        """
        cache, start = self._cache(CALENDAR), self.config.start_date or dt.date.min
        part = Part("calendar", start, self.end)
        kept = cache.kept(part)
        known = cache.read([part]) if kept else pl.DataFrame(schema=tables.CALENDAR)
        answer = self._ask(CALENDAR, part) if self._is_due(kept, part, self.end) else None
        if answer:
            known = pl.concat([known, answer.rows]).unique("Date", keep="last")
            cache.store(part, known, self._kept(part, answer.complete, known))
        days = [day for day in tables.open_days(known) if start <= day <= self.end]
        if not days:
            raise InputError(
                f"J-Quants: no trading day from {self.config.start_date or 'the start'} to "
                f"{self.end}; the plan covers {self.source.window}; change start_date or end_date"
            )
        return days

    def table(
        self, feed: _Feed, parts: Sequence[Part], columns: list[str] | None = None
    ) -> pl.DataFrame:
        """Asks for the parts that are due, oldest first, and reads all that are kept."""
        cache = self._cache(feed)
        kept = {part: cache.kept(part) for part in parts}
        newest = max((part.last for part, was in kept.items() if was and was.rows),
                     default=dt.date.min)  # fmt: skip
        due = [part for part, was in kept.items() if self._is_due(was, part, newest)]
        progress = _Progress(feed.name, len(due), len(parts), self.source)
        readable = {part for part, was in kept.items() if was}
        empty: list[Part] = []
        lack: str | None = None
        for part in due:
            try:
                answer = self._ask(feed, part)
            except NotInPlanError as refusal:
                lack = str(refusal)
                break
            progress.step(asked=answer is not None)
            if answer is None:
                continue
            readable.add(part)
            if self._store(feed, part, answer):
                newest = max(newest, part.last)
            else:
                empty.append(part)
        if lack:
            self._note_lack(feed, lack)
        if feed is BARS:
            self._say_closed([part for part in empty if part.last < newest])
        rows = cache.read([part for part in parts if part in readable], columns)
        if feed.dated_by is None:
            return rows
        start = self.config.start_date or dt.date.min
        return rows.filter(pl.col(feed.dated_by).is_between(start, self.end))

    def english_names(self) -> tuple[dict[str, str], dict[str, str]]:
        """The client's own tables of sector and market names, by the vendor's codes."""
        sectors, markets = self.client.get_33_sectors(), self.client.get_market_segments()
        return (
            dict(zip(sectors["S33"], sectors["S33NmEn"], strict=True)),
            dict(zip(markets["Mkt"], markets["MktNmEn"], strict=True)),
        )

    def _is_due(self, kept: Kept | None, part: Part, newest: dt.date) -> bool:
        """Whether the part must be asked for: the one rule of the incremental sync.

        New: never answered, or not for all the dates that are wanted now. Final: answered in full
        ``settle_days`` after its last date or later. An empty answer is believed once a later date
        has rows: until then the vendor may be late, not closed. Else the part may grow or be
        corrected, and is asked for again when the answer is older than ``recheck_minutes``; an
        empty today, which may just not be out yet, at once.

        Args:
            kept: What is kept of the part.
            part: What is wanted.
            newest: Last date of the parts that have rows.
        """
        if kept is None or part.first < kept.first or part.last > kept.last:
            return True
        believed = kept.rows > 0 or part.last < newest
        if kept.complete and believed and self._settled(part, kept.fetched):
            return False
        if kept.rows == 0 and part.last == _in_tokyo(self.now):
            return True
        return self.now - kept.fetched >= dt.timedelta(minutes=self.config.recheck_minutes)

    def _settled(self, part: Part, fetched: dt.datetime) -> bool:
        return (_in_tokyo(fetched) - part.last).days >= self.config.settle_days

    def _ask(self, feed: _Feed, part: Part) -> _Answer | None:
        """The part's rows; None when none of its dates is covered by the plan or has come."""
        window = self.source.window
        first, last = max(part.first, window.first), min(part.last, window.last, self.end)
        if part.first == dt.date.min and feed is CALENDAR:
            first = window.first  # asked without dates unless the plan's are known
        if first > last:
            return None
        try:
            rows = self._request(feed, first, last)
        except OutsidePlanError as refusal:
            covered = refusal.window
        else:
            return _Answer(rows, first <= part.first and last >= part.last)
        if covered == window:
            raise InputError(
                f"J-Quants {feed.name} of {first} to {last}: refused, although the plan covers "
                f"{covered}; expected an answer within the plan; set start_date and end_date "
                "further in"
            )
        self.source.window = covered
        logger.info("J-Quants: the plan covers %s; other dates are left out", covered)
        return self._ask(feed, part)

    def _request(self, feed: _Feed, first: dt.date, last: dt.date) -> pl.DataFrame:
        what = f"{feed.name} of {first}" + (f" to {last}" if last != first else "")
        try:
            answer = feed.ask(self.client, first, last)
        except KeyError as error:  # the client picks its columns out of the answer
            absent = str(error)
        else:
            rows = tables.vendor_table(answer, feed.columns, what)
            _refuse_other_dates(rows, feed, first, last, what)
            return rows
        raise InputError(
            f"J-Quants {what}: the answer lacks columns ({absent}); the API has changed: update "
            "jquants-api-client"
        )

    def _store(self, feed: _Feed, part: Part, answer: _Answer) -> bool:
        """Keeps an answer; one without rows does not take back rows that were given before.

        Returns:
            Whether there are rows now.
        """
        cache = self._cache(feed)
        before, rows = cache.kept(part), cache.in_order(answer.rows)
        if before and before.rows:
            old = cache.read([part])
            if rows.is_empty():
                logger.warning("J-Quants %s %s: empty now; the rows are kept", feed.name, part)
                rows = old
            elif not rows.equals(old):
                logger.info("J-Quants %s %s: new or corrected rows", feed.name, part)
        cache.store(part, rows, self._kept(part, answer.complete, rows))
        return not rows.is_empty()

    def _say_closed(self, days: list[Part]) -> None:
        if settled := [str(day) for day in days if self._settled(day, self.now)]:
            shown = ", ".join(settled[:5]) + ", ..." * (len(settled) > 5)
            logger.warning(
                "J-Quants bars: none on trading days of the calendar, which are not asked for "
                "again: %d (%s)", len(settled), shown,
            )  # fmt: skip

    def _kept(self, part: Part, complete: bool, rows: pl.DataFrame) -> Kept:
        return Kept(self.source.clock.now(), part.first, part.last, complete, rows.height)

    def _note_lack(self, feed: _Feed, message: str) -> None:
        if feed.raw_table is None:
            raise InputError(
                f"J-Quants {feed.name}: refused ({message}); expected a table that every plan has; "
                "check the plan on the J-Quants dashboard"
            )
        logger.warning("J-Quants %s: %s", feed.name, message)
        self.source.lacks[feed.raw_table] = f"{WITHOUT[feed.raw_table]} (J-Quants: {message})"

    def _cache(self, feed: _Feed) -> PartCache:
        return PartCache(self.config.cache / feed.name, feed.columns)


class _Progress:
    """Says how far a sync is and how long it will take."""

    def __init__(self, name: str, due: int, parts: int, source: JQuantsSource) -> None:
        self.name, self.left, self.asked = name, due, 0
        self.clock = source.clock
        self.started = self.said = self.clock.now()
        if due:
            pace = PLANS[source.config.plan].requests_per_minute
            logger.info(
                "J-Quants %s: %d of %d parts to ask for, %d kept; at %d requests a minute at "
                "least %s", name, due, parts, parts - due, pace, _duration(60.0 * due / pace),
            )  # fmt: skip

    def step(self, *, asked: bool) -> None:
        """Counts a part; those that the plan does not cover take no time."""
        self.left -= 1
        if not asked:
            return
        self.asked += 1
        now = self.clock.now()
        if self.left and (now - self.said).total_seconds() < PROGRESS_SECONDS:
            return
        self.said = now
        remaining = (now - self.started).total_seconds() / self.asked * self.left
        logger.info(
            "J-Quants %s: %d asked for, %d to go, %s left",
            self.name, self.asked, self.left, _duration(remaining),
        )  # fmt: skip


def _client_module() -> ModuleType:
    """The module that needs the extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        from atft_pipeline.sources import jquants_client
    except ModuleNotFoundError as error:
        if error.name != "jquantsapi":
            raise
    else:
        return jquants_client
    raise InputError(
        "ATFT_SOURCE is 'jquants' but jquants-api-client is not installed; install it with: "
        "python -m pip install -e '.[jquants]' -c constraints.txt"
    )


def _refuse_other_dates(
    rows: pl.DataFrame, feed: _Feed, first: dt.date, last: dt.date, what: str
) -> None:
    if feed.dated_by is None:
        return
    within = pl.col(feed.dated_by).is_between(first, last).fill_null(False)
    other = rows.filter(~within)[feed.dated_by]
    if len(other):
        raise InputError(
            f"J-Quants {what}: {len(other)} of {rows.height} rows are of other dates (first: "
            f"{other[0]}); expected only the dates asked for; nothing of it was kept; run again "
            "later"
        )


def _in_tokyo(moment: dt.datetime) -> dt.date:
    return moment.astimezone(TOKYO).date()


def _daily(days: Sequence[dt.date]) -> list[Part]:
    return [Part(f"{day.year}/{day}", day, day) for day in days]


def _month_starts(days: list[dt.date]) -> list[dt.date]:
    """Each month's first trading day, and the newest day."""
    starts = {(day.year, day.month): day for day in reversed(days)}
    return sorted({*starts.values(), days[-1]})


def _months(days: list[dt.date]) -> list[Part]:
    months = sorted({day.replace(day=1) for day in days})
    after = [(month + dt.timedelta(days=31)).replace(day=1) for month in months]
    return [
        Part(f"{month:%Y/%Y-%m}", month, following - dt.timedelta(days=1))
        for month, following in zip(months, after, strict=True)
    ]


def _years(days: list[dt.date]) -> list[Part]:
    years = sorted({day.year for day in days})
    return [Part(str(year), dt.date(year, 1, 1), dt.date(year, 12, 31)) for year in years]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
