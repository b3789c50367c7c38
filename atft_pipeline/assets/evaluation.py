"""Predictions, baselines and their evaluation, recomputed from checkpoint and panel."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.baselines import baseline_scores, shuffled_within_date
from atft_model.data.artifacts import write_text_atomically
from atft_model.data.panel import Panel, read_panel
from atft_model.evaluation import (
    HEADLINE_HORIZON,
    EvaluationConfig,
    ScorerResult,
    dates_of_test,
    evaluate_all,
)
from atft_model.training.health_record import read_health
from atft_pipeline.assets import core, features, graph, model, raw
from atft_pipeline.assets.model import epochs_table, gradients_table
from atft_pipeline.checks.evaluation import (
    SkillGates,
    evidence_matches_checkpoint,
    rank_ic_positive,
    sharpe_above_threshold,
)
from atft_pipeline.checks.outcome import Outcome, spec
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.processes import run_model_process
from atft_pipeline.report.html import CheckRow, ReportData, Verdict, render_report
from atft_pipeline.report.plots import figure_to_png_data_uri, plot_cumulative_return, plot_scorers
from atft_pipeline.storage import Storage

MODEL, ORACLE, SHUFFLED = "model", "oracle", "shuffled_model"
CONFIG = {
    "portfolio": dg.Field(dg.Shape(fields_of(EvaluationConfig)), is_required=False),
    "gates": dg.Field(dg.Shape(fields_of(SkillGates)), is_required=False),
}


@dg.asset(
    group_name="evaluation", kinds={"pytorch", "parquet"}, pool="gpu", config_schema={},
    description="Scores of validation and test dates by the model in use, from its checkpoint.",
)  # fmt: skip
@plain_failures
def predictions(
    context: dg.AssetExecutionContext, storage: Storage, trained_model: Path, panel: Path,
    stock_graph: Path,
) -> dg.Output[pl.DataFrame]:  # fmt: skip
    """Scores by the one forward path, in the model's own process."""
    folder = current_run(trained_model)
    out = storage.root / "scratch" / f"predictions-{context.run.run_id}.parquet"
    run_model_process(
        context,
        ["predict", "--run", str(folder), "--panel", str(panel), "--graph", str(stock_graph),
         "--out", str(out)],
    )  # fmt: skip
    try:
        frame = pl.read_parquet(out)
    finally:
        out.unlink(missing_ok=True)
    # An op that uses Pipes has to hand over events.
    return dg.Output(frame.with_columns(pl.col(pl.Categorical).cast(pl.String)))


@dg.asset(
    group_name="evaluation", kinds={"numpy", "parquet"}, config_schema={},
    description="Scores that anyone has, on test dates; a null horizon means every horizon.",
)  # fmt: skip
@plain_failures
def baselines(context: dg.AssetExecutionContext, storage: Storage, panel: Path) -> pl.DataFrame:
    """Baselines from the panel, and the oracle where the market planted one."""
    opened = read_panel(panel)
    scores = baseline_scores(opened, lambda name: context.log.info(f"baseline {name}"))
    frames = [
        grid_rows(opened, name, None if name not in ("ridge", "random") else horizon, score)
        for name, by_horizon in scores.items()
        for horizon, score in by_horizon.items()
        if name in ("ridge", "random") or horizon == opened.horizons[0]
    ]
    if storage.has_table("planted_return"):
        planted = storage.read_table("planted_return", "baselines")
        frames += [
            planted.filter(pl.col("date") >= opened.dates[opened.split.test[0]]).select(
                panel_hash=pl.lit(opened.hash), scorer=pl.lit(ORACLE), date="date", code="code",
                horizon=pl.lit(horizon, pl.Int32), score=f"target_{horizon}d",
            )
            for horizon in opened.horizons
        ]  # fmt: skip
    return pl.concat(frames)


