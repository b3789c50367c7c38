"""Real materializations: what holds is stored, what fails is not, and evidence is verified."""

import json
import re
import shutil
from pathlib import Path

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pytest

from atft_pipeline.__main__ import exit_code, failures
from atft_pipeline.assets.evaluation import score_identity
from atft_pipeline.checks.record import read_verdicts
from atft_pipeline.transforms import normalize

DATA_SET = "synthetic"
SKILL = {
    "evaluation:sharpe_above_threshold",
    "evaluation:sharpe_significant",
    "evaluation:rank_ic_positive",
    "evaluation:rank_ic_above_baselines",
    "trained_model:validation_beats_chance",
}


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        f"{check.asset_key.path[-1]}:{check.check_name}": check
        for check in result.get_asset_check_evaluations()
    }


def figure(result: dg.ExecuteInProcessResult, check: str) -> str:
    """The figure of a check that failed."""
    evaluation = verdicts(result)[check]
    assert not evaluation.passed
    return str(evaluation.metadata["figure"].value)


def details(result: dg.ExecuteInProcessResult, check: str) -> str:
    return str(verdicts(result)[check].metadata["details"].value)


def stored(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}


def contents(root: Path) -> dict[str, bytes]:
    """Every stored file; the catalog's bytes change with each refresh, rejected tables may come.

    Verdicts on a run are left out: a failed one has to be recorded.
    """
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.suffix != ".duckdb"
        and "rejected" not in path.parts
        and not path.name.startswith("verdicts_")
    }


def rewrite(path: Path, *columns: pl.Expr, **named: pl.Expr) -> None:
    """Changes columns of a stored table behind the pipeline's back."""
    pl.read_parquet(path).with_columns(*columns, **named).write_parquet(path)


# --- Tables and the panel


def test_a_clean_market_is_stored_and_queryable(tables):
    with duckdb.connect(str(tables / DATA_SET / "atft.duckdb"), read_only=True) as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT code) FROM normalized_features")
        rows, stocks = row.fetchone()  # type: ignore[misc]
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal")
        names = {name for (name,) in views.fetchall()}
    assert stocks == 60
    assert rows == pl.read_parquet(tables / DATA_SET / "prices.parquet").height
    assert names == {path.stem for path in (tables / DATA_SET).glob("*.parquet")}
    assert {"quarantine", "source_gaps", "planted_return", "feature_statistics"} < names
    assert not (tables / DATA_SET / "rejected").exists()


def test_every_raw_row_is_in_prices_or_in_quarantine(tables):
    count = {
        name: pl.read_parquet(tables / DATA_SET / f"{name}.parquet").height
        for name in ("raw_prices", "prices", "quarantine")
    }
    assert count["quarantine"] > 0
    assert count["raw_prices"] == count["prices"] + count["quarantine"]


def test_a_table_full_of_zeros_is_not_stored_and_downstream_keeps_the_last_good(tables_copy, run):
    root = tables_copy / DATA_SET
    place = pl.col("returns_1d").rank("ordinal").over("date")
    balanced = pl.when(place <= 10).then(-1.0).when(place <= 20).then(1.0).otherwise(0.0)
    rewrite(root / "features.parquet", returns_1d=balanced.cast(pl.Float32))
    good = contents(root)
    result = run("key:normalized_features or key:panel or key:stock_graph", tables_copy)
    check = "normalized_features:normalized_within_bounds"
    assert figure(result, check).startswith("returns_1d: zero_share is 0.6")
    assert "returns_1d" in details(result, check)
    assert stored(result) == set()
    assert exit_code(result) == 1
    assert contents(root) == good
    rejected = pl.read_parquet(root / "rejected" / "normalized_features.parquet")
    assert (rejected["returns_1d"] == 0).mean() > 0.5
    # What comes after is built from the table that held.
    again = run("panel", tables_copy)
    assert exit_code(again) == 0
    old, new = _panel_manifest(good), _panel_manifest(contents(root))
    assert new["files"] == old["files"]
    changed = {name for name, found in new["inputs"].items() if found != old["inputs"][name]}
    assert changed == {"features"}


