"""The axes that all metrics share, [dates] and [dates, stocks]; arrays without them are refused.

Only checks of shape and calendar belong here; what is computed along the axes does not.
"""

import numpy as np

from atft_model.errors import InputError

# Daily dates lie one calendar day apart in the median, weekly ones seven.
MAX_MEDIAN_GAP_DAYS = 4


def require_same_shape(where: str, **arrays: np.ndarray) -> None:
    """Refuse arrays that numpy would broadcast against each other, or that are not [dates, stocks].

    Args:
        where: Name of the caller, for the message.
        **arrays: The arrays by argument name.

    Raises:
        InputError: An array is not two-dimensional or has another shape than the first.
    """
    expected = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != expected:
            raise InputError(
                f"{where}: {name} has shape {array.shape}, expected [dates, stocks] like "
                f"{next(iter(arrays))} {expected}; align both to one calendar and one stock order"
            )


def require_trading_dates(dates: np.ndarray, rows: int, where: str) -> None:
    """Refuse a series without its trading days: undated, unordered, repeated or not daily.

    A Sharpe ratio is annualised by the number of trading days in a year, which is only right for
    one return per trading day; weekly or every-fifth-day returns would be inflated.

    Args:
        dates: ``datetime64`` trading days, one per row.
        rows: Number of rows that the dates belong to.
        where: Name of the caller, for the message.

    Raises:
        InputError: The dates are not ``datetime64``, of another length, missing, not strictly
            increasing, or further apart than trading days are.
    """
    dates = np.asarray(dates)
    if dates.dtype.kind != "M" or dates.ndim != 1:
        raise InputError(
            f"{where}: undated returns (dates are {dates.dtype} with {dates.ndim} axes), expected "
            "one datetime64 per trading day; pass the date column"
        )
    if len(dates) != rows:
        raise InputError(
            f"{where}: {len(dates)} dates for {rows} rows, expected one date per row; "
            "cut both to the same days"
        )
    if np.isnat(dates).any():
        raise InputError(f"{where}: {np.isnat(dates).sum()} dates are missing; drop those rows")
    gaps = np.diff(dates.astype("datetime64[D]")).astype(np.int64)
    if (gaps <= 0).any():
        at = int(np.argmax(gaps <= 0))
        raise InputError(
            f"{where}: dates[{at + 1}] = {dates[at + 1]} follows {dates[at]}, expected strictly "
            "increasing dates; sort by date and keep one row per day"
        )
    if gaps.size and np.median(gaps) > MAX_MEDIAN_GAP_DAYS:
        raise InputError(
            f"{where}: dates lie {np.median(gaps):g} days apart in the median, expected daily "
            "returns; pass one return per trading day"
        )
