"""The queries of ``docs/queries.md``, as printed there, against figures computed another way."""

import re
from pathlib import Path

import duckdb
import polars as pl
import pytest
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "queries.md").read_text()
README = (ROOT / "README.md").read_text()
QUERIES = dict(re.findall(r"^## (.+?)$.*?```sql\n(.*?)```", PAGE, flags=re.M | re.S))


@pytest.fixture(scope="module")
def folder(whole) -> Path:
    return whole[0] / "synthetic"


def _answer(folder: Path, title: str) -> pl.DataFrame:
    with duckdb.connect(str(folder / "atft.duckdb"), read_only=True) as connection:
        return connection.sql(QUERIES[title]).pl()


def _table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"{name}.parquet")


def test_there_are_three_queries():
    assert list(QUERIES) == [
        "Worst quarantined stocks", "Feature drift by month", "Rank IC by sector",
    ]  # fmt: skip


def test_worst_quarantined_stocks(folder):
    answer = _answer(folder, "Worst quarantined stocks")
    quarantine, raw = _table(folder, "quarantine"), _table(folder, "raw_prices")
    assert 0 < answer.height <= 10
    assert answer["rejected"].is_sorted(descending=True)
    for row in answer.iter_rows(named=True):
        mine = quarantine.filter(pl.col("code") == row["code"])
        delivered = raw.filter(pl.col("code") == row["code"]).height
        assert row["rejected"] == mine.height
        assert row["percent_of_rows"] == pytest.approx(100 * mine.height / delivered, abs=0.005)
        assert row["most_frequent_reason"] in mine["reason"].mode().to_list()
        assert (row["first_date"], row["last_date"]) == (mine["date"].min(), mine["date"].max())


def test_feature_drift_by_month(folder):
    answer = _answer(folder, "Feature drift by month")
    drift = _table(folder, "feature_drift").filter(pl.col("months") == 1).drop_nulls("of_limit")
    assert answer["month"].n_unique() == drift["month"].n_unique() >= 3
    for (month,), rows in answer.group_by("month"):
        worst = drift.filter(pl.col("month") == month)["of_limit"].top_k(3)
        assert sorted(rows["of_limit"]) == sorted(worst)
        assert set(rows["level"]) <= {"ok", "warn"}


def test_rank_ic_by_sector(folder):
    answer = _answer(folder, "Rank IC by sector")
    rows = (
        _table(folder, "predictions")
        .filter(pl.col("part") == "test", pl.col("horizon") == 5)
        .join(_table(folder, "targets").drop_nulls("target_5d"), on=["date", "code"])
        .join(_table(folder, "raw_listings"), on="code")
    )
    found: dict[str, list[float]] = {}
    for (sector, _), day in rows.group_by("sector", "date"):
        if day.height >= 5 and min(day["score"].n_unique(), day["target_5d"].n_unique()) > 1:
            correlation = spearmanr(day["score"], day["target_5d"]).statistic
            found.setdefault(str(sector), []).append(float(correlation))
    assert len(found) >= 3
    assert set(answer["sector"]) == set(found)
    for row in answer.iter_rows(named=True):
        values = found[row["sector"]]
        assert row["dates"] == len(values)
        assert row["rank_ic"] == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_every_query_of_the_readme_has_an_answer(folder):
    (block,) = re.findall(r"```sql\n(.*?)```", README, flags=re.S)
    (latest,) = re.findall(r"^    (SELECT .* FROM latest_scores .*)$", README, flags=re.M)
    queries = [query for query in block.split(";") if query.strip()]
    assert len(queries) == 5
    with duckdb.connect(str(folder / "atft.duckdb"), read_only=True) as connection:
        for query in (*queries, latest):
            answer = connection.sql(query).pl()
            assert answer.height > 0, query
            # A metric or a breakdown by another name would be an empty answer or nulls.
            assert answer.select(pl.all().is_not_null().any()).row(0).count(False) == 0, query
