"""The figures of an evaluation, for the HTML report and for Dagster metadata.

Each function takes a table and returns a matplotlib ``Figure``; nothing is shown or saved, and no
global state is kept (no pyplot). matplotlib is imported when a figure is made, so that Dagster
loads its definitions without it. What surrounds a figure on the page is in ``html.py``.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from atft_model.metrics.inference import long_run_variance, newey_west_lag, newey_west_mean
from atft_model.metrics.portfolio import drawdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL_SCORER = "model"
MARKET_SCORER = "equal_weight_market"
ORACLE_SCORER = "oracle"  # its curve would dwarf all others; the tables have it
NAMED_BASELINES = 4  # further ones are drawn in grey, without names
ROLLING_DATES = 60
DRIFT_FEATURES = 6
QUARANTINE_PANELS = 8  # reasons shown; the table of the check has all
NORMAL_95 = 1.96

WIDTH_INCHES = 5.2
# On a phone the figure is 358 px wide: 9.5 pt are then 9.1 px.
FONT_POINTS = 9.5

INK, MUTED, HAIRLINE = "#1a1d21", "#5b6470", "#dfe3e8"
MODEL_COLOUR, MODEL_TINT = "#12507b", "#9dbfd8"
# Okabe and Ito's palette, distinguishable with colour-blind eyes, darkened for thin lines on white.
SERIES_COLOURS = (
    "#c25700",
    "#00805e",
    "#a3467f",
    "#8a6d00",
    "#2b7bba",
    "#5b6470",
    "#7a3b1d",
    "#111",
)
SERIES_DASHES = ("-", "-", "-", "-", "--", "--", "--", "--")


def plot_cumulative_return(daily: pl.DataFrame) -> "Figure":
    """Compounded net return of model and baselines, and below it the model's drawdown.

    The grey band holds, at each day, 95 % of the results of a strategy without skill that varies
    as much as the model's: mean 0 and the model's Newey-West long-run variance.

    Args:
        daily: (scorer, date, gross, net), returns as fractions, at one horizon.
    """
    from matplotlib.ticker import FuncFormatter

    with style():
        figure = new_figure(height=4.1)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.1])
        model = daily.filter(pl.col("scorer") == MODEL_SCORER).sort("date").drop_nulls()
        _draw_no_skill_band(top, model)
        for name, colour, dash, label in _baseline_styles(daily):
            line = daily.filter(pl.col("scorer") == name).sort("date").drop_nulls()
            capital = np.cumprod(1.0 + line["net"].to_numpy()) - 1.0
            top.plot(line["date"].to_numpy(), capital, dash, color=colour, lw=1.1, label=label)
        net = model["net"].to_numpy()
        dates = model["date"].to_numpy()
        capital = np.cumprod(1.0 + net) - 1.0
        top.plot(dates, capital, color=MODEL_COLOUR, lw=2.2, label="model", zorder=5)
        fall = drawdown(net)
        bottom.fill_between(dates, fall, 0.0, color=MODEL_TINT, lw=0)
        bottom.plot(dates, fall, color=MODEL_COLOUR, lw=1.1)
        percent = FuncFormatter(lambda share, _: f"{100 * share:g}%".replace("-", "−"))
        for axes, title in ((top, "net of costs, compounded"), (bottom, "drawdown of the model")):
            axes.axhline(0.0, color=MUTED, lw=0.8)
            axes.yaxis.set_major_formatter(percent)
            axes.set_title(title)
        bottom.set_ylim(top=0.0)
        _label_dates(bottom, dates)
        handles, labels = top.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] != "model")
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside lower left",
            ncols=2,
        )
    return figure


def plot_compared_returns(daily: pl.DataFrame) -> "Figure":
    """Compounded net return of two runs' models on the same dates.

    Args:
        daily: (run, date, net), two runs, returns as fractions at one horizon.
    """
    from matplotlib.ticker import FuncFormatter

    with style():
        figure = new_figure(height=3.2)
        axes = figure.subplots()
        dates = np.array([], dtype="datetime64[D]")
        for run, colour, dash in _compared(daily):
            line = daily.filter(pl.col("run") == run).sort("date")
            dates = line["date"].to_numpy()
            capital = np.cumprod(1.0 + line["net"].to_numpy()) - 1.0
            axes.plot(dates, capital, dash, color=colour, lw=1.8, label=run)
        axes.axhline(0.0, color=MUTED, lw=0.8)
        percent = FuncFormatter(lambda share, _: f"{100 * share:g}%".replace("-", "−"))
        axes.yaxis.set_major_formatter(percent)
        axes.set_title("net of costs, compounded")
        _label_dates(axes, dates)
        figure.legend(loc="outside lower left", ncols=1)
    return figure


def plot_compared_rank_ic(rank_ic_by_date: pl.DataFrame, horizon: int) -> "Figure":
    """Rank IC of two runs' models, mean of the last 60 dates.

    Args:
        rank_ic_by_date: (run, date, rank_ic) of two runs on the same dates; NaN where undefined.
        horizon: Of both, in trading days.
    """
    with style():
        figure = new_figure(height=3.2)
        axes = figure.subplots()
        dates = np.array([], dtype="datetime64[D]")
        for run, colour, dash in _compared(rank_ic_by_date):
            line = rank_ic_by_date.filter(pl.col("run") == run).sort("date")
            dates = line["date"].to_numpy()
            means, _ = _rolling_mean(_floats(line, "rank_ic"), horizon)
            axes.plot(dates, means, dash, color=colour, lw=1.8, label=run)
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set_title(f"rank IC at {_days(horizon)}, mean of {ROLLING_DATES} dates")
        _label_dates(axes, dates)
        figure.legend(loc="outside lower left", ncols=1)
    return figure


def _compared(table: pl.DataFrame) -> list[tuple[str, str, str]]:
    """(run, colour, dashes), the first run as the model is drawn elsewhere."""
    runs = table["run"].unique(maintain_order=True).to_list()
    return list(zip(runs, (MODEL_COLOUR, SERIES_COLOURS[0]), ("-", "--"), strict=False))


def plot_rank_ic(
    rank_ic_by_date: pl.DataFrame, horizon: int, scorer: str = MODEL_SCORER
) -> "Figure":
    """Rank IC per date as dots, and its mean over 60 dates with a 95 % Newey-West band.

    Dots beyond the 2 % and 98 % quantiles are drawn at the edge, so that the mean stays readable.

    Args:
        rank_ic_by_date: (scorer, horizon, date, rank_ic); NaN where undefined.
        horizon: The horizon to show, in trading days.
        scorer: The scorer to show.
    """
    chosen = (pl.col("scorer") == scorer) & (pl.col("horizon") == horizon)
    series = rank_ic_by_date.filter(chosen).sort("date")
    dates = series["date"].to_numpy()
    values = _floats(series, "rank_ic")
    means, errors = _rolling_mean(values, horizon)
    with style():
        figure = new_figure(height=2.9)
        axes = figure.subplots()
        known = np.isfinite(values)
        if known.any():
            low, high = np.quantile(values[known], [0.02, 0.98])
            clipped = np.clip(values[known], low, high)
            _draw_dots(axes, dates[known], clipped, colour=MODEL_TINT)
        axes.axhline(0.0, color=MUTED, lw=0.8)
        shown = np.isfinite(means) & np.isfinite(errors)
        reach = NORMAL_95 * errors
        axes.fill_between(
            dates,
            means - reach,
            means + reach,
            where=shown.tolist(),
            color=MODEL_COLOUR,
            alpha=0.22,
            lw=0,
        )
        axes.plot(dates, means, color=MODEL_COLOUR, lw=2.0)
        rolling = f", mean of {ROLLING_DATES} dates" if shown.any() else ""
        axes.set_title(f"rank IC at {_days(horizon)}: each date{rolling}")
        _label_dates(axes, dates)
    return figure


def plot_rank_ic_by_month(months: pl.DataFrame) -> "Figure":
    """Mean rank IC of each month with its 95 % interval.

    Args:
        months: (group "YYYY-MM", value, standard_error) at one horizon.
    """
    months = months.sort("group")
    dates = months["group"].str.to_date("%Y-%m").to_numpy()
    mean, reach = _floats(months, "value"), NORMAL_95 * _floats(months, "standard_error")
    with style():
        figure = new_figure(height=2.9)
        axes = figure.subplots()
        axes.bar(dates, mean, width=22.0, color=MODEL_TINT)
        axes.errorbar(dates, mean, yerr=reach, fmt="none", ecolor=INK, elinewidth=0.9)
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set_title("rank IC, mean of each month")
        _label_dates(axes, dates)
    return figure


def plot_decay(ages: pl.DataFrame) -> "Figure":
    """Rank IC by the age of the score, one line per horizon, with 95 % intervals.

    Args:
        ages: (horizon, group, value, standard_error); group is the age in trading days.
    """
    ages = ages.with_columns(age=pl.col("group").cast(pl.Int64)).sort("horizon", "age")
    shown = ages["age"].unique().sort().to_list()
    with style():
        figure = new_figure(height=2.9)
        axes = figure.subplots()
        for number, horizon in enumerate(ages["horizon"].unique().sort().to_list()):
            line = ages.filter(pl.col("horizon") == horizon)
            # Apart by a hair, so that the intervals of the horizons do not hide each other.
            place = np.array([shown.index(age) for age in line["age"]]) + 0.06 * number
            axes.errorbar(
                place,
                _floats(line, "value"),
                yerr=NORMAL_95 * _floats(line, "standard_error"),
                fmt=".-",
                color=SERIES_COLOURS[number % len(SERIES_COLOURS)],
                lw=1.3,
                elinewidth=0.8,
                label=_days(horizon),
            )
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set_xticks(range(len(shown)), [str(age) for age in shown])
        axes.set_xlabel("age of the score, trading days")
        axes.set_title("rank IC by age of the score")
        figure.legend(loc="outside lower left", ncols=4)
    return figure


def plot_scorers(horizons: pl.DataFrame, horizon: int) -> "Figure":
    """Rank IC and net Sharpe of model and baselines with 95 % intervals, best rank IC first.

    Args:
        horizons: (scorer, horizon, rank_ic, rank_ic_se, sharpe_net, sharpe_se, ...).
        horizon: The horizon to show, in trading days.
    """
    rows = horizons.filter(pl.col("horizon") == horizon)
    rows = rows.with_columns(pl.col("rank_ic").cast(pl.Float64).fill_nan(None))
    rows = rows.sort("rank_ic", "scorer", nulls_last=False)
    names = rows["scorer"].to_list()
    place = np.arange(len(names))
    of_model = np.array([name == MODEL_SCORER for name in names])
    with style():
        figure = new_figure(height=1.1 + 0.235 * max(len(names), 4))
        for axes, value, error, title in zip(
            figure.subplots(1, 2, sharey=True),
            ("rank_ic", "sharpe_net"),
            ("rank_ic_se", "sharpe_se"),
            (f"rank IC at {_days(horizon)}", "net Sharpe"),
            strict=True,
        ):
            x, reach = _floats(rows, value), NORMAL_95 * _floats(rows, error)
            for chosen, colour, size in ((~of_model, MUTED, 4.0), (of_model, MODEL_COLOUR, 6.5)):
                axes.errorbar(
                    x[chosen],
                    place[chosen],
                    xerr=reach[chosen],
                    fmt="o",
                    ms=size,
                    color=colour,
                    elinewidth=size / 3,
                )
            for low, high in _luck(rows, value):
                axes.axvspan(low, high, color=MUTED, alpha=0.14, lw=0)
            axes.axvline(0.0, color=MUTED, lw=0.8)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", visible=True)
            axes.locator_params(axis="x", nbins=4)
            axes.set_title(title)
            axes.set_yticks(place, [scorer_label(name) for name in names])
        for label, is_model in zip(figure.axes[0].get_yticklabels(), of_model, strict=True):
            if is_model:
                label.set(color=MODEL_COLOUR, fontweight="bold")
    return figure


def _luck(rows: pl.DataFrame, figure: str) -> list[tuple[float, float]]:
    """The band of random scores, once; none where none were drawn."""
    ends = [f"{figure}_band_low", f"{figure}_band_high"]
    if not set(ends) <= set(rows.columns):
        return []
    low, high = (_floats(rows, end) for end in ends)
    known = np.isfinite(low) & np.isfinite(high)
    return [(float(a), float(b)) for a, b in zip(low[known], high[known], strict=True)][:1]


def plot_deciles(deciles: pl.DataFrame) -> "Figure":
    """Mean forward return by score decile, less the date's mean, with 95 % intervals.

    Args:
        deciles: (horizon, decile 1..10, mean_return, standard_error) as fractions.
    """
    horizons = deciles["horizon"].unique().sort().to_list()
    rows = (len(horizons) + 1) // 2
    with style():
        figure = new_figure(height=0.4 + 1.75 * rows)
        grid = figure.subplots(rows, min(2, len(horizons)), squeeze=False)
        for axes, horizon in zip(grid.flat, horizons, strict=False):
            chosen = deciles.filter(pl.col("horizon") == horizon).sort("decile")
            decile = chosen["decile"].to_numpy()
            mean = 1e4 * _floats(chosen, "mean_return")
            reach = NORMAL_95 * 1e4 * _floats(chosen, "standard_error")
            traded = (decile == decile.min()) | (decile == decile.max())
            colours = [MODEL_COLOUR if edge else MODEL_TINT for edge in traded]
            axes.bar(decile, mean, color=colours, width=0.74)
            axes.errorbar(decile, mean, yerr=reach, fmt="none", ecolor=INK, elinewidth=1.0)
            axes.axhline(0.0, color=MUTED, lw=0.8)
            axes.set_xticks([1, 5, 10])
            axes.set_title(f"{_days(horizon)}, bp")
        for axes in list(grid.flat)[len(horizons) :]:
            axes.set_axis_off()
        figure.supxlabel("score decile (10 = highest score)", fontsize=FONT_POINTS, color=MUTED)
    return figure


def plot_importance(groups: pl.DataFrame) -> "Figure":
    """What each feature group is worth, and how much the scores depend on it; the first on top.

    Args:
        groups: (kind, name, importance, standard_error) of the kinds ``group`` (drop of rank IC)
            and ``group_score_change`` (one minus a rank correlation).
    """
    drop = groups.filter(pl.col("kind") == "group").sort(["importance", "name"])
    names = drop["name"].to_list()
    change = dict(
        groups.filter(pl.col("kind") == "group_score_change")
        .select("name", "importance")
        .iter_rows()
    )
    with style():
        figure = new_figure(height=0.9 + 0.27 * len(names))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.3, 1])
        place = np.arange(len(names))
        reach = NORMAL_95 * np.nan_to_num(_floats(drop, "standard_error"))
        left.barh(place, _floats(drop, "importance"), color=MODEL_COLOUR, height=0.62)
        left.errorbar(_floats(drop, "importance"), place, xerr=reach, fmt="none", ecolor=INK,
                      elinewidth=1.0)  # fmt: skip
        left.axvline(0.0, color=MUTED, lw=0.8)
        left.set_yticks(place, names)
        left.set_title("rank IC lost")
        right.barh(place, [change.get(name, np.nan) for name in names], color=MODEL_TINT,
                   height=0.62)  # fmt: skip
        right.set_title("scores changed")
    return figure


def plot_quarantine(by_month: pl.DataFrame) -> "Figure":
    """Share of each month's raw rows in quarantine, a panel per reason, the most frequent first.

    Each panel has its own scale, because a padded holiday and a broken column differ a thousandfold
    in rows and not in what they mean.

    Args:
        by_month: (month, reason, rows, share), from ``quarantine_by_month``.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    totals = by_month.group_by("reason").agg(pl.col("rows").sum())
    totals = totals.sort(["rows", "reason"], descending=[True, False]).head(QUARANTINE_PANELS)
    with style():
        figure = new_figure(height=0.6 + 0.95 * max(totals.height, 1))
        grid = figure.subplots(max(totals.height, 1), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (reason, rows) in zip(grid, totals.iter_rows(), strict=False):
            series = by_month.filter(pl.col("reason") == reason).sort("month")
            months = series["month"].to_numpy()
            axes.bar(months, _floats(series, "share"), width=25, color=MODEL_COLOUR)
            axes.set_title(f"{reason}: {rows:,} rows")
            axes.yaxis.set_major_locator(MaxNLocator(nbins=2, min_n_ticks=2))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.2g}%"))
            axes.set_ylim(bottom=0.0)
            _label_dates(axes, months)
        if totals.is_empty():
            grid[0].set_title("no row in quarantine")
    return figure


