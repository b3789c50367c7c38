"""What was known at a date's close, and worlds that differ from ours only after it.

A table sees the future if it changes, for rows on and before a date, when what became known later
is removed or rewritten. Both are needed. Removal reaches any distance, but misses a maximum over
all history that lies before the cut, or a revision that no real row happens to bring on the day
after. Rewriting brings them: other prices, splits, delistings, and statements and flows that are
restated at the first moment after the close.

By its columns a table says when each row became known; a table whose columns do not say is refused,
so that a new source cannot slip past. What a listing says about a stock (sector, market, shares) is
a snapshot without a date: whether it was known earlier cannot be told from the tables.

The verdicts belong in ``checks/lookahead``.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from atft_model.config import setting
from atft_model.errors import InputError
from atft_pipeline.transforms.as_of import MARKET_CLOSE

PRICES = ("open", "high", "low", "close", "raw_close")
"""Rewritten by one factor per bar, so that a rewritten bar is still a valid one."""

SERIES = ("code", "index", "section")
"""The columns that say whose values a row holds; the first one present counts."""

LEVEL_RANGE = (0.2, 5.0)
"""By how much a whole series changes its level: well past every maximum and minimum before."""

PRICE_NOISE = 0.03
OTHER_NOISE = 0.5
"""Standard deviations of the logarithm of the factors by which single values are rewritten."""

GONE_SHARE = 0.2
SPLIT_SHARE = 0.2
"""Of the stocks: how many have no bar after the cut, and how many of the others split then."""

FUTURE_DAYS = 90
"""Calendar days that are invented: past every horizon, and a third of the cost of whole years.
What lies further ahead is seen when it is removed."""

EARLIEST_CUT = 0.25
"""Share of the dates before the first possible cut: earlier, most rolling windows are not full."""

MIN_DATES = 4

SNAPSHOT = ("name", "sector", "market", "shares_outstanding")
"""Of listings: as they are today, without a date."""


@dataclass(frozen=True)
class LookaheadConfig:
    """How often the future is taken away. One cut costs two or three builds of the table."""

    cuts: int = setting(
        2, "Random dates after which the data are removed, and again rewritten. A leak of a fixed "
        "distance shows at every cut; more cuts find leaks that only some dates have."
    )  # fmt: skip
    seed: int = setting(0, "Draws the dates and the rewritten values; each run has its own.")


@dataclass(frozen=True)
class Difference:
    """A column that is not the same with another future.

    Attributes:
        column: Its name, or ``(row)`` where rows exist in one of the tables only.
        rows: How many rows differ.
        date, code: The first of them by date, then code.
        whole: That value from all data, in words; ``no row`` where it has none.
        rebuilt: The value from the other future.
    """

    column: str
    rows: int
    date: dt.date
    code: str
    whole: str
    rebuilt: str


def draw_cuts(dates: Sequence[dt.date], config: LookaheadConfig) -> list[dt.date]:
    """Random dates, one from each of ``cuts`` equal stretches, with dates before and after them.

    Args:
        dates: Distinct dates of a table, rising.
        config: How many, and the seed. Fewer are drawn where there are fewer dates.

    Raises:
        InputError: No cut is asked for, or there are fewer than ``MIN_DATES`` dates.
    """
    if config.cuts < 1:
        raise InputError(f"lookahead: cuts is {config.cuts}; expected 1 or more")
    if len(dates) < MIN_DATES:
        raise InputError(
            f"lookahead: {len(dates)} dates; a cut needs some before and after it, so give "
            f"{MIN_DATES} or more"
        )
    candidates = np.arange(int(len(dates) * EARLIEST_CUT), len(dates) - 1)
    rng = np.random.default_rng(config.seed)
    stretches = np.array_split(candidates, min(config.cuts, len(candidates)))
    return [dates[int(rng.choice(stretch))] for stretch in stretches]


def known_at_close(frame: pl.DataFrame, cut: dt.date) -> pl.DataFrame:
    """The rows of a table that were known at the close of ``cut``, in their order.

    Bars and index closes (``date``) are known at their own close. Statements (``disclosed_on``,
    ``disclosed_at``) are known on their day where their time is before the close, else afterwards;
    flows (``published_on``) never on their own day. Listings (``listed_on``) have no row of a stock
    before its listing, and no ``delisted_on`` before it has passed.

    Raises:
        InputError: The columns do not say when a row became known.
    """
    columns = frame.columns
    if "date" in columns:
        return frame.filter(pl.col("date") <= cut)
    if "disclosed_on" in columns:
        in_time = (pl.col("disclosed_at") < MARKET_CLOSE).fill_null(False)
        day = pl.col("disclosed_on")
        return frame.filter((day < cut) | ((day == cut) & in_time))
    if "published_on" in columns:
        return frame.filter(pl.col("published_on") < cut)
    if "listed_on" in columns:
        passed = pl.when(pl.col("delisted_on") <= cut).then(pl.col("delisted_on"))
        listed = (pl.col("listed_on") <= cut).fill_null(True)
        return frame.filter(listed).with_columns(delisted_on=passed)
    raise InputError(
        f"lookahead: columns {', '.join(columns)} do not say when a row became known; expected "
        "one of date, disclosed_on, published_on, listed_on; add the table's rule to "
        "known_at_close"
    )


def future_rewritten(frame: pl.DataFrame, cut: dt.date, seed: int) -> pl.DataFrame:
    """The table as it might have become: what was known at the close of ``cut``, then invented.

    It ends after ``FUTURE_DAYS``. Every series gets another level and other moves. A fifth of the
    stocks has no bar any more, and in raw prices a fifth of the others splits on its next bar.
    Statements and flows are restated, with other figures, after the close of ``cut`` itself;
    listings know delistings on the day after.
    """
    rng = np.random.default_rng([seed, cut.toordinal()])
    if "listed_on" in frame.columns:
        return _with_delistings(frame, cut, rng)
    known = known_at_close(frame, cut)
    day = next(name for name in ("date", "disclosed_on", "published_on") if name in frame.columns)
    end = cut + dt.timedelta(days=FUTURE_DAYS)
    future = frame.filter(pl.col(day) > cut, pl.col(day) <= end)
    if day != "date":
        future = pl.concat([_restated(known, day, cut), future])
    elif "code" in frame.columns:
        future = _without_some(future, rng)
        if "adjustment_factor" in frame.columns:
            future = _with_splits(future, rng)
    return pl.concat([known, _shaken(future, rng)], rechunk=True)


def past_rewritten(frame: pl.DataFrame, cut: dt.date, seed: int) -> pl.DataFrame:
    """The table with other values on and before ``cut``, and the same ones after it."""
    rng = np.random.default_rng([seed, cut.toordinal()])
    past = pl.col("date") <= cut
    return pl.concat([_shaken(frame.filter(past), rng), frame.filter(~past)], rechunk=True)


def hide_unknown(
    table: pl.DataFrame, cut: dt.date, calendar: Sequence[dt.date], reads_ahead: Mapping[str, int]
) -> pl.DataFrame:
    """Rows on and before ``cut``; null where a value needs a later close.

    Args:
        table: Any table with ``date``.
        calendar: The trading dates, rising.
        reads_ahead: Column to the trading days after the row's date that its value reads.
    """
    past = table.filter(pl.col("date") <= cut)
    end = list(calendar).index(cut)
    for column, days in reads_ahead.items():
        last = calendar[end - days] if end >= days else dt.date.min
        past = past.with_columns(pl.when(pl.col("date") <= last).then(pl.col(column)).alias(column))
    return past


def differences(whole: pl.DataFrame, rebuilt: pl.DataFrame) -> list[Difference]:
    """Where two tables of unique (date, code) differ in a row, a null or a single bit.

    Row order does not count. Where rows are missing, values are compared on those that both have.
    """
    key = ["date", "code"]
    found: list[Difference] = []
    if not whole.select(key).equals(rebuilt.select(key)):
        whole, rebuilt = whole.sort(key), rebuilt.sort(key)
        rows = _unshared_rows(whole.select(key), rebuilt.select(key))
        if not rows.is_empty():
            date, code, in_whole = rows.row(0)
            words = ("a row", "no row") if in_whole else ("no row", "a row")
            found.append(Difference("(row)", rows.height, date, code, *words))
            whole = whole.join(rebuilt, on=key, how="semi", maintain_order="left")
            rebuilt = rebuilt.join(whole, on=key, how="semi", maintain_order="left")
    for name in whole.columns[2:]:
        rows = np.flatnonzero(_differ(whole[name], rebuilt[name]))
        if rows.size:
            first = whole[rows].select(key).with_columns(at=pl.Series(rows)).sort(key).row(0)
            values = (_in_words(whole[name][first[2]]), _in_words(rebuilt[name][first[2]]))
            found.append(Difference(name, rows.size, first[0], first[1], *values))
    return found


def _unshared_rows(whole: pl.DataFrame, rebuilt: pl.DataFrame) -> pl.DataFrame:
    """Keys that one table only has, and whether it is the whole one; by date, then code."""
    lost = whole.join(rebuilt, on=whole.columns, how="anti").with_columns(in_whole=True)
    new = rebuilt.join(whole, on=whole.columns, how="anti").with_columns(in_whole=False)
    return pl.concat([lost, new]).sort(whole.columns)


def _differ(left: pl.Series, right: pl.Series) -> np.ndarray:
    """bool [rows]; floats by their bits, so that 0 and -0 differ and NaN is itself."""
    if left.dtype != right.dtype or not left.dtype.is_float():
        return left.ne_missing(right).to_numpy()
    width = np.uint32 if left.dtype == pl.Float32 else np.uint64
    unknown = left.is_null().to_numpy() != right.is_null().to_numpy()
    bits = [side.fill_null(0.0).to_numpy().view(width) for side in (left, right)]
    return unknown | (bits[0] != bits[1])


def _in_words(value: object) -> str:
    return (
        f"{value:.9g}" if isinstance(value, float) else "unknown" if value is None else f"{value}"
    )


def _series_of(rows: pl.DataFrame) -> str:
    """The column that says whose values a row holds."""
    for name in SERIES:
        if name in rows.columns:
            return name
    raise InputError(
        f"lookahead: columns {', '.join(rows.columns)} do not say whose values these are; "
        f"expected one of {', '.join(SERIES)}"
    )


def _shaken(rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The rows rewritten: floats by a level per series and a factor per value, flags inverted."""
    key = _series_of(rows)
    names = rows[key].unique().sort()
    low, high = np.log(LEVEL_RANGE)
    levels = pl.DataFrame({key: names, "level": np.exp(rng.uniform(low, high, len(names)))})
    level = rows.select(key).join(levels, on=key, how="left", maintain_order="left")["level"]
    of_bar = level * pl.Series(np.exp(PRICE_NOISE * rng.standard_normal(rows.height)))
    columns = []
    for name, dtype in rows.schema.items():
        if dtype == pl.Boolean:
            columns.append(~rows[name])
        if not dtype.is_float() or name == "adjustment_factor":
            continue
        noise = pl.Series(np.exp(OTHER_NOISE * rng.standard_normal(rows.height)))
        factor = of_bar if name in PRICES else level * noise
        columns.append((rows[name] * factor).cast(dtype).alias(name))
    return rows.with_columns(columns)


