"""Edges of the indicators; their values are tested feature by feature."""

import polars as pl
import pytest

from atft_pipeline.transforms.indicators import (
    average_change,
    average_move,
    band_mean,
    band_std,
    bollinger_position,
    exponential_average,
    relative_strength_index,
    stochastic_k,
)
from atft_pipeline.transforms.windows import window_max, window_min

PRICE = pl.col("price")
POSITION = bollinger_position(PRICE, band_mean(PRICE), band_std(PRICE))


def _apply(expression: pl.Expr, price: list[float]) -> list[float | None]:
    bars = pl.DataFrame({"price": price}).with_columns(bar=pl.int_range(1, pl.len() + 1))
    return bars.select(x=expression)["x"].to_list()


def test_exponential_average_starts_on_the_first_price_and_shows_after_its_span() -> None:
    assert _apply(exponential_average(PRICE, 3), [8.0, 4.0, 2.0, 2.0]) == [None, None, 4.0, 3.0]


def test_rsi_reaches_its_ends_and_is_null_where_nothing_moved() -> None:
    rsi = relative_strength_index(average_change(PRICE, 2), average_move(PRICE, 2))
    assert _apply(rsi, [1.0, 2.0, 3.0, 4.0]) == [None, None, 100.0, 100.0]
    assert _apply(rsi, [4.0, 3.0, 2.0, 1.0]) == [None, None, 0.0, 0.0]
    assert _apply(rsi, [3.0] * 4) == [None] * 4


def test_rsi_by_hand() -> None:
    """Gains 2, 0, 1 and losses 0, 1, 0, halved each bar: 1.0 and 0.5, then 1.0 and 0.25."""
    rsi = relative_strength_index(average_change(PRICE, 2), average_move(PRICE, 2))
    values = _apply(rsi, [10.0, 12.0, 11.0, 12.0])
    assert values[2:] == pytest.approx([100 * 1 / 1.5, 100 * 1 / 1.25])


def test_bands_and_ranges_of_a_still_price_are_null() -> None:
    still = [7.0] * 25
    assert _apply(POSITION, still) == [None] * 25
    assert (
        _apply(stochastic_k(PRICE, window_min(PRICE, 14), window_max(PRICE, 14)), still)
        == [None] * 25
    )


def test_bands_after_a_large_price_are_not_its_rounding() -> None:
    """A window that the large price has left is as still as if it had never been."""
    values = _apply(POSITION, [1e9] + [0.1] * 30)
    assert values[20:] == [None] * 11
