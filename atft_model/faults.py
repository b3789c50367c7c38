"""The fault matrix: every known way to fail in silence, planted in a small run, must be caught.

``python -m atft_model faults`` runs it and writes the table. A fault is caught when the intended
gate, or the intended refusal before training, answers to it; a clean run must pass every gate.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from atft_model import run as run_module
from atft_model.config import RunConfig, resolve
from atft_model.data.batches import DevicePanel, WindowBatch
from atft_model.data.graph import GraphConfig, build_graph, write_graph
from atft_model.data.panel import Panel, read_panel, write_panel
from atft_model.data.toy_panel import make_panel
from atft_model.errors import InputError
from atft_model.run import train
from atft_model.training.gates import TrainingGates, judge, open_evidence
from atft_model.training.loop import Trainer
from atft_model.training.reporter import Reporter

EPOCHS = 3
STEPS_TO_CATCH = 50
"""A gradient, input or number fault must be caught by a run of so many steps."""


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: What is wrong, in words.
        caught_by: The gate that must fail; or ``refusal``, an error that ends the run.
        words: What the gate or refusal must name.
        panel, trainer, validation: Where it is planted.
        settings: Over those of the clean run.
        at_once: Whether ``STEPS_TO_CATCH`` steps must do.
    """

    name: str
    caught_by: str
    words: str
    panel: Callable[[Panel], Panel] | None = None
    trainer: Callable[[Trainer], None] | None = None
    validation: Callable[[WindowBatch], WindowBatch] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    at_once: bool = True


@dataclass(frozen=True)
class Result:
    """What a planted fault, or a clean run, led to."""

    name: str
    intended: str
    caught: bool
    seen: str
    """What the intended gate said."""
    steps: int | None
    others: tuple[str, ...]
    """Other gates that failed as well."""


