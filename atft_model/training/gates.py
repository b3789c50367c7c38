"""What a finished run must show, judged from what it left on disk: health record and run record.

Pure functions of those records, never of a log, so that a bare GPU machine, the fault matrix and
the Dagster checks on ``trained_model`` give the same verdict.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from atft_model.config import setting
from atft_model.errors import InputError
from atft_model.evaluation import HEADLINE_HORIZON
from atft_model.training.health_record import read_health, seal_faults


@dataclass(frozen=True)
class TrainingGates:
    """What the health record of a run must show."""

    min_gradient_norm: float = setting(
        1e-7, "Smallest gradient norm of any group after warm-up: float32 noise lies below it."
    )
    warmup_readings: int = setting(3, "First readings not judged: attention starts near zero.")
    min_readings_per_epoch: int = setting(
        20, "Gradient readings that every epoch needs: fewer looks are no evidence."
    )
    healthy_gradient_low: float = setting(
        1e-4, "A group's median gradient norm below this warns: clean runs have 0.03 to 1."
    )
    healthy_gradient_high: float = setting(
        1e2, "A group's largest gradient norm above this warns: clean runs reach 2."
    )
    max_update_ratio: float = setting(
        0.05, "Share of a group's weights that a step moves on average: clean runs move 0.004."
    )
    max_input: float = setting(
        50.0, "Largest normalized input: values are clipped at 5 standard deviations when fitted."
    )
    resets_warn: int = setting(5, "Head resets in one epoch above which the check warns.")
    resets_error: int = setting(10, "Head resets in one epoch above which the check fails.")
    min_encoder_spread: float = setting(
        0.01,
        "Within-date std of what the head reads of the encoder, whose size is 1: below, the "
        "encoder gives every stock the same; clean runs have 0.4 to 0.7.",
    )
    min_score_std: float = setting(
        1e-3, "Within-date std of the score, in units of the target's std: below, stocks tie."
    )
    clip_ratio_warn: float = setting(
        0.2, "Share of the last steps that were clipped, above which the check warns."
    )
    clip_ratio_error: float = setting(
        0.5, "The same, above which it fails: every other step is then of the clip's length."
    )
    clip_norm_judged: float = setting(
        1.0, "Below this clip norm many clipped steps only warn: such a recipe means to clip."
    )
    min_stocks_per_date: float = setting(
        20.0, "Stocks per date in a training batch: with few there is no cross-section to rank."
    )
    min_edge_share: float = setting(
        0.5, "Validation's graph neighbours per window, as a share of training's."
    )
    max_target_mean: float = setting(
        1.0, "A horizon's mean return in standard deviations: as large is a sampling fault."
    )
    chance_errors: float = setting(
        2.0, "Standard errors by which the best epoch's validation rank IC should beat chance."
    )


@dataclass(frozen=True)
class Finding:
    """One verdict with its evidence.

    Attributes:
        name: The fact that the check states.
        figure: What was measured, in words and numbers.
        threshold: What it was measured against.
        severity: Of a failure; a WARN stops nothing.
        numbers: Figures to plot over time.
        table: Headers and rows shown with the verdict.
    """

    name: str
    passed: bool
    figure: str
    threshold: str
    severity: Literal["ERROR", "WARN"] = "ERROR"
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    table: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None

    @property
    def stops(self) -> bool:
        """Whether the weights must not be used."""
        return not self.passed and self.severity == "ERROR"


class Readings:
    """The health record, by kind and metric."""

    def __init__(self, table: pa.Table) -> None:
        self.run_ids = set(table["run_id"].to_pylist()) if "run_id" in table.column_names else set()
        self._columns = {
            name: table[name].to_numpy() for name in ("epoch", "step", "kind", "name", "metric")
        }
        self._value = table["value"].to_numpy()

    def rows(self, kind: str, metric: str | None = None) -> "Rows":
        """The rows of a kind, in the order written."""
        chosen = self._columns["kind"] == kind
        if metric is not None:
            chosen &= self._columns["metric"] == metric
        column = {name: values[chosen] for name, values in self._columns.items()}
        return Rows(
            column["epoch"], column["step"], column["name"], column["metric"], self._value[chosen]
        )


@dataclass(frozen=True)
class Rows:
    """Columns of some rows of the record."""

    epoch: np.ndarray
    step: np.ndarray
    name: np.ndarray
    metric: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def where(self, chosen: np.ndarray) -> "Rows":
        """The chosen rows."""
        return Rows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def by_name(self) -> dict[str, np.ndarray]:
        """Values of each name, in the order written; names sorted."""
        return {str(name): self.value[self.name == name] for name in np.unique(self.name)}


@dataclass(frozen=True)
class Evidence:
    """What a run left behind, and what is wrong with its files."""

    readings: Readings
    record: Mapping[str, Any]
    max_epochs: int
    faults: tuple[str, ...] = ()


def open_evidence(folder: Path) -> Evidence:
    """Reads a finished run's records and recomputes every hash that binds them together.

    Raises:
        InputError: no finished run, or no health record.
    """
    if not (folder / "run.json").exists():
        raise InputError(f"{folder}: no finished run here (no run.json); train the model first")
    record = json.loads((folder / "run.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    faults = list(seal_faults(folder / "health", record))
    # Here, not above: the checks are listed wherever Dagster loads the project, without torch.
    from atft_model.training.checkpoint import load_weights, weights_hash

    # Runs of earlier versions kept no other weights than the best.
    kept = record.get("checkpoints", {}) | {"best.pt": record["checkpoint_hash"]}
    for name, wanted in kept.items():
        path = folder / name
        found = weights_hash(load_weights(path)) if path.exists() else "none, it is gone"
        if found != wanted:
            faults.append(f"{name} has hash {found}, the run record {wanted}")
    return Evidence(
        Readings(read_health(folder / "health")), record, config["training"]["max_epochs"],
        tuple(faults),
    )  # fmt: skip


def judge(evidence: Evidence, gates: TrainingGates) -> list[Finding]:
    """Every verdict on a run."""
    readings, record = evidence.readings, evidence.record
    return [
        encoder_gradients_nonzero(readings, record, gates),
        every_parameter_receives_gradient(readings),
        no_dead_inputs(readings, record),
        gradients_within_range(readings, gates),
        updates_within_limit(readings, gates),
        inputs_within_range(readings, gates),
        targets_well_scaled(record, gates),
        cross_sections_wide_enough(readings, gates),
        validation_uses_graph(readings, gates),
        encoder_tells_stocks_apart(readings, gates),
        degeneracy_resets_within_limit(readings, gates),
        predictions_not_degenerate(readings, gates),
        no_nonfinite_steps(readings, record),
        skipped_batches_zero(readings),
        clip_ratio_falls(readings, gates),
        loss_decreases(readings),
        validation_beats_chance(record, gates),
        run_is_complete(evidence),
    ]


def explain(health: Path, record: Mapping[str, Any], gates: TrainingGates) -> list[Finding]:
    """What the readings say of a run that ended without weights to keep.

    Args:
        record: At least ``epochs`` and ``features``.
    """
    readings = Readings(read_health(health))
    findings = [
        encoder_gradients_nonzero(readings, record, gates),
        no_dead_inputs(readings, record),
        inputs_within_range(readings, gates),
        updates_within_limit(readings, gates),
        degeneracy_resets_within_limit(readings, gates),
    ]
    return [finding for finding in findings if not finding.passed]


def encoder_gradients_nonzero(
    readings: Readings, record: Mapping[str, Any], gates: TrainingGates
) -> Finding:
    """Every group and both encoder activations received a gradient at every reading."""
    groups, activations = (
        readings.rows("gradient", "l2"),
        readings.rows("activation_gradient", "l2"),
    )
    looks = _looks_per_epoch(groups, int(record["epochs"]))
    steps = np.unique(groups.step)[gates.warmup_readings :]
    smallest = {
        name: float(values.min()) if np.isfinite(values).all() else math.nan
        for rows in (groups, activations)
        for name, values in rows.where(np.isin(rows.step, steps)).by_name().items()
    }
    smallest = dict(sorted(smallest.items(), key=lambda pair: pair[1]))
    vanishing = [name for name, value in smallest.items() if not value > gates.min_gradient_norm]
    faults = []
    if not looks or min(looks) < gates.min_readings_per_epoch:
        faults.append(
            f"only {min(looks, default=0)} gradient readings in an epoch, "
            f"{gates.min_readings_per_epoch} needed: no evidence "
            "(a smaller training.batch_windows or run_length gives an epoch more steps)"
        )
    if vanishing:
        faults.append(f"no gradient in {', '.join(vanishing)}")
    if not len(activations):
        faults.append("no gradient of the encoder's activations was read")
    weakest = next(iter(smallest), "none")
    return Finding(
        "encoder_gradients_nonzero",
        not faults,
        "; ".join(faults)
        or f"smallest norm {smallest[weakest]:.1e} ({weakest}), {sum(looks)} readings",
        f"every group above {gates.min_gradient_norm:.0e}, "
        f"{gates.min_readings_per_epoch} readings an epoch",
        numbers={
            "readings": sum(looks),
            "fewest_readings_in_an_epoch": min(looks, default=0),
            **{f"smallest/{name}": value for name, value in smallest.items()},
        },
        table=(("group", "smallest gradient norm"), list(smallest.items())),
    )


def _looks_per_epoch(rows: Rows, epochs: int) -> list[int]:
    return [len(np.unique(rows.step[rows.epoch == epoch])) for epoch in range(1, epochs + 1)]


def every_parameter_receives_gradient(readings: Readings) -> Finding:
    """Each tensor had a gradient that was somewhere, sometime, not exactly zero."""
    largest = {
        name: values for name, values in readings.rows("parameter", "largest").by_name().items()
    }
    none = [name for name, values in largest.items() if np.isnan(values).all()]
    zero = [name for name, values in largest.items() if name not in none and not (values > 0).any()]
    faults = [f"{name} (none)" for name in none] + [f"{name} (always zero)" for name in zero]
    return Finding(
        "every_parameter_receives_gradient",
        bool(largest) and not faults,
        _named(faults, f"{len(faults)} of {len(largest)} tensors")
        if faults or not largest
        else f"{len(largest)} tensors, all with gradient",
        "a gradient in every tensor",
        numbers={"tensors": len(largest), "without": len(none), "always_zero": len(zero)},
    )


def no_dead_inputs(readings: Readings, record: Mapping[str, Any]) -> Finding:
    """Every input varies and passes a gradient: an input that is always zero does neither.

    Through the encoder, and through the input skip where that reads it.
    """
    gradients = readings.rows("input_gradient", "l2").by_name()
    skip = readings.rows("skip_gradient", "l2").by_name()
    lowest, highest = (readings.rows("input", side).by_name() for side in ("lowest", "highest"))
    names = list(record["features"])
    faults = []
    for name in names:
        if not (gradients.get(name, np.zeros(1)) > 0).any():
            faults.append(f"{name} (no gradient)")
        elif name in skip and not (skip[name] > 0).any():
            faults.append(f"{name} (no gradient through the input skip)")
        elif not (highest.get(name, np.zeros(1)).max() > lowest.get(name, np.zeros(1)).min()):
            faults.append(f"{name} (never varies)")
    return Finding(
        "no_dead_inputs",
        bool(names) and not faults,
        _named(faults, f"{len(faults)} of {len(names)} inputs are dead")
        if faults
        else f"{len(names)} inputs alive",
        "every input varies and passes a gradient",
        numbers={"inputs": len(names), "dead_inputs": len(faults)},
    )


def gradients_within_range(readings: Readings, gates: TrainingGates) -> Finding:
    """Gradient norms lie where clean runs had them. The loss is a mean, so data don't scale it."""
    norms = readings.rows("gradient", "l2").by_name()
    rows, outside = [], []
    for name, values in norms.items():
        usual, largest = float(np.median(values)), float(values.max())
        rows.append((name, usual, largest))
        if not (usual >= gates.healthy_gradient_low and largest <= gates.healthy_gradient_high):
            outside.append(f"{name} (median {usual:.1e}, largest {largest:.1e})")
    return Finding(
        "gradients_within_range",
        bool(rows) and not outside,
        _named(outside, "outside")
        if outside or not rows
        else f"medians {min(r[1] for r in rows):.1e} to {max(r[1] for r in rows):.1e}, "
        f"largest {max(r[2] for r in rows):.1e}",
        f"median above {gates.healthy_gradient_low:.0e}, largest below "
        f"{gates.healthy_gradient_high:.0e}",
        severity="WARN",
        numbers={f"median/{name}": usual for name, usual, _ in rows},
        table=(("group", "median gradient norm", "largest"), rows),
    )


