"""How far a learned graph is from a known one, and what chance would have reached.

Graphs are boolean (or weighted: any non-zero entry is an edge) matrices with ``graph[i, j]`` for
i → j. Nothing here is used to learn; without truth nothing here is called.
"""

import math
from dataclasses import dataclass

import numpy as np

Graph = np.ndarray


@dataclass(frozen=True)
class EdgeScores:
    """Directed-edge agreement; nan where a ratio has no denominator."""

    precision: float
    recall: float
    f1: float


def edge_scores(found: Graph, truth: Graph) -> EdgeScores:
    """Precision, recall and F1 of directed edges (also of lagged ones: any equal shapes)."""
    found, truth = found != 0, truth != 0
    hits = int((found & truth).sum())
    edges, true_edges = int(found.sum()), int(truth.sum())
    return EdgeScores(
        precision=hits / edges if edges else math.nan,
        recall=hits / true_edges if true_edges else math.nan,
        f1=2 * hits / (edges + true_edges) if edges + true_edges else math.nan,
    )


def structural_hamming_distance(found: Graph, truth: Graph) -> int:
    """Pairs of series whose link differs; a reversed edge counts once.

    Works on DAGs and on CPDAGs (an undirected link is both directions).
    """
    differs = (found != 0) != (truth != 0)
    return int(np.triu(differs | differs.T, 1).sum())


def cpdag(dag: Graph) -> Graph:
    """The graph that all DAGs with the same conditional independencies share.

    Edges whose direction the class leaves open are true in both directions. V-structures, then
    Meek's four rules (Meek 1995); the fourth is only needed with background knowledge.
    """
    directed = dag != 0
    nodes = len(directed)
    linked = directed | directed.T
    open_links = linked.copy()
    for child in range(nodes):
        parents = np.flatnonzero(directed[:, child])
        for a in parents:
            for b in parents:
                if a < b and not linked[a, b]:
                    open_links[child, a] = open_links[child, b] = False
    changed = True
    while changed:
        changed = False
        for a, b in np.argwhere(open_links & open_links.T).tolist():
            if open_links[a, b] and open_links[b, a] and _must_point(open_links, linked, a, b):
                open_links[b, a] = False
                changed = True
    return open_links


def _must_point(graph: Graph, linked: Graph, a: int, b: int) -> bool:
    """Whether the undirected a − b must become a → b by one of Meek's rules 1 to 3."""
    arrows = graph & ~graph.T
    undirected = graph & graph.T
    into_a = arrows[:, a] & ~linked[:, b]
    into_a[b] = False
    if into_a.any():
        return True
    if (arrows[a] & arrows[:, b]).any():
        return True
    middles = np.flatnonzero(undirected[a] & arrows[:, b])
    return any(not linked[c, d] for c in middles for d in middles if c < d)


def chance_f1(edges: int, true_edges: int, possible: int) -> float:
    """Expected F1 of as many edges drawn at random from ``possible`` places."""
    if not edges + true_edges:
        return math.nan
    return 2 * (edges * true_edges / possible) / (edges + true_edges)


def chance_p_value(hits: int, edges: int, true_edges: int, possible: int) -> float:
    """Probability that ``edges`` random places hit at least ``hits`` of the true ones.

    Hypergeometric upper tail; 1.0 without edges: an empty graph is never better than chance.
    """
    ways = math.comb(possible, edges)
    tail = sum(
        math.comb(true_edges, k) * math.comb(possible - true_edges, edges - k)
        for k in range(hits, min(edges, true_edges) + 1)
    )
    return tail / ways
