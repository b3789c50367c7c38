"""Each check of prices and trading_universe is seen to fail."""

import dataclasses
from datetime import date, timedelta

import polars as pl
import pytest

from atft_pipeline.checks.prices import (
    PricesGate,
    QuarantineLimits,
    keys_unique,
    quarantined_share,
    reasons_within_limits,
    rows_within_stocks_times_dates,
    suspect_moves_within_limit,
    universe_is_wide,
)
from atft_pipeline.transforms.suspect_moves import KINDS

START = date(2024, 1, 1)


def table(days: int = 5, stocks: int = 4) -> pl.DataFrame:
    dates = pl.DataFrame({"date": [START + timedelta(days=day) for day in range(days)]})
    codes = pl.DataFrame({"code": [f"S{stock}" for stock in range(stocks)]})
    return dates.join(codes, how="cross")


def rejected(**rows: int) -> pl.DataFrame:
    reasons = [reason for reason, count in rows.items() for _ in range(count)]
    return pl.DataFrame({"reason": reasons}, schema={"reason": pl.String})


def moves(**kinds: int) -> pl.DataFrame:
    names = [kind for kind, count in kinds.items() for _ in range(count)]
    return pl.DataFrame({"kind": names}, schema={"kind": pl.String}).with_columns(
        date=pl.lit(START), code=pl.lit("A"), move=pl.lit(4.0)
    )


def test_a_broken_delivery_is_noticed_by_its_share():
    gate = PricesGate(max_quarantined_share=0.05)
    assert quarantined_share(100, rejected(zero_volume=5), gate).passed
    outcome = quarantined_share(100, rejected(zero_volume=4, off_calendar=2), gate)
    assert outcome.stops
    assert outcome.figure == "6 of 100 rows (6.00%)"
    assert outcome.numbers["rows/off_calendar"] == 2


@pytest.mark.parametrize("reason", dataclasses.asdict(QuarantineLimits()))
def test_each_reason_has_its_own_limit(reason):
    limits = QuarantineLimits()
    allowed = int(getattr(limits, reason) * 100_000)
    assert reasons_within_limits(100_000, rejected(**{reason: allowed}), limits).passed
    over = rejected(**{reason: allowed + 1})
    outcome = reasons_within_limits(100_000, over, limits, picture="![since when](x)")
    assert outcome.stops
    assert outcome.figure.startswith(f"{reason} ")
    assert outcome.numbers["reasons_over_limit"] == 1
    assert "![since when](x)" in str(outcome.details)


def test_an_empty_quarantine_is_within_all_limits():
    outcome = reasons_within_limits(0, rejected(), QuarantineLimits())
    assert outcome.passed
    assert outcome.figure == "no row in quarantine"


def test_a_reason_without_a_limit_is_a_bug():
    with pytest.raises(KeyError, match="new_rule"):
        reasons_within_limits(100, rejected(new_rule=1), QuarantineLimits())


def test_a_file_without_split_factors_is_noticed():
    gate = PricesGate(max_suspect_move_share=5e-5, always_allowed_moves=10)
    assert suspect_moves_within_limit(1_000_000, moves(unrecorded_split=50), gate).passed
    outcome = suspect_moves_within_limit(1_000_000, moves(unrecorded_split=50, reverted=1), gate)
    assert outcome.stops
    assert outcome.figure == "51 of 1,000,000 bars, 1 reverted, 50 unrecorded_split"
    assert KINDS["unrecorded_split"] in str(outcome.details)
    assert suspect_moves_within_limit(1_000, moves(unexplained=10), gate).passed
    assert suspect_moves_within_limit(1_000, moves(unexplained=11), gate).stops


def test_a_repeated_key_is_noticed():
    assert keys_unique(table()).passed
    outcome = keys_unique(pl.concat([table(), table().head(2)]))
    assert outcome.stops
    assert outcome.numbers == {"repeated_keys": 2}
    assert "S0" in str(outcome.details)


def test_a_doubled_table_has_more_rows_than_stocks_times_dates():
    assert rows_within_stocks_times_dates(table(), table()).passed
    outcome = rows_within_stocks_times_dates(pl.concat([table(), table()]), table())
    assert outcome.stops
    assert outcome.figure == "40 rows, 4 stocks × 5 dates"


def test_a_member_without_a_bar_is_noticed():
    sparse = table().filter(pl.int_range(pl.len()) % 3 == 0)
    assert rows_within_stocks_times_dates(sparse, table()).passed
    outcome = rows_within_stocks_times_dates(table().head(6), sparse)
    assert outcome.stops
    assert outcome.numbers["foreign_rows"] == 4


def test_a_narrow_universe_is_noticed():
    assert universe_is_wide(table(), 4).passed
    assert universe_is_wide(table(), 5).stops
    assert universe_is_wide(table().clear(), 1).stops