def updates_within_limit(readings: Readings, gates: TrainingGates) -> Finding:
    """A step moves each group's weights by a small share of their size.

    The mean over the run: weights that are thrown about grow, and later steps look small again.
    """
    ratios = readings.rows("update", "ratio").by_name()
    rows = [(name, float(values.mean()), float(values.max())) for name, values in ratios.items()]
    wild = [f"{name} ({usual:.2g} a step)" for name, usual, _ in rows
            if not usual <= gates.max_update_ratio]  # fmt: skip
    return Finding(
        "updates_within_limit",
        bool(rows) and not wild,
        _named(wild, "weights are thrown about")
        if wild or not rows
        else f"at most {max(r[1] for r in rows):.1e} of a group's size a step",
        f"mean at most {gates.max_update_ratio:g} (lower optimizer.learning_rate)",
        numbers={f"update_ratio/{name}": usual for name, usual, _ in rows},
        table=(("group", "mean update ratio", "largest"), rows),
    )


def inputs_within_range(readings: Readings, gates: TrainingGates) -> Finding:
    """Normalized inputs are of the size that the normalizer gives."""
    rows = readings.rows("input")
    size = {name: float(np.abs(values).max()) for name, values in rows.by_name().items()}
    large = [f"{name} ({value:.3g})" for name, value in size.items()
             if not value <= gates.max_input]  # fmt: skip
    return Finding(
        "inputs_within_range",
        bool(size) and not large,
        _named(large, "too large") if large or not size else f"largest {max(size.values()):.3g}",
        f"at most {gates.max_input:g} in size",
        numbers={"largest_input": max(size.values(), default=math.nan)},
    )


