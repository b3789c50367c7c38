"""Which dates of the feature table must be computed again, and the table put together from both.

Beside the stored table lies what it was built from (:func:`built_from`): a fingerprint of all that
can bear on a date and on no earlier one. A row of features never reads what became known later
(``checks/lookahead``), so that all rows before the first date whose fingerprint differs are the
ones that computing them again would give. What cannot be put on a date, such as the code of the
formulas, differs for all dates.
"""

import datetime as dt
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from atft_model.data.artifacts import file_hash, text_hash
from atft_pipeline.transforms.as_of import counts_from
from atft_pipeline.transforms.features import BAR_COLUMNS, LISTING_COLUMNS, Feature

BUILT_FROM = {"input": pl.String, "part": pl.String, "date": pl.Date, "fingerprint": pl.String}
"""Columns of the record: ``part`` is a stock or a fact, or empty; a null ``date`` is every date."""

STORED = "stored table"


@dataclass(frozen=True)
class Plan:
    """From where on the table is computed.

    Attributes:
        since: The first date to compute; None is all of them, ``NOTHING`` none.
        why: In words.
    """

    since: dt.date | None
    why: str

    def in_words(self, table: pl.DataFrame) -> str:
        """What was computed of the table that came out, and why."""
        if self.since is None:
            return f"all {table.height:,} rows computed: {self.why}"
        new = int((table["date"] >= self.since).sum())
        return f"{new:,} rows computed, {table.height - new:,} kept as stored: {self.why}"


NOTHING = dt.date.max
"""Later than every date: all rows of the stored table stand."""


def built_from(tables: Mapping[str, pl.DataFrame], features: Sequence[Feature]) -> pl.DataFrame:
    """The record of what a feature table is computed from.

    Args:
        tables: ``prices``, ``raw_listings``, ``raw_indices``, ``raw_statements`` and
            ``raw_investor_flows``.
        features: In column order.

    Returns:
        Columns ``BUILT_FROM``. A bar or an index close bears on its own date; a statement or a
        publication of flows on the day from which it counts; what the listings say of a stock on
        its first bar. Which sections have flows of their own bears on every date, as do the
        formulas, the code and the libraries.
    """
    prices, listings = tables["prices"], tables["raw_listings"]
    statements, flows = tables["raw_statements"], tables["raw_investor_flows"]
    bars = prices.select(name for name in BAR_COLUMNS if name in prices.columns)
    listed = listings.select("code", *(n for n in LISTING_COLUMNS if n in listings.columns))
    first_bars = prices.group_by("code").agg(pl.col("date").min())
    disclosed = statements.with_columns(
        date=counts_from(pl.col("disclosed_on"), pl.col("disclosed_at"))
    )
    published = flows.with_columns(date=pl.col("published_on").dt.offset_by("1d"))
    sections = ", ".join(flows["section"].unique().sort())
    parts = [
        by_date("prices", bars),
        by_date("raw_indices", tables["raw_indices"]),
        by_date("raw_statements", _in_order(disclosed, "code")),
        by_date("raw_investor_flows", _in_order(published, "section")),
        _of_stocks(listed.join(first_bars, on="code")),
        of_everything({"feature contract": _contract(features), "flow sections": sections}),
    ]
    return pl.concat(parts).sort("input", "part", "date", nulls_last=True)


def with_stored(record: pl.DataFrame, content: str) -> pl.DataFrame:
    """The record with the content hash of what it belongs to."""
    stored = [(STORED, "", None, content)]
    return pl.concat([record, pl.DataFrame(stored, schema=BUILT_FROM, orient="row")])


def stored_hash(record: pl.DataFrame) -> str | None:
    """The content hash of what a record belongs to; None where it is no such record."""
    if record.schema != pl.Schema(BUILT_FROM):
        return None
    stored = record.filter(pl.col("input") == STORED)["fingerprint"].to_list()
    return stored[0] if len(stored) == 1 else None


def plan(before: pl.DataFrame, now: pl.DataFrame) -> Plan:
    """Where the inputs of two records first differ.

    Args:
        before: The record beside the stored table.
        now: That of the present inputs; without ``with_stored``.
    """
    before = before.filter(pl.col("input") != STORED)
    changed = pl.concat(
        [before.join(now, on=list(BUILT_FROM), how="anti", nulls_equal=True),
         now.join(before, on=list(BUILT_FROM), how="anti", nulls_equal=True)]
    )  # fmt: skip
    if changed.is_empty():
        return Plan(NOTHING, "no input has changed")
    undated = changed.filter(pl.col("date").is_null())
    if not undated.is_empty():
        return Plan(None, f"{undated['part'].unique().sort().str.join(', ').item()} changed")
    since = changed["date"].min()
    assert isinstance(since, dt.date)  # changed has rows, and none is null
    inputs = changed.filter(pl.col("date") == since)["input"].unique().sort().to_list()
    return Plan(since, f"{', '.join(inputs)} new or changed from {since} on")


