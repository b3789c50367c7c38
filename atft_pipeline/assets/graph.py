"""The stock graph, from past returns only."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from atft_model.data.artifacts import prune
from atft_model.data.graph import GraphConfig, build_graph, write_graph
from atft_model.data.group_links import LINK_ATTRIBUTES, GroupLinks
from atft_model.data.panel import Panel, read_panel
from atft_model.structure.groups import links_of
from atft_model.structure.stored import StoredStructure, read_structure
from atft_pipeline.checks.lookahead import SEES_NO_FUTURE, graph_has_no_lookahead
from atft_pipeline.checks.outcome import spec, verdicts
from atft_pipeline.checks.structure import graph_is_as_configured
from atft_pipeline.checks.tables import stocks_have_neighbours
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.resources import Lookahead
from atft_pipeline.storage import Storage, row_metadata

OTHERS = ("correlation", "learned")
"""Graphs that are built beside the one in use, where they can be: the model is scored with them as
a control."""

EDGE = {"date": pl.Date, "code": pl.String, "neighbour": pl.String, "correlation": pl.Float32,
        **dict.fromkeys(LINK_ATTRIBUTES, pl.Float32)}  # fmt: skip
"""What one edge of one refresh date holds, for the UI: its arrays are no table."""


@dg.asset(
    group_name="graph", kinds={"numpy"}, output_required=False, io_manager_key="versions",
    config_schema=fields_of(GraphConfig),
    check_specs=[
        spec("stock_graph", "stocks_have_neighbours", "Most tradable stocks have neighbours."),
        spec("stock_graph", "no_lookahead", SEES_NO_FUTURE),
        spec("stock_graph", "graph_is_as_configured",
             "No other graph stands in for the one that was asked for.", kind="skill"),
    ],
    description="Nearest neighbours by trailing correlation, refreshed every few trading days; "
    "among all stocks or among those of groups that drive the stock's group.",
)  # fmt: skip
@plain_failures
def stock_graph(
    context: dg.AssetExecutionContext, storage: Storage, lookahead: Lookahead, panel: Path,
    learned_structure: Path,
) -> Iterator[Any]:  # fmt: skip
    """Builds and publishes the graph of the current panel, and its rivals beside it."""
    opened = read_panel(panel)
    wanted = build(GraphConfig, context.op_execution_context.op_config)
    structure = read_structure(learned_structure)
    refused = structure.refusal(opened.hash)
    links = usable_links(structure) if refused is None else None
    configured = graph_is_as_configured(wanted.graph, refused)
    config = wanted if configured.passed else replace(wanted, graph="correlation")
    if not configured.passed:
        context.log.warning(configured.figure)
    graph = build_graph(opened, config, links=links)
    outcomes = [
        stocks_have_neighbours(graph, opened, links),
        graph_has_no_lookahead(
            graph, opened, config, lookahead.config(context.run.run_id),
            partial(build_graph, links=links),
        ),
        configured,
    ]  # fmt: skip
    version = ""
    if not any(outcome.stops for outcome in outcomes):
        version = write_graph(graph, storage.graph)
        prune(storage.graph, keep=set())
        _write_others(storage, opened, config, links_to_score(structure, opened.hash))
    metadata = {
        "graph": config.graph,
        "learned_structure": refused or "usable",
        "refreshes": len(graph.refresh),
        "neighbours": config.neighbours,
        "panel_hash": opened.hash,
        **row_metadata(int((graph.neighbours >= 0).sum()), EDGE),
    }
    yield from verdicts("stock_graph", outcomes, version, metadata)


def usable_links(structure: StoredStructure) -> GroupLinks | None:
    """The links of a learned structure; None where nothing was learned."""
    if structure.record is None:
        return None
    return links_of(structure.record, dict(structure.group_of))


def links_to_score(structure: StoredStructure, panel_hash: str) -> GroupLinks | None:
    """The links to score the model with as a control: a failed check does not hide what they do.

    Returns:
        None where no two groups are linked, or where the structure is of another panel.
    """
    links = usable_links(structure)
    if links is None or structure.panel_hash != panel_hash or not links.between.any():
        return None
    return links


def _write_others(
    storage: Storage, panel: Panel, config: GraphConfig, links: GroupLinks | None
) -> None:
    """The graphs that are not in use; one that cannot be built any more is removed."""
    for kind in OTHERS:
        folder = storage.other_graph(kind)
        if kind == config.graph or (kind == "learned" and links is None):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        other = replace(config, graph=kind)
        write_graph(build_graph(panel, other, links=links), folder)
        prune(folder, keep=set())


ASSETS = [stock_graph]
