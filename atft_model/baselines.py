"""What the model must beat: scores that anyone has, from the same panel. NumPy only, no torch.

Each baseline is a score [dates, stocks], higher meaning a higher expected return, that uses data up
to the close of its date; NaN where a stock has too little history.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from atft_model.data.normalizer import TimeSeriesStatistics, apply_time_series
from atft_model.data.panel import Panel, fit_statistics
from atft_model.data.relative import RelativeTo, relative_returns, training_returns
from atft_model.metrics.rank_ic import rank_ic

RIDGE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalty per training row's worth of feature variance; the best on validation dates is taken."""


def reversal(panel: Panel, days: int) -> Float[np.ndarray, "dates stocks"]:
    """Minus the return of the last ``days`` trading days (Jegadeesh 1990)."""
    return -_trailing_log_return(panel, days)


def momentum_12_1(panel: Panel) -> Float[np.ndarray, "dates stocks"]:
    """Return from 252 to 21 trading days ago (Jegadeesh & Titman 1993, skipping a month)."""
    return _shift(_trailing_log_return(panel, 252 - 21), 21)


def low_volatility(panel: Panel, days: int = 60) -> Float[np.ndarray, "dates stocks"]:
    """Minus the standard deviation of the last ``days`` daily returns."""
    daily, known = _daily(panel)
    count = _trailing_sum(known.astype(np.float64), days)
    enough = count >= 0.7 * days
    mean = _trailing_sum(daily, days) / np.maximum(count, 1)
    square = _trailing_sum(daily**2, days) / np.maximum(count, 1)
    return np.where(enough, -np.sqrt(np.maximum(square - mean**2, 0.0)), np.nan)


def random_scores(panel: Panel, seed: int = 1337) -> Float[np.ndarray, "dates stocks"]:
    """Noise where a stock is tradable: what no skill looks like."""
    noise = np.random.default_rng(seed).standard_normal(panel.tradable.shape)
    return np.where(panel.tradable, noise, np.nan)


def shuffled_within_date(
    score: Float[np.ndarray, "dates stocks"], seed: int = 1337
) -> Float[np.ndarray, "dates stocks"]:
    """The same scores of each date, dealt to its stocks at random: the model without its choice."""
    rng = np.random.default_rng(seed)
    shuffled = np.full_like(score, np.nan)
    for day, row in enumerate(score):
        known = np.flatnonzero(np.isfinite(row))
        shuffled[day, known] = row[rng.permutation(known)]
    return shuffled


def ridge(
    panel: Panel, horizon: int, relative_to: RelativeTo = "date"
) -> Float[np.ndarray, "dates stocks"]:
    """Linear regression of the demeaned forward return on the panel's features, L2-penalised."""
    weights = ridge_weights(panel, horizon, relative_to)
    statistics = fit_statistics(panel, panel.split.train)
    score = np.stack(
        [day_features(panel, statistics, day) @ weights for day in range(len(panel.dates))]
    )
    return np.where(panel.observed, score, np.nan)


def ridge_weights(
    panel: Panel, horizon: int, relative_to: RelativeTo = "date"
) -> Float[np.ndarray, " features"]:
    """Coefficients of ``ridge``, one for each normalized feature.

    Fitted on tradable rows of the training dates; the penalty with the best rank IC on validation
    dates is kept. Unknown features count as their mean, as they do for the model.
    """
    index = panel.horizons.index(horizon)
    statistics = fit_statistics(panel, panel.split.train)
    sector = np.asarray(panel.sector)
    returns = relative_returns(training_returns(panel, index), sector, relative_to)
    gram, moment, rows = normal_equations(panel, returns, statistics)
    width = len(moment)
    best, best_ic = np.zeros(width), -np.inf
    for penalty in RIDGE_PENALTIES:
        weights = np.linalg.solve(gram + penalty * max(rows, 1) * np.eye(width), moment)
        found = validation_rank_ic(panel, index, lambda x, w=weights: x @ w, statistics)
        if found > best_ic:
            best, best_ic = weights, found
    return best


