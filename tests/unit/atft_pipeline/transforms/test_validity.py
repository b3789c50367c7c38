"""Every rule is seen to take its bar, and no row is lost."""

import dataclasses
from datetime import date, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_pipeline import schemas
from atft_pipeline.checks.prices import QuarantineLimits
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.validity import (
    REASONS,
    ValidityRules,
    quarantine_by_month,
    quarantine_invalid,
)

START = date(2024, 1, 1)  # a Monday
GOOD = {
    "open": 10.0,
    "high": 11.0,
    "low": 9.0,
    "close": 10.5,
    "volume": 1000.0,
    "turnover": None,
    "adjustment_factor": 1.0,
}


def on(day: int) -> date:
    """The day-th weekday."""
    return START + timedelta(days=day // 5 * 7 + day % 5)


def market(days: int = 10, stocks: int = 6) -> pl.DataFrame:
    """Good bars at one price, each with a volume of its own, sorted by (code, date)."""
    dates = pl.DataFrame({"date": [on(day) for day in range(days)]})
    codes = pl.DataFrame({"code": [f"S{stock}" for stock in range(stocks)]})
    keys = codes.join(dates, how="cross").select("date", "code")
    values = {name: pl.lit(value, dtype=pl.Float64) for name, value in GOOD.items()}
    return keys.with_columns(**values).with_columns(volume=1000.0 + pl.int_range(pl.len()))


def bar(day: int, code: str, **values: float | None) -> pl.DataFrame:
    row = {"date": on(day), "code": code, **GOOD, **values}
    return pl.DataFrame([row], schema=market(1, 1).schema)


def without(frame: pl.DataFrame, day: int, code: str) -> pl.DataFrame:
    here = (pl.col("date") == on(day)) & (pl.col("code") == code)
    return frame.filter(~here)


def stock(closes: list[float], **columns: list[float]) -> pl.DataFrame:
    """Bars of stock A with these closes, from day 0 on."""
    frame = market(len(closes), 1).with_columns(code=pl.lit("A"), close=pl.Series(closes))
    frame = frame.with_columns(open="close", high="close", low="close")
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def reasons(quarantine: pl.DataFrame) -> dict[str, int]:
    return dict(quarantine["reason"].value_counts().iter_rows())


NAN, INF = float("nan"), float("inf")
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("missing_value", {"close": None}),
        ("missing_value", {"open": NAN}),
        ("missing_value", {"high": INF}),
        ("missing_value", {"volume": None}),
        ("bad_adjustment_factor", {"adjustment_factor": None}),
        ("bad_adjustment_factor", {"adjustment_factor": NAN}),
        ("bad_adjustment_factor", {"adjustment_factor": 0.0}),
        ("bad_adjustment_factor", {"adjustment_factor": -0.5}),
        ("bad_turnover", {"turnover": -1.0}),
        ("bad_turnover", {"turnover": INF}),
        ("negative_volume", {"volume": -1.0}),
        ("zero_volume", {"volume": 0.0}),
        # a day without a trade as vendors write it: the missing trade is the reason, not the rest
        ("zero_volume", {"volume": 0.0, "open": None, "high": None, "low": None, "close": None}),
        ("zero_volume", {"volume": 0.0, "open": 0.0, "high": 0.0, "low": 0.0}),
        ("non_positive_price", {"open": 0.0}),
        ("non_positive_price", {"low": -9.0}),
        ("non_positive_price", {"open": 0.0, "high": 0.0, "low": 0.0}),
        ("high_below_low", {"high": 9.0, "low": 9.5}),
        ("close_outside_range", {"close": 11.5}),
        ("close_outside_range", {"close": 8.5}),
        ("close_outside_range", {"close": 8.5, "open": 8.5}),
        ("open_outside_range", {"open": 11.5}),
        ("open_outside_range", {"open": 8.5}),
    ],
)
def test_each_rule_takes_its_bar_and_no_other(reason: str, values: dict[str, float | None]) -> None:
    clean = without(market(), 5, "S3")
    raw = pl.concat([clean, bar(5, "S3", **values)])
    valid, quarantine = quarantine_invalid(raw)
    assert_frame_equal(valid, clean)
    assert_frame_equal(quarantine.drop("reason"), bar(5, "S3", **values))
    assert quarantine["reason"].to_list() == [reason]
    schemas.QUARANTINE.validate(quarantine, lazy=True)


