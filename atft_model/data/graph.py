"""The stock graph: nearest neighbours by trailing correlation, from past returns only. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atft_model.config import setting
from atft_model.data.artifacts import current_version, publish, read_manifest
from atft_model.data.panel import Panel
from atft_model.errors import InputError

FORMAT = 1
"""Of the stored graph: raise it when its arrays or their meaning change."""
BLOCK = 512
"""Stocks per block of the correlation product: bounds memory at BLOCK × stocks."""


@dataclass(frozen=True)
class GraphConfig:
    """How the graph is built."""

    neighbours: int = setting(10, "Most correlated stocks that each stock is linked to.")
    lookback: int = setting(60, "Trading days of past returns behind a correlation: a quarter.")
    refresh_every: int = setting(5, "Trading days that a graph holds before the next: a week.")
    min_observations: int = setting(
        40, "Bars within the lookback that a stock needs to have, and to be, a neighbour."
    )


@dataclass(frozen=True)
class StockGraph:
    """Neighbours of each stock, refreshed every few trading days.

    Attributes:
        refresh: int32 [refreshes]; positions on the panel's date axis, rising. The graph of
            refresh r uses returns up to and including that date and holds until the next.
        neighbours: int32 [refreshes, stocks, k]; positions on the stock axis, -1 where none.
        correlation: float32 [refreshes, stocks, k]; 0 where there is no neighbour.
        panel_hash: the panel whose axes and returns were used.
    """

    refresh: np.ndarray
    neighbours: np.ndarray
    correlation: np.ndarray
    panel_hash: str
    hash: str = ""

    def at(self, n_dates: int) -> np.ndarray:
        """Index of the newest refresh at or before each date; -1 before the first. int64 [dates]"""
        return np.searchsorted(self.refresh, np.arange(n_dates), side="right") - 1


def nearest_neighbours(
    daily_return: np.ndarray, observed: np.ndarray, config: GraphConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The k most correlated other stocks of each stock, in one trailing window.

    A missing day counts as an average day of its stock. Stocks with fewer than
    ``min_observations`` bars, or without a bar on the last day, have and are no neighbours.

    Args:
        daily_return: float [lookback, stocks].
        observed: bool [lookback, stocks].

    Returns:
        Neighbours int32 [stocks, k] (-1 where none) and correlations float32 [stocks, k].
    """
    stocks = daily_return.shape[1]
    known = observed & np.isfinite(daily_return)
    count = known.sum(axis=0)
    values = np.where(known, daily_return, 0.0).astype(np.float64)
    centred = np.where(known, values - values.sum(axis=0) / np.maximum(count, 1), 0.0)
    norm = np.sqrt((centred**2).sum(axis=0))
    usable = np.flatnonzero((count >= config.min_observations) & known[-1] & (norm > 0))
    # Only usable stocks enter the product: its low bits depend on its shape, and stocks that are
    # listed later would otherwise change the past.
    unit = np.ascontiguousarray((centred[:, usable] / norm[usable]).astype(np.float32))
    k = min(config.neighbours, max(len(usable) - 1, 0))
    neighbours = np.full((stocks, config.neighbours), -1, dtype=np.int32)
    correlation = np.zeros((stocks, config.neighbours), dtype=np.float32)
    if k == 0:
        return neighbours, correlation
    for first in range(0, len(usable), BLOCK):
        rows = np.arange(first, min(first + BLOCK, len(usable)))
        block = unit[:, rows].T @ unit
        block[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-block, k - 1, axis=1)[:, :k]
        value = np.take_along_axis(block, nearest, axis=1)
        order = np.lexsort((nearest, -value), axis=1)
        nearest = np.take_along_axis(nearest, order, axis=1)
        neighbours[usable[rows], :k] = usable[nearest]
        correlation[usable[rows], :k] = np.take_along_axis(value, order, axis=1)
    return neighbours, correlation


def build_graph(panel: Panel, config: GraphConfig, refresh: np.ndarray | None = None) -> StockGraph:
    """The graph at every refresh date; the date's own close is known, later ones are not used.

    Args:
        panel: Its daily returns, where it has bars.
        config: Neighbours, window and refresh interval.
        refresh: int32 [refreshes]; positions on the date axis, rising, instead of every
            ``refresh_every`` dates. Each has a whole window before it.

    Raises:
        InputError: fewer dates than one lookback, or fewer than two stocks.
    """
    n_dates, n_stocks = panel.daily_return.shape
    if n_dates <= config.lookback or n_stocks < 2:
        raise InputError(
            f"stock_graph: {n_dates} dates × {n_stocks} stocks; expected more than "
            f"{config.lookback} dates and at least 2 stocks"
        )
    if refresh is None:
        refresh = np.arange(config.lookback, n_dates, config.refresh_every, dtype=np.int32)
    neighbours, correlation = [], []
    for position in refresh:
        window = slice(position - config.lookback + 1, position + 1)
        nearest, value = nearest_neighbours(
            np.asarray(panel.daily_return[window]), np.asarray(panel.observed[window]), config
        )
        neighbours.append(nearest)
        correlation.append(value)
    return StockGraph(refresh, np.stack(neighbours), np.stack(correlation), panel.hash)


def write_graph(graph: StockGraph, root: Path) -> str:
    """Stores the graph as a new version under ``root``; returns its content hash."""
    arrays = {
        "refresh": graph.refresh,
        "neighbours": graph.neighbours,
        "correlation": graph.correlation,
    }
    return publish(root, arrays, {"format": FORMAT, "panel_hash": graph.panel_hash})


def read_graph(folder: Path, panel: Panel) -> StockGraph:
    """Opens a graph version (or the current one of a root) that belongs to ``panel``.

    Raises:
        InputError: nothing there, an earlier layout, damaged content, or a graph of another panel.
    """
    if not (folder / "manifest.json").exists():
        folder = current_version(folder, "stock_graph")
    manifest = read_manifest(folder, "stock_graph")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder}: graph format {manifest.get('format')}, expected {FORMAT}; "
            "materialize stock_graph again"
        )
    if manifest["panel_hash"] != panel.hash:
        raise InputError(
            f"{folder}: made for panel {manifest['panel_hash']}, not for {panel.hash}; "
            "materialize stock_graph again"
        )
    return StockGraph(
        refresh=np.load(folder / "refresh.npy"),
        neighbours=np.load(folder / "neighbours.npy", mmap_mode="r"),
        correlation=np.load(folder / "correlation.npy", mmap_mode="r"),
        panel_hash=manifest["panel_hash"],
        hash=manifest["hash"],
    )
