"""Time-series normalization: statistics fitted on training rows, applied to arrays or tensors.

Market-wide features, and those whose level over time carries the meaning, are scaled here. Scores
within a date need no fitted state and belong to the pipeline that writes the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from atft_model.errors import InputError

if TYPE_CHECKING:
    import torch

    Values = TypeVar("Values", np.ndarray, torch.Tensor)
else:
    Values = TypeVar("Values")

LOWER_QUANTILE = 0.005
UPPER_QUANTILE = 0.995
CLIP = 5.0
"""In standard deviations; nothing reaches the model beyond it."""

FLOAT32_NOISE = 1e-6
"""A spread below this share of the values' size is float32 rounding, not information."""

SETTLED = 1e-3
"""In standard deviations: a limit that would move less stays."""

MAX_PASSES = 8
"""A log-normal with sigma 3 comes within 2 % of its fixed point; a 0/1 column has none."""


@dataclass(frozen=True, eq=False)
class TimeSeriesStatistics:
    """What training rows say about each feature.

    Attributes:
        features: Names, in the order of the arrays and of the last axis they apply to.
        lower: 0.5 % quantile, in the feature's unit.
        upper: 99.5 % quantile.
        mean: Mean after winsorizing at the two.
        std: Population standard deviation after winsorizing; above 0.
    """

    features: tuple[str, ...]
    lower: Float[np.ndarray, " features"]
    upper: Float[np.ndarray, " features"]
    mean: Float[np.ndarray, " features"]
    std: Float[np.ndarray, " features"]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON; ``from_dict`` gives the same float32 values back."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {"features": list(self.features), **arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TimeSeriesStatistics":
        """Reads what ``to_dict`` wrote.

        Raises:
            InputError: A key is missing, or the lists differ in length.
        """
        missing = sorted({"features", *_ARRAYS} - values.keys())
        if missing:
            raise InputError(
                f"time-series statistics: no {', '.join(missing)}; expected features, "
                f"{', '.join(_ARRAYS)}; write them with TimeSeriesStatistics.to_dict"
            )
        lengths = {name: len(values[name]) for name in ("features", *_ARRAYS)}
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"time-series statistics: lengths {lengths}; expected one value per feature; "
                "fit them again"
            )
        arrays = {name: np.asarray(values[name], dtype=np.float32) for name in _ARRAYS}
        return cls(features=tuple(values["features"]), **arrays)


_ARRAYS = ("lower", "upper", "mean", "std")


