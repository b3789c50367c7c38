"""The evaluation report: one self-contained HTML file for screen, phone and print.

Takes finished tables and verdicts, and lays them out; it computes and decides nothing. The figures
are made in ``plots.py``, the page in ``template.html.j2``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from atft_pipeline.report.cells import NOT_AVAILABLE
from atft_pipeline.report.cells import format_number as _number
from atft_pipeline.report.plots import (
    MODEL_SCORER,
    figure_to_svg,
    plot_cumulative_return,
    plot_decay,
    plot_deciles,
    plot_gradients,
    plot_importance,
    plot_rank_ic,
    plot_rank_ic_by_month,
    plot_scorers,
    plot_training,
    scorer_label,
)
from atft_pipeline.report.structure import plot_learning, plot_structure

HEADLINE_HORIZON = 5  # the Sharpe verdict judges five days (decile long-short, net)
WRITTEN_LINKS = 40
SHOWN_IMPORTANCES = 12  # largest weights; the tables have all

_COLUMNS: dict[str, tuple[str, ...]] = {
    "horizons": (
        "scorer",
        "horizon",
        "rank_ic",
        "rank_ic_se",
        "rank_ic_t",
        "rank_ic_low",
        "rank_ic_high",
        "rank_ic_gap_t",
        "residual_rank_ic",
        "residual_rank_ic_t",
        "icir",
        "hit_rate",
        "oracle_share",
        "sharpe_net",
        "sharpe_se",
        "sharpe_net_low",
        "sharpe_net_high",
        "sharpe_gap_t",
        "sharpe_gross",
        "rank_weighted_sharpe_net",
        "top_sharpe_net",
        "turnover",
        "max_drawdown",
        "breakeven_cost_bp",
        "capacity",
        "deflated_sharpe",
        "sharpe_by_luck",
        "trials",
        "sharpe_lag",
        "rank_ic_band_low",
        "rank_ic_band_high",
        "sharpe_net_band_low",
        "sharpe_net_band_high",
        "n_dates",
    ),
    "daily": ("scorer", "date", "gross", "net"),
    "rank_ic_by_date": ("scorer", "horizon", "date", "rank_ic"),
    "deciles": ("horizon", "decile", "mean_return", "standard_error"),
    "epochs": (
        "epoch",
        "train_loss",
        "val_loss",
        "val_rank_ic",
        "learning_rate",
        "windows_per_second",
    ),
    "gradients": ("step", "group", "l2"),
    "quarantine": ("reason", "rows"),
    "breakdowns": (
        "horizon",
        "breakdown",
        "group",
        "metric",
        "value",
        "standard_error",
        "dates",
    ),
    "importance": ("kind", "name", "neighbour", "importance", "standard_error"),
}


@dataclass(frozen=True)
class CheckRow:
    """One asset check as it ended.

    Attributes:
        asset: The asset that the check belongs to.
        name: The fact that the check states.
        passed: Whether the fact holds.
        severity: What a failure means.
        kind: ``integrity`` stops the run; ``skill`` judges the model and stops nothing.
        figure: What was measured, with its unit.
        threshold: What was demanded.
        description: Why it matters, in one sentence.
    """

    asset: str
    name: str
    passed: bool
    severity: Literal["ERROR", "WARN"]
    kind: Literal["integrity", "skill"]
    figure: str
    threshold: str
    description: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the model may be used, and why, in words for a person."""

    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class StructureSection:
    """The learned structure as the page shows it.

    Attributes:
        edges: As ``structure.edges_table`` gives them.
        order: Names of the groups from causes to effects.
        health: The gradient stage by epoch.
        members: For each group its number of stocks.
        use: What became of it: in which graph it is, or why in none.
        graphs: The same model with each graph of stocks: name, rank IC with its standard error, and
            how far the model in use is ahead, with the error of the difference by date.
    """

    edges: pl.DataFrame
    order: Sequence[str]
    health: pl.DataFrame
    members: dict[str, int]
    use: str
    graphs: Sequence[tuple[str, float, float, float, float]] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows. A frame without rows is shown as "not recorded".

    Attributes:
        title: Heading of the page.
        identity: Run id, hashes, source, periods, sizes, seed, device, versions; shown in order.
        verdict: The overall verdict; it must not contradict ``checks``.
        checks: Every check of the run.
        horizons: One row per (scorer, horizon), the model and all baselines; ``oracle_share`` is
            null without an oracle. Shares, returns and drawdown are fractions.
        daily: (scorer, date, gross, net) at the headline horizon, as fractions.
        rank_ic_by_date: (scorer, horizon, date, rank_ic), NaN where undefined.
        deciles: (horizon, decile, mean_return, standard_error) as fractions.
        epochs: One row per epoch of the training.
        gradients: (step, group, l2).
        quarantine: (reason, rows) of the rejected rows.
        breakdowns: (horizon, breakdown, group, metric, value, standard_error, dates) of the model:
            by age, sector, size, year, month and predicted quantile.
        missing: What the data lack, and what follows from that.
        notes: Known limits of this evaluation.
        structure: The learned structure; None where none was learned.
        importance: (kind, name, neighbour, importance, standard_error) of features and neighbours;
            kinds as in ``atft_model.importance``.

    Raises:
        ValueError: A frame lacks a column, or an accepting verdict stands over a failed check.
    """

    title: str
    identity: dict[str, str]
    verdict: Verdict
    checks: Sequence[CheckRow]
    horizons: pl.DataFrame
    daily: pl.DataFrame
    rank_ic_by_date: pl.DataFrame
    deciles: pl.DataFrame
    epochs: pl.DataFrame
    gradients: pl.DataFrame
    quarantine: pl.DataFrame
    breakdowns: pl.DataFrame
    missing: dict[str, str]
    notes: Sequence[str]
    structure: StructureSection | None = None
    importance: pl.DataFrame = field(default_factory=pl.DataFrame)

    def __post_init__(self) -> None:
        for name, columns in _COLUMNS.items():
            frame: pl.DataFrame = getattr(self, name)
            absent = [column for column in columns if column not in frame.columns]
            if absent and not frame.is_empty():
                raise ValueError(
                    f"ReportData: {name} lacks {', '.join(absent)}; found {frame.columns}"
                )
        failed = [c.name for c in self.checks if not c.passed and c.severity == "ERROR"]
        if self.verdict.accepted and failed:
            raise ValueError(
                f"ReportData: verdict is accepted, but {', '.join(failed)} failed; "
                "decide the verdict from the checks"
            )


class _Figure(NamedTuple):
    title: str
    svg: str | None  # None: nothing was recorded
    caption: str


class _Column(NamedTuple):
    header: str
    cell: Callable[[dict[str, Any]], str]


class _Numbers(NamedTuple):
    headers: list[str]
    rows: list[tuple[bool, list[str]]]  # (is the model, cells)


class _HorizonTable(NamedTuple):
    horizon: int
    headline: bool
    summary: str
    ranking: _Numbers
    trading: _Numbers
    luck: str


class _Breakdown(NamedTuple):
    title: str
    note: str
    numbers: _Numbers


class _KeyFigure(NamedTuple):
    label: str
    value: str
    detail: str


def render_report(data: ReportData) -> str:
    """The page as one string of HTML: no script, no network, the same for the same data."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("template.html.j2").render(
        data=data,
        horizon=HEADLINE_HORIZON,
        key_figures=_key_figures(data.horizons),
        check_groups=_check_groups(data.checks),
        figures=_figures(data),
        horizon_tables=_horizon_tables(data.horizons),
        breakdowns=_breakdowns(data.breakdowns),
        importance=_importance_tables(data.importance),
        quarantine=_quarantine_rows(data.quarantine),
        structure=_structure(data.structure),
    )