def targets_well_scaled(record: Mapping[str, Any], gates: TrainingGates) -> Finding:
    """No horizon's mean return is as large as its spread: that is a fault of the sample."""
    scale = record["target_scale"]
    rows = list(zip(record["horizons"], scale["mean"], scale["std"], strict=True))
    odd = [f"{h}d (mean {mean:.4f}, std {std:.4f})" for h, mean, std in rows
           if not abs(mean) < gates.max_target_mean * std]  # fmt: skip
    return Finding(
        "targets_well_scaled",
        bool(rows) and not odd,
        _named(odd, "implausible")
        if odd or not rows
        else ", ".join(f"{h}d {mean:+.4f} ± {std:.4f}" for h, mean, std in rows),
        f"|mean| below {gates.max_target_mean:g} std on every horizon",
        numbers={f"target_mean_in_std/{h}d": mean / std for h, mean, std in rows if std > 0},
    )


def cross_sections_wide_enough(readings: Readings, gates: TrainingGates) -> Finding:
    """A date of a training batch holds enough stocks to be ranked."""
    stocks = readings.rows("step", "stocks_per_date").value
    fewest = float(stocks.min()) if len(stocks) else math.nan
    return Finding(
        "cross_sections_wide_enough",
        fewest >= gates.min_stocks_per_date,
        f"at least {fewest:.0f} stocks per date" if len(stocks) else "nothing was recorded",
        f"at least {gates.min_stocks_per_date:g}",
        numbers={"fewest_stocks_per_date": fewest},
    )


