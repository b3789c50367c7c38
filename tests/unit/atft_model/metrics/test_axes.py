"""A series without its trading days is refused, in one line that says what to do."""

import numpy as np
import pytest

from atft_model.errors import InputError
from atft_model.metrics.axes import require_same_shape, require_trading_dates

DAYS = np.array(["2020-01-06", "2020-01-07", "2020-01-08"], dtype="datetime64[D]")


def test_daily_dates_pass() -> None:
    require_trading_dates(DAYS, 3, "here")
    require_trading_dates(DAYS.astype("datetime64[ns]"), 3, "here")
    require_trading_dates(DAYS[:0], 0, "here")


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        (np.arange(3), "undated"),
        (np.array(["a", "b", "c"]), "undated"),
        (DAYS[:, None], "undated"),
        (DAYS[:2], "2 dates for 3 rows"),
        (DAYS[[0, 2, 1]], "strictly increasing"),
        (DAYS[[0, 1, 1]], "strictly increasing"),
        (np.array(["2020-01-06", "NaT", "2020-01-08"], dtype="datetime64[D]"), "missing"),
        (DAYS[0] + np.arange(3) * np.timedelta64(7, "D"), "7 days apart"),
    ],
)
def test_dates_that_are_no_trading_days_are_refused(dates: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        require_trading_dates(dates, 3, "here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


def test_two_readings_of_one_day_are_refused() -> None:
    hours = np.array(["2020-01-06T09", "2020-01-06T15"], dtype="datetime64[h]")
    with pytest.raises(InputError, match="strictly increasing"):
        require_trading_dates(hours, 2, "here")


def test_arrays_that_would_broadcast_are_refused() -> None:
    square = np.zeros((3, 3))
    require_same_shape("here", score=square, valid=square)
    for other in (np.zeros((3, 1)), np.zeros(3), np.zeros((1, 3, 3))):
        with pytest.raises(InputError, match=r"here: valid has shape"):
            require_same_shape("here", score=square, valid=other)
    with pytest.raises(InputError, match=r"here: score has shape \(3,\)"):
        require_same_shape("here", score=np.zeros(3), valid=np.zeros(3))
