"""``clean-runs`` shows first, keeps what is needed, and never touches the ledger."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.test_utils import create_run_for_test

from atft_pipeline import upkeep
from atft_pipeline.__main__ import main
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage

DAY = 86_400


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Storage:
    monkeypatch.setenv("ATFT_DATA_DIR", str(tmp_path / "data"))
    storage = Storage(market=Market())
    storage.ledger.parent.mkdir(parents=True)
    storage.ledger.write_text('{"run_id": "first"}\n')
    return storage


def age(path: Path, days: float) -> None:
    for file in [*path.rglob("*"), path]:
        os.utime(file, (time.time() - days * DAY,) * 2)


def trained(storage: Storage, name: str, days: float, finished: bool = True) -> Path:
    folder = storage.models / name
    folder.mkdir(parents=True)
    (folder / "best.pt").write_bytes(b"x" * 1000)
    if finished:
        (folder / "run.json").write_text("{}")
    age(folder, days)
    return folder


def names(storage: Storage, days: float = 30) -> list[str]:
    before = datetime.now(UTC) - timedelta(days=days)
    return [removal.what for removal in upkeep.removable_models(storage, before)]


@pytest.fixture
def full(storage) -> Storage:
    """Ten runs, 100 to 109 days old; the pointers name two, the history a third."""
    for number in range(10):
        trained(storage, f"run-{number}", 100 + number)
    (storage.models / "current.json").write_text(json.dumps({"hash": "run-9"}))
    (storage.models / "accepted.json").write_text(json.dumps({"hash": "run-8"}))
    storage.write_table("accepted_models", pl.DataFrame({"run_id": ["run-7", "run-8"]}))
    return storage


def test_old_runs_go_but_not_those_in_use_once_accepted_or_newest(full):
    assert names(full) == ["trained run run-5", "trained run run-6"]


def test_the_model_in_use_and_the_newest_sound_one_stay_without_any_history(full):
    full.table_path("accepted_models").unlink()
    assert names(full) == [f"trained run run-{number}" for number in (5, 6, 7)]


def test_runs_written_lately_stay(full):
    assert names(full, days=105.5) == ["trained run run-6"]


def test_a_run_that_may_still_train_stays_and_a_dead_one_goes(storage):
    trained(storage, "training", 0.5, finished=False)
    trained(storage, "dead", 2, finished=False)
    assert names(storage, days=0) == ["unfinished run dead"]
    assert names(storage, days=30) == []


def test_a_link_among_the_models_is_left_alone(storage, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    age(elsewhere, 400)
    storage.models.mkdir()
    (storage.models / "link").symlink_to(elsewhere)
    assert names(storage) == []


def test_a_link_has_no_size_of_its_own(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 7)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_bytes(b"x" * 5)
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "file")
    assert upkeep.size_of(tmp_path) == 12
    assert upkeep.size_of(tmp_path / "none") == upkeep.size_of(None) == 0


def test_rejected_tables_and_scratch_files_go_when_old(storage):
    for folder, days in (("rejected", 40), ("scratch", 40), ("rejected2", 40)):
        (storage.root / folder).mkdir()
        (storage.root / folder / "x.parquet").write_bytes(b"x")
        age(storage.root / folder / "x.parquet", days)
    (storage.root / "rejected" / "new.parquet").write_bytes(b"x")
    (storage.root / "scratch" / "folder").mkdir()
    age(storage.root / "scratch" / "folder", 40)
    before = datetime.now(UTC) - timedelta(days=30)
    found = [removal.what for removal in upkeep.removable_leftovers(storage, before)]
    assert found == ["rejected/x.parquet", "scratch/x.parquet"]


def test_dagsters_records_go_unless_they_hold_an_assets_newest_state(tmp_path):
    @dg.asset
    def table():
        return None

    with dg.DagsterInstance.ephemeral() as instance:
        runs = [dg.materialize([table], instance=instance).run_id for _ in range(3)]
        later = datetime.now(UTC) + timedelta(seconds=1)
        planned = list(upkeep.removable_records(instance, tmp_path, later))
        assert {removal.run_id for removal in planned} == set(runs[:2])
        logs = tmp_path / "storage" / runs[0]
        logs.mkdir(parents=True)
        upkeep.remove(planned, instance)
        assert [run.run_id for run in instance.get_runs()] == runs[2:]
        assert not logs.exists()
        assert instance.get_latest_materialization_event(dg.AssetKey("table"))
        earlier = datetime.now(UTC) - timedelta(days=1)
        assert list(upkeep.removable_records(instance, tmp_path, earlier)) == []


def test_the_record_of_a_run_at_work_stays_however_old(tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
        ended = create_run_for_test(instance, status=dg.DagsterRunStatus.CANCELED).run_id
        later = datetime.now(UTC) + timedelta(seconds=1)
        planned = upkeep.removable_records(instance, tmp_path, later)
        assert [removal.run_id for removal in planned] == [ended]


def test_what_is_gone_already_is_no_error(tmp_path):
    file = tmp_path / "x.parquet"
    with dg.DagsterInstance.ephemeral() as instance:
        upkeep.remove([upkeep.Removal("x", file), upkeep.Removal("y", tmp_path / "y")], instance)


def test_the_command_shows_first_and_deletes_only_when_told(full, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    assert main(["clean-runs"]) == 0
    said = capsys.readouterr().out
    assert "trained run run-5" in said
    assert "nothing deleted" in said
    assert "MB  models" in said
    assert (full.models / "run-5").exists()
    assert main(["clean-runs", "--delete"]) == 0
    assert "deleted" in capsys.readouterr().out
    left = {path.name for path in full.models.iterdir() if path.is_dir()}
    assert left == {f"run-{number}" for number in (0, 1, 2, 3, 4, 7, 8, 9)}
    assert full.ledger.read_text() == '{"run_id": "first"}\n'
    assert full.has_table("accepted_models")