def plot_training(epochs: pl.DataFrame) -> "Figure":
    """Training and validation loss by epoch, and below them the validation rank IC.

    The ring marks the epoch with the best validation rank IC.

    Args:
        epochs: (epoch, train_loss, val_loss, val_rank_ic, ...).
    """
    from matplotlib.ticker import MaxNLocator

    epochs = epochs.sort("epoch")
    epoch = epochs["epoch"].to_numpy()
    with style():
        figure = new_figure(height=3.6)
        top, bottom = figure.subplots(2, 1, sharex=True)
        marker = "." if len(epoch) <= 40 else ""
        train, validation = _floats(epochs, "train_loss"), _floats(epochs, "val_loss")
        rank_ic = _floats(epochs, "val_rank_ic")
        top.plot(epoch, train, "--", marker=marker, color=MUTED, lw=1.4, label="training")
        top.plot(epoch, validation, marker=marker, color=MODEL_COLOUR, lw=1.8, label="validation")
        top.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2)
        top.set_title("loss")
        bottom.plot(epoch, rank_ic, marker=marker, color=MODEL_COLOUR, lw=1.8)
        if np.isfinite(rank_ic).any():
            best = int(np.nanargmax(rank_ic))
            bottom.plot(
                epoch[best], rank_ic[best], "o", ms=9, mfc="none", mec=SERIES_COLOURS[0], mew=1.6
            )
        bottom.axhline(0.0, color=MUTED, lw=0.8)
        bottom.set_title("validation rank IC, mean over horizons")
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        bottom.set_xlim(epoch.min() - 0.5, epoch.max() + 0.5)
    return figure


