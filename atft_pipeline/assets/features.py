"""Features, targets, the normalized table and the panel."""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from atft_model.data.artifacts import file_hash, prune
from atft_model.data.normalizer import CLIP
from atft_model.data.panel import Panel, write_panel
from atft_pipeline.checks.drift import DriftLimits, drift_within_limits, judge
from atft_pipeline.checks.lookahead import SEES_NO_FUTURE, no_lookahead, splits_are_purged
from atft_pipeline.checks.outcome import markdown_table, spec, verdicts
from atft_pipeline.checks.tables import (
    PanelGate,
    contract_holds,
    normalized_within_bounds,
    panel_is_alive,
)
from atft_pipeline.config_schema import build, build_part, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.feature_registry import REGISTRY, available_features, unmet_needs
from atft_pipeline.report.plots import figure_to_png_data_uri, plot_drift
from atft_pipeline.resources import Lookahead, Market, SplitSettings
from atft_pipeline.schemas import (
    TARGETS,
    NormalizationBounds,
    features_schema,
    normalized_schema,
)
from atft_pipeline.storage import Storage, row_metadata
from atft_pipeline.transforms.drift import fit_reference, measure_drift
from atft_pipeline.transforms.features import compute_features
from atft_pipeline.transforms.incremental import (
    build_or_extend,
    built_from,
    content_hash,
    with_stored,
)
from atft_pipeline.transforms.market import index_name
from atft_pipeline.transforms.normalize import feature_statistics, fit_and_apply
from atft_pipeline.transforms.panel import (
    build_panel,
    default_split,
    feature_rows,
    panel_codes,
    trading_calendar,
)
from atft_pipeline.transforms.panel_extension import build_or_extend_array, panel_built_from
from atft_pipeline.transforms.targets import ENTRY_LAG, HORIZONS, forward_returns

REFERENCE_SHOWN = ["feature", "mean", "std", "missing_share", "months", "month_shift"]

PANEL_INPUTS = (
    "prices", "trading_universe", "targets", "features", "normalized_features", "raw_listings",
)  # fmt: skip
"""Tables whose content hashes the panel's manifest keeps."""

RECORD = "features_built_from"
"""The table beside ``features`` that says from what it was computed, by date."""

PANEL_RECORD = "panel_built_from"
"""The same of the panel's feature array."""

BY_NAME = {feature.name: feature for feature in REGISTRY}


@dg.asset(
    group_name="features", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=[
        spec("features", "contract_holds", "One row per bar; values finite or null."),
        spec("features", "no_lookahead", SEES_NO_FUTURE),
    ],
    description="The feature table in raw units, from data up to each row's own close.",
)  # fmt: skip
@plain_failures
def features(
    context: dg.AssetExecutionContext,
    storage: Storage,
    lookahead: Lookahead,
    prices: pl.DataFrame,
    raw_listings: pl.DataFrame,
    raw_indices: pl.DataFrame,
    raw_statements: pl.DataFrame,
    raw_investor_flows: pl.DataFrame,
) -> Iterator[Any]:
    """Computes every feature that the source's tables allow."""
    tables = {
        "prices": prices, "listings": raw_listings, "statements": raw_statements,
        "investor_flows": raw_investor_flows,
    }  # fmt: skip
    kept, left_out = available_features(unmet_needs(tables))
    market = index_name(raw_indices) or "derived: equal-weighted return of the universe"
    context.log.info(f"{len(kept)} features; left out: {', '.join(left_out) or 'none'}")
    context.log.info(f"market series: {market}")
    sources = {
        "prices": prices, "raw_listings": raw_listings, "raw_indices": raw_indices,
        "raw_statements": raw_statements, "raw_investor_flows": raw_investor_flows,
    }  # fmt: skip

    def compute(known: Mapping[str, pl.DataFrame], since: dt.date | None = None) -> pl.DataFrame:
        return compute_features(
            known["prices"], known["raw_listings"], known["raw_indices"], kept,
            known["raw_statements"], known["raw_investor_flows"], since,
        )  # fmt: skip

    record = built_from(sources, kept)
    frame, done = build_or_extend(
        prices, record, storage.read_if_stored("features"), storage.read_if_stored(RECORD),
        lambda since: compute(sources, since),
    )  # fmt: skip
    extent = done.in_words(frame)
    context.log.info(f"features: {extent}")
    metadata = {
        "features": len(kept),
        "computed": extent,
        "market_series": market,
        "left_out": dg.MetadataValue.md(markdown_table(["feature", "reason"], left_out.items())),
    }
    contract = contract_holds(frame, features_schema([feature.name for feature in kept]))
    sees = no_lookahead(frame, sources, compute, lookahead.config(context.run.run_id))
    outcomes = [contract, sees]
    if not any(outcome.stops for outcome in outcomes):
        # Before the table: a run that is killed in between leaves a record of another table, and
        # the next run computes all of it.
        storage.write_table(RECORD, with_stored(record, content_hash(frame)))
    yield from verdicts("features", outcomes, frame, metadata, storage)


