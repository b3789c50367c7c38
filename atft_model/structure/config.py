"""Settings of the structure learner, with the presets ``default`` and ``historical``."""

from dataclasses import dataclass, field
from typing import Any, Literal

from atft_model.config import setting
from atft_model.errors import InputError


@dataclass(frozen=True)
class GradientConfig:
    """The gradient stage: proposes an order and keeps the health record."""

    lambda_recon: float = setting(1.0, "Weight of the mean negative log likelihood.")
    lambda_sparse: float = setting(
        0.05, "Weight of the absolute effects, summed over a series' parents, mean over series."
    )
    lambda_acyclic: float = setting(
        1.0, "Weight of the log-det acyclicity per series; times each entry of acyclic_schedule."
    )
    lambda_disen: float = setting(
        0.01, "Weight of the squared correlation of a series' own signal and noise."
    )
    acyclic_schedule: tuple[float, ...] = setting(
        (0.1, 1.0, 10.0, 100.0), "Factors of lambda_acyclic, one stage of epochs each."
    )
    epochs_per_stage: int = setting(15, "Epochs at most for each entry of the schedule.")
    learning_rate: float = setting(2e-2, "Adam's rate in the first half of the stages.")
    late_learning_rate: float = setting(5e-3, "Adam's rate in the second half.")
    weight_decay: float = setting(0.0, "Decay of the adjacency; above 0 it shrinks the graph away.")
    clip_norm: float = setting(1.0, "Largest L2 norm of the whole gradient.")
    plateau_factor: float = setting(0.5, "Rate factor when validation likelihood stalls.")
    plateau_patience: int = setting(3, "Epochs without progress before the rate falls.")
    plateau_cooldown: int = setting(1, "Epochs of rest after the rate fell.")
    early_stopping_patience: int = setting(8, "Epochs without progress that end the last stage.")
    batch_rows: int = setting(256, "Rows per step.")
    validation_share: float = setting(0.2, "Last share of the rows, never trained on.")


@dataclass(frozen=True)
class SearchConfig:
    """The order search and the posterior that decide the graph."""

    random_starts: int = setting(8, "Random starting orders beside the gradient stage's.")
    kept_starts: int = setting(4, "Best distinct graphs of the order search that are refined.")
    extra_penalty: float = setting(
        0.5, "Gamma of the extended BIC (Foygel and Drton 2010): pays for the number of candidates."
    )
    effect_scale: float = setting(
        2.0, "Width of the prior of an effect in noise units; 0 compares graphs by extended BIC."
    )
    window: float = setting(
        16.0,
        "Without lags: graphs that are less probable than the best by up to this (twice the log "
        "odds) are averaged over, and the one expected to be least wrong is taken; 0: the best.",
    )
    window_graphs: int = setting(200, "Graphs of the window whose neighbours are tried, at most.")
    normality_level: float = setting(
        0.01, "Level at which noise counts as not normal, shared by all series (Bonferroni)."
    )


@dataclass(frozen=True)
class BootstrapConfig:
    """Confidence by resampling blocks of days."""

    resamples: int = setting(30, "Block resamples; 0 leaves confidence unknown.")
    block_length: int = setting(20, "Consecutive days per block: volatility stays clustered.")
    shuffles: int = setting(
        19, "Relearnings on series shifted against each other: how many edges chance finds."
    )


@dataclass(frozen=True)
class StructureConfig:
    """All settings of one learned structure."""

    lags: int = setting(1, "Days back that a series may act from; 0 for rows without time.")
    decided_by: Literal["order_search", "gradient"] = setting(
        "order_search", "gradient takes the thresholded adjacency as it is, for comparison."
    )
    common_factor: Literal["flag", "take_out"] = setting(
        "flag",
        "What becomes of an unobserved driver of most series, such as the market: a warning, or "
        "it is estimated, as a root of the graph, and the graph learned given it.",
    )
    seed: int = setting(1337, "Seed of starts, batches, resamples and shuffles.")
    gradient: GradientConfig = field(default_factory=GradientConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        _check(self)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The values of the system before this one, which found no edges: see docs/structure.md.
    "historical": {
        "decided_by": "gradient",
        "gradient": GradientConfig(
            lambda_recon=10.0, lambda_sparse=1e-4, lambda_acyclic=1e-5, lambda_disen=1e-4,
            acyclic_schedule=(1.0,), epochs_per_stage=60, learning_rate=5e-4,
            late_learning_rate=5e-4, weight_decay=1e-4,
        ),
    },
}  # fmt: skip


def _check(config: StructureConfig) -> None:
    gradient, search, bootstrap = config.gradient, config.search, config.bootstrap
    at_least = {
        "structure.lags": (config.lags, 0),
        "structure.gradient.epochs_per_stage": (gradient.epochs_per_stage, 1),
        "structure.gradient.batch_rows": (gradient.batch_rows, 8),
        "structure.search.random_starts": (search.random_starts, 0),
        "structure.search.kept_starts": (search.kept_starts, 1),
        "structure.search.extra_penalty": (search.extra_penalty, 0),
        "structure.search.effect_scale": (search.effect_scale, 0),
        "structure.search.window": (search.window, 0),
        "structure.search.window_graphs": (search.window_graphs, 1),
        "structure.bootstrap.resamples": (bootstrap.resamples, 0),
        "structure.bootstrap.block_length": (bootstrap.block_length, 1),
        "structure.bootstrap.shuffles": (bootstrap.shuffles, 0),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    if not 0 < gradient.validation_share < 1:
        raise InputError(
            f"structure.gradient.validation_share is {gradient.validation_share}; "
            "expected between 0 and 1"
        )
    if not gradient.acyclic_schedule:
        raise InputError("structure.gradient.acyclic_schedule is empty; give at least one factor")
