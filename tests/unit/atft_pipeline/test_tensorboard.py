"""The health record as TensorBoard shows it; only where TensorBoard is installed."""

from pathlib import Path

import pytest

from atft_model.training.health_record import HealthRecord
from atft_pipeline.tensorboard import Follower, main

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture
def health(tmp_path) -> HealthRecord:
    """Of a run that has trained for three steps."""
    health = HealthRecord(tmp_path / "synthetic" / "models" / "run-1" / "health", "run-1")
    for step in (1, 2, 3):
        health.add(1, step, "gradient", "gat", {"l2": step / 2})
    health.add(1, 0, "input", "returns_1d", {"lowest": -1.0})
    health.flush()
    return health


@pytest.fixture
def follower(health, tmp_path):
    follower = Follower(tmp_path / "synthetic" / "models", tmp_path / "events")
    yield follower
    follower.close()


def curve(events: Path) -> list[tuple[int, float]]:
    found = EventAccumulator(str(events)).Reload()
    assert found.Tags()["scalars"] == ["gradient/gat/l2"]
    return [(event.step, event.value) for event in found.Scalars("gradient/gat/l2")]


def test_every_reading_is_a_point_of_its_curve(follower, tmp_path):
    for _ in range(2):
        assert follower.update() == ["run-1"]
        assert curve(tmp_path / "events" / "run-1") == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_a_run_in_training_grows_and_a_new_one_appears(follower, health, tmp_path):
    follower.update()
    health.add(1, 4, "gradient", "gat", {"l2": 9.0})
    health.flush()
    second = HealthRecord(tmp_path / "synthetic" / "models" / "run-2" / "health", "run-2")
    assert follower.update() == ["run-1"]  # the second has no reading yet
    assert curve(tmp_path / "events" / "run-1")[3:] == [(4, 9.0)]
    second.add(1, 1, "gradient", "gat", {"l2": 7.0})
    second.flush()
    assert follower.update() == ["run-1", "run-2"]
    assert curve(tmp_path / "events" / "run-2") == [(1, 7.0)]


def test_what_a_resumed_run_took_back_is_no_longer_shown(follower, health, tmp_path):
    health.add(1, 4, "gradient", "gat", {"l2": 9.0})
    health.flush()
    follower.update()
    health.rewind(1)
    health.add(1, 4, "gradient", "gat", {"l2": 2.0})
    health.add(1, 5, "gradient", "gat", {"l2": 2.5})
    health.flush()
    follower.update()
    assert curve(tmp_path / "events" / "run-1")[3:] == [(4, 2.0), (5, 2.5)]


def test_the_command_says_where_it_wrote(health, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATFT_DATA_DIR", str(tmp_path))
    assert main([]) == 0
    assert capsys.readouterr().out == f"1 runs written to {tmp_path / 'synthetic/tensorboard'}\n"
    monkeypatch.setenv("ATFT_DATASET", "other")
    assert main([]) == 0
    assert "no run in " in capsys.readouterr().out
