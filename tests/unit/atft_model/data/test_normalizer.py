"""Time-series statistics: what they are fitted on, and that arrays and tensors agree."""

import json

import numpy as np
import pytest
import torch

from atft_model.data.normalizer import (
    TimeSeriesStatistics,
    apply_time_series,
    fit_time_series,
    winsorized_moments,
)
from atft_model.errors import InputError

NAMES = ("a", "b", "c")


def _values(rows: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.stack(
        [
            3000 + 200 * rng.normal(size=rows),
            0.001 * rng.standard_t(2.5, rows),
            1e6 * np.exp(2 * rng.normal(size=rows)),
        ],
        axis=1,
    ).astype(np.float32)


def test_statistics_match_the_plain_formula() -> None:
    values = _values()
    statistics = fit_time_series(values, NAMES)
    for column in (0, 1):
        known = values[:, column].astype(np.float64)
        low, high = np.quantile(known, [0.005, 0.995])
        pulled_in = np.clip(known, low, high)
        found = [getattr(statistics, name)[column] for name in ("lower", "upper", "mean", "std")]
        assert found == pytest.approx([low, high, pulled_in.mean(), pulled_in.std()], rel=1e-5)


def test_scores_meet_their_bounds_on_heavy_tails() -> None:
    values = _values(50_000)
    scores = apply_time_series(values, fit_time_series(values, NAMES)).astype(np.float64)
    assert np.abs(scores).max() <= 5
    assert np.abs(scores.mean(axis=0)).max() < 0.02
    assert scores.std(axis=0) == pytest.approx([1, 1, 1], abs=0.03)


def test_the_limits_of_a_heavy_tail_lie_within_the_clip() -> None:
    """Without the inner limits a log-normal of sigma 2 would keep a std of 0.77."""
    volume = _values(50_000)[:, 2].astype(np.float64)
    low, high = np.quantile(volume, [0.005, 0.995])
    pulled_in = np.clip(volume, low, high)
    one_pass = np.clip((pulled_in - pulled_in.mean()) / pulled_in.std(), -5, 5)
    assert one_pass.std() < 0.8
    moments = winsorized_moments(volume[None], 0.005, 0.995)
    assert moments.upper[0] < high
    assert (moments.upper[0] - moments.mean[0]) / moments.std[0] < 5.2


def test_unknown_values_count_in_nothing() -> None:
    values = _values()
    holed = np.insert(values, [3, 3, 9], np.nan, axis=0)
    holed[3, 1] = np.inf
    known, unknown = fit_time_series(values, NAMES), fit_time_series(holed, NAMES)
    assert known.to_dict() == unknown.to_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_arrays_agree_and_nan_stays(dtype: torch.dtype) -> None:
    values = _values()
    values[::7, 1] = np.nan
    statistics = fit_time_series(values, NAMES)
    tensor = torch.from_numpy(values).to(dtype).reshape(50, 100, 3)
    scores = apply_time_series(tensor, statistics)
    assert scores.dtype == dtype
    expected = apply_time_series(values.astype(tensor.numpy().dtype), statistics)
    np.testing.assert_allclose(scores.numpy().reshape(-1, 3), expected, rtol=1e-5, atol=1e-6)
    assert (np.isnan(expected) == np.isnan(values)).all()


def test_values_far_outside_are_cut_at_five() -> None:
    statistics = TimeSeriesStatistics.from_dict(
        {"features": ["a"], "lower": [-100.0], "upper": [100.0], "mean": [0.0], "std": [1.0]}
    )
    scores = apply_time_series(np.array([[-1e9], [3.0], [7.0]], dtype=np.float32), statistics)
    assert scores[:, 0].tolist() == [-5.0, 3.0, 5.0]


def test_json_gives_the_same_float32_back() -> None:
    statistics = fit_time_series(_values(), NAMES)
    again = TimeSeriesStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again.features == NAMES
    for name in ("lower", "upper", "mean", "std"):
        found = getattr(again, name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, getattr(statistics, name))


def test_no_features_is_a_valid_set() -> None:
    statistics = fit_time_series(np.empty((4, 0), dtype=np.float32), ())
    assert apply_time_series(np.empty((2, 0), dtype=np.float32), statistics).shape == (2, 0)


@pytest.mark.parametrize(
    "column",
    [
        np.full(1000, 0.1, dtype=np.float32),
        np.where(np.arange(1000) == 0, 50.0, 2.0),
        100 + 1e-5 * np.arange(1000) / 1000,
    ],
    ids=["constant", "one outlier", "rounding"],
)
def test_a_constant_feature_is_refused_by_name(column: np.ndarray) -> None:
    values = np.stack([np.arange(1000.0), column], axis=1)
    with pytest.raises(InputError, match=r"feature 'still' is .* on 99 % of training rows"):
        fit_time_series(values, ("moving", "still"))


def test_a_feature_without_values_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="feature 'b' has no finite value"):
        fit_time_series(np.array([[1.0, np.nan], [2.0, np.nan]]), ("a", "b"))


def test_columns_and_names_must_match() -> None:
    with pytest.raises(InputError, match="3 columns and 2 names"):
        fit_time_series(_values(), ("a", "b"))
    with pytest.raises(InputError, match="3 features and 2 columns"):
        apply_time_series(_values()[:, :2], fit_time_series(_values(), NAMES))


def test_broken_statistics_are_refused() -> None:
    stored = fit_time_series(_values(), NAMES).to_dict()
    with pytest.raises(InputError, match="no std; expected features, lower, upper, mean, std"):
        TimeSeriesStatistics.from_dict({key: stored[key] for key in stored if key != "std"})
    with pytest.raises(InputError, match=r"lengths .*'mean': 2"):
        TimeSeriesStatistics.from_dict(stored | {"mean": [0.0, 1.0]})
