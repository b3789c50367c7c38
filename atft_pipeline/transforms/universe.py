"""Which stock may be held on which date, decided with what was known at that date's close."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from atft_model.config import setting
from atft_pipeline.schemas import LIMIT_FLAGS

TURNOVER_DATES = 20  # a trading month: long enough that one busy day does not admit a stock


@dataclass(frozen=True)
class UniverseConfig:
    """What a stock must show on a date to be a member; money in the file's currency."""

    min_history_days: int = setting(
        60, "Bars seen so far: 60 fill all price features but the 200-day average, and leave the "
        "first weeks after a listing out."
    )  # fmt: skip
    min_raw_close: float = setting(
        1.0, "Unadjusted close: below 1 a US stock breaks the exchanges' minimum-bid rule, and one "
        "tick is over 1 % of the price."
    )  # fmt: skip
    min_turnover_20d: float = setting(
        1e6, "Mean traded value of the last 20 market days, 0 on days without a bar: with 1e6 a "
        "day a position of 10,000 is 1 % of the volume; on the NASDAQ file about the upper two "
        "thirds of bars."
    )  # fmt: skip
    members_at_limit: bool = setting(
        False, "Whether a stock whose price reached its daily limit is a member on that day. At a "
        "limit there is a queue on one side and nobody on the other. Where the source does not "
        "say, no stock is at one."
    )  # fmt: skip
    max_stocks: int | None = setting(
        None, "Keep only this many per date, those with the largest 20-day turnover; ties go to "
        "the smaller code. Null keeps all."
    )  # fmt: skip


def trading_universe(
    prices: pl.DataFrame, listings: pl.DataFrame, config: UniverseConfig | None = None
) -> pl.DataFrame:
    """Members per date, point in time.

    A stock without a valid bar on the date (halted, not traded, quarantined) is no member, and
    neither is one at a price limit. Before ``listed_on`` and after ``delisted_on`` it is none
    either; where these are null or the code is not listed at all, the bars alone decide.

    Args:
        prices: Adjusted bars, unique (date, code); the limit flags may be null or missing.
        listings: One row per code.
        config: Floors; the defaults if not given.

    Returns:
        ``trading_universe``: members only, sorted by (code, date). ``history_days`` counts bars;
        ``turnover_20d`` is per market day, see ``turnover_per_date``.

    Raises:
        polars.exceptions.ComputeError: When a code is listed twice.
    """
    config = config or UniverseConfig()
    flags = [name for name in LIMIT_FLAGS if name in prices.columns]
    bars = prices.select("date", "code", "turnover", "raw_close", *flags).sort("code", "date")
    bars = bars.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("code").alias("history_days"),
        turnover_20d=pl.Series(turnover_per_date(bars, TURNOVER_DATES)),
    )
    listed = listings.select("code", "listed_on", "delisted_on")
    members = bars.join(
        listed, on="code", how="left", validate="m:1", maintain_order="left"
    ).filter(
        (pl.col("date") >= pl.col("listed_on")).fill_null(True),
        (pl.col("date") <= pl.col("delisted_on")).fill_null(True),
        pl.col("history_days") >= config.min_history_days,
        pl.col("raw_close") >= config.min_raw_close,
        pl.col("turnover_20d") >= config.min_turnover_20d,
    )
    if flags and not config.members_at_limit:
        members = members.filter(~pl.any_horizontal(pl.col(flags).fill_null(False)))
    if config.max_stocks is not None:
        members = members.sort(["turnover_20d", "code"], descending=[True, False])
        rank = pl.int_range(pl.len()).over("date")
        members = members.filter(rank < config.max_stocks).sort("code", "date")
    return members.select("date", "code", "history_days", "turnover_20d", "raw_close")


def turnover_per_date(bars: pl.DataFrame, dates: int) -> np.ndarray:
    """Mean traded value per market date over the last ``dates``, this one included; [rows]

    A date on which the stock has no bar counts as 0: the mean of its own bars would show a stock
    that trades once a week as five times as liquid as it is. Dates before the stock's first bar do
    not count. Each mean is summed on its own, newest first, so that it has the same bits whatever
    came before the window.

    Args:
        bars: date, code, turnover; unique (date, code); the market's dates are those that occur.
        dates: Length of the window.
    """
    calendar, day = np.unique(bars["date"].to_numpy(), return_inverse=True)
    codes = bars["code"].rank("dense").to_numpy().astype(np.int64) - 1
    stocks = int(codes.max()) + 1 if len(codes) else 0
    traded = np.zeros((stocks, len(calendar)))
    traded[codes, day] = bars["turnover"].to_numpy()
    total = np.zeros_like(traded)
    for ago in range(min(dates, len(calendar))):
        total[:, ago:] += traded[:, : len(calendar) - ago]
    first_day = np.full(stocks, len(calendar))
    np.minimum.at(first_day, codes, day)
    counted = np.minimum(day - first_day[codes] + 1, dates)
    return total[codes, day] / counted
