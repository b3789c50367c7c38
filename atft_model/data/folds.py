"""Walk-forward folds: one test period each, trained on what came before it. NumPy only, no torch.

The default split is in ``splits.py``. A fold has the same three parts under the same rule: purge
and embargo in trading days between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

import numpy as np

from atft_model.config import setting
from atft_model.data.panel import Panel, uninformative_features, without_features
from atft_model.data.splits import Split, assert_purged, purge_days
from atft_model.errors import InputError


@dataclass(frozen=True)
class WalkForwardConfig:
    """How the dates are cut into test periods, and what each period's model may learn from."""

    period: Literal["year", "quarter"] = setting(
        "year", "Calendar length of a test period: a model is trained anew for each."
    )
    validation_dates: int = setting(
        120, "Trading days of validation before each test period: half a year, as many as the "
        "default split gives five years of data."
    )  # fmt: skip
    embargo: int = setting(
        5, "Trading days left out after the purge (largest horizon + 1) of each part."
    )
    min_train_dates: int = setting(
        200, "Training dates below which a period is not tested: the first model would know less "
        "than a year."
    )  # fmt: skip
    train_dates: int | None = setting(
        None, "Newest training dates that are used; null: all that came before (a growing window)."
    )


@dataclass(frozen=True)
class Fold:
    """One test period and the split that goes with it.

    Attributes:
        period: Its name, such as ``2018`` or ``2018-Q3``.
        panel_hash: The panel whose date axis the split's positions lie on.
        split: Train, validation and test, in time order; dates after the test part are not used.
    """

    period: str
    panel_hash: str
    split: Split

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON."""
        parts = {name: list(part) for name, part in self.split.parts().items()}
        return {"period": self.period, "panel_hash": self.panel_hash, **parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Fold":
        """Reads what ``to_dict`` wrote.

        Raises:
            InputError: a key is missing.
        """
        wanted = ("period", "panel_hash", "train", "validation", "test")
        missing = [name for name in wanted if name not in values]
        if missing:
            raise InputError(f"fold: no {', '.join(missing)}; expected {', '.join(wanted)}")
        parts = {name: tuple(values[name]) for name in wanted[2:]}
        return cls(values["period"], values["panel_hash"], Split(**parts))


def period_of(day: date, unit: Literal["year", "quarter"]) -> str:
    """The period that a date lies in: ``2018``, or ``2018-Q3``."""
    return f"{day.year}" if unit == "year" else f"{day.year}-Q{(day.month + 2) // 3}"


def plan_folds(panel: Panel, config: WalkForwardConfig) -> tuple[list[Fold], dict[str, str]]:
    """Every period that can be tested, in time order, and the reason for each that cannot.

    Parts before a test period, counted back from it in trading days: gap, validation, gap, train,
    where a gap is the largest horizon plus the execution lag plus the embargo.

    Raises:
        InputError: settings out of range, or no stock is ever tradable.
    """
    for name, least in (("validation_dates", 1), ("min_train_dates", 1), ("embargo", 0)):
        if getattr(config, name) < least:
            raise InputError(
                f"walk_forward: {name} is {getattr(config, name)}; expected {least} or more"
            )
    usable = np.flatnonzero(np.asarray(panel.tradable).any(axis=1))
    if not usable.size:
        raise InputError("walk_forward: no stock is tradable on any date of the panel")
    gap = purge_days(panel.horizons) + config.embargo
    folds, left_out = [], {}
    for period, (start, stop) in _periods(panel.dates, config.period).items():
        validation_stop = start - gap
        validation = validation_stop - config.validation_dates, validation_stop
        train_stop = validation[0] - gap
        train_start = int(usable[0])
        if config.train_dates is not None:
            train_start = max(train_start, train_stop - config.train_dates)
        found = max(0, train_stop - train_start)
        if found < config.min_train_dates:
            left_out[period] = (
                f"{found} training dates before it, fewer than {config.min_train_dates}"
            )
            continue
        split = Split(train=(train_start, train_stop), validation=validation, test=(start, stop))
        assert_purged(split, panel.horizons)
        folds.append(Fold(period, panel.hash, split))
    return folds, left_out


def panel_of_fold(panel: Panel, fold: Fold) -> Panel:
    """The panel under the fold's split: its time-series statistics are then the fold's own.

    Features that say nothing on the fold's training dates are left out by name, as
    ``normalized_features`` does on the default split's.

    Raises:
        InputError: a fold of another panel, whose positions mean other dates.
    """
    if fold.panel_hash != panel.hash:
        raise InputError(
            f"fold {fold.period}: made for panel {fold.panel_hash}, not for {panel.hash}; "
            "materialize test_periods again"
        )
    assert_purged(fold.split, panel.horizons)
    left_out = uninformative_features(panel, fold.split.train)
    return without_features(replace(panel, split=fold.split), left_out)


def _periods(dates: Sequence[date], unit: Literal["year", "quarter"]) -> dict[str, tuple[int, int]]:
    """First position and the one after the last of each period's dates, in time order."""
    found: dict[str, tuple[int, int]] = {}
    for position, day in enumerate(dates):
        name = period_of(day, unit)
        found[name] = found.get(name, (position, position))[0], position + 1
    return found
