"""The verdict on drift: every limit is seen to fail, and names its feature."""

import datetime as dt
import math
from typing import Any

import polars as pl
import pytest

from atft_pipeline.checks.drift import (
    DriftLimits,
    drift_within_limits,
    judge,
    lasting_limits,
    month_limits,
)
from atft_pipeline.transforms.drift import DRIFT_SCHEMA, MIN_DATES

LIMITS = DriftLimits()
STOCK = {"feature": "rsi_14", "scope": "stock", "normalizer": "cross_section"}
MARKET = {"feature": "mkt_vol_20d", "scope": "market", "normalizer": "time_series"}
FLAG = {"feature": "is_valid_ma", "scope": "stock", "normalizer": "none"}
MARKET_FLAG = {"feature": "mkt_bull_200", "scope": "market", "normalizer": "none"}
QUIET = {
    "month": dt.date(2020, 5, 1), "months": 1, "dates": 20, "rows": 2000, "mean_shift": 0.0,
    "std_ratio": 1.0, "psi": 0.0, "missing_growth": 0.0, "shift_noise": 0.05,
    "log_std_noise": 0.05, "psi_noise": 0.01,
}  # fmt: skip
YEAR = {"months": 12, "dates": 250}


def _judged(*rows: dict[str, Any], limits: DriftLimits = LIMITS) -> pl.DataFrame:
    return judge(pl.DataFrame([QUIET | row for row in rows], schema=DRIFT_SCHEMA), limits)


def _level(limits: DriftLimits = LIMITS, **row: Any) -> str:
    return _judged(row, limits=limits)["level"].item()


@pytest.mark.parametrize("kind", [STOCK, MARKET, FLAG, MARKET_FLAG])
@pytest.mark.parametrize("span", [{}, YEAR])
def test_quiet_rows_pass(kind, span):
    judged = _judged(kind | span)
    assert judged["level"].item() == "ok"
    assert judged["reason"].item() is None


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (STOCK, {"mean_shift": 0.95}),
        (STOCK, {"mean_shift": -0.95}),
        (STOCK, {"std_ratio": 0.05}),
        (STOCK, {"std_ratio": 11.0}),
        (STOCK, {"std_ratio": 0.0}),
        (STOCK, {"missing_growth": 0.41}),
        (STOCK, {"mean_shift": None, "std_ratio": None, "psi": None, "missing_growth": 1.0}),
        (STOCK, YEAR | {"mean_shift": 0.51}),
        (STOCK, YEAR | {"std_ratio": 2.1}),
        (STOCK, YEAR | {"std_ratio": 0.4}),
        (STOCK, YEAR | {"psi": 0.8}),
        (MARKET, {"mean_shift": 13.0, "shift_noise": 1.0}),
        (MARKET, {"missing_growth": 0.5}),
        (MARKET, YEAR | {"mean_shift": 0.6}),
        (FLAG, {"mean_shift": -0.95}),
        (MARKET_FLAG, {"missing_growth": 0.5}),
    ],
)
def test_each_limit_is_seen_to_fail(kind, row):
    judged = _judged(STOCK | {"feature": "other"}, kind | row)
    assert judged["level"].to_list() == ["ok", "error"]
    assert judged["reason"][1].startswith(f"{kind['feature']}: ")
    outcome = drift_within_limits(judged, LIMITS)
    assert outcome.stops
    assert kind["feature"] in outcome.figure
    assert "other" not in outcome.figure
    assert kind["feature"] in str(outcome.details)
    assert outcome.numbers["features_at_error"] == 1


def test_what_training_months_do_themselves_is_no_drift():
    wild = {"shift_noise": 1.0, "log_std_noise": 1.0, "psi_noise": 2.0}
    assert _level(**MARKET, **wild, mean_shift=4.5, std_ratio=0.01, psi=8.0) == "ok"
    year = wild | {"shift_noise": 0.3, **YEAR}
    assert _level(**MARKET, **year, mean_shift=0.85, psi=3.0) == "ok"
    assert _level(**MARKET_FLAG, **wild, **YEAR, mean_shift=1.5, std_ratio=0.0, psi=9.0) == "ok"


def test_a_few_sections_may_hold_one_value_for_a_month():
    section = {"feature": "flow_breadth_pos", "scope": "section", "normalizer": "time_series"}
    assert _level(**section, std_ratio=0.0) == "ok"
    assert _level(**STOCK, std_ratio=0.0) == "error"


def test_a_lasting_move_by_one_std_of_a_stock_feature_fails_whatever_its_past():
    slow = {"shift_noise": 1.0, "log_std_noise": 1.0, "psi_noise": 2.0}
    assert _level(**STOCK, **slow, **YEAR, mean_shift=1.0) == "error"
    assert _level(**STOCK, **slow, **YEAR, std_ratio=3.1) == "error"
    assert _level(**STOCK, **slow, **YEAR, psi=2.1) == "error"
    # Half a year may still be a season.
    assert _level(**STOCK, **slow, months=6, dates=120, mean_shift=1.0) == "ok"


def test_the_same_of_a_market_wide_feature_is_a_warning():
    slow = {"shift_noise": 1.0, "log_std_noise": 1.0, "psi_noise": 2.0}
    judged = _judged(MARKET | slow | YEAR | {"mean_shift": -1.0})
    assert judged["level"].item() == "warn"
    assert judged["reason"].item() == (
        "mkt_vol_20d: mean shift is -1 in the 12 months to 2020-05, expected below 0.9"
    )


def test_below_the_error_limit_comes_a_warning():
    judged = _judged(STOCK | YEAR | {"mean_shift": 0.46})
    assert judged["level"].item() == "warn"
    assert judged["of_limit"].item() == pytest.approx(0.92)
    outcome = drift_within_limits(judged, LIMITS)
    assert not outcome.passed
    assert not outcome.stops


def test_on_drift_warn_names_the_feature_and_stops_nothing():
    limits = DriftLimits(on_drift="warn")
    outcome = drift_within_limits(_judged(STOCK | {"mean_shift": 3.0}, limits=limits), limits)
    assert not outcome.passed
    assert not outcome.stops
    assert outcome.figure.startswith("rsi_14: mean shift is 3 in 2020-05")


def test_a_month_of_a_few_days_is_not_judged_by_itself():
    judged = _judged(STOCK | {"mean_shift": 9.0, "dates": MIN_DATES - 1})
    assert judged["level"].item() == "ok"
    assert judged["of_limit"].item() is None


def test_without_a_measure_of_chance_only_the_ceilings_hold():
    unknown = {"shift_noise": None, "log_std_noise": None, "psi_noise": None}
    row = QUIET | STOCK | unknown
    assert month_limits(row, LIMITS)["mean shift"] == LIMITS.month_shift_ceiling
    assert lasting_limits(row | {"months": 6}, LIMITS)["mean shift"] == math.inf
    assert lasting_limits(row | YEAR, LIMITS)["mean shift"] == LIMITS.lasting_shift_ceiling


def test_nothing_after_the_training_dates_is_nothing_to_judge():
    outcome = drift_within_limits(judge(pl.DataFrame(schema=DRIFT_SCHEMA), LIMITS), LIMITS)
    assert outcome.passed
    assert outcome.figure == "no month after the training dates"
