"""The check on the tensor itself is seen to fail, one fault at a time."""

import dataclasses

import numpy as np
import pytest

from atft_model.data.panel import Panel, read_panel
from atft_pipeline.checks.tables import PanelGate, panel_is_alive

GATE = PanelGate()


@pytest.fixture
def panel(stored_panel) -> Panel:
    """In memory; 39 tradable stocks on the median date."""
    read = read_panel(stored_panel[0])
    arrays = ("features", "observed", "tradable", "targets", "daily_return")
    return dataclasses.replace(read, **{name: np.array(getattr(read, name)) for name in arrays})


def _faults(panel: Panel, gate: PanelGate = GATE) -> list[str]:
    outcome = panel_is_alive(panel, gate)
    assert outcome.stops is not outcome.passed
    return (outcome.details or "").splitlines()


def _part(panel: Panel, part: str) -> slice:
    return slice(*panel.split.parts()[part])


def test_a_sound_panel_passes_with_its_figures(panel):
    outcome = panel_is_alive(panel, GATE)
    assert outcome.passed
    assert outcome.numbers["fewest_stocks/test"] >= 30
    assert outcome.numbers["zero_share/train"] < 0.001
    assert outcome.numbers["known_share/validation"] == 1.0


@pytest.mark.parametrize("array", ["features", "targets", "daily_return"])
def test_an_infinite_value_fails(panel, array):
    first = panel.split.test[0]
    stock = int(np.flatnonzero(panel.observed[first])[0])
    getattr(panel, array)[first, stock] = np.inf
    (fault,) = _faults(panel)
    assert fault.startswith("- test: ")
    assert fault.endswith(f"infinite values in {array}")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_feature_that_died_on_any_part_is_named(panel, part, value):
    panel.features[_part(panel, part), :, 2] = value
    assert _faults(panel) == [f"- {part}: feature_2 is always {value:g}"]


def test_rounding_noise_is_no_variation(panel):
    noise = np.random.default_rng(0).standard_normal(panel.features.shape[:2])
    panel.features[..., 2] = 1000.0 * (1.0 + 1e-8 * noise)
    assert len(_faults(panel)) == 3


def test_an_unknown_feature_is_named(panel):
    panel.features[_part(panel, "validation"), :, 4] = np.nan
    assert _faults(panel) == ["- validation: feature_4 is never known"]


def test_a_flag_must_vary_in_training_only(panel):
    kinds = ("cross_section", "none", *panel.normalizers[2:])
    flagged = dataclasses.replace(panel, normalizers=kinds)
    flagged.features[_part(panel, "validation"), :, 1] = 1.0
    assert _faults(flagged) == []
    flagged.features[_part(panel, "train"), :, 1] = 1.0
    assert _faults(flagged) == ["- train: feature_1 is always 1"]


def test_exact_zeros_of_a_feature_are_limited(panel):
    panel.features[:, :24, 2] = 0.0
    faults = _faults(panel)
    assert len(faults) == 3
    assert faults[0].startswith("- train: feature_2 is exactly 0 in 59%")


def test_slices_of_one_stock_under_a_score_are_named(panel):
    """The historical failure: every score is 0 except where the slice was no single stock."""
    panel.features[:, 2:, :-1] = 0.0
    outcome = panel_is_alive(panel, GATE)
    assert outcome.numbers["faults"] == 15
    assert outcome.numbers["zero_share/train"] > 0.7


def test_too_few_stocks_fail_on_the_median_date_or_on_many(panel):
    panel.tradable[_part(panel, "test"), 20:] = False
    assert _faults(panel) == ["- test: median 19 tradable stocks"]


def test_some_thin_dates_fail_too(panel):
    first, last = panel.split.validation
    assert _faults(panel) == []
    panel.tradable[first : first + (last - first) // 3, 20:] = False
    (fault,) = _faults(panel)
    assert fault.startswith("- validation: ")
    assert fault.endswith("of dates have fewer than 30 tradable stocks")
