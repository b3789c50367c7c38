"""Sector series and the rule on small sectors."""

import datetime as dt

import polars as pl
import pytest

from atft_pipeline.transforms.sector import (
    has_enough_members,
    sector_series,
    where_enough_members,
)

FIRST, SECOND = dt.date(2024, 1, 1), dt.date(2024, 1, 2)


def test_members_are_those_with_a_bar_and_unknown_sectors_count_nowhere() -> None:
    bars = pl.DataFrame(
        {
            "date": [FIRST, SECOND, SECOND, FIRST, SECOND],
            "code": ["A", "A", "B", "C", "C"],
            "sector": ["x", "x", "x", None, None],
            "return_1d": [None, 0.2, None, None, 0.5],
        },
        schema_overrides={"sector": pl.String},
    )
    series = sector_series(bars)
    assert series["sector"].to_list() == ["x", "x"]
    assert series["members"].to_list() == [1, 2]
    assert series["return_1d"].to_list() == [None, 0.2]
    assert series["level"].to_list() == pytest.approx([1.0, 1.2])


def test_a_small_sector_is_null_and_marked() -> None:
    frame = pl.DataFrame({"members": [4, 5, None]}).with_columns(value=pl.lit(0.3))
    members = pl.col("members")
    gated = frame.select(x=where_enough_members(pl.col("value"), members))["x"].to_list()
    assert gated == [None, 0.3, None]
    assert frame.select(x=has_enough_members(members))["x"].to_list() == [0.0, 1.0, 0.0]
