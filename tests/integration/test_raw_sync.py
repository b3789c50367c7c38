"""Raw assets materialized again: the same content, one run at a time, nothing secret stored."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from jquants_server import KEY, Vendor

from atft_model.errors import InputError
from atft_pipeline import resources, sources, storage
from atft_pipeline.assets import raw
from atft_pipeline.resources import Market
from atft_pipeline.sources.jquants import JQuantsConfig, JQuantsSource
from atft_pipeline.sources.lock import exclusive
from atft_pipeline.storage import Storage, TableIOManager

PYTHON_LOGS = {"managed_python_loggers": ["atft_pipeline"], "python_log_level": "INFO"}
"""As in dagster_home/dagster.yaml."""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(settings={"python_logs": PYTHON_LOGS}) as instance:
        yield instance


def materialize(
    market: Market, data_dir: Path, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    store = Storage(market=market, data_dir=str(data_dir))
    return dg.materialize(
        raw.ASSETS,
        instance=instance,
        raise_on_error=False,
        resources={
            "market": market, "storage": store, "io_manager": TableIOManager(storage=store),
        },
    )  # fmt: skip


def hashes(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    return {
        event.asset_key.path[-1]: event.materialization.metadata["content_hash"].value
        for event in result.get_asset_materialization_events()
    }


def logs(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> str:
    return "\n".join(entry.to_json() for entry in instance.all_logs(result.run_id))


def write_bars(path: Path, *closes: float) -> None:
    days = [f"2024-01-{day:02d}" for day in range(4, 4 + len(closes))]
    bars = pl.DataFrame({"date": days, "code": "A", "close": closes})
    prices = (pl.col("close").alias(name) for name in ("open", "high", "low"))
    bars.with_columns(*prices, volume=pl.lit(100)).write_csv(path)


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    with Vendor() as vendor:
        at_home = functools.partial(JQuantsConfig, base_url=vendor.url, attempts=1)
        monkeypatch.setattr(resources, "JQuantsConfig", at_home)
        monkeypatch.setenv("JQUANTS_API_KEY", f"{KEY}\n")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield vendor


def tokyo(data_dir: Path) -> Market:
    return Market(
        source="jquants", jquants_plan="premium", jquants_cache=str(data_dir / "cache"),
        start_date="2024-01-29", end_date="2024-02-06",
    )  # fmt: skip


def test_an_unchanged_file_gives_the_same_content(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    path = tmp_path / "bars.csv"
    write_bars(path, 10.0, 11.0)
    market = Market(source="files", prices=str(path))
    first = hashes(materialize(market, tmp_path, instance))
    write_bars(path, 10.0, 11.0)  # another time of change, nothing else
    assert hashes(materialize(market, tmp_path, instance)) == first
    write_bars(path, 10.0, 11.5)
    assert hashes(materialize(market, tmp_path, instance))["raw_prices"] != first["raw_prices"]


def test_the_built_in_market_gives_the_same_content(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    market = Market(source="synthetic", stocks=20, dates=60)
    first = hashes(materialize(market, tmp_path, instance))
    assert hashes(materialize(market, tmp_path, instance)) == first


def test_jquants_twice_gives_the_same_content_and_asks_for_nothing(
    vendor: Vendor, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    market = tokyo(tmp_path)
    result = materialize(market, tmp_path, instance)
    assert result.success
    assert "J-Quants bars: 7 of 7 parts to ask for, 0 kept" in logs(result, instance)
    first, requests = hashes(result), vendor.requests
    assert set(first) >= {"raw_prices", "raw_listings", "raw_indices"}
    assert hashes(materialize(market, tmp_path, instance)) == first
    assert vendor.requests == requests


def test_the_key_is_in_no_event_and_no_file(
    vendor: Vendor, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    good = materialize(tokyo(tmp_path), tmp_path, instance)
    vendor.not_in_plan = {"/equities/bars/daily"}
    bad = materialize(tokyo(tmp_path / "other"), tmp_path, instance)
    assert good.success
    assert not bad.success
    assert "This API is not available on your subscription" in logs(bad, instance)
    assert KEY not in logs(good, instance) + logs(bad, instance)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_missing_key_is_one_line_that_says_what_to_set(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JQUANTS_API_KEY", raising=False)
    said = (
        "ATFT_SOURCE is 'jquants' but JQUANTS_API_KEY is not set; set it to the API key of the "
        "J-Quants dashboard"
    )
    with pytest.raises(InputError, match=said):
        tokyo(tmp_path).build()
    result = materialize(tokyo(tmp_path), tmp_path, instance)
    assert said in logs(result, instance)
    assert not (tmp_path / "jquants" / "raw_prices.parquet").exists()


def test_a_missing_client_is_one_line_that_says_what_to_install(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "atft_pipeline.sources.jquants_client", raising=False)
    monkeypatch.delattr(sources, "jquants_client", raising=False)
    monkeypatch.setitem(sys.modules, "jquantsapi", None)
    with pytest.raises(InputError, match=r"jquants-api-client is not installed; install it with: "
                       r"python -m pip install -e '\.\[jquants\]' -c constraints.txt"):  # fmt: skip
        tokyo(tmp_path).build().raw_prices()


def test_settings_reach_the_source(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATFT_SOURCE", "jquants")
    monkeypatch.setenv("ATFT_JQUANTS_PLAN", "standard")
    monkeypatch.setenv("ATFT_DATA_DIR", "/somewhere")
    source = Market(end_date="2024-02-06").build()
    assert isinstance(source, JQuantsSource)
    assert (source.config.api_key, source.config.plan) == (KEY, "standard")
    assert source.config.cache == Path("/somewhere/jquants_cache")
    assert str(source.config.end_date) == "2024-02-06"


@pytest.mark.parametrize("table", ["raw_prices", "raw_listings", "raw_indices"])
def test_a_raw_table_is_fetched_by_one_run_at_a_time(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(storage, "LOCK_WAIT_SECONDS", 0.0)
    market = Market(source="synthetic", stocks=20, dates=60)
    with exclusive(tmp_path / "synthetic" / f".{table}.lock", "another run", 0.0):
        result = materialize(market, tmp_path, instance)
    assert f"(another run); {table} waited 0 s" in logs(result, instance)
    assert table not in hashes(result)
    assert table in hashes(materialize(market, tmp_path, instance))