def _panel_manifest(stored_files: dict[str, bytes]) -> dict:
    (manifest,) = [
        text for name, text in stored_files.items()
        if name.startswith("panel") and name.endswith("manifest.json")
    ]  # fmt: skip
    return json.loads(manifest)


def test_a_normalizer_that_does_nothing_is_caught(tables_copy, run, monkeypatch):
    """The historical failure: "normalized" features with a standard deviation of 268,938."""
    good = contents(tables_copy / DATA_SET)
    monkeypatch.setattr(
        normalize, "apply_time_series", lambda values, statistics: values * np.float32(268_938)
    )
    result = run("normalized_features", tables_copy)
    check = "normalized_features:normalized_within_bounds"
    assert re.search(r"log_returns_1d: mean is \d{3}.* more", figure(result, check))
    assert re.search(r"log_returns_1d \| time_series \|.*\d{4}", details(result, check))
    assert "in_range(-5.0, 5.0)" in figure(result, "normalized_features:contract_holds")
    assert exit_code(result) == 1
    assert contents(tables_copy / DATA_SET) == good


def test_tight_bounds_name_the_features(tables_copy, run):
    good = contents(tables_copy / DATA_SET)
    result = run("normalized_features", tables_copy, normalized_features={"std_upper": 0.99})
    words = figure(result, "normalized_features:normalized_within_bounds")
    assert re.search(r"\w+: std is \S+, expected from 0.8 to 0.99", words)
    assert exit_code(result) == 1
    assert contents(tables_copy / DATA_SET) == good


def test_too_many_unusable_rows_keep_the_last_prices(tables_copy, run):
    good = contents(tables_copy / DATA_SET)
    result = run(
        "key:prices or key:trading_universe", tables_copy, prices={"max_quarantined_share": 0.0}
    )
    check = "prices:quarantined_share_within_limit"
    assert "rows (0.20%)" in figure(result, check)
    assert verdicts(result)[check].metadata["rows/duplicate_key"].value > 0
    assert exit_code(result) == 1
    assert stored(result) == set()
    assert contents(tables_copy / DATA_SET) == good
    rejected = tables_copy / DATA_SET / "rejected"
    kept = {"prices.parquet", "quarantine.parquet", "suspect_moves.parquet"}
    assert {path.name for path in rejected.iterdir()} == kept


def test_an_infinite_price_becomes_no_target(tables_copy, run):
    root = tables_copy / DATA_SET
    infinite = pl.when(pl.int_range(pl.len()) == 100).then(float("inf")).otherwise("close")
    rewrite(root / "prices.parquet", close=infinite)
    good = contents(root)
    result = run("targets", tables_copy)
    assert "failures, first target_1d: finite" in figure(result, "targets:contract_holds")
    assert exit_code(result) == 1
    assert contents(root) == good
    assert (root / "rejected" / "targets.parquet").exists()


def test_a_market_too_narrow_to_rank_has_no_universe(tables_copy, run):
    good = contents(tables_copy / DATA_SET)
    result = run("trading_universe", tables_copy, trading_universe={"min_raw_close": 1e9})
    assert "median 0 stocks" in figure(result, "trading_universe:universe_is_wide")
    assert exit_code(result) == 1
    assert contents(tables_copy / DATA_SET) == good


def test_a_dead_panel_is_not_published(tables_copy, run):
    root = tables_copy / DATA_SET
    rewrite(root / "normalized_features.parquet", rsi_14=pl.lit(0.5, pl.Float32))
    good = contents(root)
    result = run("panel", tables_copy)
    assert "train: rsi_14 is always 0.5" in figure(result, "panel:panel_is_alive")
    assert exit_code(result) == 1
    assert contents(root) == good


