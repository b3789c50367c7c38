"""Raw tables as the configured source delivers them."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pandera.polars as pa
import polars as pl

from atft_pipeline.checks.outcome import markdown_table, spec, verdicts
from atft_pipeline.checks.tables import contract_holds
from atft_pipeline.failures import plain_failures
from atft_pipeline.freshness import DAILY
from atft_pipeline.resources import Market
from atft_pipeline.schemas import (
    RAW_INDICES,
    RAW_INVESTOR_FLOWS,
    RAW_LISTINGS,
    RAW_PRICES,
    RAW_STATEMENTS,
)
from atft_pipeline.storage import Storage

CONTRACT = "Columns, types and keys are those that the next step expects."


def _contract(asset: str) -> list[dg.AssetCheckSpec]:
    return [spec(asset, "contract_holds", CONTRACT)]


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=_contract("raw_prices"), freshness_policy=DAILY,
    description="Daily bars as delivered: unadjusted, defects included.",
)  # fmt: skip
@plain_failures
def raw_prices(
    context: dg.AssetExecutionContext, market: Market, storage: Storage
) -> Iterator[Any]:
    """Reads bars, notes once what the source lacks, and keeps a planted return beside them."""
    with storage.one_run_at_a_time("raw_prices"):
        yield from _raw_prices(context, market, storage)


def _raw_prices(
    context: dg.AssetExecutionContext, market: Market, storage: Storage
) -> Iterator[Any]:
    source = market.build()
    frame = source.raw_prices()
    gaps = source.missing()
    for item, reason in gaps.items():
        context.log.warning(f"the source lacks {item}: {reason}")
    contract = contract_holds(frame, RAW_PRICES)
    if not contract.stops:
        keep_beside(storage, gaps, source.planted_return())
    context.log.info(
        f"{source.name}: {frame.height:,} bars of {frame['code'].n_unique():,} stocks, "
        f"{frame['date'].min()} to {frame['date'].max()}"
    )
    metadata = {
        "source": source.name,
        "stocks": frame["code"].n_unique(),
        "first_date": str(frame["date"].min()),
        "last_date": str(frame["date"].max()),
        "missing": dg.MetadataValue.md(markdown_table(["lacks", "reason"], gaps.items())),
    }
    yield from verdicts("raw_prices", [contract], frame, metadata, storage)


def keep_beside(storage: Storage, gaps: dict[str, str], planted: pl.DataFrame | None) -> None:
    """Stores what belongs to these bars; a planted return of another source's bars goes."""
    storage.write_table("source_gaps", pl.DataFrame(
        {"item": list(gaps), "reason": list(gaps.values())},
        schema={"item": pl.String, "reason": pl.String},
    ))  # fmt: skip
    if planted is None:
        storage.delete_table("planted_return")
    else:
        storage.write_table("planted_return", planted)


def _delivered(
    table: str, schema: pa.DataFrameSchema, read: Callable[[], pl.DataFrame], storage: Storage
) -> Iterator[Any]:
    """Reads a table, one run at a time, and judges it by its contract."""
    with storage.one_run_at_a_time(table):
        frame = read()
        yield from verdicts(table, [contract_holds(frame, schema)], frame, {}, storage)


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=_contract("raw_listings"),
    description="One row per stock: sector, market, first and last trading date where known.",
)  # fmt: skip
@plain_failures
def raw_listings(market: Market, storage: Storage) -> Iterator[Any]:
    """Reads listings; a source without any derives what the bars say."""
    yield from _delivered("raw_listings", RAW_LISTINGS, market.build().raw_listings, storage)


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=_contract("raw_indices"),
    description="Index closes; no rows where the source has none (the market is then derived).",
)  # fmt: skip
@plain_failures
def raw_indices(market: Market, storage: Storage) -> Iterator[Any]:
    """Reads index closes."""
    yield from _delivered("raw_indices", RAW_INDICES, market.build().raw_indices, storage)


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=_contract("raw_statements"),
    description="Company disclosures as made; no rows where the source has none.",
)  # fmt: skip
@plain_failures
def raw_statements(market: Market, storage: Storage) -> Iterator[Any]:
    """Reads statements, forecasts and their corrections."""
    yield from _delivered("raw_statements", RAW_STATEMENTS, market.build().raw_statements, storage)


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=_contract("raw_investor_flows"),
    description="Weekly value traded by investor type and section; no rows where there is none.",
)  # fmt: skip
@plain_failures
def raw_investor_flows(market: Market, storage: Storage) -> Iterator[Any]:
    """Reads investor flows."""
    read = market.build().raw_investor_flows
    yield from _delivered("raw_investor_flows", RAW_INVESTOR_FLOWS, read, storage)


ASSETS = [raw_prices, raw_listings, raw_indices, raw_statements, raw_investor_flows]
