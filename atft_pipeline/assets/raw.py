"""Raw tables as the configured source delivers them."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from atft_pipeline.checks.outcome import markdown_table, spec, verdicts
from atft_pipeline.checks.tables import contract_holds
from atft_pipeline.failures import plain_failures
from atft_pipeline.resources import Market
from atft_pipeline.schemas import RAW_INDICES, RAW_LISTINGS, RAW_PRICES
from atft_pipeline.storage import Storage

CONTRACT = "Columns, types and keys are those that the next step expects."


def _contract(asset: str) -> list[dg.AssetCheckSpec]:
    return [spec(asset, "contract_holds", CONTRACT)]


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False,
    check_specs=_contract("raw_prices"),
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
    storage.write_table("source_gaps", pl.DataFrame(
        {"item": list(gaps), "reason": list(gaps.values())},
        schema={"item": pl.String, "reason": pl.String},
    ))  # fmt: skip
    planted = source.planted_return()
    if planted is not None:
        storage.write_table("planted_return", planted)
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
    yield from verdicts("raw_prices", [contract_holds(frame, RAW_PRICES)], frame, metadata)


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False,
    check_specs=_contract("raw_listings"),
    description="One row per stock: sector, market, first and last trading date where known.",
)  # fmt: skip
@plain_failures
def raw_listings(market: Market, storage: Storage) -> Iterator[Any]:
    """Reads listings; a source without any derives what the bars say."""
    with storage.one_run_at_a_time("raw_listings"):
        frame = market.build().raw_listings()
        yield from verdicts("raw_listings", [contract_holds(frame, RAW_LISTINGS)], frame, {})


@dg.asset(
    group_name="raw", kinds={"polars", "parquet"}, output_required=False,
    check_specs=_contract("raw_indices"),
    description="Index closes; no rows where the source has none (the market is then derived).",
)  # fmt: skip
@plain_failures
def raw_indices(market: Market, storage: Storage) -> Iterator[Any]:
    """Reads index closes."""
    with storage.one_run_at_a_time("raw_indices"):
        frame = market.build().raw_indices()
        yield from verdicts("raw_indices", [contract_holds(frame, RAW_INDICES)], frame, {})


ASSETS = [raw_prices, raw_listings, raw_indices]
