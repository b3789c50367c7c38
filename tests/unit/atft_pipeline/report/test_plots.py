"""Figures as text: fit for a page, the same for the same table, honest about zeros and gaps."""

import base64
import datetime
import re

import numpy as np
import polars as pl
import pytest

from atft_pipeline.report.plots import (
    MARKET_SCORER,
    ORACLE_SCORER,
    figure_to_png_data_uri,
    figure_to_svg,
    plot_cumulative_return,
    plot_decay,
    plot_deciles,
    plot_drift,
    plot_gradients,
    plot_importance,
    plot_quarantine,
    plot_rank_ic,
    plot_rank_ic_by_month,
    plot_scorers,
    plot_training,
    scorer_label,
)


def _dates(count: int) -> list[datetime.date]:
    return np.busday_offset("2014-01-06", np.arange(count), roll="forward").tolist()


def _daily(scorers: list[str], days: int = 80) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.concat(
        pl.DataFrame(
            {"scorer": [s] * days, "date": _dates(days), "net": rng.normal(size=days) / 99}
        )
        for s in scorers
    ).with_columns(gross=pl.col("net") + 0.0005)


def _rank_ic(values: list[float]) -> pl.DataFrame:
    n = len(values)
    return pl.DataFrame(
        {"scorer": ["model"] * n, "horizon": [5] * n, "date": _dates(n), "rank_ic": values}
    )


def _gradients(last: float) -> pl.DataFrame:
    return pl.DataFrame(
        {"step": [1, 2, 1, 2], "group": ["gat", "gat", "head", "head"], "l2": [0.1, last, 1.0, 1.0]}
    )


def test_months_and_ages_are_drawn_with_their_intervals() -> None:
    months = pl.DataFrame(
        {"group": ["2014-02", "2014-01"], "value": [0.02, -0.01], "standard_error": [0.01, None]}
    )
    figure = plot_rank_ic_by_month(months)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [-0.01, 0.02]
    ages = pl.DataFrame(
        {
            "horizon": [1, 1, 5, 5],
            "group": ["0", "10", "0", "10"],
            "value": [0.03, 0.0, 0.05, 0.02],
            "standard_error": [0.01] * 4,
        }
    )
    figure = plot_decay(ages)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["0", "10"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 day", "5 days"]


def test_the_band_of_random_scores_is_drawn_where_it_is_known() -> None:
    rows = pl.DataFrame(
        {
            "scorer": ["model", "random"], "horizon": [5, 5], "rank_ic": [0.03, 0.0],
            "rank_ic_se": [0.01, 0.01], "sharpe_net": [1.0, -1.0], "sharpe_se": [0.5, 0.5],
            "rank_ic_band_low": [None, -0.007], "rank_ic_band_high": [None, 0.006],
        }
    )  # fmt: skip
    with_band, without = plot_scorers(rows, 5).axes
    (band,) = with_band.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-0.007, 0.006))
    assert len(without.patches) == 0


def test_svg_fits_into_a_page() -> None:
    svg = figure_to_svg(plot_gradients(_gradients(0.2)))
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "viewBox=" in svg
    assert " width=" not in svg.split(">")[0]  # the page decides
    for unwanted in ("<?xml", "<!DOCTYPE", "<metadata", "<style", "purl.org"):
        assert unwanted not in svg
    assert ">gat</text>" in svg  # text stays text


def test_the_ids_of_two_figures_differ_and_every_reference_resolves() -> None:
    figures = [figure_to_svg(plot_gradients(_gradients(last))) for last in (0.2, 0.3)]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in figures]
    assert not ids[0] & ids[1]
    for svg, known in zip(figures, ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
        assert used
        assert used <= known


def test_the_same_table_gives_the_same_characters() -> None:
    one, two = (figure_to_svg(plot_cumulative_return(_daily(["model", "ridge"]))) for _ in "12")
    assert one == two
    one, two = (figure_to_png_data_uri(plot_gradients(_gradients(0.2)), dpi=60) for _ in "12")
    assert one == two
    picture = base64.b64decode(one.removeprefix("data:image/png;base64,"))
    assert picture.startswith(b"\x89PNG")


def test_numbers_in_text_are_not_rounded_with_those_of_the_drawing() -> None:
    figure = plot_gradients(_gradients(0.2))
    figure.axes[0].set_title("mean 0.123456789")
    assert "mean 0.123456789</text>" in figure_to_svg(figure)


def test_baselines_are_named_up_to_four_and_the_oracle_is_left_to_the_tables() -> None:
    names = ["model", ORACLE_SCORER, "a", "b", "c", "d", "e", "f", MARKET_SCORER]
    legend = plot_cumulative_return(_daily(names)).legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "model"
    assert sorted(labels[1:]) == sorted(
        ["95 % without skill", "a", "b", "c", "d", "other baselines", "equal weight market"]
    )


def test_the_last_points_are_the_compounded_return_and_its_drawdown() -> None:
    daily = _daily(["model"])
    net = daily["net"].to_numpy()
    top, bottom = plot_cumulative_return(daily).axes
    curve = next(line for line in top.lines if line.get_label() == "model")
    assert np.asarray(curve.get_ydata())[-1] == pytest.approx(np.prod(1 + net) - 1)
    capital = np.cumprod(np.append(1.0, 1 + net))
    assert np.asarray(bottom.lines[0].get_ydata()).min() == pytest.approx(
        (capital / np.maximum.accumulate(capital) - 1).min()
    )


def test_rank_ic_has_a_dot_per_known_date_and_a_mean_after_60() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.1, 100)
    values[[3, 50]] = np.nan
    axes = plot_rank_ic(_rank_ic(values.tolist()), horizon=5).axes[0]
    dots, _, mean = axes.lines
    assert len(np.asarray(dots.get_ydata())) == 3 * 98
    drawn = np.asarray(mean.get_ydata())
    assert np.isnan(drawn[:59]).all()
    assert drawn[-1] == pytest.approx(np.nanmean(values[-60:]))


