"""The panel on the device, and batches of it: runs of consecutive dates × whole cross-sections.

A batch is a few runs of consecutive signal dates. The days of a run and of the lookback before it
are handed over once and shared by the run's overlapping windows. Each run holds the stocks that can
be scored on any of its dates and no others: on a market with listings and delistings, or with a
point-in-time universe, that is well below all codes that the panel ever saw.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atft_model.data.graph import StockGraph
from atft_model.data.group_links import LINK_ATTRIBUTES
from atft_model.data.normalizer import TimeSeriesStatistics, apply_time_series
from atft_model.data.panel import Panel, window_observed
from atft_model.data.relative import RelativeTo, date_mean, relative_returns
from atft_model.errors import InputError


@dataclass(frozen=True)
class TargetScale:
    """Raw mean and standard deviation per horizon on training dates, and of demeaned targets."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    demeaned_std: tuple[float, ...]


@dataclass(frozen=True)
class WindowBatch:
    """What one forward pass sees and what its loss compares with.

    ``days`` = run length + lookback - 1; window r of a run covers days r to r + lookback - 1.
    Runs with fewer stocks than the widest are padded with windows that are not ``scorable``.
    """

    features: Float[Tensor, "runs days stocks features"]
    observed: Bool[Tensor, "runs days stocks"]
    sector: Int[Tensor, "runs stocks"]
    market: Int[Tensor, "runs stocks"]
    neighbours: Int[Tensor, "runs length stocks k"]
    edge_attr: Float[Tensor, "runs length stocks k attributes"]
    scorable: Bool[Tensor, "runs length stocks"]
    target: Float[Tensor, "runs length stocks horizons"]
    rank_target: Float[Tensor, "runs length stocks horizons"]
    """What the rank term orders: the target, or the return relative to its sector."""
    valid: Bool[Tensor, "runs length stocks horizons"]
    positions: Int[Tensor, "runs length"]
    stocks: Int[Tensor, "runs stocks"]
    """The panel's stock of each column."""
    windows: int
    """How many windows are scorable; known to the host without asking the device."""


@dataclass(frozen=True)
class Share:
    """A part of a step's batch: what one process computes at a time.

    ``number`` counts the parts of the step; it seeds this part's dropout. A batch of fewer runs and
    dates than parts leaves some ``empty``: they are computed, and nothing of them counts.
    """

    starts: np.ndarray
    length: int
    number: int
    empty: bool = False


@dataclass(frozen=True)
class BatchCounts:
    """How much a step's whole batch holds: what the means of its loss divide by.

    Counted on the host from what does not change, so that every process knows them without asking
    another one or the device.
    """

    windows: int
    dates: int
    entries: int
    """Valid (window, horizon)."""
    ranked: tuple[int, ...]
    """Dates with enough valid stocks to rank, per horizon."""
    spread: tuple[int, ...]
    """Dates with at least two valid stocks, per horizon."""


