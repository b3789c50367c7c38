"""Membership is decided with what was known at the date's close, and top N means exactly N."""

import dataclasses
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_pipeline import schemas
from atft_pipeline.transforms.universe import (
    UniverseConfig,
    trading_universe,
    turnover_per_date,
)

START = date(2024, 1, 1)
OPEN = UniverseConfig(min_history_days=1, min_raw_close=0.0, min_turnover_20d=0.0)


def day(number: int) -> date:
    return START + timedelta(days=number)


def prices(days: int = 60, stocks: int = 8, seed: int = 5) -> pl.DataFrame:
    """Bars at random, one in ten missing."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "date": day(number),
            "code": f"S{stock}",
            "turnover": float(rng.lognormal(10 + stock / 4, 1)),
            "raw_close": float(rng.lognormal(1, 0.5)),
        }
        for stock in range(stocks)
        for number in range(days)
        if rng.random() > 0.1
    ]
    return pl.DataFrame(rows)


def listings(codes: list[str], **columns: list[date | None]) -> pl.DataFrame:
    empty = {"listed_on": [None] * len(codes), "delisted_on": [None] * len(codes)}
    return pl.DataFrame(
        {"code": codes, **empty, **columns},
        schema_overrides={"listed_on": pl.Date, "delisted_on": pl.Date},
    )


CODES = [f"S{stock}" for stock in range(8)]


def test_open_universe_is_every_bar_with_its_history() -> None:
    bars = prices()
    universe = trading_universe(bars, listings(CODES), OPEN)
    schemas.TRADING_UNIVERSE.validate(universe, lazy=True)
    assert_frame_equal(
        universe.select("date", "code", "raw_close"), bars.select("date", "code", "raw_close")
    )
    calendar = sorted(set(bars["date"]))
    for (_,), stock in universe.join(bars, on=["date", "code"]).group_by("code"):
        stock = stock.sort("date")
        assert stock["history_days"].to_list() == list(range(1, stock.height + 1))
        traded = dict(stock.select("date", "turnover").rows())
        since_first = calendar[calendar.index(stock["date"][0]) :]
        for when, found in stock.select("date", "turnover_20d").rows():
            window = since_first[: since_first.index(when) + 1][-20:]
            slow = sum(traded.get(past, 0.0) for past in window) / len(window)
            assert found == pytest.approx(slow, rel=1e-12)


def test_floors() -> None:
    bars = prices()
    every = trading_universe(bars, listings(CODES), OPEN)
    config = UniverseConfig(min_history_days=20, min_raw_close=2.0, min_turnover_20d=60_000.0)
    members = trading_universe(bars, listings(CODES), config)
    expected = every.filter(
        pl.col("history_days") >= 20,
        pl.col("raw_close") >= 2.0,
        pl.col("turnover_20d") >= 60_000.0,
    )
    assert 0 < expected.height < every.height / 2
    assert_frame_equal(members, expected)


def test_defaults_admit_a_liquid_stock_from_its_sixtieth_bar() -> None:
    bars = pl.DataFrame(
        {"date": [day(i) for i in range(80)], "code": "A", "turnover": 2e6, "raw_close": 5.0}
    )
    assert trading_universe(bars, listings(["A"]))["date"].min() == day(59)
    assert trading_universe(bars.with_columns(turnover=pl.lit(9e5)), listings(["A"])).is_empty()
    assert trading_universe(bars.with_columns(raw_close=pl.lit(0.9)), listings(["A"])).is_empty()


def test_a_stock_that_trades_once_a_week_is_not_as_liquid_as_its_bars() -> None:
    every_day = pl.DataFrame(
        {"date": [day(i) for i in range(100)], "code": "A", "turnover": 2e6, "raw_close": 5.0}
    )
    once_a_week = every_day.filter(pl.int_range(pl.len()) % 5 == 0).with_columns(code=pl.lit("B"))
    config = UniverseConfig(min_history_days=1)
    universe = trading_universe(pl.concat([every_day, once_a_week]), listings(["A", "B"]), config)
    assert universe.filter(pl.col("code") == "A").height == 100
    assert universe.filter(pl.col("code") == "B")["date"].to_list() == [day(0)]


def test_turnover_has_the_same_bits_whatever_came_before_its_window() -> None:
    bars = prices().sort("code", "date")
    late = bars.filter(pl.col("date") >= day(20))
    settled = pl.col("date") >= day(40)
    whole = bars.with_columns(turnover_20d=pl.Series(turnover_per_date(bars, 20))).filter(settled)
    tail = late.with_columns(turnover_20d=pl.Series(turnover_per_date(late, 20))).filter(settled)
    assert_frame_equal(whole, tail, check_exact=True)


def test_a_stock_at_a_price_limit_is_no_member_on_that_day() -> None:
    bars = prices(stocks=1).with_columns(
        limit_up=pl.Series([True, False, None] * 60).head(prices(stocks=1).height),
        limit_down=pl.Series([False, False, None] * 60).head(prices(stocks=1).height),
    )
    swapped = bars.rename({"limit_up": "limit_down", "limit_down": "limit_up"})
    unknown = bars.with_columns(limit_up=pl.lit(None, pl.Boolean), limit_down=pl.lit(None))
    free = bars.filter(~pl.col("limit_up").fill_null(False)).select("date", "code")
    assert 0 < free.height < bars.height
    for flagged in (bars, swapped):
        universe = trading_universe(flagged, listings(["S0"]), OPEN)
        assert_frame_equal(universe.select("date", "code"), free)
    held = dataclasses.replace(OPEN, members_at_limit=True)
    for everyone in (
        trading_universe(bars, listings(["S0"]), held),
        trading_universe(unknown, listings(["S0"]), OPEN),
        trading_universe(bars.drop("limit_up", "limit_down"), listings(["S0"]), OPEN),
    ):
        assert everyone.height == bars.height


def test_listing_and_delisting_dates_are_members_and_the_days_beyond_are_not() -> None:
    bars = prices()
    known = listings(["S0", "S1"], listed_on=[day(10), None], delisted_on=[day(40), day(30)])
    universe = trading_universe(bars, known, OPEN)
    expected = bars.filter(
        (pl.col("code") != "S0") | pl.col("date").is_between(day(10), day(40)),
        (pl.col("code") != "S1") | (pl.col("date") <= day(30)),
    )
    assert_frame_equal(universe.select("date", "code"), expected.select("date", "code"))


@pytest.mark.parametrize("seed", range(3))
def test_top_n_is_exact(seed: int) -> None:
    bars = prices(seed=seed)
    every = trading_universe(bars, listings(CODES), OPEN)
    config = UniverseConfig(1, 0.0, 0.0, max_stocks=3)
    top = trading_universe(bars, listings(CODES), config)
    slow = [
        (when, row["code"])
        for (when,), rows in every.group_by("date")
        for row in sorted(rows.to_dicts(), key=lambda r: (-r["turnover_20d"], r["code"]))[:3]
    ]
    assert sorted(top.select("date", "code").rows()) == sorted(slow)
    assert_frame_equal(top, top.sort("code", "date"))


def test_ties_go_to_the_smaller_code() -> None:
    late = pl.col("code").replace_strict({f"S{i}": day(i) for i in range(8)})
    bars = pl.DataFrame({"date": [day(i) for i in range(60)]}).join(
        pl.DataFrame({"code": CODES}), how="cross"
    )
    bars = bars.filter(pl.col("date") >= late).with_columns(turnover=5.0, raw_close=2.0)
    bars = bars.sample(fraction=1, shuffle=True, seed=2)
    config = UniverseConfig(1, 0.0, 0.0, max_stocks=2)
    top = trading_universe(bars, listings(CODES), config)
    slow = {when: sorted(rows["code"])[:2] for (when,), rows in bars.group_by("date")}
    assert {when: sorted(rows["code"]) for (when,), rows in top.group_by("date")} == slow


@pytest.mark.parametrize("max_stocks", [None, 3])
def test_rewriting_the_future_changes_no_past_member(max_stocks: int | None) -> None:
    bars = prices()
    config = UniverseConfig(5, 1.0, 20_000.0, max_stocks=max_stocks)
    before = trading_universe(bars, listings(CODES), config)
    for last in (20, 33, 47):
        past = pl.col("date") <= day(last)
        future = prices(seed=99).filter(~past).with_columns(pl.col("turnover") * 1000)
        rewritten = pl.concat([bars.filter(past), future])
        after = trading_universe(rewritten, listings(CODES), config)
        assert_frame_equal(after.filter(past), before.filter(past), check_exact=True)
        assert not after.equals(before)


def test_rows_and_keys_are_bounded() -> None:
    bars = prices()
    universe = trading_universe(bars, listings(CODES), OPEN)
    assert universe.height <= bars["code"].n_unique() * bars["date"].n_unique()
    assert not universe.select("date", "code").is_duplicated().any()


def test_a_code_listed_twice_is_refused() -> None:
    with pytest.raises(pl.exceptions.ComputeError, match="m:1"):
        trading_universe(prices(), listings(["S0", "S0"]), OPEN)
