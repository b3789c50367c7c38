"""Validated prices and who may be traded."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from atft_pipeline.checks.outcome import markdown_table, spec, verdicts
from atft_pipeline.checks.tables import (
    PricesGate,
    contract_holds,
    quarantined_share,
    universe_is_wide,
)
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.schemas import PRICES, TRADING_UNIVERSE
from atft_pipeline.storage import Storage
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.universe import UniverseConfig
from atft_pipeline.transforms.universe import trading_universe as members_of
from atft_pipeline.transforms.validity import quarantine_invalid

MIN_STOCKS = 30
"""A decile of fewer than 3 stocks is no portfolio."""


@dg.asset(
    group_name="core", kinds={"polars", "parquet"}, output_required=False,
    config_schema=fields_of(PricesGate),
    check_specs=[
        spec("prices", "contract_holds", "Keys are unique, prices positive, columns as expected."),
        spec("prices", "quarantined_share_within_limit",
             "Few rows are unusable; each is kept in quarantine with its reason."),
    ],
    description="Valid, split-adjusted bars; unusable rows go to the table quarantine.",
)  # fmt: skip
@plain_failures
def prices(
    context: dg.AssetExecutionContext, storage: Storage, raw_prices: pl.DataFrame
) -> Iterator[Any]:
    """Quarantines what cannot be used and adjusts the rest for splits as of each date."""
    valid, quarantine = quarantine_invalid(raw_prices)
    frame = split_adjust(valid, quarantine)
    gate = build(PricesGate, context.op_execution_context.op_config)
    share = quarantined_share(raw_prices.height, quarantine, gate)
    reasons = quarantine.group_by("reason").len("rows").sort("rows", descending=True)
    for reason, rows in reasons.iter_rows():
        context.log.info(f"quarantine: {rows:,} rows, {reason}")
    metadata = {
        "quarantined": quarantine.height,
        "reasons": dg.MetadataValue.md(markdown_table(["reason", "rows"], reasons.iter_rows())),
    }
    outcomes = [contract_holds(frame, PRICES), share]
    # The quarantine belongs to these prices: both are kept, or both are rejected.
    keep = storage.write_table
    if any(outcome.stops for outcome in outcomes):
        keep = storage.write_rejected
    keep("quarantine", quarantine)
    yield from verdicts("prices", outcomes, frame, metadata, storage)


@dg.asset(
    group_name="core", kinds={"polars", "parquet"}, output_required=False,
    config_schema=fields_of(UniverseConfig),
    check_specs=[
        spec("trading_universe", "contract_holds", "Keys are unique, columns as expected."),
        spec("trading_universe", "universe_is_wide", "Dates have enough stocks to rank."),
    ],
    description="Which stock may be held on which date, decided with that date's knowledge.",
)  # fmt: skip
@plain_failures
def trading_universe(
    context: dg.AssetExecutionContext, storage: Storage, prices: pl.DataFrame,
    raw_listings: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Members per date."""
    config = build(UniverseConfig, context.op_execution_context.op_config)
    frame = members_of(prices, raw_listings, config)
    outcomes = [contract_holds(frame, TRADING_UNIVERSE), universe_is_wide(frame, MIN_STOCKS)]
    stocks = {"stocks": frame["code"].n_unique()}
    yield from verdicts("trading_universe", outcomes, frame, stocks, storage)


ASSETS = [prices, trading_universe]
