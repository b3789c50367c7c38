"""One split by date: train, validation, test, with purge and embargo in trading days. No torch."""

from dataclasses import dataclass
from itertools import pairwise

from atft_model.config import setting
from atft_model.errors import InputError

EXECUTION_LAG = 1
"""Trading days between the signal (close t) and the entry (close t + 1)."""


@dataclass(frozen=True)
class SplitConfig:
    """How the panel's dates are divided.

    The purge is not a setting: it is the largest horizon plus the execution lag, the days that a
    training label looks past its own date. The embargo comes on top.
    """

    train_fraction: float = setting(0.6, "Share of the usable dates for training.")
    validation_fraction: float = setting(0.15, "Share for validation; the rest is test.")
    embargo: int = setting(
        5, "Trading days left out after the purge (largest horizon + 1) of each part."
    )
    min_dates: int = setting(40, "Dates that each part needs: fewer tell no skill from luck.")


@dataclass(frozen=True)
class Split:
    """Half-open ranges [first, last) of positions on the panel's date axis."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]

    def parts(self) -> dict[str, tuple[int, int]]:
        """The three ranges by name, in time order."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def purge_days(horizons: tuple[int, ...]) -> int:
    """Trading days whose labels would reach into the next part: max(horizon) + execution lag."""
    return max(horizons) + EXECUTION_LAG


def split_dates(n_dates: int, horizons: tuple[int, ...], config: SplitConfig) -> Split:
    """Divides positions 0..n_dates: fractions for train and validation, the rest for test.

    ``purge_days + embargo`` dates at the end of train and of validation are left out, so a label
    ends ``embargo + 1`` days before the next part's first signal.

    Raises:
        InputError: fractions that leave no test part, or parts shorter than ``min_dates``.
    """
    if not (
        config.train_fraction > 0
        and config.validation_fraction > 0
        and config.train_fraction + config.validation_fraction < 1
    ):
        raise InputError(
            f"split: train_fraction {config.train_fraction} and validation_fraction "
            f"{config.validation_fraction} must be above 0 and leave room for a test part"
        )
    if config.embargo < 0:
        raise InputError(f"split: embargo is {config.embargo}; expected 0 or more trading days")
    gap = purge_days(horizons) + config.embargo
    train_end = int(n_dates * config.train_fraction)
    validation_end = int(n_dates * (config.train_fraction + config.validation_fraction))
    split = Split(
        train=(0, train_end - gap),
        validation=(train_end, validation_end - gap),
        test=(validation_end, n_dates),
    )
    for name, (first, last) in split.parts().items():
        if last - first < config.min_dates:
            raise InputError(
                f"split: {n_dates} usable dates leave {max(last - first, 0)} for {name} after a "
                f"gap of {gap} trading days; expected at least {config.min_dates}: give more dates"
            )
    return split


def assert_purged(split: Split, horizons: tuple[int, ...]) -> None:
    """Refuses a split in which a label interval reaches into a later part.

    The label of position t spans t + lag to t + lag + horizon; it must end before the next part.

    Raises:
        InputError: parts out of order, or a label interval across a boundary.
    """
    parts = list(split.parts().items())
    for (name, (_, last)), (later, (first, _)) in pairwise(parts):
        reach = last - 1 + purge_days(horizons)
        if reach >= first:
            raise InputError(
                f"split: the last {name} label ends at position {reach}, but {later} starts at "
                f"{first}; leave {purge_days(horizons)} trading days between them"
            )