# Cells --------------------------------------------------------------------------------------------


def _with_error(value: Any, error: Any, digits: int) -> str:
    shown = _number(value, digits)
    return shown if shown == NOT_AVAILABLE else f"{shown} ± {_number(error, digits)}"


def _range(low: Any, high: Any, digits: int) -> str:
    shown = _number(low, digits)
    return shown if shown == NOT_AVAILABLE else f"{shown} to {_number(high, digits)}"


def _money(value: Any) -> str:
    """In thousands, millions or billions of the data's currency."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    for size, letter in ((1e9, "bn"), (1e6, "m"), (1e3, "k")):
        if value >= size:
            share = value / size
            return _number(share, 0 if share >= 10 else 1, f"\N{NO-BREAK SPACE}{letter}")
    return _number(value, 0)


def _percent(value: Any, digits: int = 1) -> str:
    return _number(value, digits, "\N{NO-BREAK SPACE}%", 100.0)


_HORIZON_COLUMNS = (
    _Column("scorer", lambda r: scorer_label(r["scorer"])),
    _Column("rank IC ± s.e.", lambda r: _with_error(r["rank_ic"], r["rank_ic_se"], 4)),
    _Column("95 % (bootstrap)", lambda r: _range(r["rank_ic_low"], r["rank_ic_high"], 3)),
    _Column("t", lambda r: _number(r["rank_ic_t"], 1)),
    _Column("model ahead, t", lambda r: _number(r["rank_ic_gap_t"], 1)),
    _Column("beyond known factors", lambda r: _number(r["residual_rank_ic"], 4)),
    _Column("t", lambda r: _number(r["residual_rank_ic_t"], 1)),
    _Column("ICIR", lambda r: _number(r["icir"], 2)),
    _Column("hit rate", lambda r: _percent(r["hit_rate"])),
    _Column("share of oracle", lambda r: _percent(r["oracle_share"], 0)),
    _Column("dates", lambda r: _number(r["n_dates"], 0)),
)
_PORTFOLIO_COLUMNS = (
    _Column("scorer", lambda r: scorer_label(r["scorer"])),
    _Column("net Sharpe ± s.e.", lambda r: _with_error(r["sharpe_net"], r["sharpe_se"], 2)),
    _Column("95 % (bootstrap)", lambda r: _range(r["sharpe_net_low"], r["sharpe_net_high"], 2)),
    _Column("model ahead, t", lambda r: _number(r["sharpe_gap_t"], 1)),
    _Column("gross Sharpe", lambda r: _number(r["sharpe_gross"], 2)),
    _Column("net, rank-weighted", lambda r: _number(r["rank_weighted_sharpe_net"], 2)),
    _Column("net, top long-only", lambda r: _number(r["top_sharpe_net"], 2)),
    _Column("turnover a day", lambda r: _percent(r["turnover"], 0)),
    _Column("max drawdown", lambda r: _percent(r["max_drawdown"])),
    _Column(
        "break-even cost", lambda r: _number(r["breakeven_cost_bp"], 1, "\N{NO-BREAK SPACE}bp")
    ),
    _Column("capacity", lambda r: _money(r["capacity"])),
)


# Parts of the page --------------------------------------------------------------------------------


def _key_figures(horizons: pl.DataFrame) -> list[_KeyFigure]:
    """The model's headline numbers, each with what it needs to be judged."""
    row = _model_row(horizons, HEADLINE_HORIZON)
    if row is None:
        return []
    dates = f"{_number(row['n_dates'], 0)} dates"
    figures = [
        _KeyFigure(
            "Net Sharpe",
            _with_error(row["sharpe_net"], row["sharpe_se"], 2),
            f"95 %: {_range(row['sharpe_net_low'], row['sharpe_net_high'], 2)} (bootstrap), "
            f"lag {_number(row['sharpe_lag'], 0)}; gross {_number(row['sharpe_gross'], 2)}",
        ),
        _KeyFigure(
            "Deflated Sharpe",
            _number(row["deflated_sharpe"], 2),
            f"probability that it is above {_number(row['sharpe_by_luck'], 2)}, the best of "
            f"{_number(row['trials'], 0)} by luck",
        ),
        _KeyFigure(
            "Rank IC",
            _with_error(row["rank_ic"], row["rank_ic_se"], 3),
            f"t = {_number(row['rank_ic_t'], 1)} over {dates}; beyond known factors "
            f"{_number(row['residual_rank_ic'], 3)} (t = {_number(row['residual_rank_ic_t'], 1)})",
        ),
        _KeyFigure(
            "Break-even cost",
            _number(row["breakeven_cost_bp"], 1, "\N{NO-BREAK SPACE}bp"),
            f"one way, at a turnover of {_percent(row['turnover'], 0)} a day",
        ),
        _KeyFigure("Maximum drawdown", _percent(row["max_drawdown"]), f"net, over {dates}"),
    ]
    if _number(row["oracle_share"], 0) != NOT_AVAILABLE:
        share = _percent(row["oracle_share"], 0)
        figures.append(_KeyFigure("Share of oracle", share, "of the planted signal's rank IC"))
    return figures


