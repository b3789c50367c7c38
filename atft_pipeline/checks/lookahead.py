"""Proof that no table sees the future: built again without it, and with another one, it is equal.

Each asset proves its own step, from the tables that it reads, before its table is stored. Together
the steps prove the chain: what no later raw row can change in ``prices``, and no later row of
``prices`` in ``features``, no later raw row can change in ``features``. The step that leaks is the
one that fails.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl

from atft_model.data.graph import GraphConfig, StockGraph, build_graph
from atft_model.data.panel import Panel
from atft_model.data.splits import EXECUTION_LAG
from atft_pipeline.checks.outcome import Outcome, markdown_table
from atft_pipeline.transforms.lookahead import (
    MIN_DATES,
    SNAPSHOT,
    Difference,
    LookaheadConfig,
    differences,
    draw_cuts,
    future_rewritten,
    hide_unknown,
    known_at_close,
    past_rewritten,
)

Tables = Mapping[str, pl.DataFrame]
Build = Callable[[Tables], pl.DataFrame]
GraphBuild = Callable[[Panel, GraphConfig, np.ndarray], StockGraph]

SEES_NO_FUTURE = "Rows up to random dates stay the same, to the bit, whatever comes later."
"""The description of the check, wherever it is one."""

BIT_IDENTICAL = "bit-identical whatever comes later"

REFRESHES = 3
"""Newest graphs up to a cut that are built again. Each is built by itself from its own window, by
the same code, so a leak shows in the newest; all would take as long as the whole graph."""

SHOWN = 20


@dataclass(frozen=True)
class Finding:
    """A difference, and what was done to the data to see it."""

    done: str
    difference: Difference

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{d.column} of {d.code} on {d.date} is {d.rebuilt} with all {self.done}; expected "
            f"{d.whole}"
        )


def no_lookahead(
    whole: pl.DataFrame,
    tables: Tables,
    build: Build,
    config: LookaheadConfig,
    reads_ahead: Mapping[str, int] | None = None,
    cut_at: dt.date | None = None,
) -> Outcome:
    """Rows on and before random dates stay the same, to the bit, whatever comes later.

    After each cut all that was not yet known is removed, and then rewritten, and the table is built
    again. Nothing is sampled: every row and column up to the cut is compared.

    Args:
        whole: What ``build`` made of ``tables``; unique (date, code) and any columns.
        tables: What the build reads, by name: each with the columns of its schema.
        build: The step, as a function of those tables.
        config: Cuts and seed.
        reads_ahead: For forward returns only: column to the trading days after the row's date that
            it reads. Such a value must be unknown (null) where the cut lies before its last day,
            and the rewritten *past* must leave rows on and after the cut alone: it reads no close
            of its own date or earlier.
        cut_at: One cut, here, instead of random ones: the last training date for a table that may
            read all of the training dates and nothing later.
    """
    ahead = dict(reads_ahead or {})
    calendar = whole["date"].unique().sort().to_list()
    if len(calendar) < MIN_DATES:
        return _too_short(len(calendar))
    cuts = [cut_at] if cut_at else draw_cuts(calendar, config)
    findings: list[Finding] = []
    compared = 0
    for cut in cuts:
        expected = hide_unknown(whole, cut, calendar, ahead)
        compared += expected.height * (expected.width - 2)
        removed = build({name: known_at_close(table, cut) for name, table in tables.items()})
        findings += _findings(f"after {cut} removed", expected, removed)
        rewritten = build(
            {name: future_rewritten(table, cut, config.seed) for name, table in tables.items()}
        )
        rewritten = hide_unknown(rewritten, cut, calendar, ahead)
        findings += _findings(f"after {cut} rewritten", expected, rewritten)
        if ahead:
            other_past = build(
                {name: past_rewritten(table, cut, config.seed) for name, table in tables.items()}
            )
            later = pl.col("date") >= cut
            findings += _findings(
                f"up to {cut} rewritten", whole.filter(later), other_past.filter(later)
            )
    outcome = _outcome(findings, cuts, config.seed, compared)
    return replace(outcome, details=f"{outcome.details}{_not_judged(tables)}")


def graph_has_no_lookahead(
    graph: StockGraph,
    panel: Panel,
    graph_config: GraphConfig,
    config: LookaheadConfig,
    build: GraphBuild = build_graph,
) -> Outcome:
    """Neighbours and correlations stay the same, to the bit, whatever returns come later.

    The cuts are refresh dates of the graph, where a window that is one day off reads past the cut.
    Stocks that have no bar up to the cut are not there when the future is removed.
    """
    if len(graph.refresh) < MIN_DATES:
        return _too_short(len(graph.refresh))
    whole = graph_table(graph, panel)
    dates = [panel.dates[position] for position in graph.refresh]
    cuts = draw_cuts(dates, config)
    findings: list[Finding] = []
    compared = 0
    for cut in cuts:
        end = panel.dates.index(cut)
        refresh = graph.refresh[graph.refresh <= end][-REFRESHES:]
        expected = whole.filter(pl.col("date").is_between(panel.dates[refresh[0]], cut))
        compared += expected.height * (expected.width - 2)
        worlds = {"removed": _past_of(panel, end), "rewritten": _other_future(panel, end, config)}
        for done, world in worlds.items():
            rebuilt = graph_table(build(world, graph_config, refresh), world)
            findings += _findings(f"after {cut} {done}", expected, rebuilt)
    return _outcome(findings, cuts, config.seed, compared)


def graph_table(graph: StockGraph, panel: Panel) -> pl.DataFrame:
    """One row per refresh date and linked stock: neighbours by name and correlations, by rank."""
    rows, stocks = np.nonzero((graph.neighbours >= 0).any(axis=2))
    codes, dates = np.array(panel.codes), np.array(panel.dates, dtype="datetime64[D]")
    table: dict[str, pl.Series] = {
        "date": pl.Series(dates[graph.refresh[rows]], dtype=pl.Date),
        "code": pl.Series(codes[stocks]),
    }
    for rank in range(graph.neighbours.shape[2]):
        neighbour = np.asarray(graph.neighbours[rows, stocks, rank])
        name = np.where(neighbour >= 0, codes[neighbour], "none")
        table[f"neighbour_{rank + 1}"] = pl.Series(name)
        value = np.asarray(graph.correlation[rows, stocks, rank])
        table[f"correlation_{rank + 1}"] = pl.Series(value)
        if graph.link is not None:
            table[f"link_{rank + 1}"] = pl.Series(np.asarray(graph.link[rows, stocks, rank]))
    return pl.DataFrame(table)


def splits_are_purged(panel: Panel) -> Outcome:
    """No label interval crosses into a later part, counted in trading days of the panel.

    The label of position t spans t + lag to t + lag + horizon. Distances in calendar days, or those
    that a setting promises, do not count: the parts' own positions do.
    """
    reach = max(panel.horizons) + EXECUTION_LAG
    faults: list[str] = []
    gaps: dict[str, float] = {}
    for (name, (_, last)), (later, (first, _)) in pairwise(panel.split.parts().items()):
        days = first - (last - 1)
        gaps[f"trading_days/{name}_to_{later}"] = days
        if days <= reach:
            faults.append(
                f"the last {name} label ({panel.dates[last - 1]}) ends "
                f"{reach - days} trading days after {later} starts ({panel.dates[first]})"
            )
    nearest = int(min(gaps.values()))
    return Outcome(
        "splits_are_purged",
        not faults,
        "; ".join(faults) or f"parts are {nearest} trading days apart, labels end after {reach}",
        f"more than {reach} trading days: the longest horizon and the execution lag",
        numbers=gaps,
    )


def _past_of(panel: Panel, end: int) -> Panel:
    """The panel as on a date: its later dates, and stocks not yet seen, are not there."""
    observed = np.asarray(panel.observed[: end + 1])
    seen = observed.any(axis=0)
    return replace(
        panel,
        observed=observed[:, seen],
        daily_return=np.asarray(panel.daily_return[: end + 1])[:, seen],
        dates=panel.dates[: end + 1],
        codes=tuple(np.array(panel.codes)[seen].tolist()),
    )


def _other_future(panel: Panel, end: int, config: LookaheadConfig) -> Panel:
    """Other returns on other days after a date."""
    rng = np.random.default_rng([config.seed, end])
    observed, daily = np.array(panel.observed), np.array(panel.daily_return)
    shape = daily[end + 1 :].shape
    observed[end + 1 :] = rng.random(shape) > 0.2
    invented = 0.05 * rng.standard_normal(shape).astype(daily.dtype)
    daily[end + 1 :] = np.where(observed[end + 1 :], invented, np.nan)
    return replace(panel, observed=observed, daily_return=daily)


def _findings(done: str, expected: pl.DataFrame, rebuilt: pl.DataFrame) -> list[Finding]:
    return [Finding(done, difference) for difference in differences(expected, rebuilt)]


def _not_judged(tables: Tables) -> str:
    undated = [
        f"{name}.{column}"
        for name, table in tables.items()
        if "listed_on" in table.columns
        for column in table.columns
        if column in SNAPSHOT and table[column].null_count() < table.height
    ]
    return f"\n\nNot judged, as it has no date: {', '.join(undated)}." if undated else ""


def _too_short(dates: int) -> Outcome:
    return Outcome(
        "no_lookahead", False, f"{dates} dates: no future can be taken away",
        f"at least {MIN_DATES} dates", numbers={"cuts": 0},
    )  # fmt: skip


def _outcome(
    findings: Sequence[Finding], cuts: Sequence[dt.date], seed: int, compared: int
) -> Outcome:
    days = " and ".join(str(cut) for cut in cuts)
    columns = list(dict.fromkeys(finding.difference.column for finding in findings))
    if findings:
        others = f"; {len(columns) - 1} more columns" if len(columns) > 1 else ""
        figure = f"{findings[0]}{others}"
    else:
        figure = f"{compared:,} values equal; the future removed and rewritten after {days}"
    rows = [
        (f.difference.column, f.done, f.difference.rows, f.difference.date, f.difference.code,
         f.difference.whole, f.difference.rebuilt)
        for f in findings[:SHOWN]
    ]  # fmt: skip
    headers = ["column", "data", "rows", "first date", "code", "expected", "rebuilt"]
    table = "\n\n" + markdown_table(headers, rows) if findings else ""
    return Outcome(
        "no_lookahead", not findings, figure, BIT_IDENTICAL,
        numbers={"cuts": len(cuts), "columns_that_see_the_future": len(columns),
                 "values_compared": compared, "seed": seed},
        details=f"Cut after {days}; seed {seed}.{table}",
    )  # fmt: skip
