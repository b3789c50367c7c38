"""Which stock may be held on which date, decided with what was known at that date's close."""

from dataclasses import dataclass

import polars as pl

from atft_model.config import setting

TURNOVER_BARS = 20  # a trading month: long enough that one busy day does not admit a stock


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
        1e6, "Mean traded value of the last 20 bars: with 1e6 a day a position of 10,000 is 1 % of "
        "the volume; on the NASDAQ file about the upper two thirds of bars."
    )  # fmt: skip
    max_stocks: int | None = setting(
        None, "Keep only this many per date, those with the largest 20-day turnover; ties go to "
        "the smaller code. Null keeps all."
    )  # fmt: skip


def trading_universe(
    prices: pl.DataFrame, listings: pl.DataFrame, config: UniverseConfig | None = None
) -> pl.DataFrame:
    """Members per date, point in time.

    A stock without a valid bar on the date (halted, not traded, quarantined) is no member. Before
    ``listed_on`` and after ``delisted_on`` it is none either; where these are null or the code is
    not listed at all, the bars alone decide.

    Args:
        prices: Adjusted bars, unique (date, code).
        listings: One row per code.
        config: Floors; the defaults if not given.

    Returns:
        ``trading_universe``: members only, sorted by (code, date). ``turnover_20d`` is the mean of
        the last 20 bars, of fewer where the stock has fewer.

    Raises:
        polars.exceptions.ComputeError: When a code is listed twice.
    """
    config = config or UniverseConfig()
    bars = (
        prices.select("date", "code", "turnover", "raw_close")
        .sort("code", "date")
        .with_columns(
            pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("code").alias("history_days"),
            pl.col("turnover")
            .rolling_mean(TURNOVER_BARS, min_samples=1)
            .over("code")
            .alias("turnover_20d"),
        )
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
    if config.max_stocks is not None:
        members = members.sort(["turnover_20d", "code"], descending=[True, False])
        rank = pl.int_range(pl.len()).over("date")
        members = members.filter(rank < config.max_stocks).sort("code", "date")
    return members.select("date", "code", "history_days", "turnover_20d", "raw_close")
