"""A planted leak in the running asset graph: its asset fails, stores nothing and stops the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from atft_pipeline.__main__ import exit_code, failures, materialize
from atft_pipeline.assets import features as assets
from atft_pipeline.definitions import defs
from atft_pipeline.feature_registry import REGISTRY

PROVEN = {"prices", "trading_universe", "features", "targets", "normalized_features", "stock_graph"}


def run(data_dir: Path, select: str, **lookahead: Any) -> dg.ExecuteInProcessResult:
    config = {
        "resources": {
            "market": {"config": {"stocks": 60, "dates": 300}},
            "storage": {"config": {"data_dir": str(data_dir)}},
            "split": {"config": {"validation_fraction": 0.2, "embargo": 0}},
            "lookahead": {"config": lookahead},
        },
    }
    with dg.DagsterInstance.ephemeral() as instance:
        return materialize(select, config, instance)


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        check.asset_key.path[-1]: check
        for check in result.get_asset_check_evaluations()
        if check.check_name == "no_lookahead"
    }


def test_every_step_with_a_date_has_the_check_and_it_blocks():
    specs = [spec for asset in defs.assets or [] for spec in asset.check_specs]  # type: ignore
    found = {spec.asset_key.path[-1]: spec for spec in specs if spec.name == "no_lookahead"}
    assert set(found) == PROVEN
    assert all(spec.blocking for spec in found.values())
    assert any(spec.name == "splits_are_purged" and spec.blocking for spec in specs)


def test_a_leaking_feature_is_not_stored_and_nothing_runs_on_it(tmp_path, monkeypatch):
    """The default seed comes from the run's id; a leak shows wherever the cuts fall."""
    available = assets.available_features
    leak = replace(REGISTRY[0], name="leak", expression=pl.col("close") / pl.col("close").max())

    def with_leak(missing: set[str]) -> Any:
        kept, left_out = available(missing)
        return (*kept, leak), left_out

    monkeypatch.setattr(assets, "available_features", with_leak)
    result = run(tmp_path, "*normalized_features")
    found = verdicts(result)
    assert {name for name, check in found.items() if not check.passed} == {"features"}
    figure = str(found["features"].metadata["figure"].value)
    assert figure.startswith("leak of S")
    assert found["features"].severity == dg.AssetCheckSeverity.ERROR
    assert exit_code(result) == 1
    assert not (tmp_path / "synthetic" / "features.parquet").exists()
    assert "normalized_features" not in found


@pytest.mark.parametrize(("settings", "cuts"), [({}, 2), ({"cuts": 1, "seed": 5}, 1)])
def test_each_run_looks_at_other_dates_unless_its_seed_is_given(tmp_path, settings, cuts):
    seen = [
        verdicts(run(tmp_path / str(number), "*prices", **settings))["prices"].metadata
        for number in range(2)
    ]
    assert all(metadata["cuts"].value == cuts for metadata in seen)
    seeds = {metadata["seed"].value for metadata in seen}
    assert seeds == {5} if settings else len(seeds) == 2


def test_a_check_that_would_look_nowhere_is_refused_in_one_line(tmp_path):
    result = run(tmp_path, "*prices", cuts=0)
    assert failures(result) == ["prices: lookahead: cuts is 0; expected 1 or more"]
    assert exit_code(result) == 1
