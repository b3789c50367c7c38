"""The learned structure: which group of stocks drives which, from training dates alone."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.data.panel import Panel, read_panel
from atft_model.errors import InputError
from atft_model.structure.config import (
    BootstrapConfig,
    GradientConfig,
    SearchConfig,
    StructureConfig,
)
from atft_model.structure.groups import GroupConfig, Groups, group_series, group_stocks
from atft_model.structure.record import StructureRecord
from atft_model.structure.stored import StoredStructure, publish_structure, read_structure
from atft_pipeline.checks.outcome import markdown_table
from atft_pipeline.checks.structure import ASSET, not_learned, structure_check_specs
from atft_pipeline.checks.structure import structure_outcomes as outcomes_of
from atft_pipeline.config_schema import build, build_part, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.report.html import StructureSection
from atft_pipeline.report.plots import figure_to_png_data_uri
from atft_pipeline.report.structure import EDGES, edges_table, plot_learning, plot_structure
from atft_pipeline.storage import Storage, row_metadata

PARTS = {"gradient": GradientConfig, "search": SearchConfig, "bootstrap": BootstrapConfig}

CONFIG = {
    **fields_of(GroupConfig),
    "lags": dg.Field(
        int, is_required=False, default_value=StructureConfig.lags,
        description="Days back that a group may act from.",
    ),
    "common_factor": dg.Field(
        dg.Enum("CommonFactor", [dg.EnumValue("take_out"), dg.EnumValue("flag")]),
        is_required=False, default_value="take_out",
        description="The market that all groups share: estimated with the graph and taken out "
        "where there is one, or left in with a warning.",
    ),
    "seed": dg.Field(
        int, is_required=False, default_value=StructureConfig.seed,
        description="Seed of starts, batches, resamples and shuffles.",
    ),
    **{name: dg.Field(dg.Shape(fields_of(cls)), is_required=False, description=cls.__doc__)
       for name, cls in PARTS.items()},
}  # fmt: skip


@dg.asset(
    group_name="graph", kinds={"pytorch", "parquet"}, io_manager_key="versions",
    config_schema=CONFIG, check_specs=structure_check_specs(), output_required=False,
    description="A directed acyclic graph among sectors (or clusters) and their pasts, learned "
    "from returns of the default split's training dates. A failed check stops nothing: stock_graph "
    "then uses correlations. Beside it: structure_edges and structure_groups.",
)  # fmt: skip
@plain_failures
def learned_structure(
    context: dg.AssetExecutionContext, storage: Storage, panel: Path, trading_universe: pl.DataFrame
) -> Iterator[Any]:
    """Learns, judges, and publishes the record; where nothing can be learned, the reason."""
    from atft_model.structure.checks import check_structure
    from atft_model.structure.learn import learn_structure

    opened = read_panel(panel)
    options = context.op_execution_context.op_config
    config = StructureConfig(
        lags=options["lags"], seed=options["seed"], common_factor=options["common_factor"],
        **{name: build(cls, options.get(name, {})) for name, cls in PARTS.items()},
    )  # fmt: skip
    try:
        groups, series, market = node_series(
            opened, trading_universe, build_part(GroupConfig, options)
        )
        context.log.info(f"{len(series.names)} series, {len(series.values)} training days: "
                         f"{', '.join(series.names)}")  # fmt: skip
        record = learn_structure(series, config)
    except InputError as error:
        # A market with too few stocks or days for a structure can still be trained on.
        context.log.warning(f"no structure was learned: {error}")
        stored = StoredStructure(None, str(error), {}, opened.hash)
        version = publish_structure(stored, storage.structure)
        for outcome in not_learned(str(error)):
            yield outcome.result(ASSET)
        nothing = {"learned": False, "reason": str(error), **row_metadata(0, EDGES)}
        yield dg.Output(version, metadata=nothing)
        return
    group_of = {code: groups.names[group] for code, group in
                zip(opened.codes, groups.of_stock.tolist(), strict=True) if group >= 0}  # fmt: skip
    stored = StoredStructure(record, "", group_of, opened.hash)
    version = publish_structure(stored, storage.structure)
    storage.write_table("structure_edges", edges_table(record))
    storage.write_table("structure_groups", groups_table(group_of))
    for outcome in outcomes_of(check_structure(record)):
        yield outcome.result(ASSET)
    yield dg.Output(version, metadata=_metadata(record, groups, opened, market))


def node_series(panel: Panel, universe: pl.DataFrame, config: GroupConfig):
    """Groups of stocks, their series on the default split's training dates, and the average of
    all stocks on the same days.

    Args:
        universe: Its mean turnover on training dates says which members are the biggest.
    """
    first, last = panel.part_dates("train")
    inside = universe.filter(pl.col("date").is_between(first, last))
    # The newest row of each stock: a mean of floats would depend on what else is in the table.
    turnover = dict(inside.sort("date").group_by("code").agg(
        pl.col("turnover_20d").last()).iter_rows())  # fmt: skip
    size = np.array([turnover.get(code) or 0.0 for code in panel.codes])
    groups = group_stocks(panel, panel.split.train, config, size)
    return groups, *group_series(panel, groups, panel.split.train, config)


def groups_table(group_of: Mapping[str, str]) -> pl.DataFrame:
    """(code, group), sorted by code."""
    rows = sorted(group_of.items())
    return pl.DataFrame(rows, schema={"code": pl.String, "group": pl.String}, orient="row")


def report_section(
    storage: Storage, graph: str, graphs: Sequence[tuple[str, float, float, float, float]]
) -> StructureSection | None:
    """The learned structure for the report; None where nothing was learned.

    Args:
        graph: The kind of graph that the model was trained on.
        graphs: The model with each graph, as ``StructureSection`` shows it.
    """
    if not (storage.structure / "current.json").exists():
        return None
    stored = read_structure(storage.structure)
    if stored.record is None:
        return None
    refused = stored.refusal(stored.panel_hash)
    if refused:
        use = (
            f"Not used, the correlation graph stands instead: {refused}. Links that were found are "
            "scored below as a control."
        )
    elif graph in ("learned", "both"):
        use = f"Every check holds; the model was trained on the graph {graph!r}, made of it."
    else:
        use = (
            f"Every check holds; the model was trained on the graph {graph!r} all the same, as "
            "configured. The scorer model learned graph above is the model with these links "
            "instead, which it was not trained on."
        )
    members = Counter(stored.group_of.values())
    return StructureSection(
        edges_table(stored.record), stored.record.order, pl.DataFrame(list(stored.record.health)),
        {name: members[name] for name in stored.record.names}, use, graphs,
    )  # fmt: skip


def _metadata(
    record: StructureRecord, groups: Groups, panel: Panel, market: np.ndarray
) -> dict[str, Any]:
    members = np.bincount(groups.of_stock[groups.of_stock >= 0], minlength=len(groups.names))
    rows = [(name, int(members[i]), ", ".join(groups.biggest[i]))
            for i, name in enumerate(groups.names)]  # fmt: skip
    edges = edges_table(record)
    first, last = panel.part_dates("train")
    return {
        "learned": True,
        "series": len(record.names),
        "days": record.rows,
        "train_dates": f"{first} to {last}",
        "links": len([e for e in record.kept_edges if e.source != e.target]),
        "panel_hash": panel.hash,
        **row_metadata(edges.height, EDGES),
        "seconds": float(sum(record.seconds.values())),
        "common_factor": _in_words(record, market),
        "groups": dg.MetadataValue.md(markdown_table(["group", "stocks", "biggest"], rows)),
        "left_out": dg.MetadataValue.md(
            markdown_table(["group", "reason"], groups.left_out.items())
        ),
        "edges": dg.MetadataValue.md(markdown_table(edges.columns, edges.iter_rows())),
        "graph": _picture(plot_structure(edges, record.order)),
        "learning": _picture(plot_learning(pl.DataFrame(list(record.health)))),
    }


def _in_words(record: StructureRecord, market: np.ndarray) -> str:
    """What was taken out, and how close it is to the average of all stocks."""
    factor = record.common_factor
    if factor is None:
        return "none taken out"
    values = np.array(factor["values"])
    alike = abs(np.corrcoef(values, market[-len(values) :])[0, 1])
    return (
        f"taken out: saves {factor['bic_gain']:.0f} of extended BIC, drives "
        f"{factor['driven_share']:.0%} of the groups, correlation {alike:.3f} with the average of "
        f"all stocks, {factor['unknown_share']:.0%} of it unknown"
    )


def _picture(figure: Any) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![figure]({figure_to_png_data_uri(figure)})")


ASSETS = [learned_structure]
