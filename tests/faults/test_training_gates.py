"""Every gate of a trained model: a real clean run passes, and the fault it is for turns it red."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from atft_model.config import resolve
from atft_model.run import train
from atft_model.training.gates import (
    Evidence,
    Finding,
    Readings,
    TrainingGates,
    judge,
    open_evidence,
)
from atft_model.training.health_record import read_health
from atft_model.training.reporter import Reporter
from atft_pipeline.checks.model import CHECKS, model_outcomes

EPOCHS, STEPS = 2, 30
CONFIG = resolve(
    "quick",
    [("test", {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": EPOCHS, "batch_windows": 1, "run_length": 4, "device": "cpu"},
    })],
)  # fmt: skip
WARNINGS = {
    "gradients_within_range", "skipped_batches_zero", "validation_beats_chance",
}  # fmt: skip

Rows = list[dict]
Change = Callable[[Rows, dict], Rows | None]


@pytest.fixture(scope="module")
def run(stored_panel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "run-1"
    train(CONFIG, *stored_panel, folder, Reporter())
    return folder


def verdicts(folder: Path, change: Change | None = None) -> dict[str, Finding]:
    """Verdicts on the run, its rows and record changed in memory."""
    evidence = open_evidence(folder)
    record = dict(evidence.record)
    rows = read_health(folder / "health").to_pylist()
    if change is not None:
        changed_rows = change(rows, record)
        rows = rows if changed_rows is None else changed_rows
    readings = Readings(pa.Table.from_pylist(rows, schema=read_health(folder / "health").schema))
    changed = Evidence(readings, record, evidence.max_epochs, evidence.faults)
    return {finding.name: finding for finding in judge(changed, TrainingGates())}


def put(value: float, **where: str | int) -> Change:
    """Sets the value of the rows that match."""

    def change(rows: Rows, record: dict) -> Rows:
        chosen = [row for row in rows if all(row[key] == want for key, want in where.items())]
        assert chosen, where
        for row in chosen:
            row["value"] = value
        return rows

    return change


def drop(**where: str | int) -> Change:
    def change(rows: Rows, record: dict) -> Rows:
        kept = [row for row in rows if any(row[key] != want for key, want in where.items())]
        assert len(kept) < len(rows), where
        return kept

    return change


def only_first(steps: int) -> Change:
    return lambda rows, record: [
        row for row in rows if row["kind"] != "gradient" or row["step"] <= steps
    ]


def events(metric: str, count: int) -> Change:
    def change(rows: Rows, record: dict) -> Rows:
        new = {**rows[-1], "epoch": 1, "kind": "guard", "name": "horizon_1", "metric": metric}
        return rows + [new] * count

    return change


def record(**values) -> Change:
    def change(rows: Rows, record: dict) -> None:
        record.update(values)

    return change


def both(*changes: Change) -> Change:
    def change(rows: Rows, record: dict) -> Rows:
        for each in changes:
            rows = each(rows, record) or rows
        return rows

    return change


def added(value: float, **where: str) -> Change:
    """A later row beside the one that matches."""

    def change(rows: Rows, record: dict) -> Rows:
        (row,) = [row for row in rows if all(row[key] == want for key, want in where.items())]
        return [*rows, {**row, "value": value}]

    return change


def constant_input(rows: Rows, record: dict) -> None:
    for row in rows:
        if row["kind"] == "input" and row["name"] == "feature_2":
            row["value"] = 0.0


def rank_ic(value: float) -> Change:
    def change(rows: Rows, record: dict) -> None:
        record["history"] = [{**epoch, "val_rank_ic_5d": value} for epoch in record["history"]]

    return change


def rising_loss(rows: Rows, record: dict) -> None:
    losses = [row for row in rows if row["kind"] == "loss" and row["metric"] == "total"]
    for row, value in zip(losses, sorted(row["value"] for row in losses), strict=True):
        row["value"] = value


def test_a_clean_run_passes_every_gate_in_the_order_of_the_checks(run):
    found = verdicts(run)
    assert list(found) == list(CHECKS)
    assert {name: f.figure for name, f in found.items() if not f.passed} == {}
    outcomes = model_outcomes(run, TrainingGates())
    assert [o.name for o in outcomes] == list(CHECKS)
    assert all(o.numbers for o in outcomes)  # the UI plots a history of each


FAULTS: list[tuple[str, Change, str]] = [
    ("encoder_gradients_nonzero", put(0.0, kind="gradient", name="gat", metric="l2", step=40),
     "no gradient in gat"),
    ("encoder_gradients_nonzero", put(float("nan"), kind="activation_gradient", metric="l2"),
     "projected_features"),
    ("encoder_gradients_nonzero",
     put(float("nan"), kind="gradient", name="gat", metric="l2", step=40), "no gradient in gat"),
    ("encoder_gradients_nonzero", only_first(STEPS + 19), "only 19 gradient readings in an epoch"),
    ("encoder_gradients_nonzero", drop(kind="activation_gradient"), "activations"),
    ("every_parameter_receives_gradient",
     put(0.0, kind="parameter", name="backbone_projection.bias"),
     "backbone_projection.bias (always zero)"),
    ("every_parameter_receives_gradient",
     put(float("nan"), kind="parameter", name="missing_day"), "missing_day (none)"),
    ("every_parameter_receives_gradient", drop(kind="parameter"), "nothing was recorded"),
    ("no_dead_inputs", put(0.0, kind="input_gradient", name="feature_1"),
     "1 of 6 inputs are dead: feature_1 (no gradient)"),
    ("no_dead_inputs", constant_input, "feature_2 (never varies)"),
    ("no_dead_inputs", drop(kind="input_gradient", name="feature_1"), "feature_1 (no gradient)"),
    ("no_dead_inputs", put(0.0, kind="skip_gradient", name="feature_1"),
     "feature_1 (no gradient through the input skip)"),
    ("no_dead_inputs", record(features=[]), "0 inputs alive"),
    ("encoder_tells_stocks_apart", put(1e-3, kind="encoder_spread", step=40), "1.00e-03"),
    ("encoder_tells_stocks_apart", drop(kind="encoder_spread"), "nothing was recorded"),
    ("gradients_within_range", put(1e5, kind="gradient", name="gat", metric="l2"), "gat"),
    ("gradients_within_range", put(1e-6, kind="gradient", name="gat", metric="l2"), "gat"),
    ("gradients_within_range", drop(kind="gradient", metric="l2"), "nothing was recorded"),
    ("updates_within_limit", put(0.06, kind="update", name="gat"), "gat (0.06 a step)"),
    ("updates_within_limit", put(1.5, kind="update", name="temporal_encoder"), "temporal_encoder"),
    ("updates_within_limit", drop(kind="update"), "nothing was recorded"),
    ("inputs_within_range", put(1e5, kind="input", name="feature_3", metric="highest"),
     "feature_3 (1e+05)"),
    ("inputs_within_range", put(-1e5, kind="input", name="feature_3", metric="lowest"),
     "feature_3 (1e+05)"),
    ("inputs_within_range", drop(kind="input"), "nothing was recorded"),
    ("targets_well_scaled",
     record(target_scale={"mean": (-0.2, 0.0, 0.0, 0.0), "std": (0.1,) * 4}), "1d (mean -0.2000"),
    ("targets_well_scaled",
     record(target_scale={"mean": (0.0, 0.0, 0.0, 0.2), "std": (0.1,) * 4}), "20d (mean 0.2000"),
    ("cross_sections_wide_enough", put(1.0, kind="step", metric="stocks_per_date"),
     "at least 1 stocks per date"),
    ("cross_sections_wide_enough", put(19.0, kind="step", metric="stocks_per_date", step=40),
     "at least 19 stocks per date"),
    ("cross_sections_wide_enough", drop(kind="step", metric="stocks_per_date"),
     "nothing was recorded"),
    ("validation_uses_graph", put(0.0, metric="val_neighbours"), "0.00 neighbours"),
    ("validation_uses_graph", put(1.0, metric="val_neighbours", epoch=1), "1.00 neighbours"),
    ("validation_uses_graph", both(put(0.0, metric="val_neighbours"),
                                   put(0.0, metric="train_neighbours")), "0.00 in training"),
    ("validation_uses_graph", drop(metric="train_neighbours"), "nothing was recorded"),
    ("degeneracy_resets_within_limit", drop(kind="guard"), "the guard left no heartbeat"),
    ("degeneracy_resets_within_limit", events("reset", 11), "11 resets"),
    ("degeneracy_resets_within_limit", events("reset_failed", 1), "1 failed"),
    ("predictions_not_degenerate", put(1e-8, kind="checkpoint", name="horizon_5"), "horizon_5"),
    ("degeneracy_resets_within_limit", events("cap_reached", 1), "1 failed"),
    ("predictions_not_degenerate", added(1e-8, kind="checkpoint", name="horizon_5"), "horizon_5"),
    ("predictions_not_degenerate", drop(kind="checkpoint"), "nan"),
    ("no_nonfinite_steps", put(1.0, kind="step", metric="nonfinite", step=7), "1 of"),
    ("no_nonfinite_steps", drop(kind="step", step=7), "recorded steps"),
    ("skipped_batches_zero", put(1.0, kind="step", metric="braked", step=7), "1 batches"),
    ("skipped_batches_zero", put(1.0, kind="step", metric="nonfinite", step=7), "1 batches"),
    ("skipped_batches_zero", drop(kind="step"), "0 batches"),
    ("clip_ratio_falls", put(0.9, kind="step", metric="clip_ratio"), "90% at the end"),
    ("clip_ratio_falls", both(put(0.9, kind="step", metric="clip_ratio", step=2 * STEPS),
                              put(500.0, kind="step", metric="steps", step=2 * STEPS)),
     "88% at the end"),
    ("loss_decreases", rising_loss, "at the end"),
    ("loss_decreases", put(float("nan"), kind="loss", metric="total"), "nan"),
    ("validation_beats_chance", rank_ic(0.01), "5-day validation rank IC 0.0100"),
    ("validation_beats_chance", rank_ic(0.15), "rank IC 0.1500, standard error 0.1005"),
    ("run_is_complete", record(epochs=1, history=[{}]), "epochs [1, 2] recorded of 1"),
    ("run_is_complete", drop(kind="epoch", epoch=2), "epochs [1] recorded of 2"),
    ("run_is_complete", record(history=[]), "epochs [1, 2] recorded of 2"),
    ("run_is_complete", record(run_id="another"), "readings of run-1"),
    ("run_is_complete", lambda rows, record: [], "readings of no run"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), FAULTS)
def test_the_fault_turns_its_gate_red(run, name, change, words):
    finding = verdicts(run, change)[name]
    assert not finding.passed
    assert words in finding.figure
    assert finding.stops is (name not in WARNINGS)


def test_every_gate_is_seen_to_fail():
    assert {name for name, _, _ in FAULTS} == set(CHECKS)


def test_resets_and_clipping_warn_before_they_fail(run):
    resets = verdicts(run, events("reset", 6))["degeneracy_resets_within_limit"]
    clipped = verdicts(run, put(0.3, kind="step", metric="clip_ratio"))["clip_ratio_falls"]
    for finding in (resets, clipped):
        assert not finding.passed
        assert not finding.stops
    assert verdicts(run, events("reset", 5))["degeneracy_resets_within_limit"].passed
    # High at first is fine.
    early = verdicts(run, put(1.0, kind="step", metric="clip_ratio", epoch=1))
    assert early["clip_ratio_falls"].passed


def test_a_recipe_that_means_to_clip_is_only_warned(run):
    def clipped(norm: float) -> Finding:
        def change(rows: Rows, record: dict) -> Rows:
            put(0.9, kind="step", metric="clip_ratio")(rows, record)
            return put(norm, kind="epoch", metric="clip_norm")(rows, record)

        return verdicts(run, change)["clip_ratio_falls"]

    assert clipped(1.0).stops
    assert not clipped(0.5).stops
    assert not clipped(0.5).passed


def test_an_early_stop_that_is_recorded_is_complete(run):
    def stopped(early: bool) -> Finding:
        evidence = dataclasses.replace(open_evidence(run), max_epochs=40)
        evidence = dataclasses.replace(evidence, record={**evidence.record, "stopped_early": early})
        return {f.name: f for f in judge(evidence, TrainingGates())}["run_is_complete"]

    assert stopped(True).passed
    assert "2 of 40 epochs and no early stop" in stopped(False).figure


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run-1"))


def complete(folder: Path) -> Finding:
    return verdicts(folder)["run_is_complete"]


def test_readings_changed_missing_or_added_after_the_run_are_found(copy):
    part = copy / "health" / "part-00001.parquet"
    table = pq.read_table(part)
    part.rename(copy / "health" / "part-00009.parquet")
    words = complete(copy).figure
    assert "health/part-00001.parquet is missing" in words
    assert "health/part-00009.parquet is not of this run's seal" in words
    (copy / "health" / "part-00009.parquet").unlink()
    pq.write_table(table.slice(0, len(table) - 1), part)
    assert "health/part-00001.parquet is not of this run's seal" in complete(copy).figure
    (copy / "health" / "seal.json").unlink()
    assert "the health record has no seal" in complete(copy).figure


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "epoch-0001.pt"])
def test_other_weights_beside_the_records_are_found(copy, name):
    weights = torch.load(copy / name, weights_only=True)
    weights["missing_day"] += 1
    torch.save(weights, copy / name)
    finding = complete(copy)
    assert finding.stops
    assert f"{name} has hash" in finding.figure
    (copy / name).unlink()
    if name != "best.pt":  # without which there is no run
        assert f"{name} has hash none, it is gone" in complete(copy).figure
