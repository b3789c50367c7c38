"""Pooling the periods of a walk-forward: what is judged, what is named, what is refused.

The quick tests cut the scores of one trained model into two quarters as if each had its own; the
slow one trains both through the partitioned asset.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from shown import materialized, pictures, without_size

from atft_model.data.panel import read_panel
from atft_model.evaluation import EvaluationConfig
from atft_pipeline.__main__ import (
    exit_code,
    failures,
    materialize,
    walk_forward,
    was_interrupted,
)
from atft_pipeline.assets.walk_forward import pooled_part, scores_identity, stored_folds
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage

DATA_SET = "synthetic"
QUARTERS = ("2016-Q2", "2016-Q3")
POOLED = "walk_forward_evaluation"
FEW_DRAWS = {"portfolio": {"random_draws": 4, "shuffles": 16}}


def _figure(result: dg.ExecuteInProcessResult, check: str) -> tuple[bool, str]:
    for found in result.get_asset_check_evaluations():
        if found.check_name == check:
            return found.passed, str(found.metadata["figure"].value)
    raise AssertionError(f"{check} was not evaluated")


@pytest.fixture
def folds(whole_copy) -> Path:
    """The data dir with both quarters scored: the test dates of the whole run's one model."""
    root = whole_copy / DATA_SET
    plan = pl.read_parquet(root / "test_periods.parquet")
    assert plan["period"].to_list() == list(QUARTERS)
    name = json.loads((root / "models" / "current.json").read_text())["hash"]
    scores = pl.concat(
        pl.read_parquet(root / f"{table}.parquet")
        for table in ("predictions", "random_graph_predictions")
    ).filter(pl.col("part") == "test")
    baselines = pl.read_parquet(root / "baselines.parquet")
    for row in plan.iter_rows(named=True):
        period, run_id = row["period"], f"{row['period']}-run"
        folder = Path(shutil.copytree(root / "models" / name, root / "folds" / run_id))
        record = json.loads((folder / "run.json").read_text())
        record |= {"run_id": run_id, "fold": json.loads(row["fold"])}
        (folder / "run.json").write_text(json.dumps(record))
        inside = pl.col("date").is_between(row["test_first"], row["test_last"])
        for table, frame in (
            ("rolling_model", scores.with_columns(run_id=pl.lit(run_id))),
            ("rolling_baselines", baselines),
        ):
            (root / table).mkdir(exist_ok=True)
            frame.filter(inside).write_parquet(root / table / f"{period}.parquet")
    return whole_copy


def test_pooled_scores_are_judged_by_the_same_figures(folds, run):
    """Cut in two and pooled again, the figures are those of the undivided scores."""
    result = run(POOLED, folds, walk_forward_evaluation=FEW_DRAWS)
    assert exit_code(result) == 0
    assert _figure(result, "every_period_is_scored") == (True, "2 of 2 periods; all 2")
    assert _figure(result, "folds_match_checkpoints")[0]
    root = folds / DATA_SET
    key = ["scorer", "horizon", "metric"]
    one = pl.read_parquet(root / "evaluation.parquet")
    pooled = pl.read_parquet(root / f"{POOLED}.parquet")
    # The first quarter begins before the default split's test part: those days hold nothing.
    both = one.join(pooled, on=key, suffix="_pooled").filter(
        pl.col("metric").is_in(["rank_ic", "ic", "hit_rate", "residual_rank_ic"]),
        pl.col("value").is_finite(), pl.col("scorer") != "shuffled_model",
    )  # fmt: skip
    assert both["scorer"].n_unique() > 8
    gaps = (both["value"] - both["value_pooled"]).abs()
    assert gaps.max() < 1e-12  # type: ignore[operator]
    assert set(pooled["run_id"]) != set(one["run_id"])
    breakdowns = pl.read_parquet(root / "walk_forward_breakdowns.parquet")
    cover = breakdowns.filter(pl.col("metric") == "coverage", pl.col("horizon") == 5)
    of_one = pl.read_parquet(root / "evaluation_breakdowns.parquet").filter(
        pl.col("metric") == "coverage", pl.col("horizon") == 5
    )
    assert cover["value"].to_list() == pytest.approx(of_one["value"].to_list())
    text = next((root / "reports").glob("walk-forward-*.html")).read_text()
    assert "2016-Q2, 2016-Q3" in text
    assert "<dt>Score</dt>" in text
    assert "periods_do_not_overlap" in text
    events = materialized(result)
    assert events.keys() == {POOLED}
    assert without_size(events) == set()
    assert pictures(events[POOLED])


def test_a_missing_period_is_named_and_held_in_cash(folds, run):
    root = folds / DATA_SET
    for table in ("rolling_model", "rolling_baselines"):
        (root / table / "2016-Q2.parquet").unlink()
    result = run(POOLED, folds, walk_forward_evaluation=FEW_DRAWS)
    print(
        [(c.check_name, c.metadata) for c in result.get_asset_check_evaluations() if not c.passed]
    )
    assert exit_code(result) == 0
    passed, words = _figure(result, "every_period_is_scored")
    assert not passed
    assert words.endswith("missing: 2016-Q2")
    text = next((root / "reports").glob("walk-forward-*.html")).read_text()
    assert "Missing periods: 2016-Q2" in text


def _refused(run, folds: Path, check: str) -> str:
    result = run(POOLED, folds)
    passed, words = _figure(result, check)
    assert not passed
    assert exit_code(result) == 1
    assert not (folds / DATA_SET / f"{POOLED}.parquet").exists()
    return words


