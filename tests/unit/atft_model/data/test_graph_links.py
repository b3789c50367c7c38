"""Graphs of learned links: who is a neighbour, and what an edge inherits."""

import dataclasses

import numpy as np
import pytest

from atft_model.data.graph import GraphConfig, build_graph, read_graph, write_graph
from atft_model.data.group_links import GroupLinks
from atft_model.data.panel import Panel, read_panel
from atft_model.data.random_graph import random_graph
from atft_model.errors import InputError

K = 6


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.fixture(scope="module")
def links(panel) -> GroupLinks:
    """Group 0 drives 1 (with the opposite sign) and 2; the first two stocks are in no group."""
    group_of = {code: number % 3 for number, code in enumerate(panel.codes) if number > 1}
    between = np.array([[0, 1, 2], [0, 0, 0], [0, 0, 0]], dtype=np.int16)
    return GroupLinks(group_of, between, np.array([[0.0, 0, 0], [-0.4, 1, 0.9], [0.2, 0, 0.6]]))


def config(graph: str) -> GraphConfig:
    return GraphConfig(neighbours=K, graph=graph)  # type: ignore[arg-type]


def test_learned_neighbours_are_the_most_correlated_of_the_driving_groups(panel, links):
    graph = build_graph(panel, config("learned"), links=links)
    assert graph.link is not None
    groups = links.groups(panel.codes)
    position = int(graph.refresh[-1])
    window = slice(position - 59, position + 1)
    returns, known = panel.daily_return[window], panel.observed[window]
    total = np.where(known, returns, 0.0).sum(axis=0)
    filled = np.where(known, returns, total / np.maximum(known.sum(axis=0), 1))
    with np.errstate(invalid="ignore", divide="ignore"):  # a stock without any return
        correlation = np.corrcoef(filled.astype(np.float64).T)
    usable = (known.sum(axis=0) >= 40) & known[-1]
    for stock in range(len(panel.codes)):
        row = graph.neighbours[-1, stock]
        found = row[row >= 0]
        if groups[stock] not in (1, 2) or not usable[stock]:
            assert not len(found)
            continue
        sign = -1 if groups[stock] == 1 else 1
        drivers = [s for s in np.flatnonzero(groups == 0) if usable[s]]
        best = sorted(drivers, key=lambda s, me=stock, by=sign: -by * correlation[me, s])[:K]
        assert found.tolist() == best
        assert graph.correlation[-1, stock, : len(found)] == pytest.approx(
            correlation[stock, found], abs=1e-5
        )
        assert (graph.link[-1, stock, : len(found)] == groups[stock]).all()


def test_both_gives_half_to_drivers_and_the_rest_to_the_nearest(panel, links):
    both = build_graph(panel, config("both"), links=links)
    plain = build_graph(panel, config("correlation"))
    learned = build_graph(panel, config("learned"), links=links)
    assert both.link is not None
    groups = links.groups(panel.codes)
    for stock in range(len(panel.codes)):
        row, nearest = both.neighbours[-1, stock], plain.neighbours[-1, stock]
        known = row[row >= 0]
        assert len(set(known)) == len(known) == (nearest >= 0).sum()
        drivers = learned.neighbours[-1, stock][: K // 2]
        drivers = drivers[drivers >= 0]
        rest = [other for other in nearest if other not in drivers][: len(known) - len(drivers)]
        assert known.tolist() == [*drivers, *rest]
        for place, other in enumerate(known):  # a nearest stock of a driving group inherits too
            expected = links.between[groups[other], groups[stock]] if max(
                groups[other], groups[stock]) < 3 else 0  # fmt: skip
            assert both.link[-1, stock, place] == expected


def test_a_graph_of_links_is_stored_with_them(panel, links, tmp_path):
    graph = build_graph(panel, config("both"), links=links)
    write_graph(graph, tmp_path)
    again = read_graph(tmp_path, panel)
    assert again.kind == "both"
    np.testing.assert_array_equal(again.link, graph.link)
    np.testing.assert_array_equal(again.links, graph.links)
    write_graph(build_graph(panel, config("correlation")), tmp_path)
    plain = read_graph(tmp_path, panel)
    assert plain.link is None
    assert plain.kind == "correlation"


def test_links_are_needed_where_the_graph_is_made_of_them(panel):
    for graph in ("learned", "both"):
        with pytest.raises(InputError, match="materialize learned_structure first"):
            build_graph(panel, config(graph))


def test_the_random_graph_is_the_control_of_the_correlation_graph(panel):
    made = build_graph(panel, config("random"))
    control = random_graph(build_graph(panel, config("correlation")))
    np.testing.assert_array_equal(made.neighbours, control.neighbours)
    assert made.kind == "random"


def test_a_random_refresh_does_not_depend_on_the_others(panel):
    """Or a later date would change an earlier graph."""
    whole = build_graph(panel, config("random"))
    last = build_graph(panel, config("random"), refresh=whole.refresh[-1:])
    np.testing.assert_array_equal(last.neighbours[0], whole.neighbours[-1])
    assert (whole.neighbours[0] != whole.neighbours[1]).any()


def test_random_neighbours_keep_the_links_beside_them(panel, links):
    graph = build_graph(panel, config("both"), links=links)
    control = random_graph(graph)
    np.testing.assert_array_equal(control.link, graph.link)
    assert dataclasses.replace(control, neighbours=graph.neighbours).links is graph.links
