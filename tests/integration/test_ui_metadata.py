"""What the UI shows of every asset's data, and of a model while it trains.

What it shows of the asset itself is in test_checks_page.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from shown import materialized, pictures, without_size

from atft_model.training.health_record import read_health
from atft_pipeline.definitions import defs

ASSETS = {spec.key.path[-1] for spec in defs.resolve_all_asset_specs()}
OF_PERIODS = {"rolling_model", "walk_forward_evaluation"}
"""Built by ``make walk-forward``: what they show is tested in test_walk_forward.py."""
PICTURED = {"prices", "normalized_features", "learned_structure", "trained_model", "evaluation"}
"""Where looking beats reading; ``realized_scores`` joins them with the first known return."""


def without_figures(
    whole: Mapping[str, dg.AssetMaterialization], checks: Sequence[dg.AssetCheckEvaluation]
) -> set[str]:
    """Assets with no number but their row count for the UI to plot, neither theirs nor a check's.

    It plots every numeric metadata value over time.
    """
    own = {name: numbers(event.metadata) - {"dagster/row_count"} for name, event in whole.items()}
    judged = {check.asset_key.path[-1] for check in checks if numbers(check.metadata)}
    return {name for name, found in own.items() if not found and name not in judged}


def numbers(metadata: Mapping[str, dg.MetadataValue]) -> set[str]:
    """The names of its numbers."""
    return {name for name, value in metadata.items()
            if isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))}  # fmt: skip


@pytest.fixture(scope="module")
def events(whole) -> dict[str, dg.AssetMaterialization]:
    return materialized(whole[1])


def test_every_asset_shows_its_rows_and_columns(events):
    assert set(events) == ASSETS - OF_PERIODS
    assert without_size(events) == set()
    bare = dg.AssetMaterialization("panel", metadata={"dagster/row_count": 3})
    assert without_size({**events, "panel": bare}) == {"panel"}


def test_every_asset_has_a_figure_that_the_ui_plots_over_time(events, whole):
    checks = whole[1].get_asset_check_evaluations()
    assert without_figures(events, checks) == set()
    bare = dg.AssetMaterialization("panel", metadata={"dagster/row_count": 3, "source": "x"})
    others = [check for check in checks if check.asset_key.path[-1] != "panel"]
    assert without_figures({**events, "panel": bare}, others) == {"panel"}


def test_pictures_are_shown_where_looking_beats_reading(events):
    pictured = {name for name, event in events.items() if pictures(event)}
    assert pictured == PICTURED


def test_the_rows_and_columns_shown_are_those_stored(events, whole):
    root = Path(whole[0]) / "synthetic"
    tables = [name for name in events if (root / f"{name}.parquet").exists()]
    assert len(tables) > 12
    for name in tables:
        frame = pl.read_parquet(root / f"{name}.parquet")
        metadata = events[name].metadata
        shown = metadata["dagster/column_schema"].value
        assert metadata["dagster/row_count"].value == frame.height, name
        assert [(c.name, c.type) for c in shown.columns] == [
            (column, str(dtype)) for column, dtype in frame.schema.items()
        ], name


def test_the_panel_and_the_graph_count_what_they_hold(events, whole):
    from atft_model.data.graph import read_graph
    from atft_model.data.panel import read_panel

    root = Path(whole[0]) / "synthetic"
    panel = read_panel(root / "panel")
    prices = pl.read_parquet(root / "prices.parquet", columns=["date"])
    assert events["panel"].metadata["dagster/row_count"].value == prices.height
    graph = read_graph(root / "stock_graph", panel)
    edges = events["stock_graph"].metadata["dagster/row_count"].value
    assert edges == int((graph.neighbours >= 0).sum())


def test_each_epoch_has_its_figures(whole):
    """Loss, rank IC, gradient norms and speed; that they come while it trains is seen in
    test_command_lines.py."""
    seen = [{name: value.value for name, value in shown.metadata.items()}
            for event in whole[1].get_asset_observation_events()
            if (shown := event.asset_observation_data.asset_observation)
            and shown.asset_key.path[-1] == "trained_model"]  # fmt: skip
    (folder,) = (Path(whole[0]) / "synthetic" / "models").glob("*/health")
    history = json.loads((folder.parent / "run.json").read_text())["history"]
    health = pl.from_arrow(read_health(folder))
    assert isinstance(health, pl.DataFrame)
    assert [epoch["epoch"] for epoch in seen] == [epoch["epoch"] for epoch in history]
    for found, recorded in zip(seen, history, strict=True):
        for name in ("train_loss", "val_loss", "val_rank_ic", "windows_per_second"):
            assert found[name] == recorded[name]
        norms = health.filter(kind="gradient", metric="l2", epoch=recorded["epoch"])
        for (group,), readings in norms.group_by("name"):
            mean = pytest.approx(readings["value"].mean(), rel=1e-6)
            assert found[f"grad_norm/{group}"] == mean
        assert sum(name.startswith("grad_norm/") for name in found) == 8
