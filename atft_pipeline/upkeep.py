"""What may be thrown away: old trained runs, leftovers, and old records of Dagster.

Nothing here touches the trial ledger, the tables, the reports, or what is in use.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl

from atft_pipeline.storage import Storage

NEWEST = 5
"""Trained runs kept whatever their age: to compare with, and to go back to."""
AT_WORK = timedelta(days=1)
"""A run folder without ``run.json`` may be one that trains; it counts as dead after this long
without a write (an epoch of a large market takes hours, not days)."""
POINTERS = ("current.json", "accepted.json")
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class Removal:
    """One thing that can go.

    Attributes:
        what: In words, with its name.
        path: File or folder; None where there is none.
        run_id: Dagster's record of a run; None for anything else.
    """

    what: str
    path: Path | None
    run_id: str | None = None


def size_of(path: Path | None) -> int:
    """Bytes of a file, or of all files under a folder; links are not followed."""
    if path is None or path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(size_of(inner) for inner in path.iterdir())


def disk_use(storage: Storage, home: Path) -> list[tuple[str, int]]:
    """(part, bytes) of the data set and of Dagster's home, the largest first."""
    folders = [path for path in storage.root.iterdir()] if storage.root.exists() else []
    parts = {path.name: size_of(path) for path in folders if path.is_dir()}
    parts["tables and ledger"] = sum(size_of(path) for path in folders if path.is_file())
    parts["Dagster's home"] = size_of(home)
    return sorted(parts.items(), key=lambda part: -part[1])


def runs_in_use(storage: Storage) -> set[str]:
    """Ids of the runs that a pointer names, or that the history says were once accepted."""
    pointers = [storage.models / name for name in POINTERS]
    used = {json.loads(path.read_text())["hash"] for path in pointers if path.exists()}
    if storage.has_table("accepted_models"):
        used |= set(pl.read_parquet(storage.table_path("accepted_models"))["run_id"])
    return used


def removable_models(storage: Storage, before: datetime) -> Iterator[Removal]:
    """Trained runs neither in use nor among the newest, and dead ones, not written since."""
    folders = [p for p in storage.models.glob("*") if p.is_dir() and not p.is_symlink()]
    finished = [path for path in folders if (path / "run.json").exists()]
    newest = sorted(finished, key=_written, reverse=True)[:NEWEST]
    kept = runs_in_use(storage) | {path.name for path in newest}
    for folder in sorted(folders):
        done = folder in finished
        limit = before if done else min(before, datetime.now(UTC) - AT_WORK)
        if folder.name not in kept and _written(folder) < limit:
            yield Removal(f"{'trained' if done else 'unfinished'} run {folder.name}", folder)


def removable_leftovers(storage: Storage, before: datetime) -> Iterator[Removal]:
    """Rejected tables and scratch files not written since."""
    for folder in ("rejected", "scratch"):
        for path in sorted((storage.root / folder).glob("*")):
            if path.is_file() and _written(path) < before:
                yield Removal(f"{folder}/{path.name}", path)


def removable_records(
    instance: dg.DagsterInstance, home: Path, before: datetime
) -> Iterator[Removal]:
    """Dagster's records of finished runs that hold no asset's newest state."""
    needed = {
        event.run_id
        for key in instance.all_asset_keys()
        if (event := instance.get_latest_materialization_event(key))
    }
    old = dg.RunsFilter(statuses=list(FINISHED), created_before=before)
    for run in instance.get_runs(old):
        if run.run_id not in needed:
            logs = home / "storage" / run.run_id
            yield Removal(f"Dagster's record of run {run.run_id[:8]}", logs, run.run_id)


def removals(
    storage: Storage, instance: dg.DagsterInstance, home: Path, days: float
) -> list[Removal]:
    """Everything that was not written for ``days`` and that nothing needs."""
    before = datetime.now(UTC) - timedelta(days=days)
    return [
        *removable_models(storage, before),
        *removable_leftovers(storage, before),
        *removable_records(instance, home, before),
    ]


def remove(planned: Iterable[Removal], instance: dg.DagsterInstance) -> None:
    """Carries the plan out."""
    for removal in planned:
        if removal.run_id is not None:
            instance.delete_run(removal.run_id)
        if removal.path is not None and removal.path.is_dir():
            shutil.rmtree(removal.path)
        elif removal.path is not None:
            removal.path.unlink(missing_ok=True)


def _written(path: Path) -> datetime:
    """When the file, or the newest file of the folder, was written."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)