def test_a_graph_without_edges_is_not_published(tables_copy, run):
    good = contents(tables_copy / DATA_SET)
    result = run("stock_graph", tables_copy, stock_graph={"min_observations": 1000})
    assert figure(result, "stock_graph:stocks_have_neighbours").startswith("0.0% of tradable")
    assert exit_code(result) == 1
    assert contents(tables_copy / DATA_SET) == good


def test_a_planted_return_of_an_earlier_source_goes(tables_copy, run, tmp_path, monkeypatch):
    root = tables_copy / DATA_SET
    assert (root / "planted_return.parquet").exists()
    pl.read_parquet(root / "raw_prices.parquet").write_parquet(tmp_path / "bars.parquet")
    monkeypatch.setenv("ATFT_SOURCE", "files")
    monkeypatch.setenv("ATFT_PRICES", str(tmp_path / "bars.parquet"))
    monkeypatch.setenv("ATFT_DATASET", DATA_SET)
    assert exit_code(run("raw_prices", tables_copy)) == 0
    assert not (root / "planted_return.parquet").exists()
    with duckdb.connect(str(root / "atft.duckdb"), read_only=True) as connection:
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal")
        assert ("planted_return",) not in views.fetchall()


# --- The whole graph


def test_a_reason_over_its_limit_keeps_the_last_prices_and_shows_since_when(tables_copy, run):
    path = tables_copy / DATA_SET / "prices.parquet"
    good = path.read_bytes()
    result = run("prices", tables_copy, prices={"limits": {"high_below_low": 0.0}})
    failed = {name for name, check in verdicts(result).items() if not check.passed}
    assert failed == {"prices:quarantine_reasons_within_limits"}
    check = verdicts(result)["prices:quarantine_reasons_within_limits"]
    assert str(check.metadata["figure"].value).startswith("high_below_low 0.0")
    assert "data:image/png;base64," in str(check.metadata["details"].value)
    assert exit_code(result) == 1
    assert path.read_bytes() == good


def test_prices_without_their_split_factors_are_refused(tables_copy, run):
    raw = tables_copy / DATA_SET / "raw_prices.parquet"
    bars = pl.read_parquet(raw)
    assert bars.filter(pl.col("adjustment_factor") != 1.0).height > 0
    bars.with_columns(adjustment_factor=pl.lit(1.0)).write_parquet(raw)
    result = run("prices", tables_copy, prices={"always_allowed_moves": 0})
    check = verdicts(result)["prices:suspect_moves_within_limit"]
    assert not check.passed
    assert check.metadata["kind/unrecorded_split"].value > 0
    assert exit_code(result) == 1
    moves = pl.read_parquet(tables_copy / DATA_SET / "rejected" / "suspect_moves.parquet")
    assert "unrecorded_split" in set(moves["kind"])


def test_the_rules_of_prices_are_config(tables_copy, run):
    result = run("prices", tables_copy, prices={"rules": {"closed_weekdays": [1, 6, 7]},
                                                "limits": {"off_calendar": 1.0},
                                                "max_quarantined_share": 0.5})  # fmt: skip
    assert exit_code(result) == 0
    prices = pl.read_parquet(tables_copy / DATA_SET / "prices.parquet")
    assert 1 not in set(prices["date"].dt.weekday())


def test_the_whole_graph_runs_and_integrity_holds(whole):
    from atft_pipeline.definitions import defs

    _, result = whole
    assert failures(result) == []
    graph = defs.resolve_asset_graph()
    of_periods = {"rolling_model", "walk_forward_evaluation"}  # make walk-forward
    assert stored(result) == {key.path[-1] for key in graph.get_all_asset_keys()} - of_periods
    found = verdicts(result)
    assert set(found) == {
        f"{key.asset_key.path[-1]}:{key.name}"
        for key in graph.asset_check_keys
        if key.asset_key.path[-1] not in of_periods
    }
    failed = {name for name, check in found.items() if not check.passed}
    # Nothing links the sectors of a market free of signal: learned_structure has to say so.
    assert {name for name in failed if not name.startswith("learned_structure:")} <= SKILL


