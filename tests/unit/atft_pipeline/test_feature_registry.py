"""The registry's contract and what it refuses."""

from dataclasses import replace

import polars as pl
import pytest

from atft_pipeline.feature_registry import (
    CORE,
    EXTRA,
    MASKS,
    REGISTRY,
    available_features,
    build_registry,
    unmet_needs,
)

CONTRACT = """
returns_1d, returns_5d, log_returns_1d, volatility_5d, volatility_20d, ema_5, ema_20, ema_200,
ma_gap_5_20, price_to_sma20, bb_position, bb_width, volume_ratio_5, volume_ratio_20, turnover_rate,
mkt_ret_1d, mkt_ret_5d, mkt_gap_5_20, mkt_vol_20d, mkt_bull_200, mkt_high_vol, mkt_ret_1d_z,
mkt_dd_from_peak, beta_60d, alpha_1d, alpha_5d, rel_strength_5d, idio_vol_ratio, trend_align_mkt,
sec_mom_20, sec_ret_5d_eq, sec_vol_20_z, sec_gap_5_20,
returns_10d, returns_20d, volatility_10d, volatility_60d, price_to_sma5, price_to_sma60,
close_to_high, close_to_low, realized_volatility, mkt_bb_bw, mkt_bb_pct_b, mkt_ret_10d, mkt_ret_20d,
mkt_ema20_slope_3, beta_stability_60d, rsi_2, rsi_14, macd_histogram, stoch_k, alpha_vs_sec_1d,
is_valid_ma, is_sec_cs_valid
"""


def test_names_and_order_are_the_contract() -> None:
    names = [name.strip() for name in CONTRACT.split(",")]
    assert [feature.name for feature in REGISTRY] == names
    assert (len(CORE), len(EXTRA), len(MASKS)) == (33, 20, 2)


def test_a_market_wide_value_under_a_per_date_score_is_refused() -> None:
    market = next(feature for feature in REGISTRY if feature.name == "mkt_ret_1d")
    with pytest.raises(ValueError, match=r"feature 'mkt_ret_1d': a market-wide value .* zero"):
        replace(market, normalizer="cross_section")
    assert all(f.normalizer != "cross_section" for f in REGISTRY if f.scope == "market")


@pytest.mark.parametrize("lookback", [0, -5])
def test_a_lookback_below_one_is_refused(lookback: int) -> None:
    with pytest.raises(ValueError, match=f"feature 'returns_1d': lookback is {lookback}"):
        replace(REGISTRY[0], lookback=lookback)


def test_a_name_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'returns_1d' is declared twice"):
        build_registry(CORE, [REGISTRY[0]])


def test_flags_and_masks_are_left_as_they_are() -> None:
    untouched = {feature.name for feature in REGISTRY if feature.normalizer == "none"}
    flags = {"mkt_bull_200", "mkt_high_vol", "trend_align_mkt", "is_valid_ma", "is_sec_cs_valid"}
    assert untouched == flags


def test_features_without_their_source_are_left_out_with_the_reason() -> None:
    kept, left_out = available_features({"listings.sector", "listings.shares_outstanding"})
    assert left_out["turnover_rate"] == "the source has no listings.shares_outstanding"
    assert set(left_out) == {
        "turnover_rate",
        "sec_mom_20",
        "sec_ret_5d_eq",
        "sec_vol_20_z",
        "sec_gap_5_20",
        "alpha_vs_sec_1d",
        "is_sec_cs_valid",
    }
    assert [f.name for f in kept] == [f.name for f in REGISTRY if f.name not in left_out]
    assert available_features(set()) == (REGISTRY, {})


def test_needs_are_unmet_by_absent_tables_absent_columns_and_empty_columns() -> None:
    prices = pl.DataFrame(
        {name: [1.0] for name in ("high", "low", "close", "volume", "turnover", "raw_close")}
    )
    listings = pl.DataFrame({"sector": ["a", None], "shares_outstanding": [None, None]})
    tables = {"prices": prices, "listings": listings}
    assert unmet_needs(tables) == {"listings.shares_outstanding"}
    assert unmet_needs({"prices": prices}) == {"listings.sector", "listings.shares_outstanding"}
    assert unmet_needs(tables | {"prices": prices.drop("volume")}) == {
        "listings.shares_outstanding",
        "prices.volume",
    }
