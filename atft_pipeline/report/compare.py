"""The comparison of two evaluated runs: one self-contained HTML page.

What differs in identity and settings, every figure of the model side by side with the error of the
difference, and both curves in one picture. Each run's results are those that its own evaluation
kept in its folder; nothing is read from the tables of the data set, which are of the last run.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from atft_model.data.artifacts import write_text_atomically
from atft_model.errors import InputError
from atft_model.metrics.inference import newey_west_mean, sharpe, sharpe_difference
from atft_pipeline.report.cells import NOT_AVAILABLE, format_number
from atft_pipeline.report.plots import (
    MODEL_SCORER,
    figure_to_svg,
    plot_compared_rank_ic,
    plot_compared_returns,
)

HEADLINE_HORIZON = 5
SMALLEST_DATES = 20
"""Common dates below which a difference has no error worth the name."""

FIGURES = {
    "ic": ("IC", 4, 1.0, ""), "icir": ("ICIR, per date", 3, 1.0, ""),
    "hit_rate": ("hit rate", 1, 100.0, " %"),
    "residual_rank_ic": ("rank IC beyond known factors", 4, 1.0, ""),
    "sharpe_gross": ("gross Sharpe", 2, 1.0, ""),
    "deflated_sharpe": ("deflated Sharpe", 2, 1.0, ""),
    "turnover": ("turnover a day", 0, 100.0, " %"),
    "max_drawdown": ("max drawdown", 1, 100.0, " %"),
    "breakeven_cost_bp": ("break-even cost", 1, 1.0, " bp"),
}  # fmt: skip
"""Figures of each run's own evaluation that have no paired error: (label, digits, scale, unit)."""


@dataclass(frozen=True)
class EvaluatedRun:
    """One run with what its evaluation kept.

    Attributes:
        record: Its run record.
        config: Its resolved settings, nested.
        figures: (scorer, horizon, metric, value, ...).
        daily: (scorer, horizon, date, net, ...).
        rank_ic: (scorer, horizon, date, rank_ic).
    """

    run_id: str
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    figures: pl.DataFrame
    daily: pl.DataFrame
    rank_ic: pl.DataFrame


class Difference(NamedTuple):
    """A figure of both runs on the same dates, and their difference with its standard error."""

    label: str
    first: float
    second: float
    difference: float
    standard_error: float
    dates: int

    @property
    def t(self) -> float:
        """The difference over its error; NaN where there is none."""
        return self.difference / self.standard_error if self.standard_error else math.nan


def compare_runs(models: Path, reports: Path, first: str, second: str) -> Path:
    """Writes the page on two runs of one data set; returns where it lies.

    Raises:
        InputError: the same run twice, a run that was not trained or not evaluated, results that
            are not of the run's weights, or too few common dates.
    """
    if first == second:
        raise InputError(f"compare: {first} twice; give two runs")
    runs = read_evaluated_run(models, first), read_evaluated_run(models, second)
    path = reports / f"compare-{first}-{second}.html"
    write_text_atomically(path, render_comparison(*runs))
    return path


def read_evaluated_run(models: Path, run_id: str) -> EvaluatedRun:
    """A run's record, settings and the results that its evaluation kept.

    Raises:
        InputError: as in ``compare_runs``.
    """
    folder = models / run_id
    if Path(run_id).name != run_id or not (folder / "run.json").exists():
        known = sorted(path.parent.name for path in models.glob("*/run.json"))
        raise InputError(
            f"compare: no finished run {run_id!r} in {models}; found {', '.join(known) or 'none'}"
        )
    kept = folder / "evaluation"
    if not (kept / "evaluation.parquet").exists():
        raise InputError(
            f"compare: run {run_id} was not evaluated, or its evaluation was not sound; evaluate "
            "it first: it is only while it is the run in models/current.json"
        )
    record = json.loads((folder / "run.json").read_text())
    tables = {name: pl.read_parquet(kept / f"{name}.parquet")
              for name in ("evaluation", "daily_returns", "rank_ic_by_date")}  # fmt: skip
    for name, table in tables.items():
        for column in ("run_id", "checkpoint_hash", "panel_hash"):
            found = table[column].unique().to_list()
            if found != [record[column]]:
                raise InputError(
                    f"compare: {kept / name}.parquet has {column} {', '.join(found)}, the run "
                    f"record says {record[column]}; evaluate the run again"
                )
    config = json.loads((folder / "config.json").read_text())
    return EvaluatedRun(
        run_id, record, config, tables["evaluation"], tables["daily_returns"],
        tables["rank_ic_by_date"],
    )  # fmt: skip