def validation_uses_graph(readings: Readings, gates: TrainingGates) -> Finding:
    """Validation sees as dense a graph as training does."""
    train = readings.rows("epoch", "train_neighbours").value
    validation = readings.rows("epoch", "val_neighbours").value
    if not len(train) or not len(validation):
        return Finding("validation_uses_graph", False, "nothing was recorded", "a reading an epoch")
    mine, theirs = float(train.mean()), float(validation.min())
    return Finding(
        "validation_uses_graph",
        mine > 0 and theirs >= gates.min_edge_share * mine,
        f"{theirs:.2f} neighbours a window in validation, {mine:.2f} in training",
        f"above 0, and at least {gates.min_edge_share:.0%} of training's",
        numbers={"train_neighbours": mine, "val_neighbours": theirs},
    )


def encoder_tells_stocks_apart(readings: Readings, gates: TrainingGates) -> Finding:
    """What the head reads of the encoder differs between the stocks of a date, at every reading."""
    spread = readings.rows("encoder_spread", "std").value[gates.warmup_readings :]
    smallest = float(spread.min()) if len(spread) else math.nan
    return Finding(
        "encoder_tells_stocks_apart",
        smallest > gates.min_encoder_spread,
        f"smallest within-date std of the encoder's state {smallest:.2e}"
        if len(spread)
        else "nothing was recorded",
        f"above {gates.min_encoder_spread:g}",
        numbers={"smallest_encoder_spread": smallest},
    )


