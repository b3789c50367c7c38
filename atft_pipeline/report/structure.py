"""The learned structure as tables and pictures, for metadata and the HTML report."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

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

WRITTEN_EDGES = 24
"""With more links than this, their numbers would cover the picture; the table has them."""

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
    wide is strong, pale is unsure. A series' own past is a ring around its dot.

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
        written = kept.filter(pl.col("source") != pl.col("target")).height <= WRITTEN_EDGES
        for edge in kept.iter_rows(named=True):
            colour = MODEL_COLOUR if edge["weight"] > 0 else SERIES_COLOURS[0]
            sure = 1.0 if edge["confidence"] is None else edge["confidence"]
            if edge["source"] == edge["target"]:
                axes.plot(*place[edge["source"]], "o", ms=13, mfc="none", mec=colour,
                          alpha=0.25 + 0.75 * sure)  # fmt: skip
                continue
            start, end = place[edge["source"]], place[edge["target"]]
            axes.annotate(
                "", xy=(end[0], end[1]), xytext=(start[0], start[1]),
                arrowprops={
                    "arrowstyle": "-|>", "color": colour, "alpha": 0.25 + 0.75 * sure,
                    "linestyle": "--" if edge["lag"] else "-", "shrinkA": 8, "shrinkB": 8,
                    "linewidth": 0.8 + 3 * min(abs(edge["weight"]), 1.0),
                    "connectionstyle": "arc3,rad=0.12",
                },
            )  # fmt: skip
            if written:
                along = start + 0.4 * (end - start)
                axes.text(along[0], along[1], f"{edge['weight']:+.2f}".replace("-", "−"), color=INK,
                          fontsize=7, ha="center", va="center")  # fmt: skip
        for name, (x, y) in place.items():
            axes.plot(x, y, "o", color=INK, ms=6, zorder=5)
            side = "left" if x > 0.1 else "right" if x < -0.1 else "center"
            axes.text(1.12 * x, 1.14 * y, name, ha=side, va="center", color=INK)
        axes.set_title(
            f"{kept.height} links; dashed: next day; orange: negative" if kept.height
            else "no link was found"
        )  # fmt: skip
    return figure


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
