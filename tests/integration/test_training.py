"""One short run end to end, by the model library alone."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from atft_model.__main__ import main
from atft_model.config import resolve
from atft_model.errors import InputError
from atft_model.run import open_run, predict, train
from atft_model.training.checkpoint import load_weights, weights_hash
from atft_model.training.code_state import code_state
from atft_model.training.health_record import read_health
from atft_model.training.reporter import Reporter

CONFIG = resolve(
    "quick",
    [
        (
            "test",
            {
                "model": {"hidden_size": 16, "lookback": 10},
                "training": {"max_epochs": 2, "batch_windows": 600},
            },
        )
    ],
)


@pytest.fixture(scope="module")
def run(stored_panel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "run-1"
    return folder, train(CONFIG, *stored_panel, folder, Reporter())


def test_an_epoch_ends_after_its_most_steps(stored_panel, tmp_path):
    few = {"max_epochs": 2, "batch_windows": 600, "max_steps_per_epoch": 3}
    config = resolve("quick", [("test", {"model": {"lookback": 10}, "training": few})])
    train(config, *stored_panel, tmp_path / "run", Reporter())
    record = read_health(tmp_path / "run" / "health").filter(pc.field("kind") == "epoch")
    assert pc.max(record["step"]).as_py() == 6


def test_the_planted_signal_is_found(run):
    folder, record = run
    assert record["best_validation_rank_ic"] > 0.1
    assert {"best.pt", "last.pt", "run.json", "config.json"} <= {p.name for p in folder.iterdir()}
    kinds = set(read_health(folder / "health")["kind"].to_pylist())
    assert {"gradient", "input_gradient", "guard", "step", "loss", "epoch", "checkpoint"} <= kinds


def test_the_record_names_the_code_and_every_checkpoint_by_its_hash(run):
    folder, record = run
    git = record["git"]
    assert git == code_state()
    assert git["commit"] is None or len(git["commit"]) == 40
    assert set(record["checkpoints"]) == {"best.pt", "last.pt", "epoch-0001.pt", "epoch-0002.pt"}
    for name, found in record["checkpoints"].items():
        assert weights_hash(torch.load(folder / name, weights_only=True)) == found
    assert record["checkpoints"]["last.pt"] == record["checkpoints"]["epoch-0002.pt"]
    assert record["checkpoint_hash"] == record["checkpoints"]["best.pt"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_run_keeps_the_weights_that_it_was_asked_for(stored_panel, tmp_path, monkeypatch, keep):
    """Validation worsens after the first epoch; the weights of the last one are others."""
    falling = iter([0.3, 0.2, 0.1])
    monkeypatch.setattr("atft_model.training.loop._watched", lambda validation: next(falling))
    few = {"max_epochs": 3, "batch_windows": 600, "max_steps_per_epoch": 2, "keep": keep}
    config = resolve("quick", [("test", {"model": {"lookback": 10}, "training": few})])
    record = train(config, *stored_panel, tmp_path / "run", Reporter())
    kept, last = ((tmp_path / "run" / f"{name}.pt") for name in ("best", "last"))
    assert record["best_epoch"] == {"best": 1, "last": 3}[keep]
    assert (weights_hash(load_weights(kept)) == weights_hash(load_weights(last))) is (
        keep == "last"
    )


def test_the_same_seed_gives_the_same_weights(run, stored_panel, tmp_path):
    again = train(CONFIG, *stored_panel, tmp_path / "run-2", Reporter())
    assert again["checkpoint_hash"] == run[1]["checkpoint_hash"]


def test_scores_carry_their_identity(run, stored_panel):
    table = predict(run[0], *stored_panel)
    assert set(table["checkpoint_hash"].to_pylist()) == {run[1]["checkpoint_hash"]}
    assert len(table) > 0


def test_a_random_graph_scores_the_test_dates_beside_the_model(run, stored_panel):
    plain = predict(run[0], *stored_panel)
    both = predict(run[0], *stored_panel, with_random_graph=True)
    model = both.filter(pc.equal(both["scorer"], "model"))
    control = both.filter(pc.equal(both["scorer"], "model_random_graph"))
    assert model["score"].equals(plain["score"])
    assert set(control["part"].to_pylist()) == {"test"}
    assert set(control["checkpoint_hash"].to_pylist()) == {run[1]["checkpoint_hash"]}
    of_test = model.filter(pc.equal(model["part"], "test"))
    for column in ("date", "code", "horizon"):
        assert control[column].to_pylist() == of_test[column].to_pylist()
    assert not np.allclose(control["score"].to_numpy(), of_test["score"].to_numpy(), atol=1e-4)


def test_tampered_weights_are_refused(run, stored_panel, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run[0], copy)
    weights = torch.load(copy / "best.pt", weights_only=True)
    weights["missing_day"] += 1
    torch.save(weights, copy / "best.pt")
    with pytest.raises(InputError, match="not of this run"):
        open_run(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_one_clear_line(stored_panel, tmp_path):
    config = resolve("quick", [("test", {"training": {"device": "cuda"}})])
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        train(config, *stored_panel, tmp_path / "run", Reporter())


def test_the_command_line_names_what_is_missing(tmp_path, capsys):
    resolved = tmp_path / "config.json"
    resolved.write_text(json.dumps({}))
    code = main(
        ["train", "--panel", str(tmp_path / "none"), "--graph", str(tmp_path), "--out",
         str(tmp_path / "run"), "--resolved", str(resolved)]
    )  # fmt: skip
    assert code == 2
    assert "materialize panel first" in capsys.readouterr().err
