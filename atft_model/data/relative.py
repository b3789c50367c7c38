"""Returns relative to those of other stocks on the same date. NumPy only, no torch."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

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

    What all stocks of a sector do together is most of what a day's returns have in common and says
    nothing of one stock against another of its sector: less of it, less noise to learn from
    (industry-neutral returns: Asness, Porter & Stevens 2000). Stocks of an unknown sector (0), and
    those of sectors with fewer than ``MIN_SECTOR`` known returns on the date, are taken relative
    to the date.

    Args:
        values: NaN where unknown; unknown ones stay so.
    """
    mean = date_mean(values)
    if relative_to == "date":
        return values - mean
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    means = np.broadcast_to(mean, values.shape).copy()
    for number in np.unique(sector[sector > 0]):
        members = np.flatnonzero(sector == number)
        count = known[:, members].sum(axis=1, keepdims=True)
        total = filled[:, members].sum(axis=1, keepdims=True)
        own = total / np.maximum(count, 1)
        means[:, members] = np.where(count >= MIN_SECTOR, own, means[:, members])
    return values - means
