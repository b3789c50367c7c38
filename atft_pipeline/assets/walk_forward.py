"""Walk-forward: a model for each test period, trained on what came before, and one judgement.

Figures, controls and verdicts are those of ``evaluation``, by its own functions.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.data.artifacts import text_hash, write_text_atomically
from atft_model.data.folds import Fold, panel_of_fold, plan_folds
from atft_model.data.panel import Panel, read_panel
from atft_model.data.splits import Split
from atft_model.errors import InputError
from atft_model.evaluation import EvaluationConfig, TestPart, cut_test_part
from atft_model.training.health_record import read_health
from atft_pipeline.assets.evaluation import (
    CONFIG as EVALUATION_CONFIG,
)
from atft_pipeline.assets.evaluation import (
    baseline_table,
    breakdowns_table,
    check_row,
    daily_table,
    evaluated,
    figures_table,
    known_limits,
    panel_identity,
    planted_return,
    rank_ic_table,
    report_data,
    result_metadata,
    score_identity,
    scores_of_run,
    skill_outcomes,
    target_scales,
    validation_rank_ics,
)
from atft_pipeline.assets.model import CONFIG as MODEL_CONFIG
from atft_pipeline.assets.model import run_metadata, train_run
from atft_pipeline.checks.evaluation import (
    SkillGates,
    evaluation_path_equals_training_path,
    evidence_matches_checkpoint,
    metrics_not_identical_to_previous_run,
    shuffled_control_finds_nothing,
)
from atft_pipeline.checks.lookahead import splits_are_purged
from atft_pipeline.checks.model import TrainingGates, model_check_specs, model_outcomes
from atft_pipeline.checks.outcome import Outcome, markdown_table, spec, verdicts
from atft_pipeline.checks.walk_forward import (
    FoldEvidence,
    every_period_is_scored,
    folds_match_checkpoints,
    periods_do_not_overlap,
    scores_are_out_of_sample,
)
from atft_pipeline.config_schema import build
from atft_pipeline.failures import plain_failures
from atft_pipeline.report.html import render_report
from atft_pipeline.resources import WalkForward
from atft_pipeline.storage import Storage
from atft_pipeline.transforms.market_facts import market_facts

ROLLING = "rolling_model"
BASELINES = "rolling_baselines"
"""Table of the baselines' scores of each period, fitted on the period's own training dates."""
POOLED = "walk_forward_evaluation"
PERIODS = dg.DynamicPartitionsDefinition(name="test_period")
"""The periods of the panel; ``test_periods`` sets them."""
PLAN = {
    "period": pl.String, "panel_hash": pl.String, "train_first": pl.Date, "train_last": pl.Date,
    "validation_first": pl.Date, "validation_last": pl.Date, "test_first": pl.Date,
    "test_last": pl.Date, "train_dates": pl.Int64, "test_dates": pl.Int64, "fold": pl.String,
}  # fmt: skip
"""Columns of the table ``test_periods``; ``fold`` is what the trainer reads, as JSON."""


@dg.asset(
    group_name="evaluation", kinds={"numpy", "parquet"}, config_schema={},
    description="The periods of the walk-forward with the split of each: the partitions of "
                "rolling_model. A year each, or a quarter (ATFT_TEST_PERIOD).",
)  # fmt: skip
@plain_failures
def test_periods(
    context: dg.AssetExecutionContext, walk_forward: WalkForward, panel: Path
) -> dg.Output[pl.DataFrame]:
    """Plans the folds of the current panel and makes them the partitions of ``rolling_model``."""
    opened = read_panel(panel)
    folds, left_out = plan_folds(opened, walk_forward.config())
    for period, reason in left_out.items():
        context.log.info(f"{period} is no test period: {reason}")
    keys = [fold.period for fold in folds]
    name = str(PERIODS.name)
    for gone in set(context.instance.get_dynamic_partitions(name)) - set(keys):
        context.instance.delete_dynamic_partition(name, gone)
    context.instance.add_dynamic_partitions(name, keys)
    metadata = {
        "periods": len(keys),
        "left_out": dg.MetadataValue.md(markdown_table(["period", "reason"], left_out.items())),
    }
    return dg.Output(plan_table(opened, folds), metadata=metadata)


def plan_table(panel: Panel, folds: list[Fold]) -> pl.DataFrame:
    """One row per fold, with its split in dates and, for the trainer, as JSON."""
    rows = []
    for fold in folds:
        dates = {}
        for part, (first, last) in fold.split.parts().items():
            dates |= {f"{part}_first": panel.dates[first], f"{part}_last": panel.dates[last - 1]}
        train, test = fold.split.train, fold.split.test
        rows.append({"period": fold.period, "panel_hash": fold.panel_hash, **dates,
                     "train_dates": train[1] - train[0], "test_dates": test[1] - test[0],
                     "fold": json.dumps(fold.to_dict())})  # fmt: skip
    return pl.DataFrame(rows, schema=PLAN)


@dg.asset(
    name=ROLLING, partitions_def=PERIODS, group_name="evaluation", kinds={"pytorch"},
    pool="gpu", output_required=False,
    config_schema={name: field for name, field in MODEL_CONFIG.items() if name != "resume"},
    check_specs=[
        *model_check_specs(ROLLING),
        spec(ROLLING, "splits_are_purged", "No label interval crosses into a later part."),
        spec(ROLLING, "evidence_matches_checkpoint",
             "Scores, weights, run record and panel belong together; hashes are recomputed."),
        spec(ROLLING, "evaluation_path_equals_training_path",
             "The validation rank IC of these scores is the one that training recorded."),
    ],
    description="A model for one test period, trained on what came before it, and its scores of "
                "that period.",
)  # fmt: skip
@plain_failures
def rolling_model(
    context: dg.AssetExecutionContext, storage: Storage, test_periods: pl.DataFrame, panel: Path,
    stock_graph: Path,
) -> Iterator[Any]:  # fmt: skip
    """Trains, judges by the gates of ``trained_model``, scores the period, stores what is sound."""
    from atft_model.training.checkpoint import load_weights, weights_hash

    options = dict(context.op_execution_context.op_config)
    period = context.partition_key
    fold = planned_fold(test_periods, period)
    opened = panel_of_fold(read_panel(panel), fold)
    run_id = f"{period}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    folder = storage.folds / run_id
    write_text_atomically(folder / "fold.json", json.dumps(fold.to_dict()))
    train_run(context, storage, options, folder, panel, stock_graph,
              ["--fold", str(folder / "fold.json")])  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    health = pl.DataFrame(pl.from_arrow(read_health(folder / "health")))
    gates = build(TrainingGates, options.get("gates", {}))
    outcomes = [*model_outcomes(folder, gates), splits_are_purged(opened)]
    frame = baselines = None
    if not any(outcome.stops for outcome in outcomes):
        scores = scores_of_run(context, storage, folder, panel, stock_graph)
        baselines = baseline_table(opened, planted_return(storage), context.log.info)
        found = weights_hash(load_weights(folder / "best.pt"))
        outcomes += [
            evidence_matches_checkpoint({ROLLING: scores}, baselines, record, found, opened.hash),
            evaluation_path_equals_training_path(
                validation_rank_ics(scores, opened, folder), record
            ),
        ]
        frame = scores.filter(pl.col("part") == "test")
    stopped = [outcome.name for outcome in outcomes if outcome.stops]
    if not stopped and baselines is not None:
        storage.write_part(BASELINES, period, baselines)
    # Checks that were not reached have no evidence to be judged by: failed, and saying so.
    outcomes += [_not_reached(check.name) for check in context.assets_def.check_specs
                 if check.name not in {outcome.name for outcome in outcomes}]  # fmt: skip
    metadata = run_metadata(record, health) | {
        "checkpoint_hash": record["checkpoint_hash"],
        "train_dates": f"{record['split']['train'][0]} to {record['split']['train'][1]}",
        "left_out": dg.MetadataValue.md(
            markdown_table(["feature", "reason"], record["left_out"].items())
        ),
    }
    yield from verdicts(ROLLING, outcomes, frame, metadata, partition=period)
    if stopped:
        raise dg.Failure(f"{period} not stored, failed {', '.join(stopped)}", allow_retries=False)


def _not_reached(name: str) -> Outcome:
    return Outcome(name, False, "not reached: an earlier check failed", "a sound training run")


def planned_fold(plan: pl.DataFrame, period: str) -> Fold:
    """The fold of a period.

    Raises:
        InputError: the plan has no such period.
    """
    rows = plan.filter(pl.col("period") == period)
    if rows.is_empty():
        raise InputError(
            f"rolling_model: no test period {period!r}; expected one of "
            f"{', '.join(plan['period']) or 'none: the panel has too few dates'}; materialize "
            "test_periods again where the panel is newer"
        )
    return Fold.from_dict(json.loads(rows["fold"][0]))


@dg.asset(
    group_name="evaluation", kinds={"numpy", "html"}, output_required=False,
    deps=[rolling_model], config_schema=EVALUATION_CONFIG,
    check_specs=[
        spec(POOLED, "folds_match_checkpoints",
             "Each period's scores are of its own run's weights, all of this panel."),
        spec(POOLED, "periods_do_not_overlap", "No date is scored twice."),
        spec(POOLED, "scores_are_out_of_sample",
             "Each score's date lies behind the labels that its model learned from."),
        spec(POOLED, "every_period_is_scored", "A warning names the periods without scores."),
        spec(POOLED, "metrics_not_identical_to_previous_run",
             "Other weights than last time, yet the same figures to six digits: a copied file."),
        spec(POOLED, "shuffled_control_finds_nothing",
             "The models' scores dealt to stocks at random have no rank IC."),
        spec(POOLED, "sharpe_above_threshold", "Net Sharpe, lower bound.", kind="skill"),
        spec(POOLED, "sharpe_significant",
             "Net Sharpe beyond what the best of all trials shows by luck.", kind="skill"),
        spec(POOLED, "rank_ic_positive", "Rank IC, lower bound.", kind="skill"),
        spec(POOLED, "rank_ic_above_baselines",
             "Rank IC above every baseline's on the same dates.", kind="skill"),
    ],
    description="Every figure of the pooled out-of-sample scores and their controls, and the "
                "report.",
)  # fmt: skip
@plain_failures
def walk_forward_evaluation(
    context: dg.AssetExecutionContext, storage: Storage, test_periods: pl.DataFrame, panel: Path,
    prices: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Verifies the evidence of every period first, then pools, computes, judges and reports."""
    from atft_model.run import count_trials

    options = context.op_execution_context.op_config
    opened = read_panel(panel)
    folds = stored_folds(storage)
    dates = {period: fold.scores["date"].unique().sort().to_list()
             for period, fold in folds.items()}  # fmt: skip
    integrity = [
        folds_match_checkpoints(folds, opened.hash),
        periods_do_not_overlap(dates),
        every_period_is_scored(test_periods["period"].to_list(), list(folds)),
    ]
    if not any(outcome.stops for outcome in integrity):
        records = {period: fold.record for period, fold in folds.items()}
        integrity.append(scores_are_out_of_sample(dates, records, opened.dates, opened.horizons))
    if any(outcome.stops for outcome in integrity):
        yield from (outcome.result(POOLED) for outcome in integrity)
        raise dg.Failure("the periods' scores cannot be pooled", allow_retries=False)
    config = build(EvaluationConfig, options.get("portfolio", {}))
    part = pooled_part(opened, folds, config, prices, count_trials(storage.ledger))
    weights = text_hash(json.dumps({p: fold.weights_hash for p, fold in folds.items()}))
    identity = {"run_id": f"walk-forward-{weights[:8]}", "checkpoint_hash": weights,
                "panel_hash": opened.hash}  # fmt: skip
    done = evaluated(
        pooled_scores(folds), pl.concat([fold.baselines for fold in folds.values()]), part,
        dict.fromkeys(opened.horizons, 1.0), context.log.info,
    )  # fmt: skip
    table = figures_table(done.results, identity)
    before = storage.read_table(POOLED, POOLED) if storage.has_table(POOLED) else None
    integrity += [
        metrics_not_identical_to_previous_run(table, before),
        shuffled_control_finds_nothing(done.shuffled),
    ]
    if any(outcome.stops for outcome in integrity):
        storage.write_rejected(POOLED, table)
        yield from (outcome.result(POOLED) for outcome in integrity)
        raise dg.Failure("the pooled result is not stored", allow_retries=False)
    storage.write_table("walk_forward_daily_returns", daily_table(done.results, identity))
    storage.write_table("walk_forward_rank_ic_by_date", rank_ic_table(done.results, identity))
    storage.write_table("walk_forward_breakdowns", breakdowns_table(done.breakdowns, identity))
    gates = build(SkillGates, options.get("gates", {}))
    outcomes = [*integrity, *skill_outcomes(done.results, gates)]
    identity_shown = {
        "Walk-forward": identity["run_id"], "Weights": weights, "Panel": opened.hash,
        "Source": opened.source,
        "Periods": ", ".join(folds),
        "Test": f"{part.dates[0]} to {part.dates[-1]}",
        "Trained on": "; ".join(f"{period}: {' to '.join(fold.record['split']['train'])}"
                                for period, fold in folds.items()),
        **panel_identity(part), **scores_identity(storage, folds),
    }  # fmt: skip
    missing = [period for period in test_periods["period"] if period not in folds]
    notes = known_limits(done.results, part)
    notes.append("One seed; each period has a model of its own, trained on what came before.")
    if missing:
        notes.append(f"Missing periods: {', '.join(missing)}; such days are held in cash.")
    nothing = pl.DataFrame()
    data = report_data(
        "ATFT-GAT-FAN: walk-forward", identity_shown, storage, part, done,
        [check_row(POOLED, outcome) for outcome in outcomes], notes, nothing, nothing,
    )  # fmt: skip
    path = storage.reports / f"{identity['run_id']}.html"
    write_text_atomically(path, render_report(data))
    for outcome in outcomes:
        yield outcome.result(POOLED)
    metadata = result_metadata(done.results, path) | {
        "periods": len(folds), "missing_periods": ", ".join(missing) or "none",
    }  # fmt: skip
    yield dg.Output(table, metadata=metadata)


