"""Two runs on one page: paired differences equal to a slow oracle, and no page on weak grounds."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from statsmodels.regression.linear_model import OLS

from atft_model.errors import InputError
from atft_model.metrics.inference import newey_west_lag
from atft_pipeline.report.compare import (
    changed_settings,
    compare_runs,
    differences_of,
    read_evaluated_run,
    render_comparison,
)

DAYS = np.busday_offset("2018-01-01", np.arange(160), roll="forward")
HORIZONS = (1, 5)


def _write(models: Path, name: str, seed: int, days: np.ndarray = DAYS, rate: float = 1e-3) -> Path:
    """A run folder as training and evaluation leave it."""
    rng = np.random.default_rng(seed)
    identity = {"run_id": name, "checkpoint_hash": f"w{seed}", "panel_hash": "p"}
    split = {part: ["2017-01-02", "2017-06-01"] for part in ("train", "validation", "test")}
    record = identity | {
        "graph_hash": "g", "source": "synthetic", "split": split, "features": ["a", "b"],
        "parameters": 1234, "seed": seed, "epochs": 8, "best_epoch": 3, "horizons": [1, 5],
        "best_validation_rank_ic": 0.05, "seconds": 61.0, "device": "cpu",
        "versions": {"torch": "2.13.0"}, "finished_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    folder = models / name
    (folder / "evaluation").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    config = {"optimizer": {"learning_rate": rate}, "model": {"quantiles": [0.5], "heads": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    scorers = ("model", "ridge")
    base = [{**identity, "scorer": s, "horizon": h} for s in scorers for h in HORIZONS]
    tables = {
        "evaluation": pl.DataFrame(
            [row | {"metric": m, "value": 0.01 * seed} for row in base for m in ("ic", "turnover")]
        ),
        "daily_returns": pl.concat(
            pl.DataFrame({"date": days, "net": rng.normal(1e-3, 0.01, len(days))}).select(
                *(pl.lit(v).alias(k) for k, v in row.items()), pl.col("date").cast(pl.Date), "net"
            )
            for row in base
        ),
        "rank_ic_by_date": pl.concat(
            pl.DataFrame({"date": days, "rank_ic": rng.normal(0.03, 0.1, len(days))}).select(
                *(pl.lit(v).alias(k) for k, v in row.items()), pl.col("date").cast(pl.Date),
                "rank_ic",
            )
            for row in base
        ),
    }  # fmt: skip
    for table, frame in tables.items():
        frame.write_parquet(folder / "evaluation" / f"{table}.parquet")
    return folder


@pytest.fixture
def models(tmp_path) -> Path:
    _write(tmp_path / "models", "a", 1)
    _write(tmp_path / "models", "b", 2, rate=5e-4)
    return tmp_path / "models"


def _both(models: Path):
    return read_evaluated_run(models, "a"), read_evaluated_run(models, "b")


def test_the_difference_is_paired_and_its_error_that_of_statsmodels(models):
    first, second = _both(models)
    rank_ic, net = differences_of(first, second, 5)
    chosen = (pl.col("scorer") == "model") & (pl.col("horizon") == 5)
    a, b = (run.rank_ic.filter(chosen)["rank_ic"].to_numpy() for run in (first, second))
    lag = max(newey_west_lag(len(DAYS), 5), 0)
    oracle = OLS(a - b, np.ones(len(a))).fit(
        cov_type="HAC", cov_kwds={"maxlags": lag, "use_correction": False}
    )
    assert rank_ic.difference == pytest.approx(oracle.params[0])
    assert rank_ic.standard_error == pytest.approx(oracle.bse[0], rel=1e-6)
    assert rank_ic.t == pytest.approx(oracle.tvalues[0], rel=1e-6)
    x, y = (run.daily.filter(chosen)["net"].to_numpy() for run in (first, second))
    sharpes = [np.sqrt(252) * v.mean() / v.std(ddof=1) for v in (x, y)]
    assert [net.first, net.second] == pytest.approx(sharpes)
    assert net.difference == pytest.approx(sharpes[0] - sharpes[1], rel=1e-6)


def test_only_common_dates_count(models):
    _write(models, "later", 3, days=DAYS[60:])
    first, later = read_evaluated_run(models, "a"), read_evaluated_run(models, "later")
    rank_ic, net = differences_of(first, later, 5)
    assert rank_ic.dates == net.dates == 100


def test_too_few_common_dates_are_refused(models):
    _write(models, "later", 3, days=DAYS[150:])
    with pytest.raises(InputError, match="10 dates with a rank_ic of both runs"):
        differences_of(read_evaluated_run(models, "a"), read_evaluated_run(models, "later"), 5)


def test_settings_that_differ_are_named_and_no_others(models):
    assert changed_settings(*_both(models)) == [("optimizer.learning_rate", "0.001", "0.0005")]


def test_the_page_stands_alone_and_says_what_differs(models, tmp_path):
    path = compare_runs(models, tmp_path / "reports", "a", "b")
    assert path == tmp_path / "reports" / "compare-a-b.html"
    text = path.read_text()
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert not re.search(r"(src|href)=\"(http|//)", text)
    assert "<script" not in text
    assert len(text) < 1_000_000
    for words in ("optimizer.learning_rate", "w1", "w2", "1 day", "turnover a day"):
        assert words in text
    assert "ahead" in text or "cannot be told apart" in text
    assert text == render_comparison(*_both(models))


def test_a_rerun_to_the_same_weights_is_said_to_be_the_same(models, tmp_path):
    _write(models, "again", 1)
    text = compare_runs(models, tmp_path / "reports", "a", "again").read_text()
    assert "Rank IC: the same on each of " in text
    assert "Net Sharpe: the same on each of " in text
    assert "The weights are the same." in text
    assert "no error of the difference" not in text


def test_results_of_other_weights_are_refused(models):
    path = models / "a" / "evaluation" / "daily_returns.parquet"
    frame = pl.read_parquet(path).with_columns(checkpoint_hash=pl.lit("stale"))
    frame.write_parquet(path)
    with pytest.raises(InputError, match="has checkpoint_hash stale, the run record says w1"):
        read_evaluated_run(models, "a")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("a", "a", "a twice; give two runs"),
        ("a", "none", "no finished run 'none'"),
        ("a", "../models/b", "no finished run '../models/b'"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(models, tmp_path, first, second, words):
    with pytest.raises(InputError, match=re.escape(words)):
        compare_runs(models, tmp_path, first, second)


def test_a_run_without_results_is_refused(models):
    (models / "b" / "evaluation" / "evaluation.parquet").unlink()
    with pytest.raises(InputError, match="run b was not evaluated"):
        read_evaluated_run(models, "b")


def test_other_panels_are_said_so(models):
    folder = models / "b"
    record = json.loads((folder / "run.json").read_text()) | {"panel_hash": "q"}
    (folder / "run.json").write_text(json.dumps(record))
    for path in (folder / "evaluation").glob("*.parquet"):
        pl.read_parquet(path).with_columns(panel_hash=pl.lit("q")).write_parquet(path)
    assert "The panels differ" in render_comparison(*_both(models))