def plot_gradients(gradients: pl.DataFrame) -> "Figure":
    """Gradient norm of each monitor group over the optimizer's steps, on a log scale.

    A group without any gradient has no place on a log scale; it is marked with a cross at the
    bottom, because a dead group is what this figure is for.

    Args:
        gradients: (step, group, l2).
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    groups = gradients["group"].unique().sort().to_list()
    l2 = _floats(gradients, "l2")
    positive = l2[np.isfinite(l2) & (l2 > 0)]
    bottom = 10.0 ** np.floor(np.log10(positive.min()) - 0.5) if positive.size else 1e-8
    with style():
        figure = new_figure(height=3.0 + 0.2 * ((len(groups) + 1) // 2))
        axes = figure.subplots()
        axes.set_yscale("log")
        for number, group in enumerate(groups):
            line = gradients.filter(pl.col("group") == group).sort("step")
            step, norm = line["step"].to_numpy(), _floats(line, "l2")
            colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
            dash = SERIES_DASHES[number % len(SERIES_DASHES)]
            alive = np.where(norm > 0, norm, np.nan)
            axes.plot(step, alive, dash, color=colour, lw=1.3, label=str(group))
            dead = norm == 0
            axes.plot(step[dead], np.full(dead.sum(), bottom), "x", color=colour, ms=6, mew=1.6)
        axes.set_ylim(bottom=bottom * 0.7)
        # Written as in the log; powers with raised exponents are too small on a phone.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:.0e}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title("gradient L2 norm by group; a cross is exactly zero")
        axes.set_xlabel("step")
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def plot_drift(drift: pl.DataFrame) -> "Figure":
    """Mean shift by month of the features nearest to, or beyond, their drift limits.

    Args:
        drift: (feature, month, months, mean_shift, of_limit) of the table ``feature_drift``.
    """
    worst = (
        drift.drop_nulls("of_limit")
        .group_by("feature")
        .agg(pl.col("of_limit").max())
        .sort("of_limit", "feature", descending=[True, False])
        .head(DRIFT_FEATURES)
    )
    with style():
        figure = new_figure(height=3.2 + 0.2 * ((worst.height + 1) // 2))
        axes = figure.subplots()
        for number, (feature, share) in enumerate(worst.iter_rows()):
            of_feature = (pl.col("feature") == feature) & (pl.col("months") == 1)
            line = drift.filter(of_feature).sort("month")
            axes.plot(
                line["month"].to_numpy(),
                _floats(line, "mean_shift"),
                SERIES_DASHES[number],
                marker=".",
                color=SERIES_COLOURS[number],
                lw=1.3,
                label=f"{feature}, {share:.0%} of its limit",
            )
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axes.set_title("monthly mean less the training mean, in training std")
        if worst.height:
            _label_dates(axes, drift["month"].unique().sort().to_numpy())
            figure.legend(loc="outside lower left", ncols=1)
    return figure


# A figure as text ---------------------------------------------------------------------------------


def figure_to_svg(figure: "Figure") -> str:
    """The figure as one ``<svg>`` element to be placed inside an HTML page.

    Text stays text. The element scales to the width of its place. Ids carry a hash of the content,
    so that several figures live on one page; the same figure gives the same characters.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML prolog and DOCTYPE have no place inside HTML
    # Holds the time of day and addresses of vocabularies.
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Its rule, "*{stroke-linejoin: ...}", would hold for the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<[^>]*>", _round_numbers, svg)
    prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg).strip()


