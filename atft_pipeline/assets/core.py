"""Validated prices and who may be traded."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from atft_pipeline.checks.outcome import markdown_table, spec, verdicts
from atft_pipeline.checks.prices import (
    PricesGate,
    QuarantineLimits,
    keys_unique,
    quarantined_share,
    reasons_within_limits,
    rows_by_reason,
    rows_within_stocks_times_dates,
    suspect_moves_within_limit,
    universe_is_wide,
)
from atft_pipeline.checks.tables import contract_holds
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.report.plots import figure_to_png_data_uri, plot_quarantine
from atft_pipeline.schemas import PRICES, TRADING_UNIVERSE
from atft_pipeline.storage import Storage
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.suspect_moves import MoveRules, suspect_moves
from atft_pipeline.transforms.universe import UniverseConfig
from atft_pipeline.transforms.universe import trading_universe as members_of
from atft_pipeline.transforms.validity import (
    ValidityRules,
    quarantine_by_month,
    quarantine_invalid,
)

MIN_STOCKS = 30
"""A decile of fewer than 3 stocks is no portfolio."""


ROWS_CHECK = "No more rows than stocks times dates, each with a row upstream."
KEYS_CHECK = "No (date, code) stands on two rows."


@dg.asset(
    group_name="core", kinds={"polars", "parquet"}, output_required=False,
    config_schema={
        **fields_of(PricesGate),
        "rules": dg.Field(dg.Shape(fields_of(ValidityRules)), is_required=False,
                          description="Which raw bars are believed."),
        "limits": dg.Field(dg.Shape(fields_of(QuarantineLimits)), is_required=False,
                           description="Largest share of raw rows in quarantine, by reason."),
        "moves": dg.Field(dg.Shape(fields_of(MoveRules)), is_required=False,
                          description="Which moves are suspect; they are counted and kept."),
    },
    check_specs=[
        spec("prices", "contract_holds", "Keys are unique, prices positive, columns as expected."),
        spec("prices", "keys_unique", KEYS_CHECK),
        spec("prices", "rows_within_stocks_times_dates", ROWS_CHECK),
        spec("prices", "quarantined_share_within_limit",
             "Few rows are unusable; each is kept in quarantine with its reason."),
        spec("prices", "quarantine_reasons_within_limits",
             "No single reason takes more rows than its own limit."),
        spec("prices", "suspect_moves_within_limit",
             "Few bars move further than trading and recorded splits explain; they are kept."),
    ],
    description="Valid, split-adjusted bars; unusable rows go to the table quarantine, strange "
    "moves are listed in suspect_moves.",
)  # fmt: skip
@plain_failures
def prices(
    context: dg.AssetExecutionContext, storage: Storage, raw_prices: pl.DataFrame
) -> Iterator[Any]:
    """Quarantines what cannot be used and adjusts the rest for splits as of each date."""
    options = dict(context.op_execution_context.op_config)
    rules = build(ValidityRules, options.pop("rules", {}))
    limits = build(QuarantineLimits, options.pop("limits", {}))
    move_rules = build(MoveRules, options.pop("moves", {}))
    gate = build(PricesGate, options)

    valid, quarantine = quarantine_invalid(raw_prices, rules)
    frame = split_adjust(valid, quarantine)
    moves = suspect_moves(frame, move_rules)
    reasons = rows_by_reason(quarantine)
    for reason, rows in reasons.iter_rows():
        context.log.info(f"quarantine: {rows:,} rows, {reason}")

    figure = plot_quarantine(quarantine_by_month(raw_prices, quarantine))
    picture = f"![quarantine by month]({figure_to_png_data_uri(figure)})"
    outcomes = [
        contract_holds(frame, PRICES),
        keys_unique(frame),
        rows_within_stocks_times_dates(frame, raw_prices),
        quarantined_share(raw_prices.height, quarantine, gate),
        reasons_within_limits(raw_prices.height, quarantine, limits, picture),
        suspect_moves_within_limit(frame.height, moves, gate),
    ]
    # Both belong to these prices: they are kept, or rejected, together.
    keep = storage.write_table
    if any(outcome.stops for outcome in outcomes):
        keep = storage.write_rejected
    keep("quarantine", quarantine)
    keep("suspect_moves", moves)
    metadata = {
        "quarantined": quarantine.height,
        "suspect_moves": moves.height,
        "reasons": dg.MetadataValue.md(markdown_table(["reason", "rows"], reasons.iter_rows())),
        "quarantine_by_month": dg.MetadataValue.md(picture),
    }
    yield from verdicts("prices", outcomes, frame, metadata, storage)


@dg.asset(
    group_name="core", kinds={"polars", "parquet"}, output_required=False,
    config_schema=fields_of(UniverseConfig),
    check_specs=[
        spec("trading_universe", "contract_holds", "Keys are unique, columns as expected."),
        spec("trading_universe", "keys_unique", KEYS_CHECK),
        spec("trading_universe", "rows_within_stocks_times_dates", ROWS_CHECK),
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
    outcomes = [
        contract_holds(frame, TRADING_UNIVERSE),
        keys_unique(frame),
        rows_within_stocks_times_dates(frame, prices),
        universe_is_wide(frame, MIN_STOCKS),
    ]
    stocks = {"stocks": frame["code"].n_unique()}
    yield from verdicts("trading_universe", outcomes, frame, stocks, storage)


ASSETS = [prices, trading_universe]
