"""Folds: each period's parts come before it, gaps in trading days, statistics of its own."""

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest

from atft_model.data.folds import Fold, WalkForwardConfig, panel_of_fold, period_of, plan_folds
from atft_model.data.normalizer import winsorized_moments
from atft_model.data.panel import fit_statistics
from atft_model.data.splits import Split
from atft_model.data.toy_panel import make_panel
from atft_model.errors import InputError

PANEL = replace(make_panel(dates=420, stocks=8), hash="p")  # every calendar day from 2020-01-01
SMALL = WalkForwardConfig("quarter", validation_dates=30, embargo=3, min_train_dates=60)
GAP = 20 + 1 + 3  # largest horizon, execution lag, embargo


def test_quarters_and_years_are_calendar_ones():
    assert period_of(dt.date(2020, 3, 31), "quarter") == "2020-Q1"
    assert period_of(dt.date(2020, 4, 1), "quarter") == "2020-Q2"
    assert period_of(dt.date(2020, 12, 31), "quarter") == "2020-Q4"
    assert period_of(dt.date(2020, 12, 31), "year") == "2020"


def test_parts_lie_a_gap_apart_before_their_period():
    folds, left_out = plan_folds(PANEL, SMALL)
    assert [fold.period for fold in folds] == ["2020-Q3", "2020-Q4", "2021-Q1"]
    assert list(left_out) == ["2020-Q1", "2020-Q2"]
    assert "fewer than 60" in left_out["2020-Q2"]
    covered = []
    for fold in folds:
        split = fold.split
        assert split.test[0] - split.validation[1] == GAP
        assert split.validation[0] - split.train[1] == GAP
        assert split.validation[1] - split.validation[0] == 30
        assert split.train[0] == 0
        inside = [period_of(day, "quarter") for day in PANEL.dates[slice(*split.test)]]
        assert set(inside) == {fold.period}
        covered += range(*split.test)
    assert covered == list(range(folds[0].split.test[0], len(PANEL.dates)))  # no hole, no overlap


def test_a_window_of_fixed_length_forgets_the_oldest_dates():
    folds, _ = plan_folds(PANEL, replace(SMALL, train_dates=70))
    assert [f.split.train[1] - f.split.train[0] for f in folds] == [70, 70, 70]


def test_training_begins_where_stocks_are_tradable():
    tradable = PANEL.tradable.copy()
    tradable[:40] = False
    folds, left_out = plan_folds(replace(PANEL, tradable=tradable), SMALL)
    assert {fold.split.train[0] for fold in folds} == {40}
    assert "2020-Q3" in [fold.period for fold in folds]
    tradable[:] = False
    with pytest.raises(InputError, match="no stock is tradable"):
        plan_folds(replace(PANEL, tradable=tradable), SMALL)
    assert "2020-Q2" in left_out


def test_statistics_are_those_of_the_folds_own_training_dates():
    (fold, *_), _ = plan_folds(PANEL, SMALL)
    mine = fit_statistics(panel_of_fold(PANEL, fold), fold.split.train)
    first, last = fold.split.train
    rows = PANEL.features[first:last, :, -1][PANEL.observed[first:last]]
    moments = winsorized_moments(rows[None], 0.005, 0.995)
    assert mine.mean[0] == pytest.approx(moments.mean[0], rel=1e-6)
    whole = fit_statistics(PANEL, PANEL.split.train)
    assert mine.mean[0] != whole.mean[0]


def test_features_that_say_nothing_before_the_period_are_left_out() -> None:
    (fold, *_), _ = plan_folds(PANEL, SMALL)
    first, last = fold.split.train
    features = PANEL.features.copy()
    features[:last, :, 0] = np.nan
    features[first:last, :, -1] = 0.0
    features[first, np.flatnonzero(PANEL.observed[first])[0], -1] = 7.0  # one row of hundreds
    late = panel_of_fold(replace(PANEL, features=features), fold)
    gone = {PANEL.feature_names[0], PANEL.feature_names[-1]}
    assert set(late.left_out) == gone
    assert "nearly constant" in late.left_out[PANEL.feature_names[-1]]
    assert late.feature_names == tuple(n for n in PANEL.feature_names if n not in gone)
    assert len(late.normalizers) == late.features.shape[-1] == len(late.feature_names)
    np.testing.assert_array_equal(late.features, features[..., 1:-1])
    assert panel_of_fold(PANEL, fold).left_out == {}
    features[:last] = np.nan
    with pytest.raises(InputError, match="every feature is unknown or constant"):
        panel_of_fold(replace(PANEL, features=features), fold)


def test_a_fold_of_another_panel_is_refused():
    (fold, *_), _ = plan_folds(PANEL, SMALL)
    with pytest.raises(InputError, match="materialize test_periods again"):
        panel_of_fold(replace(PANEL, hash="other"), fold)


def test_a_fold_whose_labels_cross_is_refused():
    crossing = Fold("2020-Q3", "p", Split((0, 100), (121, 150), (160, 200)))
    with pytest.raises(InputError, match="last validation label"):
        panel_of_fold(PANEL, crossing)


@pytest.mark.parametrize("name", ["validation_dates", "min_train_dates", "embargo"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is -1"):
        plan_folds(PANEL, replace(SMALL, **{name: -1}))


def test_a_fold_survives_json():
    (fold, *_), _ = plan_folds(PANEL, SMALL)
    assert Fold.from_dict(fold.to_dict()) == fold
    with pytest.raises(InputError, match="no panel_hash, test"):
        Fold.from_dict({"period": "x", "train": [0, 1], "validation": [2, 3]})


def test_calendar_days_do_not_stand_for_trading_days():
    """With weekends taken out of the calendar the gap is still GAP rows."""
    keep = np.array([day.weekday() < 5 for day in PANEL.dates])
    weekdays = replace(
        PANEL,
        dates=tuple(np.array(PANEL.dates)[keep].tolist()),
        tradable=PANEL.tradable[keep],
    )
    for fold in plan_folds(weekdays, replace(SMALL, min_train_dates=20))[0]:
        assert fold.split.test[0] - fold.split.validation[1] == GAP
