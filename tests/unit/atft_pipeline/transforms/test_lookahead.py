"""What was known when, other futures, and comparison to the bit."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_model.errors import InputError
from atft_pipeline.transforms.as_of import MARKET_CLOSE
from atft_pipeline.transforms.lookahead import (
    LookaheadConfig,
    differences,
    draw_cuts,
    future_rewritten,
    hide_unknown,
    known_at_close,
    past_rewritten,
)

START = dt.date(2024, 1, 1)
NOON = dt.time(12, 0)


def day(number: int) -> dt.date:
    return START + dt.timedelta(days=number)


CUT = day(5)


def bars(days: int = 10, stocks: int = 20) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for stock in range(stocks):
        for number in range(days):
            low, high = sorted(rng.uniform(10, 20, 2))
            bar = {"open": low, "high": high, "low": low, "close": high}
            rows.append({"date": day(number), "code": f"S{stock:02}", **bar})
    return pl.DataFrame(rows).with_columns(
        volume=1000.0, turnover=None, adjustment_factor=1.0
    ).cast({"turnover": pl.Float64})  # fmt: skip


STATEMENTS = pl.DataFrame(
    {
        "code": ["A", "A", "A", "A", "B", "B"],
        "disclosed_on": [day(1), day(5), day(5), day(5), day(6), day(4)],
        "disclosed_at": [None, NOON, MARKET_CLOSE, None, NOON, dt.time(23, 0)],
        "sales": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    }
)
FLOWS = pl.DataFrame(
    {
        "published_on": [day(3), day(4), day(5), day(6)],
        "section": ["x", "y", "x", "x"],
        "foreign_buy": [1.0, 2.0, 3.0, 4.0],
    }
)
LISTINGS = pl.DataFrame(
    {
        "code": ["A", "B", "C", "D"],
        "listed_on": [None, day(1), day(6), day(2)],
        "delisted_on": [day(4), day(9), None, None],
        "sector": ["x", "x", "y", "y"],
    }
)
OLD_LISTINGS = pl.concat([LISTINGS.with_columns(code=pl.col("code") + str(i)) for i in range(9)])


def test_bars_are_known_at_their_own_close():
    assert known_at_close(bars(), CUT)["date"].max() == CUT


def test_statements_are_known_on_their_day_only_before_the_close():
    assert known_at_close(STATEMENTS, CUT)["sales"].to_list() == [1.0, 2.0, 6.0]


def test_flows_are_known_after_their_day_of_publication():
    assert known_at_close(FLOWS, CUT)["foreign_buy"].to_list() == [1.0, 2.0]


def test_listings_know_neither_later_listings_nor_later_delistings():
    known = known_at_close(LISTINGS, CUT)
    assert known["code"].to_list() == ["A", "B", "D"]
    assert known["delisted_on"].to_list() == [day(4), None, None]


def test_a_table_that_does_not_say_when_it_was_known_is_refused():
    with pytest.raises(InputError, match="columns code, rating do not say when a row became known"):
        known_at_close(pl.DataFrame({"code": ["A"], "rating": [1.0]}), CUT)


def test_a_table_that_does_not_say_whose_it_is_is_refused():
    with pytest.raises(InputError, match="columns date, rate do not say whose values these are"):
        future_rewritten(pl.DataFrame({"date": [day(6)], "rate": [1.0]}), CUT, seed=0)


@pytest.mark.parametrize("table", [bars(), STATEMENTS, FLOWS], ids=["bars", "statements", "flows"])
def test_another_future_keeps_what_was_known_and_changes_the_rest(table: pl.DataFrame):
    other = future_rewritten(table, CUT, seed=3)
    assert other.columns == table.columns
    assert other.dtypes == table.dtypes
    assert_frame_equal(known_at_close(other, CUT), known_at_close(table, CUT))
    later = table.join(known_at_close(table, CUT), on=table.columns, how="anti", nulls_equal=True)
    assert later.height > 0
    assert later.join(other, on=table.columns, how="semi", nulls_equal=True).is_empty()
    assert_frame_equal(other, future_rewritten(table, CUT, seed=3))
    assert not other.equals(future_rewritten(table, CUT, seed=4))


def test_another_future_has_valid_bars_splits_and_fewer_stocks():
    future = future_rewritten(bars(), CUT, seed=3).filter(pl.col("date") > CUT)
    assert future.select((pl.col("low") <= pl.col("close")) & (pl.col("close") <= pl.col("high")))[
        "low"
    ].all()
    assert future["code"].n_unique() == 16
    splits = future.filter(pl.col("adjustment_factor") == 0.5)
    assert splits.height == 3
    assert splits["date"].unique().to_list() == [day(6)]


def test_another_future_inverts_flags():
    flagged = bars().with_columns(limit_up=pl.col("date") > day(7))
    future = future_rewritten(flagged, CUT, seed=3).filter(pl.col("date") > CUT)
    assert (future["limit_up"] == (future["date"] <= day(7))).all()


def test_another_future_ends_after_a_quarter():
    future = future_rewritten(bars(days=200), CUT, seed=3)
    assert future["date"].max() == day(95)
    assert future_rewritten(FLOWS, day(-86), seed=3).height == 2


def test_another_future_restates_after_the_close_of_the_cut():
    statements = future_rewritten(STATEMENTS, CUT, seed=3)
    restated = statements.filter(pl.col("disclosed_on") == CUT)[1:]
    assert set(restated["code"]) == {"A", "B"}
    assert set(restated["disclosed_at"]) == {None, MARKET_CLOSE}
    flows = future_rewritten(FLOWS, CUT, seed=3).filter(pl.col("published_on") == CUT)
    assert set(flows["section"]) == {"x", "y"}


def test_another_future_delists_stocks_that_were_listed():
    other = future_rewritten(OLD_LISTINGS, CUT, seed=3)
    assert_frame_equal(known_at_close(other, CUT), known_at_close(OLD_LISTINGS, CUT))
    changed = other.filter(other["delisted_on"].ne_missing(OLD_LISTINGS["delisted_on"]))
    assert changed.height == 4  # of 18 alive
    assert changed["delisted_on"].unique().to_list() == [day(6)]
    assert set(changed["code"].str.slice(0, 1)) <= {"B", "D"}


def test_another_past_keeps_the_future():
    other = past_rewritten(bars(), CUT, seed=3)
    later = pl.col("date") > CUT
    assert_frame_equal(other.filter(later), bars().filter(later))
    assert (other.filter(~later)["close"] != bars().filter(~later)["close"]).all()


def test_values_that_need_a_later_close_are_hidden():
    calendar = [day(number) for number in range(10)]
    table = pl.DataFrame({"date": calendar, "code": "A", "target_2d": 1.0, "target_9d": 1.0})
    seen = hide_unknown(table, CUT, calendar, {"target_2d": 3, "target_9d": 10})
    assert seen["target_2d"].to_list() == [1.0, 1.0, 1.0, None, None, None]
    assert seen["target_9d"].null_count() == 6


@pytest.mark.parametrize(
    ("before", "after"),
    [(0.0, -0.0), (None, 0.0), (1.0, 1.0 + 2**-52), (1.0, None), (float("nan"), None)],
)
def test_a_single_bit_is_a_difference(before: float | None, after: float | None):
    dates = [day(1), day(0), day(0)]
    table = pl.DataFrame({"date": dates, "code": ["A", "B", "C"], "x": [before] * 3, "y": 0.5})
    (found,) = differences(table, table.with_columns(x=pl.lit(after, dtype=pl.Float64)))
    assert (found.column, found.rows, found.date, found.code) == ("x", 3, day(0), "B")


def test_equal_tables_have_no_difference_whatever_their_order():
    table = bars().with_columns(x=pl.lit(float("nan")), y=None, name=pl.lit("a"))
    assert differences(table, table.sample(fraction=1.0, shuffle=True, seed=1)) == []


def test_rows_of_one_table_only_are_named_and_the_others_compared():
    table = bars()
    other = table.filter(pl.col("code") != "S03", pl.col("date") > day(1))
    rows, close = differences(table, other.with_columns(close=pl.col("close") + 1))
    assert (rows.column, rows.date, rows.code) == ("(row)", day(0), "S00")
    assert (rows.whole, rows.rebuilt) == ("a row", "no row")
    assert rows.rows == table.height - other.height
    assert (close.column, close.rows) == ("close", other.height)
    assert differences(other, table)[0].whole == "no row"


def test_cuts_are_random_spread_and_repeatable():
    dates = [day(number) for number in range(100)]
    drawn = [draw_cuts(dates, LookaheadConfig(cuts=3, seed=seed)) for seed in range(50)]
    assert drawn[0] == draw_cuts(dates, LookaheadConfig(cuts=3, seed=0))
    assert len({tuple(cuts) for cuts in drawn}) > 40
    assert all(day(25) <= a < b < c <= day(98) for a, b, c in drawn)


def test_a_cut_needs_dates_around_it():
    with pytest.raises(InputError, match=r"lookahead: 3 dates; a cut needs some before and after"):
        draw_cuts([day(0), day(1), day(2)], LookaheadConfig())
    with pytest.raises(InputError, match=r"lookahead: cuts is 0; expected 1 or more"):
        draw_cuts([day(number) for number in range(9)], LookaheadConfig(cuts=0))
    assert draw_cuts([day(number) for number in range(4)], LookaheadConfig(cuts=9)) == [
        day(1), day(2),
    ]  # fmt: skip
