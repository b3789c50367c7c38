"""The stock graph: nearest neighbours by trailing correlation, from past returns only. No torch.

Neighbours come from all stocks, or from those whose group drives the stock's group in a learned
structure (``group_links.py``), or half from each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from atft_model.config import setting
from atft_model.data.artifacts import current_version, publish, read_manifest
from atft_model.data.group_links import GroupLinks
from atft_model.data.name_swap import swapped_names
from atft_model.data.panel import Panel
from atft_model.errors import InputError

FORMAT = 1
"""Of the stored graph: raise it when its arrays or their meaning change."""
BLOCK = 512
"""Stocks per block of the correlation product: bounds memory at BLOCK × stocks."""


@dataclass(frozen=True)
class GraphConfig:
    """How the graph is built."""

    graph: Literal["correlation", "learned", "both", "random"] = setting(
        "correlation",
        "Who may be a neighbour: any stock; stocks of groups that drive the stock's group in "
        "learned_structure; half of each kind; or any, with names swapped at random (a control).",
    )
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
        link: int16 [refreshes, stocks, k]; the row of ``links`` that an edge inherits from its
            stocks' groups, 0 for none. None: no edge inherits any.
        links: float32 [links, 3]; ``LINK_ATTRIBUTES``, row 0 is 0.
        kind: the ``graph`` setting that it was built with.
    """

    refresh: np.ndarray
    neighbours: np.ndarray
    correlation: np.ndarray
    panel_hash: str
    hash: str = ""
    link: np.ndarray | None = None
    links: np.ndarray | None = None
    kind: str = "correlation"

    def at(self, n_dates: int) -> np.ndarray:
        """Index of the newest refresh at or before each date; -1 before the first. int64 [dates]"""
        return np.searchsorted(self.refresh, np.arange(n_dates), side="right") - 1


