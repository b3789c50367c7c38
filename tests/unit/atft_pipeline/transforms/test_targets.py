"""Forward returns against a slow loop; an off-by-one and a row shift are seen to differ."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_pipeline import schemas
from atft_pipeline.transforms.targets import HORIZONS, forward_returns

START = date(2024, 1, 1)


def prices(days: int = 50, stocks: int = 5, seed: int = 7) -> pl.DataFrame:
    """Random walks on weekdays with a late listing, a delisting and one bar in ten missing."""
    rng = np.random.default_rng(seed)
    weekdays = [d for i in range(2 * days) if (d := START + timedelta(days=i)).weekday() < 5][:days]
    rows = []
    for stock in range(stocks):
        close = 100 * np.exp(rng.normal(0, 0.03, days).cumsum())
        for number, when in enumerate(weekdays):
            alive = number >= 20 if stock == 1 else number < 30 if stock == 2 else True
            if stock == 0 or (alive and rng.random() > 0.1):
                rows.append({"date": when, "code": f"S{stock}", "close": close[number]})
    return pl.DataFrame(rows)


def slow_targets(bars: pl.DataFrame, lag: int = 1) -> pl.DataFrame:
    calendar = sorted(set(bars["date"]))
    close = {(row["date"], row["code"]): row["close"] for row in bars.to_dicts()}

    def at(index: int, code: str) -> float | None:
        return close.get((calendar[index], code)) if index < len(calendar) else None

    rows = []
    for when, code in sorted(close, key=lambda key: (key[1], key[0])):
        today = calendar.index(when)
        row: dict[str, object] = {"date": when, "code": code}
        for horizon in HORIZONS:
            entry, out = at(today + lag, code), at(today + lag + horizon, code)
            row[f"target_{horizon}d"] = None if entry is None or out is None else out / entry - 1
        rows.append(row)
    types = {f"target_{horizon}d": pl.Float64 for horizon in HORIZONS}
    return pl.DataFrame(rows, schema_overrides=types)


@pytest.mark.parametrize("seed", range(3))
def test_targets_equal_a_slow_loop(seed: int) -> None:
    bars = prices(seed=seed)
    targets = forward_returns(bars.sample(fraction=1, shuffle=True, seed=seed))
    schemas.TARGETS.validate(targets, lazy=True)
    assert_frame_equal(targets, slow_targets(bars), rel_tol=1e-14)


@pytest.mark.parametrize("lag", [0, 2])
def test_an_entry_one_day_off_is_caught(lag: int) -> None:
    bars = prices()
    with pytest.raises(AssertionError, match="target_1d"):
        assert_frame_equal(forward_returns(bars), slow_targets(bars, lag=lag), rel_tol=1e-14)


def test_counting_a_stocks_own_bars_is_caught() -> None:
    bars = prices().sort("code", "date")
    close = pl.col("close")
    by_rows = bars.select(
        "date",
        "code",
        *(
            (close.shift(-1 - h) / close.shift(-1) - 1).over("code").alias(f"target_{h}d")
            for h in HORIZONS
        ),
    )
    with pytest.raises(AssertionError, match="target_1d"):
        assert_frame_equal(forward_returns(bars), by_rows, rel_tol=1e-14)
    complete = bars.filter(pl.col("code") == "S0")  # the same where no bar is missing
    assert_frame_equal(forward_returns(complete), by_rows.filter(pl.col("code") == "S0"))


def test_a_missing_bar_takes_the_targets_that_need_it_and_no_others() -> None:
    bars = prices(stocks=1).filter(pl.col("code") == "S0")
    other = bars.with_columns(code=pl.lit("S9"))
    calendar = bars["date"].to_list()
    gap = 30
    targets = forward_returns(pl.concat([bars.filter(pl.col("date") != calendar[gap]), other]))
    known = targets.filter(pl.col("code") == "S0").with_columns(
        day=pl.col("date").map_elements(calendar.index, return_dtype=pl.Int64)
    )
    for horizon in HORIZONS:
        null = known.filter(pl.col(f"target_{horizon}d").is_null())["day"].to_list()
        last = set(range(len(calendar) - 1 - horizon, len(calendar)))
        assert set(null) == (last | {gap - 1, gap - 1 - horizon}) - {gap}


def test_other_horizons() -> None:
    assert forward_returns(prices(), [2]).columns == ["date", "code", "target_2d"]


def test_repeated_keys_are_refused() -> None:
    bars = prices()
    with pytest.raises(ValueError, match="is repeated; expected unique keys"):
        forward_returns(pl.concat([bars, bars.head(1)]))
