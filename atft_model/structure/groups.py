"""From stocks to the few series whose structure is learned: groups of stocks, and the market.

Nodes are sectors, or clusters of stocks by correlation where the source names no sectors. Only
training dates are read, for the clusters as for the series.

The market is not among them, and no average of stocks is given as exogenous. Such an average is
one of the same groups: with it taken out, what is left of them sums to nearly zero, every group is
a function of the others, and the graph dense. The market is an unobserved root instead, estimated
with the graph (``common_factor.py``); the average only says afterwards whether that root is it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from atft_model.config import setting
from atft_model.data.group_links import GroupLinks
from atft_model.data.panel import Panel
from atft_model.errors import InputError
from atft_model.structure.record import StructureRecord
from atft_model.structure.series import Series

NO_GROUP = -1
ITERATIONS, RESTARTS = 30, 5
SHOWN_MEMBERS = 5


@dataclass(frozen=True)
class GroupConfig:
    """How stocks become series."""

    clusters: int = setting(12, "Clusters by correlation, where the source names no sectors.")
    min_members: int = setting(
        5,
        "Stocks in a group's series on a day; fewer leave the day unknown, a group without as "
        "many stocks is left out.",
    )
    min_observed: float = setting(
        0.5, "Share of the training dates on which a stock has a bar; others are in no series."
    )


@dataclass(frozen=True)
class Groups:
    """Which group each stock is in.

    Attributes:
        names: Sectors by name, or ``cluster_01`` (the one with the most stocks), ...
        of_stock: Position in ``names``, ``NO_GROUP`` where a stock is in none.
        in_market: Stocks with enough bars to be in a series, in a group or not.
        biggest: For each group its biggest stocks, biggest first.
        left_out: Groups that are too small to be a series, with the reason.
    """

    names: tuple[str, ...]
    of_stock: Int[np.ndarray, " stocks"]
    in_market: Bool[np.ndarray, " stocks"]
    biggest: tuple[tuple[str, ...], ...]
    left_out: dict[str, str]


def group_stocks(
    panel: Panel, train: tuple[int, int], config: GroupConfig, size: Float[np.ndarray, " stocks"]
) -> Groups:
    """Sectors where the source names at least two that are large enough, else clusters.

    Args:
        train: Half-open range of the training dates.
        size: Any measure of how big a stock is; only names the biggest members.

    Raises:
        InputError: fewer than two groups either way.
    """
    part = slice(*train)
    known = np.asarray(panel.observed[part]) & np.isfinite(panel.daily_return[part])
    enough = known.mean(axis=0) >= config.min_observed
    sector = np.where(enough, np.asarray(panel.sector).astype(int), 0)
    count = np.bincount(sector[enough], minlength=len(panel.sectors))
    large = [s for s in range(1, len(panel.sectors)) if count[s] >= config.min_members]
    if len(large) >= 2:
        place = {s: i for i, s in enumerate(large)}
        of_stock = np.array([place.get(s, NO_GROUP) for s in sector])
        names = tuple(panel.sectors[s] for s in large)
        left_out = {
            panel.sectors[s]: f"{count[s]} stocks, expected {config.min_members}"
            for s in range(1, len(panel.sectors)) if s not in place
        }  # fmt: skip
    else:
        returns = np.where(known, panel.daily_return[part], 0.0)[:, enough]
        of_stock = np.full(len(panel.codes), NO_GROUP)
        of_stock[enough] = clusters_by_correlation(returns, known[:, enough], config)
        names = tuple(f"cluster_{i + 1:02d}" for i in range(of_stock.max() + 1))
        left_out = {}
    if len(names) < 2:
        raise InputError(
            f"learned_structure: {len(names)} groups with {config.min_members} stocks; expected at "
            "least 2: give more stocks, or lower min_members"
        )
    order = np.argsort(-np.nan_to_num(size), kind="stable")
    biggest = tuple(
        tuple(panel.codes[s] for s in order if of_stock[s] == group)[:SHOWN_MEMBERS]
        for group in range(len(names))
    )
    return Groups(names, of_stock, enough, biggest, left_out)


def clusters_by_correlation(
    returns: Float[np.ndarray, "days stocks"],
    known: Bool[np.ndarray, "days stocks"],
    config: GroupConfig,
) -> Int[np.ndarray, " stocks"]:
    """Spherical k-means on standardized returns less the day's mean, which all stocks share.

    A missing day counts as an average day of its stock. A cluster with fewer than ``min_members``
    stocks is dissolved into the others, smallest first. The largest cluster comes first.
    """
    day = np.where(known, returns, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    own = np.where(known, returns - day[:, None], 0.0)
    own = np.where(known, own - own.sum(axis=0) / np.maximum(known.sum(axis=0), 1), 0.0)
    unit = own / np.maximum(np.sqrt((own**2).sum(axis=0)), 1e-12)
    best, best_fit = None, -np.inf
    for restart in range(RESTARTS):
        centres = _first_centres(unit, min(config.clusters, unit.shape[1]), restart)
        label, centres, fit = _settle(unit, centres)
        if fit > best_fit:
            best, best_fit = (label, centres), fit
    assert best is not None
    label, centres = best
    while centres.shape[1] > 1:
        members = np.bincount(label, minlength=centres.shape[1])
        if members.min() >= config.min_members:
            break
        label, centres, _ = _settle(unit, np.delete(centres, int(members.argmin()), axis=1))
    by_size = np.argsort(-np.bincount(label, minlength=centres.shape[1]), kind="stable")
    return np.argsort(by_size)[label]


def _first_centres(unit: np.ndarray, count: int, restart: int) -> np.ndarray:
    """Stocks far from each other, drawn as k-means++ does (Arthur and Vassilvitskii 2007)."""
    rng = np.random.default_rng(restart)
    chosen = [int(rng.integers(unit.shape[1]))]
    far = 1 - unit.T @ unit[:, chosen[0]]
    while len(chosen) < count:
        weight = np.maximum(far, 0.0) ** 2
        weight[chosen] = 0.0
        chosen.append(int(rng.choice(len(weight), p=weight / weight.sum())))
        far = np.minimum(far, 1 - unit.T @ unit[:, chosen[-1]])
    return unit[:, chosen]


def _settle(unit: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Assigns and averages until nothing moves; an emptied cluster keeps its centre."""
    label = np.full(unit.shape[1], -1)
    for _ in range(ITERATIONS):
        alike = unit.T @ centres
        nearest = alike.argmax(axis=1)
        if (nearest == label).all():
            break
        label = nearest
        for cluster in np.unique(label):
            mean = unit[:, label == cluster].mean(axis=1)
            centres[:, cluster] = mean / max(np.sqrt((mean**2).sum()), 1e-12)
    fit = float((unit.T @ centres).max(axis=1).sum())
    return label, centres, fit