@dg.asset(
    group_name="evaluation", kinds={"numpy", "html"}, output_required=False, config_schema=CONFIG,
    check_specs=[
        spec("evaluation", "evidence_matches_checkpoint",
             "Scores, weights, run record and panel belong together; hashes are recomputed."),
        spec("evaluation", "sharpe_above_threshold", "Net Sharpe, lower bound.", kind="skill"),
        spec("evaluation", "rank_ic_positive", "Rank IC, lower bound.", kind="skill"),
    ],
    description="Every figure of the model and its controls on the test dates, and the report.",
)  # fmt: skip
@plain_failures
def evaluation(
    context: dg.AssetExecutionContext, storage: Storage, predictions: pl.DataFrame,
    baselines: pl.DataFrame, trained_model: Path, panel: Path,
) -> Iterator[Any]:  # fmt: skip
    """Verifies the evidence first, then computes, judges and reports."""
    from atft_model.training.checkpoint import load_weights, weights_hash

    options = context.op_execution_context.op_config
    gates = build(SkillGates, options.get("gates", {}))
    opened, folder = read_panel(panel), current_run(trained_model)
    record = json.loads((folder / "run.json").read_text())
    found = weights_hash(load_weights(folder / "best.pt"))
    evidence = evidence_matches_checkpoint(predictions, baselines, record, found, opened.hash)
    if evidence.stops:
        yield evidence.result("evaluation")
        return
    config = build(EvaluationConfig, options.get("portfolio", {}))
    results = evaluate_all(all_scores(predictions, baselines, opened), opened, config)
    identity = {"run_id": record["run_id"], "checkpoint_hash": found, "panel_hash": opened.hash}
    table = figures_table(results, identity)
    storage.write_table("daily_returns", daily_table(results, identity))
    storage.write_table("rank_ic_by_date", rank_ic_table(results, identity))
    headline = headline_result(results).figures
    outcomes = [
        evidence,
        sharpe_above_threshold(*headline["sharpe_net"], gates),
        rank_ic_positive(*headline["rank_ic"], gates),
    ]
    report = write_report(context, storage, record, opened, results, outcomes, folder)
    horizons, daily = horizons_table(results), daily_table(results, identity)
    metadata = {
        "report": dg.MetadataValue.path(report),
        "rank_ic": headline["rank_ic"][0], "sharpe_net": headline["sharpe_net"][0],
        "return": _picture(plot_cumulative_return(_headline(daily))),
        "scorers": _picture(plot_scorers(horizons, HEADLINE_HORIZON)),
    }  # fmt: skip
    finite = {key: value for key, value in metadata.items()
              if not isinstance(value, float) or np.isfinite(value)}  # fmt: skip
    # Skill verdicts do not stop the evaluation: they are its result.
    for outcome in outcomes:
        yield outcome.result("evaluation")
    yield dg.Output(table, metadata=finite)


def current_run(models: Path) -> Path:
    """The folder of the model in use."""
    return models / json.loads((models / "current.json").read_text())["hash"]


def grid_rows(panel: Panel, scorer: str, horizon: int | None, score: np.ndarray) -> pl.DataFrame:
    """Test dates of a score grid as rows; unscored stocks have none."""
    first = panel.split.test[0]
    days, stocks = np.nonzero(np.isfinite(score[first:]))
    return pl.DataFrame(
        {
            "date": pl.Series(panel.dates[first:], dtype=pl.Date)[days],
            "code": pl.Series(panel.codes)[stocks],
            "score": score[first:][days, stocks],
        }
    ).select(
        panel_hash=pl.lit(panel.hash), scorer=pl.lit(scorer), date="date", code="code",
        horizon=pl.lit(horizon, pl.Int32), score=pl.col("score").cast(pl.Float64),
    )  # fmt: skip


def all_scores(
    predictions: pl.DataFrame, baselines: pl.DataFrame, panel: Panel
) -> Iterable[tuple[str, int, np.ndarray]]:
    """(scorer, horizon, grid) of the model, its shuffled self and every baseline."""
    for horizon in panel.horizons:
        rows = predictions.filter(pl.col("part") == "test", pl.col("horizon") == horizon)
        grid = _grid(rows, panel)
        yield MODEL, horizon, grid
        yield SHUFFLED, horizon, shuffled_within_date(grid, seed=horizon)
    for scorer in baselines["scorer"].unique(maintain_order=True):
        mine = baselines.filter(pl.col("scorer") == scorer)
        for horizon in panel.horizons:
            chosen = pl.col("horizon").is_null() | (pl.col("horizon") == horizon)
            yield scorer, horizon, _grid(mine.filter(chosen), panel)