def differences_of(
    first: EvaluatedRun, second: EvaluatedRun, horizon: int
) -> tuple[Difference, Difference]:
    """Rank IC and net Sharpe ratio of both models, paired by date.

    Only dates that both runs have count, for each run's own figure too. The error is Newey-West,
    of the daily differences: two models of one market move together, so it is smaller than that of
    two independent figures.

    Raises:
        InputError: fewer than ``SMALLEST_DATES`` common dates.
    """
    ics = _common(first.rank_ic, second.rank_ic, "rank_ic", horizon)
    a, b = (ics[name].to_numpy() for name in ("first", "second"))
    gap = newey_west_mean(a - b, horizon=horizon)
    both = np.isfinite(a) & np.isfinite(b)
    rank_ic = Difference(
        "rank IC", float(a[both].mean()), float(b[both].mean()), gap.mean, gap.standard_error,
        int(both.sum()),
    )  # fmt: skip
    returns = _common(first.daily, second.daily, "net", horizon)
    dates = returns["date"].to_numpy()
    a, b = (returns[name].to_numpy() for name in ("first", "second"))
    gap = sharpe_difference(a, b, dates)
    net = Difference(
        "net Sharpe", sharpe(a, dates).value, sharpe(b, dates).value, gap.mean,
        gap.standard_error, len(dates),
    )  # fmt: skip
    return rank_ic, net