def normal_equations(
    panel: Panel, returns: Float[np.ndarray, "dates stocks 1"], statistics: TimeSeriesStatistics
) -> tuple[Float[np.ndarray, "features features"], Float[np.ndarray, " features"], int]:
    """Sums of x xᵀ and of x y over rows of the training dates with a return, and how many rows.

    Features are demeaned within the date, so what its returns share explains nothing.

    Args:
        returns: Of the training dates; NaN where there is no row.
    """
    width = len(panel.feature_names)
    gram, moment, rows = np.zeros((width, width)), np.zeros(width), 0
    for day, target in zip(range(*panel.split.train), returns[..., 0], strict=True):
        features, use = day_features(panel, statistics, day), np.isfinite(target)
        if use.sum() < 2:
            continue
        x = features[use] - features[use].mean(axis=0)
        y = target[use] - target[use].mean()
        gram += x.T @ x
        moment += x.T @ y
        rows += len(y)
    return gram, moment, rows


def baseline_scores(
    panel: Panel, progress: Callable[[str], None] = lambda name: None
) -> dict[str, dict[int, Float[np.ndarray, "dates stocks"]]]:
    """Every baseline's score for every horizon of the panel, by name.

    Args:
        progress: Told each baseline's name before it is computed.
    """
    makers: dict[str, Callable[[int], np.ndarray]] = {
        "reversal_1d": lambda horizon: reversal(panel, 1),
        "reversal_5d": lambda horizon: reversal(panel, 5),
        "momentum_12_1": lambda horizon: momentum_12_1(panel),
        "low_volatility_60d": lambda horizon: low_volatility(panel),
        "random": lambda horizon: random_scores(panel, seed=horizon),
        "ridge": lambda horizon: ridge(panel, horizon),
    }
    scores: dict[str, dict[int, np.ndarray]] = {}
    for name, maker in makers.items():
        progress(name)
        per_horizon = {}
        for horizon in panel.horizons:
            repeat = per_horizon and name not in ("random", "ridge")
            score = next(iter(per_horizon.values())) if repeat else maker(horizon)
            per_horizon[horizon] = np.where(panel.tradable, score, np.nan)
        scores[name] = per_horizon
    return scores


def day_features(panel: Panel, statistics: TimeSeriesStatistics, day: int) -> np.ndarray:
    """One date's normalized features, unknown ones 0. float64 [stocks, features]"""
    columns = panel.time_series_columns()
    features = np.array(panel.features[day], dtype=np.float64)
    if columns:
        features[:, columns] = apply_time_series(features[:, columns], statistics)
    return np.nan_to_num(features)


def validation_rank_ic(
    panel: Panel, index: int, predict: Callable[[np.ndarray], np.ndarray],
    statistics: TimeSeriesStatistics,
) -> float:  # fmt: skip
    """Mean rank IC of a fitted function of the features on validation dates; -inf if undefined."""
    days = range(*panel.split.validation)
    score = np.stack([predict(day_features(panel, statistics, day)) for day in days])
    target = np.asarray(panel.targets[days.start : days.stop, :, index], dtype=np.float64)
    valid = np.asarray(panel.tradable[days.start : days.stop]) & np.isfinite(target)
    daily = rank_ic(score, target, valid, min_stocks=20)
    known = daily[np.isfinite(daily)]
    return float(known.mean()) if known.size else -np.inf


def _daily(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(panel.daily_return)
    return np.where(known, panel.daily_return, 0.0).astype(np.float64), known


def _trailing_log_return(panel: Panel, days: int) -> np.ndarray:
    """Sum of the last ``days`` log returns; NaN unless most of them are known."""
    daily, known = _daily(panel)
    total = _trailing_sum(np.log1p(np.maximum(daily, -0.99)), days)
    return np.where(_trailing_sum(known.astype(np.float64), days) >= 0.7 * days, total, np.nan)


def _trailing_sum(values: np.ndarray, days: int) -> np.ndarray:
    """Sum over the last ``days`` rows; NaN for the rows that have fewer."""
    total = np.cumsum(values, axis=0)
    result = total.copy()
    result[days:] -= total[:-days]
    result[: days - 1] = np.nan
    return result


def _shift(values: np.ndarray, days: int) -> np.ndarray:
    shifted = np.full_like(values, np.nan)
    shifted[days:] = values[:-days]
    return shifted
