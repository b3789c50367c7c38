"""The panel: dense [dates, stocks, ...] arrays that a model trains on. NumPy only, no torch.

Features with a per-date normalizer arrive normalized; time-series ones arrive in raw units, because
each split fits its own statistics on its own training dates. Unknown entries are NaN, never filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from atft_model.data.artifacts import current_version, publish, read_manifest
from atft_model.data.normalizer import TimeSeriesStatistics, fit_time_series
from atft_model.data.splits import Split
from atft_model.errors import InputError

FORMAT = 1
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
        hash: content hash of everything above.
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
    hash: str = ""

    def time_series_columns(self) -> list[int]:
        """Positions of the features that arrive in raw units."""
        return [i for i, kind in enumerate(self.normalizers) if kind == "time_series"]

    def part_dates(self, part: str) -> tuple[date, date]:
        """First and last date of a part of the split."""
        first, last = self.split.parts()[part]
        return self.dates[first], self.dates[last - 1]


ARRAYS = (
    "features",
    "observed",
    "tradable",
    "targets",
    "daily_return",
    "sector",
    "market",
)


def write_panel(panel: Panel, root: Path) -> str:
    """Stores the panel as a new version under ``root``; returns its content hash."""
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
    }
    return publish(root, {name: getattr(panel, name) for name in ARRAYS}, facts)


def read_panel(folder: Path) -> Panel:
    """Opens a panel version (or the current one of a root), memory-mapped, after verifying it.

    Raises:
        InputError: nothing there, an earlier layout, or content that differs from the manifest.
    """
    if not (folder / "manifest.json").exists():
        folder = current_version(folder, "panel")
    manifest = read_manifest(folder, "panel")
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: panel format {manifest['format']}, expected {FORMAT}; "
            "materialize panel again"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
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
        hash=manifest["hash"],
    )


def fit_statistics(panel: Panel, train: tuple[int, int]) -> TimeSeriesStatistics:
    """Statistics of the time-series features from the observed rows of the training dates."""
    columns = panel.time_series_columns()
    part = slice(*train)
    rows = np.asarray(panel.features[part][..., columns])[np.asarray(panel.observed[part])]
    return fit_time_series(rows, [panel.feature_names[i] for i in columns])


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
