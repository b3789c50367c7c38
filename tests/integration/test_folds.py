"""A model trained on a fold: it sees nothing of its test period, and scores that alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from atft_model.__main__ import main
from atft_model.data.folds import WalkForwardConfig, plan_folds
from atft_model.data.graph import GraphConfig, build_graph, write_graph
from atft_model.data.panel import Panel, fit_statistics, read_panel, write_panel
from atft_model.errors import InputError
from atft_model.run import append_trial, count_trials, open_run, predict

QUARTERS = WalkForwardConfig("quarter", validation_dates=30, embargo=2, min_train_dates=50)


def _store(panel: Panel, root) -> None:
    write_panel(panel, root / "panel")
    stored = read_panel(root / "panel")
    write_graph(build_graph(stored, GraphConfig(neighbours=5)), root / "graph")
    (fold,) = plan_folds(stored, QUARTERS)[0]
    first, last = fold.split.test
    # Dates after the period, as every period but the last one has.
    fold = replace(fold, split=replace(fold.split, test=(first, last - 15)))
    (root / "fold.json").write_text(json.dumps(fold.to_dict()))


def _train(root, name: str) -> dict:
    settings = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": 1, "max_steps_per_epoch": 2, "device": "cpu"},
    }
    (root / "settings.json").write_text(json.dumps(settings))
    out = root / name
    command = ["train", "--panel", str(root / "panel"), "--graph", str(root / "graph"), "--out",
               str(out), "--preset", "quick", "--run-file", str(root / "settings.json"),
               "--fold", str(root / "fold.json"), "--ledger", str(root / "ledger")]  # fmt: skip
    assert main(command) == 0
    return json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def trained(stored_panel, tmp_path_factory):
    root = tmp_path_factory.mktemp("fold")
    _store(read_panel(stored_panel[0]), root)
    return root, _train(root, "run")


def test_the_record_holds_the_folds_split_and_statistics(trained):
    root, record = trained
    panel = read_panel(root / "panel")
    fold = json.loads((root / "fold.json").read_text())
    assert record["fold"] == fold
    assert record["split"]["test"] == [str(panel.dates[fold["test"][0]]), "2020-08-12"]
    of_fold = fit_statistics(panel, tuple(fold["train"]))
    assert record["statistics"]["mean"] == pytest.approx(of_fold.mean.tolist())
    of_panel = fit_statistics(panel, panel.split.train)
    assert record["statistics"]["mean"] != pytest.approx(of_panel.mean.tolist())


def test_only_the_period_is_scored_as_test(trained):
    root, record = trained
    table = predict(root / "run", root / "panel", root / "graph", with_random_graph=True)
    panel = read_panel(root / "panel")
    test = table.filter(pc.equal(table["part"], "test"))
    first, last = record["fold"]["test"]
    assert last == len(panel.dates) - 15
    assert set(test["date"].to_pylist()) <= set(panel.dates[first:last])
    assert {"model", "model_random_graph"} == set(test["scorer"].to_pylist())
    earlier = table.filter(pc.not_equal(table["part"], "test"))
    assert max(earlier["date"].to_pylist()) < panel.dates[first]


def test_weights_are_the_same_whatever_happens_in_the_test_period(trained, tmp_path):
    """All features, returns and targets that a date of the period can see are made up anew."""
    root, record = trained
    panel = read_panel(root / "panel")
    first = record["fold"]["test"][0]
    rng = np.random.default_rng(5)
    arrays = {name: np.array(getattr(panel, name))
              for name in ("features", "targets", "daily_return")}  # fmt: skip
    for array in arrays.values():
        array[first:] = rng.standard_normal(array[first:].shape)
    _store(_with(panel, arrays), tmp_path)
    again = _train(tmp_path, "run")
    assert again["panel_hash"] != record["panel_hash"]
    assert again["checkpoint_hash"] == record["checkpoint_hash"]
    # The test can fail: one training date changed gives other weights.
    arrays["targets"][60] += 0.1 * rng.standard_normal(arrays["targets"][60].shape)
    (tmp_path / "touched").mkdir()
    _store(_with(panel, arrays), tmp_path / "touched")
    assert _train(tmp_path / "touched", "run")["checkpoint_hash"] != record["checkpoint_hash"]


def test_a_feature_unknown_in_the_training_dates_is_left_out_by_name(trained, tmp_path, caplog):
    """Known later, when a vendor's table begins: later folds have it, this one does without."""
    root, record = trained
    assert record["left_out"] == {}
    panel = read_panel(root / "panel")
    last = record["fold"]["train"][1]
    features = np.array(panel.features)
    unknown, market_wide = panel.feature_names[1], panel.feature_names[-1]
    assert (panel.normalizers[1], panel.normalizers[-1]) == ("cross_section", "time_series")
    features[:last, :, 1] = np.nan
    features[:last, :, -1] = 0.25
    _store(_with(panel, {"features": features}), tmp_path)
    late = _train(tmp_path, "run")
    reasons = {
        unknown: "no known value on training dates",
        market_wide: "constant on training dates: always 0.25",
    }
    assert late["left_out"] == reasons
    assert late["features"] == [n for n in panel.feature_names if n not in reasons]
    assert f"left out of fold 2020-Q3: {unknown}: no known value" in caplog.text
    assert "100% of the training returns count relative to their sector" in caplog.text
    assert late["relative_to_sector"] == 1.0
    table = predict(tmp_path / "run", tmp_path / "panel", tmp_path / "graph")
    assert np.isfinite(table["score"].to_numpy()).all()


