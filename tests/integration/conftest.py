"""The asset graph on the smallest market that has three parts, run once for all these tests.

It is free of signal, so that what looks like skill is luck.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from atft_pipeline.__main__ import UNPARTITIONED, exit_code, materialize

# One run of dates per step: 20 readings an epoch are the least that is evidence. On a market free
# of signal so small a step's gradient is noise, and the loss needs a few epochs to fall.
SMALL_MODEL = {
    "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
    "training": {"max_epochs": 4, "device": "cpu", "batch_windows": 1, "run_length": 5},
    "optimizer": {"clip_norm": 5.0},  # such small batches have gradients that 1.0 would always clip
}

# What it finds is tested in test_learned_structure.py.
SMALL_STRUCTURE = {
    "bootstrap": {"resamples": 2, "shuffles": 2},
    "gradient": {"epochs_per_stage": 3},
    "search": {"random_starts": 1},
}

Config = Callable[..., dict[str, Any]]
Run = Callable[..., dg.ExecuteInProcessResult]


def _config(data_dir: Path, **ops: dict[str, Any]) -> dict[str, Any]:
    ops = {"learned_structure": SMALL_STRUCTURE} | ops
    return {
        "resources": {
            "market": {"config": {"stocks": 60, "dates": 420, "signal": 0.0}},
            "storage": {"config": {"data_dir": str(data_dir)}},
            "split": {"config": {"validation_fraction": 0.2, "embargo": 0}},
            # Its last two quarters; the first of them begins before the default split's test part.
            "walk_forward": {
                "config": {
                    "period": "quarter",
                    "validation_dates": 40,
                    "embargo": 0,
                    "min_train_dates": 150,
                }
            },
        },
        "ops": {name: {"config": values} for name, values in ops.items()},
    }


def _run(select: str, data_dir: Path, **ops: dict[str, Any]) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return materialize(select, _config(data_dir, **ops), instance)


@pytest.fixture(scope="session")
def config() -> Config:
    """``config(data_dir, asset={...})``: run config of the small market under ``data_dir``."""
    return _config


@pytest.fixture(scope="session")
def run() -> Run:
    """``run(selection, data_dir, asset={...})``: materializes in this process."""
    return _run


@pytest.fixture(scope="session")
def small_model() -> dict[str, Any]:
    """Config of ``trained_model`` that trains in a second."""
    return SMALL_MODEL


def made_once(tmp_path_factory) -> None:
    """Fails where another process of these tests has run the whole graph before."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        mark = tmp_path_factory.getbasetemp().parent / "whole.made"
        assert not mark.exists(), "a second run of the graph: see ON_GRAPH_RUN in tests/conftest.py"
        mark.touch()


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> Path:
    """A data dir with everything before training."""
    data_dir = tmp_path_factory.mktemp("tables")
    assert exit_code(_run("*stock_graph", data_dir)) == 0
    return data_dir


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Path, dg.ExecuteInProcessResult]:
    """A data dir with everything, and the result of the run that made it."""
    made_once(tmp_path_factory)
    data_dir = tmp_path_factory.mktemp("whole")
    return data_dir, _run(UNPARTITIONED, data_dir, trained_model=SMALL_MODEL)


@pytest.fixture
def tables_copy(tables, tmp_path) -> Path:
    return Path(shutil.copytree(tables, tmp_path / "data"))


@pytest.fixture
def whole_copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "data"))
