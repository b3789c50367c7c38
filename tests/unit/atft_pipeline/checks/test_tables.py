"""Each check of a table, of the panel and of the graph is seen to hold and to fail."""

import dataclasses
import datetime as dt

import numpy as np
import polars as pl
import pytest

from atft_model.data.graph import StockGraph, read_graph
from atft_model.data.panel import Panel, read_panel
from atft_pipeline.checks.prices import PricesGate, quarantined_share, universe_is_wide
from atft_pipeline.checks.tables import (
    PanelGate,
    contract_holds,
    normalized_within_bounds,
    panel_is_alive,
    stocks_have_neighbours,
)
from atft_pipeline.schemas import RAW_INDICES, NormalizationBounds

DAY = dt.date(2024, 1, 4)
INDEX = pl.DataFrame({"date": [DAY], "index": ["TOPIX"], "close": [2_400.0]})
BOUNDS = NormalizationBounds()
STATISTICS = pl.DataFrame(
    {
        "feature": ["rsi_14", "is_valid_ma", "__all__"],
        "normalizer": ["cross_section", "none", "continuous"],
        "rows": [1000, 1000, 1000],
        "mean": [0.01, 0.7, 0.01],
        "std": [0.99, 0.4, 0.99],
        "null_share": [0.0, 0.0, 0.0],
        "zero_share": [0.0, 0.3, 0.0],
        "min": [-3.0, 0.0, -3.0],
        "max": [3.0, 1.0, 3.0],
        "other_share": [None, 0.0, None],
    }
)


@pytest.fixture
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.fixture
def graph(stored_panel, panel) -> StockGraph:
    return read_graph(stored_panel[1], panel)


def test_a_table_that_keeps_its_contract_shows_its_rows():
    outcome = contract_holds(INDEX, RAW_INDICES)
    assert outcome.passed
    assert outcome.numbers == {"failures": 0, "rows": 1}


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (pl.concat([INDEX, INDEX]), "unique"),
        (INDEX.with_columns(close=pl.lit(None, pl.Float64)), "not_nullable"),
        (INDEX.cast({"close": pl.Float32}), "dtype"),
        (INDEX.drop("close"), "column_in_dataframe"),
        (INDEX.with_columns(volume=1.0), "column_in_schema"),
    ],
)
def test_a_broken_contract_shows_what_and_where(broken, named):
    outcome = contract_holds(broken, RAW_INDICES)
    assert outcome.stops
    assert named in f"{outcome.figure} {outcome.details}"
    assert outcome.numbers["failures"] > 0


def test_quarantine_is_counted_by_reason_and_limited():
    quarantine = pl.DataFrame({"reason": ["zero_volume", "zero_volume", "duplicate_key"]})
    outcome = quarantined_share(100, quarantine, PricesGate())
    assert outcome.passed
    assert outcome.numbers["rows/zero_volume"] == 2
    assert quarantined_share(60, quarantine, PricesGate()).passed
    assert quarantined_share(59, quarantine, PricesGate()).stops
    assert quarantined_share(0, quarantine, PricesGate()).stops


def test_a_narrow_or_empty_universe_fails():
    wide = pl.DataFrame({"date": [DAY] * 30, "code": [f"{i}" for i in range(30)]})
    assert universe_is_wide(wide, 30).passed
    assert universe_is_wide(wide.head(29), 30).stops
    assert universe_is_wide(wide.head(0), 30).stops


@pytest.mark.parametrize(
    ("quantity", "value", "words"),
    [
        ("mean", 200.0, "rsi_14: mean is 200"),
        ("mean", -0.11, "rsi_14: mean is -0.11"),
        ("std", 268_938.0, "rsi_14: std is 268938"),
        ("std", 0.79, "rsi_14: std is 0.79"),
        ("std", None, "rsi_14: std is unknown"),
        ("zero_share", 0.5, "rsi_14: zero_share is 0.5"),
    ],
)
def test_a_feature_out_of_bounds_is_named(quantity, value, words):
    assert normalized_within_bounds(STATISTICS, BOUNDS, {}).passed
    first = pl.int_range(pl.len()) == 0
    changed = pl.when(first).then(pl.lit(value, pl.Float64)).otherwise(quantity)
    outcome = normalized_within_bounds(
        STATISTICS.with_columns(changed.alias(quantity)), BOUNDS, {"flow_breadth_pos": "constant"}
    )
    assert outcome.stops
    assert outcome.figure.startswith(words)
    assert outcome.numbers["violations"] == 1
    assert outcome.numbers["left_out"] == 1


def test_the_whole_table_is_judged_too():
    last = pl.int_range(pl.len()) == 2
    pooled = pl.when(last).then(0.2).otherwise("mean")
    outcome = normalized_within_bounds(STATISTICS.with_columns(mean=pooled), BOUNDS, {})
    assert outcome.figure.startswith("__all__: mean is 0.2")


def test_a_flag_of_other_values_than_0_and_1_is_named():
    flag = pl.int_range(pl.len()) == 1
    other = pl.when(flag).then(0.2).otherwise("other_share")
    outcome = normalized_within_bounds(STATISTICS.with_columns(other_share=other), BOUNDS, {})
    assert outcome.figure.startswith("is_valid_ma: other_share is 0.2, expected 0: flags and")


def test_a_living_panel_passes(panel):
    outcome = panel_is_alive(panel, PanelGate())
    assert outcome.passed
    assert outcome.numbers["faults"] == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "validation: feature_0 is always 0"),
        (7.0, "validation: feature_0 is always 7"),
        (np.nan, "validation: feature_0 is never known"),
        (np.inf, "infinite values in features"),
    ],
)
def test_a_feature_that_is_dead_on_one_part_is_named(panel, value, words):
    features = np.array(panel.features)
    first, last = panel.split.validation
    features[first:last, :, 0] = value
    outcome = panel_is_alive(dataclasses.replace(panel, features=features), PanelGate())
    assert outcome.stops
    assert words in outcome.figure


def test_a_feature_of_mostly_zeros_is_named(panel):
    features = np.array(panel.features)
    features[:, :25, 1] = 0.0
    outcome = panel_is_alive(dataclasses.replace(panel, features=features), PanelGate())
    assert outcome.stops
    assert "train: feature_1 is exactly 0 in 6" in outcome.figure


def test_a_panel_with_too_few_tradable_stocks_fails(panel):
    tradable = np.array(panel.tradable)
    tradable[:, 29:] = False
    outcome = panel_is_alive(dataclasses.replace(panel, tradable=tradable), PanelGate())
    assert outcome.stops
    assert "train: median 28 tradable stocks" in outcome.figure


def test_stocks_without_neighbours_fail(panel, graph):
    assert stocks_have_neighbours(graph, panel).passed
    neighbours = np.array(graph.neighbours)
    neighbours[:, :10] = -1
    outcome = stocks_have_neighbours(dataclasses.replace(graph, neighbours=neighbours), panel)
    assert outcome.stops
    assert outcome.numbers["linked_share"] < 0.9
    nobody = np.full_like(neighbours, -1)
    assert stocks_have_neighbours(dataclasses.replace(graph, neighbours=nobody), panel).stops
