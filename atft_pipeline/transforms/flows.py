"""Weekly investor flows by market section: scores of the newest week, as known when published.

A week that is published again changes the weeks before the newest as well, so each publication is
worked out anew from all weeks as known then. There are as many as weeks times sections, a few
thousand: a plain loop over them is quick enough.
"""

import datetime as dt
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np
import polars as pl
from jaxtyping import Float

from atft_pipeline.schemas import WHOLE_MARKET
from atft_pipeline.transforms.as_of import newest_known, trading_day_numbers

WEEKS = 52
MIN_WEEKS = 26
"""Scores start after half a year of weeks: a whole year would mute the first year."""

MOMENTUM_WEEKS = 4
SHOCK = 2.0
"""Standard deviations of the index's own year that make a week a shock."""

STALE_DAYS = 7
"""Trading days after which a week that was not followed by another is not believed any more."""

FIGURES = (
    "foreign_buy", "foreign_sell", "individual_buy", "individual_sell", "total_buy", "total_sell",
)  # fmt: skip
SCORES = (
    "foreign_net_z", "individual_net_z", "activity_z", "smart_idx", "smart_mom4", "shock_flag",
    "foreign_net_ratio", "individual_net_ratio", "activity_ratio", "breadth_pos",
)  # fmt: skip


def section_series(
    flows: pl.DataFrame, calendar: pl.Series, since: dt.date | None = None
) -> pl.DataFrame:
    """Each section's flow scores on each trading date.

    Args:
        flows: The ``raw_investor_flows`` table. It carries no time of day: a publication counts
            from the day after ``published_on``.
        calendar: Trading dates, rising.
        since: Only dates from this one on; publications that count no more by then are not scored.

    Returns:
        ``section, date``, the columns of SCORES and ``days_since`` (trading days since the newest
        week first counted; 0 on that day), sorted by (section, date). Null before the first
        publication, and SCORES more than ``STALE_DAYS`` after the last.
    """
    known = _publications(flows, since)
    dates = calendar if since is None else calendar.filter(calendar >= since)
    grid = known.select(pl.col("section").unique().sort()).join(
        pl.DataFrame({"date": dates}), how="cross", maintain_order="left_right"
    )
    at = newest_known(grid, known, by="section")
    age = trading_day_numbers(grid["date"], calendar) - (
        trading_day_numbers(known["newest_counts_from"], calendar).gather(at)
    )
    scores = known.select(pl.col(SCORES).gather(at).fill_nan(None))
    believed = pl.when(pl.col("days_since") <= STALE_DAYS)
    return (
        grid.hstack(scores).with_columns(days_since=age).with_columns(believed.then(pl.col(SCORES)))
    )