def test_a_signal_free_market_shows_no_skill_and_exits_0(whole):
    _, result = whole
    for check in ("evaluation:sharpe_above_threshold", "evaluation:rank_ic_positive"):
        assert "lower bound -" in figure(result, check)
    assert "deflated Sharpe 0." in figure(result, "evaluation:sharpe_significant")
    assert "least of" in figure(result, "evaluation:rank_ic_above_baselines")
    assert "standard error" in figure(result, "trained_model:validation_beats_chance")
    assert exit_code(result) == 0


def test_a_report_says_what_a_score_is_made_of(tmp_path):
    def said(days: float | None, relative_to: str, share: float = 0.0) -> tuple[str, ...]:
        config = {"model": {"linear_days": days}, "loss": {"rank_relative_to": relative_to}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "run.json").write_text(json.dumps({"relative_to_sector": share}))
        return tuple(score_identity(tmp_path).values())

    assert said(None, "date") == ("the network's", "returns relative to their date")
    linear = "the network's, and a linear regression's weighed by the horizon over 20 days"
    assert said(20.0, "sector", 1.0) == (linear, "returns relative to their sector")
    some = said(None, "sector", 0.64)[1]
    assert some == "returns relative to their sector (64 %, others to their date)"
    none = said(None, "sector")[1]
    assert none == "returns relative to their date: no sector is known, or none has enough stocks"


def test_evaluation_is_queryable_and_reported(whole):
    data_dir, result = whole
    root = data_dir / DATA_SET
    record = (root / "models" / "current.json").read_text()
    with duckdb.connect(str(root / "atft.duckdb"), read_only=True) as connection:
        (run_id,) = connection.execute("SELECT DISTINCT run_id FROM evaluation").fetchall()
        scorers = connection.execute("SELECT DISTINCT scorer FROM evaluation").fetchall()
        assert connection.execute("SELECT count(*) FROM daily_returns").fetchone() != (0,)
    assert run_id[0] in record
    assert {"model", "shuffled_model", "oracle", "ridge", "random"} <= {name for (name,) in scorers}
    (materialization,) = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == "evaluation"
    ]
    report = Path(str(materialization.metadata["report"].value))
    assert report == root / "reports" / f"{run_id[0]}.html"
    text = report.read_text()
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert run_id[0] in text
    assert "<dt>Score</dt>" in text
    assert "<dt>Learned to rank</dt><dd>returns relative to their sector" in text
    # Those of the serving assets come later.
    for check in verdicts(result):
        asset, _, name = check.partition(":")
        assert name in text or asset in ("accepted_model", "latest_scores", "realized_scores")


def test_the_trained_run_stands_in_the_ledger_and_leaves_no_scratch(whole):
    root = whole[0] / DATA_SET
    (line,) = (root / "trial_ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["run_id"] in (root / "models" / "current.json").read_text()
    assert list((root / "scratch").iterdir()) == []
    assert list(root.rglob("*.tmp")) == []


# --- Evidence


@pytest.mark.parametrize("column", ["run_id", "checkpoint_hash", "panel_hash"])
def test_predictions_of_another_run_are_refused(whole_copy, run, column):
    root = whole_copy / DATA_SET
    rewrite(root / "predictions.parquet", pl.lit("another").alias(column))
    good = contents(root)
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:evidence_matches_checkpoint")
    assert f"predictions: {column} is ['another']" in words
    assert stored(result) == set()
    assert exit_code(result) == 1
    assert contents(root) == good
    # The run is not put in use, nor scored with, before an evaluation finds it sound again.
    name = json.loads((root / "models" / "current.json").read_text())["hash"]
    judged = read_verdicts(root / "models" / name, "evaluation")
    assert judged is not None
    assert judged.failed_integrity == ("evidence_matches_checkpoint",)


def test_a_control_of_another_run_is_refused(whole_copy, run):
    path = whole_copy / DATA_SET / "random_graph_predictions.parquet"
    rewrite(path, checkpoint_hash=pl.lit("another"))
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:evidence_matches_checkpoint")
    assert words.startswith("random_graph_predictions: checkpoint_hash is ['another']")
    assert exit_code(result) == 1


def test_predictions_mixed_from_two_runs_are_refused(whole_copy, run):
    path = whole_copy / DATA_SET / "predictions.parquet"
    mixed = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("another")).otherwise("run_id")
    rewrite(path, run_id=mixed)
    result = run("evaluation", whole_copy)
    assert "'another'" in figure(result, "evaluation:evidence_matches_checkpoint")


