"""Which features and which neighbours a trained model's scores rest on, on test dates.

Two views of the same scores. *Permutation*: a group of features changes hands among the stocks of a
date, and the rank IC that is lost is what the group was worth. *Weights*: what the model's own
variable selection and graph attention put on each feature and neighbour. Weights are cheap and
go into detail, but among near-duplicates they say little: any of them would have done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from atft_model.config import setting
from atft_model.data.batches import DevicePanel, WindowBatch, consecutive_runs
from atft_model.errors import InputError
from atft_model.metrics.inference import newey_west_mean
from atft_model.metrics.rank_ic import rank_ic
from atft_model.model.readout import Readout

NEIGHBOURS = "neighbours"
"""The group that is no feature: who the neighbours are."""

Scorer = Callable[[WindowBatch], Float[Tensor, "runs length stocks"]]


@dataclass(frozen=True)
class ImportanceConfig:
    """How much is looked at: time grows with ``windows`` × (groups + 1) × ``repeats``."""

    windows: int = setting(
        12_000, "Windows scored per group: whole runs of test dates, evenly spread, at least one."
    )
    run_length: int = setting(20, "Consecutive dates of a run; its windows share their days.")
    repeats: int = setting(1, "Permutations per run and group; more dates say more than repeats.")
    seed: int = setting(1337, "Of the permutations.")


@dataclass(frozen=True)
class Importance:
    """One row: ``kind`` says how it was measured, see ``group_importance`` and the others."""

    kind: str
    name: str
    importance: float
    standard_error: float
    neighbour: str = ""
    """Of a pair: the stock that ``name`` looked at."""


def chosen_runs(
    dates: np.ndarray, windows_per_date: float, config: ImportanceConfig
) -> tuple[list[int], int]:
    """First dates of evenly spread runs of True dates, and the length of all of them.

    The length is ``run_length``, or that of the longest stretch of True dates where it is shorter.

    Args:
        dates: bool [dates].
    """
    stretches = consecutive_runs(dates, len(dates))
    length = min(config.run_length, max((last - first for first, last in stretches), default=0))
    if not length:
        return [], 0
    whole = [first for first, last in consecutive_runs(dates, length) if last - first == length]
    wanted = round(config.windows / (length * max(windows_per_date, 1.0)))
    places = np.linspace(0, len(whole) - 1, min(len(whole), max(wanted, 1)))
    return [whole[place] for place in places.round().astype(int)], length


def batches_of(data: DevicePanel, dates: np.ndarray, config: ImportanceConfig) -> list[WindowBatch]:
    """The chosen runs, a batch each.

    Args:
        dates: bool [dates]; those that may be looked at.

    Raises:
        InputError: there is none.
    """
    if not dates.any():
        raise InputError(
            "importance: no test date has enough tradable stocks with a known target; give more "
            "dates or stocks"
        )
    per_date = float(data.scorable[torch.from_numpy(dates)].sum(dim=1).float().mean())
    starts, length = chosen_runs(dates, per_date, config)
    return [data.batch(np.array([start]), length) for start in starts]


def shuffled_stocks(batch: WindowBatch, rng: np.random.Generator) -> Int[Tensor, "runs stocks"]:
    """For each run a random order of its stocks; padding stays where it is."""
    orders = []
    for here in batch.scorable.any(dim=1).cpu().numpy():
        order, places = np.arange(len(here)), np.flatnonzero(here)
        order[places] = rng.permutation(places)
        orders.append(order)
    return torch.from_numpy(np.stack(orders)).to(batch.features.device)


def permuted(batch: WindowBatch, columns: Sequence[int], rng: np.random.Generator) -> WindowBatch:
    """The batch after stocks swapped the histories of some features, all days of the run at once.

    Every window thus holds a history that some stock of the date had, days in order; the columns
    move together, so that what they say of each other stays true. On a day on which the other stock
    had no bar the values are unknown.
    """
    order = shuffled_stocks(batch, rng)[:, None, :, None]
    features = batch.features.clone()
    features[..., list(columns)] = torch.take_along_dim(
        batch.features[..., list(columns)], order, dim=2
    )
    return replace(batch, features=features)


def rewired(batch: WindowBatch, rng: np.random.Generator) -> WindowBatch:
    """The batch after stocks swapped names in the graph: as many neighbours, but others.

    Who becomes a stock's neighbour and cannot be scored on the date, or is the stock itself, is
    none.
    """
    order = shuffled_stocks(batch, rng)
    runs, length, stocks = batch.scorable.shape
    flat = batch.neighbours.clamp(min=0).view(runs, -1)
    other = torch.take_along_dim(order, flat, dim=1).view(batch.neighbours.shape)
    seen = torch.take_along_dim(batch.scorable, other.view(runs, length, -1), dim=2)
    own = torch.arange(stocks, device=order.device)[:, None]
    fine = (batch.neighbours >= 0) & seen.view(other.shape) & (other != own)
    return replace(batch, neighbours=torch.where(fine, other, -1))


@torch.no_grad()
def group_importance(
    score: Scorer, batches: Sequence[WindowBatch], groups: Mapping[str, Sequence[int]],
    place: int, horizon: int, min_stocks: int, config: ImportanceConfig,
) -> list[Importance]:  # fmt: skip
    """What is lost when a group's values, or the names of neighbours, are another stock's.

    Two kinds of row for each group. ``group``: drop of the rank IC on the same dates, with its
    Newey-West standard error. ``group_score_change``: one minus the rank correlation of the scores
    before and after, 0 where the model does not use the group. It needs no returns, so it has
    little noise, but it says how much the group is used, not how well.

    Args:
        groups: Columns of each group.
        place: Position among the targets of the horizon that ``score`` is for.
        horizon: Its trading days: so far do the targets of neighbouring dates overlap.
        min_stocks: Fewer on a date have no rank IC.
    """
    names = [*groups, NEIGHBOURS]
    drops: dict[str, list[np.ndarray]] = {name: [] for name in names}
    changes: dict[str, list[np.ndarray]] = {name: [] for name in names}
    rng = np.random.default_rng(config.seed)
    for batch in batches:
        before = score(batch)
        returns, valid = batch.target[..., place], batch.valid[..., place]
        known = _by_date(before, returns, valid, min_stocks)
        for name in names:
            drop, change = [], []
            for _ in range(config.repeats):
                other = (
                    permuted(batch, groups[name], rng) if name in groups else rewired(batch, rng)
                )
                after = score(other)
                drop.append(known - _by_date(after, returns, valid, min_stocks))
                change.append(1.0 - _by_date(after, before, batch.scorable, min_stocks))
            drops[name].append(np.mean(drop, axis=0))
            changes[name].append(np.mean(change, axis=0))
    return [
        _estimated(kind, name, np.concatenate(by_name[name]), horizon)
        for kind, by_name in (("group", drops), ("group_score_change", changes))
        for name in names
    ]


def selection_importance(
    readouts: Sequence[Readout], batches: Sequence[WindowBatch], names: Sequence[str]
) -> list[Importance]:
    """``feature_selection``: mean weight of each feature over the windows of a date."""
    by_date = np.concatenate(
        [_mean_over_stocks(r.features, b) for r, b in zip(readouts, batches, strict=True)]
    )
    return [
        _estimated("feature_selection", name, by_date[:, place]) for place, name in enumerate(names)
    ]


def day_importance(readouts: Sequence[Readout], batches: Sequence[WindowBatch]) -> list[Importance]:
    """``day``: mean attention to a day of the window: "0" the signal day, "-1" the one before."""
    by_date = np.concatenate(
        [_mean_over_stocks(r.days, b) for r, b in zip(readouts, batches, strict=True)]
    )
    last = by_date.shape[1] - 1
    return [_estimated("day", str(day - last), by_date[:, day]) for day in range(last + 1)]


def neighbour_importance(
    readouts: Sequence[Readout], batches: Sequence[WindowBatch], codes: Sequence[str]
) -> list[Importance]:
    """Graph attention, from the largest to the smallest within each kind.

    ``pair``: mean attention of a stock to one neighbour over the dates on which it was one;
    1 / number of neighbours is indifference. ``received``: attention that a stock gets from all
    others on a date, 1 on average. The standard error of a pair is over few dates that resemble
    each other: it only says how steady the weight is.
    """
    edges, received = [], []
    for readout, batch in zip(readouts, batches, strict=True):
        for run, day in np.ndindex(*batch.positions.shape):
            panel_stock = batch.stocks[run].cpu().numpy()
            use = batch.scorable[run, day].cpu().numpy()
            column = batch.neighbours[run, day].cpu().numpy()[use]
            weight = readout.neighbours[run, day].cpu().numpy()[use].astype(np.float64)
            known = column >= 0
            source = np.repeat(panel_stock[use], known.sum(axis=1))
            target = panel_stock[column[known]]
            edges.append((source * len(codes) + target, weight[known]))
            got = np.full(len(codes), np.nan)
            got[panel_stock[use]] = 0.0
            np.add.at(got, target, weight[known])
            received.append(got)
    pairs, weights = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    return [*_received(np.stack(received), codes), *_pairs(pairs, weights, codes)]


def _pairs(pairs: np.ndarray, weights: np.ndarray, codes: Sequence[str]) -> Iterator[Importance]:
    """Of stock × stocks + neighbour, once for each date, and the attention on it."""
    pair, place, n = np.unique(pairs, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weights) / n
    spread = np.bincount(place, (weights - mean[place]) ** 2)
    error = np.where(n > 1, np.sqrt(spread / np.maximum((n - 1) * n, 1)), np.nan)
    for rank in np.argsort(-mean, kind="stable"):
        stock, neighbour = divmod(int(pair[rank]), len(codes))
        yield Importance(
            "pair", codes[stock], float(mean[rank]), float(error[rank]), codes[neighbour]
        )


def _received(by_date: np.ndarray, codes: Sequence[str]) -> list[Importance]:
    seen = np.flatnonzero(np.isfinite(by_date).any(axis=0))
    rows = [_estimated("received", codes[int(stock)], by_date[:, stock]) for stock in seen]
    return sorted(rows, key=lambda row: -row.importance)


def _by_date(
    score: Tensor, other: Tensor, valid: Tensor, min_stocks: int
) -> Float[np.ndarray, " dates"]:
    """Rank correlation within each date; NaN where too few stocks are valid."""
    mine, theirs, use = (x.flatten(0, 1).cpu().numpy() for x in (score, other, valid))
    return rank_ic(mine.astype(np.float64), theirs.astype(np.float64), use, min_stocks)


def _mean_over_stocks(values: Tensor, batch: WindowBatch) -> np.ndarray:
    """[dates, last axis]: over the scorable stocks of each date."""
    use = batch.scorable[..., None].to(values.dtype)
    mean = (values * use).sum(dim=2) / use.sum(dim=2).clamp(min=1)
    return mean.flatten(0, 1).double().cpu().numpy()


def _estimated(kind: str, name: str, by_date: np.ndarray, horizon: int = 1) -> Importance:
    estimate = newey_west_mean(by_date, horizon=horizon)
    return Importance(kind, name, estimate.mean, estimate.standard_error)
