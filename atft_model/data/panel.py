"""The panel: dense [dates, stocks, ...] arrays that a model trains on. NumPy only, no torch.

Features with a per-date normalizer arrive normalized; time-series ones arrive in raw units, because
each split fits its own statistics on its own training dates. Unknown entries are NaN, never filled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from atft_model.data.artifacts import RawFile, current_version, publish, read_manifest
from atft_model.data.normalizer import (
    LOWER_QUANTILE,
    UPPER_QUANTILE,
    TimeSeriesStatistics,
    fit_time_series,
    winsorized_moments,
)
from atft_model.data.splits import Split
from atft_model.errors import InputError

FORMAT = 3
"""Layout version of the panel; raise it when a reader of the old layout would misread the new."""


@dataclass(frozen=True)
class Panel:
    """Arrays over dates × stocks and what names their axes.

    Attributes:
        features: float32 [dates, stocks, features]; NaN where unknown.
        observed: bool [dates, stocks]; a valid bar exists.
        tradable: bool [dates, stocks]; member of the trading universe.
        targets: float32 [dates, stocks, horizons]; forward return
            close[t+1+h] / close[t+1] - 1, NaN where unknown.
        daily_return: float32 [dates, stocks]; from the stock's previous bar to this one, split
            adjusted; NaN where there is no bar.
        sector, market: int16 [stocks]; positions in ``sectors``/``markets``, 0 is unknown.
        normalizers: of each feature: cross_section, time_series or none.
        split: the default split of these dates.
        source: name of the market data source.
        inputs: content hash of each table that the panel was built from.
        hash: content hash of everything above.
        left_out: of a fold's panel, the features that it does without, and why; not stored.
    """

    features: np.ndarray
    observed: np.ndarray
    tradable: np.ndarray
    targets: np.ndarray
    daily_return: np.ndarray
    sector: np.ndarray
    market: np.ndarray
    dates: tuple[date, ...]
    codes: tuple[str, ...]
    feature_names: tuple[str, ...]
    normalizers: tuple[str, ...]
    horizons: tuple[int, ...]
    sectors: tuple[str, ...]
    markets: tuple[str, ...]
    split: Split
    source: str
    inputs: dict[str, str] = field(default_factory=dict)
    hash: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def time_series_columns(self) -> list[int]:
        """Positions of the features that arrive in raw units."""
        return [i for i, kind in enumerate(self.normalizers) if kind == "time_series"]

    def part_dates(self, part: str) -> tuple[date, date]:
        """First and last date of a part of the split."""
        first, last = self.split.parts()[part]
        return self.dates[first], self.dates[last - 1]


ARRAYS = {
    "features": ("float32", ("dates", "codes", "features")),
    "observed": ("bool", ("dates", "codes")),
    "tradable": ("bool", ("dates", "codes")),
    "targets": ("float32", ("dates", "codes", "horizons")),
    "daily_return": ("float32", ("dates", "codes")),
    "sector": ("int16", ("codes",)),
    "market": ("int16", ("codes",)),
}
"""Each array's type and the manifest's lists that name its axes."""

RAW = ("features",)
"""Stored without a header, so that a new date is appended to what is there."""

FACTS = (
    "format", "dates", "codes", "features", "normalizers", "horizons", "sectors", "markets",
    "split", "source", "inputs", "files",
)  # fmt: skip
"""What a manifest holds."""

NORMALIZERS = ("cross_section", "time_series", "none")


def write_panel(panel: Panel, root: Path, features: RawFile | None = None) -> str:
    """Stores the panel as a new version under ``root``; returns its content hash.

    Args:
        features: The file under ``root`` that ``panel.features`` is memory-mapped from, where there
            is one (``artifacts.append_raw``): it is moved into the version.
    """
    facts = {
        "format": FORMAT,
        "dates": [day.isoformat() for day in panel.dates],
        "codes": list(panel.codes),
        "features": list(panel.feature_names),
        "normalizers": list(panel.normalizers),
        "horizons": list(panel.horizons),
        "sectors": list(panel.sectors),
        "markets": list(panel.markets),
        "split": {name: list(part) for name, part in panel.split.parts().items()},
        "source": panel.source,
        "inputs": panel.inputs,
    }
    ready = {"features": features} if features else None
    return publish(root, {name: getattr(panel, name) for name in ARRAYS}, facts, RAW, ready)


def features_file(folder: Path, manifest: Mapping[str, Any]) -> RawFile:
    """A version's features, as its manifest describes them."""
    name = file_name("features")
    return RawFile(folder / name, manifest["lengths"][name], manifest["files"][name])


