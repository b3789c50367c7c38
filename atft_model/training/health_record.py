"""The health record: every reading of a run, in one tidy Parquet table, flushed as it goes.

One row is one number: (run_id, epoch, step, kind, name, metric, value). Rows are written as part
files ``health/part-00000.parquet``, ...; a killed run keeps every part that was flushed. Checks
read these parts, never the log. Kinds and their metrics are listed in docs/health_record.md.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atft_model.data.artifacts import file_hash, write_text_atomically
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
SEAL = "seal.json"
FLUSH_SECONDS = 30.0
"""A kill loses at most this much of the record."""


class HealthRecord:
    """Collects readings and flushes them to part files.

    Of several processes one writes; in the others every method does nothing.
    """

    def __init__(self, folder: Path, run_id: str, writes: bool = True) -> None:
        self.writes = writes
        self.folder = folder
        self.run_id = run_id
        self.parts = 0
        self._rows: list[tuple[int, int, str, str, str, float]] = []
        self._flushed_at = time.monotonic()
        if writes:
            folder.mkdir(parents=True, exist_ok=True)

    def add(
        self, epoch: int, step: int, kind: str, name: str, metrics: Mapping[str, float]
    ) -> None:
        """Adds one row per metric; flushes when the last flush is long ago."""
        if not self.writes:
            return
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

    def rewind(self, parts: int) -> None:
        """Drops parts written after a checkpoint that knew of ``parts``: they are read again."""
        if not self.writes:
            return
        for path in sorted(self.folder.glob("part-*.parquet"))[parts:]:
            path.unlink()
        self.parts = parts
        self._rows.clear()

    def seal(self, checkpoint_hash: str) -> None:
        """Flushes, and binds every part to this run and to the weights that came out of it."""
        if not self.writes:
            return
        self.flush()
        parts = {path.name: file_hash(path) for path in sorted(self.folder.glob("part-*.parquet"))}
        seal = {"run_id": self.run_id, "checkpoint_hash": checkpoint_hash, "parts": parts}
        write_text_atomically(self.folder / SEAL, json.dumps(seal, indent=1))


def seal_faults(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """What the seal of a health record says against the run record and the parts on disk."""
    if not (folder / SEAL).exists():
        yield "the health record has no seal"
        return
    seal = json.loads((folder / SEAL).read_text())
    for key in ("run_id", "checkpoint_hash"):
        if seal[key] != record[key]:
            yield f"health record of {key} {seal[key]}, the run record says {record[key]}"
    found = {path.name: file_hash(path) for path in folder.glob("part-*.parquet")}
    for name in sorted(seal["parts"].keys() | found.keys()):
        if seal["parts"].get(name) != found.get(name):
            what = "missing" if name not in found else "not of this run's seal"
            yield f"health/{name} is {what}"


def read_health(folder: Path) -> pa.Table:
    """All parts of a run's health record, in order.

    Raises:
        InputError: no part was ever written.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise InputError(f"{folder}: no health record; the run wrote no reading: train again")
    return pa.concat_tables([pq.read_table(part, schema=SCHEMA) for part in parts])
