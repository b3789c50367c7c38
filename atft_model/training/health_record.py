"""The health record: every reading of a run, in one tidy Parquet table, flushed as it goes.

One row is one number: (run_id, epoch, step, kind, name, metric, value). Rows are written as part
files ``health/part-00000.parquet``, ...; a killed run keeps every part that was flushed. Checks
read these parts, never the log. Kinds and their metrics are listed in docs/health_record.md.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from atft_model.errors import InputError

SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("epoch", pa.int32()),
        ("step", pa.int64()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
FLUSH_SECONDS = 30.0
"""A kill loses at most this much of the record."""


class HealthRecord:
    """Collects readings and flushes them to part files."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id
        self.parts = 0
        self._rows: list[tuple[int, int, str, str, str, float]] = []
        self._flushed_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self, epoch: int, step: int, kind: str, name: str, metrics: Mapping[str, float]
    ) -> None:
        """Adds one row per metric; flushes when the last flush is long ago."""
        for metric, value in metrics.items():
            self._rows.append((epoch, step, kind, name, metric, float(value)))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected as the next part; the part appears whole or not at all."""
        self._flushed_at = time.monotonic()
        if not self._rows:
            return
        epoch, step, kind, name, metric, value = zip(*self._rows, strict=True)
        table = pa.table(
            [[self.run_id] * len(epoch), epoch, step, kind, name, metric, value], schema=SCHEMA
        )
        path = self.folder / f"part-{self.parts:05d}.parquet"
        temporary = path.with_suffix(".tmp")
        pq.write_table(table, temporary)
        os.replace(temporary, path)
        self.parts += 1
        self._rows.clear()


def read_health(folder: Path) -> pa.Table:
    """All parts of a run's health record, in order.

    Raises:
        InputError: no part was ever written.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise InputError(f"{folder}: no health record; the run wrote no reading: train again")
    return pa.concat_tables([pq.read_table(part, schema=SCHEMA) for part in parts])
