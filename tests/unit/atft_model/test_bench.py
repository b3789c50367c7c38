"""The benchmark measures what it says: every part, memory against its limit, before and after."""

import copy

import pytest

from atft_model.bench import BenchSize, measure, memory_limit, read_result, show, write_result
from atft_model.config import resolve
from atft_model.errors import InputError

PARTS = {
    "variable selection", "lstm", "enrichment", "attention", "graph attention", "head",
    "optimizer", "rest",
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> dict:
    small = {
        "model": {"hidden_size": 16, "lookback": 5},
        "training": {"batch_windows": 60, "run_length": 4, "device": "cpu"},
    }
    size = BenchSize(dates=460, stocks=25, features=6, steps=2, repeats=2, monitor_rounds=2)
    return measure(resolve("standard", [("test", small)]), size)


def test_every_part_of_a_step_took_time(result):
    assert set(result["seconds_by_part"]) == PARTS
    for part, seconds in result["seconds_by_part"].items():
        assert all(took > 0 for took in seconds.values()), part
    assert result["windows_by_part"] == 2 * 25 * 4
    assert len(result["windows_per_second"]) == len(result["windows_per_cpu_second"]) == 2


def test_the_table_shows_memory_against_its_limit(result):
    # The peak is the whole process's: here that of every test before this one too.
    assert result["peak_bytes"] >= result["panel_bytes"]
    limit = memory_limit(result["panel_bytes"])
    at_limit, greedy = (show(result | {"peak_bytes": peak}) for peak in (limit, limit + 1))
    assert f"within 2 × panel + 1.5 GiB = {limit / 2**20:,.0f}" in at_limit
    assert "ABOVE 2 × panel + 1.5 GiB" in greedy


def test_without_rounds_the_monitors_have_no_line(result):
    monitors = result["monitors"] | {"share": None, "shares": []}
    lines = show(result).splitlines()
    without = show(result | {"monitors": monitors}).splitlines()
    assert without == [line for line in lines if not line.startswith("monitors")]


def test_compiling_has_its_line_where_it_was_asked_for(result):
    assert result["compile_seconds"] is None
    assert "compiling" not in show(result)
    assert "compiling, s                 2.3   (before" in show(result | {"compile_seconds": 2.34})


def test_an_earlier_result_stands_beside_this_one(result, tmp_path):
    slower = copy.deepcopy(result)
    slower["seconds_by_part"]["lstm"] = {
        way: 3 * took for way, took in slower["seconds_by_part"]["lstm"].items()
    }
    del slower["seconds_by_part"]["optimizer"]
    write_result(slower, tmp_path / "before.json")
    lines = show(result, read_result(tmp_path / "before.json")).splitlines()
    rows = {line[:20].strip(): line[20:].split() for line in lines}
    assert rows["lstm"][-1] == "3.0"
    assert rows["head"][-1] == "1.0"
    assert rows["optimizer"][-1] == "%"  # not measured then
    with pytest.raises(InputError, match=r"none.json: no benchmark result"):
        read_result(tmp_path / "none.json")