def figure_to_png_data_uri(figure: "Figure", dpi: int = 120) -> str:
    """The figure as a ``data:`` address of a PNG picture, for Dagster's Markdown metadata."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _round_numbers(tag: re.Match[str]) -> str:
    """Hundredths of a point are invisible, and half of the file."""
    return re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", tag[0])


# Style --------------------------------------------------------------------------------------------


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, for the time of a ``with``."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "atft",
        "text.parse_math": False,  # names may hold dollar signs
        "font.family": "DejaVu Sans",  # ships with matplotlib; the page puts its own in place
        "font.size": FONT_POINTS,
        "text.color": INK,
        "axes.labelsize": FONT_POINTS,
        "axes.labelcolor": MUTED,
        "axes.titlesize": FONT_POINTS,
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.titlepad": 7.0,
        "axes.edgecolor": HAIRLINE,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.xmargin": 0.01,
        "grid.color": HAIRLINE,
        "grid.linewidth": 0.7,
        "xtick.labelsize": FONT_POINTS,
        "ytick.labelsize": FONT_POINTS,
        "xtick.color": HAIRLINE,
        "ytick.color": HAIRLINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "ytick.major.size": 0.0,
        "xtick.minor.size": 0.0,
        "ytick.minor.size": 0.0,
        "legend.fontsize": FONT_POINTS,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.labelcolor": INK,
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(height: float) -> "Figure":
    """An empty figure of the page's width, ``height`` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, height), layout="constrained")