def stored_folds(storage: Storage) -> dict[str, FoldEvidence]:
    """Every stored period with its baselines, its run record and the hash of its weights.

    Raises:
        InputError: nothing stored, or a period whose run or baselines are gone.
    """
    from atft_model.training.checkpoint import load_weights, weights_hash

    scores, baselines = storage.read_parts(ROLLING), storage.read_parts(BASELINES)
    if not scores:
        raise InputError(
            "rolling_model: no period has scores; run its partitions, or make walk-forward"
        )
    folds = {}
    for period, frame in scores.items():
        runs = frame["run_id"].unique().to_list()
        folder = storage.folds / runs[0]
        if len(runs) != 1 or period not in baselines or not (folder / "run.json").exists():
            raise InputError(
                f"rolling_model: the scores of {period} lack their run in {storage.folds} or "
                "their baselines; run the period again"
            )
        record = json.loads((folder / "run.json").read_text())
        found = weights_hash(load_weights(folder / "best.pt"))
        folds[period] = FoldEvidence(frame, baselines[period], record, found)
    return folds


def scores_identity(storage: Storage, folds: Mapping[str, FoldEvidence]) -> dict[str, str]:
    """What the periods' scores are made of; period by period where they differ."""
    found = {period: score_identity(storage.folds / fold.record["run_id"])
             for period, fold in folds.items()}  # fmt: skip
    identity = {}
    for name in next(iter(found.values())):
        words = {period: each[name] for period, each in found.items()}
        same = len(set(words.values())) == 1
        identity[name] = (
            next(iter(words.values())) if same
            else "; ".join(f"{period}: {text}" for period, text in words.items())
        )  # fmt: skip
    return identity