def build_or_extend(
    keys: pl.DataFrame,
    now: pl.DataFrame,
    stored: pl.DataFrame | None,
    before: pl.DataFrame | None,
    compute: Callable[[dt.date | None], pl.DataFrame],
) -> tuple[pl.DataFrame, Plan]:
    """The table of the present inputs: the stored one from its first changed date on, or all of it.

    Args:
        keys: ``date`` and ``code`` of the rows that the table must have.
        now: The record of the present inputs (:func:`built_from`).
        stored: The table of the last build; None where there is none.
        before: The record beside it; None where there is none.
        compute: The rows from a date on, or all rows for None.

    Returns:
        The table, to the bit that of ``compute(None)``, and what was done, with the reason.
    """
    keys = keys.select("date", "code").sort("code", "date")
    if stored is None or before is None:
        done = Plan(None, "there is no table with a record of its inputs yet")
    elif stored_hash(before) != content_hash(stored):
        done = Plan(None, "the record beside the stored table is not that of this table")
    else:
        done = plan(before, now)
        if done.since is not None:
            wanted = (keys["date"] >= done.since).any()
            computed = compute(done.since) if wanted else stored.clear()
            table = _extended(stored, computed, done.since, keys)
            if table is not None:
                return table, done
            done = Plan(None, f"the stored table has not the rows before {done.since}")
    return compute(None), done


def _extended(
    stored: pl.DataFrame, computed: pl.DataFrame, since: dt.date, keys: pl.DataFrame
) -> pl.DataFrame | None:
    """The stored rows before a date, and the computed ones from it on.

    Args:
        stored: The table of the last build, sorted by (code, date).
        computed: Rows from ``since`` on, sorted likewise.
        since: Where the computed rows start.
        keys: ``date`` and ``code`` of every row that the table must have; sorted likewise.

    Returns:
        One row per row of ``keys``; None where the stored rows are not those before ``since``.
    """
    if (stored["date"] >= since).any():
        stored = stored.filter(pl.col("date") < since)
    new = (keys["date"] >= since).to_numpy()
    if stored.height != (~new).sum() or computed.height != new.sum():
        return None
    # Slice after slice: gathering by row would touch the memory of all columns twice.
    turns = np.flatnonzero(np.diff(new, prepend=True if not len(new) else not new[0]))
    taken = {False: 0, True: 0}
    pieces = []
    for start, end in pairwise([*turns.tolist(), len(new)]):
        is_new = bool(new[start])
        pieces.append((computed if is_new else stored).slice(taken[is_new], end - start))
        taken[is_new] += end - start
    table = pl.concat(pieces, rechunk=True) if pieces else stored
    return table if table.select("date", "code").equals(keys.select("date", "code")) else None


def content_hash(table: pl.DataFrame) -> str:
    """Hash of a table's columns, rows and their order, to the bit."""
    rows = hashlib.sha256(_row_hashes(table).to_numpy().tobytes()).hexdigest()
    return text_hash(f"{table.schema} {rows}")


def _row_hashes(rows: pl.DataFrame) -> pl.Series:
    """A 64-bit hash of each row, floats by their bits."""
    bits = [
        pl.col(pl.Float32).reinterpret(signed=False), pl.col(pl.Float64).reinterpret(signed=False),
        pl.exclude(pl.Float32, pl.Float64),
    ]  # fmt: skip
    return rows.select(bits).hash_rows(seed=0)


def by_date(name: str, rows: pl.DataFrame) -> pl.DataFrame:
    """A record of dated rows: per date their number and the sum of their hashes, in any order."""
    sums = (
        pl.DataFrame({"date": rows["date"], "hash": _row_hashes(rows)})
        .group_by("date")
        .agg(pl.len().alias("rows"), pl.col("hash").sum())
    )
    return sums.select(
        pl.lit(name).alias("input"),
        pl.lit("").alias("part"),
        "date",
        pl.format("{} rows {}", "rows", "hash").alias("fingerprint"),
    )


def _in_order(rows: pl.DataFrame, of: str) -> pl.DataFrame:
    """With the place of each row among those of the same series and date: of equals, the last row
    counts."""
    return rows.with_columns(place=pl.int_range(pl.len()).over(of, "date"))


def _of_stocks(listed: pl.DataFrame) -> pl.DataFrame:
    return listed.select(
        pl.lit("raw_listings").alias("input"),
        pl.col("code").alias("part"),
        "date",
        _row_hashes(listed.drop("date")).cast(pl.String).alias("fingerprint"),
    )


def of_everything(facts: Mapping[str, str]) -> pl.DataFrame:
    """Facts that bear on every date, and with them the code and the libraries."""
    facts = {
        **facts,
        "code": _code(),
        "libraries": f"polars {pl.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()} on {platform.machine()}",
    }
    rows = [("build", name, None, text_hash(fact)) for name, fact in facts.items()]
    return pl.DataFrame(rows, schema=BUILT_FROM, orient="row")


def _contract(features: Sequence[Feature]) -> str:
    return "\n".join(
        f"{feature} {feature.expression} {[str(step.expression) for step in feature.reads]}"
        for feature in features
    )


@cache
def _code() -> str:
    """Hashes of every source file that a formula may stand in, and of some more."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.parent.glob("*.py")])
    return " ".join(f"{path.name} {file_hash(path)}" for path in files)
