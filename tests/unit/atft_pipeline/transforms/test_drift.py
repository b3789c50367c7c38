"""Drift against the training reference: the figures, and what chance is taken to explain."""

import datetime as dt
from collections import defaultdict

import numpy as np
import polars as pl
import pytest

from atft_pipeline.transforms.drift import (
    CUT,
    FLAG_SCALE,
    SMALLEST_SHARE,
    WINDOW_MONTHS,
    fit_reference,
    measure_drift,
    population_stability_index,
)
from atft_pipeline.transforms.features import Feature, Normalizer, Scope

START, TRAIN_END = dt.date(2018, 1, 1), dt.date(2019, 12, 31)
STOCKS = 12


def _feature(name: str, normalizer: Normalizer = "cross_section", scope: Scope = "stock"):
    return Feature(name, name, "price", scope, ("prices.close",), 1, normalizer, pl.col("close"))


FEATURES = (
    _feature("stock"),
    _feature("market", "time_series", "market"),
    _feature("flag", "none"),
)


def _table(end: dt.date = dt.date(2020, 12, 31), seed: int = 3) -> pl.DataFrame:
    """Every weekday; a stock-level series, a slow market-wide one, and a flag; a few unknown."""
    rng = np.random.default_rng(seed)
    days = [day for day in pl.date_range(START, end, eager=True) if day.weekday() < 5]
    market = np.zeros(len(days))
    for day in range(1, len(days)):
        market[day] = 0.97 * market[day - 1] + rng.standard_normal()
    frame = pl.DataFrame(
        {
            "date": np.repeat(np.array(days, dtype="datetime64[D]"), STOCKS),
            "code": [f"S{stock:02}" for stock in range(STOCKS)] * len(days),
            "stock": 50 + 3 * rng.standard_normal(len(days) * STOCKS),
            "market": np.repeat(market, STOCKS),
            "flag": (rng.random(len(days) * STOCKS) < 0.3).astype(float),
        }
    )
    return frame.with_columns(
        pl.when(pl.int_range(pl.len()) % 23 > 0).then(pl.col(pl.Float64).cast(pl.Float32))
    )


TABLE = _table()
REFERENCE = fit_reference(TABLE, FEATURES, START, TRAIN_END)
DRIFT = measure_drift(TABLE, REFERENCE)


def _known(table: pl.DataFrame, name: str) -> np.ndarray:
    return table[name].drop_nulls().cast(pl.Float64).to_numpy()


def _row(drift: pl.DataFrame, name: str, months: int, month: dt.date | None = None) -> dict:
    chosen = (pl.col("feature") == name) & (pl.col("months") == months)
    if month:
        chosen &= pl.col("month") == month
    return drift.filter(chosen).row(0, named=True)


def test_reference_matches_numpy():
    training = TABLE.filter(pl.col("date") <= TRAIN_END)
    for row in REFERENCE.iter_rows(named=True):
        values = _known(training, row["feature"])
        assert row["rows"] == training.height
        assert row["missing_share"] == pytest.approx(1 - len(values) / training.height)
        assert row["mean"] == pytest.approx(values.mean())
        std = FLAG_SCALE if row["feature"] == "flag" else values.std()
        assert row["std"] == pytest.approx(std)
        assert sum(row["shares"]) == pytest.approx(1.0)
        assert row["months"] == 24
    shares = REFERENCE.row(0, named=True)["shares"]
    assert np.allclose(shares, 0.1, atol=0.001)


def test_month_and_window_match_a_slow_loop():
    later = TABLE.filter(pl.col("date") > TRAIN_END)
    march = later.filter(pl.col("date").dt.month() == 3)
    for months, rows in ((1, march), (12, later)):
        values = _known(rows, "stock")
        reference = REFERENCE.row(0, named=True)
        found = _row(DRIFT, "stock", months, dt.date(2020, 3, 1) if months == 1 else None)
        counts: dict[int, int] = defaultdict(int)
        for value in values:
            counts[sum(value > edge for edge in reference["edges"])] += 1
        psi = sum(
            (counts[i] / len(values) - share) * np.log(counts[i] / len(values) / share)
            for i, share in enumerate(reference["shares"])
        )
        assert found["rows"] == rows.height
        assert found["dates"] == rows["date"].n_unique()
        shift = (values.mean() - reference["mean"]) / reference["std"]
        assert found["mean_shift"] == pytest.approx(shift, abs=1e-6)
        assert found["std_ratio"] == pytest.approx(values.std() / reference["std"])
        assert found["psi"] == pytest.approx(psi)


def test_months_of_market_wide_series_are_expected_to_differ_and_stock_level_ones_not():
    stock, market = REFERENCE.row(0, named=True), REFERENCE.row(1, named=True)
    assert stock["month_shift"] < 0.1
    assert market["month_shift"] > 0.5
    year = _row(DRIFT, "market", 12)
    assert year["shift_noise"] > 3 * _row(DRIFT, "stock", 12)["shift_noise"]