def pooled_scores(folds: Mapping[str, FoldEvidence]) -> pl.DataFrame:
    """The scores of all periods, their quantiles in the units of the demeaned return.

    Each run divided its targets by a standard deviation of its own; ranks do not see that, the
    coverage of the quantiles does.
    """
    frames = []
    for fold in folds.values():
        scales = target_scales(fold.record)
        factor = pl.col("horizon").replace_strict(scales, return_dtype=pl.Float64)
        frames.append(fold.scores.with_columns(pl.col("score", "^q\\d\\d$") * factor))
    return pl.concat(frames)


def pooled_part(
    panel: Panel, folds: Mapping[str, FoldEvidence], config: EvaluationConfig,
    prices: pl.DataFrame, trials: int,
) -> TestPart:  # fmt: skip
    """The test dates of all periods; on a day of a missing period nothing can be held."""
    days = pl.concat([fold.scores["date"] for fold in folds.values()]).unique().sort().to_list()
    position = {day: place for place, day in enumerate(panel.dates)}
    first = min(panel_of_record(fold)[0] for fold in folds.values())
    last = max(panel_of_record(fold)[1] for fold in folds.values())
    split = Split(train=(0, 0), validation=(0, 0), test=(first, last))
    part = cut_test_part(replace(panel, split=split), config, market_facts(prices, panel), trials)
    scored = np.zeros(len(panel.dates), dtype=bool)
    scored[[position[day] for day in days]] = True
    return replace(part, tradable=part.tradable & scored[part.days, None])


def panel_of_record(fold: FoldEvidence) -> tuple[int, int]:
    """The positions of a fold's test dates, as its run recorded them."""
    first, last = fold.record["fold"]["test"]
    return first, last


ASSETS = [test_periods, rolling_model, walk_forward_evaluation]
