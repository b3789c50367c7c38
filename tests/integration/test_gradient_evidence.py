"""A real run leaves the readings that the gradient checks need; with fewer, they fail."""

import polars as pl
import pytest

from atft_model.config import resolve
from atft_model.run import train
from atft_model.training.gates import Readings, TrainingGates, encoder_gradients_nonzero
from atft_model.training.health_record import read_health
from atft_model.training.reporter import Reporter

GATES = TrainingGates()
EPOCHS = 2


@pytest.fixture(scope="module")
def run(stored_panel, tmp_path_factory):
    """(run record, health record) of an epoch of some fifty steps, read every second step."""
    overrides = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": EPOCHS, "batch_windows": 1, "run_length": 2, "device": "cpu",
                     "max_steps_per_epoch": 50},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "run-1"
    record = train(resolve("quick", [("test", overrides)]), *stored_panel, folder, Reporter())
    health = pl.from_arrow(read_health(folder / "health"))
    assert isinstance(health, pl.DataFrame)
    return record, health


def steps_read(health: pl.DataFrame) -> pl.DataFrame:
    return health.filter(pl.col("kind") == "gradient").select("epoch", "step").unique().sort("step")


def test_readings_come_at_the_cadence_of_the_record(run):
    record, health = run
    assert record["steps_per_epoch"] == 50
    assert record["reading_every"] == 50 // 20
    assert steps_read(health)["step"].to_list() == list(range(2, 101, 2))


def test_every_group_activation_and_input_is_read_each_time(run):
    record, health = run
    names = {
        "gradient": 8,
        "activation_gradient": 2,
        "input_gradient": len(record["features"]),
        "skip_gradient": len(record["features"]) - 1,  # the last is the same for every stock
    }
    for kind, count in names.items():
        read = health.filter(pl.col("kind") == kind, pl.col("metric") == "l2")
        assert read["name"].n_unique() == count
        # Input gradients are asked for at every fourth reading: the first, the fifth, ...
        of_inputs = kind in ("input_gradient", "skip_gradient")
        assert read.height == count * (13 if of_inputs else 50), kind
        assert read["value"].is_finite().all()
    assert encoder_gradients_nonzero(Readings(health.to_arrow()), record, GATES).passed


def test_nineteen_readings_an_epoch_are_no_evidence(run):
    record, health = run
    for kept, enough in ((20, True), (19, False), (0, False)):
        steps = steps_read(health).group_by("epoch").head(kept)["step"]
        read = pl.col("kind").is_in(["gradient", "activation_gradient", "input_gradient"])
        few = health.filter(~read | pl.col("step").is_in(steps.implode()))
        outcome = encoder_gradients_nonzero(Readings(few.to_arrow()), record, GATES)
        assert outcome.passed is enough, outcome.figure
        assert outcome.stops is not enough
        if not enough:
            assert f"only {kept} gradient readings in an epoch, 20 needed" in outcome.figure


def test_a_run_without_the_monitor_has_no_evidence(stored_panel, tmp_path):
    overrides = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "monitor": {"gradient_monitor": False},
        "training": {"max_epochs": 1, "max_steps_per_epoch": 3, "device": "cpu"},
    }
    record = train(
        resolve("quick", [("test", overrides)]), *stored_panel, tmp_path / "run", Reporter()
    )
    readings = Readings(read_health(tmp_path / "run" / "health"))
    assert encoder_gradients_nonzero(readings, record, GATES).stops
