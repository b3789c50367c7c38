"""What a person gets wrong ends in one line and harms nothing that is stored."""

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from atft_pipeline.__main__ import main
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket

DATA_SET = "synthetic"

Prepare = Callable[[pl.DataFrame, Path], None]


@pytest.fixture(scope="module")
def good_bars() -> pl.DataFrame:
    return SyntheticMarket(SyntheticConfig(stocks=40, dates=120)).raw_prices()


@pytest.fixture
def shell(tables_copy, monkeypatch) -> Path:
    """The environment of a shell over a data set that holds tables; records stay in memory."""
    monkeypatch.setattr("atft_pipeline.__main__.open_instance", dg.DagsterInstance.ephemeral)
    monkeypatch.setenv("ATFT_DATA_DIR", str(tables_copy))
    monkeypatch.setenv("ATFT_DATASET", DATA_SET)
    return tables_copy / DATA_SET


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".duckdb" and "rejected" not in path.parts
    }


def refused(shell: Path, capfd, *arguments: str) -> str:
    """Runs the command, which must fail without harm and without a traceback.

    Returns:
        The one line that says why.
    """
    good = contents(shell)
    code = main(["run", *arguments])
    printed = capfd.readouterr()
    assert code in (1, 2)
    assert contents(shell) == good
    assert "Traceback" not in printed.out + printed.err
    assert "Stack Trace" not in printed.out + printed.err
    if code == 2:
        (line,) = printed.err.splitlines()
        return line
    (line,) = [line for line in printed.out.splitlines() if "FAILED" in line]
    return line


def run_file(path: Path, **config) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


def nothing(bars: pl.DataFrame, path: Path) -> None:
    """No file at all."""


def half_a_parquet_file(bars: pl.DataFrame, path: Path) -> None:
    bars.write_parquet(path)
    path.write_bytes(path.read_bytes()[:1000])


def zero_bytes(bars: pl.DataFrame, path: Path) -> None:
    path.touch()


def header_only(bars: pl.DataFrame, path: Path) -> None:
    bars.head(0).write_csv(path)


def other_column_names(bars: pl.DataFrame, path: Path) -> None:
    bars.rename({"close": "final", "volume": "pieces"}).write_csv(path)


def prices_as_text(bars: pl.DataFrame, path: Path) -> None:
    text = pl.when(pl.int_range(pl.len()) == 6).then(pl.lit("n/k")).otherwise(pl.col("close"))
    bars.with_columns(close=text).write_csv(path)


def dates_in_the_future(bars: pl.DataFrame, path: Path) -> None:
    ahead = dt.date.today() - bars["date"].min() + dt.timedelta(days=1)  # type: ignore[operator]
    bars.with_columns(pl.col("date") + ahead).write_parquet(path)


