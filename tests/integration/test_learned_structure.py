"""The assets learned_structure and stock_graph on a stored panel with a planted structure."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import polars as pl
import pytest

from atft_model.data.graph import read_graph
from atft_model.data.panel import Panel, read_panel, write_panel
from atft_model.data.toy_panel import make_panel
from atft_model.structure.simulate import var_with_dag
from atft_model.structure.stored import read_structure
from atft_pipeline.__main__ import exit_code

SECTORS, EACH, DATES = 8, 14, 520
QUICK = {
    "search": {"random_starts": 2},
    "bootstrap": {"resamples": 4, "shuffles": 4},
    "min_members": 3,
}


def planted(sectors: bool, linked: bool = True) -> Panel:
    """Stocks that follow their sector, which follow each other; or the market alone."""
    made = make_panel(dates=DATES, stocks=SECTORS * EACH)
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(SECTORS), EACH)
    leaders = var_with_dag(2, SECTORS, DATES, edges_per_node=0.5).values
    common = leaders / leaders.std(axis=0) if linked else np.zeros(leaders.shape)
    daily = 0.01 * (
        common[:, group]
        + rng.standard_normal((DATES, 1))
        + 0.5 * rng.standard_normal((DATES, SECTORS * EACH))
    )
    return dataclasses.replace(
        made,
        daily_return=np.where(made.observed, daily, np.nan).astype(np.float32),
        sector=(group + 1 if sectors else np.zeros_like(group)).astype(np.int16),
        sectors=("unknown", *"abcdefgh") if sectors else ("unknown",),
    )


def store(panel: Panel, data_dir: Path) -> Path:
    """The panel and the table that the asset reads beside it."""
    root = data_dir / "synthetic"
    write_panel(panel, root / "panel")
    members = pl.DataFrame({"code": list(panel.codes)}).with_row_index("turnover").select(
        "code", date=pl.lit(panel.dates[50]), history_days=pl.lit(50, pl.Int32),
        turnover_20d=pl.col("turnover").cast(pl.Float64), raw_close=pl.lit(1.0),
    )  # fmt: skip
    names = ["date", "code", "history_days", "turnover_20d", "raw_close"]
    members.select(names).write_parquet(root / "trading_universe.parquet")
    return root


def metadata(result, asset: str) -> dict:
    for event in result.filter_events(lambda e: e.is_step_materialization):
        found = event.step_materialization_data.materialization
        if found.asset_key.path[-1] == asset:
            return {name: value.value for name, value in found.metadata.items()}
    raise AssertionError(f"{asset} was not materialized")


def failed(result) -> set[str]:
    return {c.check_name for c in result.get_asset_check_evaluations() if not c.passed}


@pytest.mark.parametrize("sectors", [True, False])
def test_links_of_sectors_or_clusters_become_the_stock_graph(run, tmp_path, sectors):
    root = store(planted(sectors), tmp_path)
    result = run(
        "learned_structure+", tmp_path, stock_graph={"graph": "learned"},
        learned_structure=QUICK | {"clusters": SECTORS},
    )  # fmt: skip
    assert exit_code(result) == 0
    assert failed(result) <= {"no_hidden_factor"}
    facts = metadata(result, "learned_structure")
    assert facts["series"] == SECTORS
    assert "data:image/png" in facts["graph"]
    assert "data:image/png" in facts["learning"]
    stored = read_structure(root / "learned_structure")
    assert stored.record is not None
    assert stored.record.names[0] == ("a" if sectors else "cluster_01")
    assert metadata(result, "stock_graph")["graph"] == "learned"
    panel = read_panel(root / "panel")
    graph = read_graph(root / "stock_graph", panel)
    kept = {(e.source, e.target) for e in stored.record.kept_edges}
    assert kept
    for stock in range(0, len(panel.codes), 7):
        for other in graph.neighbours[-1, stock]:
            if other >= 0:
                pair = panel.codes[other], panel.codes[stock]
                assert tuple(stored.group_of[code] for code in pair) in kept
    assert read_graph(root / "other_graphs" / "correlation", panel).kind == "correlation"
    assert not (root / "other_graphs" / "learned").exists()
    edges = pl.read_parquet(root / "structure_edges.parquet")
    assert edges.height == len(stored.record.edges)
    assert pl.read_parquet(root / "structure_groups.parquet").height == len(stored.group_of)


def test_where_nothing_is_linked_the_correlation_graph_stands_in_and_says_so(run, tmp_path, capfd):
    root = store(planted(sectors=True, linked=False), tmp_path)
    result = run("learned_structure+", tmp_path, stock_graph={"graph": "both"},
                 learned_structure=QUICK)  # fmt: skip
    assert exit_code(result) == 0
    assert {"not_at_chance", "graph_is_as_configured"} <= failed(result)
    facts = metadata(result, "stock_graph")
    assert facts["graph"] == "correlation"
    assert "not_at_chance" in facts["learned_structure"]
    assert "the correlation graph is used" in capfd.readouterr().err
    assert read_graph(root / "stock_graph", read_panel(root / "panel")).kind == "correlation"
    assert not (root / "other_graphs" / "learned").exists()


def test_a_market_too_small_for_a_structure_still_gets_its_graph(run, tmp_path):
    store(planted(sectors=True), tmp_path)
    result = run("learned_structure+", tmp_path, learned_structure=QUICK | {"min_members": 60})
    assert exit_code(result) == 0
    assert len(failed(result)) == 9  # all of learned_structure; the graph is as configured
    assert metadata(result, "learned_structure")["learned"] is False
    assert metadata(result, "stock_graph")["graph"] == "correlation"


def test_a_skill_check_does_not_excuse_anothers_integrity_check_of_its_name():
    """clip_ratio_falls is one of learned_structure's, and one of trained_model's that blocks."""
    from atft_pipeline.definitions import defs

    kinds = {
        check.key.asset_key.path[-1]: (check.metadata or {})["kind"]
        for asset in defs.resolve_asset_graph().assets_defs
        for check in asset.check_specs
        if check.name == "clip_ratio_falls"
    }
    assert kinds == {
        "learned_structure": "skill", "trained_model": "integrity", "rolling_model": "integrity",
    }  # fmt: skip
    for asset, code in (("trained_model", 1), ("learned_structure", 0)):
        check = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset), check_name="clip_ratio_falls", passed=False, metadata={}
        )
        result = SimpleNamespace(get_asset_check_evaluations=lambda c=check: [c], success=True)
        assert exit_code(result) == code  # type: ignore[arg-type]
