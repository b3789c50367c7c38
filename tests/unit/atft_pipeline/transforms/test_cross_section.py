"""Statistics across the stocks of one date."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from atft_pipeline.transforms.cross_section import equal_weighted_return, winsorized_z_scores

QUANTILES = (0.01, 0.99)


def _plain(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, QUANTILES)
    pulled_in = np.clip(values, low, high)
    return (pulled_in - pulled_in.mean()) / pulled_in.std()


def test_scores_match_the_plain_formula_where_nothing_lies_beyond_the_clip() -> None:
    values = np.random.default_rng(0).normal(size=(2, 200))
    scores = winsorized_z_scores(values, QUANTILES, 20)
    np.testing.assert_allclose(scores, [_plain(values[0]), _plain(values[1])], rtol=1e-12)


def test_unknown_values_stay_unknown_and_move_no_other() -> None:
    values = np.random.default_rng(1).normal(size=50)
    holed = np.insert(values, 7, np.nan)
    scores = winsorized_z_scores(holed[None], QUANTILES, 20)[0]
    assert np.isnan(scores[7])
    np.testing.assert_array_equal(
        np.delete(scores, 7), winsorized_z_scores(values[None], QUANTILES, 20)[0]
    )


def test_too_few_stocks_or_equal_values_give_nan_never_zero() -> None:
    rng = np.random.default_rng(2)
    few = rng.normal(size=(1, 19))
    equal = np.full((1, 40), 0.1)
    rounded = 100 + 1e-5 * rng.random((1, 40))
    nearly_equal = np.where(np.arange(300) == 0, 1e6, 0.1)[None]
    for values in (few, equal, rounded, nearly_equal, np.full((1, 40), np.nan)):
        assert np.isnan(winsorized_z_scores(values, QUANTILES, 20)).all()
    assert np.isfinite(winsorized_z_scores(rng.normal(size=(1, 20)), QUANTILES, 20)).all()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0])
def test_heavy_tails_keep_their_bounds_after_the_clip(sigma: float) -> None:
    values = 1e6 * np.exp(sigma * np.random.default_rng(3).normal(size=(1, 1000)))
    scores = winsorized_z_scores(values, QUANTILES, 20)
    assert np.abs(scores).max() <= 5
    assert abs(scores.mean()) < 0.02
    assert 0.95 < scores.std() < 1.02


def test_equal_weighted_return_by_date_does_not_depend_on_later_rows() -> None:
    rng = np.random.default_rng(4)
    stocks, days = 400, 60
    start = dt.date(2024, 1, 1)
    bars = pl.DataFrame(
        {
            "date": [start + dt.timedelta(days=day) for _ in range(stocks) for day in range(days)],
            "code": [f"S{stock:03}" for stock in range(stocks) for _ in range(days)],
            "return_1d": rng.standard_t(2.5, stocks * days),
        }
    )
    whole = equal_weighted_return(bars, ["date"])
    early = pl.col("date") < start + dt.timedelta(days=20)
    assert equal_weighted_return(bars.filter(early), ["date"]).equals(whole.filter(early))
    by_hand = bars.filter(pl.col("date") == start)["return_1d"].to_numpy().mean()
    assert whole["return_1d"][0] == pytest.approx(by_hand)
    assert whole["members"].to_list() == [stocks] * days