def _structure(section: StructureSection | None) -> dict[str, Any] | None:
    """Pictures and the table of links; ``WRITTEN_LINKS`` of them, strong first."""
    if section is None:
        return None
    kept = section.edges.filter(pl.col("kept"))
    rows = [
        (row["source"], row["target"], "same day" if row["lag"] == 0 else f"{row['lag']} d",
         _number(row["weight"], 2), _percent(row["confidence"], 0))
        for row in kept.head(WRITTEN_LINKS).iter_rows(named=True)
    ]  # fmt: skip
    return {
        "use": section.use,
        "groups": ", ".join(f"{name} ({count})" for name, count in section.members.items()),
        "rows": rows,
        "more": max(kept.height - WRITTEN_LINKS, 0),
        "graphs": [
            (name, _with_error(ic, error, 4), _with_error(gap, gap_error, 4))
            for name, ic, error, gap, gap_error in section.graphs
        ],
        "figures": [
            _Figure(
                "Which group drives which",
                figure_to_svg(plot_structure(section.edges, section.order)),
                "Learned from daily returns of the training dates, the market taken out. Solid: "
                "within the day; dashed: on the next; orange: negative; pale: rarely found again "
                "in resamples of the days; a ring: a group's own past.",
            ),
            _Figure(
                "How it was learned",
                figure_to_svg(plot_learning(section.health)),
                "The gradient stage, which proposes; the order search decides.",
            ),
        ],
    }


