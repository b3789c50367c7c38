"""The degeneracy guard in real short runs: a head forced constant, and one that cannot recover."""

import dataclasses
import logging

import polars as pl
import pytest
import torch
from small_trainer import small_trainer

from atft_model.training.gates import Readings, TrainingGates, degeneracy_resets_within_limit
from atft_model.training.health_record import read_health
from atft_model.training.loop import Progress, Trainer

HORIZON = 5
PATIENCE, RECOVERY = 3, 4
# A rate that moves nothing: what training would mend by itself stays broken for the guard.
OVERRIDES = {
    "optimizer": {"learning_rate": 1e-12},
    "training": {"batch_windows": 1, "run_length": 2},
    "guard": {"patience": PATIENCE, "recovery_readings": RECOVERY},
    "monitor": {"every": 1, "gradient_monitor": False},
}


@pytest.fixture
def trainer(stored_panel, tmp_path) -> Trainer:
    few = {"training": {"max_steps_per_epoch": 16}}
    return small_trainer(stored_panel, tmp_path / "run", OVERRIDES, few)


def run_one_epoch(trainer: Trainer) -> pl.DataFrame:
    """Guard events of one epoch, from the health record on disk: step, name, metric, value."""
    trainer.train_epoch(Progress(epoch=1))
    trainer.health.flush()
    health = pl.from_arrow(read_health(trainer.health.folder))
    assert isinstance(health, pl.DataFrame)
    guard = health.filter(pl.col("kind") == "guard")
    beats = guard.filter(pl.col("name") == "heartbeat")
    assert beats["value"].to_list() == [float(step) for step in range(1, 17)]
    return guard.filter(pl.col("name") != "heartbeat")


def make_constant(trainer: Trainer, horizon: int) -> torch.nn.Linear:
    """The head of a horizon gives every stock the same score."""
    linear = trainer.model.head.heads[trainer.data.panel.horizons.index(horizon)].linear
    torch.nn.init.zeros_(linear.weight)
    return linear


def test_a_healthy_run_has_a_heartbeat_and_no_event(trainer):
    assert run_one_epoch(trainer).is_empty()
    assert trainer.guard.resets_this_epoch == 0


def test_a_head_forced_constant_is_reset_and_recovers(trainer, caplog):
    linear = make_constant(trainer, HORIZON)
    others = {
        name: p.detach().clone()
        for name, p in trainer.model.named_parameters()
        if not name.startswith("head.heads.1.")
    }
    with caplog.at_level(logging.INFO, "atft"):
        events = run_one_epoch(trainer)
    # Readings 1 to 3 are below the floor; the one after the reset sees the spread again.
    assert events.select("step", "name", "metric").rows() == [
        (PATIENCE, f"horizon_{HORIZON}", "dropped"),
        (PATIENCE, f"horizon_{HORIZON}", "reset"),
        (PATIENCE + 1, f"horizon_{HORIZON}", "recovered"),
    ]
    dropped, _, recovered = events["value"]
    assert dropped < trainer.config.guard.std_floor < recovered
    assert (linear.weight.detach().abs() > 1e-6).all()
    for name, parameter in trainer.model.named_parameters():
        if name in others:  # the other heads and the backbone were left alone
            torch.testing.assert_close(parameter.detach(), others[name], rtol=0, atol=1e-9)
    messages = "\n".join(caplog.messages)
    assert "[DEGENERACY-GUARD] Prediction std dropped to " in messages
    assert "(floor=1e-06)" in messages
    assert "[DEGENERACY-GUARD] Prediction head reset applied (scale=0.05)" in messages
    assert "[DEGENERACY-GUARD] Prediction std recovered to " in messages


def test_a_reset_clears_the_optimizer_state_of_that_head_alone(trainer):
    make_constant(trainer, HORIZON)
    run_one_epoch(trainer)
    taken = {
        name: int(trainer.optimizer.state[parameter]["step"])
        for name, parameter in trainer.model.named_parameters()
        if name.startswith("head.heads.")
    }
    for name, steps in taken.items():
        assert steps == (16 - PATIENCE if name.startswith("head.heads.1.") else 16), name


def test_a_reset_that_cannot_help_is_recorded_as_failed(trainer, caplog):
    """The collapse lies before the heads: their noise multiplies a constant."""
    torch.nn.init.zeros_(trainer.model.head.shared.gated_skip.norm.weight)
    with caplog.at_level(logging.INFO, "atft"):
        events = run_one_epoch(trainer)
    for horizon in trainer.data.panel.horizons:
        mine = events.filter(pl.col("name") == f"horizon_{horizon}").select("step", "metric").rows()
        assert mine[:4] == [
            (PATIENCE, "dropped"),
            (PATIENCE, "reset"),
            (PATIENCE + RECOVERY, "reset_failed"),
            (PATIENCE + RECOVERY + 1, "dropped"),
        ], horizon
    assert "recovered" not in events["metric"].to_list()
    assert "[DEGENERACY-GUARD] Reset failed to restore variance" in caplog.messages


def test_the_check_reads_the_events_of_a_real_run(trainer):
    """One reset that helped passes; a failed one stops what depends on the model."""
    make_constant(trainer, HORIZON)
    run_one_epoch(trainer)
    record = Readings(read_health(trainer.health.folder))
    good = degeneracy_resets_within_limit(record, TrainingGates())
    assert good.passed
    assert good.numbers["resets_worst_epoch"] == 1
    torch.nn.init.zeros_(trainer.model.head.shared.gated_skip.norm.weight)
    trainer.train_epoch(Progress(epoch=2, step=16))
    trainer.health.flush()
    record = Readings(read_health(trainer.health.folder))
    bad = degeneracy_resets_within_limit(record, TrainingGates())
    assert bad.stops
    assert bad.numbers["failed_resets"] >= 4


def test_resets_are_capped_per_epoch(trainer):
    trainer.guard.config = dataclasses.replace(trainer.guard.config, max_resets_per_epoch=1)
    for horizon in trainer.data.panel.horizons:
        make_constant(trainer, horizon)
    events = run_one_epoch(trainer).filter(pl.col("step") == PATIENCE)
    assert events["metric"].to_list().count("reset") == 1
    assert events["metric"].to_list().count("cap_reached") == 3
    trainer.guard.start_epoch()
    assert trainer.guard.resets_this_epoch == 0
