"""A small random panel with a planted signal, for the fault matrix and the tests. No torch."""

import datetime

import numpy as np

from atft_model.data.panel import Panel
from atft_model.data.splits import SplitConfig, split_dates

HORIZONS = (1, 5, 10, 20)


def make_panel(
    dates: int = 240, stocks: int = 40, features: int = 6, signal: float = 0.3, seed: int = 0
) -> Panel:
    """A small random panel whose first feature foretells the returns of the next days.

    Feature 0 is a slow AR(1) per stock; the daily return two days later has ``signal`` times its
    standard deviation of it. Some bars are missing, the last feature is a time series, stock 3
    lists late and stock 4 ends early.
    """
    rng = np.random.default_rng(seed)
    observed = rng.random((dates, stocks)) > 0.02
    observed[: dates // 3, 3] = False
    observed[2 * dates // 3 :, 4] = False
    values = rng.standard_normal((dates, stocks, features)).astype(np.float32)
    for day in range(1, dates):
        values[day, :, 0] = 0.95 * values[day - 1, :, 0] + 0.3 * values[day, :, 0]
    values[..., -1] = 100 + 5 * rng.standard_normal((dates, 1))
    daily = 0.02 * rng.standard_normal((dates, stocks))
    daily[2:] += 0.02 * signal * values[:-2, :, 0]
    daily = np.where(observed, daily, np.nan).astype(np.float32)
    close = np.exp(np.cumsum(np.nan_to_num(daily), axis=0))
    targets = np.full((dates, stocks, len(HORIZONS)), np.nan, dtype=np.float32)
    for index, horizon in enumerate(HORIZONS):
        entry, leave = close[1 : dates - horizon], close[1 + horizon :]
        known = observed[1 : dates - horizon] & observed[1 + horizon :]
        targets[: dates - horizon - 1, :, index] = np.where(known, leave / entry - 1, np.nan)
    start = datetime.date(2020, 1, 1)
    return Panel(
        features=np.where(observed[..., None], values, np.nan),
        observed=observed,
        tradable=observed.copy(),
        targets=targets,
        daily_return=daily,
        sector=(1 + np.arange(stocks) % 3).astype(np.int16),
        market=(1 + np.arange(stocks) % 2).astype(np.int16),
        dates=tuple(start + datetime.timedelta(days=i) for i in range(dates)),
        codes=tuple(f"S{i:03d}" for i in range(stocks)),
        feature_names=tuple(f"feature_{i}" for i in range(features)),
        normalizers=("cross_section",) * (features - 1) + ("time_series",),
        horizons=HORIZONS,
        sectors=("unknown", "a", "b", "c"),
        markets=("unknown", "x", "y"),
        split=split_dates(dates, HORIZONS, SplitConfig(embargo=2, min_dates=10)),
        source="test",
    )
