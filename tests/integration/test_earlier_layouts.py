"""What an earlier version of the code left is refused in one line that names the way out."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from atft_model.config import resolve
from atft_model.data import graph as graph_module
from atft_model.data.graph import read_graph
from atft_model.data.panel import read_panel
from atft_model.errors import InputError
from atft_model.run import open_run, predict, train
from atft_model.training import checkpoint
from atft_model.training.checkpoint import load_weights, save_weights, weights_hash
from atft_model.training.reporter import Reporter
from atft_pipeline.resources import Market
from atft_pipeline.schemas import CONTRACTS
from atft_pipeline.storage import Storage

CONFIG = resolve("quick", [("test", {
    "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
    "training": {"max_epochs": 1, "max_steps_per_epoch": 2, "device": "cpu"},
})])  # fmt: skip
TRAIN = re.escape("train again: dagster asset materialize --select trained_model")


@pytest.fixture(scope="module")
def trained(stored_panel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run-1"
    train(CONFIG, *stored_panel, folder, Reporter())
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run-1"))


def edit(path: Path, **values) -> None:
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


@pytest.mark.parametrize("found", [None, 0, checkpoint.FORMAT + 1])
def test_a_run_of_another_format_is_refused_with_the_command(run, found):
    assert open_run(run).config == CONFIG
    edit(run / "run.json", format=found)
    with pytest.raises(
        InputError, match=f"run format {found}, expected {checkpoint.FORMAT}; {TRAIN}"
    ):
        open_run(run)


def test_weights_of_another_layout_are_no_size_mismatch_of_torch(run, stored_panel):
    """A format that nobody raised: tensors of other shapes and names, the hash as recorded."""
    weights = load_weights(run / "best.pt")
    name = next(iter(weights))
    weights[name] = torch.zeros(*weights[name].shape, 2)
    save_weights(run / "best.pt", weights)
    edit(run / "run.json", checkpoint_hash=weights_hash(weights))
    with pytest.raises(InputError, match=rf"weights of another layout: 1 tensors .*{TRAIN}"):
        predict(run, *stored_panel)


def test_weights_that_are_missing_or_too_many_are_another_layout(run, stored_panel):
    weights = load_weights(run / "best.pt")
    moved = weights.pop(next(iter(weights)))
    save_weights(run / "best.pt", {**weights, "old_name": moved})
    edit(run / "run.json", checkpoint_hash=weights_hash({**weights, "old_name": moved}))
    with pytest.raises(InputError, match="weights of another layout: 2 tensors differ"):
        predict(run, *stored_panel)


def test_a_run_of_another_format_is_not_resumed(run, stored_panel, monkeypatch):
    (run / "run.json").unlink()
    monkeypatch.setattr("atft_model.run.FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(InputError, match=r"cannot resume: format was 2, is now 3; .*train again"):
        train(CONFIG, *stored_panel, run, Reporter(), resume=True)


def test_a_graph_of_another_format_is_refused(stored_panel, monkeypatch):
    panel = read_panel(stored_panel[0])
    assert read_graph(stored_panel[1], panel).panel_hash == panel.hash
    monkeypatch.setattr(graph_module, "FORMAT", graph_module.FORMAT + 1)
    with pytest.raises(
        InputError, match="graph format 1, expected 2; materialize stock_graph again"
    ):
        read_graph(stored_panel[1], panel)


def table_of(name: str) -> pl.DataFrame:
    columns = CONTRACTS[name].columns
    return pl.DataFrame(schema={name: column.dtype.type for name, column in columns.items()})


@pytest.mark.parametrize("table", CONTRACTS)
def test_a_table_of_another_layout_is_refused_with_the_command(tmp_path, table):
    storage = Storage(market=Market(source="synthetic"), data_dir=str(tmp_path))
    storage.write_table(table, table_of(table))
    assert storage.read_table(table, "evaluation").height == 0
    column = next(name for name, rule in CONTRACTS[table].columns.items() if rule.required)
    again = f"build it again: dagster asset materialize --select {table}"
    storage.write_table(table, table_of(table).drop(column))
    with pytest.raises(InputError, match=rf"{table}\.parquet: no column {column}: .*{again}"):
        storage.read_table(table, "evaluation")
    storage.write_table(table, table_of(table).with_columns(pl.col(column).cast(pl.Binary)))
    with pytest.raises(InputError, match=rf"column {column} is Binary, expected \w+: .*{again}"):
        storage.read_table(table, "evaluation")
