"""An extended panel has the content hash of one that is built whole; or all of it is built."""

import datetime as dt
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from atft_model.data.artifacts import RawFile, append_raw, current_version, file_hash
from atft_model.data.panel import read_panel, write_panel
from atft_model.data.splits import SplitConfig
from atft_model.errors import InputError
from atft_pipeline.feature_registry import REGISTRY
from atft_pipeline.transforms.incremental import Plan, with_stored
from atft_pipeline.transforms.panel import (
    build_panel,
    default_split,
    feature_rows,
    panel_codes,
    trading_calendar,
)
from atft_pipeline.transforms.panel_extension import build_or_extend_array, panel_built_from
from atft_pipeline.transforms.targets import forward_returns

DAYS, STOCKS = 130, 9
CONTRACT = REGISTRY[:5]
NAMES = [feature.name for feature in CONTRACT]
DATES = [dt.date(2024, 1, 1) + dt.timedelta(days=day) for day in range(DAYS)]


def _world() -> dict[str, pl.DataFrame]:
    """Prices, features and normalized features of nine stocks; one is listed on the last day."""
    rng = np.random.default_rng(4)
    keys = pl.DataFrame({"code": [f"S{n}" for n in range(STOCKS)]}).join(
        pl.DataFrame({"date": DATES}), how="cross", maintain_order="left_right"
    )
    keys = keys.filter((pl.col("code") != "S3") | (pl.col("date") == DATES[-1]))
    values = rng.standard_normal((keys.height, 2 * len(NAMES))).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    columns = [pl.Series(n, v).fill_nan(None) for n, v in zip(NAMES * 2, values.T, strict=True)]
    close = 10.0 * np.exp(0.01 * rng.standard_normal(keys.height))
    keys = keys.select("date", "code")
    return {
        "prices": keys.with_columns(close=close),
        "features": keys.hstack(columns[: len(NAMES)]),
        "normalized": keys.hstack(columns[len(NAMES) :]),
    }


WORLD = _world()
SPLIT = SplitConfig(0.5, 0.3, embargo=0, min_dates=10)
LISTINGS = pl.DataFrame({"code": ["S0", "S1"], "sector": ["a", "b"], "market": ["x", None]})


def on(day: int) -> dict[str, pl.DataFrame]:
    return {name: table.filter(pl.col("date") <= DATES[day]) for name, table in WORLD.items()}


