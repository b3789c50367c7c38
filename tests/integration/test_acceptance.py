"""Which model is in use: taken, passed over, gone back from; through the asset and the command."""

import datetime as dt
import json
import shutil
from pathlib import Path

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pytest

from atft_model.errors import InputError
from atft_pipeline import __main__ as command
from atft_pipeline.__main__ import exit_code, failures, main
from atft_pipeline.assets.acceptance import (
    judged_scores,
    last_rollback,
    read_history,
    rollback,
    run_before,
    skill_not_shown,
    take_newest,
)
from atft_pipeline.checks.acceptance import (
    AcceptanceGates,
    blocking_checks_green,
    not_worse_than_before,
)
from atft_pipeline.checks.outcome import Outcome
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage

DATA_SET = "synthetic"
GATES = AcceptanceGates()
NEVER = "20200101-000000-never"
NEWER = "20300101-000000-newer"


@pytest.fixture
def storage(whole_copy, monkeypatch) -> Storage:
    monkeypatch.setenv("ATFT_DATA_DIR", str(whole_copy))
    return Storage(market=Market())


def in_use(storage: Storage) -> str:
    return json.loads((storage.models / "accepted.json").read_text())["hash"]


def copy_as(storage: Storage, name: str, finished_at: str) -> Path:
    """Another run with the same weights, judged as they were."""
    folder = Path(shutil.copytree(storage.models / in_use(storage), storage.models / name))
    record = json.loads((folder / "run.json").read_text())
    record |= {"run_id": name, "finished_at": finished_at}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def score(folder: Path, value: pl.Expr) -> None:
    """Plants other scores of the run's test dates."""
    path = folder / "evaluation" / "test_scores.parquet"
    pl.read_parquet(path).with_columns(score=value).write_parquet(path)


def plant_knowledge(storage: Storage, folder: Path) -> None:
    """Scores that know a part of what followed."""
    path = folder / "evaluation" / "test_scores.parquet"
    targets = pl.read_parquet(storage.table_path("targets"))
    kept = pl.read_parquet(path).join(targets, on=["date", "code"], how="left")
    noise = pl.Series(np.random.default_rng(5).normal(0.0, 0.1, kept.height))
    knows = (pl.col("target_5d").fill_null(0.0) + noise).alias("score")
    kept.with_columns(knows).select("date", "code", "score", "checkpoint_hash").write_parquet(path)


def said(result, check: str) -> tuple[bool, str, str]:
    for found in result.get_asset_check_evaluations():
        if found.check_name == check:
            figure = str(found.metadata["figure"].value)
            return found.passed, found.severity.value, figure
    raise AssertionError(f"{check} was not evaluated")


def accept(storage: Storage, gates: AcceptanceGates = GATES) -> dict[str, Outcome]:
    """What materializing ``accepted_model`` does, without Dagster; its verdicts by name."""
    targets = storage.read_table("targets", "accepted_model")
    choice = take_newest(storage, targets, gates)
    chosen = choice.folder.name if choice.folder else None
    outcomes = [blocking_checks_green(chosen, choice.passed_over, ()),
                not_worse_than_before(choice.comparisons, gates)]  # fmt: skip
    return {outcome.name: outcome for outcome in outcomes}


def test_the_comparison_is_of_the_scores_that_evaluation_judged(storage):
    """The rank ICs of the kept scores are those of the table of the evaluation."""
    from atft_pipeline.transforms.judged_scores import rank_ic_by_date

    folder = storage.models / in_use(storage)
    targets = pl.read_parquet(storage.table_path("targets"))
    kept = judged_scores(storage, folder)
    assert kept is not None
    mine = rank_ic_by_date(kept.join(targets, on=["date", "code"]), "score", "target_5d")
    table = pl.read_parquet(storage.table_path("rank_ic_by_date")).filter(
        pl.col("scorer") == "model", pl.col("horizon") == 5
    )
    both = mine.join(table, on="date", suffix="_evaluated").with_columns(
        pl.col("rank_ic_evaluated").fill_nan(None)
    )
    assert both.height > 60
    assert both["rank_ic"].null_count() == both["rank_ic_evaluated"].null_count()
    np.testing.assert_allclose(both["rank_ic"], both["rank_ic_evaluated"], atol=1e-12)