def _grid(rows: pl.DataFrame, panel: Panel) -> np.ndarray:
    dates = pl.DataFrame({"date": pl.Series(panel.dates, dtype=pl.Date)}).with_row_index("row")
    codes = pl.DataFrame({"code": panel.codes}).with_row_index("column")
    placed = rows.join(dates, on="date").join(codes, on="code")
    grid = np.full((len(panel.dates), len(panel.codes)), np.nan)
    grid[placed["row"].to_numpy(), placed["column"].to_numpy()] = placed["score"].to_numpy()
    return grid


def headline_result(results: Iterable[ScorerResult]) -> ScorerResult:
    """The model at the headline horizon."""
    return next(r for r in results if r.scorer == MODEL and r.horizon == HEADLINE_HORIZON)


def figures_table(results: Iterable[ScorerResult], identity: dict[str, str]) -> pl.DataFrame:
    """One row per figure, each with the identity of what it was computed from."""
    rows = [
        {**identity, "scorer": r.scorer, "horizon": r.horizon, "metric": metric, "value": value,
         "standard_error": error, "dates": dates}
        for r in results
        for metric, (value, error, dates) in r.figures.items()
    ]  # fmt: skip
    return pl.DataFrame(rows).with_columns(pl.col("horizon").cast(pl.Int32))


def daily_table(results: Iterable[ScorerResult], identity: dict[str, str]) -> pl.DataFrame:
    """Daily portfolio returns of every scorer and horizon."""
    return pl.concat(
        pl.DataFrame({"date": r.returns.dates, "gross": r.returns.gross, "cost": r.returns.cost,
                      "net": r.returns.net, "turnover": r.returns.turnover}).select(
            *(pl.lit(value).alias(name) for name, value in identity.items()),
            scorer=pl.lit(r.scorer), horizon=pl.lit(r.horizon, pl.Int32),
            date=pl.col("date").cast(pl.Date), gross="gross", cost="cost", net="net",
            turnover="turnover")
        for r in results
    )  # fmt: skip


def rank_ic_table(results: Iterable[ScorerResult], identity: dict[str, str]) -> pl.DataFrame:
    """Rank IC per date of every scorer and horizon."""
    return pl.concat(
        pl.DataFrame({"date": r.dates, "rank_ic": r.rank_ic}).select(
            *(pl.lit(value).alias(name) for name, value in identity.items()),
            scorer=pl.lit(r.scorer), horizon=pl.lit(r.horizon, pl.Int32),
            date=pl.col("date").cast(pl.Date), rank_ic="rank_ic")
        for r in results
    )  # fmt: skip


def horizons_table(results: Iterable[ScorerResult]) -> pl.DataFrame:
    """One row per (scorer, horizon), as the report shows it."""
    results = list(results)
    oracle = {r.horizon: r.figures["rank_ic"][0] for r in results if r.scorer == ORACLE}
    rows = []
    for r in results:
        value = {name: figure[0] for name, figure in r.figures.items()}
        ic, ic_error, dates = r.figures["rank_ic"]
        best = oracle.get(r.horizon)
        rows.append({
            "scorer": r.scorer, "horizon": r.horizon, "rank_ic": ic, "rank_ic_se": ic_error,
            "rank_ic_t": ic / ic_error if ic_error else float("nan"), "icir": value["icir"],
            "hit_rate": value["hit_rate"],
            "oracle_share": ic / best if best and r.scorer != ORACLE else None,
            "sharpe_net": value["sharpe_net"], "sharpe_se": r.figures["sharpe_net"][1],
            "sharpe_gross": value["sharpe_gross"], "turnover": value["turnover"],
            "max_drawdown": value["max_drawdown"],
            "breakeven_cost_bp": value["breakeven_cost_bp"], "n_dates": dates,
        })  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def deciles_table(results: Iterable[ScorerResult]) -> pl.DataFrame:
    """Mean demeaned forward return of the model's score deciles."""
    return pl.concat(
        pl.DataFrame({"horizon": [r.horizon] * 10, "decile": range(1, 11),
                      "mean_return": r.decile_mean, "standard_error": r.decile_error})
        for r in results
        if r.scorer == MODEL
    )  # fmt: skip


