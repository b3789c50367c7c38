"""Past scores through the assets: kept as made, joined with what followed, judged."""

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from atft_model.errors import InputError
from atft_pipeline.__main__ import UNPARTITIONED, exit_code, failures, materialize
from atft_pipeline.assets.realized import evaluated_rank_ic, keep_past_scores
from atft_pipeline.definitions import defs
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage

DATES = 30
MADE_AT = dt.datetime(2026, 1, 5, 19, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def scored(whole, tmp_path_factory) -> tuple[Path, list[dt.date]]:
    """The project after some weeks: test dates, each scored as if it had just ended."""
    data_dir = Path(shutil.copytree(whole[0], tmp_path_factory.mktemp("scored") / "data"))
    storage = Storage(market=Market(), data_dir=str(data_dir))
    wide = (
        pl.read_parquet(storage.table_path("predictions"))
        .filter(pl.col("part") == "test")
        .pivot("horizon", index=["date", "code"], values="score")
    )
    like = pl.read_parquet(storage.table_path("latest_scores"))
    varying = ("score", "rank", "date", "code")
    constant = {name: like[name][0] for name in like.columns if not name.startswith(varying)}
    days = wide["date"].unique().sort().to_list()[-DATES - 6 : -6]
    for number, day in enumerate(days):
        scores = wide.filter(pl.col("date") == day).with_columns(
            *(pl.col(str(h)).alias(f"score_{h}d") for h in (1, 5, 10, 20)),
            *(pl.lit(1, pl.Int32).alias(f"rank_{h}d") for h in (1, 5, 10, 20)),
            **{name: pl.lit(value) for name, value in constant.items()},
        )
        at = MADE_AT + dt.timedelta(days=number)
        words = keep_past_scores(storage, accepted(storage), scores.select(like.columns), at)
        assert words.startswith(f"{day} by {accepted(storage).name}, ")
    return data_dir, days


def accepted(storage: Storage) -> Path:
    return storage.models / json.loads((storage.models / "accepted.json").read_text())["hash"]


@pytest.fixture
def storage(scored, tmp_path) -> Storage:
    data_dir = shutil.copytree(scored[0], tmp_path / "data")
    return Storage(market=Market(), data_dir=str(data_dir))


@pytest.fixture
def folder(storage) -> Path:
    return accepted(storage)


@pytest.fixture
def days(scored) -> list[dt.date]:
    return scored[1]


def said(result, check: str) -> tuple[bool, str]:
    for found in result.get_asset_check_evaluations():
        if found.check_name == check:
            return found.passed, str(found.metadata["figure"].value)
    raise AssertionError(f"{check} was not evaluated")


def judge(run, storage: Storage, **config: Any):
    return run("key:realized_scores", storage.root.parent, realized_scores=config)


def followed(storage: Storage) -> dict[tuple[dt.date, str], float]:
    """Five-day returns from close to close, by looking each price up."""
    prices = pl.read_parquet(storage.table_path("prices")).select("date", "code", "close")
    close = {(day, code): value for day, code, value in prices.iter_rows()}
    calendar = prices["date"].unique().sort().to_list()
    found = {}
    for place, day in enumerate(calendar[:-6]):
        enter, leave = calendar[place + 1], calendar[place + 6]
        for code in prices["code"].unique():
            if (enter, code) in close and (leave, code) in close:
                found[day, code] = close[leave, code] / close[enter, code] - 1
    return found


def test_past_scores_get_the_rank_ic_of_the_returns_that_followed(storage, days, run):
    result = judge(run, storage)
    assert exit_code(result) == 0
    returns = followed(storage)
    past = pl.read_parquet(storage.root / "past_scores" / "*.parquet")
    expected = {}
    for day in days:
        mine = past.filter(pl.col("date") == day).select("code", "score_5d").rows()
        pairs = [(score, returns[day, code]) for code, score in mine if (day, code) in returns]
        if len(pairs) >= 30:
            expected[day] = spearmanr(*zip(*pairs, strict=True)).statistic
    with duckdb.connect(str(storage.root / "atft.duckdb"), read_only=True) as connection:
        rows = connection.sql(
            "SELECT date, rank_ic FROM realized_scores WHERE horizon = 5 AND rank_ic IS NOT NULL "
            "AND counts ORDER BY date"
        ).fetchall()
    judged = dict(rows)
    assert len(expected) >= DATES - 1
    assert set(judged) == set(expected)
    np.testing.assert_allclose([judged[d] for d in expected], list(expected.values()), atol=1e-12)
    passed, figure = said(result, "realized_rank_ic_as_evaluated")
    assert passed  # the same scores were evaluated
    assert f"on {len(expected)} dates, evaluated " in figure
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["dates"].value == len(expected)
    assert "rolling_rank_ic_5d" in event.materialization.metadata


def test_the_same_date_and_run_again_changes_nothing(storage, folder, days):
    before = {path: path.read_bytes() for path in storage.root.glob("past_scores*/*.parquet")}
    made = storage.table_path("past_scores_made").read_bytes()
    again = pl.read_parquet(storage.part_path("past_scores", f"{days[3]}_{folder.name}"))
    other = again.drop("made_at").with_columns(pl.col("^score_.*$") * -1.0)
    said = keep_past_scores(storage, folder, other, MADE_AT)
    assert said == f"{days[3]} by {folder.name} stays as it was first made"
    assert {path: path.read_bytes() for path in before} == before
    assert storage.table_path("past_scores_made").read_bytes() == made


def test_a_scoring_whose_record_was_not_written_is_recorded_as_it_lies_there(storage, folder, days):
    made = pl.read_parquet(storage.table_path("past_scores_made"))
    lost = pl.col("date") == days[3]
    storage.write_table("past_scores_made", made.filter(~lost))
    part = pl.read_parquet(storage.part_path("past_scores", f"{days[3]}_{folder.name}"))
    other = part.drop("made_at").with_columns(pl.col("^score_.*$") * -1.0)
    keep_past_scores(storage, folder, other, MADE_AT)
    again = pl.read_parquet(storage.table_path("past_scores_made"))
    assert again.sort("date").equals(made.sort("date"))


def test_past_scores_are_made_and_judged_by_one_run_at_a_time(
    storage, folder, days, run, monkeypatch
):
    monkeypatch.setattr("atft_pipeline.storage.LOCK_WAIT_SECONDS", 0.0)
    part = pl.read_parquet(storage.part_path("past_scores", f"{days[3]}_{folder.name}"))
    with storage.one_run_at_a_time("past_scores"):
        with pytest.raises(InputError, match="past_scores waited 0 s"):
            keep_past_scores(storage, folder, part.drop("made_at"), MADE_AT)
        assert "past_scores waited 0 s" in failures(judge(run, storage))[0]


def test_another_run_s_scores_of_a_date_are_kept_beside_the_first(storage, folder, days):
    """With what its own run record and its own evaluation say of it."""
    other = Path(shutil.copytree(folder, folder.parent / "20300101-000000-other"))
    record = json.loads((other / "run.json").read_text())
    record["split"]["test"][0] = str(days[5])
    (other / "run.json").write_text(json.dumps(record))
    shutil.rmtree(other / "evaluation")
    part = pl.read_parquet(storage.part_path("past_scores", f"{days[3]}_{folder.name}"))
    keep_past_scores(storage, other, part.drop("made_at"), MADE_AT)
    made = pl.read_parquet(storage.table_path("past_scores_made"))
    mine = made.filter(pl.col("run_id") == other.name).row(0, named=True)
    assert (mine["date"], mine["test_first"]) == (days[3], days[5])
    assert (mine["evaluated_rank_ic"], mine["evaluated_error"]) == (None, None)
    first = made.filter(pl.col("run_id") == folder.name, pl.col("date") == days[3])
    value, error = evaluated_rank_ic(folder)
    assert first.select("evaluated_rank_ic", "evaluated_error").row(0) == (value, error)
    table = pl.read_parquet(folder / "evaluation" / "evaluation.parquet").filter(
        pl.col("scorer") == "model", pl.col("metric") == "rank_ic", pl.col("horizon") == 5
    )
    assert table.select("value", "standard_error").rows() == [(value, error)]


def test_an_evaluation_without_a_figure_says_nothing_of_the_run(folder):
    path = folder / "evaluation" / "evaluation.parquet"
    unknown = pl.when(pl.col("metric") == "rank_ic").then(float("nan")).otherwise("standard_error")
    pl.read_parquet(path).with_columns(standard_error=unknown).write_parquet(path)
    assert evaluated_rank_ic(folder) == (None, None)


@pytest.mark.parametrize("fault", ["edited", "deleted"])
def test_past_scores_that_were_touched_stop_the_table(storage, folder, days, run, fault):
    judge(run, storage)
    good = storage.table_path("realized_scores").read_bytes()
    path = storage.part_path("past_scores", f"{days[3]}_{folder.name}")
    part = pl.read_parquet(path)
    path.unlink()
    if fault == "edited":
        part.with_columns(pl.col("score_5d") * 1.01).write_parquet(path)
    result = judge(run, storage)
    passed, figure = said(result, "past_scores_unchanged")
    assert not passed
    state = "was changed" if fault == "edited" else "is missing"
    assert figure == f"{days[3]} by {folder.name} {state}"
    assert exit_code(result) == 1
    assert storage.table_path("realized_scores").read_bytes() == good


def test_scores_that_turned_bad_warn(storage, days, run):
    """The returns of the newest dates turn against the scores."""
    past = pl.read_parquet(storage.root / "past_scores" / "*.parquet")
    targets = pl.read_parquet(storage.table_path("targets"))
    against = targets.join(past.select("date", "code", "score_5d"), on=["date", "code"], how="left")
    turned = pl.when(pl.col("score_5d").is_null()).then("target_5d").otherwise(-pl.col("score_5d"))
    storage.write_table("targets", against.with_columns(target_5d=turned).drop("score_5d"))
    result = judge(run, storage)
    passed, figure = said(result, "realized_rank_ic_as_evaluated")
    assert not passed
    assert figure.startswith("rank IC -1.0000 on ")
    assert exit_code(result) == 0


def test_returns_that_go_missing_warn(storage, days, run):
    targets = pl.read_parquet(storage.table_path("targets"))
    gone = pl.when(pl.col("date").is_in(days[-12:])).then(None).otherwise("target_5d")
    storage.write_table("targets", targets.with_columns(target_5d=gone))
    passed, figure = said(judge(run, storage), "due_returns_known")
    assert not passed
    assert figure.startswith(f"{DATES - 12} of {DATES} dates with due returns have a rank IC, not ")


def test_a_fresh_project_says_that_there_is_nothing_to_judge_yet(whole_copy, run):
    result = run("key:realized_scores", whole_copy)
    passed, figure = said(result, "realized_rank_ic_as_evaluated")
    assert passed
    assert figure.startswith("nothing to judge yet: 0 of 1 scored dates have known returns")
    assert said(result, "due_returns_known")[1] == "0 of 0 dates with due returns have a rank IC"
    assert exit_code(result) == 0


@pytest.mark.slow  # trains once, then five daily runs
def test_five_days_of_daily_runs_judge_each_day_s_scores_once_they_can(
    whole, tmp_path, config, small_model
):
    """The market is handed over day by day; the model was trained before the first of them."""
    tables = whole[0] / "synthetic"
    calendar = pl.read_parquet(tables / "prices.parquet")["date"].unique().sort().to_list()
    days = calendar[-6:-1]
    storage = Storage(market=Market(), data_dir=str(tmp_path), dataset="replay")

    def settings(day: dt.date, **ops: Any) -> dict[str, Any]:
        found = config(tmp_path, **ops)
        found["resources"]["storage"]["config"]["dataset"] = "replay"
        paths = {name: str(tables / f"raw_{name}.parquet") for name in ("prices", "listings")}
        market = {"source": "files", "end_date": str(day), **paths}
        return found | {"resources": found["resources"] | {"market": {"config": market}}}

    kept: dict[Path, bytes] = {}
    with dg.DagsterInstance.ephemeral() as instance:
        start = settings(calendar[-7], trained_model=small_model)
        assert exit_code(materialize(UNPARTITIONED, start, instance)) == 0
        for day in days:
            job = defs.resolve_job_def("daily_update")
            done = job.execute_in_process(settings(day), instance=instance, raise_on_error=False)
            assert exit_code(done) == 0
            now = {path: path.read_bytes() for path in storage.root.glob("past_scores/*.parquet")}
            assert kept.items() <= now.items()
            kept = now
    scored = [calendar[-7], *days]
    assert [path.name[:10] for path in sorted(kept)] == [str(day) for day in scored]
    past = pl.read_parquet(storage.root / "past_scores" / "*.parquet")
    prices = pl.read_parquet(storage.table_path("prices")).select("date", "code", "close")
    close = {(day, code): value for day, code, value in prices.iter_rows()}
    expected = []
    for place, day in enumerate(scored[:-2]):
        enter, leave = scored[place + 1], scored[place + 2]
        made = past.filter(pl.col("date") == day).select("code", "score_1d").rows()
        pairs = [(score, close[leave, code] / close[enter, code]) for code, score in made
                 if (enter, code) in close and (leave, code) in close]  # fmt: skip
        expected.append(spearmanr(*zip(*pairs, strict=True)).statistic)
    table = pl.read_parquet(storage.table_path("realized_scores")).filter(pl.col("horizon") == 1)
    assert table["date"].to_list() == scored
    assert table["due"].to_list() == [True] * 4 + [False] * 2
    np.testing.assert_allclose(table["rank_ic"].to_list()[:4], expected, atol=1e-12)
    assert table["rank_ic"].null_count() == 2
    assert table["rolling_dates"].to_list() == [1, 2, 3, 4, 0, 0]