def skip_over_the_output(trainer: Trainer) -> None:
    """The gated residual's skip starts after the normalization, not before it, as it once did."""

    def past(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return inputs[0], inputs[0]

    trainer.model.gated_residual.register_forward_pre_hook(past)


def same_for_every_stock(trainer: Trainer) -> None:
    """The encoder collapsed; the input skip keeps the scores apart, and gradients go on."""

    def mean(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.mean(dim=0, keepdim=True).expand_as(output)

    trainer.model.gated_residual.register_forward_hook(mean)


def lost_to_encoder(trainer: Trainer) -> None:
    """Variable selection does not get an input that the input skip still reads."""
    _lose_feature(trainer.model.variable_selection)


def lost_to_skip(trainer: Trainer) -> None:
    """The input skip does not get an input that variable selection still reads."""
    assert trainer.model.input_skip is not None
    _lose_feature(trainer.model.input_skip)


def _lose_feature(module: nn.Module, column: int = 1) -> None:
    def lose(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept = torch.arange(inputs[0].shape[-1]) != column
        return (inputs[0] * kept, *inputs[1:])

    module.register_forward_pre_hook(lose)


def dead_head(trainer: Trainer) -> None:
    """The shared part of the head gives every stock the same: no reset of a head can mend it."""

    def nothing(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * 0.0

    trainer.model.head.shared.register_forward_hook(nothing)


def frozen_group(trainer: Trainer) -> None:
    """One group's parameters were left out of training."""
    for parameter in trainer.model.graph_attention.parameters():
        parameter.requires_grad_(False)


def nan_batch(trainer: Trainer) -> None:
    """A NaN gets past the normalizer, into the windows of one training date."""
    day = int(np.flatnonzero(trainer.train_dates)[30])
    trainer.data.features[day, 7, 2] = math.nan


def infinite_target(panel: Panel) -> Panel:
    """A return over a price of zero."""
    targets = np.array(panel.targets)
    targets[panel.split.train[0] + 40, 5, 1] = np.inf
    return replace(panel, targets=targets)


def zeroed_inputs(panel: Panel) -> Panel:
    """All inputs but the first and the last are exactly zero, as after a z-score of one stock."""
    features = np.array(panel.features)
    features[..., 1:-1] = np.where(np.isnan(features[..., 1:-1]), np.nan, 0.0)
    return replace(panel, features=features)


def huge_feature(panel: Panel) -> Panel:
    """One feature skipped its normalizer."""
    features = np.array(panel.features)
    features[..., 2] *= 1e5
    return replace(panel, features=features)


def shuffled_targets(panel: Panel) -> Panel:
    """Each date's targets belong to other stocks."""
    rng = np.random.default_rng(3)
    targets = np.array(panel.targets)
    for day in targets:
        known = np.flatnonzero(np.isfinite(day).all(axis=1))
        day[known] = day[rng.permutation(known)]
    return replace(panel, targets=targets)


def one_stock_dates(panel: Panel) -> Panel:
    """One tradable stock a date: a "cross-section" of one."""
    return _few_stocks(panel, 1)


def three_stock_dates(panel: Panel) -> Panel:
    """Three tradable stocks a date, as in the batches of 2048 windows of the system before."""
    return _few_stocks(panel, 3)


def _few_stocks(panel: Panel, count: int) -> Panel:
    few = np.arange(len(panel.codes)) < count
    return replace(panel, tradable=np.asarray(panel.tradable) & few)


def without_graph(batch: WindowBatch) -> WindowBatch:
    """The batch, its edges lost."""
    return replace(batch, neighbours=torch.full_like(batch.neighbours, -1))


FAULTS = (
    Fault("dead encoder: historical fan_san, its output the skip's too",
          "encoder_gradients_nonzero", "no gradient in", trainer=skip_over_the_output,
          settings={"model": {"adaptive_norm": "fan_san_historical"}}),
    Fault("historical fan_san: no gradient through the last day",
          "every_parameter_receives_gradient", "adaptive_norm.1.weight (always zero)",
          settings={"model": {"adaptive_norm": "fan_san_historical"}}),
    Fault("inputs zeroed (all but 2)", "no_dead_inputs", "never varies", panel=zeroed_inputs),
    Fault("encoder the same for every stock", "encoder_tells_stocks_apart", "smallest within-date",
          trainer=same_for_every_stock),
    Fault("input lost to the encoder", "no_dead_inputs", "feature_1 (no gradient)",
          trainer=lost_to_encoder),
    Fault("input lost to the input skip", "no_dead_inputs",
          "feature_1 (no gradient through the input skip)", trainer=lost_to_skip),
    Fault("constant head", "degeneracy_resets_within_limit", "failed", trainer=dead_head),
    Fault("frozen group", "every_parameter_receives_gradient", "graph_attention",
          trainer=frozen_group),
    Fault("NaN in one batch", "no_nonfinite_steps", "of", trainer=nan_batch,
          settings={"training": {"max_skipped_share": 1.0}}),
    Fault("NaN in one batch, default limits", "refusal", "input feature_2", trainer=nan_batch),
    Fault("infinite target", "refusal", "target_5d: 1 infinite values", panel=infinite_target),
    Fault("learning rate × 1000", "updates_within_limit", "thrown about",
          settings={"optimizer": {"learning_rate": 1.0}}),
    Fault("one feature × 100,000", "inputs_within_range", "feature_2", panel=huge_feature),
    Fault("shuffled targets", "validation_beats_chance", "validation rank IC",
          panel=shuffled_targets, at_once=False),
    Fault("three-stock batches", "cross_sections_wide_enough", "stocks per date",
          panel=three_stock_dates, settings={"training": {"min_stocks": 1}}),
    Fault("three-stock batches, default limits", "refusal", "20 tradable stocks",
          panel=three_stock_dates),
    Fault("one-stock batches", "refusal", "never varies within a training date",
          panel=one_stock_dates),
    Fault("graph missing in validation", "validation_uses_graph", "0.00 neighbours",
          validation=without_graph, at_once=False),
)  # fmt: skip


def settings(
    seed: int, changes: dict[str, Any] | None = None, steps: int | None = None
) -> RunConfig:
    """A small clean run of ``EPOCHS`` epochs; or one of ``steps`` steps in all."""
    small = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": EPOCHS, "batch_windows": 1, "run_length": 4, "device": "cpu",
                     "seed": seed},
    }  # fmt: skip
    if steps is not None:
        small["training"] |= {"max_epochs": 2, "max_steps_per_epoch": steps // 2}
    return resolve("quick", [("clean", small), ("fault", changes or {})])


def run_matrix(clean_seeds: int) -> Iterator[Result]:
    """Every fault, then clean runs on as many panels and seeds; results as they come."""
    for fault in FAULTS:
        yield try_fault(fault)
    for seed in range(clean_seeds):
        yield try_fault(Fault(f"clean, seed {seed}", "", ""), seed)


def try_fault(fault: Fault, seed: int = 0) -> Result:
    """Trains with the fault planted and says what caught it; a clean run is caught by nothing."""
    steps = STEPS_TO_CATCH if fault.at_once and fault.caught_by else None
    panel = make_panel(seed=seed)
    with tempfile.TemporaryDirectory() as place, quiet(), _planted(fault):
        root = Path(place)
        write_panel(fault.panel(panel) if fault.panel else panel, root / "panel")
        graph = build_graph(read_panel(root / "panel"), GraphConfig(neighbours=5))
        write_graph(graph, root / "graph")
        config = settings(seed, fault.settings, steps)
        try:
            train(config, root / "panel", root / "graph", root / "run", Reporter())
        except InputError as error:
            by = "" if fault.caught_by == "refusal" else f"{fault.caught_by}: "
            caught = fault.words in str(error) and by in str(error)
            said = str(error).partition(by)[2] if by else str(error)
            return Result(fault.name, fault.caught_by, caught, said, steps, ())
        findings = judge(open_evidence(root / "run"), TrainingGates())
    failed = {finding.name: finding.figure for finding in findings if not finding.passed}
    seen = {finding.name: finding.figure for finding in findings}.get(fault.caught_by, "")
    caught = fault.caught_by in failed and fault.words in seen
    others = tuple(name for name in failed if name != fault.caught_by)
    return Result(fault.name, fault.caught_by, caught, seen, steps, others)


@contextmanager
def _planted(fault: Fault) -> Iterator[None]:
    """Plants what is not in the panel where the run builds its trainer or cuts its batches."""
    build, batch = run_module.build_trainer, DevicePanel.batch

    def build_broken(*arguments: Any) -> Trainer:
        trainer = build(*arguments)
        if fault.trainer:
            fault.trainer(trainer)
        return trainer

    def batch_broken(data: DevicePanel, starts: np.ndarray, length: int) -> WindowBatch:
        cut = batch(data, starts, length)
        validating = not torch.is_grad_enabled()
        return fault.validation(cut) if fault.validation and validating else cut

    with (
        patch.object(run_module, "build_trainer", build_broken),
        patch.object(DevicePanel, "batch", batch_broken),
    ):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without the runs' own log lines."""
    log = logging.getLogger("atft")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def as_markdown(results: list[Result]) -> str:
    """The table of docs/faults.md."""
    clean = [result for result in results if not result.intended]
    alarmed = [result for result in clean if result.others]
    lines = [
        "# The fault matrix",
        "",
        "Written by `python -m atft_model faults --out docs/faults.md`: each fault is planted in a",
        "small run on a small panel, and must be caught by the gate that is meant for it. A",
        "*refusal* is an error that ends the run. Rows with a number of steps were given no more.",
        "",
        "| fault | caught by | in | what it says | others that fail |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        if result.intended:
            by = result.intended if result.caught else f"**not caught** by {result.intended}"
            within = "whole run" if result.steps is None else f"{result.steps} steps"
            said = result.seen.replace("|", "\\|")
            said = said if len(said) <= 110 else f"{said[:107]}..."
            others = ", ".join(result.others)
            lines.append(f"| {result.name} | {by} | {within} | {said} | {others} |")
    sound = f"{len(clean) - len(alarmed)} of {len(clean)} clean runs"
    lines += ["", f"{sound}, each with its own panel and seed, pass every gate."]
    lines += [f"- {result.name}: {', '.join(result.others)}" for result in alarmed]
    return "\n".join(lines) + "\n"