@pytest.mark.parametrize("values", [[0.1, -0.1, 0.2], [float("nan")] * 70, [0.1] * 5])
def test_rank_ic_without_a_mean_draws_none(values: list[float]) -> None:
    axes = plot_rank_ic(_rank_ic(values), horizon=5).axes[0]
    assert axes.get_title(loc="left") == "rank IC at 5 days: each date"


def test_a_dead_group_is_marked() -> None:
    crosses = [
        line for line in plot_gradients(_gradients(0.0)).axes[0].lines if line.get_marker() == "x"
    ]
    assert [len(np.asarray(line.get_xdata())) for line in crosses] == [1, 0]
    everything_dead = _gradients(0.0).with_columns(l2=pl.lit(0.0))
    crosses = [
        line for line in plot_gradients(everything_dead).axes[0].lines if line.get_marker() == "x"
    ]
    assert [len(np.asarray(line.get_xdata())) for line in crosses] == [2, 2]


def test_small_tables_are_drawn() -> None:
    epoch = pl.DataFrame(
        {"epoch": [1], "train_loss": [1.0], "val_loss": [None], "val_rank_ic": [float("nan")]}
    )
    assert figure_to_svg(plot_training(epoch))
    decile = pl.DataFrame(
        {"horizon": [5], "decile": [1], "mean_return": [0.1], "standard_error": [float("nan")]}
    )
    assert figure_to_svg(plot_deciles(decile))
    scorer = pl.DataFrame(
        {
            "scorer": ["model", MARKET_SCORER],
            "horizon": [5, 5],
            "rank_ic": [float("nan"), None],
            "rank_ic_se": [None, None],
            "sharpe_net": [0.5, None],
            "sharpe_se": [0.4, None],
        },
        schema_overrides={"rank_ic_se": pl.Float64},
    )
    assert figure_to_svg(plot_scorers(scorer, 5))
    assert figure_to_svg(plot_cumulative_return(_daily(["model"], days=1)))


def test_scorers_read_like_words() -> None:
    assert scorer_label("momentum_12_1") == "momentum 12-1"
    assert scorer_label("low_volatility_60d") == "low volatility 60d"


def _drift(features: int, months: int = 4) -> pl.DataFrame:
    rows = [
        {
            "feature": f"feature_{feature}",
            "month": datetime.date(2013 + month // 12, 1 + month % 12, 1),
            "months": 1,
            "mean_shift": 0.1 * feature if month else None,
            "of_limit": 0.1 * feature if month else None,
        }
        for feature in range(features)
        for month in range(months)
    ]
    schema = {"feature": pl.String, "month": pl.Date, "months": pl.Int32}
    schema |= {"mean_shift": pl.Float64, "of_limit": pl.Float64}
    return pl.DataFrame(rows, schema=schema)


def test_drift_shows_the_worst_features_first() -> None:
    figure = plot_drift(_drift(12))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "feature_11, 110% of its limit"
    assert len(labels) == 6
    assert figure_to_png_data_uri(figure).startswith("data:image/png;base64,")


@pytest.mark.parametrize("months", range(1, 62, 4))
def test_any_number_of_months_finds_its_labels(months: int) -> None:
    """matplotlib warns where it finds no interval; warnings fail."""
    figure_to_png_data_uri(plot_drift(_drift(1, months)), dpi=20)


def test_no_later_month_is_an_empty_figure() -> None:
    assert figure_to_svg(plot_drift(_drift(0))).startswith("<svg")


def test_quarantine_has_a_panel_per_reason_with_its_rows() -> None:
    months = [datetime.date(2014, month, 1) for month in range(1, 13)]
    by_month = pl.concat(
        pl.DataFrame({"month": months, "reason": [reason] * 12, "rows": [rows] * 12})
        for reason, rows in (("zero_volume", 1500), ("stale_bar", 1))
    ).with_columns(share=pl.col("rows") / 21_000)
    svg = figure_to_svg(plot_quarantine(by_month))
    assert svg.index("zero_volume: 18,000 rows") < svg.index("stale_bar: 12 rows")
    assert "no row in quarantine" in figure_to_svg(plot_quarantine(by_month.clear()))


def test_importance_puts_the_group_that_is_worth_most_on_top():
    groups = pl.DataFrame(
        {
            "kind": ["group"] * 3 + ["group_score_change"] * 3,
            "name": ["flows", "returns", "market", "market", "flows", "returns"],
            "importance": [-0.002, 0.03, 0.0, 0.01, 0.2, 0.6],
            "standard_error": [0.004, 0.005, float("nan"), 0.0, 0.1, 0.1],
        }
    )
    left, right = plot_importance(groups).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["flows", "market", "returns"]
    assert [bar.get_width() for bar in left.patches] == [-0.002, 0.0, 0.03]
    assert [bar.get_width() for bar in right.patches] == [0.2, 0.01, 0.6]