def test_clean_bars_pass_with_or_without_turnover() -> None:
    more = [bar(5, "S0", turnover=0.0), bar(6, "S0", turnover=NAN, volume=5.0)]
    raw = pl.concat([market(5), *more])
    valid, quarantine = quarantine_invalid(raw.filter(pl.col("code") == "S0"))
    assert valid.height == 7
    assert quarantine.is_empty()


def test_rounding_is_tolerated_up_to_its_limit() -> None:
    inside, outside = bar(5, "S3", close=11.0 * 1.0009), bar(5, "S3", close=11.0 * 1.0011)
    clean = without(market(), 5, "S3")
    assert quarantine_invalid(pl.concat([clean, inside]))[1].is_empty()
    assert quarantine_invalid(pl.concat([clean, outside]))[1].height == 1
    strict = ValidityRules(rounding_tolerance=0.0)
    assert quarantine_invalid(pl.concat([clean, inside]), strict)[1].height == 1


def test_of_equal_bars_the_first_stays() -> None:
    again = market().filter(pl.col("date") == on(5), pl.col("code") == "S3")
    raw = pl.concat([market(), again, again])
    valid, quarantine = quarantine_invalid(raw)
    assert_frame_equal(valid, market())
    assert reasons(quarantine) == {"duplicate_key": 2}


def test_of_differing_bars_none_stays() -> None:
    raw = pl.concat([market(), bar(5, "S3"), bar(5, "S3", close=10.6)])
    valid, quarantine = quarantine_invalid(raw)
    assert_frame_equal(valid, without(market(), 5, "S3"))
    assert reasons(quarantine) == {"conflicting_duplicate": 3}


def test_a_repeat_that_fails_by_itself_does_not_harm_the_good_bar() -> None:
    raw = pl.concat([bar(5, "S3", volume=0.0, close=8.0), market()])
    valid, quarantine = quarantine_invalid(raw)
    assert_frame_equal(valid, market())
    assert reasons(quarantine) == {"zero_volume": 1}


def test_a_date_with_few_stocks_is_off_the_calendar() -> None:
    day = on(8)
    few = pl.col("code").is_in(["S0", "S1"])
    valid, quarantine = quarantine_invalid(market().filter((pl.col("date") != day) | few))
    assert reasons(quarantine) == {"sparse_date": 2}
    assert day not in valid["date"]
    half = few | (pl.col("code") == "S2")  # three of six are enough
    assert quarantine_invalid(market().filter((pl.col("date") != day) | half))[1].is_empty()


def test_a_date_of_mostly_broken_bars_is_not_believed_for_the_rest() -> None:
    day = on(8)
    broken = (pl.col("date") == day) & ~pl.col("code").is_in(["S0", "S1"])
    raw = market().with_columns(open=pl.when(broken).then(20.0).otherwise("open"))
    valid, quarantine = quarantine_invalid(raw)
    assert reasons(quarantine) == {"open_outside_range": 4, "sparse_date": 2}
    assert day not in valid["date"]


def test_a_market_that_shrinks_for_good_is_believed_again() -> None:
    late = pl.col("date") >= on(10)
    raw = market(20).filter(~late | (pl.col("code") == "S0"))
    rules = ValidityRules(sparse_date_window=6)
    valid, quarantine = quarantine_invalid(raw, rules)
    assert reasons(quarantine) == {"sparse_date": 4}  # until most of the window is new
    assert valid["date"].max() == on(19)


