"""The scan before training names columns and dates, and can be left out."""

import dataclasses

import numpy as np
import pytest

from atft_model.data.batches import fit_target_scale
from atft_model.data.panel import Panel
from atft_model.data.toy_panel import make_panel
from atft_model.errors import InputError
from atft_model.training.scan import scan_panel


def changed(name: str, cells: tuple, value: float) -> Panel:
    panel = make_panel()
    array = np.array(getattr(panel, name))
    array[cells] = value
    return dataclasses.replace(panel, **{name: array})


def test_a_clean_panel_passes():
    """Unknown cells are no fault: they are masked."""
    panel = make_panel()
    assert np.isnan(panel.features).any()
    scan_panel(panel)


@pytest.mark.parametrize(
    ("panel", "words"),
    [
        (changed("features", (7, 3, 2), np.inf), "feature_2: 1 infinite values on 2020-01-08;"),
        (changed("features", (slice(2, 4), 5, 0), -np.inf),
         "feature_0: 2 infinite values on 2 dates, 2020-01-03 to 2020-01-04"),
        (changed("targets", (9, 3, 3), np.inf), "target_20d: 1 infinite values on 2020-01-10"),
        (changed("features", (slice(None), slice(None), 4), np.nan),
         "feature_4: no known feature on any training date"),
        (changed("targets", (slice(0, 125), slice(None), 0), np.nan),
         "target_1d: no known target on any training date"),
    ],
)  # fmt: skip
def test_what_no_mask_can_mend_is_named_with_its_dates(panel, words):
    with pytest.raises(InputError) as error:
        scan_panel(panel)
    assert words in str(error.value)
    # No target's scale, no training: there is nothing to go on with.
    assert ("SKIP_PRETRAIN_NAN_SCAN=1" in str(error.value)) is ("target" not in words)


def test_an_infinite_target_that_was_not_scanned_for_is_refused_all_the_same():
    panel = changed("targets", (9, 6, 3), np.inf)
    with pytest.raises(InputError, match="the 20-day target is infinite on a training date"):
        fit_target_scale(panel, (0, 125))


def test_many_faults_are_counted_not_listed():
    everywhere = changed("features", (3, 3), np.inf)
    with pytest.raises(
        InputError, match=r"feature_4: 1 infinite values on 2020-01-04 \(and 1 more\)"
    ):
        scan_panel(everywhere)