def test_baselines_of_another_panel_are_refused(whole_copy, run):
    path = whole_copy / DATA_SET / "baselines.parquet"
    rewrite(path, panel_hash=pl.lit("another"))
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:evidence_matches_checkpoint")
    assert words == "baselines are of another panel"
    assert exit_code(result) == 1


def test_predictions_older_than_the_model_are_refused(whole_copy, run):
    """A second run was trained and is in use; its scores were never made."""
    models = whole_copy / DATA_SET / "models"
    old = json.loads((models / "current.json").read_text())["hash"]
    shutil.copytree(models / old, models / "20300101-000000-newest")
    record = models / "20300101-000000-newest" / "run.json"
    renamed = json.loads(record.read_text()) | {"run_id": "20300101-000000-newest"}
    record.write_text(json.dumps(renamed))
    (models / "current.json").write_text(json.dumps({"hash": "20300101-000000-newest"}))
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:evidence_matches_checkpoint")
    assert f"predictions: run_id is ['{old}'], expected 20300101-000000-newest" in words


def test_a_checkpoint_copied_over_another_is_refused(whole_copy, run):
    import torch

    models = whole_copy / DATA_SET / "models"
    folder = models / json.loads((models / "current.json").read_text())["hash"]
    weights = torch.load(folder / "best.pt", weights_only=True)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name] += 1
    torch.save(weights, folder / "best.pt")
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:evidence_matches_checkpoint")
    assert words.startswith("predictions: checkpoint_hash is [")
    assert "run record says weights" in words
    assert exit_code(result) == 1


def test_an_edited_panel_is_refused(whole_copy, run):
    panel = whole_copy / DATA_SET / "panel"
    folder = panel / json.loads((panel / "current.json").read_text())["hash"]
    targets = np.load(folder / "targets.npy")
    np.save(folder / "targets.npy", targets * 2)
    result = run("evaluation", whole_copy)
    assert "targets.npy: content differs from the manifest" in failures(result)[0]
    assert exit_code(result) == 1


def test_scores_of_another_path_than_trainings_are_refused(whole_copy, run):
    """Scores of the validation dates with dropout left on, say: noise on top."""
    path = whole_copy / DATA_SET / "predictions.parquet"
    frame = pl.read_parquet(path)
    noise = np.random.default_rng(0).normal(0.0, 5.0 * frame["score"].std(), frame.height)
    frame.with_columns(score=pl.col("score") + noise).write_parquet(path)
    good = contents(whole_copy / DATA_SET)
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:evaluation_path_equals_training_path")
    assert "training recorded" in words
    assert exit_code(result) == 1
    assert contents(whole_copy / DATA_SET) == good


def test_figures_of_other_weights_that_repeat_are_refused(whole_copy, run):
    """The stored evaluation says that it is of other weights, and has the same figures."""
    root = whole_copy / DATA_SET
    rewrite(root / "evaluation.parquet", checkpoint_hash=pl.lit("another"))
    good = contents(root)
    result = run("evaluation", whole_copy)
    words = figure(result, "evaluation:metrics_not_identical_to_previous_run")
    assert "equal those of weights another to 6 digits" in words
    assert exit_code(result) == 1
    assert contents(root) == good
    assert (root / "rejected" / "evaluation.parquet").exists()


