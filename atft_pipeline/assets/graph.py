"""The stock graph, from past returns only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from atft_model.data.artifacts import prune
from atft_model.data.graph import GraphConfig, build_graph, write_graph
from atft_model.data.panel import read_panel
from atft_pipeline.checks.lookahead import SEES_NO_FUTURE, graph_has_no_lookahead
from atft_pipeline.checks.outcome import spec, verdicts
from atft_pipeline.checks.tables import stocks_have_neighbours
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.resources import Lookahead
from atft_pipeline.storage import Storage


@dg.asset(
    group_name="graph", kinds={"numpy"}, output_required=False, io_manager_key="versions",
    config_schema=fields_of(GraphConfig),
    check_specs=[
        spec("stock_graph", "stocks_have_neighbours", "Most tradable stocks have neighbours."),
        spec("stock_graph", "no_lookahead", SEES_NO_FUTURE),
    ],
    description="Nearest neighbours by trailing correlation, refreshed every few trading days.",
)  # fmt: skip
@plain_failures
def stock_graph(
    context: dg.AssetExecutionContext, storage: Storage, lookahead: Lookahead, panel: Path
) -> Iterator[Any]:
    """Builds and publishes the graph of the current panel."""
    opened = read_panel(panel)
    config = build(GraphConfig, context.op_execution_context.op_config)
    graph = build_graph(opened, config)
    outcomes = [
        stocks_have_neighbours(graph, opened),
        graph_has_no_lookahead(graph, opened, config, lookahead.config(context.run.run_id)),
    ]
    version = ""
    if not any(outcome.stops for outcome in outcomes):
        version = write_graph(graph, storage.graph)
        prune(storage.graph, keep=set())
    metadata = {"refreshes": len(graph.refresh), "neighbours": config.neighbours,
                "panel_hash": opened.hash}  # fmt: skip
    yield from verdicts("stock_graph", outcomes, version, metadata)


ASSETS = [stock_graph]
