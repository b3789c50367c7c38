"""Predictions, baselines and their evaluation, recomputed from checkpoint and panel."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.baselines import baseline_scores, shuffled_within_date
from atft_model.breakdowns import Row, breakdown_rows, coverage_rows
from atft_model.controls import ShuffledControl, band_of, random_rank_ics, shuffled_control
from atft_model.data.artifacts import write_text_atomically
from atft_model.data.panel import Panel, read_panel
from atft_model.evaluation import (
    HEADLINE_HORIZON,
    MODEL,
    EvaluationConfig,
    ScorerResult,
    TestPart,
    cut_test_part,
    evaluate_all,
    portfolio,
)
from atft_model.metrics.inference import sharpe
from atft_model.metrics.portfolio import long_short_weights
from atft_model.metrics.rank_ic import rank_ic
from atft_model.training.health_record import read_health
from atft_pipeline.assets import core, features, graph, model, raw, structure
from atft_pipeline.assets.importance import importance_of, store_importance
from atft_pipeline.assets.model import epochs_table, gradients_table
from atft_pipeline.checks.evaluation import (
    SkillGates,
    evaluation_path_equals_training_path,
    evidence_matches_checkpoint,
    metrics_not_identical_to_previous_run,
    rank_ic_above_baselines,
    rank_ic_positive,
    sharpe_above_threshold,
    sharpe_significant,
    shuffled_control_finds_nothing,
)
from atft_pipeline.checks.outcome import Outcome, spec
from atft_pipeline.checks.record import write_verdicts
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.processes import run_model_process
from atft_pipeline.report.html import (
    CheckRow,
    ReportData,
    StructureSection,
    Verdict,
    render_report,
)
from atft_pipeline.report.plots import figure_to_png_data_uri, plot_cumulative_return, plot_scorers
from atft_pipeline.storage import Storage, write_parquet
from atft_pipeline.transforms.boosted_trees import boosted_trees
from atft_pipeline.transforms.market_facts import market_facts, on_panel

CONTROL_SCORES = "random_graph_predictions"
"""Table of the test dates' scores by the same checkpoint with a random graph."""
TEST_SCORES = "test_scores"
"""In a run's folder: its scores of test dates, by which a later run is compared with it."""
RANDOM = "random"
SKILL = ("sharpe_above_threshold", "sharpe_significant", "rank_ic_positive",
         "rank_ic_above_baselines")  # fmt: skip
ORACLE, SHUFFLED = "oracle", "shuffled_model"
BY_HORIZON = ("ridge", "random", "lightgbm")
"""Baselines that differ by horizon; the others give one score for all."""
RIVALS = ("reversal_1d", "reversal_5d", "momentum_12_1", "low_volatility_60d", "ridge", "lightgbm")
"""Baselines that the model has to beat; the random graph and the oracle are no rivals."""
CONFIG = {
    "portfolio": dg.Field(dg.Shape(fields_of(EvaluationConfig)), is_required=False),
    "gates": dg.Field(dg.Shape(fields_of(SkillGates)), is_required=False),
}


@dg.asset(
    group_name="evaluation", kinds={"pytorch", "parquet"}, pool="gpu", config_schema={},
    description="Scores of validation and test dates by the model in use, from its checkpoint; "
                "and of test dates with a random graph and with others, as controls.",
)  # fmt: skip
@plain_failures
def predictions(
    context: dg.AssetExecutionContext, storage: Storage, trained_model: Path, panel: Path,
    stock_graph: Path,
) -> dg.Output[pl.DataFrame]:  # fmt: skip
    """Scores by the one forward path, in the model's own process."""
    folder = current_run(trained_model)
    graphs = ("--random-graph", *other_graphs(storage, read_panel(panel).hash))
    frame = scores_of_run(context, storage, folder, panel, stock_graph, graphs)
    store_importance(context, storage, folder, panel, stock_graph)
    # Beside the model's scores, not among them: who queries predictions means the model.
    is_model = pl.col("scorer") == MODEL
    storage.write_table(CONTROL_SCORES, frame.filter(~is_model))
    mine = frame.filter(is_model)
    figures = score_metadata(mine) | {f"median_std_{HEADLINE_HORIZON}d": median_std(mine)}
    # An op that uses Pipes has to hand over events.
    return dg.Output(mine, metadata=figures)


