"""Facts of the market against slow loops."""

import dataclasses

import numpy as np
import pytest

from atft_model.data.market_facts import (
    SILENT_DAYS,
    MarketFacts,
    beta,
    known_factors,
    left_market,
    require_panel_shape,
)
from atft_model.data.panel import Panel, read_panel
from atft_model.errors import InputError


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


def test_a_stock_left_on_the_day_after_its_last_bar() -> None:
    observed = np.ones((60, 5), dtype=bool)
    observed[30:, 1] = False  # left
    observed[60 - SILENT_DAYS + 1 :, 2] = False  # silent, perhaps halted
    observed[:, 3] = False  # never came
    observed[10:20, 4] = False  # halted, came back
    assert np.argwhere(left_market(observed)).tolist() == [[30, 1]]


def test_beta_is_the_slope_of_a_regression(panel) -> None:
    found = beta(panel, 60)
    daily = np.asarray(panel.daily_return, dtype=np.float64)
    market = np.array([
        daily[day][np.asarray(panel.tradable[day]) & np.isfinite(daily[day])].mean()
        for day in range(len(daily))
    ])  # fmt: skip
    for day, stock in ((59, 0), (100, 7), (200, 12), (239, 39)):
        window = slice(day - 59, day + 1)
        known = np.isfinite(daily[window, stock])
        slope = np.polyfit(market[window][known], daily[window, stock][known], 1)[0]
        assert found[day, stock] == pytest.approx(slope, abs=1e-8)
    assert np.isnan(found[:59]).all()
    assert np.isnan(found[100, 3])  # listed on day 80: too few bars


def test_no_factor_sees_the_next_day(panel) -> None:
    value = np.random.default_rng(0).random(panel.tradable.shape)
    later = np.array(panel.daily_return)
    later[150:] = 0.5
    changed = dataclasses.replace(panel, daily_return=later)
    before = known_factors(panel, MarketFacts(traded_value=value))
    after = known_factors(changed, MarketFacts(traded_value=value))
    assert set(before) == {"reversal", "momentum", "beta", "size"}
    for name in before:
        np.testing.assert_array_equal(before[name][:150], after[name][:150])
    assert "size" not in known_factors(panel, MarketFacts())


def test_facts_of_another_panel_are_refused(panel) -> None:
    with pytest.raises(InputError, match=r"traded_value has shape \(3, 4\)"):
        require_panel_shape(panel, MarketFacts(traded_value=np.ones((3, 4))))
