"""The accepted model and its newest scores, through the assets: what is served and what is not."""

import json
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest
from scipy.stats import rankdata

from atft_pipeline.__main__ import exit_code, failures

DATA_SET = "synthetic"


def _figure(result, check: str) -> tuple[bool, str]:
    for found in result.get_asset_check_evaluations():
        if found.check_name == check:
            return found.passed, str(found.metadata["figure"].value)
    raise AssertionError(f"{check} was not evaluated")


def _accepted(root: Path) -> str:
    return json.loads((root / "models" / "accepted.json").read_text())["hash"]


def _copy_as(root: Path, name: str, finished_at: str) -> Path:
    """A later run with the same weights, judged as they were."""
    folder = Path(shutil.copytree(root / "models" / _accepted(root), root / "models" / name))
    record = json.loads((folder / "run.json").read_text())
    record |= {"run_id": name, "finished_at": finished_at}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_the_newest_date_is_ranked_by_the_accepted_run(whole):
    root = whole[0] / DATA_SET
    with duckdb.connect(str(root / "atft.duckdb"), read_only=True) as connection:
        scores = connection.sql("SELECT * FROM latest_scores").pl()
        history = connection.sql("SELECT run_id, before FROM accepted_models").fetchall()
    run_id = _accepted(root)
    assert history == [(run_id, None)]
    assert set(scores["run_id"]) == {run_id}
    assert set(scores["failed_checks"]) == {""}
    assert scores["date"].unique().to_list() == [
        pl.read_parquet(root / "prices.parquet")["date"].max()
    ]
    assert scores["code"].is_unique().all()
    predicted = pl.read_parquet(root / "predictions.parquet")
    for horizon in (1, 5, 10, 20):
        mine = scores[f"score_{horizon}d"]
        assert scores[f"rank_{horizon}d"].to_list() == rankdata(-mine.to_numpy(), "min").tolist()
        newest = predicted.filter(
            pl.col("horizon") == horizon, pl.col("date") == scores["date"][0]
        ).sort("code")
        assert newest["code"].to_list() == scores["code"].to_list()
        assert mine.to_list() == pytest.approx(newest["score"].to_list(), abs=1e-6)


def test_a_newer_run_that_is_not_sound_is_passed_over(whole_copy, run):
    root = whole_copy / DATA_SET
    before = _accepted(root)
    folder = _copy_as(root, "20300101-000000-failed", "2030-01-01T00:00:00+00:00")
    path = folder / "verdicts_trained_model.json"
    verdicts = json.loads(path.read_text())
    verdicts["checks"][0] |= {"passed": False, "severity": "ERROR"}
    path.write_text(json.dumps(verdicts))
    _copy_as(root, "20310101-000000-unjudged", "2031-01-01T00:00:00+00:00")
    (root / "models" / "20310101-000000-unjudged" / "verdicts_evaluation.json").unlink()
    result = run("key:accepted_model", whole_copy)
    passed, words = _figure(result, "blocking_checks_green")
    assert passed
    assert "20310101-000000-unjudged failed evaluation:not_judged" in words
    assert "20300101-000000-failed failed trained_model:encoder_gradients_nonzero" in words
    assert _accepted(root) == before


def test_a_newer_sound_run_takes_over_and_history_grows(whole_copy, run):
    root = whole_copy / DATA_SET
    before = _accepted(root)
    _copy_as(root, "20300101-000000-sound", "2030-01-01T00:00:00+00:00")
    assert exit_code(run("key:accepted_model", whole_copy)) == 0
    assert exit_code(run("key:accepted_model", whole_copy)) == 0
    assert _accepted(root) == "20300101-000000-sound"
    history = pl.read_parquet(root / "accepted_models.parquet")
    assert history["before"].to_list() == [None, before]


def test_skill_bars_a_run_only_where_config_asks_for_it(whole_copy, run):
    root = whole_copy / DATA_SET
    before = (root / "models" / "accepted.json").read_bytes()
    result = run("key:accepted_model", whole_copy, accepted_model={"require_skill": True})
    passed, words = _figure(result, "blocking_checks_green")
    assert not passed
    assert "evaluation:rank_ic_positive" in words
    assert exit_code(result) == 1
    assert (root / "models" / "accepted.json").read_bytes() == before


def test_weights_that_were_never_judged_are_refused_unless_told(whole_copy, run):
    root = whole_copy / DATA_SET
    good = (root / "latest_scores.parquet").read_bytes()
    path = root / "models" / _accepted(root) / "verdicts_evaluation.json"
    verdicts = json.loads(path.read_text())
    path.write_text(json.dumps(verdicts | {"checkpoint_hash": "other"}))
    result = run("key:latest_scores", whole_copy)
    assert "evaluation:judged_other_weights" in failures(result)[0]
    assert exit_code(result) == 1
    assert (root / "latest_scores.parquet").read_bytes() == good
    told = run("key:latest_scores", whole_copy, latest_scores={"allow_failed_checks": True})
    assert exit_code(told) == 0
    scores = pl.read_parquet(root / "latest_scores.parquet")
    assert set(scores["failed_checks"]) == {"evaluation:judged_other_weights"}
    (event,) = told.get_asset_materialization_events()
    assert event.materialization.metadata["allow_failed_checks"].value is True


@pytest.mark.slow  # a second process; the check itself is in tests/unit/.../test_serving.py
def test_degenerate_scores_are_not_stored(whole_copy, run):
    root = whole_copy / DATA_SET
    good = (root / "latest_scores.parquet").read_bytes()
    result = run("key:latest_scores", whole_copy, latest_scores={"score_std_floor": 1e3})
    passed, words = _figure(result, "scores_not_degenerate")
    assert not passed
    assert "1 days: std" in words
    assert exit_code(result) == 1
    assert (root / "latest_scores.parquet").read_bytes() == good
    assert (root / "rejected" / "latest_scores.parquet").exists()


def test_a_run_id_leads_to_no_other_place(whole_copy, run):
    for name in ("../folds", "none", ""):
        result = run("key:latest_scores", whole_copy, latest_scores={"run_id": name or "."})
        assert "expected the name of a finished run" in failures(result)[0]
