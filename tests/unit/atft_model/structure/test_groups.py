"""Stocks to series: which groups, whose returns, and that later dates are never read."""

import dataclasses

import numpy as np
import pytest

from atft_model.data.panel import Panel
from atft_model.data.toy_panel import make_panel
from atft_model.errors import InputError
from atft_model.structure.groups import (
    NO_GROUP,
    GroupConfig,
    group_series,
    group_stocks,
    links_of,
)
from tests.support.structure_record import sound_record

CONFIG = GroupConfig(clusters=4, min_members=3)
HIDDEN = np.repeat(np.arange(3), 30)


@pytest.fixture(scope="module")
def panel() -> Panel:
    """90 stocks of three hidden groups with returns of their own and a market's."""
    made = make_panel(dates=400, stocks=90)
    rng = np.random.default_rng(1)
    own = 0.01 * rng.standard_normal((400, 3))[:, HIDDEN]
    market = 0.01 * rng.standard_normal((400, 1))
    daily = own + market + 0.01 * rng.standard_normal((400, 90))
    daily = np.where(made.observed, daily, np.nan).astype(np.float32)
    return dataclasses.replace(made, daily_return=daily)


@pytest.fixture(scope="module")
def without_sectors(panel) -> Panel:
    return dataclasses.replace(panel, sector=np.zeros(90, np.int16), sectors=("unknown",))


def grouped(panel: Panel, config: GroupConfig = CONFIG):
    return group_stocks(panel, panel.split.train, config, np.arange(90.0))


def test_sectors_are_the_groups_where_there_are_some(panel):
    groups = grouped(panel)
    assert groups.names == ("a", "b", "c")
    known = groups.of_stock != NO_GROUP
    assert (groups.of_stock[known] == (panel.sector - 1)[known]).all()
    assert groups.biggest[0][0] == panel.codes[87]  # the biggest of 0, 3, 6, ...


def test_without_sectors_clusters_find_the_hidden_groups(without_sectors):
    groups = grouped(without_sectors, GroupConfig(clusters=3, min_members=3))
    assert groups.names == ("cluster_01", "cluster_02", "cluster_03")
    for group in range(3):
        members = HIDDEN[groups.of_stock == group]
        assert len(set(members)) == 1
        assert len(members) >= 28


def test_a_cluster_that_is_too_small_is_dissolved(without_sectors):
    config = GroupConfig(clusters=12, min_members=15)
    groups = grouped(without_sectors, config)
    assert np.bincount(groups.of_stock[groups.of_stock != NO_GROUP]).min() >= 15
    assert len(groups.names) < 12


def test_a_sector_that_is_too_small_is_left_out_by_name(panel):
    sector = np.array(panel.sector)
    sector[sector == 3] = 2
    sector[:2] = 3
    small = dataclasses.replace(panel, sector=sector)
    groups = grouped(small)
    assert groups.names == ("a", "b")
    assert set(groups.left_out) == {"c"}
    assert (groups.of_stock[:2] == NO_GROUP).all()


def test_series_are_means_of_the_stocks_that_have_a_bar(panel):
    groups = grouped(panel)
    series, market = group_series(panel, groups, panel.split.train, CONFIG)
    assert series.exogenous is None  # an average of the same stocks would tie the groups
    day = panel.split.train[0] + 50
    returns, known = panel.daily_return[day], panel.observed[day]
    for group in range(3):
        mine = (groups.of_stock == group) & known
        assert series.values[50, group] == pytest.approx(returns[mine].astype(float).mean())
    assert groups.in_market.sum() > 80
    everyone = groups.in_market & known
    assert market[50] == pytest.approx(returns[everyone].astype(float).mean())


@pytest.mark.parametrize("sectors", [True, False])
def test_no_date_after_training_is_read(panel, without_sectors, sectors):
    whole = panel if sectors else without_sectors
    end = whole.split.train[1]
    daily, observed = np.array(whole.daily_return), np.array(whole.observed)
    rng = np.random.default_rng(9)
    observed[end:] = rng.random(observed[end:].shape) > 0.5
    daily[end:] = np.where(observed[end:], rng.standard_normal(daily[end:].shape), np.nan)
    other = dataclasses.replace(whole, daily_return=daily, observed=observed)
    first, second = grouped(whole), grouped(other)
    np.testing.assert_array_equal(first.of_stock, second.of_stock)
    a, market = group_series(whole, first, whole.split.train, CONFIG)
    b, other_market = group_series(other, second, whole.split.train, CONFIG)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(market, other_market)


def test_too_few_stocks_are_refused_in_one_line(panel):
    with pytest.raises(InputError, match="expected at least 2: give more stocks"):
        grouped(panel, GroupConfig(min_members=60))
    groups = grouped(panel)
    with pytest.raises(InputError, match="on no training date"):
        group_series(panel, groups, panel.split.train, GroupConfig(min_members=40))


def test_links_are_the_strongest_kept_edge_of_two_different_groups():
    record = sound_record()
    links = links_of(record, {"X": record.names[0], "Y": record.names[1]})
    place = {name: i for i, name in enumerate(record.names)}
    expected = {}
    for edge in record.edges:
        pair = place[edge.source], place[edge.target]
        if edge.kept and edge.source != edge.target:
            strength = abs(edge.weight) * (1.0 if edge.confidence is None else edge.confidence)
            if strength > expected.get(pair, (0.0, None))[0]:
                expected[pair] = strength, (edge.weight, edge.lag, edge.confidence)
    assert set(zip(*np.nonzero(links.between), strict=True)) == set(expected)
    for pair, (_, attributes) in expected.items():
        assert tuple(links.attributes[links.between[pair]]) == pytest.approx(attributes)
    assert links.groups(["Y", "X", "Z"]).tolist() == [1, 0, len(record.names)]
    assert (links.signs[-1] == 0).all()
