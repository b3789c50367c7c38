"""The documented environment variables of a training run, in one table; the only reader of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from atft_model.config import RunConfig
from atft_model.errors import InputError


@dataclass(frozen=True)
class Tunable:
    """One environment variable and the setting that it gives a value to."""

    name: str
    section: str
    key: str
    kind: Literal["flag", "int", "float"]
    effect: str


TUNABLES: tuple[Tunable, ...] = (
    Tunable("ENABLE_GRAD_MONITOR", "monitor", "gradient_monitor", "flag",
            "record gradients per group, tensor and input feature"),
    Tunable("ENABLE_ENCODER_GRAD_HOOKS", "monitor", "encoder_hooks", "flag",
            "log [ENCODER-GRAD] lines through the whole run"),
    Tunable("GRAD_MONITOR_EVERY", "monitor", "every", "int",
            "steps between gradient readings (never fewer than 20 readings an epoch)"),
    Tunable("GRAD_MONITOR_WARN_NORM", "monitor", "warn_norm", "float",
            "a group's gradient norm below this is logged as vanishing"),
    Tunable("VARIANCE_PENALTY_WEIGHT", "loss", "variance_penalty_weight", "float",
            "weight of -log(within-date score variance) in the loss"),
    Tunable("DEGENERACY_RESET_SCALE", "guard", "reset_scale", "float",
            "noise of a head reset, as a share of the tensor's spread"),
    Tunable("PRED_STD_FLOOR", "guard", "std_floor", "float",
            "within-date score std below which a horizon counts as collapsed"),
    Tunable("ENABLE_ADAPTIVE_NORM_DEBUG", "monitor", "adaptive_norm_debug", "flag",
            "log [ADAPTIVE-NORM] lines: spread before and after the normalization"),
    Tunable("SKIP_PRETRAIN_NAN_SCAN", "training", "skip_nan_scan", "flag",
            "leave out the scan of the panel before training"),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Which process of a training run this is, as ``torchrun`` tells it.

    ``rank`` counts over all machines, ``local_rank`` over the processes of this one. Rank 0 alone
    writes, prints and reports.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    launched: bool = False
    """Whether torchrun started it, and says why it ended."""


def place_from_environment(environment: Mapping[str, str] | None = None) -> Place:
    """The place that ``torchrun`` gave to this process; alone where it did not start it."""
    environment = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" not in environment:
        return Place()
    rank, local_rank, size = (int(environment[n]) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return Place(rank, local_rank, size, launched=True)


FLAGS = {"1": True, "true": True, "0": False, "false": False}


def from_environment(environment: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Overrides from the environment variables that are set, in the shape of a run file.

    Raises:
        InputError: a value that is not of the variable's kind.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, dict[str, Any]] = {}
    for tunable in TUNABLES:
        text = environment.get(tunable.name)
        if text is not None and text.strip():
            values.setdefault(tunable.section, {})[tunable.key] = _parse(tunable, text.strip())
    return values


def readme_table() -> str:
    """The tunables as the Markdown table that the README shows."""
    sections = get_type_hints(RunConfig)
    lines = ["| variable | default | effect |", "|---|---|---|"]
    for tunable in TUNABLES:
        default = getattr(sections[tunable.section](), tunable.key)
        shown = f"{default:d}" if tunable.kind == "flag" else f"{default:g}"
        lines.append(f"| {tunable.name} | {shown} | {tunable.effect} |")
    return "\n".join(lines)


def _parse(tunable: Tunable, text: str) -> bool | int | float:
    try:
        if tunable.kind == "flag":
            return FLAGS[text.lower()]
        return int(text) if tunable.kind == "int" else float(text)
    except (KeyError, ValueError):
        expected = "1 or 0" if tunable.kind == "flag" else f"a number ({tunable.kind})"
        raise InputError(
            f"environment variable {tunable.name} is {text!r}; expected {expected}"
        ) from None
