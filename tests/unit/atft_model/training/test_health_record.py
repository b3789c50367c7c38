"""The health record reaches the disk while a run goes on, whole part by whole part."""

import pytest

from atft_model.errors import InputError
from atft_model.training import health_record
from atft_model.training.health_record import HealthRecord, read_health


def test_readings_are_flushed_by_the_clock(tmp_path, monkeypatch):
    """A kill loses what was added since: here at most one reading."""
    record = HealthRecord(tmp_path, "run-1")
    record.add(1, 1, "loss", "train", {"total": 0.5})
    with pytest.raises(InputError, match="no health record"):
        read_health(tmp_path)
    monkeypatch.setattr(health_record, "FLUSH_SECONDS", -1.0)
    record.add(1, 2, "loss", "train", {"total": 0.4})
    assert read_health(tmp_path)["value"].to_pylist() == [0.5, 0.4]
    record.add(1, 3, "loss", "train", {"total": 0.3})
    assert read_health(tmp_path)["value"].to_pylist() == [0.5, 0.4, 0.3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip


def test_a_process_that_does_not_lead_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(health_record, "FLUSH_SECONDS", -1.0)
    record = HealthRecord(tmp_path / "health", "run-1", writes=False)
    record.add(1, 1, "loss", "train", {"total": 0.5})
    record.seal("0" * 16)
    assert not (tmp_path / "health").exists()