def section_of(bars: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """``section, date`` of each bar: its own market's, or the whole market's where that has none.

    Args:
        bars: ``date`` and ``market`` (null where unknown).
        series: From :func:`section_series`.
    """
    own = pl.col("market").is_in(series["section"].unique().implode())
    section = pl.when(own).then("market").otherwise(pl.lit(WHOLE_MARKET))
    return bars.select(section.alias("section"), "date")


def _publications(flows: pl.DataFrame, since: dt.date | None) -> pl.DataFrame:
    """One row per section and day of publication, with the SCORES of the newest week by then.

    Args:
        since: Leaves out publications that another one has followed before this date.
    """
    ordered = flows.sort("section", "published_on", maintain_order=True)
    rows = [
        (section, day, newest, *_scores(figures))
        for (section,), table in ordered.group_by("section", maintain_order=True)
        for day, newest, figures in _as_published(table, since)
    ]
    names = ("section", "published_on", "newest_published_on", *SCORES)
    types = (pl.String, pl.Date, pl.Date, *[pl.Float64] * len(SCORES))
    table = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
    return table.with_columns(
        counts_from=pl.col("published_on").dt.offset_by("1d"),
        newest_counts_from=pl.col("newest_published_on").dt.offset_by("1d"),
    )


def _as_published(
    table: pl.DataFrame, since: dt.date | None
) -> Iterator[tuple[dt.date, dt.date, Float[np.ndarray, "figures weeks"]]]:
    """Per day of publication: the day, when the newest week came out, all weeks as known then."""
    weeks: dict[dt.date, list[float]] = {}
    first_published: dict[dt.date, dt.date] = {}
    days = table["published_on"].to_list()
    for day, rows in groupby(
        table.select("published_on", "last_date", *FIGURES).iter_rows(), key=itemgetter(0)
    ):
        for _, week, *figures in rows:
            weeks[week] = figures
            first_published.setdefault(week, day)
        following = bisect_right(days, day)
        if since is not None and following < len(days) and days[following] < since:
            continue
        latest = sorted(weeks)[-2 * WEEKS :]
        known = np.array([weeks[week] for week in latest], dtype=np.float64).T
        yield day, first_published[latest[-1]], known


def _scores(figures: Float[np.ndarray, "figures weeks"]) -> tuple[float, ...]:
    """SCORES of the last week."""
    foreign_buy, foreign_sell, individual_buy, individual_sell, total_buy, total_sell = figures
    foreign, individual = foreign_buy - foreign_sell, individual_buy - individual_sell
    total, activity = total_buy - total_sell, total_buy + total_sell
    foreign_z, individual_z = _z_scores(foreign), _z_scores(individual)
    smart = foreign_z - individual_z
    year = _windows(activity, WEEKS)[-1]
    usual = np.nanmean(year) if np.isfinite(year).sum() >= MIN_WEEKS else np.nan
    return (
        foreign_z[-1],
        individual_z[-1],
        _z_scores(activity[-WEEKS:])[-1],
        smart[-1],
        smart[-1] - smart[-MOMENTUM_WEEKS:].mean() if len(smart) >= MOMENTUM_WEEKS else np.nan,
        _shock(smart),
        _share(foreign[-1], foreign_buy[-1] + foreign_sell[-1]),
        _share(individual[-1], individual_buy[-1] + individual_sell[-1]),
        _share(activity[-1], usual),
        _net_buyers(foreign[-1], individual[-1], total[-1] - foreign[-1] - individual[-1]),
    )  # fmt: skip


def _windows(values: Float[np.ndarray, " weeks"], size: int) -> Float[np.ndarray, "weeks window"]:
    """The last ``size`` values up to each one, NaN before the first."""
    padded = np.concatenate([np.full(size - 1, np.nan), values])
    return np.lib.stride_tricks.sliding_window_view(padded, size)


def _z_scores(values: Float[np.ndarray, " weeks"]) -> Float[np.ndarray, " weeks"]:
    """Each week's distance from its trailing year's mean, in sample standard deviations."""
    windows = _windows(values, WEEKS)
    mean, std = _moments(windows)
    flat = ~(std > 1e-12 * np.abs(mean))  # rounding; also where too few weeks are known
    return np.where(flat, np.nan, values - mean) / np.where(flat, 1.0, std)


def _moments(
    windows: Float[np.ndarray, "weeks window"],
) -> tuple[Float[np.ndarray, " weeks"], Float[np.ndarray, " weeks"]]:
    """Mean and sample standard deviation of known values; NaN with fewer than ``MIN_WEEKS``."""
    known = np.isfinite(windows)
    count = np.where(known.sum(axis=1) >= MIN_WEEKS, known.sum(axis=1), np.nan)
    mean = np.where(known, windows, 0.0).sum(axis=1) / count
    squares = np.where(known, (windows - mean[:, None]) ** 2, 0.0).sum(axis=1)
    return mean, np.sqrt(squares / (count - 1.0))


def _shock(smart: Float[np.ndarray, " weeks"]) -> float:
    """1 where the last week's index is at least ``SHOCK`` standard deviations of its year."""
    _, std = _moments(_windows(smart, WEEKS)[-1:])
    if not (np.isfinite(smart[-1]) and std[0] > 0.0):
        return np.nan
    return float(abs(smart[-1]) >= SHOCK * std[0])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else np.nan


def _net_buyers(*net: float) -> float:
    """Share of the types of investors that bought more than they sold."""
    return float(np.mean(np.array(net) > 0.0)) if np.isfinite(net).all() else np.nan