def changed_settings(first: EvaluatedRun, second: EvaluatedRun) -> list[tuple[str, str, str]]:
    """(setting, first, second) of every setting that differs."""
    mine, theirs = dict(_flat(first.config)), dict(_flat(second.config))
    return [
        (key, str(mine.get(key, "not set")), str(theirs.get(key, "not set")))
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def render_comparison(first: EvaluatedRun, second: EvaluatedRun) -> str:
    """The page as one string of HTML: no script, no network, the same for the same runs."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    horizons = sorted(set(first.record["horizons"]) & set(second.record["horizons"]))
    if HEADLINE_HORIZON not in horizons:
        raise InputError(
            f"compare: both runs need the horizon of {HEADLINE_HORIZON} days; common are {horizons}"
        )
    paired = {horizon: differences_of(first, second, horizon) for horizon in horizons}
    runs = first, second
    return environment.get_template("compare.html.j2").render(
        first=first.run_id,
        second=second.run_id,
        headline=HEADLINE_HORIZON,
        verdicts=[_in_words(d, first.run_id, second.run_id) for d in paired[HEADLINE_HORIZON]],
        warnings=_warnings(first, second),
        identity=_identity(*runs),
        settings=changed_settings(*runs),
        tables=[(h, [_paired_row(d) for d in paired[h]], _plain_rows(*runs, h)) for h in horizons],
        returns=figure_to_svg(plot_compared_returns(_curves(*runs, "daily", "net"))),
        rank_ic=figure_to_svg(
            plot_compared_rank_ic(_curves(*runs, "rank_ic", "rank_ic"), HEADLINE_HORIZON)
        ),
    )


def _in_words(d: Difference, first: str, second: str) -> str:
    label = d.label[0].upper() + d.label[1:]
    if not math.isfinite(d.t):
        same = f"the same on each of {d.dates} common dates"
        return (
            f"{label}: {same if d.difference == 0 else 'no error of the difference can be given'}."
        )
    digits = 4 if d.label == "rank IC" else 2
    gap = f"{format_number(d.difference, digits)} ± {format_number(d.standard_error, digits)}"
    better = first if d.difference > 0 else second
    ground = f"{better} is ahead" if abs(d.t) >= 2 else "the two cannot be told apart"
    return (
        f"{label}: {ground}: first less second {gap} (t = {format_number(d.t, 1)}, {d.dates} "
        "common dates)."
    )


def _warnings(first: EvaluatedRun, second: EvaluatedRun) -> list[str]:
    """What makes the two less comparable."""
    notes = []
    if first.record["panel_hash"] != second.record["panel_hash"]:
        notes.append(
            "The panels differ: features, universe or split may be others. Figures are of the "
            "dates that both have."
        )
    notes += [
        f"The {part} dates differ."
        for part in ("train", "test")
        if first.record["split"][part] != second.record["split"][part]
    ]
    if first.record["checkpoint_hash"] == second.record["checkpoint_hash"]:
        notes.append("The weights are the same.")
    return notes


def _identity(first: EvaluatedRun, second: EvaluatedRun) -> list[tuple[str, str, str, bool]]:
    """(name, first, second, whether they differ)."""
    rows = []
    for name, value in (
        ("Weights", lambda r: r["checkpoint_hash"]),
        ("Panel", lambda r: r["panel_hash"]),
        ("Graph", lambda r: r["graph_hash"]),
        ("Source", lambda r: r["source"]),
        ("Train", lambda r: " to ".join(r["split"]["train"])),
        ("Validation", lambda r: " to ".join(r["split"]["validation"])),
        ("Test", lambda r: " to ".join(r["split"]["test"])),
        ("Features", lambda r: str(len(r["features"]))),
        ("Parameters", lambda r: f"{r['parameters']:,}"),
        ("Seed", lambda r: str(r["seed"])),
        ("Epochs", lambda r: f"{r['epochs']}, best {r['best_epoch']}"),
        ("Validation rank IC", lambda r: format_number(r["best_validation_rank_ic"], 4)),
        ("Training time", lambda r: f"{r['seconds']:.0f} s on {r['device']}"),
        ("torch", lambda r: r["versions"]["torch"]),
        ("Finished", lambda r: f"{datetime.fromisoformat(r['finished_at']):%Y-%m-%d %H:%M} UTC"),
    ):
        a, b = value(first.record), value(second.record)
        rows.append((name, a, b, a != b))
    return rows


def _paired_row(d: Difference) -> list[str]:
    digits = 4 if d.label == "rank IC" else 2
    cells = [format_number(value, digits) for value in d[1:5]]
    return [d.label, *cells[:2], f"{cells[2]} ± {cells[3]}", format_number(d.t, 1), f"{d.dates:,}"]


def _plain_rows(first: EvaluatedRun, second: EvaluatedRun, horizon: int) -> list[list[str]]:
    """Figures of each run's own test dates, and their difference without an error."""
    rows = []
    for metric, (label, digits, scale, unit) in FIGURES.items():
        a, b = (_value(run.figures, metric, horizon) for run in (first, second))
        cells = [format_number(value, digits, unit, scale) for value in (a, b, a - b)]
        if cells[:2] != [NOT_AVAILABLE] * 2:
            rows.append([label, *cells, "", ""])
    return rows


def _value(figures: pl.DataFrame, metric: str, horizon: int) -> float:
    rows = figures.filter(
        pl.col("scorer") == MODEL_SCORER, pl.col("horizon") == horizon, pl.col("metric") == metric
    )
    value = rows["value"][0] if rows.height else None
    return math.nan if value is None else float(value)


def _common(first: pl.DataFrame, second: pl.DataFrame, column: str, horizon: int) -> pl.DataFrame:
    """(date, first, second) of the model at a horizon, on the dates that both have."""
    mine, theirs = (
        frame.filter(pl.col("scorer") == MODEL_SCORER, pl.col("horizon") == horizon).select(
            "date", pl.col(column).cast(pl.Float64).fill_null(math.nan).alias(name)
        )
        for frame, name in ((first, "first"), (second, "second"))
    )
    both = mine.join(theirs, on="date").sort("date")
    if both.height < SMALLEST_DATES:
        raise InputError(
            f"compare: {both.height} dates with a {column} of both runs at {horizon} days; "
            f"expected {SMALLEST_DATES} or more: compare runs with common test dates"
        )
    return both


def _curves(first: EvaluatedRun, second: EvaluatedRun, table: str, column: str) -> pl.DataFrame:
    both = _common(getattr(first, table), getattr(second, table), column, HEADLINE_HORIZON)
    return pl.concat(
        both.select("date", run=pl.lit(run.run_id), value=pl.col(name)).rename({"value": column})
        for run, name in ((first, "first"), (second, "second"))
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