def test_a_newer_run_that_is_worse_is_passed_over(storage, run):
    before = in_use(storage)
    plant_knowledge(storage, storage.models / before)
    worse = copy_as(storage, "20300101-000000-worse", "2030-01-01T00:00:00+00:00")
    score(worse, -pl.col("score"))
    result = run("key:accepted_model", storage.root.parent)
    passed, severity, figure = said(result, "not_worse_than_before")
    assert (passed, severity) == (False, "ERROR")
    assert figure.startswith(f"run {worse.name} against {before}: -")
    green = said(result, "blocking_checks_green")[2]
    assert green.startswith(f"run {before}, not shown: {', '.join(skill_not_shown(worse))}; ")
    assert f"{worse.name} is worse than {before}" in green
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["run_id"].value == before
    assert in_use(storage) == before
    assert exit_code(result) == 0  # a verdict on skill: what is in use stays in use
    assert read_history(storage).height == 1


def test_without_a_sound_run_the_asset_fails_by_its_check_and_shows_no_new_state(storage, run):
    before = in_use(storage)
    (storage.models / before / "verdicts_trained_model.json").unlink()
    result = run("key:accepted_model", storage.root.parent)
    passed, severity, figure = said(result, "blocking_checks_green")
    assert (passed, severity) == (False, "ERROR")
    assert figure == f"no run; passed over: {before} failed trained_model:not_judged"
    assert result.get_asset_materialization_events() == []
    assert failures(result) == ["accepted_model: not stored, failed blocking_checks_green"]


def test_of_several_newer_runs_the_newest_that_is_not_worse_is_taken(storage):
    plant_knowledge(storage, storage.models / in_use(storage))
    copy_as(storage, "20290101-000000-good", "2029-01-01T00:00:00+00:00")
    score(copy_as(storage, "20300101-000000-worse", "2030-01-01T00:00:00+00:00"), -pl.col("score"))
    accept(storage)
    assert in_use(storage) == "20290101-000000-good"
    newest = read_history(storage).row(-1, named=True)
    assert (newest["kind"], newest["rank_ic_difference"]) == ("accepted", 0.0)
    assert "on each of" in newest["reason"]


@pytest.mark.parametrize("judge", ["trained_model", "evaluation"])
def test_a_newer_run_that_is_not_sound_is_passed_over(storage, judge):
    before = in_use(storage)
    newer = copy_as(storage, NEWER, "2030-01-01T00:00:00+00:00")
    (newer / f"verdicts_{judge}.json").unlink()
    found = accept(storage)
    assert in_use(storage) == before
    green = found["blocking_checks_green"]
    assert green.passed
    assert f"passed over: {NEWER} failed {judge}:not_judged" in green.figure
    # The model in use is not compared with itself.
    assert found["not_worse_than_before"].figure.startswith("no newer run to compare")


def test_a_newer_run_whose_weights_were_changed_since_they_were_judged_is_passed_over(storage):
    import torch

    from atft_model.training.checkpoint import load_weights, save_weights

    before, newer = in_use(storage), copy_as(storage, NEWER, "2030-01-01T00:00:00+00:00")
    weights = load_weights(newer / "best.pt")
    name = next(key for key, value in weights.items() if torch.is_floating_point(value))
    save_weights(newer / "best.pt", weights | {name: weights[name] + 1.0})
    assert f"{NEWER} failed " in accept(storage)["blocking_checks_green"].figure
    assert in_use(storage) == before


@pytest.mark.parametrize("require", [False, True])
def test_a_failed_skill_verdict_bars_a_run_only_where_that_is_asked_for(storage, require):
    before, newer = in_use(storage), copy_as(storage, NEWER, "2030-01-01T00:00:00+00:00")
    assert skill_not_shown(newer)  # the market has no signal
    figure = accept(storage, AcceptanceGates(require_skill=require))["blocking_checks_green"].figure
    assert in_use(storage) == (before if require else NEWER)
    named = f"{NEWER} failed {', '.join(skill_not_shown(newer))}" in figure
    assert named is require


def test_runs_are_taken_by_when_they_finished_not_by_their_names(storage):
    copy_as(storage, "a-later-one", "2031-01-01T00:00:00+00:00")
    copy_as(storage, "z-earlier-one", "2030-01-01T00:00:00+00:00")
    accept(storage)
    assert in_use(storage) == "a-later-one"


def test_a_run_is_also_judged_by_days_after_its_test_dates_that_it_was_used_on(storage):
    folder = storage.models / in_use(storage)
    kept = judged_scores(storage, folder)
    assert kept is not None
    mine = json.loads((folder / "run.json").read_text())["checkpoint_hash"]
    last = kept["date"].max()
    after = [last + dt.timedelta(days=n) for n in range(3)]

    def used(day: dt.date, run: str, code: str, value: float, weights: str = mine) -> None:
        part = {"date": day, "code": code, "score_5d": value, "checkpoint_hash": weights}
        storage.write_part("past_scores", f"{day}_{run}", pl.DataFrame([part]))

    used(after[0], "r", "not judged", 1.0)  # a date that evaluation has
    used(after[1], "r", "0001", 2.0)
    used(after[1], "s", "0001", 3.0)  # the same weights again: a later scoring knows no better
    used(after[2], "r", "0001", 4.0, "other weights")
    found = judged_scores(storage, folder)
    assert found is not None
    assert found.head(kept.height).equals(kept)
    assert found.tail(-kept.height).rows() == [(after[1], "0001", 2.0)]


