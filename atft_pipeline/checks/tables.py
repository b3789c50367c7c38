"""Checks of raw, core and feature tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from atft_model.config import setting
from atft_model.data.graph import StockGraph
from atft_model.data.group_links import GroupLinks
from atft_model.data.normalizer import FLOAT32_NOISE
from atft_model.data.panel import Panel
from atft_pipeline.checks.outcome import Outcome, markdown_table
from atft_pipeline.schemas import NormalizationBounds, Violation, validate_statistics

SHOWN = 20
"""Failure cases shown with a verdict."""


@dataclass(frozen=True)
class PanelGate:
    """When a panel is too thin or too dead to train on."""

    min_stocks: int = setting(
        30, "Median tradable stocks per date: below, cross-sections rank little but noise."
    )
    max_thin_dates: float = setting(
        0.05, "Share of a part's dates with fewer than `min_stocks` tradable stocks: half days and "
        "the file's last day may be thin, a part of such days is no market."
    )  # fmt: skip
    max_zero_share: float = setting(
        0.5, "Share of exact zeros of a continuous feature's known values: they come from filling, "
        "or from scoring slices of one stock, which once left 78 of 82 inputs at 0."
    )  # fmt: skip


def contract_holds(frame: pl.DataFrame, schema: pa.DataFrameSchema) -> Outcome:
    """Columns, types, keys and ranges of a table are those of its schema."""
    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        rows = cases.select(pl.col("column", "check", "failure_case").cast(pl.String))
        shown = rows.unique(maintain_order=True).head(SHOWN)
        worst = f"{cases['column'][0]}: {cases['check'][0]}"
        return Outcome(
            "contract_holds", False, f"{cases.height} failures, first {worst}",
            f"schema of {schema.name}", numbers={"failures": cases.height},
            details=markdown_table(shown.columns, shown.iter_rows()),
        )  # fmt: skip
    return Outcome(
        "contract_holds", True, f"{frame.height:,} rows", f"schema of {schema.name}",
        numbers={"failures": 0, "rows": frame.height},
    )  # fmt: skip


def normalized_within_bounds(
    statistics: pl.DataFrame, bounds: NormalizationBounds, left_out: dict[str, str]
) -> Outcome:
    """On training dates each continuous feature, and all together: mean near 0, std near 1."""
    violations = validate_statistics(statistics, bounds)
    continuous = statistics.filter(pl.col("normalizer").is_in(["cross_section", "time_series"]))
    worst_mean = continuous["mean"].abs().max()
    low, high = continuous["std"].min(), continuous["std"].max()
    return Outcome(
        "normalized_within_bounds",
        not violations,
        _violations_in_words(violations)
        or f"largest |mean| {worst_mean:.3f}, std {low:.3f} to {high:.3f}",
        f"|mean| ≤ {bounds.mean_limit}, std {bounds.std_lower} to {bounds.std_upper}",
        numbers={
            "violations": len(violations),
            "features": continuous.height,
            "left_out": len(left_out),
            **_known({"largest_abs_mean": worst_mean, "smallest_std": low, "largest_std": high}),
        },
        details=markdown_table(statistics.columns, statistics.iter_rows()),
    )


def panel_is_alive(panel: Panel, gate: PanelGate) -> Outcome:
    """The tensor itself, on each part: finite, every feature varies, few zeros, enough stocks."""
    faults: list[str] = []
    numbers: dict[str, float] = {}
    for part, (first, last) in panel.split.parts().items():
        observed = np.asarray(panel.observed[first:last])
        rows = np.asarray(panel.features[first:last])[observed]
        faults += _thin_dates(panel, part, gate, numbers)
        for name, values in (
            ("features", rows),
            ("targets", np.asarray(panel.targets[first:last])),
            ("daily_return", np.asarray(panel.daily_return[first:last])),
        ):
            if infinite := int(np.isinf(values).sum()):
                faults.append(f"{part}: {infinite:,} infinite values in {name}")
        faults += _dead_columns(rows, panel, part, gate)
        numbers |= _shares(rows, panel, part)
    numbers |= {"faults": len(faults), "features": len(panel.feature_names)}
    return Outcome(
        "panel_is_alive",
        not faults,
        "; ".join(faults[:3])
        or f"{len(panel.feature_names)} features alive on every part, median "
        f"{numbers['median_stocks/train']:.0f} stocks",
        f"finite, no dead feature, at least {gate.min_stocks} stocks",
        numbers=numbers,
        details="\n".join(f"- {fault}" for fault in faults) or None,
    )


def _thin_dates(panel: Panel, part: str, gate: PanelGate, numbers: dict[str, float]) -> list[str]:
    """Too few tradable stocks: on the median date, or on too many dates."""
    first, last = panel.split.parts()[part]
    stocks = np.asarray(panel.tradable[first:last]).sum(axis=1)
    median, thin = float(np.median(stocks)), float((stocks < gate.min_stocks).mean())
    numbers[f"median_stocks/{part}"] = median
    numbers[f"fewest_stocks/{part}"] = int(stocks.min())
    if median < gate.min_stocks:
        return [f"{part}: median {median:.0f} tradable stocks"]
    if thin > gate.max_thin_dates:
        return [f"{part}: {thin:.0%} of dates have fewer than {gate.min_stocks} tradable stocks"]
    return []


def _shares(rows: np.ndarray, panel: Panel, part: str) -> dict[str, float]:
    """Known and exactly zero values among all continuous features of one part."""
    continuous = rows[:, [kind != "none" for kind in panel.normalizers]]
    known = int(np.isfinite(continuous).sum())
    return {
        f"zero_share/{part}": float((continuous == 0).sum() / max(known, 1)),
        f"known_share/{part}": known / max(continuous.size, 1),
    }


def _dead_columns(rows: np.ndarray, panel: Panel, part: str, gate: PanelGate) -> list[str]:
    """Features of one part that carry nothing. Flags may hold one value in a later part."""
    faults = []
    for position, (name, kind) in enumerate(
        zip(panel.feature_names, panel.normalizers, strict=True)
    ):
        column = rows[:, position]
        column = column[np.isfinite(column)].astype(np.float64)
        if column.size == 0:
            faults.append(f"{part}: {name} is never known")
        elif kind == "none" and part != "train":
            continue
        elif column.std() <= FLOAT32_NOISE * np.abs(column).max():
            faults.append(f"{part}: {name} is always {column[0]:g}")
        elif kind != "none" and (column == 0).mean() > gate.max_zero_share:
            faults.append(f"{part}: {name} is exactly 0 in {(column == 0).mean():.0%} of rows")
    return faults


def stocks_have_neighbours(
    graph: StockGraph, panel: Panel, links: GroupLinks | None = None
) -> Outcome:
    """Most tradable stocks have neighbours on the refresh dates, or the graph adds nothing.

    In a graph of learned links alone, only stocks of groups that others drive can have any; such
    groups have to exist.
    """
    tradable = np.asarray(panel.tradable[graph.refresh])
    if graph.kind == "learned" and links is not None:
        driven = np.append((links.between > 0).any(axis=0), False)
        tradable = tradable & driven[links.groups(panel.codes)]
    linked = (graph.neighbours >= 0).any(axis=2) & tradable
    share = float(linked.sum() / max(tradable.sum(), 1))
    degree = float((graph.neighbours >= 0).sum(axis=2)[linked].mean()) if linked.any() else 0.0
    correlation = float(graph.correlation[graph.neighbours >= 0].mean()) if linked.any() else 0.0
    return Outcome(
        "stocks_have_neighbours", share >= 0.9,
        f"{share:.1%} of tradable stocks, {degree:.1f} neighbours each, "
        f"mean correlation {correlation:.2f}",
        "at least 90 % of tradable stocks",
        numbers={"linked_share": share, "mean_degree": degree, "mean_correlation": correlation},
    )  # fmt: skip


def _violations_in_words(violations: Sequence[Violation]) -> str:
    more = f" and {len(violations) - 3} more" if len(violations) > 3 else ""
    return "; ".join(str(violation) for violation in violations[:3]) + more


def _known(numbers: dict) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None}