class DevicePanel:
    """The whole panel on the device, normalized, with the graph, ready to be cut into batches.

    Features are normalized with ``statistics`` (fitted on training dates); an unknown value then
    becomes 0, the mean, and the ``is_valid_*`` inputs tell the model which ones were unknown.
    Targets are demeaned within the date over the stocks that can be scored and divided by the
    training standard deviation of their horizon. ``rank_target`` is the same or, where
    ``relative_to`` says so, returns relative to their sector; their scale means nothing.
    """

    def __init__(
        self,
        panel: Panel,
        graph: StockGraph,
        statistics: TimeSeriesStatistics,
        scale: TargetScale,
        lookback: int,
        device: torch.device,
        relative_to: RelativeTo = "date",
    ) -> None:
        self.panel = panel
        self.lookback = lookback
        self.device = device
        self.features = normalized_features(panel, statistics, device)
        self.observed = torch.from_numpy(np.array(panel.observed)).to(device)
        # The model replaces such a day, but the gradient passes through its huge values: 0 · inf.
        self.features[~self.observed] = 0.0
        scorable = window_observed(np.asarray(panel.observed), lookback) & panel.tradable
        self.scorable_on_host = scorable
        self.scorable = torch.from_numpy(scorable).to(device)
        target = scaled_targets(panel, scale, scorable)
        self.valid_per_date = np.isfinite(target).sum(axis=1)
        """[dates, horizons], on the host."""
        self.valid = torch.from_numpy(np.isfinite(target)).to(device)
        self.target = torch.from_numpy(np.nan_to_num(target)).to(device)
        self.rank_target = self.target
        if relative_to != "date":
            relative = targets_relative_to(panel, scorable, relative_to).astype(np.float32)
            self.rank_target = torch.from_numpy(np.nan_to_num(relative)).to(device)
        self.sector = torch.from_numpy(np.array(panel.sector)).long().to(device)
        self.market = torch.from_numpy(np.array(panel.market)).long().to(device)
        self.graph_index = torch.from_numpy(graph.at(len(panel.dates))).to(device)
        self.neighbours = torch.from_numpy(np.array(graph.neighbours)).long().to(device)
        self.correlation = torch.from_numpy(np.array(graph.correlation)).to(device)
        no_link = np.zeros((1, len(LINK_ATTRIBUTES)), dtype=np.float32)
        links = no_link if graph.links is None else graph.links
        self.links = torch.from_numpy(np.array(links)).to(device)
        link = None if graph.link is None else torch.from_numpy(np.array(graph.link)).to(device)
        self.link: Tensor | None = link

    def batch(self, starts: np.ndarray, length: int) -> WindowBatch:
        """The batch of runs that begin at signal dates ``starts`` (positions) of one ``length``."""
        first = torch.from_numpy(starts).to(self.device)[:, None]
        positions = first + torch.arange(length, device=self.device)
        day = torch.arange(1 - self.lookback, length, device=self.device)
        days = (first + day)[:, :, None]
        runs = np.stack([self.scorable_on_host[s : s + length] for s in starts])
        stocks = torch.from_numpy(_pack(np.asarray(runs.any(axis=1)))).to(self.device)
        cells = positions[:, :, None], stocks[:, None]
        neighbours, edge_attr = self._edges(positions, stocks)
        target = self.target[cells]
        return WindowBatch(
            features=self.features[days, stocks[:, None]],
            observed=self.observed[days, stocks[:, None]],
            sector=self.sector[stocks],
            market=self.market[stocks],
            neighbours=neighbours,
            edge_attr=edge_attr,
            scorable=self.scorable[cells],
            target=target,
            rank_target=target if self.rank_target is self.target else self.rank_target[cells],
            valid=self.valid[cells],
            positions=positions,
            stocks=stocks,
            windows=int(runs.sum()),
        )

    def share(self, share: Share) -> WindowBatch:
        """The batch of one part of a step."""
        batch = self.batch(share.starts, share.length)
        if not share.empty:
            return batch
        nothing = torch.zeros_like(batch.scorable), torch.zeros_like(batch.valid)
        return replace(batch, scorable=nothing[0], valid=nothing[1], windows=0)

    def count(self, starts: np.ndarray, length: int, min_stocks: int) -> BatchCounts:
        """How much the batch of these runs holds; see ``batch``."""
        dates = (starts[:, None] + np.arange(length)).ravel()
        valid = self.valid_per_date[dates]
        return BatchCounts(
            windows=int(self.scorable_on_host[dates].sum()),
            dates=len(dates),
            entries=int(valid.sum()),
            ranked=tuple((valid >= min_stocks).sum(axis=0).tolist()),
            spread=tuple((valid >= 2).sum(axis=0).tolist()),
        )

    def _edges(self, positions: Tensor, stocks: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours of each (date, stock) and their ``EDGE_ATTRIBUTES``.

        A neighbour that is not observed on the date itself, or that has no whole window, is
        no neighbour that day (-1). Neighbours are columns of the batch.
        """
        refresh = self.graph_index[positions]
        cells = refresh.clamp(min=0)[:, :, None], stocks[:, None]
        neighbours = self.neighbours[cells]
        stock = neighbours.clamp(min=0)
        known = (neighbours >= 0) & (refresh >= 0)[..., None, None]
        attributes = torch.stack(
            [
                self.correlation[cells],
                _same_group(self.sector, stocks, stock),
                _same_group(self.market, stocks, stock),
            ],
            dim=-1,
        )
        link = torch.zeros_like(neighbours) if self.link is None else self.link[cells].long()
        attributes = torch.cat([attributes, self.links[link]], dim=-1)
        usable = known & self.scorable[positions[:, :, None, None], stock]
        column = torch.full((len(stocks), len(self.sector)), -1, device=self.device)
        order = torch.arange(stocks.shape[1], device=self.device)
        column.scatter_(1, stocks, order.expand_as(stocks))
        run = torch.arange(len(stocks), device=self.device)[:, None, None, None]
        return torch.where(usable, column[run, stock], -1), attributes * known[..., None]


def _pack(wanted: np.ndarray) -> np.ndarray:
    """The wanted stocks of each run first, then others as padding: [runs, widest]."""
    widest = max(1, int(wanted.sum(axis=1).max()))
    return np.argsort(~wanted, axis=1, kind="stable")[:, :widest]


def _same_group(group: Tensor, stocks: Tensor, neighbour: Tensor) -> Tensor:
    """1 where a stock and its neighbour share a known group (0 is unknown), else 0."""
    mine = group[stocks][:, None, :, None]
    return ((group[neighbour] == mine) & (mine > 0)).float()


def normalized_features(
    panel: Panel, statistics: TimeSeriesStatistics, device: torch.device
) -> Float[Tensor, "dates stocks features"]:
    """The panel's features on the device, time-series ones normalized, unknown values 0."""
    values = torch.from_numpy(np.array(panel.features)).to(device)
    columns = panel.time_series_columns()
    if columns:
        values[..., columns] = apply_time_series(values[..., columns], statistics)
    return values.nan_to_num_(nan=0.0)


def fit_target_scale(panel: Panel, train: tuple[int, int]) -> TargetScale:
    """Mean and std of each horizon's raw return, and of the demeaned one, on training dates.

    Raises:
        InputError: a horizon without known targets, with infinite ones, or that never varies.
    """
    part = slice(*train)
    raw = np.where(panel.tradable[part][..., None], panel.targets[part], np.nan)
    raw = raw.astype(np.float64)
    for index in np.flatnonzero(np.isinf(raw).any(axis=(0, 1))):
        raise InputError(
            f"panel: the {panel.horizons[index]}-day target is infinite on a training date; mend "
            "what made it (the scan before training says where)"
        )
    count = np.isfinite(raw).sum(axis=(0, 1))
    if (count == 0).any():
        horizon = panel.horizons[int(np.argmin(count))]
        raise InputError(f"panel: no known {horizon}-day target on training dates; give more dates")
    demeaned = raw - date_mean(raw)
    scale = TargetScale(
        mean=tuple(np.nanmean(raw, axis=(0, 1)).tolist()),
        std=tuple(np.nanstd(raw, axis=(0, 1)).tolist()),
        demeaned_std=tuple(np.nanstd(demeaned, axis=(0, 1)).tolist()),
    )
    for horizon, std in zip(panel.horizons, scale.demeaned_std, strict=True):
        if not std > 0:
            raise InputError(
                f"panel: the {horizon}-day target never varies within a training date; "
                "check the prices"
            )
    return scale


def scaled_targets(panel: Panel, scale: TargetScale, rows: np.ndarray) -> np.ndarray:
    """Targets for the loss: demeaned within the date over ``rows``, divided by the training std.

    Args:
        rows: bool [dates, stocks]; the others become NaN.
    """
    demeaned = targets_relative_to(panel, rows, "date")
    return (demeaned / np.array(scale.demeaned_std)).astype(np.float32)


def targets_relative_to(
    panel: Panel, rows: np.ndarray, relative_to: RelativeTo
) -> Float[np.ndarray, "dates stocks horizons"]:
    """Raw targets of ``rows`` (bool [dates, stocks]) less what they are relative to; else NaN."""
    raw = np.where(rows[..., None], panel.targets, np.nan).astype(np.float64)
    return relative_returns(raw, np.asarray(panel.sector), relative_to)


def usable_dates(
    valid: Bool[Tensor, "dates stocks horizons"], part: tuple[int, int], min_stocks: int
) -> np.ndarray:
    """bool [dates]: within ``part``, with at least ``min_stocks`` known targets somewhere."""
    enough = (valid.sum(dim=1) >= min_stocks).any(dim=-1).cpu().numpy()
    inside = np.zeros(len(enough), dtype=bool)
    inside[part[0] : part[1]] = True
    return enough & inside


def consecutive_runs(dates: np.ndarray, length: int, offset: int = 0) -> list[tuple[int, int]]:
    """Cuts the True stretches of ``dates`` into runs [first, last) of at most ``length`` dates.

    Args:
        dates: bool [dates].
        offset: length of the first run of each stretch, so that epochs cut differently; 0 for none.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dates.astype(np.int8), [0]])))
    runs = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        cuts = [int(first), *range(int(first) + offset, int(last), length), int(last)]
        runs += [(a, b) for a, b in pairwise(cuts) if b > a]
    return runs


def epoch_batches(
    dates: np.ndarray,
    length: int,
    runs_per_batch: int,
    generator: np.random.Generator | None = None,
) -> Iterator[tuple[np.ndarray, int]]:
    """Every True date once, as batches (starts [runs], length) of runs of one length each.

    Without a generator in time order; with one, cut at a random offset and shuffled.
    """
    offset = int(generator.integers(length)) if generator is not None else 0
    by_length: dict[int, list[int]] = {}
    for first, last in consecutive_runs(dates, length, offset):
        by_length.setdefault(last - first, []).append(first)
    batches = []
    for run_length, starts in by_length.items():
        order = np.array(starts)
        if generator is not None:
            generator.shuffle(order)
        batches += [
            (order[i : i + runs_per_batch], run_length)
            for i in range(0, len(order), runs_per_batch)
        ]
    if generator is not None:
        generator.shuffle(batches)  # type: ignore[arg-type]
    yield from batches


def shares(starts: np.ndarray, length: int, parts: int) -> list[Share]:
    """Cuts a step's batch into ``parts`` of whole dates.

    Between runs where that leaves no more parts empty, else every run into pieces of dates: a
    piece brings its own lookback, which costs some arithmetic but changes no window.
    """
    if len(starts) >= min(parts, length):
        cut = [(piece, length) for piece in np.array_split(starts, parts)]
    else:
        dates = np.array_split(np.arange(length), parts)
        cut = [(starts + piece[0] if len(piece) else starts[:0], len(piece)) for piece in dates]
    return [
        Share(piece, days, number) if len(piece) else Share(starts[:1], 1, number, empty=True)
        for number, (piece, days) in enumerate(cut)
    ]


def fewest_batches(dates: np.ndarray, length: int, runs_per_batch: int) -> int:
    """Batches that every epoch has at least, at whatever offset its runs are cut.

    An epoch planned with more would now and then come out one short, and with it its readings.
    """

    def batches(offset: int) -> int:
        cut = consecutive_runs(dates, length, offset)
        runs = np.bincount([last - first for first, last in cut])
        return int(np.ceil(runs / runs_per_batch).sum())

    return min(batches(offset) for offset in range(length))


def runs_per_batch(batch_windows: int, length: int, windows_per_date: float) -> int:
    """Runs that hold at least ``batch_windows`` windows, rounded up to whole runs."""
    return max(1, int(np.ceil(batch_windows / (length * max(windows_per_date, 1.0)))))
