"""The bootstrap against arch, against a loop over blocks, and by how often it covers the truth."""

import numpy as np
import pytest
from arch.bootstrap import CircularBlockBootstrap
from arch.bootstrap import optimal_block_length as oracle_block_length

from atft_model.errors import InputError
from atft_model.metrics.bootstrap import (
    bootstrap_mean,
    bootstrap_sharpe,
    draw_blocks,
    optimal_block_length,
    resampled_moments,
)


def _days(T: int) -> np.ndarray:
    return np.busday_offset("2015-01-05", np.arange(T), roll="forward")


def _autoregressive(T: int, rho: float, seed: int) -> np.ndarray:
    shocks = np.random.default_rng(seed).standard_normal(T + 50)
    for t in range(1, T + 50):
        shocks[t] += rho * shocks[t - 1]
    return shocks[50:]


@pytest.mark.parametrize("T", [40, 250, 1500])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_the_block_length_is_that_of_arch(T: int, rho: float) -> None:
    for seed in range(5):
        series = _autoregressive(T, rho, seed)
        expected = float(oracle_block_length(series)["circular"].iloc[0])
        assert optimal_block_length(series) == max(1, round(expected))


@pytest.mark.parametrize(("T", "block"), [(100, 1), (100, 7), (101, 25), (30, 30)])
def test_draws_are_those_of_a_loop_over_blocks(T: int, block: int) -> None:
    series = 0.5 + _autoregressive(T, 0.3, 1)
    starts = draw_blocks(T, block, draws=20, seed=1)
    mean, std = resampled_moments(series, starts, block)
    for draw, row in enumerate(starts):
        values = [series[(s + step) % T] for s in row for step in range(block)][:T]
        assert mean[draw] == pytest.approx(np.mean(values), abs=1e-10)
        assert std[draw] == pytest.approx(np.std(values, ddof=1), abs=1e-10)


def test_the_interval_of_the_mean_is_near_that_of_arch() -> None:
    series = _autoregressive(800, 0.5, 2)
    ours = bootstrap_mean(series, draws=4000)
    oracle = CircularBlockBootstrap(ours.block, series, seed=3)
    low, high = oracle.conf_int(np.mean, reps=4000, method="percentile").ravel()
    width = high - low
    assert ours.low == pytest.approx(low, abs=0.05 * width)
    assert ours.high == pytest.approx(high, abs=0.05 * width)
    assert ours.block > 5


def test_nan_are_left_out_and_what_does_not_vary_has_no_interval() -> None:
    series = _autoregressive(200, 0.2, 4)
    assert bootstrap_mean(np.insert(series, [0, 9], np.nan)) == bootstrap_mean(series)
    for interval in (bootstrap_mean(np.array([np.nan, 1.0])),
                     bootstrap_sharpe(np.zeros(50), _days(50))):  # fmt: skip
        assert np.isnan([interval.low, interval.high]).all()


def test_the_sharpe_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    T, truth = 500, 0.05 * np.sqrt(252)
    covered = 0
    for _ in range(300):
        returns = 0.0005 + 0.01 * rng.standard_normal(T)
        interval = bootstrap_sharpe(returns, _days(T), draws=400)
        covered += interval.low < truth < interval.high
    assert 0.90 < covered / 300 < 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    returns = 0.01 * np.random.default_rng(6).standard_normal(300)
    assert bootstrap_sharpe(returns, _days(300)) == bootstrap_sharpe(returns, _days(300))
    assert bootstrap_sharpe(returns, _days(300), seed=2) != bootstrap_sharpe(returns, _days(300))


def test_undated_returns_and_impossible_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="undated"):
        bootstrap_sharpe(np.random.default_rng(7).standard_normal(50), np.arange(50))
    for block, draws in ((0, 10), (5, 1)):
        with pytest.raises(InputError, match="expected 1 and 2 or more"):
            draw_blocks(50, block, draws, seed=1)