def _check_groups(checks: Sequence[CheckRow]) -> list[dict[str, Any]]:
    groups = []
    for kind, meaning in (
        ("integrity", "a failure stops what depends on it"),
        ("skill", "a failure stops nothing; it bars the model from use with require_skill: true"),
    ):
        rows = [check for check in checks if check.kind == kind]
        rows.sort(key=lambda check: (check.passed, check.severity != "ERROR"))
        if rows:
            held = sum(check.passed for check in rows)
            groups.append(
                {
                    "kind": kind.capitalize(),
                    "meaning": meaning,
                    "count": f"{held} of {len(rows)} hold",
                    "rows": [(*_outcome(check), check) for check in rows],
                }
            )
    return groups


def _outcome(check: CheckRow) -> tuple[str, str, str]:
    """(style, symbol, word): never colour alone."""
    if check.passed:
        return "pass", "✓", "holds"
    return ("fail", "✗", "fails") if check.severity == "ERROR" else ("warn", "!", "warning")


def _horizon_tables(horizons: pl.DataFrame) -> list[_HorizonTable]:
    """One table per horizon, the headline horizon first, the model in the first row of each."""
    if horizons.is_empty():
        return []
    order = horizons["horizon"].unique().sort().to_list()
    order.sort(key=lambda horizon: horizon != HEADLINE_HORIZON)
    shares_known = horizons["oracle_share"].is_not_null().any()
    columns = [c for c in _HORIZON_COLUMNS if shares_known or c.header != "share of oracle"]
    tables = []
    for horizon in order:
        rows = horizons.filter(pl.col("horizon") == horizon).to_dicts()
        rows.sort(key=lambda row: row["scorer"] != MODEL_SCORER)
        model = _model_row(horizons, horizon)
        rank_ic = _with_error(model["rank_ic"], model["rank_ic_se"], 4) if model else NOT_AVAILABLE
        net = _with_error(model["sharpe_net"], model["sharpe_se"], 2) if model else NOT_AVAILABLE
        tables.append(
            _HorizonTable(
                horizon=horizon,
                headline=horizon == HEADLINE_HORIZON,
                summary=f"model: rank IC {rank_ic}, net Sharpe {net}",
                ranking=_numbers(columns, rows),
                trading=_numbers(_PORTFOLIO_COLUMNS, rows),
                luck=_luck(rows),
            )
        )
    return tables


def _numbers(columns: Sequence[_Column], rows: Sequence[dict[str, Any]]) -> _Numbers:
    return _Numbers(
        [column.header for column in columns],
        [
            (row.get("scorer") == MODEL_SCORER, [column.cell(row) for column in columns])
            for row in rows
        ],
    )


def _luck(rows: Sequence[dict[str, Any]]) -> str:
    """What random scores reached, in a sentence; empty where none were drawn."""
    for row in rows:
        reach = _range(row["rank_ic_band_low"], row["rank_ic_band_high"], 4)
        if reach != NOT_AVAILABLE:
            sharpe = _range(row["sharpe_net_band_low"], row["sharpe_net_band_high"], 2)
            of_sharpe = "" if sharpe == NOT_AVAILABLE else f", net Sharpe {sharpe}"
            return f"Luck alone: 95 % of random scores end at a rank IC of {reach}{of_sharpe}."
    return ""


