"""Every setting of a training run: one frozen dataclass per component, nested in ``RunConfig``.

This module is light on purpose (no torch): Dagster loads it to show the same fields in the
Launchpad. The classes say what a setting means; ``PRESETS`` say what a named recipe changes.
A run's settings are layered, later over earlier: class defaults, preset, environment
(``settings.py``), run file, explicit run config. Unknown keys fail with the nearest name.
"""

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from atft_model.errors import InputError


def setting(default: Any, doc: str) -> Any:
    """A dataclass field whose meaning travels with it to the Launchpad and the docs."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class ModelConfig:
    """Shape of ATFT-GAT-FAN."""

    hidden_size: int = setting(64, "Width of every part; 16 to 1024, divisible by `heads`.")
    heads: int = setting(4, "Attention heads, over time and over the graph.")
    lookback: int = setting(20, "Trading days in a window, the signal day included.")
    lstm_layers: int = setting(1, "Layers of the LSTM encoder.")
    graph_layers: int = setting(1, "Layers of graph attention.")
    static_size: int = setting(8, "Width of the sector and market embeddings.")
    dropout: float = setting(0.1, "Dropout inside the gated residual networks.")
    adaptive_norm: Literal["layer_norm", "fan_san", "fan_san_historical", "none"] = setting(
        "layer_norm", "Normalization of the projected features before the head: fan_san over the "
        "window's days, fan_san_historical as it was once built wrong; see docs/adaptive_norm.md."
    )  # fmt: skip
    input_skip: int = setting(
        0, "Gated units of a short path from the last day's inputs to the head; 0: none."
    )
    input_skip_noise: float = setting(
        0.5, "Noise on the inputs of that path in training, in their own standard deviations."
    )
    linear_days: float | None = setting(
        None, "Horizon at which a linear regression on the last day's inputs weighs as much in the "
        "score as the network; at shorter ones it weighs less. null: no linear part."
    )  # fmt: skip
    linear_penalty: float | None = setting(
        None, "Group lasso of that regression, as a share of the penalty that leaves no input: "
        "long labels overlap, so they afford few. null: 0.15 for returns relative to their sector, "
        "0.3 for those relative to their date."
    )  # fmt: skip
    quantiles: tuple[float, ...] = setting(
        (0.05, 0.25, 0.5, 0.75, 0.95),
        "Predicted quantiles, rising, with 0.5 among them: the median is the score.",
    )
    init_gain: float | None = setting(
        None, "Xavier gain of every linear layer; null keeps torch's initialization."
    )
    orthogonal_lstm: bool = setting(False, "Orthogonal recurrences of the LSTM at the start.")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; each term is a mean over valid entries."""

    quantile_weight: float = setting(1.0, "Pinball loss of the scaled, demeaned targets.")
    rank_weight: float = setting(1.0, "1 - within-date correlation of score and target rank.")
    rank_relative_to: Literal["date", "sector"] = setting(
        "date", "What a return is relative to where scores learn to rank, in the rank term and the "
        "linear part: the mean of its date, or of its sector on that date where the sector is "
        "known and has five known returns."
    )  # fmt: skip
    horizon_power: float = setting(
        0.0, "Rank weight of horizon h is h to minus this: long labels overlap, so they say less."
    )
    variance_penalty_weight: float = setting(
        0.01, "-log of the score's within-date variance: keeps scores apart."
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a staged start, a plateau schedule, and clipping that widens as training settles.

    The clip in force is ``clip_first_norm`` for ``clip_first_steps`` steps, then
    ``clip_first_epoch_norm`` for the rest of the first epoch, then ``clip_norm``; after
    ``clip_stable_epochs`` epochs in a row without a skipped batch ``clip_stable_norm``. Those that
    are null leave ``clip_norm``.
    """

    learning_rate: float = setting(5e-4, "AdamW's first learning rate.")
    short_path_rate: float = setting(
        1.0, "Learning rate of head and input skip in units of `learning_rate`: few weights, far "
        "to go."
    )  # fmt: skip
    weight_decay: float = setting(1e-4, "AdamW's decoupled weight decay.")
    learning_rate_stages: tuple[float, ...] = setting(
        (), "Learning rates of the first epochs, `stage_epochs` each, before `learning_rate`."
    )
    stage_epochs: int = setting(2, "Epochs of each learning rate stage.")
    clip_norm: float = setting(1.0, "Largest L2 norm of the whole gradient.")
    clip_first_norm: float | None = setting(None, "Clip of the first `clip_first_steps` steps.")
    clip_first_steps: int = setting(50, "Steps that `clip_first_norm` holds for.")
    clip_first_epoch_norm: float | None = setting(None, "Clip of the rest of the first epoch.")
    clip_stable_norm: float | None = setting(None, "Clip once training is stable.")
    clip_stable_epochs: int = setting(3, "Epochs without a skipped batch that count as stable.")
    brake_norm: float | None = setting(
        None, "Emergency brake: a batch with a larger gradient norm is skipped."
    )
    schedule: Literal["plateau", "cosine"] = setting(
        "plateau", "plateau: the rate falls when validation stalls; cosine: to 0 at the last step."
    )
    warmup_steps: int = setting(0, "Steps over which a cosine schedule rises to its first rate.")
    plateau_factor: float = setting(0.5, "Learning rate factor when validation stalls.")
    plateau_patience: int = setting(3, "Epochs without progress before the rate falls.")
    plateau_cooldown: int = setting(1, "Epochs of rest after the rate fell.")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, in what order, on what device."""

    max_epochs: int = setting(40, "Epochs at most.")
    batch_windows: int = setting(
        2048,
        "Windows per step at least, of all processes together; rounded up to runs of whole dates.",
    )
    accumulation_steps: int = setting(
        1,
        "Parts that each process computes its windows of a step in, one after the other: less "
        "memory, the same step up to rounding and to dropout, which is drawn for each part.",
    )
    run_length: int = setting(8, "Consecutive dates per run: windows in a run share their steps.")
    max_steps_per_epoch: int | None = setting(
        None, "Steps per epoch at most, a fresh random share of the runs; null for all."
    )
    early_stopping_patience: int = setting(
        6, "Epochs without a better validation rank IC before training stops; 0 never stops."
    )
    keep: Literal["best", "last"] = setting(
        "best", "Whose weights the run keeps: the best validation rank IC's, or the last epoch's, "
        "which are what a cosine ends in; the best of few noisy figures is often just the luckiest."
    )  # fmt: skip
    seed: int = setting(1337, "Seed of weights, dropout and the order of dates.")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes CUDA where it is.")
    precision: Literal["32", "bf16-mixed", "16-mixed"] = setting(
        "32", "Arithmetic of the forward pass; 16-mixed needs CUDA."
    )
    kept_gib: float | None = setting(
        None, "GiB of intermediates that wait in memory for the backward pass; what exceeds it is "
        "computed again, which takes a tenth longer or more; null: 0.3 on a CPU, 16 on a GPU."
    )  # fmt: skip
    compile: bool = setting(
        False, "On a CPU train by C++ kernels, compiled when the run starts (2 s, needs g++): the "
        "same but for rounding and dropout's numbers, and two to four times faster up to "
        "hidden_size 128 (slower above 256). kept_gib has no say then."
    )  # fmt: skip
    min_stocks: int = setting(20, "A date with fewer tradable stocks with targets is left out.")
    max_skipped_share: float = setting(
        0.05, "Share of skipped steps of an epoch above which the run stops."
    )
    checkpoint_seconds: float = setting(
        60.0, "Between checkpoints within an epoch that `--resume` goes on from; 0: every step."
    )
    deterministic: bool = setting(
        False, "On CUDA ask for kernels that give the same bits each time, which are slower; a CPU "
        "gives them in any case."
    )  # fmt: skip
    kept_epochs: int = setting(
        3, "Last epochs whose weights stay in the run's folder, beside the best ones."
    )
    skip_nan_scan: bool = setting(
        False, "Leave out the scan of the panel for infinite values and empty features."
    )


@dataclass(frozen=True)
class MonitorConfig:
    """What is read while training runs."""

    gradient_monitor: bool = setting(True, "Record gradients per group, tensor and input feature.")
    every: int = setting(
        200, "Steps between readings; always fine enough for 20 readings an epoch."
    )
    warn_norm: float = setting(1e-7, "A group's gradient norm below this is logged as vanishing.")
    encoder_hooks: bool = setting(False, "Log [ENCODER-GRAD] lines at the monitor's cadence.")
    adaptive_norm_debug: bool = setting(
        False, "Log what enters and leaves the adaptive normalization, at the monitor's cadence."
    )
    stall_seconds: float = setting(300.0, "Without a step for so long, a stall is reported.")


@dataclass(frozen=True)
class GuardConfig:
    """The degeneracy guard: watches the within-date spread of the score per horizon."""

    std_floor: float = setting(1e-6, "Within-date score std below which a horizon has collapsed.")
    patience: int = setting(3, "Readings in a row below the floor before the head is reset.")
    reset_scale: float = setting(0.05, "Noise of a reset, as a share of the tensor's own spread.")
    recovery_readings: int = setting(10, "Readings within which the spread must be back.")
    max_resets_per_epoch: int = setting(12, "Resets per epoch at most; above 10 a check fails.")


@dataclass(frozen=True)
class RunConfig:
    """All settings of one training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        check_values(self)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The built-in market on two CPU cores, in minutes; docs/skill.md says what each setting is for.
    "quick": {
        "model": {"hidden_size": 16, "lookback": 10, "input_skip": 8, "linear_days": 20.0},
        "loss": {"horizon_power": 1.0, "rank_relative_to": "sector"},
        "optimizer": {"learning_rate": 1e-3, "short_path_rate": 10.0, "schedule": "cosine",
                      "warmup_steps": 10},
        "training": {"max_epochs": 8, "max_steps_per_epoch": 40, "run_length": 4,
                     "early_stopping_patience": 0, "keep": "last", "kept_gib": 1.5},
    },
    # A real market: the defaults above.
    "standard": {},
    # A GPU: large batches, half-width arithmetic, to the last epoch.
    "production": {
        "model": {"hidden_size": 128},
        "training": {"max_epochs": 120, "batch_windows": 4096, "precision": "bf16-mixed",
                     "early_stopping_patience": 0},
    },
    # The conservative recipe, for data on which the others diverge.
    "stable": {
        "model": {"init_gain": 0.01, "orthogonal_lstm": True},
        "optimizer": {"learning_rate": 1e-4, "learning_rate_stages": (1e-6, 1e-5),
                      "clip_norm": 0.1, "clip_first_norm": 0.01, "clip_first_epoch_norm": 0.05,
                      "clip_stable_norm": 0.5, "brake_norm": 10.0},
    },
}  # fmt: skip


def resolve(preset: str, layers: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> RunConfig:
    """The run config of a preset with layers of overrides, each (where it came from, values).

    Raises:
        InputError: unknown preset, key or value type; the message names the place.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}{_nearest(preset, PRESETS)}")
    values: dict[str, Any] = {}
    for where, layer in ((f"preset {preset}", PRESETS[preset]), *layers):
        _check_keys(RunConfig, layer, where, path="")
        values = _merge(values, layer)
    return from_dict(values)


