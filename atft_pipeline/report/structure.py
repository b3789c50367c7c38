"""The learned structure as tables and pictures, for metadata and the HTML report."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from atft_model.structure.record import EDGE_SCHEMA, StructureRecord
from atft_pipeline.report.plots import (
    INK,
    MODEL_COLOUR,
    MUTED,
    SERIES_COLOURS,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN_EDGES = 12
"""The strongest links, whose numbers are written; all are in the table."""

ALONG = (0.35, 0.5, 0.22, 0.65, 0.78)
"""Where on its arrow a number may stand, by preference: nearer to the cause."""

APART = 0.2
"""Least distance between two numbers, in the circle's radius."""

BEND = {"today": 0.1, "later": 0.28}
"""How far arrows swing to their right: a pair's links in both directions, and those of one
direction within the day and later, run beside each other."""

LOSSES = ("loss_recon", "loss_sparse", "loss_acyclic", "loss_disen")


_TYPES = {"string": pl.String, "int32": pl.Int32, "double": pl.Float64, "bool": pl.Boolean}
EDGES = {name: _TYPES[str(EDGE_SCHEMA.field(name).type)] for name in EDGE_SCHEMA.names}
"""Columns of the table ``structure_edges``."""


def edges_table(record: StructureRecord) -> pl.DataFrame:
    """Every decided edge: the graph's first, then those that were not sure enough; strong first."""
    frame = pl.DataFrame([asdict(edge) for edge in record.edges], schema=EDGES)
    return frame.sort(pl.col("kept").not_(), "lag", -pl.col("weight").abs(), "source", "target")


def plot_structure(edges: pl.DataFrame, order: Sequence[str]) -> "Figure":
    """The graph on a circle, clockwise from causes to effects.

    Solid arrows act within the day, dashed ones with a lag; blue is positive, orange negative;
    wide is strong, pale is unsure. A series' own past is a ring around its dot. The strongest
    links carry their weights, as far as there is room.

    Args:
        edges: As ``edges_table`` gives them; only kept ones are drawn.
        order: Names of the series from causes to effects.
    """
    kept = edges.filter(pl.col("kept"))
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(order)) / max(len(order), 1)
    place = {name: np.array([np.cos(a), np.sin(a)]) for name, a in zip(order, angle, strict=True)}
    with style():
        figure = new_figure(height=5.0)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-1.75, 1.75)
        axes.set_ylim(-1.4, 1.4)
        numbers = _places_of_numbers(kept, place)
        for edge in kept.iter_rows(named=True):
            colour = MODEL_COLOUR if edge["weight"] > 0 else SERIES_COLOURS[0]
            sure = 1.0 if edge["confidence"] is None else edge["confidence"]
            if edge["source"] == edge["target"]:
                axes.plot(*place[edge["source"]], "o", ms=13, mfc="none", mec=colour,
                          alpha=0.25 + 0.75 * sure)  # fmt: skip
                continue
            start, end = place[edge["source"]], place[edge["target"]]
            bend = _bend(edge)
            axes.annotate(
                "", xy=(end[0], end[1]), xytext=(start[0], start[1]),
                arrowprops={
                    "arrowstyle": "-|>", "color": colour, "alpha": 0.25 + 0.75 * sure,
                    "linestyle": "--" if edge["lag"] else "-", "shrinkA": 8, "shrinkB": 8,
                    "linewidth": 0.8 + 3 * min(abs(edge["weight"]), 1.0),
                    "connectionstyle": f"arc3,rad={bend}",
                },
            )  # fmt: skip
        for (x, y), weight in numbers:
            axes.text(x, y, f"{weight:+.2f}".replace("-", "−"), color=INK, fontsize=7,
                      ha="center", va="center", zorder=4,
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none",
                            "alpha": 0.9})  # fmt: skip
        for name, (x, y) in place.items():
            axes.plot(x, y, "o", color=INK, ms=6, zorder=5)
            side = "left" if x > 0.1 else "right" if x < -0.1 else "center"
            axes.text(1.12 * x, 1.14 * y, name, ha=side, va="center", color=INK)
        axes.set_title(
            f"{kept.height} links; dashed: next day; orange: negative" if kept.height
            else "no link was found"
        )  # fmt: skip
    return figure


def _bend(edge: dict[str, Any]) -> float:
    return BEND["later" if edge["lag"] else "today"]


def _on_arrow(start: np.ndarray, end: np.ndarray, bend: float, share: float) -> np.ndarray:
    """The point of Matplotlib's ``arc3`` arrow (a quadratic Bézier curve) at a share of it."""
    middle = (start + end) / 2 + bend * np.array([end[1] - start[1], start[0] - end[0]])
    return (1 - share) ** 2 * start + 2 * share * (1 - share) * middle + share**2 * end


def _places_of_numbers(
    kept: pl.DataFrame, place: dict[str, np.ndarray]
) -> list[tuple[np.ndarray, float]]:
    """Where the weights of the strongest links between series stand, on their arrows.

    One for which no place is free of others and of the dots is left out.
    """
    taken = list(place.values())
    numbers = []
    between = kept.filter(pl.col("source") != pl.col("target"))
    strongest = between.sort(-pl.col("weight").abs(), "source", "target", "lag").head(WRITTEN_EDGES)
    for edge in strongest.iter_rows(named=True):
        start, end = place[edge["source"]], place[edge["target"]]
        for share in ALONG:
            point = _on_arrow(start, end, _bend(edge), share)
            if min(np.linalg.norm(point - other) for other in taken) >= APART:
                taken.append(point)
                numbers.append((point, edge["weight"]))
                break
    return numbers


def plot_learning(health: pl.DataFrame) -> "Figure":
    """The gradient stage by epoch: the loss terms, and gradient norm with its clip ratio."""
    epoch = health["epoch"].to_numpy()
    with style():
        figure = new_figure(height=4.2)
        top, bottom = figure.subplots(2, 1, sharex=True)
        for name, colour in zip(LOSSES, (MODEL_COLOUR, *SERIES_COLOURS), strict=False):
            top.plot(epoch, health[name].to_numpy(), color=colour, lw=1.3,
                     label=name.removeprefix("loss_"))  # fmt: skip
        bottom.plot(epoch, health["gradient_norm"].to_numpy(), color=MODEL_COLOUR, lw=1.3,
                    label="gradient norm")  # fmt: skip
        bottom.plot(epoch, health["clip_ratio"].to_numpy(), "--", color=MUTED, lw=1.3,
                    label="share of steps clipped")  # fmt: skip
        top.set_title("loss terms by epoch")
        bottom.set_xlabel("epoch")
        top.legend(ncols=4, loc="upper right")
        bottom.legend(ncols=2, loc="upper right")
    return figure
