"""Each kind of strange move is named, on the day on which it is known, and no other move is."""

from datetime import date, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_pipeline import schemas
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.suspect_moves import KINDS, MoveRules, suspect_moves
from atft_pipeline.transforms.validity import quarantine_invalid

START = date(2024, 1, 1)


def raw_bars(
    closes: list[float], factors: dict[int, float] | None = None, code: str = "A"
) -> pl.DataFrame:
    """Bars whose day ranges from close to close 2 % lower; day -> factor."""
    close = pl.Series(closes)
    return pl.DataFrame(
        {
            "date": [START + timedelta(days=i) for i in range(len(closes))],
            "code": code,
            "open": close * 0.99,
            "high": close,
            "low": close * 0.98,
            "close": close,
            "volume": 1000.0,
            "turnover": None,
            "adjustment_factor": [(factors or {}).get(i, 1.0) for i in range(len(closes))],
        },
        schema_overrides={"turnover": pl.Float64},
    )


def kinds(raw: pl.DataFrame) -> dict[int, str]:
    moves = suspect_moves(split_adjust(raw))
    schemas.SUSPECT_MOVES.validate(moves, lazy=True)
    return {(day - START).days: kind for day, kind in moves.select("date", "kind").rows()}


@pytest.mark.parametrize(
    ("closes", "factors", "expected"),
    [
        ([10, 11, 10, 25, 24], {}, {}),
        ([10, 10, 27, 26], {}, {}),  # below the factor and no split's ratio
        ([10, 10, 36, 35], {}, {2: "unexplained"}),
        ([10, 10, 2.8, 2.7], {}, {2: "unexplained"}),
        ([10, 10, 36, 10, 10], {}, {2: "unexplained", 3: "reverted"}),
        ([10, 10, 2.8, 11, 10], {}, {2: "unexplained", 3: "reverted"}),
        ([10, 10, 5.1, 5.0], {}, {2: "unrecorded_split"}),
        ([10, 10, 3.4, 3.3], {}, {2: "unrecorded_split"}),
        ([1, 1, 10.1, 10], {}, {2: "unrecorded_split"}),
        ([10, 10, 6.7, 6.6], {}, {}),  # 3:2 looks like bad news
        ([10, 10, 5.1, 5.0], {2: 0.5}, {}),  # recorded
        ([1, 1, 20, 20], {2: 20.0}, {}),
        ([10, 10, 10.1, 10], {2: 0.5}, {2: "recorded_split_not_seen"}),
        ([10, 10, 10.1, 10], {2: 0.2}, {2: "recorded_split_not_seen"}),
        ([10, 10, 10.1, 10], {2: 0.9}, {}),  # a stock dividend; the day's move may hide it
        ([10, 10, 1.0, 1.0], {2: 0.5}, {2: "unexplained"}),  # recorded, and then a crash
    ],
)
def test_each_kind_of_move(
    closes: list[float], factors: dict[int, float], expected: dict[int, str]
) -> None:
    assert kinds(raw_bars([float(close) for close in closes], factors)) == expected


def test_a_violent_day_at_a_splits_ratio_is_news() -> None:
    raw = raw_bars([10.0, 10.0, 5.0, 5.0])
    violent = raw.with_columns(high=pl.when(pl.col("close") == 5.0).then(5.9).otherwise("high"))
    assert kinds(raw) == {2: "unrecorded_split"}
    assert kinds(violent) == {}


def test_a_move_after_a_long_halt_is_that_of_a_gap() -> None:
    others = raw_bars([5.0] * 60, code="B")
    halted = raw_bars([10.0] * 10 + [40.0] * 50)
    for gap, kind in ((21, "after_gap"), (20, "unrecorded_split")):
        resumed = halted.with_row_index("day").filter(
            (pl.col("day") < 10) | (pl.col("day") >= 9 + gap)
        )
        assert kinds(pl.concat([resumed.drop("day"), others])) == {9 + gap: kind}


def test_a_recorded_split_on_a_quarantined_day_still_explains() -> None:
    raw = raw_bars([10.0, 10.0, 5.0, 5.0], {2: 0.5})
    halted = pl.col("date") == START + timedelta(days=2)
    raw = raw.with_columns(volume=pl.when(halted).then(0.0).otherwise(1000.0 + pl.int_range(4)))
    valid, quarantine = quarantine_invalid(raw)
    assert valid.height == 3
    assert suspect_moves(split_adjust(valid, quarantine)).is_empty()


def test_stocks_are_not_compared_with_each_other() -> None:
    both = pl.concat([raw_bars([10.0] * 3), raw_bars([900.0] * 3, code="B")])
    assert kinds(both) == {}


def test_the_threshold_is_config() -> None:
    prices = split_adjust(raw_bars([10.0, 18.0, 18.0]))
    assert suspect_moves(prices).is_empty()
    assert suspect_moves(prices, MoveRules(move_factor=1.5))["kind"].to_list() == ["unexplained"]


def test_the_built_in_market_explains_itself() -> None:
    raw = SyntheticMarket(SyntheticConfig(stocks=60, dates=400)).raw_prices()
    assert raw.filter(pl.col("adjustment_factor") != 1.0).height > 0
    valid, quarantine = quarantine_invalid(raw)
    assert suspect_moves(split_adjust(valid, quarantine)).is_empty()
    unrecorded = raw.with_columns(adjustment_factor=pl.lit(1.0))
    valid, quarantine = quarantine_invalid(unrecorded)
    found = suspect_moves(split_adjust(valid, quarantine))
    assert "unrecorded_split" in set(found["kind"]) <= set(KINDS)


def test_later_bars_do_not_change_what_a_move_was_called() -> None:
    prices = split_adjust(raw_bars([10.0, 36.0, 10.0, 10.0, 5.0, 50.0, 5.0], {6: 0.5}))
    whole = suspect_moves(prices)
    assert whole.height >= 4
    for day in range(1, 7):
        past = pl.col("date") <= START + timedelta(days=day)
        assert_frame_equal(suspect_moves(prices.filter(past)), whole.filter(past))