def _with(panel: Panel, arrays: dict[str, np.ndarray]) -> Panel:
    return replace(panel, hash="", **arrays)


def test_a_killed_fold_does_not_go_on_under_another_split(trained, tmp_path, capsys):
    root, _ = trained
    shutil.copytree(root, tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    (folder / "run.json").unlink()
    assert (folder / "state.pt").exists()
    body = json.loads((tmp_path / "copy" / "fold.json").read_text())
    body["train"][1] -= 1
    (tmp_path / "copy" / "fold.json").write_text(json.dumps(body))
    command = ["train", "--panel", str(root / "panel"), "--graph", str(root / "graph"), "--out",
               str(folder), "--preset", "quick", "--run-file", str(root / "settings.json"),
               "--fold", str(tmp_path / "copy" / "fold.json"), "--resume"]  # fmt: skip
    assert main(command) == 2
    assert "cannot resume: fold" in capsys.readouterr().err


def test_another_panel_is_refused(trained, stored_panel, tmp_path):
    root, _ = trained
    from atft_model.data.toy_panel import make_panel

    _store(make_panel(seed=1), tmp_path)
    with pytest.raises(InputError, match="made for panel"):
        predict(root / "run", tmp_path / "panel", tmp_path / "graph")


def test_sectors_in_another_order_are_refused(trained):
    """The embedding of a sector is found by its position."""
    root, _ = trained
    path = root / "run" / "run.json"
    good = path.read_text()
    record = json.loads(good)
    record["sectors"] = [record["sectors"][0], *reversed(record["sectors"][1:])]
    path.write_text(json.dumps(record))
    try:
        with pytest.raises(InputError, match="trained with 4 sectors"):
            predict(root / "run", root / "panel", root / "graph")
    finally:
        path.write_text(good)


def test_the_newest_date_alone_is_scored_like_all_of_them(trained):
    root, _ = trained
    assert open_run(root / "run").record["fold"]["period"] == "2020-Q3"
    every = predict(root / "run", root / "panel", root / "graph")
    newest = predict(root / "run", root / "panel", root / "graph", newest_only=True)
    (day,) = set(newest["date"].to_pylist())
    assert day == max(every["date"].to_pylist())
    same = every.filter(pc.equal(every["date"], day))
    assert newest["code"].to_pylist() == same["code"].to_pylist()
    assert np.allclose(newest["score"].to_numpy(), same["score"].to_numpy(), atol=1e-6)


def test_the_folds_of_a_walk_forward_are_one_trial(tmp_path):
    ledger = tmp_path / "ledger.jsonl"

    def add(name: str, period: str | None) -> int:
        record = dict.fromkeys(("finished_at", "panel_hash", "best_validation_rank_ic"), "x")
        of_fold = {"fold": {"period": period}} if period else {}
        return append_trial(ledger, record | {"run_id": name, "checkpoint_hash": name} | of_fold)

    assert [add("a", None), add("b", "2017"), add("c", "2018"), add("d", "2019")] == [1, 2, 2, 2]
    assert add("e", "2018") == 3  # a second pass has begun
    assert [add("f", "2019"), add("g", None)] == [3, 4]
    assert count_trials(ledger) == 4
