"""Edges of the liquidity expressions."""

import polars as pl

from atft_pipeline.transforms.liquidity import turnover_rate, volume_ratio


def test_volume_ratio_waits_for_its_window_and_is_null_without_volume() -> None:
    volume = pl.DataFrame({"bar": [1, 2, 3, 4], "volume": [1.0, 3.0, 0.0, 0.0]})
    ratio = volume.select(x=volume_ratio(pl.col("volume"), 2))["x"].to_list()
    assert ratio == [None, 1.5, 0.0, None]


def test_turnover_rate_counts_raw_shares() -> None:
    """Across a 2:1 split, 1,000 currency units are 10 shares at 100 and 20 shares at 50."""
    bars = pl.DataFrame(
        {
            "turnover": [1000.0, 1000.0, 1000.0],
            "raw_close": [100.0, 50.0, 50.0],
            "shares": [200.0, 200.0, 0.0],
        }
    )
    rate = turnover_rate(pl.col("turnover"), pl.col("raw_close"), pl.col("shares"))
    assert bars.select(x=rate)["x"].to_list() == [0.05, 0.1, None]
