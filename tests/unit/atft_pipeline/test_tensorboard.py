"""The health record as TensorBoard shows it; only where TensorBoard is installed."""

import pytest

from atft_model.training.health_record import HealthRecord
from atft_pipeline.tensorboard import main, write_events


@pytest.fixture
def record(tmp_path):
    health = HealthRecord(tmp_path / "synthetic" / "models" / "run-1" / "health", "run-1")
    for step in (1, 2, 3):
        health.add(1, step, "gradient", "gat", {"l2": step / 2})
    health.add(1, 0, "input", "returns_1d", {"lowest": -1.0})
    health.flush()
    return tmp_path


def test_every_reading_is_a_point_of_its_curve(record):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    models = record / "synthetic" / "models"
    for _ in range(2):  # written anew, not added to
        assert write_events(models, record / "events") == ["run-1"]
    events = EventAccumulator(str(record / "events" / "run-1")).Reload()
    assert events.Tags()["scalars"] == ["gradient/gat/l2"]
    points = [(event.step, event.value) for event in events.Scalars("gradient/gat/l2")]
    assert points == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_the_command_says_where_it_wrote(record, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("ATFT_DATA_DIR", str(record))
    assert main([]) == 0
    assert f"1 runs written to {record / 'synthetic' / 'tensorboard'}" in capsys.readouterr().out