def degeneracy_resets_within_limit(readings: Readings, gates: TrainingGates) -> Finding:
    """The guard watched, reset a head rarely, and every reset brought the spread back."""
    guard = readings.rows("guard")
    watched = guard.value[guard.metric == "evaluations"]
    looks = int(watched.max()) if len(watched) else 0
    resets = guard.epoch[guard.metric == "reset"]
    worst = int(np.unique(resets, return_counts=True)[1].max()) if len(resets) else 0
    failed = int(np.isin(guard.metric, ["reset_failed", "cap_reached"]).sum())
    broken = looks == 0 or failed > 0 or worst > gates.resets_error
    figure = f"{worst} resets in the worst epoch, {failed} failed, {looks} looks"
    return Finding(
        "degeneracy_resets_within_limit",
        not broken and worst <= gates.resets_warn,
        "the guard left no heartbeat" if looks == 0 else figure,
        f"at most {gates.resets_warn} an epoch (above {gates.resets_error} fails), none failed",
        severity="ERROR" if broken else "WARN",
        numbers={"resets_worst_epoch": worst, "failed_resets": failed, "evaluations": looks},
    )


def predictions_not_degenerate(readings: Readings, gates: TrainingGates) -> Finding:
    """The best checkpoint, read back from disk, tells stocks apart on every horizon."""
    spread = {
        name: float(values[-1])
        for name, values in readings.rows("checkpoint", "score_std").by_name().items()
    }
    low = [name for name, value in spread.items() if not value > gates.min_score_std]
    smallest = min(spread.values(), default=math.nan)
    return Finding(
        "predictions_not_degenerate",
        bool(spread) and not low,
        f"smallest within-date std {smallest:.2e}" + (f": {', '.join(low)}" if low else ""),
        f"above {gates.min_score_std:g} on every horizon",
        numbers={f"score_std/{name}": value for name, value in spread.items()},
    )


def no_nonfinite_steps(readings: Readings, record: Mapping[str, Any]) -> Finding:
    """No step had a loss or gradient that is not finite, and every step was counted."""
    counted = int(readings.rows("step", "steps").value.sum())
    nonfinite = int(readings.rows("step", "nonfinite").value.sum())
    return Finding(
        "no_nonfinite_steps",
        nonfinite == 0 and counted == int(record["steps"]) > 0,
        f"{nonfinite} of {counted} recorded steps, {record['steps']} taken",
        "0, with every step recorded",
        numbers={"nonfinite_steps": nonfinite, "recorded_steps": counted},
    )


def skipped_batches_zero(readings: Readings) -> Finding:
    """No batch was left out, by the emergency brake or for a number that is not finite."""
    rows = readings.rows("skipped")
    causes = list(zip(rows.step.tolist(), rows.name.tolist(), rows.metric.tolist(), strict=True))
    braked = int(readings.rows("step", "braked").value.sum())
    skipped = int(readings.rows("step", "nonfinite").value.sum()) + braked
    counted = len(readings.rows("step", "steps"))
    return Finding(
        "skipped_batches_zero",
        skipped == 0 and counted > 0,
        f"{skipped} batches" + (f", first: {causes[0][2]}, {causes[0][1]}" if causes else ""),
        "0",
        severity="WARN",
        numbers={"skipped_batches": skipped, "braked_batches": braked},
        table=(("step", "batch", "cause"), causes[:50]) if causes else None,
    )


