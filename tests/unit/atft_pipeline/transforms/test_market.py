"""The market series, and a stock's relation to it at the edges."""

import datetime as dt

import polars as pl
import pytest

from atft_pipeline.transforms.market import (
    beta,
    drawdown_from_peak,
    idiosyncratic_share,
    index_name,
    market_series,
)

DAYS = [dt.date(2024, 1, day) for day in range(1, 31)]

NO_INDEX = pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64})

BARS = pl.DataFrame(
    {
        "date": [DAYS[0], DAYS[1], DAYS[2], DAYS[1], DAYS[2]],
        "code": ["A", "A", "A", "B", "B"],
        "return_1d": [None, 0.1, 0.2, None, 0.0],
    }
)


def test_the_derived_market_is_the_equal_weighted_mean() -> None:
    market = market_series(BARS, NO_INDEX)
    assert market["date"].to_list() == DAYS[:3]
    assert market["return_1d"].to_list() == [None, 0.1, pytest.approx(0.1)]
    assert market["level"].to_list() == pytest.approx([1.0, 1.1, 1.21])


def test_the_index_is_the_first_name_on_the_earliest_date() -> None:
    """A name that sorts first but starts later does not take over."""
    indices = pl.DataFrame(
        {
            "date": [DAYS[1], DAYS[1], DAYS[0], DAYS[0]],
            "index": ["ALL", "TOPIX", "TOPIX", "ZETA"],
            "close": [5.0, 110.0, 100.0, 1.0],
        }
    )
    assert index_name(indices) == "TOPIX"
    assert index_name(NO_INDEX) is None
    market = market_series(BARS, indices)
    assert market["level"].to_list() == [100.0, 110.0]
    assert market["return_1d"].to_list() == [None, pytest.approx(0.1)]


def test_drawdown_looks_back_one_year_only() -> None:
    level = pl.DataFrame({"bar": range(1, 302), "level": [200.0] + [100.0] * 300})
    fall = level.select(x=drawdown_from_peak(pl.col("level")))["x"]
    assert fall.null_count() == 59
    assert fall[251] == -0.5
    assert fall[252] == 0.0


def _relation(stock: list[float], market: list[float | None], expression: pl.Expr) -> pl.Series:
    bars = pl.DataFrame({"bar": range(1, len(stock) + 1), "r": stock, "m": market})
    return bars.select(x=expression)["x"]


def test_a_stock_that_is_the_market_twice_has_beta_two_and_nothing_of_its_own() -> None:
    market = [0.01 * (-1) ** day + 0.0001 * day for day in range(70)]
    stock = [2 * value for value in market]
    r, m = pl.col("r"), pl.col("m")
    assert _relation(stock, market, beta(r, m))[59:].to_list() == pytest.approx([2.0] * 11)
    share = _relation(stock, market, idiosyncratic_share(r, m))[59:].to_list()
    assert share == pytest.approx([0.0] * 11, abs=1e-6)


def test_beta_is_null_on_a_still_market_and_where_a_pair_is_missing() -> None:
    stock = [0.01 * (-1) ** day for day in range(130)]
    r, m = pl.col("r"), pl.col("m")
    assert _relation(stock, [0.0] * 130, beta(r, m)).null_count() == 130
    holed: list[float | None] = [-value for value in stock]
    holed[65] = None
    values = _relation(stock, holed, beta(r, m))
    assert values.is_null().to_list() == [day < 59 or 65 <= day < 125 for day in range(130)]