def file_name(array: str) -> str:
    """Where a version keeps one of ``ARRAYS``."""
    return f"{array}.raw" if array in RAW else f"{array}.npy"


def map_features(file: RawFile, dates: int, codes: int, names: int) -> np.ndarray:
    """float32 [dates, stocks, features], memory-mapped.

    Raises:
        InputError: the file holds another number of values.
    """
    shape = (dates, codes, names)
    if file.length != 4 * math.prod(shape):
        raise InputError(
            f"{file.path}: {file.length:,} bytes, but the manifest names dates × codes × features "
            f"= {list(shape)} of float32; materialize panel again"
        )
    return np.memmap(file.path, dtype="<f4", mode="r", shape=shape)


def read_panel(folder: Path) -> Panel:
    """Opens a panel version (or the current one of a root), memory-mapped, after verifying it.

    Raises:
        InputError: nothing there, an earlier layout, content that differs from the manifest, or
            arrays whose shapes are not those of the names that the manifest gives them.
    """
    if not (folder / "manifest.json").exists():
        folder = current_version(folder, "panel")
    manifest = read_manifest(folder, "panel")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder}: panel format {manifest.get('format')}, expected {FORMAT}; "
            "materialize panel again"
        )
    _check_manifest(manifest, folder)
    axes = [len(manifest[axis]) for axis in ARRAYS["features"][1]]
    arrays: dict[str, Any] = {"features": map_features(features_file(folder, manifest), *axes)}
    arrays |= {
        name: np.load(folder / file_name(name), mmap_mode="r") for name in ARRAYS if name not in RAW
    }
    _check_shapes(arrays, manifest, folder)
    return Panel(
        **arrays,
        dates=tuple(date.fromisoformat(day) for day in manifest["dates"]),
        codes=tuple(manifest["codes"]),
        feature_names=tuple(manifest["features"]),
        normalizers=tuple(manifest["normalizers"]),
        horizons=tuple(manifest["horizons"]),
        sectors=tuple(manifest["sectors"]),
        markets=tuple(manifest["markets"]),
        split=Split(**{name: tuple(part) for name, part in manifest["split"].items()}),
        source=manifest["source"],
        inputs=manifest["inputs"],
        hash=manifest["hash"],
    )


def _check_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Refuses a manifest that lacks a fact, names a feature twice or misses an array's file."""
    again = "materialize panel again"
    missing = [fact for fact in FACTS if fact not in manifest]
    files = [file_name(name) for name in ARRAYS]
    missing += [name for name in files if name not in manifest.get("files", {})]
    missing += [f"length of {name}" for name in map(file_name, RAW)
                if name not in manifest.get("lengths", {})]  # fmt: skip
    if missing:
        raise InputError(f"{folder}/manifest.json: no {', '.join(missing)}; {again}")
    for axis in ("dates", "codes", "features"):
        names = manifest[axis]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{folder}/manifest.json: {axis} holds {twice} twice; {again}")
    if manifest["dates"] != sorted(manifest["dates"]):
        raise InputError(f"{folder}/manifest.json: dates do not rise; {again}")
    kinds = manifest["normalizers"]
    if len(kinds) != len(manifest["features"]) or not set(kinds) <= set(NORMALIZERS):
        raise InputError(
            f"{folder}/manifest.json: {len(kinds)} normalizers ({', '.join(sorted(set(kinds)))}) "
            f"for {len(manifest['features'])} features; expected one of {', '.join(NORMALIZERS)} "
            f"for each; {again}"
        )