def test_a_bar_on_a_closed_weekday_is_off_the_calendar() -> None:
    saturday = market().with_columns(pl.col("date").replace(on(4), on(4) + DAY))
    valid, quarantine = quarantine_invalid(saturday)
    assert reasons(quarantine) == {"off_calendar": 6}
    assert valid["date"].dt.weekday().max() == 5
    every_day = ValidityRules(closed_weekdays=())
    assert quarantine_invalid(saturday, every_day)[1].is_empty()


def test_a_bar_that_repeats_itself_is_stale_from_its_third_day() -> None:
    volumes = [5.0, 7.0, 7.0, 7.0, 7.0, 8.0, 7.0, 7.0]
    raw = stock([10.0] * 8, volume=volumes)
    _, quarantine = quarantine_invalid(raw)
    assert reasons(quarantine) == {"stale_bar": 2}
    assert quarantine["date"].to_list() == [on(3), on(4)]
    other = raw.with_columns(code=pl.lit("B"))  # a run does not go on from one stock to the next
    assert quarantine_invalid(pl.concat([raw, other]))[1].height == 4


def test_a_bar_that_repeats_a_days_range_is_stale_at_once() -> None:
    raw = stock([10.0] * 4, volume=[7.0] * 4, high=[10.0, 11.0, 11.0, 10.0])
    _, quarantine = quarantine_invalid(raw)
    assert quarantine.select("date", "reason").rows() == [(on(2), "stale_bar")]


def test_a_price_that_stands_still_on_changing_volume_is_not_stale() -> None:
    assert quarantine_invalid(stock([10.0] * 30))[1].is_empty()


@pytest.mark.parametrize(
    ("closes", "held_back"),
    [
        ([10, 10, 101, 10, 10], [2]),  # wrong for a day
        ([10, 10, 101, 101, 101], [2]),  # a new level: the second bar confirms it
        ([10, 10, 101, 10, 101, 10], [2]),  # the week's highest close counts, held back or not
        ([10, 10, 1, 10, 10], []),  # the way back from a price too low is no jump
        ([10, 10, 1, 1, 1, 10, 10], []),
        ([10, 10, 0.5, 0.5], []),  # a crash is kept: it may be the last bar
        ([10, 10, 99, 10], []),
        ([101, 10, 10], []),  # nothing is known before the first bar
        ([10, 101], [1]),
    ],
)
def test_a_tenfold_rise_is_held_back_until_the_next_bar_agrees(
    closes: list[float], held_back: list[int]
) -> None:
    valid, quarantine = quarantine_invalid(stock([float(close) for close in closes]))
    assert quarantine["date"].to_list() == [on(day) for day in held_back]
    assert set(quarantine["reason"]) <= {"unconfirmed_jump"}
    assert valid.height == len(closes) - len(held_back)


def test_a_recorded_reverse_split_is_no_jump() -> None:
    closes, factors = [1.0, 1.0, 50.0, 50.0], [1.0, 1.0, 50.0, 1.0]
    assert quarantine_invalid(stock(closes, adjustment_factor=factors))[1].is_empty()
    halted = stock(closes, adjustment_factor=factors, volume=[9.0, 8.0, 0.0, 7.0])
    assert reasons(quarantine_invalid(halted)[1]) == {"zero_volume": 1}


def test_every_reason_has_a_limit_and_every_limit_a_reason() -> None:
    assert sorted(REASONS) == sorted(dataclasses.asdict(QuarantineLimits()))


def test_limit_flags_travel_with_the_bar() -> None:
    raw = market(4, 1).with_columns(
        limit_up=pl.Series([True, False, None, True]), limit_down=pl.lit(None, pl.Boolean)
    )
    raw = raw.with_columns(volume=pl.Series([1.0, 2.0, 3.0, 0.0]))
    schemas.RAW_PRICES.validate(raw, lazy=True)
    valid, quarantine = quarantine_invalid(raw)
    schemas.QUARANTINE.validate(quarantine, lazy=True)
    prices = split_adjust(valid, quarantine)
    schemas.PRICES.validate(prices, lazy=True)
    assert prices["limit_up"].to_list() == [True, False, None]


