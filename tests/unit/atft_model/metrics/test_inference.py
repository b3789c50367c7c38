"""Standard errors against statsmodels; what cannot be known is NaN, never 0 or infinite."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from atft_model.errors import InputError
from atft_model.metrics.inference import (
    MeanEstimate,
    SharpeEstimate,
    best_sharpe_by_luck,
    deflated_sharpe,
    long_run_variance,
    newey_west_lag,
    newey_west_mean,
    probabilistic_sharpe,
    sharpe,
    sharpe_difference,
    smallest_detectable,
    student_t_chance,
)


def _autocorrelated(T: int, seed: int, scale: float = 0.01) -> np.ndarray:
    shocks = np.random.default_rng(seed).standard_t(4, T + 4) * scale
    return np.convolve(shocks, np.ones(5) / 5, mode="valid")


def _daily(T: int, seed: int) -> np.ndarray:
    """Heavy tails, and as much autocorrelation as stale prices give a portfolio."""
    shocks = np.random.default_rng(seed).standard_t(4, T + 1) * 0.01
    return shocks[1:] + 0.25 * shocks[:-1]


def _days(T: int) -> np.ndarray:
    return np.busday_offset("2015-01-05", np.arange(T), roll="forward")


@pytest.mark.parametrize("T", [3, 50, 800])
@pytest.mark.parametrize("lag", [0, 1, None])
def test_mean_is_that_of_statsmodels(T: int, lag: int | None) -> None:
    series = _autocorrelated(T, 1) + 0.001
    ours = newey_west_mean(series, lag)
    hac = sm.OLS(series, np.ones(T)).fit(
        cov_type="HAC", cov_kwds={"maxlags": ours.lag, "use_correction": False}
    )
    assert ours.mean == pytest.approx(hac.params[0], abs=1e-10)
    assert ours.standard_error == pytest.approx(hac.bse[0], abs=1e-10)
    assert ours.t == pytest.approx(hac.tvalues[0], rel=1e-10)
    assert ours.T == T


def test_nan_are_left_out() -> None:
    series = _autocorrelated(100, 2)
    gappy = np.insert(series, [0, 10, 100], np.nan)
    assert newey_west_mean(gappy) == newey_west_mean(series)


def test_the_lag_follows_the_rule_and_covers_the_overlap() -> None:
    assert [newey_west_lag(T) for T in (0, 1, 2, 100, 500, 1500)] == [0, 0, 1, 4, 5, 7]
    assert newey_west_lag(500, horizon=20) == 38
    assert newey_west_lag(10, horizon=20) == 9  # never more than the series allows
    series = _autocorrelated(500, 3)
    overlapping = newey_west_mean(series, horizon=5)
    assert overlapping.lag == 8
    assert overlapping.standard_error > newey_west_mean(series, lag=0).standard_error


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_a_constant_series_is_not_certain(value: float) -> None:
    estimate = newey_west_mean(np.full(50, value))
    assert estimate.mean == pytest.approx(value)
    assert np.isnan(estimate.standard_error)
    assert np.isnan(estimate.t)
    constant_up_to_rounding = np.full(50, value) * (1 + 1e-16 * np.arange(50))
    assert np.isnan(newey_west_mean(constant_up_to_rounding).t)


@pytest.mark.parametrize("series", [np.empty(0), np.full(5, np.nan), np.array([0.3])])
def test_too_few_values_have_no_error(series: np.ndarray) -> None:
    estimate = newey_west_mean(series)
    assert isinstance(estimate, MeanEstimate)
    assert np.isnan(estimate.standard_error)
    assert np.isnan(estimate.t)
    assert np.isfinite(series).sum() == estimate.T


def test_the_long_run_variance_of_a_varying_series_is_positive() -> None:
    alternating = np.tile([1.0, -1.0], 50)
    assert 0 < long_run_variance(alternating, 20) < 0.1 * long_run_variance(alternating, 0)


def test_a_sharpe_whose_influence_function_vanishes_is_not_certain() -> None:
    # mean -1, std 1/2, z = 1/2 and -3/2: z + z^2 - 1 is -1/4 on every day.
    estimate = sharpe(np.array([-0.75, -0.75, -0.75, -1.75]), _days(4))
    assert estimate.value == pytest.approx(-2 * np.sqrt(252))
    assert np.isnan([estimate.standard_error, estimate.ci_low, estimate.ci_high]).all()


def test_infinities_and_impossible_lags_are_refused() -> None:
    with pytest.raises(InputError, match="1 of 3 values are not finite"):
        newey_west_mean(np.array([1.0, np.inf, 2.0]))
    for lag in (-1, 3):
        with pytest.raises(InputError, match="expected 0 to 2"):
            newey_west_mean(np.array([1.0, 2.0, 4.0]), lag=lag)


def test_sharpe_is_mean_over_std_times_root_252() -> None:
    returns = _daily(600, 4) + 0.0005
    estimate = sharpe(returns, _days(600))
    expected = returns.mean() / returns.std(ddof=1) * np.sqrt(252)
    assert estimate.value == pytest.approx(expected, abs=1e-10)
    assert estimate.T == 600
    assert estimate.lag == newey_west_lag(600)
    assert estimate.ci_low == pytest.approx(expected - 1.959964 * estimate.standard_error, rel=1e-6)
    assert estimate.ci_high == pytest.approx(2 * expected - estimate.ci_low, abs=1e-10)


def test_sharpe_error_is_the_hac_error_of_its_influence_function() -> None:
    returns = _daily(600, 5) + 0.0005
    estimate = sharpe(returns, _days(600))
    z = (returns - returns.mean()) / returns.std(ddof=1)
    daily = returns.mean() / returns.std(ddof=1)
    influence = z - daily / 2 * (z**2 - 1)
    hac = sm.OLS(influence, np.ones(600)).fit(
        cov_type="HAC", cov_kwds={"maxlags": estimate.lag, "use_correction": False}
    )
    assert estimate.standard_error == pytest.approx(hac.bse[0] * np.sqrt(252), abs=1e-10)


def test_sharpe_error_agrees_with_two_derivations_on_independent_returns() -> None:
    """Lo's closed form for normal returns, and the spread over many samples."""
    rng = np.random.default_rng(6)
    T = 500
    samples = 0.001 + 0.01 * rng.standard_normal((400, T))
    estimates = [sharpe(sample, _days(T)) for sample in samples]
    daily = 0.1
    lo = np.sqrt(252 * (1 + daily**2 / 2) / T)
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(lo, rel=0.03)
    assert np.std([e.value for e in estimates]) == pytest.approx(lo, rel=0.1)
    covered = np.mean([e.ci_low < daily * np.sqrt(252) < e.ci_high for e in estimates])
    assert 0.92 < covered < 0.97