def _check_shapes(arrays: dict[str, np.ndarray], manifest: dict[str, Any], folder: Path) -> None:
    """Refuses arrays of another type or size than the manifest's names for their axes."""
    for name, (dtype, axes) in ARRAYS.items():
        expected = tuple(len(manifest[axis]) for axis in axes)
        found = arrays[name]
        if found.shape != expected or found.dtype != np.dtype(dtype):
            raise InputError(
                f"{folder / name}.npy: {found.dtype} {list(found.shape)}, but the manifest names "
                f"{' × '.join(axes)} = {list(expected)} of {dtype}; materialize panel again"
            )


def fit_statistics(panel: Panel, train: tuple[int, int]) -> TimeSeriesStatistics:
    """Statistics of the time-series features from the observed rows of the training dates."""
    columns = panel.time_series_columns()
    rows = _observed_rows(panel, train, columns)
    return fit_time_series(rows, [panel.feature_names[i] for i in columns])


def _observed_rows(panel: Panel, train: tuple[int, int], columns: list[int]) -> np.ndarray:
    part = slice(*train)
    return np.asarray(panel.features[part][..., columns])[np.asarray(panel.observed[part])]


def uninformative_features(panel: Panel, train: tuple[int, int]) -> dict[str, str]:
    """Features that say nothing on the training dates, each with the reason in words.

    Unknown throughout or constant, as in ``normalized_features``; time-series features also where
    99 % of the rows hold one value, because their statistics are undefined then.
    """
    low = np.full(len(panel.feature_names), np.inf)
    high = -low
    for day in range(*train):
        rows = np.asarray(panel.features[day])[np.asarray(panel.observed[day])]
        low = np.fmin(low, np.fmin.reduce(rows, axis=0, initial=np.inf))
        high = np.fmax(high, np.fmax.reduce(rows, axis=0, initial=-np.inf))
    reasons = {}
    for column, name in enumerate(panel.feature_names):
        if low[column] > high[column]:
            reasons[name] = "no known value on training dates"
        elif low[column] == high[column]:
            reasons[name] = f"constant on training dates: always {low[column]:g}"
        elif panel.normalizers[column] == "time_series":
            rows = _observed_rows(panel, train, [column])
            moments = winsorized_moments(rows.T, LOWER_QUANTILE, UPPER_QUANTILE)
            if moments.std[0] == 0:
                reasons[name] = (
                    f"nearly constant on training dates: {moments.lower[0]:g} on 99 % of rows "
                    "or more"
                )
    return reasons


def without_features(panel: Panel, left_out: dict[str, str]) -> Panel:
    """The panel without some features, which keeps their names and the reasons.

    Raises:
        InputError: none would be left.
    """
    if not left_out:
        return panel
    kept = [i for i, name in enumerate(panel.feature_names) if name not in left_out]
    if not kept:
        raise InputError(
            "panel: every feature is unknown or constant on the training dates; train on later ones"
        )
    return replace(
        panel,
        features=np.ascontiguousarray(np.asarray(panel.features)[..., kept]),
        feature_names=tuple(panel.feature_names[i] for i in kept),
        normalizers=tuple(panel.normalizers[i] for i in kept),
        left_out=left_out,
    )


def window_observed(observed: np.ndarray, lookback: int, min_share: float = 0.5) -> np.ndarray:
    """Where a window can be scored: a bar on its last day and on ``min_share`` of its days.

    Args:
        observed: bool [dates, stocks].
        lookback: days in a window; the first ``lookback - 1`` dates have no whole window.

    Returns:
        bool [dates, stocks].
    """
    seen = np.cumsum(observed, axis=0, dtype=np.int32)
    seen[lookback:] -= seen[:-lookback].copy()
    enough = seen >= np.ceil(min_share * lookback)
    enough[: lookback - 1] = False
    return enough & observed


def check_axes(panel: Panel, names: Sequence[str], what: str) -> None:
    """Refuses features in another number or order than ``names``, naming the first difference."""
    if tuple(names) == panel.feature_names:
        return
    for position, (mine, theirs) in enumerate(zip(names, panel.feature_names, strict=False)):
        if mine != theirs:
            raise InputError(
                f"{what}: feature {position} is {mine!r}, the panel has {theirs!r}; train again"
            )
    raise InputError(f"{what}: {len(names)} features, the panel has {len(panel.feature_names)}")