def score_metadata(frame: pl.DataFrame) -> dict[str, int]:
    """How much was scored, for the UI to plot."""
    known = frame.filter(pl.col("score").is_finite())
    return {"dates": known["date"].n_unique(), "stocks": known["code"].n_unique(),
            "scorers": known["scorer"].n_unique()}  # fmt: skip


def median_std(frame: pl.DataFrame) -> float | None:
    """How far apart one scorer's scores of a date lie: the dates' median, headline horizon."""
    known = frame.filter(pl.col("score").is_finite(), pl.col("horizon") == HEADLINE_HORIZON)
    found = known.group_by("date").agg(pl.col("score").std())["score"].median()
    assert found is None or isinstance(found, float)
    return found


def scores_of_run(
    context: dg.AssetExecutionContext, storage: Storage, folder: Path, panel: Path, graph: Path,
    extra: tuple[str, ...] = ("--random-graph",),
) -> pl.DataFrame:  # fmt: skip
    """Scores by a run's checkpoint, made in the model's own process."""
    out = storage.root / "scratch" / f"{folder.name}-{context.run.run_id}.parquet"
    run_model_process(
        context,
        ["predict", "--run", str(folder), "--panel", str(panel), "--graph", str(graph),
         "--out", str(out), *extra],
    )  # fmt: skip
    try:
        frame = pl.read_parquet(out)
    finally:
        out.unlink(missing_ok=True)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def other_graphs(storage: Storage, panel_hash: str) -> list[str]:
    """Arguments that name the graphs beside the one in use, of the same panel."""
    arguments = []
    for kind in graph.OTHERS:
        pointer = storage.other_graph(kind) / "current.json"
        if pointer.exists():
            folder = pointer.parent / json.loads(pointer.read_text())["hash"]
            if json.loads((folder / "manifest.json").read_text())["panel_hash"] == panel_hash:
                arguments += ["--other-graph", str(folder)]
    return arguments


@dg.asset(
    group_name="evaluation", kinds={"numpy", "parquet"}, config_schema={},
    description="Scores that anyone has, on test dates; a null horizon means every horizon.",
)  # fmt: skip
@plain_failures
def baselines(context: dg.AssetExecutionContext, storage: Storage, panel: Path) -> pl.DataFrame:
    """Baselines from the panel, and the oracle where the market planted one."""
    table = baseline_table(read_panel(panel), planted_return(storage), context.log.info)
    context.add_output_metadata(score_metadata(table))
    return table


def planted_return(storage: Storage) -> pl.DataFrame | None:
    """What the market planted; None where the source planted nothing."""
    known = storage.has_table("planted_return")
    return storage.read_table("planted_return", "baselines") if known else None


def baseline_table(
    panel: Panel, planted: pl.DataFrame | None, progress: Callable[[str], None]
) -> pl.DataFrame:
    """Every baseline's scores of the panel's test dates, fitted on its training dates, as rows."""
    scores = baseline_scores(panel, lambda name: progress(f"baseline {name}"))
    progress("baseline lightgbm")
    scores["lightgbm"] = {horizon: np.where(panel.tradable, score, np.nan)
                          for horizon, score in boosted_trees(panel).items()}  # fmt: skip
    frames = [
        grid_rows(panel, name, horizon if name in BY_HORIZON else None, score)
        for name, by_horizon in scores.items()
        for horizon, score in by_horizon.items()
        if name in BY_HORIZON or horizon == panel.horizons[0]
    ]
    if planted is not None:
        frames += [
            planted.filter(pl.col("date").is_between(*panel.part_dates("test"))).select(
                panel_hash=pl.lit(panel.hash), scorer=pl.lit(ORACLE), date="date", code="code",
                horizon=pl.lit(horizon, pl.Int32), score=f"target_{horizon}d",
            )
            for horizon in panel.horizons
        ]  # fmt: skip
    return pl.concat(frames)


