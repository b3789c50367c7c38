"""A run that was interrupted goes on from the Launchpad's field ``resume``."""

import json

import pytest
from killed import train_until_killed

from atft_model.run import CHECKPOINT
from atft_pipeline.__main__ import exit_code
from atft_pipeline.assets.model import run_config

DATA_SET = "synthetic"


@pytest.mark.slow  # test_resume.py does the same without the asset
def test_the_asset_goes_on_from_the_checkpoint(tables_copy, run, small_model):
    """And says in its run where it stalled; here every step counts as a stall."""
    small_model = {**small_model, "monitor": {"stall_seconds": 0.01}}
    root = tables_copy / DATA_SET
    places = root / "panel", root / "stock_graph"
    folder = root / "models" / "interrupted"
    train_until_killed(run_config(small_model), places, folder, epoch=2)
    assert (folder / CHECKPOINT).exists()
    other = {**small_model, "training": {**small_model["training"], "seed": 5}}
    refused = run("trained_model", tables_copy, trained_model={**other, "resume": "interrupted"})
    assert exit_code(refused) == 1
    assert not (folder / "run.json").exists()
    result = run(
        "trained_model", tables_copy, trained_model={**small_model, "resume": "interrupted"}
    )
    assert exit_code(result) == 0
    record = json.loads((folder / "run.json").read_text())
    assert record["resumed"] is True
    observed = [event.asset_observation_data.asset_observation.metadata
                for event in result.get_asset_observation_events()]  # fmt: skip
    stalls = [values for values in observed if "stalled_seconds" in values]
    assert stalls
    assert stalls[-1]["stalled_seconds"].value > 0.01
    assert record["epochs"] == small_model["training"]["max_epochs"]
    assert json.loads((root / "models" / "current.json").read_text())["hash"] == "interrupted"


def test_a_run_that_does_not_exist_is_named(tables_copy, run, small_model):
    result = run("trained_model", tables_copy, trained_model={**small_model, "resume": "../evil"})
    assert exit_code(result) == 1
    assert not (tables_copy / DATA_SET / "evil").exists()
