"""What the UI shows of a materialization."""

from collections.abc import Mapping

import dagster as dg


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    """Each materialization of a run by its asset."""
    return {event.asset_key.path[-1]: event.materialization
            for event in result.get_asset_materialization_events()}  # fmt: skip


def without_size(events: Mapping[str, dg.AssetMaterialization]) -> set[str]:
    """Assets whose materialization lacks a row count, or a schema with columns."""
    found = set()
    for name, event in events.items():
        rows = event.metadata.get("dagster/row_count")
        schema = event.metadata.get("dagster/column_schema")
        columns = schema.schema.columns if isinstance(schema, dg.TableSchemaMetadataValue) else []
        if rows is None or not isinstance(rows.value, int) or not columns:
            found.add(name)
    return found


def pictures(event: dg.AssetMaterialization) -> set[str]:
    """Names of the metadata that are PNG pictures."""
    return {name for name, value in event.metadata.items()
            if isinstance(value, dg.MarkdownMetadataValue)
            and "](data:image/png;base64," in (value.value or "")}  # fmt: skip
