"""Every rule is seen to take its bar, and no row is lost."""

from datetime import date, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_pipeline import schemas
from atft_pipeline.transforms.validity import ValidityRules, quarantine_invalid

START = date(2024, 1, 1)
GOOD = {
    "open": 10.0,
    "high": 11.0,
    "low": 9.0,
    "close": 10.5,
    "volume": 1000.0,
    "turnover": None,
    "adjustment_factor": 1.0,
}


def market(days: int = 10, stocks: int = 6) -> pl.DataFrame:
    """Flat good bars, sorted by (code, date)."""
    dates = pl.DataFrame({"date": [START + timedelta(days=day) for day in range(days)]})
    codes = pl.DataFrame({"code": [f"S{stock}" for stock in range(stocks)]})
    keys = codes.join(dates, how="cross").select("date", "code")
    return keys.with_columns(
        pl.lit(value, dtype=pl.Float64).alias(name) for name, value in GOOD.items()
    )


def bar(day: int, code: str, **values: float | None) -> pl.DataFrame:
    row = {"date": START + timedelta(days=day), "code": code, **GOOD, **values}
    return pl.DataFrame([row], schema=market(1, 1).schema)


def without(frame: pl.DataFrame, day: int, code: str) -> pl.DataFrame:
    here = (pl.col("date") == START + timedelta(days=day)) & (pl.col("code") == code)
    return frame.filter(~here)


def reasons(quarantine: pl.DataFrame) -> dict[str, int]:
    return dict(quarantine["reason"].value_counts().iter_rows())


NAN, INF = float("nan"), float("inf")


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
        # a day without a trade as vendors write it: the missing trade is the reason, not the zeros
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
    raw = pl.concat([market(5), bar(5, "S0", turnover=0.0), bar(6, "S0", turnover=NAN)])
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
    raw = pl.concat([market(), bar(5, "S3"), bar(5, "S3")])
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
    day = START + timedelta(days=8)
    few = pl.col("code").is_in(["S0", "S1"])
    valid, quarantine = quarantine_invalid(market().filter((pl.col("date") != day) | few))
    assert reasons(quarantine) == {"sparse_date": 2}
    assert day not in valid["date"]
    half = few | (pl.col("code") == "S2")  # three of six are enough
    assert quarantine_invalid(market().filter((pl.col("date") != day) | half))[1].is_empty()


def test_a_date_of_mostly_broken_bars_is_not_believed_for_the_rest() -> None:
    day = START + timedelta(days=8)
    broken = (pl.col("date") == day) & ~pl.col("code").is_in(["S0", "S1"])
    raw = market().with_columns(open=pl.when(broken).then(20.0).otherwise("open"))
    valid, quarantine = quarantine_invalid(raw)
    assert reasons(quarantine) == {"open_outside_range": 4, "sparse_date": 2}
    assert day not in valid["date"]


def test_a_market_that_shrinks_for_good_is_believed_again() -> None:
    late = pl.col("date") >= START + timedelta(days=10)
    raw = market(20).filter(~late | (pl.col("code") == "S0"))
    rules = ValidityRules(sparse_date_window=6)
    valid, quarantine = quarantine_invalid(raw, rules)
    assert reasons(quarantine) == {"sparse_date": 4}  # until most of the window is new
    assert valid["date"].max() == START + timedelta(days=19)


def dirty(seed: int) -> pl.DataFrame:
    """A market with a tenth of its values broken in every way, and repeats, in random order."""
    raw = market(30, 8)
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
    assert quarantine["reason"].n_unique() >= 5
    assert not valid.select("date", "code").is_duplicated().any()


@pytest.mark.parametrize("seed", range(5))
def test_later_rows_do_not_change_what_was_decided(seed: int) -> None:
    raw = dirty(seed)
    past = pl.col("date") <= START + timedelta(days=17)
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