def from_dict(values: Mapping[str, Any], where: str = "run config") -> RunConfig:
    """Rebuilds a config that ``to_dict`` wrote, or a partial one over the class defaults."""
    return _build(RunConfig, values, where, path="")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def read_run_file(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The preset (or None) and the overrides of a ``run.toml`` or ``run.json``.

    Raises:
        InputError: missing file, broken syntax, or a suffix that is neither.
    """
    if path.suffix not in (".toml", ".json"):
        raise InputError(f"{path}: a run file ends in .toml or .json")
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise InputError(f"{path}: run file not found; give the path of a .toml file") from None
    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable {path.suffix[1:]} file: {error}") from error
    preset = values.pop("preset", None)
    _check_keys(RunConfig, values, str(path), path="")
    return preset, values


def check_values(config: RunConfig) -> None:
    """Refuses values that cannot train; the message names the setting."""
    model = config.model
    if not 16 <= model.hidden_size <= 1024:
        raise InputError(f"model.hidden_size is {model.hidden_size}; expected 16 to 1024")
    if model.hidden_size % model.heads:
        raise InputError(
            f"model.hidden_size {model.hidden_size} is not divisible by model.heads {model.heads}"
        )
    if sorted(set(model.quantiles)) != list(model.quantiles) or 0.5 not in model.quantiles:
        raise InputError(f"model.quantiles {model.quantiles} must rise and contain 0.5, the score")
    if not 0 < model.quantiles[0] <= model.quantiles[-1] < 1:
        raise InputError(f"model.quantiles {model.quantiles} must lie between 0 and 1")
    not_negative = {
        "model.input_skip": model.input_skip,
        "model.input_skip_noise": model.input_skip_noise,
        "training.kept_gib": config.training.kept_gib or 0.0,
        "optimizer.warmup_steps": config.optimizer.warmup_steps,
        "loss.horizon_power": config.loss.horizon_power,
    }
    for name, value in not_negative.items():
        if not value >= 0:
            raise InputError(f"{name} is {value}; expected at least 0")
    if config.optimizer.schedule == "cosine" and config.optimizer.learning_rate_stages:
        raise InputError(
            "optimizer.learning_rate_stages go with optimizer.schedule 'plateau', found 'cosine'; "
            "leave one of them out"
        )
    if config.training.keep == "last" and config.training.early_stopping_patience:
        raise InputError(
            f"training.keep is 'last' with an early_stopping_patience of "
            f"{config.training.early_stopping_patience}; an early stop goes by the best epoch: set "
            "keep to 'best' or early_stopping_patience to 0"
        )
    if model.linear_penalty is not None and not 0 <= model.linear_penalty < 1:
        raise InputError(
            f"model.linear_penalty is {model.linear_penalty}; expected 0 up to below 1"
        )
    if not 0 <= model.dropout < 1:
        raise InputError(f"model.dropout is {model.dropout}; expected 0 up to below 1")
    at_least_one = {
        "model.lookback": model.lookback,
        "model.lstm_layers": model.lstm_layers,
        "model.graph_layers": model.graph_layers,
        "training.max_epochs": config.training.max_epochs,
        "training.batch_windows": config.training.batch_windows,
        "training.run_length": config.training.run_length,
        "training.kept_epochs": config.training.kept_epochs,
        "training.accumulation_steps": config.training.accumulation_steps,
        "monitor.every": config.monitor.every,
        "optimizer.stage_epochs": config.optimizer.stage_epochs,
        "optimizer.clip_stable_epochs": config.optimizer.clip_stable_epochs,
        "guard.patience": config.guard.patience,
        "guard.recovery_readings": config.guard.recovery_readings,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    positive = {
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.short_path_rate": config.optimizer.short_path_rate,
        "optimizer.clip_norm": config.optimizer.clip_norm,
        "guard.std_floor": config.guard.std_floor,
        "guard.reset_scale": config.guard.reset_scale,
        "monitor.stall_seconds": config.monitor.stall_seconds,
        "model.init_gain": model.init_gain,
        "model.linear_days": model.linear_days,
        "optimizer.clip_first_norm": config.optimizer.clip_first_norm,
        "optimizer.clip_first_epoch_norm": config.optimizer.clip_first_epoch_norm,
        "optimizer.clip_stable_norm": config.optimizer.clip_stable_norm,
        "optimizer.brake_norm": config.optimizer.brake_norm,
        "optimizer.learning_rate_stages": min(config.optimizer.learning_rate_stages, default=None),
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}; expected above 0")


def unknown_key(where: str, key: str, known: Sequence[str]) -> InputError:
    """The error for a key that no setting has, with the nearest name."""
    return InputError(f"{where}: unknown key {key!r}{_nearest(key, known)}")


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    if not known:
        return "; nothing can be set here"
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _check_keys(cls: type, values: Mapping[str, Any], where: str, path: str) -> None:
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise unknown_key(where, f"{path}{key}", [f"{path}{name}" for name in hints])
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}: {path}{key} is a table of settings, found {value!r}")
            _check_keys(hints[key], value, where, f"{path}{key}.")  # type: ignore[arg-type]


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping)
        merged[key] = _merge(merged.get(key, {}), value) if nested else value
    return merged


def _build(cls: Any, values: Mapping[str, Any], where: str, path: str) -> Any:
    _check_keys(cls, values, where, path)
    hints = get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, where, f"{path}{key}.")
        else:
            arguments[key] = convert(value, hints[key], f"{where}: {path}{key}")
    return cls(**arguments)


def convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the annotated type, or an error that says what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        raise InputError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}")
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return convert(value, next(a for a in arguments if a is not types.NoneType), where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(convert(item, arguments[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise InputError(f"{where} is {value!r}; expected {expected}")