def test_a_date_in_two_periods_is_refused(folds, run):
    root = folds / DATA_SET
    first = pl.read_parquet(root / "rolling_model" / "2016-Q2.parquet")
    second = pl.read_parquet(root / "rolling_model" / "2016-Q3.parquet")
    day = pl.col("date") == second["date"].min()
    twice = pl.concat([first, second.filter(day).with_columns(run_id=pl.lit(first["run_id"][0]))])
    twice.write_parquet(root / "rolling_model" / "2016-Q2.parquet")
    words = _refused(run, folds, "periods_do_not_overlap")
    assert words == "2016-Q2 and 2016-Q3 share 1 dates"


def test_periods_of_two_panels_are_refused(folds, run):
    root = folds / DATA_SET
    for path in ((root / "rolling_model" / "2016-Q2.parquet"),
                 (root / "rolling_baselines" / "2016-Q2.parquet")):  # fmt: skip
        pl.read_parquet(path).with_columns(panel_hash=pl.lit("earlier")).write_parquet(path)
    record = root / "folds" / "2016-Q2-run" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"panel_hash": "earlier"}))
    words = _refused(run, folds, "folds_match_checkpoints")
    assert words.startswith("2016-Q2: rolling_model: panel_hash is ['earlier']")


def test_scores_that_overlap_the_training_dates_are_refused(folds, run):
    record = folds / DATA_SET / "folds" / "2016-Q3-run" / "run.json"
    body = json.loads(record.read_text())
    body["split"]["validation"][1] = "2016-06-20"
    record.write_text(json.dumps(body))
    words = _refused(run, folds, "scores_are_out_of_sample")
    assert "2016-Q3: scored from 2016-07-01" in words


def test_nothing_can_be_held_on_days_without_scores(folds):
    """A hole of ten dates, as a missing period leaves between two others."""
    root = folds / DATA_SET
    panel = read_panel(root / "panel")
    storage = Storage(market=Market(), data_dir=str(folds), dataset=DATA_SET)
    known = stored_folds(storage)
    days = known["2016-Q3"].scores["date"].unique().sort()
    hole = days[5:15].to_list()
    scores = known["2016-Q3"].scores.filter(~pl.col("date").is_in(hole))
    known["2016-Q3"] = replace(known["2016-Q3"], scores=scores)
    prices = pl.read_parquet(root / "prices.parquet")
    part = pooled_part(panel, known, EvaluationConfig(), prices, 1)
    held = dict(zip(part.dates.astype("O").tolist(), part.tradable.any(axis=1), strict=True))
    assert not any(held[day] for day in hole)
    assert held[days[4]] and held[days[15]]  # noqa: PT018


def test_the_report_says_which_periods_scores_are_made_otherwise(folds):
    storage = Storage(market=Market(), data_dir=str(folds), dataset=DATA_SET)
    known = stored_folds(storage)
    alike = scores_identity(storage, known)
    assert "2016" not in "".join(alike.values())
    path = storage.folds / "2016-Q3-run" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["linear_days"] = 33.0 if config["model"]["linear_days"] is None else None
    path.write_text(json.dumps(config))
    found = scores_identity(storage, known)
    assert found["Score"].startswith(f"2016-Q2: {alike['Score']}; 2016-Q3: the network's")
    assert found["Learned to rank"] == alike["Learned to rank"]


def test_a_run_that_is_gone_is_an_error_in_words(folds, run):
    shutil.rmtree(folds / DATA_SET / "folds" / "2016-Q3-run")
    result = run(POOLED, folds)
    assert "the scores of 2016-Q3 lack their run" in failures(result)[0]


def test_a_period_that_the_plan_lacks_is_refused(whole_copy, config):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("test_period", ["1999"])
        result = materialize("key:rolling_model", config(whole_copy), instance, "1999")
    assert "no test period '1999'; expected one of 2016-Q2, 2016-Q3" in failures(result)[0]


def test_the_plan_sets_the_partitions(whole_copy, config):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("test_period", ["of another data set"])
        materialize("key:test_periods", config(whole_copy), instance)
        assert set(instance.get_dynamic_partitions("test_period")) == set(QUARTERS)


@pytest.mark.parametrize(("error", "stopped"), [(DagsterExecutionInterruptedError, True),
                                                (ValueError, False)])  # fmt: skip
def test_an_interrupt_ends_the_walk_and_a_failed_period_does_not(error, stopped):
    @dg.asset
    def period() -> None:
        raise error

    job = dg.Definitions([period]).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert was_interrupted(result) is stopped


@pytest.mark.slow
def test_every_period_trains_its_own_model(tables_copy, config, small_model):
    with dg.DagsterInstance.ephemeral() as instance:
        settings = config(tables_copy, rolling_model=small_model)
        results = list(walk_forward(settings, instance))
        assert [exit_code(result) for result in results] == [0, 0, 0, 0]
        period = materialized(results[1])
        assert period.keys() == {"rolling_model"}
        assert without_size(period) == set()
        root = tables_copy / DATA_SET
        scores = pl.read_parquet(root / "rolling_model" / "*.parquet")
        assert scores["run_id"].n_unique() == 2
        assert len(list((root / "folds").iterdir())) == 2
        assert not (root / "models").exists()
        pooled = pl.read_parquet(root / f"{POOLED}.parquet")
        assert {"model", "ridge", "lightgbm", "oracle", "model_random_graph"} <= set(
            pooled["scorer"]
        )
        again = list(walk_forward(settings, instance, keep=True))
        assert len(again) == 2  # the plan and the judgement: no period was trained again