def test_noise_of_a_window_is_that_of_independent_months():
    known = REFERENCE.row(1, named=True)
    independent = (1 - known["persistence"]) / (1 + known["persistence"])
    spread = 1 / max(24 * independent, 1) + 1 / max(12 * independent, 1)
    found = _row(DRIFT, "market", 12)
    assert found["shift_noise"] == pytest.approx(known["month_shift"] * spread**0.5)
    assert found["psi_noise"] == pytest.approx(known["month_psi"] * spread)


def test_noise_covers_what_an_autoregression_does():
    """Mean of the year after against the two before, in units of the stated noise: near 1."""
    score = []
    for seed in range(30):
        table = _table(seed=seed).filter(pl.col("code") == "S01")
        reference = fit_reference(table, FEATURES[1:2], START, TRAIN_END)
        row = _row(measure_drift(table, reference), "market", 12)
        score.append(row["mean_shift"] / row["shift_noise"])
    assert 0.5 < np.sqrt(np.mean(np.square(score))) < 1.5


def test_an_injected_shift_is_measured_in_training_standard_deviations():
    std = REFERENCE.row(0, named=True)["std"]
    moved = TABLE.with_columns(
        stock=pl.col("stock") + pl.when(pl.col("date") > TRAIN_END).then(std).otherwise(0.0)
    )
    before, after = _row(DRIFT, "stock", 12), _row(measure_drift(moved, REFERENCE), "stock", 12)
    assert after["mean_shift"] - before["mean_shift"] == pytest.approx(1.0, abs=1e-4)
    assert after["psi"] > 0.8
    assert _row(measure_drift(moved, REFERENCE), "market", 12) == _row(DRIFT, "market", 12)


def test_later_rows_do_not_reach_the_reference():
    cut = TABLE.filter(pl.col("date") <= TRAIN_END)
    assert fit_reference(cut, FEATURES, START, TRAIN_END).equals(REFERENCE)
    assert measure_drift(cut, REFERENCE).is_empty()


def test_a_change_of_unit_is_cut_and_one_absurd_row_moves_little():
    later = pl.col("date") > TRAIN_END
    scaled = TABLE.with_columns(stock=pl.when(later).then(pl.col("stock") * 1e6).otherwise("stock"))
    assert _row(measure_drift(scaled, REFERENCE), "stock", 12)["mean_shift"] == pytest.approx(
        CUT, rel=0.2
    )
    march = (pl.col("date") == dt.date(2020, 3, 3)) & (pl.col("code") == "S05")
    absurd = TABLE.with_columns(stock=pl.when(march).then(1e30).otherwise("stock"))
    shift = _row(measure_drift(absurd, REFERENCE), "stock", 1, dt.date(2020, 3, 1))["mean_shift"]
    assert abs(shift) < 0.3


def test_a_column_that_stops_arriving_shows_as_missing_only():
    gone = TABLE.with_columns(
        stock=pl.when(pl.col("date") <= dt.date(2020, 6, 30)).then("stock").otherwise(None)
    )
    july = _row(measure_drift(gone, REFERENCE), "stock", 1, dt.date(2020, 7, 1))
    assert july["missing_growth"] == pytest.approx(22 / 23, abs=0.01)
    assert july["mean_shift"] is None
    assert july["psi"] is None


def test_a_short_reference_knows_no_chance():
    short = fit_reference(TABLE, FEATURES, dt.date(2019, 9, 1), TRAIN_END)
    assert short["month_shift"].null_count() == 3
    assert measure_drift(TABLE, short)["shift_noise"].null_count() == 39


def test_a_feature_that_starts_late_is_compared_with_the_months_that_know_it():
    late = TABLE.with_columns(
        stock=pl.when(pl.col("date") >= dt.date(2019, 6, 1)).then("stock").otherwise(None)
    )
    known = fit_reference(late, FEATURES, START, TRAIN_END).row(0, named=True)
    assert known["months"] == 7
    assert known["month_shift"] < 0.1
    assert known["missing_share"] > 0.7


def test_the_window_holds_two_years_at_most():
    table = _table(end=dt.date(2022, 12, 31))
    drift = measure_drift(table, REFERENCE)
    assert drift["months"].unique().sort().to_list() == [1, WINDOW_MONTHS]
    few = measure_drift(TABLE.filter(pl.col("date") < dt.date(2020, 6, 1)), REFERENCE)
    assert few["months"].unique().to_list() == [1]


def test_psi_of_equal_shares_is_zero_and_an_empty_bin_is_finite():
    half = np.array([0.5, 0.5])
    assert population_stability_index(half, half) == 0.0
    expected = (1 - 0.5) * np.log(1 / 0.5) + (SMALLEST_SHARE - 0.5) * np.log(SMALLEST_SHARE / 0.5)
    assert population_stability_index(np.array([1.0, 0.0]), half) == pytest.approx(expected)