def _breakdowns(breakdowns: pl.DataFrame) -> list[_Breakdown]:
    """The tables by sector, size, year and predicted quantile at the headline horizon."""
    if breakdowns.is_empty():
        return []
    mine = breakdowns.filter(pl.col("horizon") == HEADLINE_HORIZON)
    tables = []
    for breakdown, title, note in (
        ("year", "By year", "A skill that one year made is luck until another shows it."),
        ("sector", "By sector", "Rank IC among the stocks of the sector alone."),
        ("size", "By size", "Thirds by traded value; small stocks cost more to trade."),
    ):
        rows = _wide(mine.filter(pl.col("breakdown") == breakdown))
        columns = [
            _Column(breakdown, lambda r: r["group"]),
            _Column("rank IC ± s.e.", lambda r: _with_error(*_pair(r, "rank_ic"), 4)),
            _Column("t", lambda r: _number(_ratio(*_pair(r, "rank_ic")), 1)),
            _Column("dates", lambda r: _number(r.get("rank_ic", _NOTHING)[2], 0)),
        ]
        if breakdown == "year":
            columns += [
                _Column("net return", lambda r: _percent(r.get("return_net", _NOTHING)[0])),
                _Column("net Sharpe ± s.e.",
                        lambda r: _with_error(*_pair(r, "sharpe_net"), 2)),
            ]  # fmt: skip
        if rows:
            tables.append(_Breakdown(title, note, _numbers(columns, rows)))
    rows = _wide(mine.filter(pl.col("breakdown") == "quantile"))
    columns = [
        _Column("quantile", lambda r: r["group"]),
        _Column("returns below it", lambda r: _percent(r.get("coverage", _NOTHING)[0])),
        _Column("± s.e.", lambda r: _percent(r.get("coverage", _NOTHING)[1])),
        _Column("stocks that cross", lambda r: _percent(r.get("crossing", _NOTHING)[0], 2)),
    ]
    if rows:
        note = "The 5 % quantile should have 5 % of the returns below it; none should cross."
        tables.append(_Breakdown("Predicted quantiles", note, _numbers(columns, rows)))
    return tables


def _importance_tables(importance: pl.DataFrame) -> list[_Breakdown]:
    """The largest weights on features, and the neighbours that are looked at most."""
    if importance.is_empty():
        return []
    tables = []
    for kind, title, note, header in (
        ("feature_selection", "Features by selection weight",
         "Share of the model's own variable selection, mean over stocks and dates. Among features "
         "that say the same, the share of each is arbitrary.", "feature"),
        ("pair", "Neighbours by attention",
         "Stock and neighbour, mean share of the stock's graph attention over the dates on which "
         "they were neighbours.", "stock ← neighbour"),
    ):  # fmt: skip
        chosen = importance.filter(pl.col("kind") == kind)
        rows = chosen.sort("importance", descending=True).head(SHOWN_IMPORTANCES).to_dicts()
        columns = [
            _Column(header, lambda r: " ← ".join(n for n in (r["name"], r["neighbour"]) if n)),
            _Column("share ± s.e.", lambda r: _percent(r["importance"])
                    + f" ± {_percent(r['standard_error'])}"),
        ]  # fmt: skip
        if rows:
            tables.append(_Breakdown(title, note, _numbers(columns, rows)))
    return tables


_NOTHING = (None, None, None)


def _pair(row: dict[str, Any], metric: str) -> tuple[Any, Any]:
    """Value and standard error of a metric, None where the group has none."""
    value, error, _ = row.get(metric, _NOTHING)
    return value, error


