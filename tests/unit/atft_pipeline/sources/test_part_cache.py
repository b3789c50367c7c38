"""Kept parts: what a file says of itself, and which files are not trusted."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from atft_pipeline.sources.part_cache import Kept, Part, PartCache, remove_leftovers

COLUMNS = {"Code": pl.String, "C": pl.Float64}
DAY = Part("2024/2024-01-04", date(2024, 1, 4), date(2024, 1, 4))
NEXT = Part("2024/2024-01-05", date(2024, 1, 5), date(2024, 1, 5))
KEPT = Kept(datetime(2024, 1, 5, 9, 30, tzinfo=UTC), DAY.first, DAY.last, True, 2)
ROWS = pl.DataFrame({"C": [1.0, None], "Code": ["B", "A"]})


@pytest.fixture
def cache(tmp_path: Path) -> PartCache:
    return PartCache(tmp_path / "bars", COLUMNS)


def test_what_is_stored_is_read_back_with_its_facts(cache: PartCache) -> None:
    assert cache.kept(DAY) is None
    cache.store(DAY, ROWS, KEPT)
    assert cache.kept(DAY) == KEPT
    assert_frame_equal(cache.read([DAY, NEXT]), ROWS.select("Code", "C").sort("Code"))
    assert cache.path(DAY).name == "2024-01-04.parquet"


def test_parts_are_read_in_the_order_asked_for(cache: PartCache) -> None:
    cache.store(DAY, ROWS, KEPT)
    cache.store(NEXT, ROWS.head(1), KEPT)
    assert cache.read([NEXT, DAY])["Code"].to_list() == ["B", "A", "B"]
    assert cache.read([NEXT], ["C"]).columns == ["C"]


def test_nothing_kept_is_a_table_without_rows(cache: PartCache) -> None:
    assert cache.read([DAY]).schema == pl.Schema(COLUMNS)
    assert cache.read([DAY], ["Code"]).columns == ["Code"]


def test_the_order_of_the_vendors_rows_makes_no_difference(cache: PartCache) -> None:
    cache.store(DAY, ROWS, KEPT)
    before = cache.path(DAY).read_bytes()
    cache.store(DAY, ROWS.reverse(), KEPT)
    assert cache.path(DAY).read_bytes() == before


def test_a_file_of_other_columns_is_not_kept(
    cache: PartCache, caplog: pytest.LogCaptureFixture
) -> None:
    PartCache(cache.folder, {"Code": pl.String}).store(DAY, ROWS, KEPT)
    assert cache.kept(DAY) is None
    ROWS.select("Code", "C").write_parquet(cache.path(DAY))  # as by somebody else
    assert cache.kept(DAY) is None
    assert caplog.text.count("has other columns than today's and is asked for again") == 2


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_torn_file_is_not_kept(
    cache: PartCache, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store(DAY, ROWS, KEPT)
    path = cache.path(DAY)
    path.write_bytes(path.read_bytes()[:size])
    assert cache.kept(DAY) is None
    assert "cannot be read and is asked for again" in caplog.text


def test_only_leftovers_are_removed(cache: PartCache) -> None:
    cache.store(DAY, ROWS, KEPT)
    leftover = cache.path(DAY).with_name(".2024-01-05.parquet.999.tmp")
    leftover.write_bytes(b"PAR1")
    remove_leftovers(cache.folder)
    assert not leftover.exists()
    assert cache.kept(DAY) == KEPT