def test_quarantine_by_month_has_every_reason_in_every_month() -> None:
    raw = pl.concat([market(40, 2), bar(50, "S0", volume=0.0), bar(50, "S1", close=99.0)])
    raw = raw.with_columns(volume=pl.when(pl.col("date") == on(0)).then(0.0).otherwise("volume"))
    months = quarantine_by_month(raw, quarantine_invalid(raw)[1])
    january, february, march = (date(2024, month, 1) for month in (1, 2, 3))
    by_key = {(month, reason): (rows, share) for month, reason, rows, share in months.rows()}
    assert by_key == {
        (january, "zero_volume"): (2, 2 / 46), (january, "close_outside_range"): (0, 0.0),
        (february, "zero_volume"): (0, 0.0), (february, "close_outside_range"): (0, 0.0),
        (march, "zero_volume"): (1, 0.5), (march, "close_outside_range"): (1, 0.5),
    }  # fmt: skip


def dirty(seed: int) -> pl.DataFrame:
    """A market with a tenth of its values broken in every way, and repeats, in random order."""
    raw = market(30, 8).with_columns(date=pl.col("date").replace(on(14), on(14) + DAY))
    raw = raw.with_columns(
        volume=pl.when(pl.int_range(pl.len()) % 30 // 4 == 3).then(7.0).otherwise("volume")
    )  # three to four days in a row with the same bar
    spike = pl.int_range(pl.len()).shuffle(seed) < 10
    raw = raw.with_columns(
        pl.when(spike).then(pl.col(name) * 30).otherwise(name)
        for name in ("open", "high", "low", "close")
    )
    for number, (name, value) in enumerate(
        [("close", None), ("open", NAN), ("volume", 0.0), ("high", 1.0), ("close", 12.0)]
    ):
        hit = pl.int_range(pl.len()).shuffle(seed * 10 + number) < raw.height // 50
        raw = raw.with_columns(pl.when(hit).then(pl.lit(value)).otherwise(pl.col(name)).alias(name))
    repeats = raw.sample(10, seed=seed)
    others = raw.sample(10, seed=seed + 1).with_columns(pl.col("volume") + 1)
    return pl.concat([raw, repeats, others]).sample(fraction=1.0, shuffle=True, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_every_row_lands_exactly_once(seed: int) -> None:
    raw = dirty(seed).with_row_index("row")
    valid, quarantine = quarantine_invalid(raw)
    assert sorted([*valid["row"], *quarantine["row"]]) == list(range(raw.height))
    assert quarantine["reason"].null_count() == 0
    found = set(quarantine["reason"])
    assert {"off_calendar", "stale_bar", "unconfirmed_jump"} <= found <= set(REASONS)
    assert len(found) >= 8
    assert not valid.select("date", "code").is_duplicated().any()


@pytest.mark.parametrize("seed", range(5))
def test_later_rows_do_not_change_what_was_decided(seed: int) -> None:
    raw = dirty(seed)
    past = pl.col("date") <= on(17)
    for whole, cut in zip(
        quarantine_invalid(raw), quarantine_invalid(raw.filter(past)), strict=True
    ):
        assert_frame_equal(whole.filter(past), cut)


def test_a_lost_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariant fires when a stage loses rows."""
    sort = pl.DataFrame.sort
    monkeypatch.setattr(pl.DataFrame, "sort", lambda *a, **k: sort(*a, **k).head(5))
    with pytest.raises(AssertionError, match="a row was lost or doubled"):
        quarantine_invalid(market())


def test_no_rows_at_all() -> None:
    valid, quarantine = quarantine_invalid(market().clear())
    assert valid.is_empty()
    assert quarantine.columns == [*market().columns, "reason"]