@pytest.mark.parametrize(
    ("file", "prepare", "line"),
    [
        ("bars.parquet", nothing, r"bars\.parquet: no such file; .* correct the path"),
        ("bars.parquet", half_a_parquet_file, r"bars\.parquet: cannot be read .* again"),
        ("bars.csv", zero_bytes, r"bars\.csv: is empty \(0 bytes\); .* get the file again"),
        ("bars.csv", header_only, r"bars\.csv: has columns but no rows"),
        ("bars.csv", other_column_names,
         r"no column for close, volume; found .*final.*pieces.*; needed .*; rename the columns"),
        ("bars.csv", prices_as_text, r"column 'close' holds 'n/k' in data row 7"),
        ("bars.parquet", dates_in_the_future, r"expected no date in the future \(today is"),
        ("bars.xlsx", zero_bytes, r"bars\.xlsx"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(
    shell, good_bars, tmp_path, monkeypatch, capfd, file: str, prepare: Prepare, line: str
):
    prepare(good_bars, tmp_path / file)
    monkeypatch.setenv("ATFT_SOURCE", "files")
    monkeypatch.setenv("ATFT_PRICES", str(tmp_path / file))
    found = refused(shell, capfd, "--select", "key:raw_prices or key:prices")
    assert "raw_prices: " in found
    assert re.search(line, found)


def test_known_column_names_are_mapped(shell, good_bars, tmp_path, monkeypatch, capfd):
    path = tmp_path / "bars.csv"
    good_bars.rename({"date": "Date", "code": "Ticker", "close": "Close"}).write_csv(path)
    monkeypatch.setenv("ATFT_SOURCE", "files")
    monkeypatch.setenv("ATFT_PRICES", str(path))
    assert main(["run", "--select", "raw_prices"]) == 0
    assert "holds" in capfd.readouterr().out
    assert pl.read_parquet(shell / "raw_prices.parquet").height == good_bars.height


def test_a_file_of_duplicates_is_no_prices_table(shell, good_bars, tmp_path, monkeypatch, capfd):
    doubled = pl.concat([good_bars, good_bars.with_columns(pl.col("close") * 1.01)])
    doubled.write_parquet(tmp_path / "bars.parquet")
    monkeypatch.setenv("ATFT_SOURCE", "files")
    monkeypatch.setenv("ATFT_PRICES", str(tmp_path / "bars.parquet"))
    good = (shell / "prices.parquet").read_bytes()
    assert main(["run", "--select", "key:raw_prices or key:prices"]) == 1
    printed = capfd.readouterr()
    assert re.search(r"FAILS.* prices:quarantined_share_within_limit .* rows \(\d", printed.out)
    assert "FAILED" in printed.out
    assert re.search(
        r"prices: not stored, failed quarantined_share_within_limit, .*\n", printed.out
    )
    assert "Stack Trace" not in printed.err
    assert (shell / "prices.parquet").read_bytes() == good
    reasons = pl.read_parquet(shell / "rejected" / "quarantine.parquet")["reason"]
    assert "conflicting_duplicate" in reasons


@pytest.mark.parametrize(
    "market",
    [
        {"stocks": 25, "dates": 420},
        {"stocks": 60, "dates": 60},
    ],
)
def test_a_market_with_too_few_stocks_or_dates(shell, tmp_path, capfd, market):
    few_rows = {"limits": {"conflicting_duplicate": 0.01, "non_positive_price": 0.01,
                           "high_below_low": 0.01, "close_outside_range": 0.01}}  # fmt: skip
    config = run_file(
        tmp_path / "run.yaml",
        resources={"market": {"config": market}},
        ops={"prices": {"config": few_rows}},
    )
    universe = (shell / "trading_universe.parquet").read_bytes()
    panel = (shell / "panel" / "current.json").read_bytes()
    assert main(["run", "--select", "*panel", "--config", config]) == 1
    printed = capfd.readouterr()
    line = r"median \d+ stocks per date over \d+ dates"
    assert re.search(rf"FAILS.* trading_universe:universe_is_wide +{line}", printed.out)
    assert "Stack Trace" not in printed.out + printed.err
    assert (shell / "trading_universe.parquet").read_bytes() == universe
    assert (shell / "panel" / "current.json").read_bytes() == panel


def test_too_few_dates_for_three_parts(shell, tmp_path, capfd):
    config = run_file(
        tmp_path / "run.yaml",
        resources={
            "market": {"config": {"stocks": 60, "dates": 200}},
            "split": {"config": {"validation_fraction": 0.2}},
        },
    )
    panel = (shell / "panel" / "current.json").read_bytes()
    assert main(["run", "--select", "*panel", "--config", config]) == 1
    printed = capfd.readouterr()
    assert re.search(
        r"FAILED.* normalized_features: split: \d+ usable dates leave \d+ for \w+ after a gap of "
        r"26 trading days; expected at least 40: give more dates\n",
        printed.out,
    )
    assert "Traceback" not in printed.err
    assert (shell / "panel" / "current.json").read_bytes() == panel


def test_an_unknown_source(shell, monkeypatch, capfd):
    monkeypatch.setenv("ATFT_SOURCE", "filez")
    found = refused(shell, capfd, "--select", "raw_prices")
    assert "raw_prices: ATFT_SOURCE is 'filez'; expected one of synthetic, files" in found


def test_files_without_a_path(shell, monkeypatch, capfd):
    monkeypatch.setenv("ATFT_SOURCE", "files")
    found = refused(shell, capfd, "--select", "raw_prices")
    assert "ATFT_PRICES is not set; give the path" in found


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"ops": {"trained_model": {"config": {"optimizer": {"clip_nrom": 1.0}}}}},
         "run config: ops.trained_model.config.optimizer: unknown key 'clip_nrom'; "
         "did you mean 'clip_norm'?"),
        ({"ops": {"traned_model": {"config": {}}}},
         "run config: ops: unknown key 'traned_model'; did you mean 'trained_model'?"),
        ({"resources": {"market": {"config": {"stock": 10}}}},
         "run config: resources.market.config: unknown key 'stock'; did you mean 'stocks'?"),
        ({"op": {}}, "run config: unknown key 'op'; did you mean 'ops'?"),
    ],
)  # fmt: skip
def test_an_unknown_config_key(shell, tmp_path, capfd, config, line):
    found = refused(shell, capfd, "--config", run_file(tmp_path / "run.yaml", **config))
    assert found == f"atft_pipeline: {line}"


def test_a_value_of_another_type(shell, tmp_path, capfd):
    config = {"ops": {"trained_model": {"config": {"training": {"max_epochs": "many"}}}}}
    found = refused(shell, capfd, "--config", run_file(tmp_path / "run.yaml", **config))
    assert "max_epochs" in found
    assert "many" in found


def test_a_value_that_cannot_train(shell, tmp_path, capfd):
    config = {"ops": {"trained_model": {"config": {"model": {"hidden_size": 4}}}}}
    found = refused(
        shell, capfd, "--select", "trained_model", "--config",
        run_file(tmp_path / "run.yaml", **config),
    )  # fmt: skip
    assert "trained_model: model.hidden_size is 4; expected 16 to 1024" in found


def test_a_key_of_a_run_file_that_no_setting_has(shell, tmp_path, capfd):
    (tmp_path / "run.toml").write_text("[optimizer]\nclip_nrom = 1.0\n")
    config = {"ops": {"trained_model": {"config": {"run_file": str(tmp_path / "run.toml")}}}}
    found = refused(
        shell, capfd, "--select", "trained_model", "--config",
        run_file(tmp_path / "run.yaml", **config),
    )  # fmt: skip
    assert "run.toml: unknown key 'optimizer.clip_nrom'; did you mean 'optimizer.clip_norm'?" in (
        found
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--select", "trainde_model"], "--select 'trainde_model'"),
        (["--select", "((("], "--select '((('"),
        (["--config", "no/such.yaml"], "no/such.yaml: run config not found"),
    ],
)
def test_a_command_that_cannot_be_carried_out(shell, capfd, arguments, line):
    found = refused(shell, capfd, *arguments)
    assert found.startswith(f"atft_pipeline: {line}")


def test_no_dagster_home_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    assert main(["run"]) == 2
    assert capsys.readouterr().err == (
        "atft_pipeline: DAGSTER_HOME is not set; start with make run, or source activate.sh first\n"
    )


def test_an_upstream_that_was_never_built_is_named(shell, capfd):
    found = refused(shell, capfd, "--select", "predictions")
    assert found.endswith(
        "predictions: trained_model has not been materialized; build it with everything upstream: "
        "dagster asset materialize --select '*predictions'"
    )