def nearest_neighbours(
    daily_return: np.ndarray,
    observed: np.ndarray,
    config: GraphConfig,
    drives: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most correlated other stocks of each stock, in one trailing window.

    A missing day counts as an average day of its stock. Stocks with fewer than
    ``min_observations`` bars, or without a bar on the last day, have and are no neighbours.

    Args:
        daily_return: float [lookback, stocks].
        observed: bool [lookback, stocks].
        drives: group of each stock, and the sign of each group's effect on each other. Then only
            stocks of groups with an effect are neighbours, the most correlated in its direction.

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
        sign = np.ones(1, dtype=np.float32)
        if drives is not None:
            group, signs = drives[0][usable], drives[1].astype(np.float32)
            sign = signs[group[None, :], group[rows][:, None]]
            block = np.where(sign == 0, -np.inf, block * sign)
        block[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-block, k - 1, axis=1)[:, :k]
        value = np.take_along_axis(block, nearest, axis=1)
        order = np.lexsort((nearest, -value), axis=1)
        nearest = np.take_along_axis(nearest, order, axis=1)
        value = np.take_along_axis(value, order, axis=1)
        allowed = np.isfinite(value)
        value = np.where(allowed, value, 0.0)
        if drives is not None:
            value *= np.take_along_axis(sign, nearest, axis=1)
        neighbours[usable[rows], :k] = np.where(allowed, usable[nearest], -1)
        correlation[usable[rows], :k] = value
    return neighbours, correlation


def neighbours_of(
    daily_return: np.ndarray,
    observed: np.ndarray,
    config: GraphConfig,
    drives: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours of one window by ``config.graph``; see ``nearest_neighbours``.

    ``both`` gives half of the places to the groups that drive the stock's group, as far as they
    have stocks, and the rest to the nearest of all that are not among them.
    """
    if config.graph == "learned":
        return nearest_neighbours(daily_return, observed, config, drives)
    nearest, value = nearest_neighbours(daily_return, observed, config)
    if config.graph != "both":
        return nearest, value
    half = replace(config, neighbours=config.neighbours // 2)
    driving, driving_value = nearest_neighbours(daily_return, observed, half, drives)
    again = ((nearest[:, :, None] == driving[:, None, :]) & (nearest >= 0)[:, :, None]).any(axis=2)
    both = np.concatenate([driving, np.where(again, -1, nearest)], axis=1)
    values = np.concatenate([driving_value, np.where(again, 0.0, value)], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, : config.neighbours]
    return np.take_along_axis(both, order, axis=1), np.take_along_axis(values, order, axis=1)


def build_graph(
    panel: Panel,
    config: GraphConfig,
    refresh: np.ndarray | None = None,
    links: GroupLinks | None = None,
) -> StockGraph:
    """The graph at every refresh date; the date's own close is known, later ones are not used.

    Args:
        panel: Its daily returns, where it has bars.
        config: Neighbours, window and refresh interval.
        refresh: int32 [refreshes]; positions on the date axis, rising, instead of every
            ``refresh_every`` dates. Each has a whole window before it.
        links: Which group of stocks drives which; for the graphs ``learned`` and ``both``.

    Raises:
        InputError: fewer dates than one lookback, fewer than two stocks, or no links where the
            graph is made of them.
    """
    if config.graph in ("learned", "both") and links is None:
        raise InputError(f"stock_graph: graph is {config.graph!r} but no links were given; "
                         "materialize learned_structure first")  # fmt: skip
    n_dates, n_stocks = panel.daily_return.shape
    if n_dates <= config.lookback or n_stocks < 2:
        raise InputError(
            f"stock_graph: {n_dates} dates × {n_stocks} stocks; expected more than "
            f"{config.lookback} dates and at least 2 stocks"
        )
    if refresh is None:
        refresh = np.arange(config.lookback, n_dates, config.refresh_every, dtype=np.int32)
    drives = None if links is None else (links.groups(panel.codes), links.signs)
    neighbours, correlation = [], []
    for position in refresh:
        window = slice(position - config.lookback + 1, position + 1)
        nearest, value = neighbours_of(
            np.asarray(panel.daily_return[window]),
            np.asarray(panel.observed[window]),
            config,
            drives,
        )
        if config.graph == "random":
            nearest = swapped_names(nearest, int(position))
        neighbours.append(nearest)
        correlation.append(value)
    graph = StockGraph(
        refresh, np.stack(neighbours), np.stack(correlation), panel.hash, kind=config.graph
    )
    if config.graph in ("learned", "both") and links is not None:
        inherited = inherited_links(graph.neighbours, links, panel.codes)
        graph = replace(graph, link=inherited, links=links.attributes.astype(np.float32))
    return graph


def inherited_links(neighbours: np.ndarray, links: GroupLinks, codes: Sequence[str]) -> np.ndarray:
    """The link that each edge inherits from the groups of its stocks. int16, as ``neighbours``."""
    group = links.groups(codes)
    link = links.padded[group[neighbours], group[None, :, None]]
    return np.where(neighbours >= 0, link, 0).astype(np.int16)


def write_graph(graph: StockGraph, root: Path) -> str:
    """Stores the graph as a new version under ``root``; returns its content hash."""
    arrays = {
        "refresh": graph.refresh,
        "neighbours": graph.neighbours,
        "correlation": graph.correlation,
    }
    if graph.link is not None and graph.links is not None:
        arrays |= {"link": graph.link, "links": graph.links}
    facts = {"format": FORMAT, "panel_hash": graph.panel_hash, "kind": graph.kind}
    return publish(root, arrays, facts)


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
    linked = "link.npy" in manifest["files"]
    return StockGraph(
        refresh=np.load(folder / "refresh.npy"),
        neighbours=np.load(folder / "neighbours.npy", mmap_mode="r"),
        correlation=np.load(folder / "correlation.npy", mmap_mode="r"),
        panel_hash=manifest["panel_hash"],
        hash=manifest["hash"],
        link=np.load(folder / "link.npy", mmap_mode="r") if linked else None,
        links=np.load(folder / "links.npy") if linked else None,
        kind=manifest.get("kind", "correlation"),  # graphs were of no other kind before it was said
    )
