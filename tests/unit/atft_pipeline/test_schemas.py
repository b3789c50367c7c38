"""Table schemas and the bounds on normalized features, each seen to fail."""

import datetime as dt
from typing import Any

import polars as pl
import pytest
from pandera.errors import SchemaErrors

from atft_pipeline.schemas import (
    PRICES,
    RAW_INDICES,
    RAW_LISTINGS,
    RAW_PRICES,
    NormalizationBounds,
    Violation,
    features_schema,
    normalized_schema,
    validate_statistics,
)

DAY = dt.date(2024, 1, 1)


def _prices(**changes: Any) -> pl.DataFrame:
    bar = {"date": DAY, "code": "A", "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0}
    return pl.DataFrame([bar | {"volume": 1.0, "turnover": 1.0, "raw_close": 1.0} | changes])


def test_prices_hold_their_contract() -> None:
    PRICES.validate(_prices(), lazy=True)


@pytest.mark.parametrize(
    ("broken", "failure"),
    [
        (_prices(close=0.0), "greater_than"),
        (_prices(close=float("inf")), "finite"),
        (_prices(close=None).cast({"close": pl.Float64}), "not_nullable"),
        (_prices(volume=-1.0), "greater_than_or_equal_to"),
        (_prices(code=7), "dtype"),
        (_prices(extra=1.0), "column_in_schema"),
        (_prices().drop("close"), "column_in_dataframe"),
        (pl.concat([_prices(), _prices()]), "unique"),
    ],
)
def test_broken_prices_fail(broken: pl.DataFrame, failure: str) -> None:
    with pytest.raises(SchemaErrors) as caught:
        PRICES.validate(broken, lazy=True)
    assert failure in " ".join(str(check) for check in caught.value.failure_cases["check"])


def test_raw_prices_take_defects_but_no_other_types() -> None:
    raw = _prices(close=None, adjustment_factor=1.0).drop("raw_close").cast({"close": pl.Float64})
    RAW_PRICES.validate(pl.concat([raw, raw]), lazy=True)
    with pytest.raises(SchemaErrors):
        RAW_PRICES.validate(raw.cast({"open": pl.String}), lazy=True)


def test_a_source_without_index_or_listing_details_is_valid() -> None:
    RAW_INDICES.validate(
        pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64}), lazy=True
    )
    nothing = {"name": None, "sector": None, "market": None, "listed_on": None}
    listings = pl.DataFrame(
        [{"code": "A", **nothing, "delisted_on": None, "shares_outstanding": None}],
        schema={
            "code": pl.String,
            "name": pl.String,
            "sector": pl.String,
            "market": pl.String,
            "listed_on": pl.Date,
            "delisted_on": pl.Date,
            "shares_outstanding": pl.Float64,
        },
    )
    RAW_LISTINGS.validate(listings, lazy=True)
    with pytest.raises(SchemaErrors):
        RAW_LISTINGS.validate(pl.concat([listings, listings]), lazy=True)


def _features(**values: float | None) -> pl.DataFrame:
    schema = {"date": pl.Date, "code": pl.String} | dict.fromkeys(values, pl.Float32)
    return pl.DataFrame([{"date": DAY, "code": "A", **values}], schema=schema)


def test_features_are_finite_or_null_and_complete() -> None:
    schema = features_schema(["a", "b"])
    schema.validate(_features(a=1e9, b=None), lazy=True)
    broken = (
        _features(a=float("nan"), b=0.0),
        _features(a=float("inf"), b=0.0),
        _features(a=1.0),
        _features(a=1.0, b=1.0, c=1.0),
        _features(a=1.0, b=1.0).cast({"b": pl.Float64}),
        pl.concat([_features(a=1.0, b=1.0)] * 2),
    )
    for table in broken:
        with pytest.raises(SchemaErrors):
            schema.validate(table, lazy=True)


