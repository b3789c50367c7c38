"""The picture of a learned graph: its numbers can be read."""

import itertools

import numpy as np
import polars as pl
import pytest
from matplotlib.bezier import BezierSegment
from matplotlib.patches import FancyArrowPatch

from atft_pipeline.report.structure import (
    APART,
    EDGES,
    WRITTEN_EDGES,
    _on_arrow,
    plot_structure,
)

NAMES = [f"group {i}" for i in range(8)]


def dense_graph() -> pl.DataFrame:
    """28 links within the day, each also the other way round next day."""
    rng = np.random.default_rng(0)
    rows = []
    for source, target in itertools.combinations(NAMES, 2):
        same = {"confidence": 0.9, "link_confidence": 0.9, "kept": True}
        weight = rng.normal(0, 0.5, 2)
        rows.append({"source": source, "target": target, "lag": 0, "weight": weight[0], **same})
        rows.append({"source": target, "target": source, "lag": 1, "weight": weight[1], **same})
    return pl.DataFrame(rows, schema=EDGES)


def test_numbers_are_of_the_strongest_links_and_apart_from_each_other():
    edges = dense_graph()
    axes = plot_structure(edges, NAMES).axes[0]
    numbers = [text for text in axes.texts if text.get_bbox_patch() is not None]
    assert 4 <= len(numbers) <= WRITTEN_EDGES
    places = [np.array(text.get_position()) for text in numbers]
    for first, second in itertools.combinations(places, 2):
        assert np.linalg.norm(first - second) >= APART
    strongest = edges["weight"].abs().sort(descending=True)[:WRITTEN_EDGES].to_list()
    for text in numbers:
        written = abs(float(text.get_text().replace("−", "-")))
        assert min(abs(written - weight) for weight in strongest) < 0.006


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_numbers_stand_on_the_arrow_that_matplotlib_draws(share: float):
    start, end = np.array([0.1, 0.9]), np.array([-0.7, 0.2])
    arrow = FancyArrowPatch(
        (start[0], start[1]), (end[0], end[1]), connectionstyle="arc3,rad=0.28", arrowstyle="-",
        shrinkA=0, shrinkB=0,
    )  # fmt: skip
    expected = BezierSegment(arrow.get_path().vertices)(share)
    np.testing.assert_allclose(_on_arrow(start, end, 0.28, share), expected, atol=1e-9)
