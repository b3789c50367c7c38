"""Importance of a trained run: what was planted ranks first, and bad input is one clear line."""

import json

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atft_model.__main__ import main
from atft_model.config import resolve
from atft_model.errors import InputError
from atft_model.importance import ImportanceConfig
from atft_model.importance_command import group_columns, importance_tables, read_groups
from atft_model.run import train
from atft_model.training.reporter import Reporter
from atft_pipeline.__main__ import exit_code, materialize
from atft_pipeline.assets.importance import importance_of
from atft_pipeline.importance_groups import importance_groups
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage

SMALL = {
    "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
    "training": {"max_epochs": 2, "batch_windows": 300, "device": "cpu"},
}
GROUPS = {
    "planted": ["feature_0"], "noise": ["feature_1", "feature_2"],
    "more noise": ["feature_3", "feature_4"], "market": ["feature_5", "not on this panel"],
    "absent": ["nor this"],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(stored_panel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "run-1"
    return folder, train(resolve("quick", [("test", SMALL)]), *stored_panel, folder, Reporter())


def rows(table: pa.Table, kind: str) -> dict[str, float]:
    return {row["name"]: row["importance"] for row in table.to_pylist() if row["kind"] == kind}


def test_what_was_planted_ranks_first_in_a_trained_model(run, stored_panel):
    config = ImportanceConfig(windows=2000, run_length=10, repeats=2)
    tables = importance_tables(run[0], *stored_panel, GROUPS, "cpu", config)
    features = tables["feature_importance"]
    assert set(features["checkpoint_hash"].to_pylist()) == {run[1]["checkpoint_hash"]}
    assert set(features["kind"].to_pylist()) == {
        "group", "group_score_change", "feature_selection", "day"
    }  # fmt: skip
    for kind in ("group", "group_score_change"):
        found = rows(features, kind)
        assert list(found) == ["planted", "noise", "more noise", "market", "neighbours"]
        assert max(found, key=lambda name: found[name]) == "planted"
    planted = next(r for r in features.to_pylist() if r["kind"] == "group")
    assert planted["importance"] > 2 * planted["standard_error"]
    # A market series is the same for every stock: there is nothing to swap.
    assert rows(features, "group_score_change")["market"] < 0.01
    assert sum(rows(features, "feature_selection").values()) == pytest.approx(1.0, abs=1e-5)
    assert list(rows(features, "day")) == ["-4", "-3", "-2", "-1", "0"]
    assert sum(rows(features, "day").values()) == pytest.approx(1.0, abs=1e-5)
    neighbours = tables["neighbour_importance"].to_pylist()
    assert {row["kind"] for row in neighbours} == {"pair", "received"}
    assert all((row["neighbour"] != "") == (row["kind"] == "pair") for row in neighbours)


def test_the_command_writes_both_tables(run, stored_panel, tmp_path):
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps(GROUPS))
    code = main(
        ["importance", "--run", str(run[0]), "--panel", str(stored_panel[0]),
         "--graph", str(stored_panel[1]), "--out", str(tmp_path), "--groups", str(groups)]
    )  # fmt: skip
    assert code == 0
    for name in ("feature_importance", "neighbour_importance"):
        assert pq.read_table(tmp_path / f"{name}.parquet").num_rows > 0


def test_bad_groups_are_one_clear_line(run, stored_panel, tmp_path):
    path = tmp_path / "groups.json"
    with pytest.raises(InputError, match="groups file not found"):
        read_groups(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not a readable JSON file"):
        read_groups(path)
    path.write_text('["returns_1d"]')
    with pytest.raises(InputError, match=r"expected .*group"):
        read_groups(path)
    for groups, message in (
        ({"a": ["feature_0"], "b": ["feature_0"]}, "feature_0 in two groups"),
        ({"a": ["nothing"]}, "no group has a feature of the panel"),
    ):
        with pytest.raises(InputError, match=message):
            importance_tables(run[0], *stored_panel, groups)


def test_without_groups_every_feature_stands_for_itself(stored_panel):
    from atft_model.data.panel import read_panel

    columns = group_columns(read_panel(stored_panel[0]), None)
    assert columns == {f"feature_{number}": [number] for number in range(6)}


def test_the_pipeline_stores_the_importance_of_the_model_in_use(whole):
    root = whole[0] / "synthetic"
    run_id = json.loads((root / "models" / "current.json").read_text())["hash"]
    weights = json.loads((root / "models" / run_id / "run.json").read_text())["checkpoint_hash"]
    for name in ("feature_importance", "neighbour_importance"):
        table = pl.read_parquet(root / f"{name}.parquet")
        assert table["run_id"].unique().to_list() == [run_id]
        assert table["checkpoint_hash"].unique().to_list() == [weights]
    features = pl.read_parquet(root / "feature_importance.parquet")
    groups = set(features.filter(pl.col("kind") == "group")["name"])
    assert groups == {*importance_groups(), "neighbours"}
    page = (root / "reports" / f"{run_id}.html").read_text()
    assert "Features by selection weight" in page
    assert "Neighbours by attention" in page
    assert list((root / "scratch").iterdir()) == []


def test_the_importance_of_other_weights_is_not_shown(whole):
    storage = Storage(market=Market(source="synthetic"), data_dir=str(whole[0]))
    run_id = json.loads((storage.models / "current.json").read_text())["hash"]
    record = json.loads((storage.models / run_id / "run.json").read_text())
    assert importance_of(storage, run_id, record["checkpoint_hash"]).height > 100
    assert importance_of(storage, run_id, "other weights").is_empty()
    assert importance_of(storage, "another run", record["checkpoint_hash"]).is_empty()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_the_built_in_market_the_planted_groups_rank_first(tmp_path):
    """With the planted signal four times its size, so that half the epochs find all of it."""
    config = {"resources": {
        "market": {"config": {"signal": 4.0}},
        "storage": {"config": {"data_dir": str(tmp_path)}},
    }}  # fmt: skip
    with dg.DagsterInstance.ephemeral() as instance:
        assert exit_code(materialize("*stock_graph", config, instance)) == 0
    data = tmp_path / "synthetic"
    recipe = {"training": {"max_epochs": 4, "device": "cpu"}}
    train(
        resolve("quick", [("test", recipe)]), data / "panel", data / "stock_graph",
        tmp_path / "run", Reporter(),
    )  # fmt: skip
    tables = importance_tables(
        tmp_path / "run", data / "panel", data / "stock_graph", importance_groups(), "cpu"
    )
    # What is planted is made of returns less their sector's mean: the sector is part of it.
    planted = {"returns", "sector", "volume", "statements", "neighbours"}
    found = rows(tables["feature_importance"], "group_score_change")
    ranked = sorted(found, key=lambda name: -found[name])
    assert set(ranked[:4]) <= planted, found
    assert ranked[0] == "returns"