def test_normalized_features_stay_within_the_clip() -> None:
    schema = normalized_schema(["a"], clip=5.0)
    schema.validate(_features(a=-5.0), lazy=True)
    with pytest.raises(SchemaErrors):
        schema.validate(_features(a=5.1), lazy=True)


def _statistics(**changes: dict[str, Any]) -> pl.DataFrame:
    """Three features and the whole table, all in bounds but for ``changes`` by feature."""
    good = {"rows": 100, "mean": 0.0, "std": 1.0, "null_share": 0.0, "zero_share": 0.01}
    good |= {"min": -4.0, "max": 5.0, "other_share": None}
    flag = good | {"mean": 0.3, "std": 0.46, "zero_share": 0.7, "min": 0.0, "max": 1.0}
    flag |= {"other_share": 0.0}
    rows = {
        "returns_1d": {"normalizer": "cross_section"} | good,
        "mkt_vol_20d": {"normalizer": "time_series"} | good,
        "is_valid_ma": {"normalizer": "none"} | flag,
        "__all__": {"normalizer": "continuous"} | good,
    }
    names = ["feature", "normalizer", *good]
    types = {name: pl.Float64 for name in good} | {"rows": pl.Int64}
    return pl.DataFrame(
        [{"feature": name} | row | changes.get(name, {}) for name, row in rows.items()],
        schema={name: types.get(name, pl.String) for name in names},
    )


def test_statistics_in_bounds_pass() -> None:
    assert validate_statistics(_statistics(), NormalizationBounds()) == []


def test_the_historical_failure_is_named() -> None:
    """Mean 200, standard deviation 268,938: what a wrong normalization left in one column."""
    found = validate_statistics(
        _statistics(mkt_vol_20d={"mean": 200.0, "std": 268_938.0}), NormalizationBounds()
    )
    assert found == [
        Violation("mkt_vol_20d", "mean", 200.0, "from -0.1 to 0.1"),
        Violation("mkt_vol_20d", "std", 268_938.0, "from 0.8 to 1.2"),
    ]
    assert str(found[1]) == "mkt_vol_20d: std is 268938, expected from 0.8 to 1.2"


@pytest.mark.parametrize(
    ("feature", "change", "quantity"),
    [
        ("returns_1d", {"mean": -0.11}, "mean"),
        ("returns_1d", {"std": 0.79}, "std"),
        ("returns_1d", {"std": 1.21}, "std"),
        ("returns_1d", {"std": 0.0}, "std"),
        ("returns_1d", {"zero_share": 0.95}, "zero_share"),
        ("returns_1d", {"mean": None}, "mean"),
        ("returns_1d", {"mean": float("nan")}, "mean"),
        ("__all__", {"mean": 0.2}, "mean"),
        ("__all__", {"std": 2.0}, "std"),
        ("is_valid_ma", {"mean": 1.5}, "mean"),
        ("is_valid_ma", {"mean": 0.004}, "mean"),
        ("is_valid_ma", {"mean": 0.996}, "mean"),
        ("is_valid_ma", {"other_share": 0.01}, "other_share"),
    ],
)
def test_each_bound_is_seen_to_fail(feature: str, change: dict[str, Any], quantity: str) -> None:
    found = validate_statistics(_statistics(**{feature: change}), NormalizationBounds())
    assert [(violation.feature, violation.quantity) for violation in found] == [(feature, quantity)]


def test_all_failures_are_collected() -> None:
    broken = _statistics(returns_1d={"mean": 3.0}, is_valid_ma={"mean": 9.0}, __all__={"std": 4.0})
    found = validate_statistics(broken, NormalizationBounds())
    assert {violation.feature for violation in found} == {"returns_1d", "is_valid_ma", "__all__"}


def test_bounds_are_config() -> None:
    statistics = _statistics(returns_1d={"mean": 0.15})
    assert validate_statistics(statistics, NormalizationBounds(mean_limit=0.2)) == []


def test_a_table_that_is_no_statistics_table_raises() -> None:
    with pytest.raises(SchemaErrors):
        validate_statistics(_statistics().drop("std"), NormalizationBounds())