def test_sharpe_error_sees_skew_that_the_normal_formula_misses() -> None:
    """Selling insurance: many small gains, rare large losses (influence of the second moment)."""
    rng = np.random.default_rng(7)
    T = 2000
    samples = 0.01 - 0.008 * rng.exponential(size=(300, T))
    estimates = [sharpe(sample, _days(T)) for sample in samples]
    spread = np.std([e.value for e in estimates])
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("returns", [np.zeros(50), np.full(50, 0.001), np.zeros(1), np.zeros(0)])
def test_a_book_that_never_moves_has_no_sharpe(returns: np.ndarray) -> None:
    estimate = sharpe(returns, _days(len(returns)))
    assert isinstance(estimate, SharpeEstimate)
    for number in (estimate.value, estimate.standard_error, estimate.ci_low, estimate.ci_high):
        assert np.isnan(number)


def test_sharpe_refuses_undated_weekly_and_missing_returns() -> None:
    returns = _daily(30, 8)
    with pytest.raises(InputError, match="undated"):
        sharpe(returns, np.arange(30))
    with pytest.raises(InputError, match="one return per trading day"):
        sharpe(returns, _days(150)[::5])
    with pytest.raises(InputError, match="1 of 30 values are not finite"):
        sharpe(np.where(np.arange(30) == 3, np.nan, returns), _days(30))


# Many trials, and what so many dates could have shown -----------------------------------------


@pytest.mark.parametrize("horizon", [2, 5, 20])
@pytest.mark.parametrize("T", [120, 1500])
def test_overlapping_returns_one_per_day_are_refused(horizon: int, T: int) -> None:
    """Five-day returns under a daily calendar: the root of 252 would inflate them."""
    rng = np.random.default_rng(horizon)
    for _ in range(5):
        daily = 0.01 * rng.standard_t(4, T + horizon - 1)
        overlapping = np.convolve(daily, np.ones(horizon), mode="valid")
        for function in (sharpe, probabilistic_sharpe):
            if horizon > 2 or T > 500:  # two-day returns over few dates may pass for stale prices
                with pytest.raises(InputError, match="overlapping returns of several days"):
                    function(overlapping, _days(T))
            function(daily[:T], _days(T))