def write_report(
    context: dg.AssetExecutionContext, storage: Storage, record: dict[str, Any], panel: Panel,
    results: list[ScorerResult], outcomes: list[Outcome], folder: Path,
) -> Path:  # fmt: skip
    """The HTML report of this evaluation; the checks shown are the latest of every asset."""
    rows = [*_recorded_checks(context), *(_row("evaluation", o) for o in outcomes)]
    failed = tuple(f"{row.name}: {row.figure}" for row in rows
                   if not row.passed and row.severity == "ERROR")  # fmt: skip
    gaps = storage.read_table("source_gaps", "evaluation")
    quarantine = storage.read_table("quarantine", "evaluation")
    health = pl.DataFrame(pl.from_arrow(read_health(folder / "health")))
    dates = dates_of_test(panel)
    daily = daily_table(results, {})
    data = ReportData(
        title="ATFT-GAT-FAN: evaluation",
        identity={
            "Run": record["run_id"], "Weights": record["checkpoint_hash"], "Panel": panel.hash,
            "Source": panel.source,
            **{part.capitalize(): f"{panel.part_dates(part)[0]} to {panel.part_dates(part)[1]}"
               for part in panel.split.parts()},
            "Stocks": f"{len(panel.codes):,}, median "
                      f"{np.median(panel.tradable[dates].sum(axis=1)):.0f} tradable on test dates",
            "Features": str(len(panel.feature_names)), "Seed": str(record["seed"]),
            "Parameters": f"{record['parameters']:,}", "Device": record["device"],
            "Training": f"{record['epochs']} epochs, {record['seconds']:.0f} s",
            "Trials on record": str(len(storage.ledger.read_text().splitlines())),
            "torch": record["versions"]["torch"],
        },
        verdict=Verdict(not failed, failed or ("every check holds",)),
        checks=rows, horizons=horizons_table(results), daily=_headline(daily),
        rank_ic_by_date=rank_ic_table(results, {}), deciles=deciles_table(results),
        epochs=epochs_table(record), gradients=gradients_table(health),
        quarantine=quarantine.group_by("reason").len("rows").sort("reason"),
        missing=dict(gaps.iter_rows()),
        notes=[
            "One split, one seed: no walk-forward, and the number of trials does not yet deflate "
            "the Sharpe ratio.",
            "Costs are 10 bp one way by default; no market impact and no borrow cost.",
            "What a delisting returns beyond its last bar is not counted.",
        ],
    )  # fmt: skip
    path = storage.reports / f"{record['run_id']}.html"
    write_text_atomically(path, render_report(data))
    return path


def _recorded_checks(context: dg.AssetExecutionContext) -> list[CheckRow]:
    """The newest verdict of every check of the other assets, from the instance."""
    rows = []
    upstream = (*raw.ASSETS, *core.ASSETS, *features.ASSETS, *graph.ASSETS, *model.ASSETS)
    keys = [check.key for asset in upstream for check in asset.check_specs]
    storage = context.instance.event_log_storage
    latest = storage.get_latest_asset_check_execution_by_key(keys)
    for key in keys:
        record = latest.get(key)
        evaluated = record.evaluation if record else None
        if evaluated is None:
            continue
        metadata = evaluated.metadata
        rows.append(CheckRow(
            asset=key.asset_key.path[-1], name=key.name, passed=evaluated.passed,
            severity=evaluated.severity.value, kind="integrity",
            figure=str(metadata["figure"].value), threshold=str(metadata["threshold"].value),
        ))  # fmt: skip
    return rows


def _row(asset: str, outcome: Outcome) -> CheckRow:
    kind = "integrity" if outcome.name == "evidence_matches_checkpoint" else "skill"
    return CheckRow(asset, outcome.name, outcome.passed, outcome.severity, kind,
                    outcome.figure, outcome.threshold)  # fmt: skip


def _headline(daily: pl.DataFrame) -> pl.DataFrame:
    return daily.filter(pl.col("horizon") == HEADLINE_HORIZON)


def _picture(figure: Any) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![figure]({figure_to_png_data_uri(figure)})")


ASSETS = [predictions, baselines, evaluation]
