"""Normalization of the feature table: what it sees, what it leaves out, and its statistics."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from atft_model.errors import InputError
from atft_pipeline.schemas import NormalizationBounds, normalized_schema, validate_statistics
from atft_pipeline.transforms.features import Feature, Normalizer, Scope
from atft_pipeline.transforms.normalize import (
    constant_features,
    feature_statistics,
    fit_and_apply,
    normalize_cross_section,
)

START = dt.date(2020, 1, 1)
DAYS, STOCKS = 120, 60
TRAIN_END = START + dt.timedelta(days=79)


def _feature(name: str, normalizer: Normalizer, scope: Scope = "stock") -> Feature:
    return Feature(name, name, "price", scope, ("prices.close",), 1, normalizer, pl.col("close"))


FEATURES = (
    _feature("price", "cross_section"),
    _feature("volume", "cross_section"),
    _feature("small_return", "time_series"),
    _feature("traded", "time_series"),
    _feature("flag", "none"),
)


def _table(days: int = DAYS, stocks: int = STOCKS) -> pl.DataFrame:
    """Prices in the thousands, returns of 0.001, volumes in the millions, all heavy-tailed."""
    rng = np.random.default_rng(11)
    rows = days * stocks
    columns = {
        "price": 3000 + 500 * rng.standard_t(2.5, rows),
        "volume": 1e6 * np.exp(2 * rng.standard_normal(rows)),
        "small_return": 0.001 * rng.standard_t(2.5, rows),
        "traded": 5e6 * np.exp(2 * rng.standard_normal(rows)),
        "flag": (rng.random(rows) < 0.3).astype(float),
    }
    dates = [START + dt.timedelta(days=day) for _ in range(stocks) for day in range(days)]
    codes = [f"S{stock:03}" for stock in range(stocks) for _ in range(days)]
    return pl.DataFrame({"date": dates, "code": codes, **columns}).with_columns(
        pl.when(pl.int_range(pl.len()) % 17 > 0).then(pl.col(pl.Float64).cast(pl.Float32))
    )


TABLE = _table()
IN_TRAINING = pl.col("date") <= TRAIN_END


def _fit(table: pl.DataFrame, features: Sequence[Feature] = FEATURES):
    return fit_and_apply(table, features, START, TRAIN_END)


def test_heavy_tailed_inputs_meet_their_bounds() -> None:
    normalized = _fit(TABLE)
    assert normalized.left_out == {}
    assert normalized.table.select("date", "code").equals(TABLE.select("date", "code"))
    statistics = feature_statistics(normalized.table, normalized.features, START, TRAIN_END)
    assert validate_statistics(statistics, NormalizationBounds()) == []
    normalized_schema([feature.name for feature in FEATURES], clip=5.0).validate(
        normalized.table, lazy=True
    )
    assert statistics["feature"].to_list()[-1] == "__all__"
    continuous = statistics.filter(pl.col("normalizer") != "none")
    assert continuous["std"].min() > 0.95


def test_unknown_stays_null_and_flags_are_untouched() -> None:
    normalized = _fit(TABLE).table
    assert normalized.null_count().equals(TABLE.null_count())
    assert normalized["flag"].equals(TABLE["flag"])
    assert normalized["flag"].dtype == pl.Float32


def test_scores_of_a_date_do_not_see_other_dates() -> None:
    other = pl.col("date") != START + dt.timedelta(days=5)
    changed = TABLE.with_columns(pl.when(other).then(pl.col("price") * -7).otherwise("price"))
    one_date = normalize_cross_section(TABLE, FEATURES).filter(~other)
    assert normalize_cross_section(changed, FEATURES).filter(~other).equals(one_date)
    assert normalize_cross_section(TABLE.filter(~other), FEATURES).equals(one_date)


def test_scores_within_a_date_do_not_see_the_order_of_rows() -> None:
    shuffled = TABLE.sample(fraction=1.0, shuffle=True, seed=3)
    scores = normalize_cross_section(shuffled, FEATURES).sort("code", "date")
    assert scores.equals(normalize_cross_section(TABLE, FEATURES))


def test_cross_section_matches_a_plain_date() -> None:
    day = TABLE.filter(pl.col("date") == START)["price"].drop_nulls().cast(pl.Float64).to_numpy()
    pulled_in = np.clip(day, *np.quantile(day, [0.01, 0.99]))
    expected = (pulled_in - pulled_in.mean()) / pulled_in.std()
    found = normalize_cross_section(TABLE, FEATURES).filter(pl.col("date") == START)["price"]
    np.testing.assert_allclose(found.drop_nulls().to_numpy(), expected, rtol=1e-5, atol=1e-6)


def test_slices_of_one_stock_give_null_not_zero() -> None:
    one_stock = normalize_cross_section(TABLE.filter(pl.col("code") == "S001"), FEATURES)
    assert one_stock["price"].null_count() == DAYS
    assert one_stock["volume"].null_count() == DAYS


def test_a_date_with_equal_values_gives_null_there_only() -> None:
    flat = pl.col("date") == START
    table = TABLE.with_columns(price=pl.when(flat).then(pl.lit(5.0, pl.Float32)).otherwise("price"))
    scores = normalize_cross_section(table, FEATURES)
    assert scores.filter(flat)["price"].null_count() == STOCKS
    assert scores.filter(~flat)["price"].equals(
        normalize_cross_section(TABLE, FEATURES).filter(~flat)["price"]
    )


def test_time_series_statistics_do_not_see_other_dates() -> None:
    later = TABLE.with_columns(
        pl.when(IN_TRAINING)
        .then(pl.col("small_return", "traded"))
        .otherwise(pl.col("small_return", "traded") * 1000)
    )
    before, after = _fit(TABLE), _fit(later)
    assert before.statistics.to_dict() == after.statistics.to_dict()
    assert before.table.filter(IN_TRAINING).equals(after.table.filter(IN_TRAINING))
    assert before.statistics.features == ("small_return", "traded")


def test_constant_columns_are_left_out_by_name_with_the_reason() -> None:
    features = (
        *FEATURES,
        _feature("constant", "cross_section"),
        _feature("frozen_in_training", "time_series"),
        _feature("nearly_constant", "time_series"),
        _feature("unknown", "time_series"),
        _feature("same_for_all", "cross_section"),
        _feature("always", "none"),
    )
    row = pl.int_range(pl.len())
    table = TABLE.with_columns(
        constant=pl.lit(3.5),
        frozen_in_training=pl.when(IN_TRAINING).then(2.0).otherwise(row),
        nearly_constant=pl.when(row % 500 == 0).then(9.0).otherwise(1.0),
        unknown=pl.lit(None, pl.Float64),
        same_for_all=pl.col("date").dt.day().cast(pl.Float64),
        always=pl.lit(1.0),
    )
    normalized = _fit(table, features)
    assert normalized.left_out == {
        "constant": "constant on training dates: always 3.5",
        "frozen_in_training": "constant on training dates: always 2",
        "nearly_constant": "nearly constant on training dates: 1 on 99 % of rows or more",
        "unknown": "no known value on training dates",
        "always": "constant on training dates: always 1",
        "same_for_all": "no training date has 20 stocks with differing values",
    }
    assert normalized.features == FEATURES
    assert normalized.table.columns == ["date", "code", *(feature.name for feature in FEATURES)]
    assert normalized.table.equals(_fit(TABLE).table)


def test_nothing_is_left_out_of_a_varying_table() -> None:
    assert constant_features(TABLE, FEATURES) == {}


def test_without_time_series_features_the_statistics_are_empty() -> None:
    normalized = _fit(TABLE, FEATURES[:2])
    assert normalized.statistics.features == ()
    assert normalized.table.columns == ["date", "code", "price", "volume"]


def test_a_split_outside_the_table_is_refused() -> None:
    with pytest.raises(
        InputError, match="no feature row on training dates 2031-01-01 to 2031-02-01; the table"
    ):
        fit_and_apply(TABLE, FEATURES, dt.date(2031, 1, 1), dt.date(2031, 2, 1))


def test_too_few_stocks_are_refused() -> None:
    with pytest.raises(InputError, match="at most 19 stocks on any training date"):
        _fit(_table(stocks=19))


def test_statistics_match_numpy() -> None:
    statistics = feature_statistics(TABLE, FEATURES, START, TRAIN_END)
    training = TABLE.filter(IN_TRAINING)
    for row in statistics.head(len(FEATURES)).iter_rows(named=True):
        column = training[row["feature"]]
        known = column.drop_nulls().cast(pl.Float64).to_numpy()
        assert row["rows"] == training.height
        assert row["mean"] == pytest.approx(known.mean())
        assert row["std"] == pytest.approx(known.std())
        assert row["null_share"] == pytest.approx(column.null_count() / training.height)
        assert row["zero_share"] == pytest.approx((known == 0).mean())
        assert (row["min"], row["max"]) == (known.min(), known.max())
        assert row["other_share"] == (0.0 if row["feature"] == "flag" else None)


def test_masks_that_are_not_0_or_1_are_named() -> None:
    table = TABLE.with_columns(
        flag=pl.when(pl.int_range(pl.len()) % 9 == 0).then(0.5).otherwise("flag")
    )
    normalized = _fit(table)
    statistics = feature_statistics(normalized.table, normalized.features, START, TRAIN_END)
    (violation,) = validate_statistics(statistics, NormalizationBounds())
    assert (violation.feature, violation.quantity) == ("flag", "other_share")


@pytest.mark.parametrize(
    ("center", "spread"), [(3000.0, 400.0), (0.0, 1e-3), (5e6, 4e6), (200.0, 268_938.0)]
)
@pytest.mark.parametrize("tail", ["normal", "t", "lognormal", "cauchy", "outlier"])
@pytest.mark.parametrize("normalizer", ["cross_section", "time_series"])
def test_bounds_hold_after_the_clip(
    center: float, spread: float, tail: str, normalizer: Normalizer
) -> None:
    """Prices in the thousands, returns of 0.001, volumes in the millions, the historical column."""
    rng = np.random.default_rng(5)
    draw = {
        "normal": rng.standard_normal,
        "t": lambda rows: rng.standard_t(2.5, rows),
        "lognormal": lambda rows: np.exp(2 * rng.standard_normal(rows)),
        "cauchy": rng.standard_cauchy,
        "outlier": lambda rows: np.where(rng.random(rows) < 0.002, 1e9, rng.standard_normal(rows)),
    }[tail]
    raw = (center + spread * draw(TABLE.height)).astype(np.float32)
    feature = _feature("hard", normalizer)
    table = TABLE.select("date", "code", pl.Series("hard", raw))
    normalized = fit_and_apply(table, [feature], START, TRAIN_END)
    statistics = feature_statistics(normalized.table, normalized.features, START, TRAIN_END)
    assert validate_statistics(statistics, NormalizationBounds()) == []
    assert normalized.table["hard"].abs().max() <= 5.0  # type: ignore[operator]


def test_the_whole_table_is_one_row_of_its_continuous_values() -> None:
    names = [feature.name for feature in FEATURES if feature.normalizer != "none"]
    whole = feature_statistics(TABLE, FEATURES, START, TRAIN_END).row(-1, named=True)
    values = TABLE.filter(IN_TRAINING).select(names).to_numpy().astype(np.float64)
    known = values[np.isfinite(values)]
    assert whole["feature"] == "__all__"
    assert whole["rows"] == values.size
    assert whole["mean"] == pytest.approx(known.mean())
    assert whole["std"] == pytest.approx(known.std())
    assert whole["null_share"] == pytest.approx(1 - known.size / values.size)
    assert (whole["min"], whole["max"]) == (known.min(), known.max())
