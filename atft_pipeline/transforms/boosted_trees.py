"""A control that the model must beat: boosted trees on the same features and the same split.

Ke and others (2017), by LightGBM: what a practitioner tries first on a table of features.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from atft_model.baselines import day_features, validation_rank_ic
from atft_model.data.normalizer import TimeSeriesStatistics
from atft_model.data.panel import Panel, fit_statistics

if TYPE_CHECKING:
    import lightgbm

ROUNDS = (10, 25, 50, 100)
"""Numbers of trees; the best on validation dates is taken."""
MAX_ROWS = 100_000
"""Training rows; above that, every second, third, ... date is used: neighbours hardly differ."""
PARAMETERS = {
    "objective": "regression",
    "learning_rate": 0.08,
    "num_leaves": 31,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "seed": 1337,
    "deterministic": True,
    "force_row_wise": True,
    # Its threads spin while they wait: on a busy machine two take a hundred times as long as one.
    "num_threads": 1,
    "max_bin": 63,
    "verbosity": -1,
}


def boosted_trees(panel: Panel) -> dict[int, np.ndarray]:
    """Scores [dates, stocks] by horizon; NaN without a bar.

    Fitted on tradable rows of the training dates to the forward return, demeaned within the date.
    Unknown features count as their mean, as they do for the model.
    """
    import lightgbm  # half a second of processor time with scipy: not at definition load

    statistics = fit_statistics(panel, panel.split.train)
    first, last = panel.split.train
    rows = int(np.asarray(panel.tradable[first:last]).sum())
    days = range(first, last, max(1, -(-rows // MAX_ROWS)))
    features = np.concatenate(
        [day_features(panel, statistics, day)[panel.tradable[day]] for day in days]
    ).astype(np.float32)
    table = lightgbm.Dataset(features, free_raw_data=False, params=PARAMETERS)
    scores = {}
    for index, horizon in enumerate(panel.horizons):
        goal, known = _demeaned_targets(panel, days, index)
        table.set_label(goal).set_weight(known)
        booster = lightgbm.train(PARAMETERS, table, num_boost_round=max(ROUNDS))
        quality = {
            rounds: validation_rank_ic(
                panel, index, partial(_predict, booster, rounds=rounds), statistics
            )
            for rounds in ROUNDS
        }
        best = max(quality, key=lambda rounds: quality[rounds])
        scores[horizon] = _score(booster, best, panel, statistics)
    return scores


def _demeaned_targets(panel: Panel, days: range, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets of the tradable rows in standard deviations, and 1 where known, 0 where not."""
    goals = []
    for day in days:
        target = np.asarray(panel.targets[day, :, index], dtype=np.float64)[panel.tradable[day]]
        known = np.isfinite(target)
        goals.append(target - target[known].mean() if known.any() else target)
    goal = np.concatenate(goals)
    known = np.isfinite(goal)
    return np.where(known, goal, 0.0) / goal[known].std(), known.astype(np.float32)


def _predict(booster: "lightgbm.Booster", features: np.ndarray, rounds: int) -> np.ndarray:
    predicted = booster.predict(features.astype(np.float32), num_iteration=rounds, num_threads=1)
    return np.asarray(predicted)


def _score(
    booster: "lightgbm.Booster", rounds: int, panel: Panel, statistics: TimeSeriesStatistics
) -> np.ndarray:
    """Validation and test dates; earlier ones are never evaluated."""
    score = np.full(panel.tradable.shape, np.nan)
    for day in range(panel.split.validation[0], len(panel.dates)):
        score[day] = _predict(booster, day_features(panel, statistics, day), rounds)
    return np.where(panel.observed, score, np.nan)
