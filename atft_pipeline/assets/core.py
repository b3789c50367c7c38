"""Validated prices and who may be traded."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from atft_pipeline.checks.lookahead import SEES_NO_FUTURE, no_lookahead
from atft_pipeline.checks.outcome import markdown_table, spec, verdicts
from atft_pipeline.checks.tables import (
    PricesGate,
    contract_holds,
    quarantined_share,
    universe_is_wide,
)
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.resources import Lookahead
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
        spec("prices", "no_lookahead", SEES_NO_FUTURE),
    ],
    description="Valid, split-adjusted bars; unusable rows go to the table quarantine.",
)  # fmt: skip
@plain_failures
def prices(
    context: dg.AssetExecutionContext, storage: Storage, lookahead: Lookahead,
    raw_prices: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Quarantines what cannot be used and adjusts the rest for splits as of each date."""
    valid, quarantine = quarantine_invalid(raw_prices)
    storage.write_table("quarantine", quarantine)
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
    sees = no_lookahead(
        frame, {"raw_prices": raw_prices},
        lambda raw: split_adjust(*quarantine_invalid(raw["raw_prices"])),
        lookahead.config(context.run.run_id),
    )  # fmt: skip
    outcomes = [contract_holds(frame, PRICES), share, sees]
    if any(outcome.stops for outcome in outcomes):
        storage.write_rejected("prices", frame)
    yield from verdicts("prices", outcomes, frame, metadata)


@dg.asset(
    group_name="core", kinds={"polars", "parquet"}, output_required=False,
    config_schema=fields_of(UniverseConfig),
    check_specs=[
        spec("trading_universe", "contract_holds", "Keys are unique, columns as expected."),
        spec("trading_universe", "universe_is_wide", "Dates have enough stocks to rank."),
        spec("trading_universe", "no_lookahead", SEES_NO_FUTURE),
    ],
    description="Which stock may be held on which date, decided with that date's knowledge.",
)  # fmt: skip
@plain_failures
def trading_universe(
    context: dg.AssetExecutionContext, lookahead: Lookahead, prices: pl.DataFrame,
    raw_listings: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Members per date."""
    config = build(UniverseConfig, context.op_execution_context.op_config)
    frame = members_of(prices, raw_listings, config)
    sees = no_lookahead(
        frame, {"prices": prices, "raw_listings": raw_listings},
        lambda known: members_of(known["prices"], known["raw_listings"], config),
        lookahead.config(context.run.run_id),
    )  # fmt: skip
    outcomes = [
        contract_holds(frame, TRADING_UNIVERSE), universe_is_wide(frame, MIN_STOCKS), sees,
    ]  # fmt: skip
    yield from verdicts("trading_universe", outcomes, frame, {"stocks": frame["code"].n_unique()})


ASSETS = [prices, trading_universe]
