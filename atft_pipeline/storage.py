"""Where tables lie and how they are written: whole or not at all, with a DuckDB view each.

Everything hangs under ``<data dir>/<data set>/``: ``<table>.parquet``, ``panel/``,
``stock_graph/``, ``models/<run id>/``, ``reports/``, ``trial_ledger.jsonl`` and ``atft.duckdb``.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from atft_model.data.artifacts import file_hash
from atft_model.errors import InputError
from atft_pipeline.failures import input_errors_as_failures
from atft_pipeline.resources import Market, data_folder
from atft_pipeline.schemas import layout_fault
from atft_pipeline.sources.lock import exclusive

PAST_SCORES = "past_scores"
"""Every score that was ever handed out, a file per date and run."""
PARTITIONED = ("rolling_model", "rolling_baselines", PAST_SCORES)
"""Tables with one file per partition, in a folder of their name; one view each."""

POINTERS = {"trained_model": "current.json", "accepted_model": "accepted.json"}
"""Assets that live in ``models/``, each with the file that names its run."""

LOCK_WAIT_SECONDS = 600.0
"""For another run's raw table; a long first sync of a vendor outlasts it, and the run says so."""


class Storage(dg.ConfigurableResource):
    """The folder of one data set: tables of two sources never mix."""

    market: dg.ResourceDependency[Market]
    data_dir: str | None = Field(
        default=None, description="Root of all data. Empty: ATFT_DATA_DIR, else data."
    )
    dataset: str | None = Field(
        default=None,
        description="Folder of this data set. Empty: ATFT_DATASET, else the source's name.",
    )

    @property
    def root(self) -> Path:
        """The data set's folder; its name cannot lead out of the data dir."""
        return data_folder(self.data_dir, self.dataset, self.market.name())

    @property
    def panel(self) -> Path:
        """Versions of the panel."""
        return self.root / "panel"

    @property
    def graph(self) -> Path:
        """Versions of the stock graph."""
        return self.root / "stock_graph"

    @property
    def structure(self) -> Path:
        """Versions of the learned structure."""
        return self.root / "learned_structure"

    def other_graph(self, kind: str) -> Path:
        """Versions of a graph that is not in use, scored with as a control."""
        return self.root / "other_graphs" / kind

    @property
    def models(self) -> Path:
        """One folder per training run, and the files of ``POINTERS``."""
        return self.root / "models"

    @property
    def folds(self) -> Path:
        """One folder per training run of a walk-forward fold; never candidates for serving."""
        return self.root / "folds"

    @property
    def ledger(self) -> Path:
        """The append-only list of every run ever trained on this data set."""
        return self.root / "trial_ledger.jsonl"

    @property
    def reports(self) -> Path:
        """One HTML report per evaluated run."""
        return self.root / "reports"

    def one_run_at_a_time(self, table: str) -> AbstractContextManager[None]:
        """Held while a raw table is fetched and stored; another run waits for it.

        Raises:
            InputError: on entering, when another run still holds it after ``LOCK_WAIT_SECONDS``.
        """
        return exclusive(self.root / f".{table}.lock", table, LOCK_WAIT_SECONDS)

    def table_path(self, table: str) -> Path:
        """The Parquet file of a table."""
        return self.root / f"{table}.parquet"

    def has_table(self, table: str) -> bool:
        """Whether the table was ever stored."""
        return self.table_path(table).exists()

    def read_table(self, table: str, wanted_by: str) -> pl.DataFrame:
        """A stored table.

        Raises:
            InputError: it was never stored, or by a version with other columns; the message says
                how to build it for ``wanted_by``.
        """
        if not self.has_table(table):
            raise not_materialized(table, wanted_by)
        frame = pl.read_parquet(self.table_path(table))
        if fault := layout_fault(table, frame):
            raise InputError(
                f"{self.table_path(table)}: {fault}: the table is of another version; build it "
                f"again: dagster asset materialize --select {table}"
            )
        return frame

    def read_if_stored(self, table: str) -> pl.DataFrame | None:
        """A stored table; None where it was never stored."""
        return pl.read_parquet(self.table_path(table)) if self.has_table(table) else None

    def write_table(self, table: str, frame: pl.DataFrame) -> Path:
        """Stores a table, replacing the last one in one rename, and refreshes the catalog."""
        path = self.table_path(table)
        write_parquet(frame, path)
        self.refresh_catalog()
        return path

    def part_path(self, table: str, part: str) -> Path:
        """The Parquet file of one partition of a table."""
        return self.root / table / f"{part}.parquet"

    def read_parts(self, table: str) -> dict[str, pl.DataFrame]:
        """Every stored partition of a table by its key, in the order of the keys."""
        paths = sorted((self.root / table).glob("*.parquet"))
        return {path.stem: pl.read_parquet(path) for path in paths}

    def write_part(self, table: str, part: str, frame: pl.DataFrame) -> Path:
        """Stores one partition of a table, replacing the last one in one rename."""
        path = self.part_path(table, part)
        write_parquet(frame, path)
        self.refresh_catalog()
        return path

    def delete_table(self, table: str) -> None:
        """Removes a table and its view; one that was never stored is no error."""
        if self.has_table(table):
            self.table_path(table).unlink()
            self.refresh_catalog()

    def write_rejected(self, table: str, frame: pl.DataFrame) -> Path:
        """Keeps a table that failed its checks beside the last good one, for inspection."""
        path = self.root / "rejected" / f"{table}.parquet"
        write_parquet(frame, path)
        return path

    def refresh_catalog(self) -> None:
        """Rebuilds ``atft.duckdb``, one view per table; a reader keeps the old file."""
        import duckdb

        catalog = self.root / "atft.duckdb"
        temporary = catalog.with_name(f".atft.{os.getpid()}.duckdb")
        temporary.unlink(missing_ok=True)
        with duckdb.connect(str(temporary)) as connection:
            tables = {path.stem: path for path in sorted(self.root.glob("*.parquet"))}
            tables |= {name: self.root / name / "*.parquet" for name in PARTITIONED
                       if any((self.root / name).glob("*.parquet"))}  # fmt: skip
            for name, path in tables.items():
                location = str(path).replace("'", "''")
                connection.execute(
                    f"CREATE VIEW \"{name}\" AS SELECT * FROM read_parquet('{location}')"
                )
        os.replace(temporary, catalog)


