"""Shared fixtures; shapes declared with jaxtyping are enforced in every test."""

import datetime
import os
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook("atft_model", "beartype.beartype")

from atft_model.data.graph import GraphConfig, build_graph, write_graph  # noqa: E402
from atft_model.data.panel import Panel, write_panel  # noqa: E402
from atft_model.data.splits import SplitConfig, split_dates  # noqa: E402

HORIZONS = (1, 5, 10, 20)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """No setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith(("ATFT_", "DAGSTER_")):
            monkeypatch.delenv(name)


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


@pytest.fixture(scope="session")
def stored_panel(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a stored small panel and its graph."""
    from atft_model.data.panel import read_panel

    root = tmp_path_factory.mktemp("stored")
    write_panel(make_panel(), root / "panel")
    panel = read_panel(root / "panel")
    write_graph(build_graph(panel, GraphConfig(neighbours=5)), root / "graph")
    return root / "panel", root / "graph"
