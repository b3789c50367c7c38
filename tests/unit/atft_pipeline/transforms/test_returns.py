"""Edges of the return expressions; their values are tested feature by feature."""

import math

import polars as pl
import pytest

from atft_pipeline.transforms.returns import (
    parkinson_volatility,
    ratio,
    simple_return,
    trailing_z_score,
)


def _apply(expression: pl.Expr, **columns: list[float | None]) -> list[float | None]:
    bars = pl.DataFrame(columns).with_columns(bar=pl.int_range(1, pl.len() + 1))
    return bars.select(x=expression)["x"].to_list()


def test_ratio_is_null_at_zero_and_at_the_floor() -> None:
    values = _apply(
        ratio(pl.col("a"), pl.col("b")), a=[1.0, 0.0, 1.0, None], b=[0.0, 0.0, 4.0, 1.0]
    )
    assert values == [None, None, 0.25, None]
    floored = _apply(ratio(pl.lit(1.0), pl.col("b"), floor=0.5), b=[0.5, -0.4, -2.0])
    assert floored == [None, None, -0.5]


def test_simple_return_spans_its_own_bars() -> None:
    assert _apply(simple_return(pl.col("p"), 2), p=[1.0, 5.0, 3.0, 10.0]) == [None, None, 2.0, 1.0]


def test_parkinson_of_a_constant_range() -> None:
    values = _apply(parkinson_volatility(pl.col("h"), pl.col("l"), 2), h=[math.e] * 3, l=[1.0] * 3)
    assert values[0] is None
    assert values[1:] == pytest.approx([1 / math.sqrt(4 * math.log(2))] * 2)


def test_z_score_of_a_constant_is_null() -> None:
    values = _apply(trailing_z_score(pl.col("x"), 3, 2), x=[2.0, 2.0, 2.0, 3.0])
    assert values[:3] == [None, None, None]
    assert values[3] == pytest.approx((3 - 7 / 3) / math.sqrt(1 / 3))