class TableIOManager(dg.ConfigurableIOManager):
    """Assets that are tables: a returned DataFrame is stored, an upstream one is read."""

    storage: dg.ResourceDependency[Storage]

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        """Stores the table and shows its size, columns and content hash."""
        name = context.asset_key.path[-1]
        with input_errors_as_failures():
            if context.has_asset_partitions:
                path = self.storage.write_part(name, context.partition_key, obj)
            else:
                path = self.storage.write_table(name, obj)
        metadata = table_metadata(obj)
        metadata |= {"path": dg.MetadataValue.path(path), "content_hash": file_hash(path)}
        context.add_output_metadata(metadata)

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        """The upstream table, or an error that says how to build it."""
        with input_errors_as_failures():
            return self.storage.read_table(context.asset_key.path[-1], context.op_def.name)


class VersionIOManager(dg.ConfigurableIOManager):
    """Assets that publish versioned folders themselves: they return a hash; a path is read."""

    storage: dg.ResourceDependency[Storage]

    def handle_output(self, context: dg.OutputContext, obj: str) -> None:
        """Shows the content hash of the published version."""
        context.add_output_metadata({"content_hash": obj})

    def load_input(self, context: dg.InputContext) -> Path:
        """The folder of the upstream asset's versions."""
        asset = context.asset_key.path[-1]
        with input_errors_as_failures():
            root = self.storage.root
            folder = self.storage.models if asset in POINTERS else root / asset
            if not (folder / POINTERS.get(asset, "current.json")).exists():
                raise not_materialized(asset, context.op_def.name)
        return folder


def not_materialized(asset: str, wanted_by: str) -> InputError:
    """The error for an upstream asset that was never built."""
    return InputError(
        f"{asset} has not been materialized; build it with everything upstream: "
        f"dagster asset materialize --select '*{wanted_by}'"
    )


def table_metadata(frame: pl.DataFrame) -> dict[str, Any]:
    """Row count and column types, as Dagster shows them."""
    return row_metadata(frame.height, frame.schema)


def row_metadata(rows: int, types: Mapping[str, pl.DataType | type[pl.DataType]]) -> dict[str, Any]:
    """The same of what is no table: how many rows it would have, and what one would hold."""
    columns = [dg.TableColumn(name, str(dtype)) for name, dtype in types.items()]
    return {
        "dagster/row_count": rows,
        "dagster/column_schema": dg.TableSchema(columns=columns),
    }


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Writes beside ``path`` and renames: readers see the old table or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frame.write_parquet(temporary)
    os.replace(temporary, path)