@pytest.mark.parametrize("fault", ["missing", "missing before", "other weights", "few dates"])
def test_a_run_that_cannot_be_compared_is_taken_with_a_warning(storage, fault):
    before = in_use(storage)
    newer = copy_as(storage, NEWER, "2030-01-01T00:00:00+00:00")
    path = newer / "evaluation" / "test_scores.parquet"
    kept = pl.read_parquet(path)
    if fault == "missing":
        path.unlink()
    elif fault == "missing before":
        (storage.models / before / "evaluation" / "test_scores.parquet").unlink()
    elif fault == "other weights":
        kept.with_columns(checkpoint_hash=pl.lit("other")).write_parquet(path)
    else:
        dates = kept["date"].unique().sort()
        kept.filter(pl.col("date").is_in(dates[:7].implode())).write_parquet(path)
    found = accept(storage)["not_worse_than_before"]
    assert (found.passed, found.severity) == (False, "WARN")
    without = before if fault == "missing before" else newer.name
    said = "7 common test dates" if fault == "few dates" else f"{without} has no scores"
    assert said in found.figure
    assert in_use(storage) == newer.name
    row = read_history(storage).row(-1, named=True)
    figures = (row["rank_ic_difference"], row["standard_error"], row["common_dates"])
    if fault.startswith("missing"):
        assert figures == (None, None, None)
        assert "has no scores" in row["reason"]
    elif fault == "few dates":
        assert figures[2] == 7


@pytest.mark.parametrize("fault", ["not judged", "deleted"])
def test_a_model_in_use_that_is_not_sound_is_no_measure(storage, fault):
    before = storage.models / in_use(storage)
    newer = copy_as(storage, "20300101-000000-newer", "2030-01-01T00:00:00+00:00")
    if fault == "deleted":
        shutil.rmtree(before)
    else:
        (before / "verdicts_evaluation.json").unlink()
    found = accept(storage)["not_worse_than_before"]
    assert found.figure.startswith("no newer run to compare")
    assert in_use(storage) == newer.name


def test_a_rollback_goes_back_and_the_next_materialization_does_not_take_it_up(storage):
    first = in_use(storage)
    copy_as(storage, "20260101-000000-between", "2026-01-01T00:00:00+00:00")
    second = copy_as(storage, "20260601-000000-second", "2026-06-01T00:00:00+00:00").name
    # The first is the newest by the clock of this test: it was just trained.
    record = storage.models / first / "run.json"
    old = json.loads(record.read_text()) | {"finished_at": "2025-01-01T00:00:00+00:00"}
    record.write_text(json.dumps(old))
    accept(storage)
    assert in_use(storage) == second
    rollback(storage, None, "ranks upside down")
    assert in_use(storage) == first
    figure = accept(storage)["blocking_checks_green"].figure
    assert figure.startswith(f"run {first}")
    assert f"{second} was there at the rollback of 20" in figure
    assert "20260101-000000-between was there at the rollback" in figure
    assert in_use(storage) == first
    with pytest.raises(InputError, match=f"rollback: {first} is the first in use"):
        rollback(storage, None, "once more")  # not forward again to what it came back from
    later = copy_as(storage, "20990101-000000-later", "2099-01-01T00:00:00+00:00").name
    accept(storage)
    assert in_use(storage) == later
    with duckdb.connect(str(storage.root / "atft.duckdb"), read_only=True) as connection:
        rows = connection.sql("SELECT kind, run_id, before FROM accepted_models").fetchall()
    assert rows == [("accepted", first, None), ("accepted", second, first),
                    ("rollback", first, second), ("accepted", later, first)]  # fmt: skip


def test_a_rollback_tells_dagster_and_the_history_shows_the_reason(storage, capsys):
    first = in_use(storage)
    other = copy_as(storage, "20300101-000000-other", "2030-01-01T00:00:00+00:00").name
    with dg.DagsterInstance.ephemeral() as instance:
        command.roll_back(instance, other, "vendor error")
        event = instance.get_latest_materialization_event(dg.AssetKey("accepted_model"))
    assert capsys.readouterr().out.startswith(f"in use: {other}, before: {first}\nnext: ")
    assert in_use(storage) == other
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["run_id"].value == other
    assert "| rollback | " in str(metadata["history"].value)
    assert "| vendor error | " in str(metadata["history"].value)
    assert metadata["dagster/row_count"].value == 2