def _label_dates(axes: "Axes", dates: np.ndarray) -> None:
    from matplotlib.dates import AutoDateLocator, DateFormatter

    days = (dates[-1] - dates[0]).astype("timedelta64[D]").astype(int) if len(dates) else 0
    form = "%Y" if days > 5 * 365 else "%b %Y" if days > 150 else "%d %b"
    # Two ticks are enough: 25 to 36 months have no interval of months that gives 3 to 5.
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=2, maxticks=5))
    axes.xaxis.set_major_formatter(DateFormatter(form))


def _draw_dots(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """All dots as one path of very short strokes with round ends: a fifth of a marker's bytes."""
    strokes_x = np.repeat(x.astype("datetime64[s]"), 3)
    strokes_x[1::3] += np.maximum((x[-1] - x[0]).astype("timedelta64[s]") // 20_000, 1)
    strokes_y = np.repeat(y, 3)
    strokes_y[2::3] = np.nan  # lifts the pen
    axes.plot(strokes_x, strokes_y, color=colour, lw=2.4, solid_capstyle="round")


def _draw_no_skill_band(axes: "Axes", model: pl.DataFrame) -> None:
    net = model["net"].to_numpy()
    if len(net) < 2:
        return
    days = np.arange(1, len(net) + 1)
    reach = NORMAL_95 * np.sqrt(long_run_variance(net, newey_west_lag(len(net))) * days)
    axes.fill_between(
        model["date"].to_numpy(),
        np.expm1(-reach),
        np.expm1(reach),
        color=MUTED,
        alpha=0.14,
        lw=0,
        label="95 % without skill",
    )


def _baseline_styles(daily: pl.DataFrame) -> list[tuple[str, str, str, str]]:
    """(scorer, colour, dashes, label) of each baseline's line, in the order of the table."""
    names = daily["scorer"].unique(maintain_order=True).to_list()
    others = [n for n in names if n not in (MODEL_SCORER, MARKET_SCORER, ORACLE_SCORER)]
    styles = [
        (name, SERIES_COLOURS[i], SERIES_DASHES[i], scorer_label(name))
        for i, name in enumerate(others[:NAMED_BASELINES])
    ]
    for i, name in enumerate(others[NAMED_BASELINES:]):
        styles.append((name, "#b4bac2", "-", "_" if i else "other baselines"))
    if MARKET_SCORER in names:
        styles.append((MARKET_SCORER, INK, ":", scorer_label(MARKET_SCORER)))
    return styles


def scorer_label(scorer: str) -> str:
    """A scorer's name as a person reads it."""
    return re.sub(r"(?<=\d)_(?=\d)", "-", scorer).replace("_", " ")


def _rolling_mean(values: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of the last 60 values; NaN until half of them are known."""
    means, errors = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for end in range(ROLLING_DATES, len(values) + 1):
        window = values[end - ROLLING_DATES : end]
        if np.isfinite(window).sum() >= ROLLING_DATES // 2:
            estimate = newey_west_mean(window, horizon=horizon)
            means[end - 1], errors[end - 1] = estimate.mean, estimate.standard_error
    return means, errors


def _floats(frame: pl.DataFrame, column: str) -> np.ndarray:
    """The column with NaN for what is null or infinite, which matplotlib leaves out."""
    values = frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _days(horizon: int) -> str:
    return "1 day" if horizon == 1 else f"{horizon} days"
