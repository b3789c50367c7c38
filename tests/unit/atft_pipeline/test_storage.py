"""Tables are written whole or not at all, are readable by SQL, and stay in their folder."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest

from atft_model.errors import InputError
from atft_pipeline.resources import Market
from atft_pipeline.storage import (
    Storage,
    TableIOManager,
    VersionIOManager,
    not_materialized,
    table_metadata,
)

FRAME = pl.DataFrame({"code": ["A", "B"], "close": [1.0, 2.0]})


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(market=Market(source="synthetic"), data_dir=str(tmp_path))


def rows(storage: Storage, table: str) -> list[tuple]:
    with duckdb.connect(str(storage.root / "atft.duckdb"), read_only=True) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def test_a_table_is_read_back_and_queryable(storage):
    storage.write_table("baselines", FRAME)
    assert storage.read_table("baselines", "features").equals(FRAME)
    assert rows(storage, "baselines") == FRAME.rows()


@pytest.mark.parametrize("broken", ["write_parquet", "replace"])
def test_a_crash_in_the_middle_leaves_the_old_table(storage, monkeypatch, broken):
    path = storage.write_table("baselines", FRAME)
    before = path.read_bytes()

    def die_half_way(frame: pl.DataFrame, target) -> None:
        target.write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    def die(*_):
        raise KeyboardInterrupt

    if broken == "write_parquet":
        monkeypatch.setattr(pl.DataFrame, "write_parquet", die_half_way)
    else:
        monkeypatch.setattr("atft_pipeline.storage.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        storage.write_table("baselines", FRAME.head(1))
    assert path.read_bytes() == before
    assert rows(storage, "baselines") == FRAME.rows()


WRITE_FOR_EVER = """
import sys
import polars as pl
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage

storage = Storage(market=Market(source="synthetic"), data_dir=sys.argv[1])
print("ready", flush=True)
while True:
    for value in (1, 2):
        storage.write_table("baselines", pl.DataFrame({"value": [value] * 500_000}))
"""


def test_a_killed_writer_leaves_the_old_table_or_the_new_one(storage, tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == "ready\n"
        for _ in range(100):
            if (storage.root / "atft.duckdb").exists():
                break
            time.sleep(0.05)
        time.sleep(0.3)
        writer.kill()
        writer.wait()
    frame = storage.read_table("baselines", "features")
    assert frame.height == 500_000
    assert frame["value"].n_unique() == 1
    assert rows(storage, "baselines")[0] == frame.row(0)
    storage.write_table("baselines", FRAME)
    assert rows(storage, "baselines") == FRAME.rows()


def test_what_a_crash_left_behind_is_no_table(storage):
    storage.write_table("baselines", FRAME)
    (storage.root / ".baselines.parquet.1.tmp").write_bytes(b"half")
    (storage.root / "rejected").mkdir()
    storage.write_rejected("features", FRAME)
    storage.write_table("targets", FRAME)
    with duckdb.connect(str(storage.root / "atft.duckdb"), read_only=True) as connection:
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal")
        assert sorted(name for (name,) in views.fetchall()) == ["baselines", "targets"]


def test_a_reader_of_the_old_catalog_reads_on(storage):
    storage.write_table("baselines", FRAME)
    with duckdb.connect(str(storage.root / "atft.duckdb"), read_only=True) as reader:
        storage.write_table("targets", FRAME.head(1))
        assert reader.execute("SELECT count(*) FROM baselines").fetchone() == (2,)
    assert rows(storage, "targets") == [("A", 1.0)]


def test_a_quote_in_the_data_dir_does_no_harm(tmp_path):
    quoted = Storage(market=Market(source="synthetic"), data_dir=str(tmp_path / "it's"))
    quoted.write_table("baselines", FRAME)
    assert rows(quoted, "baselines") == FRAME.rows()


def test_a_rejected_table_lies_beside_the_good_one(storage):
    storage.write_table("baselines", FRAME)
    path = storage.write_rejected("baselines", FRAME.head(1))
    assert path == storage.root / "rejected" / "baselines.parquet"
    assert pl.read_parquet(path).height == 1
    assert storage.read_table("baselines", "features").height == 2


@pytest.mark.parametrize("name", ["..", "../other", "a/b", "/etc"])
@pytest.mark.parametrize("by", ["field", "environment"])
def test_a_data_set_cannot_leave_the_data_dir(tmp_path, monkeypatch, name, by):
    if by == "environment":
        monkeypatch.setenv("ATFT_DATASET", name)
    storage = Storage(
        market=Market(source="synthetic"),
        data_dir=str(tmp_path / "data"),
        dataset=name if by == "field" else None,
    )
    with pytest.raises(InputError, match="expected a plain folder name"):
        storage.write_table("baselines", FRAME)
    assert not list(tmp_path.rglob("*.parquet"))


def test_data_sets_lie_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("ATFT_DATA_DIR", str(tmp_path))
    market = Market(source="synthetic")
    assert Storage(market=market).root == tmp_path / "synthetic"
    assert Storage(market=market, dataset="tokyo").root == tmp_path / "tokyo"


def test_a_field_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ATFT_DATA_DIR", str(tmp_path / "shell"))
    monkeypatch.setenv("ATFT_DATASET", "shell")
    given = Storage(
        market=Market(source="synthetic"), data_dir=str(tmp_path / "field"), dataset="field"
    )
    assert given.root == tmp_path / "field" / "field"


def test_metadata_are_those_that_dagster_shows():
    metadata = table_metadata(FRAME)
    assert metadata["dagster/row_count"] == 2
    columns = metadata["dagster/column_schema"].columns
    assert [(column.name, column.type) for column in columns] == [
        ("code", "String"), ("close", "Float64"),
    ]  # fmt: skip


def resources_of(storage: Storage, manager: type) -> dict[str, Any]:
    market = storage.market
    return {"market": market, "storage": storage, "io_manager": manager(storage=storage)}


def graph_of_two() -> list[dg.AssetsDefinition]:
    @dg.asset
    def table() -> pl.DataFrame:
        return FRAME

    @dg.asset
    def heights(table: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame({"height": [table.height]})

    return [table, heights]


def test_the_io_manager_stores_loads_and_shows(storage):
    resources = resources_of(storage, TableIOManager)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(graph_of_two(), resources=resources, instance=instance)
    assert storage.read_table("heights", "nobody").rows() == [(2,)]
    (shown,) = result.asset_materializations_for_node("table")
    assert shown.metadata["dagster/row_count"].value == 2
    assert shown.metadata["path"].value == str(storage.table_path("table"))
    assert len(shown.metadata["content_hash"].value) == 16


@pytest.mark.parametrize("kind", [TableIOManager, VersionIOManager])
def test_a_missing_upstream_says_how_to_build_it(storage, kind):
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            graph_of_two(),
            selection="heights",
            resources=resources_of(storage, kind),
            instance=instance,
            raise_on_error=False,
        )
    failure = result.failure_data_for_node("heights").user_failure_data
    assert failure.description == (
        "table has not been materialized; build it with everything upstream: "
        "dagster asset materialize --select '*heights'"
    )
    assert failure.description == str(not_materialized("table", "heights"))
    assert not storage.has_table("heights")
