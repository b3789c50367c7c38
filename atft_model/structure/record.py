"""What a learned structure leaves behind: summary.json, edges.parquet, health.parquet and .json.

The checks in ``checks.py`` read only this record, never a log and never the learner's memory.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atft_model.data.artifacts import write_text_atomically
from atft_model.errors import InputError

FORMAT = 3
"""Of the stored record: raise it when its fields or their meaning change."""

EDGE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("target", pa.string()),
        ("lag", pa.int32()),
        ("weight", pa.float64()),
        ("confidence", pa.float64()),
        ("link_confidence", pa.float64()),
        ("kept", pa.bool_()),
        ("probability", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Edge:
    """One arrow: ``source`` drives ``target`` after ``lag`` days (0: the same day)."""

    source: str
    target: str
    lag: int
    weight: float
    """Standard deviations of the target per standard deviation of the source, refitted."""
    confidence: float | None
    """Share of block resamples with this arrow; None without a bootstrap."""
    link_confidence: float | None
    """The same for the link in either direction."""
    kept: bool
    """Whether the confidence is above the chosen threshold: only kept edges are the graph."""
    probability: float | None = None
    """Of this arrow, over all graphs that fit nearly as well; None for series in time."""


@dataclass(frozen=True)
class StructureRecord:
    """A learned structure and all evidence about it; JSON and Parquet on disk."""

    names: tuple[str, ...]
    exogenous_names: tuple[str, ...]
    rows: int
    missing_share: float
    config: dict[str, Any]
    edges: tuple[Edge, ...]
    order: tuple[str, ...]
    noise: dict[str, dict[str, float | None]]
    """Per series: share of variance left, degrees of freedom (None: normal), GARCH alpha, beta."""
    exogenous_effects: dict[str, list[float]]
    health: tuple[dict[str, Any], ...]
    routes: dict[str, float]
    threshold: dict[str, Any] | None
    """Of the confidences, or of the adjacency where the gradient stage decided."""
    gradient_threshold: dict[str, Any]
    chance: dict[str, Any] | None
    rescaling: dict[str, Any] | None
    hidden_factor: dict[str, Any] | None
    """Whether a driver of most series is missing, of those not taken out."""
    common_factor: dict[str, Any] | None
    """The driver that was estimated and taken out; None where none was."""
    distinct_optima: int
    expected_distance: float | None = None
    """Rows without time: pairs whose link the graph is expected to have wrong."""
    truth: dict[str, Any] | None = None
    """Scores against a known graph; reported, never used."""
    seconds: dict[str, float] = field(default_factory=dict)
    processor_seconds: dict[str, float] = field(default_factory=dict)
    """Of all threads: what a shared machine's other work does not lengthen."""

    @property
    def kept_edges(self) -> tuple[Edge, ...]:
        """The graph."""
        return tuple(edge for edge in self.edges if edge.kept)


def write_record(record: StructureRecord, folder: Path) -> None:
    """Writes every file beside its name and renames it; summary.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = pa.Table.from_pylist([asdict(edge) for edge in record.edges], EDGE_SCHEMA)
    _write_table(edges, folder / "edges.parquet")
    _write_table(pa.Table.from_pylist(list(record.health)), folder / "health.parquet")
    write_text_atomically(folder / "health.json", json.dumps(record.health, indent=1))
    summary = {"format": FORMAT, **asdict(record)}
    del summary["health"]
    write_text_atomically(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))


def read_record(folder: Path) -> StructureRecord:
    """The record as written.

    Raises:
        InputError: no record in the folder, or one of another version.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise InputError(f"{folder}: no learned structure here (no summary.json); learn it first")
    values = json.loads(path.read_text())
    found = values.pop("format", 1)
    if found != FORMAT:
        raise InputError(
            f"{path}: structure format {found}, expected {FORMAT}; learn it again "
            "(dagster asset materialize --select learned_structure, or "
            "python -m atft_model structure)"
        )
    values["health"] = json.loads((folder / "health.json").read_text())
    values["edges"] = tuple(Edge(**edge) for edge in values["edges"])
    for name in ("names", "exogenous_names", "order", "health"):
        values[name] = tuple(values[name])
    return StructureRecord(**values)


def _write_table(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