def clip_ratio_falls(readings: Readings, gates: TrainingGates) -> Finding:
    """In the last fifth of the readings few steps were shortened by clipping; at first many may."""
    clipped, steps = readings.rows("step", "clip_ratio").value, readings.rows("step", "steps").value
    part = max(1, len(clipped) // 5)
    first, last = (
        float(np.average(clipped[chosen], weights=steps[chosen])) if len(clipped) else math.nan
        for chosen in (slice(part), slice(-part, None))
    )
    norms = readings.rows("epoch", "clip_norm").value
    meant = len(norms) > 0 and norms[-1] < gates.clip_norm_judged
    return Finding(
        "clip_ratio_falls",
        last <= gates.clip_ratio_warn,
        f"{first:.0%} of steps clipped at first, {last:.0%} at the end",
        f"at most {gates.clip_ratio_warn:.0%} at the end "
        f"(above {gates.clip_ratio_error:.0%} fails)",
        severity="WARN" if meant or last <= gates.clip_ratio_error else "ERROR",
        numbers={"clip_ratio_first": first, "clip_ratio_last": last},
    )


def loss_decreases(readings: Readings) -> Finding:
    """The training loss of the last fifth of the readings is below that of the first fifth."""
    values = readings.rows("loss", "total").value
    part = max(1, len(values) // 5)
    first, last = (float(v.mean()) if len(values) > 1 else math.nan
                   for v in (values[:part], values[-part:]))  # fmt: skip
    return Finding(
        "loss_decreases",
        last < first,
        f"{first:.4f} at first, {last:.4f} at the end",
        "lower at the end",
        numbers={"loss_first": first, "loss_last": last},
    )


def validation_beats_chance(record: Mapping[str, Any], gates: TrainingGates) -> Finding:
    """The validation rank IC of the best epoch is not what shuffled targets would give.

    A skill verdict, so it warns: ``evaluation`` judges skill on test dates. Of the headline
    horizon, whose overlapping returns leave dates / horizon independent dates: the standard error
    under no skill is at most 1 / sqrt((stocks - 1) · dates / horizon).
    """
    horizons = record["horizons"]
    horizon = HEADLINE_HORIZON if HEADLINE_HORIZON in horizons else min(horizons)
    key, chosen = f"val_rank_ic_{horizon}d", record["best_epoch"]
    best = next((e[key] for e in record["history"] if e.get("epoch") == chosen), math.nan)
    dates, stocks = record["validation_dates"], record["validation_stocks"]
    error = 1 / math.sqrt(max(stocks - 1, 1) * max(dates / horizon, 1))
    return Finding(
        "validation_beats_chance",
        best > gates.chance_errors * error,
        f"{horizon}-day validation rank IC {best:.4f}, standard error {error:.4f}",
        f"above {gates.chance_errors:g} standard errors",
        severity="WARN",
        numbers={"validation_rank_ic": best, "standard_error": error},
    )


def run_is_complete(evidence: Evidence) -> Finding:
    """All epochs, or a recorded early stop, and every record of this run and these weights."""
    record, readings = evidence.record, evidence.readings
    faults = list(evidence.faults)
    foreign = readings.run_ids - {record["run_id"]}
    if foreign or not readings.run_ids:
        faults.append(f"readings of {', '.join(sorted(foreign)) or 'no run'}")
    epochs = int(record["epochs"])
    recorded = sorted({int(epoch) for epoch in readings.rows("epoch", "train_loss").epoch})
    if recorded != list(range(1, epochs + 1)) or len(record["history"]) != epochs:
        faults.append(f"epochs {recorded} recorded of {epochs}")
    if epochs != evidence.max_epochs and not record["stopped_early"]:
        faults.append(f"{epochs} of {evidence.max_epochs} epochs and no early stop")
    return Finding(
        "run_is_complete",
        not faults,
        "; ".join(faults)
        or f"{epochs} of {evidence.max_epochs} epochs"
        + (", stopped early" if record["stopped_early"] else "")
        + f", run {record['run_id']}, weights {record['checkpoint_hash']}",
        "all epochs or an early stop; records of this run and these weights alone",
        numbers={"epochs": epochs, "faults": len(faults)},
    )


def _named(names: Iterable[str], what: str, show: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return f"{what}: {', '.join(names[:show]) or 'nothing was recorded'}{more}"
