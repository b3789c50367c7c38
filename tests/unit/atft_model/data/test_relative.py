"""Returns relative to their date or sector, against loops over the stocks."""

from dataclasses import replace

import numpy as np
import pytest

from atft_model.data.panel import read_panel
from atft_model.data.relative import MIN_SECTOR, relative_returns, sector_share

SECTOR = np.array([0] * 4 + [1] * 7 + [2] * 9 + [3] * (MIN_SECTOR - 1))
"""Unknown, two sectors of some size, and one that is always too small."""


@pytest.fixture
def returns() -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((6, len(SECTOR), 2))
    values[rng.random(values.shape) < 0.2] = np.nan
    values[2] = np.nan
    values[3, SECTOR == 1, 0] = [0.1, 0.2, 0.3, 0.4, np.nan, np.nan, np.nan]
    values[4, SECTOR == 1, 0] = [0.1, 0.2, 0.3, 0.4, 0.5, np.nan, np.nan]
    return values


def plain(values: np.ndarray, stock: int, relative_to: str) -> float:
    """Of one date and horizon, [stocks]."""
    everyone = [v for v in values if not np.isnan(v)]
    mates = [v for v, s in zip(values, SECTOR, strict=True)
             if s == SECTOR[stock] and not np.isnan(v)]  # fmt: skip
    own = relative_to == "sector" and SECTOR[stock] != 0 and len(mates) >= MIN_SECTOR
    group = mates if own else everyone
    return values[stock] - sum(group) / len(group)


@pytest.mark.parametrize("relative_to", ["date", "sector"])
def test_it_is_each_return_less_the_mean_of_its_group(returns, relative_to):
    found = relative_returns(returns, SECTOR, relative_to)
    for date, stock, horizon in np.ndindex(returns.shape):
        if np.isnan(returns[date, stock, horizon]):
            assert np.isnan(found[date, stock, horizon])
            continue
        expected = plain(returns[date, :, horizon], stock, relative_to)
        assert found[date, stock, horizon] == pytest.approx(expected, abs=1e-12)


def test_what_a_whole_sector_does_is_gone_and_what_a_small_one_does_is_not(returns):
    moved = returns.copy()
    moved[:, SECTOR == 2] += 5.0
    before, after = (relative_returns(v, SECTOR, "sector") for v in (returns, moved))
    full = np.isfinite(returns[:, SECTOR == 2]).sum(axis=1) >= MIN_SECTOR
    assert full.sum() > 6
    kept = np.where(full[:, None], np.abs(after - before)[:, SECTOR == 2], np.nan)
    assert np.nanmax(kept) < 1e-12
    # The mean of the date moved, so those relative to it did.
    assert np.nanmin(np.abs(after - before)[:, SECTOR == 0]) > 0.5
    moved = returns.copy()
    moved[:, SECTOR == 3] += 5.0
    after = relative_returns(moved, SECTOR, "sector")
    assert np.nanmin((after - before)[:, SECTOR == 3]) > 3.0


def test_the_share_counts_the_returns_that_have_a_sector(stored_panel):
    panel = read_panel(stored_panel[0])
    assert sector_share(panel, "sector") == 1.0
    assert sector_share(panel, "date") == 0.0
    sector = np.zeros_like(panel.sector)
    assert sector_share(replace(panel, sector=sector), "sector") == 0.0
    sector[: MIN_SECTOR - 1] = 1
    assert sector_share(replace(panel, sector=sector), "sector") == 0.0
    sector[:20] = 2
    found = sector_share(replace(panel, sector=sector), "sector")
    part = slice(*panel.split.train)
    known = np.isfinite(panel.targets[part]) & panel.tradable[part][..., None]
    of_two = [min(c, 20) for c in known[:, :20].sum(axis=1).ravel().tolist()]
    assert min(of_two) >= MIN_SECTOR
    assert found == pytest.approx(sum(of_two) / int(known.sum()))


def test_without_known_sectors_it_is_relative_to_the_date(returns):
    nowhere = np.zeros_like(SECTOR)
    np.testing.assert_array_equal(
        relative_returns(returns, nowhere, "sector"), relative_returns(returns, nowhere, "date")
    )
