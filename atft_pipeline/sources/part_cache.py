"""What a vendor answered, kept as one Parquet file per part (a day, a month, a year).

A file is written under another name and renamed, so that a killed process leaves the old file or
the new one. When and for which dates the vendor was asked stands in the file itself: there is no
list of files that could disagree with the files. What the columns mean is the source's business.
"""

import datetime as dt
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What is asked for and kept as one; both dates are included.

    ``name`` is that of the file in the cache's folder, without its ending.
    """

    name: str
    first: dt.date
    last: dt.date

    def __str__(self) -> str:
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Kept:
    """What a kept file says of itself.

    Attributes:
        fetched: When the vendor was asked, with time zone.
        first: First date that was wanted then.
        last: Last date that was wanted then.
        complete: Whether the vendor was asked for all of them, or only for some: those that had
            come, or that a subscription covered.
        rows: 0 where the vendor has nothing.
    """

    fetched: dt.datetime
    first: dt.date
    last: dt.date
    complete: bool
    rows: int


class PartCache:
    """The parts of one table.

    Args:
        folder: Holds the parts under their names.
        columns: Names and types of every file. A file of other columns, or one that cannot be
            read, counts as not kept, so that it is asked for again.
    """

    def __init__(self, folder: Path, columns: dict[str, type[pl.DataType]]) -> None:
        self.folder = folder
        self.schema = pl.Schema(columns)

    def path(self, part: Part) -> Path:
        """The file of a part, whether it exists or not."""
        return self.folder / f"{part.name}.parquet"

    def kept(self, part: Part) -> Kept | None:
        """What is kept of the part; None when nothing usable is."""
        path = self.path(part)
        if not path.exists():
            return None
        try:
            metadata, schema = pl.read_parquet_metadata(path), pl.read_parquet_schema(path)
        except pl.exceptions.ComputeError:
            logger.warning("%s cannot be read and is asked for again", path)
            return None
        if pl.Schema(schema) != self.schema or "fetched" not in metadata:
            logger.warning("%s has other columns than today's and is asked for again", path)
            return None
        return Kept(
            dt.datetime.fromisoformat(metadata["fetched"]),
            dt.date.fromisoformat(metadata["first"]),
            dt.date.fromisoformat(metadata["last"]),
            metadata["complete"] == "yes",
            int(metadata["rows"]),
        )

    def store(self, part: Part, frame: pl.DataFrame, kept: Kept) -> None:
        """Replaces the part's file."""
        path = self.path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        metadata = {
            "fetched": kept.fetched.isoformat(),
            "first": kept.first.isoformat(),
            "last": kept.last.isoformat(),
            "complete": "yes" if kept.complete else "no",
            "rows": str(kept.rows),
        }
        self.in_order(frame).write_parquet(temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file)  # a rename can outlive the content when the power fails
        os.replace(temporary, path)

    def in_order(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows in one order, whichever the vendor's was: equal answers become equal tables."""
        return frame.select(self.schema.names()).sort(pl.all())

    def read(self, parts: Iterable[Part], columns: list[str] | None = None) -> pl.DataFrame:
        """The rows of the parts that are kept, one part after the other."""
        paths = [path for path in map(self.path, parts) if path.exists()]
        if not paths:
            return pl.DataFrame(schema=self.schema).select(columns or self.schema.names())
        return pl.read_parquet(paths, columns=columns)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes had begun to write; only for the holder of the lock."""
    for path in folder.rglob(".*.tmp"):
        path.unlink()
