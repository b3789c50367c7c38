"""The scan of a panel before training: what no normalizer and no mask can mend."""

import numpy as np

from atft_model.data.panel import Panel
from atft_model.errors import InputError


def scan_panel(panel: Panel) -> None:
    """Refuses infinite values, and features or horizons without a known value when training.

    A NaN means "unknown": it is masked, and its input becomes the mean. An infinite value, or a
    feature that is unknown throughout, means that something before the panel went wrong.

    Raises:
        InputError: names the columns, how many cells, and the dates.
    """
    faults: dict[str, list[str]] = {"feature": [], "target": []}
    for kind, names, values in (
        ("feature", panel.feature_names, panel.features),
        ("target", tuple(f"target_{h}d" for h in panel.horizons), panel.targets),
    ):
        infinite, known = _count(values)
        for column in np.flatnonzero(infinite.any(axis=0)):
            cells, when = infinite[:, column].sum(), _when(panel, infinite[:, column])
            faults[kind].append(f"{names[column]}: {cells} infinite values on {when}")
        empty = np.flatnonzero(known[slice(*panel.split.train)].sum(axis=0) == 0)
        faults[kind] += [f"{names[column]}: no known {kind} on any training date"
                         for column in empty]  # fmt: skip
    found = faults["feature"] + faults["target"]
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        # Without a scale of the targets nothing can be trained, scanned or not.
        skip = "" if faults["target"] else (
            ", or set SKIP_PRETRAIN_NAN_SCAN=1 to train all the same"
        )  # fmt: skip
        raise InputError(f"panel: {'; '.join(found[:5])}{more}; mend what made them{skip}")


def _count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Infinite and finite cells of each date and column: two of int [dates, columns]."""
    infinite = np.stack([np.isinf(day).sum(axis=0) for day in values])
    return infinite, np.stack([np.isfinite(day).sum(axis=0) for day in values])


def _when(panel: Panel, cells: np.ndarray) -> str:
    days = np.flatnonzero(cells)
    first, last = panel.dates[days[0]], panel.dates[days[-1]]
    return f"{len(days)} dates, {first} to {last}" if len(days) > 1 else f"{first}"