def _restated(known: pl.DataFrame, day: str, cut: dt.date) -> pl.DataFrame:
    """The newest row of each series again, public after the close of ``cut``."""
    newest = known.sort(day, maintain_order=True).unique(
        _series_of(known), keep="last", maintain_order=True
    )
    restated = newest.with_columns(pl.lit(cut).alias(day))
    if "disclosed_at" not in known.columns:
        return restated
    at_close = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit(MARKET_CLOSE))
    return restated.with_columns(disclosed_at=at_close)


def _without_some(future: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    gone = _some_codes(future, GONE_SHARE, rng)
    return future.filter(~pl.col("code").is_in(gone.implode()))


def _some_codes(rows: pl.DataFrame, share: float, rng: np.random.Generator) -> pl.Series:
    codes = rows["code"].unique().sort()
    return codes.gather(rng.permutation(len(codes))[: round(share * len(codes))])


def _with_splits(future: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Some stocks' first bar is the ex-date of a 2:1 split, and raw prices stay halved."""
    chosen = pl.col("code").is_in(_some_codes(future, SPLIT_SHARE, rng).implode())
    ex_date = chosen & (pl.col("date") == pl.col("date").min().over("code"))
    prices = [name for name in PRICES if name in future.columns]
    return future.with_columns(
        pl.when(chosen).then(pl.col(prices) / 2.0).otherwise(pl.col(prices)),
        adjustment_factor=pl.when(ex_date).then(0.5).otherwise("adjustment_factor"),
    )


def _with_delistings(
    listings: pl.DataFrame, cut: dt.date, rng: np.random.Generator
) -> pl.DataFrame:
    """Stocks listed by ``cut`` and not yet delisted: a fifth leave on the day after."""
    alive = known_at_close(listings, cut).filter(pl.col("delisted_on").is_null())
    leaves = pl.col("code").is_in(_some_codes(alive, GONE_SHARE, rng).implode())
    day = pl.lit(cut + dt.timedelta(days=1))
    return listings.with_columns(delisted_on=pl.when(leaves).then(day).otherwise("delisted_on"))
