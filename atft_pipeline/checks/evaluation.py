"""Checks of an evaluation: whose evidence it is, and whether there is skill."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from atft_model.config import setting
from atft_model.controls import ShuffledControl
from atft_pipeline.checks.outcome import Outcome

COMPARED_DIGITS = 6
PATH_TOLERANCE = 0.003
"""Rank IC that one forward path may differ by: bf16 rounds scores in the third digit, which moves a
mean rank IC by less than 0.001; dropout left on or a graph left out moves it by hundredths."""
SHUFFLED_CHANCE_LIMIT = 5.7e-7
"""That of 5 standard errors of a normal: four horizons raise a false alarm once in 400,000
evaluations, however few deals there are."""


@dataclass(frozen=True)
class SkillGates:
    """When a model counts as skilled. All judge a lower bound: a point estimate is luck.

    docs/evaluation.md has the history behind the levels.
    """

    min_sharpe: float = setting(
        0.0, "Net Sharpe (h = 5, decile long-short) that the lower 95 % bound must exceed; below, "
        "it is an ERROR, and bars the model where acceptance asks for skill."
    )  # fmt: skip
    warn_sharpe: float = setting(
        0.5, "Lower bound of the net Sharpe below which the verdict is a WARN: skill, but less "
        "than costs and decay that were not foreseen may take."
    )  # fmt: skip
    min_rank_ic: float = setting(0.0, "Rank IC at h = 5 that the lower 95 % bound must exceed.")
    min_deflated_sharpe: float = setting(
        0.95, "Probability that the true net Sharpe exceeds what the best of all trials on record "
        "shows by luck."
    )  # fmt: skip
    min_rank_ic_ahead: float = setting(
        0.0, "Lower 95 % bound of the model's rank IC less each baseline's, at h = 5."
    )


Figures = Mapping[str, tuple[float, float, int]]


def sharpe_above_threshold(figures: Figures, gates: SkillGates) -> Outcome:
    """The lower end of the net Sharpe ratio's 95 % interval lies above the threshold.

    Two intervals, Newey-West and block bootstrap; the lower of both counts. Above the ERROR level
    but below the WARN level the verdict is a warning.
    """
    value, error, days = figures["sharpe_net"]
    bootstrap = figures["sharpe_net_low"][0]
    normal = value - 1.96 * error
    lower = min(normal, bootstrap) if math.isfinite(bootstrap) else float("nan")
    error_level = not lower > gates.min_sharpe
    return Outcome(
        "sharpe_above_threshold",
        lower > max(gates.min_sharpe, gates.warn_sharpe),
        f"net Sharpe {value:.2f} ± {error:.2f} (T={days}, lag {figures['sharpe_lag'][0]:.0f}), "
        f"lower bound {lower:.2f} (Newey-West {normal:.2f}, bootstrap {bootstrap:.2f})",
        f"lower bound above {gates.min_sharpe:g}, without a warning above {gates.warn_sharpe:g}",
        severity="ERROR" if error_level else "WARN",
        numbers=_finite({"value": value, "standard_error": error, "lower_bound": lower,
                         "bootstrap_low": bootstrap, "dates": days}),
    )  # fmt: skip


def sharpe_significant(figures: Figures, gates: SkillGates) -> Outcome:
    """The net Sharpe ratio is beyond what the best of all trials on record shows by luck."""
    probability = figures["deflated_sharpe"][0]
    luck, trials = figures["sharpe_by_luck"][0], int(figures["trials"][0])
    return Outcome(
        "sharpe_significant",
        probability >= gates.min_deflated_sharpe,
        f"deflated Sharpe {probability:.3f}: net {figures['sharpe_net'][0]:.2f} against "
        f"{luck:.2f}, the best of {trials} trial{'s' if trials > 1 else ''} without skill",
        f"probability of {gates.min_deflated_sharpe:g} or more",
        numbers=_finite({"deflated_sharpe": probability, "sharpe_by_luck": luck,
                         "trials": trials}),
    )  # fmt: skip


def rank_ic_above_baselines(ahead: Figures, gates: SkillGates) -> Outcome:
    """The model's rank IC is above every baseline's: paired by date, the lower bound counts.

    Args:
        ahead: Model less baseline by name, with its Newey-West error.
    """
    lower = {name: value - 1.96 * error for name, (value, error, _) in ahead.items()}
    known = {name: bound for name, bound in lower.items() if math.isfinite(bound)}
    threshold = f"lower bound above {gates.min_rank_ic_ahead:g} against each"
    if not known:
        return Outcome("rank_ic_above_baselines", False, "no baseline has a rank IC on the same "
                       "dates", threshold)  # fmt: skip
    worst = min(known, key=lambda name: known[name])
    value, error, days = ahead[worst]
    beaten = sum(bound > gates.min_rank_ic_ahead for bound in known.values())
    return Outcome(
        "rank_ic_above_baselines",
        beaten == len(known),
        f"ahead of {beaten} of {len(known)}; least of {worst}: {value:+.4f} ± {error:.4f} "
        f"(t = {value / error:.1f}, T={days})",
        threshold,
        numbers={f"ahead_of/{name}": ahead[name][0] for name in known},
    )


def shuffled_control_finds_nothing(shuffled: Mapping[int, ShuffledControl]) -> Outcome:
    """Scores dealt at random within each date have no rank IC at any horizon.

    A shuffled score that ranks returns shows a fault of the evaluation: a rank taken from the order
    of the stocks, a mask that knows the returns, a shuffle that does not shuffle.
    """
    found = {h: control for h, control in shuffled.items() if math.isfinite(control.chance)}
    if not found:
        return Outcome("shuffled_control_finds_nothing", False, "no horizon could be shuffled",
                       "a rank IC of 0")  # fmt: skip
    worst = min(found, key=lambda h: (found[h].chance, -abs(found[h].t)))
    control = found[worst]
    return Outcome(
        "shuffled_control_finds_nothing",
        len(found) == len(shuffled) and control.chance > SHUFFLED_CHANCE_LIMIT,
        f"mean rank IC {control.mean:+.4f} over {control.draws} deals at {worst} days, "
        f"{control.t:+.1f} standard errors from 0: by luck with a chance of {control.chance:.2g}",
        f"a chance above {SHUFFLED_CHANCE_LIMIT:g} at every horizon (Student's t)",
        numbers={f"t_{h}d": c.t for h, c in found.items()},
    )


def metrics_not_identical_to_previous_run(
    figures: pl.DataFrame, previous: pl.DataFrame | None
) -> Outcome:
    """Other weights give other figures; the same to six digits come from a copied or stale file.

    A rerun of the same weights gives the same figures and is no alarm.
    """
    name, threshold = "metrics_not_identical_to_previous_run", "figures that differ, or one model"
    if previous is None:
        return Outcome(name, True, "no evaluation before this one", threshold)
    mine, theirs = figures["checkpoint_hash"][0], previous["checkpoint_hash"][0]
    if mine == theirs:
        return Outcome(name, True, f"the same weights {mine} as last time", threshold)
    key = ["horizon", "metric"]
    ours = _model_figures(figures).join(_model_figures(previous), on=key, suffix="_before")
    known = ours.filter(pl.col("value").is_finite(), pl.col("value_before").is_finite())
    equal = sum(
        f"{a:.{COMPARED_DIGITS}g}" == f"{b:.{COMPARED_DIGITS}g}"
        for a, b in known.select("value", "value_before").iter_rows()
    )
    copied = known.height > 0 and equal == known.height
    return Outcome(
        name,
        not copied,
        f"{equal} of {known.height} figures equal those of weights {theirs} to "
        f"{COMPARED_DIGITS} digits",
        threshold,
        numbers={"equal": equal, "compared": known.height},
    )


def evaluation_path_equals_training_path(
    found: Mapping[int, float], record: Mapping[str, Any]
) -> Outcome:
    """The validation rank IC of the stored scores is the one that training recorded for them.

    Training, prediction and evaluation then share the forward path, the graph, the normalizer and
    the metric. Dropout left on, a graph left out or other statistics would show here.

    Args:
        found: By horizon, from the stored scores of the validation dates.
    """
    best = next(row for row in record["history"] if row["epoch"] == record["best_epoch"])
    gaps = {h: abs(value - best[f"val_rank_ic_{h}d"]) for h, value in found.items()}
    # NaN compares false: an undefined value is no agreement.
    worst = max(gaps, key=lambda h: gaps[h] if math.isfinite(gaps[h]) else math.inf)
    return Outcome(
        "evaluation_path_equals_training_path",
        all(gap <= PATH_TOLERANCE for gap in gaps.values()),
        f"{worst}-day validation rank IC {found[worst]:.4f}, training recorded "
        f"{best[f'val_rank_ic_{worst}d']:.4f}",
        f"a difference of at most {PATH_TOLERANCE:g} at every horizon",
        numbers=_finite({f"gap_{h}d": gap for h, gap in gaps.items()}),
    )


def _model_figures(figures: pl.DataFrame) -> pl.DataFrame:
    """(horizon, metric, value) of the figures that the model's scores decide."""
    decided = ["rank_ic", "ic", "icir", "hit_rate", "sharpe_net", "sharpe_gross", "turnover"]
    return figures.filter(pl.col("scorer") == "model", pl.col("metric").is_in(decided)).select(
        "horizon", "metric", "value"
    )


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {key: number for key, number in numbers.items() if math.isfinite(number)}