@pytest.mark.parametrize("benchmark", [0.0, 0.8])
def test_the_probabilistic_sharpe_is_that_of_its_paper(benchmark: float) -> None:
    returns = _daily(500, 9) + 0.0006
    daily = returns.mean() / returns.std(ddof=1)
    skew, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    error = np.sqrt((1 - skew * daily + (kurtosis - 1) / 4 * daily**2) / 499)
    expected = stats.norm.cdf((daily - benchmark / np.sqrt(252)) / error)
    assert probabilistic_sharpe(returns, _days(500), benchmark) == pytest.approx(
        expected, abs=1e-10
    )


def test_the_best_of_many_trials_by_luck_is_what_simulation_finds() -> None:
    """Expected maximum of N independent ratios without skill, by drawing them."""
    T = 400
    rng = np.random.default_rng(10)
    for trials, tolerance in ((10, 0.05), (100, 0.02), (1000, 0.02)):
        best = rng.standard_normal((2000, trials)).max(axis=1).mean() * np.sqrt(252 / (T - 1))
        assert best_sharpe_by_luck(trials, T) == pytest.approx(best, rel=tolerance)
    first = stats.norm.ppf(1 - 1 / 100) * (1 - np.euler_gamma)
    second = stats.norm.ppf(1 - 1 / (100 * np.e)) * np.euler_gamma
    expected = (first + second) * np.sqrt(252 / 399)
    assert best_sharpe_by_luck(100, 400) == pytest.approx(expected, abs=1e-10)
    assert best_sharpe_by_luck(1, 400) == 0.0


def test_more_trials_deflate_more() -> None:
    returns, days = _daily(500, 11) + 0.0008, _days(500)
    probabilities = [deflated_sharpe(returns, days, trials) for trials in (1, 2, 20, 1000)]
    assert probabilities[0] == probabilistic_sharpe(returns, days)
    assert probabilities == sorted(probabilities, reverse=True)
    assert np.isnan(deflated_sharpe(np.zeros(50), _days(50), 3))
    with pytest.raises(InputError, match="trials = 0"):
        deflated_sharpe(returns, days, 0)


def test_a_difference_of_sharpes_knows_that_both_saw_the_same_market() -> None:
    """Its error over many samples, for two books that share most of what moves them."""
    rng = np.random.default_rng(12)
    found, errors = [], []
    for _ in range(300):
        market = 0.01 * rng.standard_normal(500)
        a = market + 0.003 * rng.standard_normal(500) + 0.0003
        b = market + 0.003 * rng.standard_normal(500)
        estimate = sharpe_difference(a, b, _days(500))
        assert estimate.mean == pytest.approx(
            sharpe(a, _days(500)).value - sharpe(b, _days(500)).value, abs=1e-10
        )
        found.append(estimate.mean)
        errors.append(estimate.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.1)
    assert np.mean(errors) < 0.4 * np.sqrt(2 * 252 / 500)


def test_the_smallest_detectable_effect_is_detected_as_often_as_stated() -> None:
    rng = np.random.default_rng(13)
    effect = smallest_detectable(0.1, power=0.8)
    assert effect == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.1, abs=1e-10)
    shown = np.abs(effect + 0.1 * rng.standard_normal(20_000)) > 1.959964 * 0.1
    assert shown.mean() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(InputError, match="power"):
        smallest_detectable(0.1, power=1.0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 19, 200])
def test_the_chance_of_a_t_is_that_of_scipy(degrees: int) -> None:
    for t in (0.0, 0.3, -1.0, 2.5, -7.2, 40.0, 1e6, -np.inf):
        expected = 2 * stats.t.sf(abs(t), degrees)
        assert student_t_chance(t, degrees) == pytest.approx(expected, abs=1e-13)
    assert np.isnan(student_t_chance(float("nan"), degrees))
    with pytest.raises(InputError, match="degrees = 0"):
        student_t_chance(1.0, 0)