@dg.asset(
    group_name="features", kinds={"polars", "parquet"}, output_required=False, config_schema={},
    check_specs=[
        spec("targets", "contract_holds", "One row per bar; unknown targets are null."),
        spec("targets", "no_lookahead",
             "A target reads the closes from its entry to its exit, and nothing else."),
    ],
    description="Forward returns over 1, 5, 10 and 20 trading days, entry one close later.",
)  # fmt: skip
@plain_failures
def targets(
    context: dg.AssetExecutionContext, storage: Storage, lookahead: Lookahead,
    prices: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Forward returns on the market calendar."""
    frame = forward_returns(prices)
    sees = no_lookahead(
        frame, {"prices": prices}, lambda known: forward_returns(known["prices"]),
        lookahead.config(context.run.run_id),
        reads_ahead={f"target_{days}d": days + ENTRY_LAG for days in HORIZONS},
    )  # fmt: skip
    yield from verdicts("targets", [contract_holds(frame, TARGETS), sees], frame, {}, storage)


@dg.asset(
    group_name="features", kinds={"polars", "pandera"}, output_required=False,
    config_schema=fields_of(NormalizationBounds) | fields_of(DriftLimits),
    check_specs=[
        spec("normalized_features", "contract_holds", "Values lie within the clip or are null."),
        spec("normalized_features", "normalized_within_bounds",
             "On training dates each feature and the whole table have mean near 0 and std near 1."),
        spec("normalized_features", "drift_within_limits",
             "Raw statistics after the training dates are near those of the training dates."),
        spec("normalized_features", "no_lookahead",
             "Rows up to the training end stay the same, to the bit, whatever comes later."),
    ],
    description="Features under their own normalizers, fitted on the default split's train dates. "
    "Beside it: feature_statistics, feature_reference and feature_drift.",
)  # fmt: skip
@plain_failures
def normalized_features(
    context: dg.AssetExecutionContext, storage: Storage, split: SplitSettings,
    lookahead: Lookahead, features: pl.DataFrame, trading_universe: pl.DataFrame,
    prices: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Normalizes and judges the result; a table out of bounds is not stored."""
    calendar = trading_calendar(prices)
    parts = default_split(calendar, trading_universe, split.config())
    first, last = calendar[parts.train[0]], calendar[parts.train[1] - 1]
    contract = [BY_NAME[name] for name in features.columns[2:]]
    done = fit_and_apply(features, contract, first, last)
    for name, reason in done.left_out.items():
        context.log.warning(f"feature {name} is left out: {reason}")
    statistics = feature_statistics(done.table, done.features, first, last)
    reference = fit_reference(features, done.features, first, last)
    options = context.op_execution_context.op_config
    limits = build_part(DriftLimits, options)
    drift = judge(measure_drift(features, reference), limits)
    picture = f"![drift]({figure_to_png_data_uri(plot_drift(drift))})"
    schema = normalized_schema([feature.name for feature in done.features], CLIP)
    outcomes = [
        contract_holds(done.table, schema),
        normalized_within_bounds(
            statistics, build_part(NormalizationBounds, options), done.left_out
        ),
        drift_within_limits(drift, limits, picture),
        no_lookahead(
            done.table,
            {"features": features},
            lambda known: fit_and_apply(known["features"], contract, first, last).table,
            lookahead.config(context.run.run_id),
            cut_at=last,
        ),
    ]
    beside = {
        "feature_statistics": statistics,
        "feature_reference": reference,
        "feature_drift": drift,
    }
    if any(outcome.stops for outcome in outcomes):
        for name, table in beside.items():
            storage.write_rejected(name, table)
    else:
        for name, table in beside.items():
            storage.write_table(name, table)
    metadata = {
        "features": len(done.features),
        "train_dates": f"{first} to {last}",
        "left_out": dg.MetadataValue.md(
            markdown_table(["feature", "reason"], done.left_out.items())
        ),
        "statistics": dg.MetadataValue.md(
            markdown_table(statistics.columns, statistics.iter_rows())
        ),
        "reference": dg.MetadataValue.md(
            markdown_table(REFERENCE_SHOWN, reference.select(REFERENCE_SHOWN).iter_rows())
        ),
        "drift": dg.MetadataValue.md(picture),
    }
    yield from verdicts("normalized_features", outcomes, done.table, metadata, storage)


@dg.asset(
    group_name="features", kinds={"numpy"}, output_required=False, io_manager_key="versions",
    config_schema=fields_of(PanelGate),
    check_specs=[
        spec("panel", "panel_is_alive",
             "Finite; every feature varies on every part; few zeros; enough stocks."),
        spec("panel", "splits_are_purged", "No label interval crosses into a later part."),
    ],
    description="Model-ready arrays [dates, stocks, features] with masks, targets and a manifest.",
)  # fmt: skip
@plain_failures
def panel(
    context: dg.AssetExecutionContext, market: Market, storage: Storage, split: SplitSettings,
    prices: pl.DataFrame, trading_universe: pl.DataFrame, targets: pl.DataFrame,
    features: pl.DataFrame, normalized_features: pl.DataFrame, raw_listings: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Builds the tensor, judges it, and only then publishes it as a version."""
    calendar, codes = trading_calendar(prices), panel_codes(prices)
    parts = default_split(calendar, trading_universe, split.config())
    contract = tuple(BY_NAME[name] for name in normalized_features.columns[2:])
    rows = feature_rows(features, normalized_features, contract)
    record = panel_built_from(rows, contract, codes)
    array = build_or_extend_array(
        rows, calendar, codes, record, storage.read_if_stored(PANEL_RECORD), storage.panel
    )
    context.log.info(f"panel: {array.in_words(calendar)}")
    built = build_panel(
        prices, trading_universe, targets, features, normalized_features, contract,
        raw_listings, parts, market.name(),
        {name: file_hash(storage.table_path(name)) for name in PANEL_INPUTS}, array.values,
    )  # fmt: skip
    outcomes = [
        panel_is_alive(built, build(PanelGate, context.op_execution_context.op_config)),
        splits_are_purged(built),
    ]
    metadata: dict[str, Any] = {
        "dates": len(built.dates), "stocks": len(built.codes),
        "features": len(built.feature_names), "bytes": built.features.nbytes,
        **row_metadata(int(np.asarray(built.observed).sum()), panel_columns(built)),
        "built": array.in_words(calendar),
        "split": ", ".join(f"{part} {built.part_dates(part)[0]} to {built.part_dates(part)[1]}"
                           for part in built.split.parts()),
    }  # fmt: skip
    version = ""
    if not any(outcome.stops for outcome in outcomes):
        version = write_panel(built, storage.panel, array.file)
        storage.write_table(PANEL_RECORD, with_stored(record, version))
        prune(storage.panel, keep=set())
        context.log.info(f"panel {version}: {built.features.shape}, {metadata['split']}")
    elif array.file:
        array.file.path.unlink()
    yield from verdicts("panel", outcomes, version, metadata)


def panel_columns(panel: Panel) -> dict[str, type[pl.DataType]]:
    """What the panel holds of one stock on one date, for the UI: its arrays are no table."""
    targets = dict.fromkeys((f"target_{days}d" for days in panel.horizons), pl.Float32)
    flags = {"tradable": pl.Boolean, "daily_return": pl.Float32}
    features = dict.fromkeys(panel.feature_names, pl.Float32)
    return {"date": pl.Date, "code": pl.String, **features, **targets, **flags}


ASSETS = [features, targets, normalized_features, panel]