def rank_ic_positive(value: float, error: float, days: int, gates: SkillGates) -> Outcome:
    """The lower end of the rank IC's 95 % interval (Newey-West) lies above the threshold."""
    return _lower_bound("rank_ic_positive", "rank IC", value, error, days,
                        gates.min_rank_ic, digits=4)  # fmt: skip


def _lower_bound(
    name: str, what: str, value: float, error: float, days: int, threshold: float, digits: int
) -> Outcome:
    lower = value - 1.96 * error
    numbers = {"value": value, "standard_error": error, "lower_bound": lower, "dates": days}
    return Outcome(
        name,
        lower > threshold,
        f"{what} {value:.{digits}f} ± {error:.{digits}f} (T={days}), lower bound "
        f"{lower:.{digits}f}",
        f"lower bound above {threshold:g}",
        numbers=_finite(numbers),
    )


def evidence_matches_checkpoint(
    scores: Mapping[str, pl.DataFrame],
    baselines: pl.DataFrame,
    record: Mapping[str, Any],
    weights_hash: str,
    panel_hash: str,
) -> Outcome:
    """Scores, weights on disk, run record and panel all belong together.

    Args:
        scores: Tables of the model's scores by name.
        weights_hash: Recomputed from the checkpoint file just now.
        panel_hash: Recomputed from the panel's files just now.
    """
    expected = {
        "run_id": record["run_id"],
        "checkpoint_hash": weights_hash,
        "panel_hash": panel_hash,
    }
    faults = [
        f"{table}: {column} is {found}, expected {value}"
        for table, frame in scores.items()
        for column, value in expected.items()
        if (found := frame[column].unique().sort().to_list()) != [value]
    ]
    if baselines["panel_hash"].unique().to_list() != [panel_hash]:
        faults.append("baselines are of another panel")
    if record["checkpoint_hash"] != weights_hash:
        faults.append(f"run record says weights {record['checkpoint_hash']}, found {weights_hash}")
    if record["panel_hash"] != panel_hash:
        faults.append(f"the run was trained on panel {record['panel_hash']}, this is {panel_hash}")
    return Outcome(
        "evidence_matches_checkpoint",
        not faults,
        "; ".join(faults[:3])
        or f"run {record['run_id']}, weights {weights_hash}, panel {panel_hash}",
        "one run, one checkpoint, one panel",
        numbers={"mismatches": len(faults)},
    )