def group_series(
    panel: Panel, groups: Groups, train: tuple[int, int], config: GroupConfig
) -> tuple[Series, Float[np.ndarray, " days"]]:
    """Equal-weighted daily returns of each group, and of all stocks on the same days.

    Starts on the first day on which all are known. NaN on days with too few members.

    Raises:
        InputError: there is no such day.
    """
    part = slice(*train)
    returns = np.asarray(panel.daily_return[part], dtype=np.float64)
    known = np.asarray(panel.observed[part]) & np.isfinite(returns)
    masks = [(groups.of_stock == g) & groups.in_market for g in range(len(groups.names))]
    columns = [_mean_return(returns, known, m, config.min_members)
               for m in [*masks, groups.in_market]]  # fmt: skip
    whole = np.column_stack(columns)
    complete = np.isfinite(whole).all(axis=1)
    if not complete.any():
        raise InputError(
            f"learned_structure: on no training date have all of {', '.join(groups.names)} and the "
            f"market {config.min_members} stocks; lower min_members or give more stocks"
        )
    whole = whole[int(complete.argmax()) :]
    return Series(whole[:, :-1], groups.names), whole[:, -1]


def _mean_return(
    returns: np.ndarray, known: np.ndarray, mask: np.ndarray, min_members: int
) -> np.ndarray:
    count = known[:, mask].sum(axis=1)
    total = np.where(known[:, mask], returns[:, mask], 0.0).sum(axis=1)
    return np.where(count >= min_members, total / np.maximum(count, 1), np.nan)


def links_of(record: StructureRecord, group_of: dict[str, str]) -> GroupLinks:
    """The kept edges between groups, as edges of the stock graph inherit them.

    Where two groups are linked within the day and with a lag, the link with the larger product of
    size and confidence stands for both. A group's own past is no link.

    Args:
        group_of: Code to the name of its group.
    """
    place = {name: i for i, name in enumerate(record.names)}
    between = np.zeros((len(place), len(place)), dtype=np.int16)
    attributes = [(0.0, 0.0, 0.0)]
    strength = {}
    for edge in record.kept_edges:
        pair = place[edge.source], place[edge.target]
        sure = 1.0 if edge.confidence is None else edge.confidence
        size = abs(edge.weight) * sure
        if pair[0] == pair[1] or size <= strength.get(pair, 0.0):
            continue
        strength[pair] = size
        attributes.append((edge.weight, float(edge.lag), sure))
        between[pair] = len(attributes) - 1
    positions = {code: place[name] for code, name in group_of.items()}
    return GroupLinks(positions, between, np.array(attributes, dtype=np.float64))
