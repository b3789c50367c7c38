"""The panel's feature array, extended from the stored one where that is proved unchanged.

Of a panel's bytes, 19 in 20 are those of its features. A date's entries are made of that date's
rows of the feature tables alone, so that the array of the last version stands up to the first date
whose rows differ. The other arrays are built whole: they are small, and the newest targets, which a
new date makes known, lie three weeks back.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from atft_model.data.artifacts import RawFile, append_raw, current_version
from atft_model.data.panel import features_file, map_features
from atft_pipeline.transforms.features import Feature
from atft_pipeline.transforms.incremental import (
    Plan,
    by_date,
    of_everything,
    plan,
    stored_hash,
)
from atft_pipeline.transforms.panel import feature_array


@dataclass(frozen=True)
class FeatureArray:
    """The array and where it comes from.

    Attributes:
        values: float32 [dates, stocks, features].
        file: What it is memory-mapped from, to be moved into the version; None in memory.
        done: From which date on it was built, and why.
    """

    values: np.ndarray
    file: RawFile | None
    done: Plan

    def in_words(self, calendar: Sequence) -> str:
        """What was built, and why."""
        if self.done.since is None:
            return f"all {len(calendar):,} dates built: {self.done.why}"
        new = sum(day >= self.done.since for day in calendar)
        return f"{new:,} dates built, {len(calendar) - new:,} kept as stored: {self.done.why}"


def panel_built_from(
    rows: pl.DataFrame, contract: Sequence[Feature], codes: Sequence[str]
) -> pl.DataFrame:
    """The record of what a feature array is made of, in the form of ``incremental``.

    Args:
        rows: From ``panel.feature_rows``.
        contract: Features of the last axis.
        codes: Stocks of the second axis; a new one moves the others, and all is built again.
    """
    facts = {"panel features": str(contract), "stocks of the panel": " ".join(codes)}
    return pl.concat([by_date("feature rows", rows), of_everything(facts)])


def build_or_extend_array(
    rows: pl.DataFrame,
    calendar: list,
    codes: list[str],
    now: pl.DataFrame,
    before: pl.DataFrame | None,
    root: Path,
) -> FeatureArray:
    """The feature array of the present tables, to the bit that of ``panel.feature_array``.

    Args:
        rows: From ``panel.feature_rows``.
        calendar: Dates of the panel.
        codes: Stocks of the panel.
        now: From :func:`panel_built_from`.
        before: The record of the version in use; None where there is none.
        root: Folder of the panel's versions.

    Raises:
        InputError: the stored array is not what its manifest says.
    """
    manifest = _current_manifest(root)
    if before is None or not manifest:
        done = Plan(None, "there is no panel with a record of its inputs yet")
    elif stored_hash(before) != manifest["hash"]:
        done = Plan(None, "the record beside the panel is not that of the version in use")
    else:
        done = plan(before, now)
    if done.since is None:
        return FeatureArray(feature_array(rows, calendar, codes), None, done)
    later = [day for day in calendar if day >= done.since]
    kept = calendar[: len(calendar) - len(later)]
    if manifest["dates"][: len(kept)] != [day.isoformat() for day in kept]:
        done = Plan(None, "the stored panel has other dates")
        return FeatureArray(feature_array(rows, calendar, codes), None, done)
    new = feature_array(rows.filter(pl.col("date") >= done.since), later, codes)
    old = features_file(current_version(root, "panel"), manifest)
    # In a folder that the next prune removes, should this run be killed.
    file = Path(tempfile.mkdtemp(prefix=".building-", dir=root)) / old.path.name
    kept_bytes = len(kept) * math.prod(new.shape[1:]) * new.itemsize
    grown = append_raw(old, kept_bytes, new, file)
    return FeatureArray(map_features(grown, len(calendar), *new.shape[1:]), grown, done)


def _current_manifest(root: Path) -> dict[str, Any]:
    if not (root / "current.json").exists():
        return {}
    return json.loads((current_version(root, "panel") / "manifest.json").read_text())