def _wide(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """One dict per group: metric -> (value, standard error, dates), groups in their order."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows.iter_rows(named=True):
        group = groups.setdefault(row["group"], {"group": row["group"]})
        group[row["metric"]] = (row["value"], row["standard_error"], row["dates"])
    return list(groups.values())


def _ratio(value: Any, error: Any) -> float | None:
    return value / error if value is not None and error else None


def _model_row(horizons: pl.DataFrame, horizon: int) -> dict[str, Any] | None:
    if horizons.is_empty():
        return None
    chosen = (pl.col("scorer") == MODEL_SCORER) & (pl.col("horizon") == horizon)
    rows = horizons.filter(chosen).to_dicts()
    return rows[0] if rows else None


def _quarantine_rows(quarantine: pl.DataFrame) -> list[tuple[str, str]]:
    if quarantine.is_empty():
        return []
    rows = quarantine.sort(["rows", "reason"], descending=[True, False]).iter_rows(named=True)
    listed = [(str(row["reason"]), _number(row["rows"], 0)) for row in rows]
    return [*listed, ("all reasons", _number(quarantine["rows"].sum(), 0))]


def _figures(data: ReportData) -> dict[str, _Figure]:
    h = HEADLINE_HORIZON
    of_model = pl.col("scorer") == MODEL_SCORER
    has_daily = not data.daily.is_empty() and not data.daily.filter(of_model).is_empty()
    has_rank_ic = (
        not data.rank_ic_by_date.is_empty()
        and not data.rank_ic_by_date.filter(of_model & (pl.col("horizon") == h)).is_empty()
    )
    has_scorers = (
        not data.horizons.is_empty() and not data.horizons.filter(pl.col("horizon") == h).is_empty()
    )
    months, ages = (_of_breakdown(data.breakdowns, name) for name in ("month", "age"))
    groups = data.importance
    if not groups.is_empty():
        groups = groups.filter(pl.col("kind").is_in(["group", "group_score_change"]))
    return {
        "returns": _Figure(
            "Cumulative net return",
            figure_to_svg(plot_cumulative_return(data.daily)) if has_daily else None,
            f"Decile long-short held {h} days, after costs, compounded. Grey: where 95 % of "
            "strategies without skill end that vary as much as the model.",
        ),
        "rank_ic": _Figure(
            "Rank IC over time",
            figure_to_svg(plot_rank_ic(data.rank_ic_by_date, h)) if has_rank_ic else None,
            "Band: 95 % interval of the mean (Newey–West). Where it covers zero, those dates show "
            "no skill. The outermost 2 % of the dots on each side are drawn at the edge.",
        ),
        "scorers": _Figure(
            "Model among the baselines",
            figure_to_svg(plot_scorers(data.horizons, h)) if has_scorers else None,
            "Points with 95 % intervals, best rank IC first. An interval that covers zero is no "
            "evidence of skill. Grey: where 95 % of random scores end.",
        ),
        "deciles": _Figure(
            "Return by score decile",
            None if data.deciles.is_empty() else figure_to_svg(plot_deciles(data.deciles)),
            "Mean forward return less the mean of the date, with 95 % intervals. A ranking that "
            "works rises from left to right; the dark deciles are traded.",
        ),
        "months": _Figure(
            "Rank IC by month",
            figure_to_svg(plot_rank_ic_by_month(months)) if not months.is_empty() else None,
            "Mean of each month with its 95 % interval.",
        ),
        "decay": _Figure(
            "Decay of the signal",
            figure_to_svg(plot_decay(ages)) if not ages.is_empty() else None,
            "Rank IC of scores that are some trading days old when they are used, with 95 % "
            "intervals. A signal that is gone after a day cannot be traded at leisure.",
        ),
        "importance": _Figure(
            "What the scores rest on",
            figure_to_svg(plot_importance(groups)) if not groups.is_empty() else None,
            "Left: the rank IC that is lost when the stocks of a date swap this group's values, or "
            "swap names as neighbours; 95 % intervals. Right: how much the order of the scores "
            "changes. A group that is used and earns nothing is noise that was learned.",
        ),
        "training": _Figure(
            "Loss and validation rank IC",
            None if data.epochs.is_empty() else figure_to_svg(plot_training(data.epochs)),
            _training_caption(data.epochs),
        ),
        "gradients": _Figure(
            "Gradient norms",
            None if data.gradients.is_empty() else figure_to_svg(plot_gradients(data.gradients)),
            "Each part of the model must learn: a line that falls to the bottom, or a cross, is a "
            "part that receives nothing.",
        ),
    }


def _of_breakdown(breakdowns: pl.DataFrame, breakdown: str) -> pl.DataFrame:
    """Rank IC rows of one breakdown; months at the headline horizon, ages at all."""
    if breakdowns.is_empty():
        return breakdowns
    rows = breakdowns.filter(pl.col("breakdown") == breakdown, pl.col("metric") == "rank_ic")
    return rows.filter(pl.col("horizon") == HEADLINE_HORIZON) if breakdown == "month" else rows


def _training_caption(epochs: pl.DataFrame) -> str:
    if epochs.is_empty():
        return ""
    speed = _number(epochs["windows_per_second"].cast(pl.Float64).median(), 0)
    rate = epochs.sort("epoch")["learning_rate"][-1]
    last = NOT_AVAILABLE if rate is None or not math.isfinite(rate) else f"{rate:.1e}"
    return (
        f"Ring: the epoch with the best validation rank IC. {speed} windows a second in the "
        f"median; the last learning rate was {last}."
    )