class Stored:
    """Versions of the panel and the record beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record: pl.DataFrame | None = None

    def materialize(self, tables: dict[str, pl.DataFrame], contract=CONTRACT) -> tuple[str, Plan]:
        self.root.mkdir(exist_ok=True)
        prices, features, normalized = tables["prices"], tables["features"], tables["normalized"]
        calendar, codes = trading_calendar(prices), panel_codes(prices)
        universe = prices.select("date", "code", raw_close="close")
        rows = feature_rows(features, normalized, contract)
        now = panel_built_from(rows, contract, codes)
        array = build_or_extend_array(rows, calendar, codes, now, self.record, self.root)
        panel = build_panel(
            prices, universe, forward_returns(prices), features, normalized, contract, LISTINGS,
            default_split(calendar, universe, SPLIT), "test", {}, array.values,
        )  # fmt: skip
        version = write_panel(panel, self.root, array.file)
        self.record = with_stored(now, version)
        return version, array.done


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    one = Stored(tmp_path / "panel")
    assert one.materialize(on(DAYS - 5))[1].since is None
    return one


def whole(tables: dict[str, pl.DataFrame], folder: Path, contract=CONTRACT) -> str:
    version, done = Stored(folder / "whole").materialize(tables, contract)
    assert done.since is None
    return version


def corrected(tables: dict[str, pl.DataFrame], table: str, day: int) -> dict[str, pl.DataFrame]:
    here = (pl.col("date") == DATES[day]) & (pl.col("code") == "S6")
    other = [pl.when(here).then(pl.lit(7.0, pl.Float32)).otherwise(n).alias(n) for n in NAMES]
    return tables | {table: tables[table].with_columns(other)}


def test_new_dates_are_appended(stored: Stored, tmp_path: Path) -> None:
    for day, first in ((DAYS - 4, DAYS - 4), (DAYS - 2, DAYS - 3)):
        version, done = stored.materialize(on(day))
        assert done.since == DATES[first]
        assert version == whole(on(day), tmp_path)
    assert read_panel(stored.root).hash == version


def test_unchanged_tables_give_the_same_version(stored: Stored) -> None:
    before = current_version(stored.root, "panel").name
    version, done = stored.materialize(on(DAYS - 5))
    assert (version, done.why) == (before, "no input has changed")


@pytest.mark.parametrize(("table", "column"), [("normalized", "returns_1d"),
                                               ("features", "log_returns_1d")])  # fmt: skip
def test_a_past_value_that_was_corrected_starts_there(
    stored: Stored, tmp_path: Path, table: str, column: str
) -> None:
    assert column in NAMES
    tables = corrected(on(DAYS - 4), table, 40)
    version, done = stored.materialize(tables)
    assert done.since == DATES[40]
    assert version == whole(tables, tmp_path)


def test_a_new_stock_builds_all(stored: Stored, tmp_path: Path) -> None:
    version, done = stored.materialize(on(DAYS - 1))
    assert (done.since, done.why) == (None, "stocks of the panel changed")
    assert version == whole(on(DAYS - 1), tmp_path)


def test_a_feature_left_out_builds_all(stored: Stored, tmp_path: Path) -> None:
    tables = on(DAYS - 4)
    tables["normalized"] = tables["normalized"].drop(NAMES[-1])
    version, done = stored.materialize(tables, CONTRACT[:-1])
    assert (done.since, done.why) == (None, "panel features changed")
    assert version == whole(tables, tmp_path, CONTRACT[:-1])


def test_another_normalizer_builds_all(stored: Stored) -> None:
    other = (replace(CONTRACT[0], normalizer="time_series"), *CONTRACT[1:])
    assert stored.materialize(on(DAYS - 4), other)[1].why == "panel features changed"


def test_a_date_that_is_gone_is_gone(stored: Stored, tmp_path: Path) -> None:
    holed = {
        name: table.filter(pl.col("date") != DATES[DAYS - 9])
        for name, table in on(DAYS - 5).items()
    }
    version, done = stored.materialize(holed)
    assert done.since == DATES[DAYS - 9]
    assert version == whole(holed, tmp_path)


def test_a_record_of_another_version_is_not_believed(stored: Stored) -> None:
    """As a run leaves it that is killed between the panel and its record."""
    record = stored.record
    stored.materialize(on(DAYS - 4))
    stored.record = record
    assert stored.materialize(on(DAYS - 3))[1].why.startswith("the record beside the panel is not")


def test_a_damaged_array_is_refused(stored: Stored) -> None:
    array = current_version(stored.root, "panel") / "features.raw"
    content = bytearray(array.read_bytes())
    content[-3] ^= 1
    array.write_bytes(content)
    with pytest.raises(InputError, match=r"features\.raw: content differs from the manifest"):
        stored.materialize(on(DAYS - 4))


def test_normalized_rows_of_other_prices_are_refused(stored: Stored) -> None:
    tables = on(DAYS - 4) | {"normalized": on(DAYS - 5)["normalized"]}
    with pytest.raises(InputError, match="normalized_features: 1,008 rows that are not those of"):
        stored.materialize(tables)


VALUES = np.random.default_rng(0).standard_normal((10, 3, 2)).astype(np.float32)
DATE = VALUES[0].nbytes


@pytest.fixture
def seven(tmp_path: Path) -> RawFile:
    """A stored array of seven dates."""
    path = tmp_path / "old.raw"
    VALUES[:7].tofile(path)
    return RawFile(path, 7 * DATE, file_hash(path))


def is_array(file: RawFile, expected: np.ndarray) -> bool:
    content = file.path.read_bytes()[: file.length]
    return content == expected.tobytes() and file.hash == file_hash(file.path, file.length)


@pytest.mark.parametrize("new", [VALUES[7:], VALUES[:0]])
def test_new_dates_are_written_behind_the_stored_ones(
    tmp_path: Path, seven: RawFile, new: np.ndarray
) -> None:
    grown = append_raw(seven, 7 * DATE, new, tmp_path / "new.raw")
    assert is_array(grown, np.concatenate([VALUES[:7], new]))
    assert grown.path.samefile(seven.path)
    assert is_array(seven, VALUES[:7]), "the stored version reads what it read"


@pytest.mark.parametrize("keep", [0, 4])
def test_dates_that_differ_are_not_written_over(tmp_path: Path, seven: RawFile, keep: int) -> None:
    grown = append_raw(seven, keep * DATE, VALUES[7:], tmp_path / "new.raw")
    assert is_array(grown, np.concatenate([VALUES[:keep], VALUES[7:]]))
    assert not grown.path.samefile(seven.path)
    assert seven.path.read_bytes() == VALUES[:7].tobytes()


def test_what_another_run_appended_stays(tmp_path: Path, seven: RawFile) -> None:
    """Whether it was published or killed: both stored versions keep their bytes."""
    first = append_raw(seven, 7 * DATE, VALUES[7:9], tmp_path / "first.raw")
    second = append_raw(seven, 7 * DATE, VALUES[8:], tmp_path / "second.raw")
    assert is_array(first, VALUES[:9])
    assert is_array(second, np.concatenate([VALUES[:7], VALUES[8:]]))


def test_without_hard_links_the_bytes_are_copied(
    tmp_path: Path, seven: RawFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_) -> None:
        raise PermissionError("no second names here")

    monkeypatch.setattr(os, "link", refused)
    grown = append_raw(seven, 7 * DATE, VALUES[7:], tmp_path / "new.raw")
    assert is_array(grown, VALUES)
    assert not grown.path.samefile(seven.path)


def test_more_bytes_than_are_stored_are_not_kept(tmp_path: Path, seven: RawFile) -> None:
    with pytest.raises(InputError, match="192 of them wanted"):
        append_raw(seven, 8 * DATE, VALUES[8:], tmp_path / "new.raw")