@dg.asset(
    group_name="evaluation", kinds={"numpy", "html"}, output_required=False, config_schema=CONFIG,
    check_specs=[
        spec("evaluation", "evidence_matches_checkpoint",
             "Scores, weights, run record and panel belong together; hashes are recomputed."),
        spec("evaluation", "evaluation_path_equals_training_path",
             "The validation rank IC of these scores is the one that training recorded."),
        spec("evaluation", "metrics_not_identical_to_previous_run",
             "Other weights than last time, yet the same figures to six digits: a copied file."),
        spec("evaluation", "shuffled_control_finds_nothing",
             "The model's scores dealt to stocks at random have no rank IC."),
        spec("evaluation", "sharpe_above_threshold", "Net Sharpe, lower bound.", kind="skill"),
        spec("evaluation", "sharpe_significant",
             "Net Sharpe beyond what the best of all trials shows by luck.", kind="skill"),
        spec("evaluation", "rank_ic_positive", "Rank IC, lower bound.", kind="skill"),
        spec("evaluation", "rank_ic_above_baselines",
             "Rank IC above every baseline's on the same dates.", kind="skill"),
    ],
    description="Every figure of the model and its controls on the test dates, and the report.",
)  # fmt: skip
@plain_failures
def evaluation(
    context: dg.AssetExecutionContext, storage: Storage, predictions: pl.DataFrame,
    baselines: pl.DataFrame, trained_model: Path, panel: Path, prices: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Verifies the evidence first, then computes, judges and reports."""
    from atft_model.run import count_trials
    from atft_model.training.checkpoint import load_weights, weights_hash

    options = context.op_execution_context.op_config
    gates = build(SkillGates, options.get("gates", {}))
    opened, folder = read_panel(panel), current_run(trained_model)
    record = json.loads((folder / "run.json").read_text())
    found = weights_hash(load_weights(folder / "best.pt"))
    scores = {"predictions": predictions,
              CONTROL_SCORES: storage.read_table(CONTROL_SCORES, "evaluation")}  # fmt: skip
    integrity = [
        evidence_matches_checkpoint(scores, baselines, record, found, opened.hash),
        evaluation_path_equals_training_path(
            validation_rank_ics(predictions, opened, folder), record
        ),
    ]
    if any(outcome.stops for outcome in integrity):
        write_verdicts(folder, "evaluation", integrity, SKILL, found)
        yield from (outcome.result("evaluation") for outcome in integrity)
        return
    config = build(EvaluationConfig, options.get("portfolio", {}))
    trials = count_trials(storage.ledger)
    part = cut_test_part(opened, config, market_facts(prices, opened), trials)
    identity = {"run_id": record["run_id"], "checkpoint_hash": found, "panel_hash": opened.hash}
    everyone = pl.concat(scores.values())
    done = evaluated(everyone, baselines, part, target_scales(record), context.log.info)
    table = figures_table(done.results, identity)
    integrity += [
        metrics_not_identical_to_previous_run(table, previous_evaluation(storage)),
        shuffled_control_finds_nothing(done.shuffled),
    ]
    if any(outcome.stops for outcome in integrity):
        storage.write_rejected("evaluation", table)
        write_verdicts(folder, "evaluation", integrity, SKILL, found)
        yield from (outcome.result("evaluation") for outcome in integrity)
        return
    beside = {
        "daily_returns": daily_table(done.results, identity),
        "rank_ic_by_date": rank_ic_table(done.results, identity),
        "evaluation_breakdowns": breakdowns_table(done.breakdowns, identity),
    }
    for name, frame in beside.items():
        storage.write_table(name, frame)
    kept = {"evaluation": table, **beside, TEST_SCORES: test_scores(predictions)}
    keep_results(folder, kept)
    outcomes = [*integrity, *skill_outcomes(done.results, gates)]
    write_verdicts(folder, "evaluation", outcomes, SKILL, found)
    report = write_report(context, storage, record, part, done, outcomes, folder)
    # Skill verdicts do not stop the evaluation: they are its result.
    for outcome in outcomes:
        yield outcome.result("evaluation")
    yield dg.Output(table, metadata=result_metadata(done.results, report))


def skill_outcomes(results: Sequence[ScorerResult], gates: SkillGates) -> list[Outcome]:
    """The verdicts on the model's skill at the headline horizon."""
    headline = headline_result(results).figures
    return [
        sharpe_above_threshold(headline, gates),
        sharpe_significant(headline, gates),
        rank_ic_positive(*headline["rank_ic"], gates),
        rank_ic_above_baselines(rivals(results), gates),
    ]


def result_metadata(results: Sequence[ScorerResult], report: Path) -> dict[str, Any]:
    """The key figures and pictures that the UI shows of an evaluation."""
    headline = headline_result(results).figures
    metadata = {
        "report": dg.MetadataValue.path(report),
        "rank_ic": headline["rank_ic"][0], "sharpe_net": headline["sharpe_net"][0],
        "deflated_sharpe": headline["deflated_sharpe"][0],
        "residual_rank_ic": headline["residual_rank_ic"][0],
        "return": _picture(plot_cumulative_return(_headline(daily_table(results, {})))),
        "scorers": _picture(plot_scorers(horizons_table(results), HEADLINE_HORIZON)),
    }  # fmt: skip
    return {key: value for key, value in metadata.items()
            if not isinstance(value, float) or np.isfinite(value)}  # fmt: skip


def test_scores(predictions: pl.DataFrame) -> pl.DataFrame:
    """The model's scores of test dates at the headline horizon, with the hash of its weights."""
    return predictions.filter(
        pl.col("part") == "test",
        pl.col("scorer") == MODEL,
        pl.col("horizon") == HEADLINE_HORIZON,
    ).select("date", "code", "score", "checkpoint_hash")


def keep_results(folder: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    """Keeps a run's own results in its folder: the tables of the data set are those of the last
    evaluation, and two runs can only be compared where both are there."""
    place = folder / "evaluation"
    place.mkdir(exist_ok=True)
    for name, frame in tables.items():
        write_parquet(frame, place / f"{name}.parquet")


@dataclass(frozen=True)
class Evaluated:
    """Everything that was computed on the test dates.

    Attributes:
        results: Of every scorer and horizon.
        shuffled: The shuffled control by horizon.
        breakdowns: Rows of the model.
    """

    results: list[ScorerResult]
    shuffled: dict[int, ShuffledControl]
    breakdowns: list[Row]


def evaluated(
    predictions: pl.DataFrame, baselines: pl.DataFrame, part: TestPart,
    scales: Mapping[int, float], progress: Callable[[str], None],
) -> Evaluated:  # fmt: skip
    """Model and controls, the bands of luck, and where the model's rank IC comes from.

    Args:
        scales: By horizon, what the targets were divided by to give the units of the quantiles.
    """
    panel, config = part.panel, part.config
    progress("model and controls")
    results = evaluate_all(all_scores(predictions, baselines, panel), part)
    progress(f"{config.random_draws} random scores, {config.shuffles} deals of the model's")
    results = [
        replace(r, figures=r.figures | random_band(r.horizon, part)) if r.scorer == RANDOM else r
        for r in results
    ]
    of_test = predictions.filter(pl.col("part") == "test", pl.col("scorer") == MODEL)
    shuffled, rows = {}, []
    for horizon in panel.horizons:
        mine = of_test.filter(pl.col("horizon") == horizon)
        score = on_panel(mine, "score", panel)
        target, inside = part.target(horizon), score[part.days]
        shuffled[horizon] = shuffled_control(
            inside, target, part.valid(inside, target), config.shuffles, config.min_stocks
        )
        result = next(r for r in results if r.scorer == MODEL and r.horizon == horizon)
        rows += breakdown_rows(result, score, part)
        names = sorted(name for name in mine.columns if re.fullmatch(r"q\d\d", name))
        levels = [int(name[1:]) / 100 for name in names]
        quantiles = np.stack([on_panel(mine, name, panel)[part.days] for name in names], axis=-1)
        rows += coverage_rows(horizon, quantiles, levels, scales[horizon], part)
    return Evaluated(results, shuffled, rows)


def target_scales(record: Mapping[str, Any]) -> dict[int, float]:
    """By horizon, the standard deviation that the run divided its demeaned targets by."""
    return dict(zip(record["horizons"], record["target_scale"]["demeaned_std"], strict=True))


def random_band(horizon: int, part: TestPart) -> dict[str, tuple[float, float, int]]:
    """Where 95 % of random scores end: rank IC, and at the headline horizon net Sharpe."""
    config = part.config
    draws = random_rank_ics(part.target(horizon), part.tradable, config.random_draws,
                            config.min_stocks)  # fmt: skip
    bands = {"rank_ic": band_of(draws)}
    if horizon == HEADLINE_HORIZON:
        bands["sharpe_net"] = band_of(random_sharpes(horizon, part, config.random_draws))
    nan = float("nan")
    return {
        f"{name}_band_{end}": (getattr(band, end), nan, band.draws)
        for name, band in bands.items()
        for end in ("low", "high")
    }


def random_sharpes(horizon: int, part: TestPart, draws: int, seed: int = 1337) -> np.ndarray:
    """Net Sharpe of the decile portfolios of ``draws`` random scores."""
    rng = np.random.default_rng(seed)
    config, found = part.config, np.empty(draws)
    for draw in range(draws):
        noise = rng.random(part.tradable.shape)
        weights = long_short_weights(noise, part.tradable, config.quantile, config.min_stocks)
        returns = portfolio(weights, horizon, part)
        found[draw] = sharpe(returns.net, returns.dates).value
    return found


def validation_rank_ics(predictions: pl.DataFrame, panel: Panel, folder: Path) -> dict[int, float]:
    """Mean rank IC of the stored scores on validation dates by horizon, as training computes it."""
    smallest = json.loads((folder / "config.json").read_text())["training"]["min_stocks"]
    rows = predictions.filter(pl.col("part") == "validation", pl.col("scorer") == MODEL)
    days = slice(*panel.split.validation)
    found = {}
    for index, horizon in enumerate(panel.horizons):
        score = on_panel(rows.filter(pl.col("horizon") == horizon), "score", panel)[days]
        target = np.asarray(panel.targets[days, :, index], dtype=np.float64)
        by_date = rank_ic(score, target, np.isfinite(score) & np.isfinite(target), smallest)
        known = by_date[np.isfinite(by_date)]
        found[horizon] = float(known.mean()) if known.size else float("nan")
    return found


def previous_evaluation(storage: Storage) -> pl.DataFrame | None:
    """The figures of the evaluation before this one; None where there is none."""
    return (
        storage.read_table("evaluation", "evaluation") if storage.has_table("evaluation") else None
    )


def rivals(results: Iterable[ScorerResult]) -> dict[str, tuple[float, float, int]]:
    """How far the model's rank IC is ahead of each rival at the headline horizon."""
    return {r.scorer: r.figures["rank_ic_behind_model"] for r in results
            if r.scorer in RIVALS and r.horizon == HEADLINE_HORIZON}  # fmt: skip


def current_run(models: Path) -> Path:
    """The folder of the model in use."""
    return models / json.loads((models / "current.json").read_text())["hash"]


def grid_rows(panel: Panel, scorer: str, horizon: int | None, score: np.ndarray) -> pl.DataFrame:
    """Test dates of a score grid as rows; unscored stocks have none."""
    test = slice(*panel.split.test)
    days, stocks = np.nonzero(np.isfinite(score[test]))
    return pl.DataFrame(
        {
            "date": pl.Series(panel.dates[test], dtype=pl.Date)[days],
            "code": pl.Series(panel.codes)[stocks],
            "score": score[test][days, stocks],
        }
    ).select(
        panel_hash=pl.lit(panel.hash), scorer=pl.lit(scorer), date="date", code="code",
        horizon=pl.lit(horizon, pl.Int32), score=pl.col("score").cast(pl.Float64),
    )  # fmt: skip


def all_scores(
    predictions: pl.DataFrame, baselines: pl.DataFrame, panel: Panel
) -> Iterable[tuple[str, int, np.ndarray]]:
    """(scorer, horizon, grid) of the model, its shuffled self, its other graph, every baseline."""
    of_test = predictions.filter(pl.col("part") == "test")
    for horizon in panel.horizons:
        rows = of_test.filter(pl.col("horizon") == horizon)
        grid = on_panel(rows.filter(pl.col("scorer") == MODEL), "score", panel)
        yield MODEL, horizon, grid
        yield SHUFFLED, horizon, shuffled_within_date(grid, seed=horizon)
        for scorer in rows["scorer"].unique().sort():
            if scorer != MODEL:
                mine = rows.filter(pl.col("scorer") == scorer)
                yield scorer, horizon, on_panel(mine, "score", panel)
    for scorer in baselines["scorer"].unique(maintain_order=True):
        mine = baselines.filter(pl.col("scorer") == scorer)
        for horizon in panel.horizons:
            chosen = pl.col("horizon").is_null() | (pl.col("horizon") == horizon)
            yield scorer, horizon, on_panel(mine.filter(chosen), "score", panel)


def graphs_table(
    results: Iterable[ScorerResult], trained_on: str
) -> list[tuple[str, float, float, float, float]]:
    """The same weights with every graph of stocks, at the headline horizon: the graph's name, rank
    IC and its error, and how far the model in use is ahead, with the error of the difference."""
    rows = []
    for result in results:
        other = re.fullmatch(rf"{MODEL}_(\w+)_graph", result.scorer)
        if result.horizon != HEADLINE_HORIZON or not (other or result.scorer == MODEL):
            continue
        name = other[1] if other else f"{trained_on} (trained on it)"
        gap = result.figures.get("rank_ic_behind_model", _UNKNOWN)
        rows.append((name, *result.figures["rank_ic"][:2], *gap[:2]))
    return rows


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
    plain = ("icir", "hit_rate", "sharpe_gross", "turnover", "max_drawdown", "breakeven_cost_bp",
             "rank_ic_low", "rank_ic_high", "sharpe_net_low", "sharpe_net_high", "sharpe_lag",
             "deflated_sharpe", "probabilistic_sharpe", "sharpe_by_luck", "trials", "capacity",
             "rank_ic_detectable", "sharpe_detectable")  # fmt: skip
    optional = ("rank_weighted_sharpe_net", "top_sharpe_net", "top_excess_sharpe",
                "rank_ic_band_low", "rank_ic_band_high", "sharpe_net_band_low",
                "sharpe_net_band_high")  # fmt: skip
    rows = []
    for r in results:
        figures = r.figures
        ic, ic_error, dates = figures["rank_ic"]
        residual, residual_error, _ = figures["residual_rank_ic"]
        best = oracle.get(r.horizon)
        rows.append({
            "scorer": r.scorer, "horizon": r.horizon, "rank_ic": ic, "rank_ic_se": ic_error,
            "rank_ic_t": _t(ic, ic_error), "residual_rank_ic": residual,
            "residual_rank_ic_t": _t(residual, residual_error),
            "oracle_share": ic / best if best and r.scorer != ORACLE else None,
            "sharpe_net": figures["sharpe_net"][0], "sharpe_se": figures["sharpe_net"][1],
            "n_dates": dates,
            "rank_ic_gap_t": _t(*figures.get("rank_ic_behind_model", _UNKNOWN)[:2]),
            "sharpe_gap_t": _t(*figures.get("sharpe_net_behind_model", _UNKNOWN)[:2]),
            **{name: figures[name][0] for name in plain},
            **{name: figures.get(name, _UNKNOWN)[0] for name in optional},
        })  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


_UNKNOWN = (float("nan"), float("nan"), 0)


def _t(value: float, error: float) -> float:
    return value / error if error else float("nan")


def breakdowns_table(rows: Iterable[Row], identity: dict[str, str]) -> pl.DataFrame:
    """Rows of the model's breakdowns with the identity of what they were computed from."""
    return pl.DataFrame([{**identity, **asdict(row)} for row in rows]).with_columns(
        pl.col("horizon").cast(pl.Int32)
    )


def deciles_table(results: Iterable[ScorerResult]) -> pl.DataFrame:
    """Mean demeaned forward return of the model's score deciles."""
    return pl.concat(
        pl.DataFrame({"horizon": [r.horizon] * 10, "decile": range(1, 11),
                      "mean_return": r.decile_mean, "standard_error": r.decile_error})
        for r in results
        if r.scorer == MODEL
    )  # fmt: skip


def write_report(
    context: dg.AssetExecutionContext, storage: Storage, record: dict[str, Any], part: TestPart,
    done: Evaluated, outcomes: list[Outcome], folder: Path,
) -> Path:  # fmt: skip
    """The HTML report of this evaluation; the checks shown are the latest of every asset."""
    health = pl.DataFrame(pl.from_arrow(read_health(folder / "health")))
    panel = part.panel
    identity = {
        "Run": record["run_id"], "Weights": record["checkpoint_hash"], "Panel": panel.hash,
        "Source": panel.source,
        **{name.capitalize(): f"{panel.part_dates(name)[0]} to {panel.part_dates(name)[1]}"
           for name in panel.split.parts()},
        **panel_identity(part), **score_identity(folder), "Seed": str(record["seed"]),
        "Parameters": f"{record['parameters']:,}", "Device": record["device"],
        "Training": f"{record['epochs']} epochs, {record['seconds']:.0f} s",
        "torch": record["versions"]["torch"],
    }  # fmt: skip
    data = report_data(
        "ATFT-GAT-FAN: evaluation", identity, storage, part, done,
        [*recorded_checks(context), *(check_row("evaluation", o) for o in outcomes)],
        [*known_limits(done.results, part), "One split, one seed: see walk_forward_evaluation."],
        epochs_table(record), gradients_table(health),
        structure.report_section(
            storage, record["graph"], graphs_table(done.results, record["graph"])
        ),
    )  # fmt: skip
    path = storage.reports / f"{record['run_id']}.html"
    importance = importance_of(storage, record["run_id"], record["checkpoint_hash"])
    write_text_atomically(path, render_report(replace(data, importance=importance)))
    return path


def panel_identity(part: TestPart) -> dict[str, str]:
    """Sizes, trials and trading rules, as the report's identity shows them."""
    tradable = np.median(part.tradable.sum(axis=1))
    return {
        "Stocks": f"{len(part.panel.codes):,}, median {tradable:.0f} tradable on test dates",
        "Features": str(len(part.panel.feature_names)),
        "Trials on record": str(part.trials), "Traded": trading_rules(part.config),
    }  # fmt: skip


def score_identity(folder: Path) -> dict[str, str]:
    """What a run's score is made of, network and regression, and which returns it learned from."""
    config = json.loads((folder / "config.json").read_text())
    days = config["model"].get("linear_days")
    linear = "" if days is None else (
        f", and a linear regression's weighed by the horizon over {days:g} days"
    )  # fmt: skip
    return {
        "Score": f"the network's{linear}",
        "Learned to rank": f"returns relative to their {_relative_to(folder, config)}",
    }


def _relative_to(folder: Path, config: Mapping[str, Any]) -> str:
    if config["loss"].get("rank_relative_to", "date") == "date":
        return "date"
    share = json.loads((folder / "run.json").read_text())["relative_to_sector"]
    if not share:
        return "date: no sector is known, or none has enough stocks"
    return f"sector ({100 * share:.0f} %, others to their date)" if share < 1 else "sector"


def report_data(
    title: str, identity: dict[str, str], storage: Storage, part: TestPart, done: Evaluated,
    checks: list[CheckRow], notes: list[str], epochs: pl.DataFrame, gradients: pl.DataFrame,
    learned: StructureSection | None = None,
) -> ReportData:  # fmt: skip
    """Everything that a report shows, of one split or of a walk-forward."""
    failed = tuple(f"{row.name}: {row.figure}" for row in checks
                   if not row.passed and row.severity == "ERROR")  # fmt: skip
    quarantine = storage.read_table("quarantine", "evaluation")
    gaps = storage.read_table("source_gaps", "evaluation")
    return ReportData(
        title=title, identity=identity,
        verdict=Verdict(not failed, failed or ("every check holds",)),
        checks=checks, horizons=horizons_table(done.results),
        daily=_headline(daily_table(done.results, {})),
        rank_ic_by_date=rank_ic_table(done.results, {}), deciles=deciles_table(done.results),
        epochs=epochs, gradients=gradients,
        quarantine=quarantine.group_by("reason").len("rows").sort("reason"),
        missing=dict(gaps.iter_rows()), breakdowns=breakdowns_table(done.breakdowns, {}),
        notes=notes, structure=learned,
    )  # fmt: skip


def trading_rules(config: EvaluationConfig) -> str:
    """Entry and costs in words."""
    parts = [f"entry and exit at the {config.entry}", f"{config.cost_bp:g} bp one way"]
    if config.borrow_bp:
        parts.append(f"{config.borrow_bp:g} bp a year to borrow")
    if config.capital:
        parts.append(f"impact on {config.capital:,.0f} of capital")
    if config.neutral_to:
        parts.append(f"neutral to {', '.join(config.neutral_to)}")
    return ", ".join(parts)


def known_limits(results: Iterable[ScorerResult], part: TestPart) -> list[str]:
    """What this evaluation cannot show, from its own figures and settings."""
    config, figures = part.config, headline_result(results).figures
    days, dates = figures["sharpe_net"][2], figures["rank_ic"][2]
    costs = f"Costs are {config.cost_bp:g} bp one way"
    costs += (
        f", {config.borrow_bp:g} bp a year to borrow" if config.borrow_bp else "; borrowing is free"
    )
    costs += "; impact is charged." if config.capital else "; there is no market impact."
    notes = [
        f"Power: {dates} dates show a rank IC of {figures['rank_ic_detectable'][0]:.3f} or more, "
        f"and {days} days a net Sharpe of {figures['sharpe_detectable'][0]:.1f} or more, four "
        "times out of five. About smaller effects this evaluation says nothing.",
        costs,
    ]
    if part.trials > 1:
        notes.append(
            f"{part.trials} trials are on record and count as independent, with the spread of "
            "strategies without skill; trials on other data sets and by other people do not count."
        )
    if not config.delisting_return:
        notes.append("A position in a stock that leaves the market is paid at its last price.")
    if part.rules.can_buy is None:
        notes.append("The source does not say on which days a price was at its limit.")
    if "size" in part.factors:
        notes.append("Size is the traded value, not the market capitalisation.")
    return notes


def recorded_checks(context: dg.AssetExecutionContext) -> list[CheckRow]:
    """The newest verdict of every check of the other assets, from the instance."""
    rows = []
    upstream = (*raw.ASSETS, *core.ASSETS, *features.ASSETS, *structure.ASSETS, *graph.ASSETS,
                *model.ASSETS)  # fmt: skip
    kinds = {check.key: (check.metadata or {})["kind"]
             for asset in upstream for check in asset.check_specs}  # fmt: skip
    keys = list(kinds)
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
            severity=evaluated.severity.value, kind=kinds[key],
            figure=str(metadata["figure"].value), threshold=str(metadata["threshold"].value),
        ))  # fmt: skip
    return rows


def check_row(asset: str, outcome: Outcome) -> CheckRow:
    """A verdict as the report's check table shows it."""
    kind = "skill" if outcome.name in SKILL else "integrity"
    return CheckRow(asset, outcome.name, outcome.passed, outcome.severity, kind,
                    outcome.figure, outcome.threshold)  # fmt: skip


def _headline(daily: pl.DataFrame) -> pl.DataFrame:
    return daily.filter(pl.col("horizon") == HEADLINE_HORIZON)


def _picture(figure: Any) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![figure]({figure_to_png_data_uri(figure)})")


ASSETS = [predictions, baselines, evaluation]