def test_the_same_weights_may_be_evaluated_again(whole_copy, run):
    result = run("evaluation", whole_copy)
    assert exit_code(result) == 0
    check = verdicts(result)["evaluation:metrics_not_identical_to_previous_run"]
    assert "the same weights" in str(check.metadata["figure"].value)


def test_a_shuffle_that_does_not_shuffle_is_caught(whole_copy, run, monkeypatch):
    from atft_model import controls

    path = whole_copy / DATA_SET / "predictions.parquet"
    frame = pl.read_parquet(path)
    targets = pl.read_parquet(whole_copy / DATA_SET / "targets.parquet").unpivot(
        index=["date", "code"], value_name="truth"
    ).select(
        "date", "code", "truth",
        horizon=pl.col("variable").str.extract(r"(\d+)").cast(pl.Int32),
    )  # fmt: skip
    # A model that knows the test returns, dealt to the same stocks again in most of the dates.
    known = frame.join(targets, on=["date", "code", "horizon"], how="left", maintain_order="left")
    cheat = pl.when(pl.col("part") == "test").then(pl.col("truth").fill_null(0.0))
    known.with_columns(score=cheat.otherwise("score")).drop("truth").write_parquet(path)

    def hardly(score: np.ndarray, seed: int) -> np.ndarray:
        dealt = score.copy()
        dealt[:5] = np.random.default_rng(seed).permuted(dealt[:5], axis=1)
        return dealt

    monkeypatch.setattr(controls, "shuffled_within_date", hardly)
    result = run("evaluation", whole_copy)
    assert "standard errors from 0" in figure(result, "evaluation:shuffled_control_finds_nothing")
    assert exit_code(result) == 1


def test_without_the_ledger_no_sharpe_is_judged(whole_copy, run):
    (whole_copy / DATA_SET / "trial_ledger.jsonl").unlink()
    result = run("evaluation", whole_copy)
    assert "the trial ledger lacks the run that is judged" in failures(result)[0]
    assert exit_code(result) == 1


def test_prices_of_another_panel_are_refused(whole_copy, run):
    path = whole_copy / DATA_SET / "prices.parquet"
    pl.read_parquet(path).head(-100).write_parquet(path)
    result = run("evaluation", whole_copy)
    assert "daily returns are not those of the panel" in failures(result)[0]
    assert exit_code(result) == 1


# --- Training that must not take the place of a sound model


def test_cuda_without_a_gpu_fails_in_one_line_and_keeps_the_model(whole_copy, run, capfd):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    current = whole_copy / DATA_SET / "models" / "current.json"
    good = current.read_bytes()
    result = run("trained_model", whole_copy, trained_model={"training": {"device": "cuda"}})
    assert failures(result) == [
        "trained_model: training.device is 'cuda' but torch sees no CUDA device; "
        "set device to 'auto' or 'cpu'"
    ]
    assert exit_code(result) == 1
    assert current.read_bytes() == good
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    assert "did not receive any messages" not in printed


def test_a_model_that_fails_its_checks_is_not_put_in_use(whole_copy, run, small_model):
    current = whole_copy / DATA_SET / "models" / "current.json"
    good = current.read_bytes()
    result = run(
        "key:trained_model or key:predictions",
        whole_copy,
        trained_model=small_model | {"gates": {"min_gradient_norm": 1e6}},
    )
    words = figure(result, "trained_model:encoder_gradients_nonzero")
    assert words.startswith("no gradient in")
    assert stored(result) == set()
    assert exit_code(result) == 1
    assert current.read_bytes() == good
    failure = result.failure_data_for_node("trained_model")
    assert failure.user_failure_data.description.startswith("not put in use, failed encoder_grad")