@pytest.mark.slow  # an instance on disk; what the command does is tested above
def test_the_rollback_is_one_command(storage, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    first = in_use(storage)
    other = copy_as(storage, "20300101-000000-other", "2030-01-01T00:00:00+00:00").name
    assert main(["rollback"]) == 2
    assert f"rollback: {first} is the first in use; name another" in capsys.readouterr().err
    assert main(["rollback", "--to", other, "--reason", "vendor error"]) == 0
    assert in_use(storage) == other
    assert read_history(storage)["reason"][-1] == "vendor error"


@pytest.mark.parametrize(
    ("name", "fault"),
    [(NEVER, "expected the name of a finished run"), ("..", "expected the name of a finished run"),
     ("", "is the first in use"), ("in use", "is in use already"),
     ("unsound", "failed evaluation:not_judged; expected a run whose blocking checks are green")],
)  # fmt: skip
def test_a_rollback_to_what_cannot_be_used_changes_nothing(storage, name, fault):
    copy_as(storage, "unsound", "2030-01-01T00:00:00+00:00")
    (storage.models / "unsound" / "verdicts_evaluation.json").unlink()
    before = [(storage.models / "accepted.json").read_bytes(), read_history(storage)]
    with pytest.raises(InputError, match=f"^rollback: .*{fault}"):
        rollback(storage, in_use(storage) if name == "in use" else name, "test")
    assert (storage.models / "accepted.json").read_bytes() == before[0]
    assert read_history(storage).equals(before[1])


def test_acceptance_and_rollback_wait_for_each_other(storage, monkeypatch):
    other = copy_as(storage, NEWER, "2030-01-01T00:00:00+00:00").name
    monkeypatch.setattr("atft_pipeline.storage.LOCK_WAIT_SECONDS", 0.0)
    with storage.one_run_at_a_time("accepted_models"):
        with pytest.raises(InputError, match="accepted_models waited 0 s"):
            rollback(storage, other, "test")
        with pytest.raises(InputError, match="accepted_models waited 0 s"):
            accept(storage)
    assert in_use(storage) != other


def test_a_run_outside_the_models_is_none_to_go_back_to(storage):
    shutil.copytree(storage.models / in_use(storage), storage.root / "elsewhere")
    with pytest.raises(InputError, match=r"'\.\./elsewhere'; expected the name of a finished run"):
        rollback(storage, "../elsewhere", "test")


def test_of_several_acceptances_and_rollbacks_the_newest_counts(storage):
    first, day = read_history(storage), dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    rows = [("accepted", "b", "a"), ("rollback", "a", "b"), ("accepted", "b", "c"),
            ("rollback", "c", "b"), ("accepted", "d", "c")]  # fmt: skip
    storage.write_table("accepted_models", pl.concat([first] + [
        first.head(1).with_columns(kind=pl.lit(kind), run_id=pl.lit(run), before=pl.lit(before),
                                   accepted_at=pl.lit(day + dt.timedelta(days=n)))
        for n, (kind, run, before) in enumerate(rows)
    ], how="vertical_relaxed"))  # fmt: skip
    history = read_history(storage)
    assert run_before(history, "b") == "c"
    assert run_before(history, "a") is None
    assert last_rollback(storage) == day + dt.timedelta(days=3)


def test_a_rollback_killed_before_the_pointer_leaves_the_old_model_in_use(storage, monkeypatch):
    from atft_pipeline.assets import acceptance

    first = in_use(storage)
    other = copy_as(storage, "20300101-000000-other", "2030-01-01T00:00:00+00:00").name

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(acceptance, "write_text_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            rollback(storage, other, "test")
    assert in_use(storage) == first
    rollback(storage, other, "test")
    assert in_use(storage) == other


def test_a_history_of_an_earlier_version_is_read_as_acceptances(storage):
    old = read_history(storage).select("accepted_at", "run_id", "checkpoint_hash", "panel_hash",
                                       "before", "skill_not_shown")  # fmt: skip
    storage.write_table("accepted_models", old)
    found = read_history(storage)
    assert found["kind"].to_list() == ["accepted"]
    assert found["reason"].to_list() == [None]


def test_without_a_model_in_use_there_is_nothing_to_go_back_from(tmp_path, monkeypatch):
    monkeypatch.setenv("ATFT_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match="rollback: no model is in use"):
        rollback(command.storage_of({}), None, "test")
