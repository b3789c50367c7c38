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

SHARES = "listings.shares_outstanding or statements.shares_outstanding"
CONTRACT = {
    "core": """
        returns_1d, returns_5d, log_returns_1d, volatility_5d, volatility_20d, ema_5, ema_20,
        ema_200, ma_gap_5_20, price_to_sma20, bb_position, bb_width, volume_ratio_5,
        volume_ratio_20, turnover_rate, mkt_ret_1d, mkt_ret_5d, mkt_gap_5_20, mkt_vol_20d,
        mkt_bull_200, mkt_high_vol, mkt_ret_1d_z, mkt_dd_from_peak, beta_60d, alpha_1d, alpha_5d,
        rel_strength_5d, idio_vol_ratio, trend_align_mkt, sec_mom_20, sec_ret_5d_eq, sec_vol_20_z,
        sec_gap_5_20, flow_foreign_net_z, flow_individual_net_z, flow_activity_z, flow_smart_idx,
        flow_smart_mom4, flow_shock_flag, flow_impulse, flow_days_since, stmt_yoy_sales,
        stmt_yoy_op, stmt_opm, stmt_progress_op, stmt_rev_fore_op, stmt_imp_statement,
        stmt_days_since_statement""",
    "extra": """
        returns_10d, returns_20d, volatility_10d, volatility_60d, price_to_sma5, price_to_sma60,
        close_to_high, close_to_low, realized_volatility, mkt_bb_bw, mkt_bb_pct_b, mkt_ret_10d,
        mkt_ret_20d, mkt_ema20_slope_3, beta_stability_60d, rsi_2, rsi_14, macd_histogram, stoch_k,
        alpha_vs_sec_1d, flow_foreign_net_ratio, flow_individual_net_ratio, flow_activity_ratio,
        flow_breadth_pos, stmt_yoy_np, stmt_npm, stmt_progress_np, stmt_rev_fore_np, stmt_roe,
        stmt_roa""",
    "masks": "is_flow_valid, is_stmt_valid, is_valid_ma, is_sec_cs_valid",
}


def test_names_and_order_are_the_contract() -> None:
    parts = {"core": CORE, "extra": EXTRA, "masks": MASKS}
    for part, features in parts.items():
        names = [name.strip() for name in CONTRACT[part].split(",")]
        assert [feature.name for feature in features] == names
    assert [len(part) for part in parts.values()] == [48, 30, 4]
    assert (*CORE, *EXTRA, *MASKS) == REGISTRY


@pytest.mark.parametrize(
    ("name", "scope"), [("mkt_ret_1d", "market"), ("flow_smart_idx", "section")]
)
def test_a_market_or_section_wide_value_under_a_per_date_score_is_refused(
    name: str, scope: str
) -> None:
    wide = next(feature for feature in REGISTRY if feature.name == name)
    with pytest.raises(ValueError, match=rf"feature '{name}': a {scope}-wide value .* zero"):
        replace(wide, normalizer="cross_section")
    assert wide.scope == scope


@pytest.mark.parametrize("lookback", [0, -5])
def test_a_lookback_below_one_is_refused(lookback: int) -> None:
    with pytest.raises(ValueError, match=f"feature 'returns_1d': lookback is {lookback}"):
        replace(REGISTRY[0], lookback=lookback)


def test_a_name_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'returns_1d' is declared twice"):
        build_registry(CORE, [REGISTRY[0]])


def test_flags_and_masks_are_left_as_they_are() -> None:
    untouched = {feature.name for feature in REGISTRY if feature.normalizer == "none"}
    flags = {"mkt_bull_200", "mkt_high_vol", "trend_align_mkt", "flow_shock_flag", "flow_impulse"}
    flags |= {"stmt_imp_statement", *(feature.name for feature in MASKS)}
    assert untouched == flags


def test_features_without_their_source_are_left_out_with_the_reason() -> None:
    kept, left_out = available_features({"listings.sector", SHARES})
    assert left_out["turnover_rate"] == f"the source has no {SHARES}"
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


def test_without_statements_and_flows_27_features_are_left_out() -> None:
    missing = {
        need
        for feature in REGISTRY
        for need in feature.needs
        if need.startswith(("statements", "investor_flows"))
    }
    kept, left_out = available_features(missing)
    assert len(left_out) == 27
    assert [f.name for f in kept] == [f.name for f in REGISTRY if f.name not in left_out]
    assert {name.split("_")[0] for name in left_out} == {"flow", "stmt", "is"}
    assert left_out["stmt_opm"] == (
        "the source has no statements.operating_profit, statements.sales"
    )
    assert left_out["is_flow_valid"].startswith("the source has no investor_flows.foreign_buy")


def test_needs_are_unmet_by_absent_tables_absent_columns_and_empty_columns() -> None:
    ours = [feature for feature in REGISTRY if feature.group not in ("flow", "statement", "mask")]
    prices = pl.DataFrame(
        {name: [1.0] for name in ("high", "low", "close", "volume", "turnover", "raw_close")}
    )
    listings = pl.DataFrame({"sector": ["a", None], "shares_outstanding": [None, None]})
    tables = {"prices": prices, "listings": listings}
    assert unmet_needs(tables, ours) == {SHARES}
    statements = pl.DataFrame({"shares_outstanding": [None, 5.0]})
    assert unmet_needs(tables | {"statements": statements}, ours) == set(), "one is enough"
    assert unmet_needs({"prices": prices}, ours) == {"listings.sector", SHARES}
    assert unmet_needs(tables | {"prices": prices.drop("volume")}, ours) == {
        SHARES,
        "prices.volume",
    }
    no_rows = {"statements": pl.DataFrame(schema={"sales": pl.Float64})}
    assert "statements.sales" in unmet_needs(tables | no_rows)
