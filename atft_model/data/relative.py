"""Returns relative to those of other stocks on the same date. NumPy only, no torch."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from atft_model.data.panel import Panel

RelativeTo = Literal["date", "sector"]
MIN_SECTOR = 5
"""Known returns that a sector needs on a date; with fewer, its own stocks make up its mean."""


def date_mean(values: Float[np.ndarray, "dates stocks h"]) -> Float[np.ndarray, "dates 1 h"]:
    """Mean over a date's known stocks; NaN where nothing is known."""
    known = np.isfinite(values)
    count = known.sum(axis=1, keepdims=True)
    total = np.where(known, values, 0.0).sum(axis=1, keepdims=True)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def relative_returns(
    values: Float[np.ndarray, "dates stocks h"],
    sector: Int[np.ndarray, " stocks"],
    relative_to: RelativeTo,
) -> Float[np.ndarray, "dates stocks h"]:
    """Returns less the mean of their date, or of their sector on that date.

    Beside the market, a sector is what moves many stocks at once; of one stock against another of
    its sector that says nothing. Less of it is less noise to learn from. (Asness, Porter & Stevens
    2000 take predictors relative to the industry; whether sectors themselves are worth ranking:
    Ehsani, Harvey & Li 2023.) Stocks of an unknown sector (0), and those of sectors with fewer
    than ``MIN_SECTOR`` known returns on the date, are taken relative to the date.

    Args:
        values: NaN where unknown; unknown ones stay so.
        sector: One for all dates: the newest listing's, as a panel has it.
    """
    means = np.broadcast_to(date_mean(values), values.shape)
    if relative_to == "date":
        return values - means
    means = means.copy()
    for members, mean, enough in _sectors(values, sector):
        means[:, members] = np.where(enough, mean, means[:, members])
    return values - means


def training_returns(panel: Panel, index: int) -> Float[np.ndarray, "dates stocks 1"]:
    """Raw targets of one horizon on training dates, float64; NaN where not tradable or unknown."""
    part = slice(*panel.split.train)
    target = np.asarray(panel.targets[part, :, index], dtype=np.float64)
    known = np.asarray(panel.tradable[part]) & np.isfinite(target)
    return np.where(known, target, np.nan)[..., None]


def sector_share(panel: Panel, relative_to: RelativeTo) -> float:
    """Share of the training dates' known returns that are taken relative to a sector."""
    if relative_to == "date":
        return 0.0
    relative = total = 0
    for index in range(len(panel.horizons)):
        values = training_returns(panel, index)
        known = np.isfinite(values)
        total += int(known.sum())
        for members, _, enough in _sectors(values, np.asarray(panel.sector)):
            relative += int((known[:, members] & enough).sum())
    return relative / max(total, 1)


def _sectors(
    values: Float[np.ndarray, "dates stocks h"], sector: Int[np.ndarray, " stocks"]
) -> Iterator[tuple[np.ndarray, Float[np.ndarray, "dates 1 h"], Bool[np.ndarray, "dates 1 h"]]]:
    """Each known sector's stocks, its mean, and whether it has enough known returns."""
    for number in np.unique(sector[sector > 0]):
        members = np.flatnonzero(sector == number)
        mine = values[:, members]
        count = np.isfinite(mine).sum(axis=1, keepdims=True)
        yield members, date_mean(mine), count >= MIN_SECTOR