def fit_time_series(
    values: Float[np.ndarray, "rows features"], names: Sequence[str]
) -> TimeSeriesStatistics:
    """Winsorizing limits, mean and standard deviation of each feature's finite values.

    Args:
        values: Raw units, training rows only; NaN where unknown.
        names: One per column.

    Raises:
        InputError: A feature has no finite value, or one value between its two quantiles: it
            tells nothing, and dividing by its spread would blow up every later date.
    """
    if values.shape[1] != len(names):
        raise InputError(
            f"time-series statistics: {values.shape[1]} columns and {len(names)} names; expected "
            "one name per column"
        )
    fitted = np.empty((len(_ARRAYS), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        moments = winsorized_moments(values[None, :, column], LOWER_QUANTILE, UPPER_QUANTILE)
        fitted[:, column] = [moments.lower[0], moments.upper[0], moments.mean[0], moments.std[0]]
        if moments.count[0] == 0:
            raise InputError(
                f"time-series statistics: feature '{name}' has no finite value on training rows; "
                "leave it out or train on later dates"
            )
        if moments.std[0] == 0.0:
            raise InputError(
                f"time-series statistics: feature '{name}' is {moments.lower[0]:g} on 99 % of "
                "training rows or more; leave it out"
            )
    return TimeSeriesStatistics(tuple(names), *fitted)


@dataclass(frozen=True, eq=False)
class WinsorizedMoments:
    """Limits, and mean and population standard deviation within them, one per series."""

    count: Int[np.ndarray, " series"]
    lower: Float[np.ndarray, " series"]
    upper: Float[np.ndarray, " series"]
    mean: Float[np.ndarray, " series"]
    std: Float[np.ndarray, " series"]


def winsorized_moments(
    values: Float[np.ndarray, "series rows"], lower_quantile: float, upper_quantile: float
) -> WinsorizedMoments:
    """Mean and spread that outliers cannot move, of each series' finite values.

    Values are pulled in to the series' two quantiles (linear interpolation). Where a tail is so
    heavy that the quantile still lies beyond ``CLIP`` standard deviations, the limit is pulled in
    to there and the moments are taken again, up to ``MAX_PASSES`` times: otherwise cutting the
    scores at ``±CLIP`` would leave them with a standard deviation well under 1 (0.77 for a
    log-normal volume with sigma 2).

    Returns:
        ``std`` is 0 where the values between the two quantiles are equal up to float32 rounding.
        All but ``count`` are NaN where a series has no finite value.
    """
    known = np.isfinite(values)
    count = known.sum(axis=1)
    ordered = np.where(known, values, np.nan).astype(np.float64)
    ordered.sort(axis=1)  # unknown values end up last
    lower = _quantile(ordered, count, lower_quantile)
    upper = _quantile(ordered, count, upper_quantile)
    mean, std = _moments(ordered, count, lower, upper)
    flat = std <= FLOAT32_NOISE * np.maximum(np.abs(lower), np.abs(upper))
    for _ in range(MAX_PASSES):
        inner_lower = np.fmax(lower, mean - CLIP * std)
        inner_upper = np.fmin(upper, mean + CLIP * std)
        moved = np.maximum(inner_lower - lower, upper - inner_upper) > SETTLED * std
        if not (moved & ~flat).any():
            break
        lower, upper = np.where(flat, lower, inner_lower), np.where(flat, upper, inner_upper)
        mean, std = _moments(ordered, count, lower, upper)
    std = np.where(flat, 0.0, std)
    return WinsorizedMoments(count, lower, upper, mean, std)


def _quantile(
    ordered: Float[np.ndarray, "series rows"], count: Int[np.ndarray, " series"], share: float
) -> Float[np.ndarray, " series"]:
    """Linear interpolation between order statistics of the first ``count`` values."""
    position = share * np.maximum(count - 1, 0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    series = np.arange(len(count))
    step = ordered[series, above] - ordered[series, below]
    return ordered[series, below] + (position - below) * step


def _moments(
    ordered: Float[np.ndarray, "series rows"],
    count: Int[np.ndarray, " series"],
    lower: Float[np.ndarray, " series"],
    upper: Float[np.ndarray, " series"],
) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
    """Mean and population standard deviation of the values pulled in to the limits."""
    pulled_in = ordered.clip(lower[:, None], upper[:, None])
    entries = np.where(count > 0, count, np.nan)
    mean = np.nansum(pulled_in, axis=1) / entries
    return mean, np.sqrt(np.nansum((pulled_in - mean[:, None]) ** 2, axis=1) / entries)


def apply_time_series(x: Values, statistics: TimeSeriesStatistics) -> Values:
    """``(x pulled in to [lower, upper] - mean) / std``, cut at ±5.

    Args:
        x: A NumPy array or a torch tensor on any device, features on the last axis, raw units.
        statistics: For exactly these features, in this order.

    Returns:
        Same shape, type and device; NaN stays NaN.

    Raises:
        InputError: The last axis holds another number of features.
    """
    if x.shape[-1] != len(statistics.features):
        raise InputError(
            f"time-series statistics: {len(statistics.features)} features and "
            f"{x.shape[-1]} columns; apply them to the columns they were fitted on"
        )
    winsorized = x.clip(_like(x, statistics.lower), _like(x, statistics.upper))
    score = (winsorized - _like(x, statistics.mean)) / _like(x, statistics.std)
    return score.clip(-CLIP, CLIP)


def _like(x: Values, values: Float[np.ndarray, " features"]) -> Values:
    """``values`` as an array or tensor of ``x``'s type, precision and device."""
    if isinstance(x, np.ndarray):
        return values.astype(x.dtype)
    return x.new_tensor(values)
