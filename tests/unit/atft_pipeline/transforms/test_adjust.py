"""Split adjustment: continuous across a split, and never rewritten by a later one."""

from datetime import date, timedelta
from math import prod

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

from atft_pipeline import schemas
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.validity import quarantine_invalid

START = date(2024, 1, 1)  # a Monday
PRICE = ["open", "high", "low", "close"]


def weekday(number: int) -> date:
    """The number-th weekday: bars of other days are off the calendar."""
    return START + timedelta(days=number // 5 * 7 + number % 5)


def raw_bars(splits: dict[tuple[str, int], float], days: int = 12) -> pl.DataFrame:
    """Two stocks whose value walks at random; (code, day) of a split -> its factor."""
    rng = np.random.default_rng(3)
    rows = []
    for code in ("A", "B"):
        value = 100 * np.exp(rng.normal(0, 0.02, days).cumsum())
        for day in range(days):
            past = prod(f for (c, when), f in splits.items() if c == code and when <= day)
            close = value[day] * past
            rows.append(
                {
                    "date": weekday(day),
                    "code": code,
                    "open": close * 0.99,
                    "high": close * 1.02,
                    "low": close * 0.98,
                    "close": close,
                    "volume": 1000.0 / past,
                    "turnover": None,
                    "adjustment_factor": splits.get((code, day), 1.0),
                }
            )
    return pl.DataFrame(rows, schema_overrides={"turnover": pl.Float64})


def test_without_splits_nothing_changes() -> None:
    raw = raw_bars({})
    prices = split_adjust(raw)
    schemas.PRICES.validate(prices, lazy=True)
    assert_frame_equal(
        prices.select("date", "code", *PRICE, "volume"), raw.select(prices.columns[:7])
    )
    assert_series_equal(prices["turnover"], (raw["close"] * raw["volume"]).alias("turnover"))


def test_prices_and_volume_are_continuous_across_splits() -> None:
    clean = split_adjust(raw_bars({}))
    split = split_adjust(raw_bars({("A", 4): 0.5, ("A", 9): 0.1, ("B", 6): 10.0}))
    columns = ["date", "code", *PRICE, "volume", "turnover"]
    assert_frame_equal(split.select(columns), clean.select(columns), rel_tol=1e-12)
    raw = raw_bars({("A", 4): 0.5, ("A", 9): 0.1, ("B", 6): 10.0})
    assert_series_equal(split["raw_close"], raw["close"].alias("raw_close"))


def test_a_later_split_never_changes_earlier_prices() -> None:
    """Bit for bit, whatever comes later, in any order of rows."""
    now = {("A", 4): 1 / 3, ("B", 2): 0.7}
    later = now | {("A", 8): 0.3, ("A", 10): 7.0, ("B", 9): 1 / 7}
    before = pl.col("date") < weekday(8)
    stored = split_adjust(raw_bars(now).filter(before))
    recomputed = split_adjust(raw_bars(later).sample(fraction=1, shuffle=True, seed=1))
    assert_frame_equal(recomputed.filter(before), stored, check_exact=True)


@pytest.mark.parametrize("days", [60, 160, 240])
def test_history_stays_bit_for_bit_whatever_a_market_delivers_later(days: int) -> None:
    """Prices and quarantine of a market with splits, halts and dirty rows, cut at any date."""
    raw = SyntheticMarket(SyntheticConfig(stocks=150, dates=300)).raw_prices()
    last = raw["date"].unique().sort()[days]
    past = pl.col("date") <= last
    split_later = raw.filter(~past, pl.col("adjustment_factor") != 1.0)["code"].implode()
    assert raw.filter(past, pl.col("code").is_in(split_later)).height > 0
    stored, stored_quarantine = prices_of(raw.filter(past))
    whole, whole_quarantine = prices_of(raw)
    assert_frame_equal(whole.filter(past), stored, check_exact=True)
    assert_frame_equal(whole_quarantine.filter(past), stored_quarantine, check_exact=True)


def prices_of(raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    valid, quarantine = quarantine_invalid(raw)
    return split_adjust(valid, quarantine), quarantine


def test_the_vendors_turnover_is_kept() -> None:
    raw = raw_bars({("A", 4): 0.5}).with_columns(
        turnover=pl.when(pl.col("date") == START).then(7.0).otherwise(float("nan"))
    )
    prices = split_adjust(raw)
    first = prices["date"] == START
    assert prices.filter(first)["turnover"].to_list() == [7.0, 7.0]
    expected = (raw["close"] * raw["volume"]).filter(~first).alias("turnover")
    assert_series_equal(prices.filter(~first)["turnover"], expected)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"volume": 0.0}, id="halted on the day of the split"),
        pytest.param({"close": float("nan")}, id="no price on the day of the split"),
    ],
)
def test_a_split_counts_although_its_bar_was_rejected(damage: dict[str, float]) -> None:
    split_day = (pl.col("date") == weekday(4)) & (pl.col("code") == "A")
    raw = raw_bars({("A", 4): 0.5})
    broken = raw.with_columns(
        pl.when(split_day).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in damage.items()
    )
    valid, quarantine = quarantine_invalid(broken)
    assert quarantine.height == 1
    prices = split_adjust(valid, quarantine)
    assert_frame_equal(prices, split_adjust(raw).filter(~split_day), check_exact=True)
    jump = split_adjust(valid)  # what would happen without the quarantine
    assert (jump["close"] / prices["close"]).min() == pytest.approx(0.5)


def test_repeated_bars_of_a_split_count_once() -> None:
    raw = raw_bars({("A", 4): 0.5})
    split_bar = raw.filter(pl.col("adjustment_factor") != 1.0)
    valid, quarantine = quarantine_invalid(pl.concat([raw, split_bar]))
    assert_frame_equal(split_adjust(valid, quarantine), split_adjust(raw), check_exact=True)
    other = split_bar.with_columns(pl.col("close") * 1.01)  # conflicting bars, agreed factor
    valid, quarantine = quarantine_invalid(pl.concat([raw, other]))
    assert quarantine.height == 2
    kept = split_adjust(raw).join(split_bar, on=["date", "code"], how="anti")
    assert_frame_equal(split_adjust(valid, quarantine), kept, check_exact=True)


def test_factors_that_nobody_can_trust_count_as_none() -> None:
    raw = raw_bars({})
    first = raw.head(1).with_columns(volume=pl.lit(0.0), date=pl.lit(START - timedelta(days=1)))
    bad = pl.concat(
        first.with_columns(adjustment_factor=pl.lit(factor))
        for factor in (0.0, float("nan"), -1.0, 0.5, 0.25)
    ).with_columns(reason=pl.lit("planted"))
    assert_frame_equal(split_adjust(raw, bad), split_adjust(raw), check_exact=True)
