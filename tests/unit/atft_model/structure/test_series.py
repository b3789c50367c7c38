"""The table that every stage reads: lags, standardization, exogenous series, gaps, and refusals."""

from dataclasses import replace

import numpy as np
import pytest

from atft_model.errors import InputError
from atft_model.structure.series import Series, correlation_of, expected_values, make_table
from atft_model.structure.simulate import var_with_dag

NAMES = tuple("abcde")


def five(seed: int = 0) -> Series:
    return Series(var_with_dag(seed, 5, 400).values, NAMES)


def test_columns_are_today_then_lags_and_standardized():
    series = five()
    table = make_table(series, 2)
    assert table.rows.shape == (398, 15)
    np.testing.assert_allclose(table.rows.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(table.rows.std(0), 1)
    expected = np.corrcoef(np.column_stack([series.values[2:], series.values[1:-1]]).T)
    np.testing.assert_allclose(table.correlation[:10, :10], expected, atol=1e-5)


def test_units_leave_no_trace():
    series = five()
    scaled = replace(series, values=series.values * [1e-4, 2.0, 30.0, 1e5, 0.7])
    np.testing.assert_allclose(
        make_table(series, 1).correlation, make_table(scaled, 1).correlation, atol=1e-10
    )


def test_exogenous_series_are_regressed_out_today_and_lagged():
    rng = np.random.default_rng(1)
    market = rng.standard_normal((400, 1))
    series = five()
    driven = replace(
        series, values=series.values + 2 * market, exogenous=market, exogenous_names=("market",)
    )
    table = make_table(driven, 1)
    outside = np.column_stack([market[1:], market[:-1]])
    assert np.abs(outside.T @ table.rows / 399).max() < 1e-10
    # Rows are those of the model with the market as a parent (Frisch, Waugh, Lovell).
    X = np.column_stack([table.rows[:, 1], outside, np.ones(399)])
    inside = np.linalg.lstsq(X, table.rows[:, 0], rcond=None)[0][0]
    assert inside == pytest.approx(table.rows[:, 1] @ table.rows[:, 0] / 399)
    assert table.exogenous_effects.shape == (2, 5)


def test_gaps_are_filled_by_expectation_never_by_zero():
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(4, 4))
    rows = rng.normal(size=(3000, 4)) @ mix
    rows = (rows - rows.mean(0)) / rows.std(0)
    gaps = rng.random(rows.shape) < 0.15
    filled, covariance = expected_values(np.where(gaps, np.nan, rows))
    true = np.corrcoef(rows.T)
    zeros = np.cov(np.where(gaps, 0.0, rows).T)
    np.testing.assert_allclose(covariance, true, atol=0.05)
    assert np.abs(zeros - true).max() > 0.1
    np.testing.assert_array_equal(filled[~gaps], rows[~gaps])
    error = np.mean((filled - rows)[gaps] ** 2)
    assert error < 0.7 * np.mean(rows[gaps] ** 2)


def test_gaps_lower_the_effective_rows():
    series = five()
    values = series.values.copy()
    values[::10, 0] = np.nan
    table = make_table(replace(series, values=values), 1)
    assert table.effective_rows < 399
    assert table.effective_rows == pytest.approx(399 * 0.98, rel=0.01)


def test_resampled_correlations_count_rows():
    table = make_table(five(), 1)
    counts = np.random.default_rng(3).integers(0, 3, len(table.rows)).astype(float)
    repeated = np.repeat(table.rows, counts.astype(int), axis=0)
    np.testing.assert_allclose(
        correlation_of(table, counts), np.corrcoef(repeated.T), atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:20], "20 rows for 5 series with 1 lags; expected at least 31"),
        (lambda v: v[:, :1], "1 columns but 5 names"),
        (lambda v: np.where(np.arange(5) == 2, 7.0, v), "series 'c' is constant; leave it out"),
        (lambda v: np.where(v == v[3, 3], np.inf, v), "infinite values"),
        (
            lambda v: np.where((np.arange(5) == 1) & (np.arange(400)[:, None] > 100), np.nan, v),
            "series 'b': 101 of 400 values present; expected at least half",
        ),
    ],
)
def test_series_that_cannot_be_learned_from_are_refused(change, message):
    series = five()
    with pytest.raises(InputError, match=message):
        make_table(replace(series, values=change(series.values)), 1)


def test_gaps_in_the_market_are_refused():
    market = np.ones((400, 1))
    market[3] = np.nan
    with pytest.raises(InputError, match="exogenous series market: missing values"):
        make_table(replace(five(), exogenous=market, exogenous_names=("market",)), 1)
