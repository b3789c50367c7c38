"""Nine planted leaks, each caught by the check of its step; and a clean pipeline, which is not."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from atft_model.data.graph import GraphConfig, StockGraph, build_graph, nearest_neighbours
from atft_model.data.panel import Panel
from atft_model.data.splits import Split, SplitConfig
from atft_pipeline.checks.lookahead import (
    Build,
    graph_has_no_lookahead,
    no_lookahead,
    splits_are_purged,
)
from atft_pipeline.checks.outcome import Outcome
from atft_pipeline.feature_registry import REGISTRY, available_features, unmet_needs
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.as_of import MARKET_CLOSE
from atft_pipeline.transforms.features import Feature, compute_features
from atft_pipeline.transforms.lookahead import LookaheadConfig
from atft_pipeline.transforms.normalize import Normalized, fit_and_apply
from atft_pipeline.transforms.panel import build_panel, default_split, trading_calendar
from atft_pipeline.transforms.targets import HORIZONS, forward_returns
from atft_pipeline.transforms.universe import UniverseConfig, trading_universe
from atft_pipeline.transforms.validity import quarantine_invalid

READS_AHEAD = {f"target_{days}d": days + 1 for days in HORIZONS}
CONFIG = LookaheadConfig(cuts=2, seed=11)
FLOORS = UniverseConfig(min_history_days=40, min_turnover_20d=0.0)
ROW = r"of S\d{4} on \d{4}-\d\d-\d\d is .+ with all (after|up to) \d{4}-\d\d-\d\d (removed|rewritt)"

Tables = Mapping[str, pl.DataFrame]


# --- the steps, as the assets run them ---


def to_prices(known: Tables) -> pl.DataFrame:
    return split_adjust(*quarantine_invalid(known["raw_prices"]))


def to_universe(known: Tables) -> pl.DataFrame:
    return trading_universe(known["prices"], known["raw_listings"], FLOORS)


def to_targets(known: Tables) -> pl.DataFrame:
    return forward_returns(known["prices"])


def to_features(known: Tables, features: tuple[Feature, ...]) -> pl.DataFrame:
    return compute_features(known["prices"], known["raw_listings"], known["raw_indices"], features)


@dataclass(frozen=True)
class World:
    """A small market and every table made of it."""

    raw: dict[str, pl.DataFrame]
    contract: tuple[Feature, ...]
    universe: pl.DataFrame
    features: pl.DataFrame
    targets: pl.DataFrame
    train: tuple[dt.date, dt.date]
    normalized: Normalized
    panel: Panel
    graph: StockGraph


GRAPH = GraphConfig(neighbours=5)


@cache
def world(seed: int, stocks: int = 40, dates: int = 300) -> World:
    source = SyntheticMarket(SyntheticConfig(seed=seed, stocks=stocks, dates=dates))
    indices = source.raw_indices()
    raw = {
        "raw_prices": source.raw_prices(),
        "raw_listings": source.raw_listings(),
        "raw_indices": indices if seed % 2 else indices.clear(),
    }
    raw["prices"] = to_prices(raw)
    contract, _ = available_features(
        unmet_needs({"prices": raw["prices"], "listings": raw["raw_listings"]})
    )
    features = to_features(raw, contract)
    universe, targets = to_universe(raw), to_targets(raw)
    calendar = trading_calendar(raw["prices"])
    split = default_split(calendar, universe, SplitConfig(embargo=0, min_dates=10))
    train = (calendar[split.train[0]], calendar[split.train[1] - 1])
    normalized = fit_and_apply(features, contract, *train)
    panel = build_panel(
        raw["prices"], universe, targets, features, normalized.table, normalized.features,
        raw["raw_listings"], split, "synthetic",
    )  # fmt: skip
    graph = build_graph(panel, GRAPH)
    return World(raw, contract, universe, features, targets, train, normalized, panel, graph)


def only(tables: Tables, *names: str) -> dict[str, pl.DataFrame]:
    return {name: tables[name] for name in names}


def step(build: Build, *names: str, seed: int = 7, **options: Any) -> Outcome:
    """The check of one step on one small market."""
    tables = only(world(seed).raw, *names)
    return no_lookahead(build(tables), tables, build, CONFIG, **options)


def every_step(w: World, config: LookaheadConfig) -> dict[str, Outcome]:
    """The checks as the assets run them."""
    inputs = only(w.raw, "prices", "raw_listings", "raw_indices")
    return {
        "prices": no_lookahead(w.raw["prices"], only(w.raw, "raw_prices"), to_prices, config),
        "trading_universe": no_lookahead(
            w.universe, only(w.raw, "prices", "raw_listings"), to_universe, config
        ),
        "features": no_lookahead(
            w.features, inputs, lambda known: to_features(known, w.contract), config
        ),
        "targets": no_lookahead(
            w.targets, only(w.raw, "prices"), to_targets, config, reads_ahead=READS_AHEAD
        ),
        "normalized_features": no_lookahead(
            w.normalized.table,
            {"features": w.features},
            lambda known: fit_and_apply(known["features"], w.contract, *w.train).table,
            config,
            cut_at=w.train[1],
        ),
        "stock_graph": graph_has_no_lookahead(w.graph, w.panel, GRAPH, config),
    }


# --- the clean pipeline ---


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))]
)
def test_the_clean_pipeline_gives_no_false_alarm(seed: int) -> None:
    stocks, dates = 40 + 3 * (seed % 5), 260 + 20 * (seed % 4)
    outcomes = every_step(world(seed, stocks, dates), LookaheadConfig(cuts=2, seed=seed))
    seen = {name: outcome.figure for name, outcome in outcomes.items() if not outcome.passed}
    assert seen == {}
    assert all(outcome.numbers["values_compared"] > 1000 for outcome in outcomes.values())


def test_the_whole_chain_at_once_is_clean_too() -> None:
    """From raw tables to features in one build."""
    w = world(7)

    def build(known: Tables) -> pl.DataFrame:
        return to_features({**known, "prices": to_prices(known)}, w.contract)

    assert step(build, "raw_prices", "raw_listings", "raw_indices").passed


# --- the nine leaks ---

CLOSE = pl.col("close")
IN_FEATURES = {
    "maximum over all history": ("stock", CLOSE / CLOSE.max()),
    "maximum of the market over all history": ("market", pl.col("level") / pl.col("level").max()),
    "full-sample z-score": ("stock", (CLOSE - CLOSE.mean()) / CLOSE.std()),
    "full-sample z-score of a sector": (
        "sector",
        (pl.col("return_1d") - pl.col("return_1d").mean()) / pl.col("return_1d").std(),
    ),
    "centred window": ("stock", CLOSE.rolling_mean(5, center=True)),
}


@pytest.mark.parametrize("leak", IN_FEATURES)
def test_a_leak_in_a_feature_is_caught_and_named(leak: str) -> None:
    scope, expression = IN_FEATURES[leak]
    planted = replace(
        REGISTRY[0], name="planted", scope=scope, normalizer="time_series", expression=expression
    )
    features = (*world(7).contract[:5], planted, *world(7).contract[5:])
    outcome = step(
        lambda known: to_features(known, features), "prices", "raw_listings", "raw_indices"
    )
    assert outcome.stops
    assert outcome.numbers["columns_that_see_the_future"] == 1
    assert pl.Series([outcome.figure]).str.contains(f"^planted {ROW}").all(), outcome.figure
    assert "| planted | after" in (outcome.details or "")


def test_a_full_sample_z_score_in_the_normalizer_is_caught() -> None:
    """The normalizer is fitted a few days past the training end."""
    w = world(7)
    later = w.panel.dates[w.panel.dates.index(w.train[1]) + 5]

    def build(known: Tables) -> pl.DataFrame:
        return fit_and_apply(known["features"], w.contract, w.train[0], later).table

    tables = {"features": w.features}
    outcome = no_lookahead(build(tables), tables, build, CONFIG, cut_at=w.train[1])
    assert outcome.stops
    assert f"after {w.train[1]} removed" in outcome.figure


def test_a_calendar_day_embargo_is_caught() -> None:
    """20 calendar days before a part are 14 trading days; a 20-day label needs more than 21."""
    panel = world(7).panel
    assert splits_are_purged(panel).passed

    def days_before(position: int) -> int:
        start = panel.dates[position]
        return sum(date < start - dt.timedelta(days=20) for date in panel.dates)

    (_, (validation, _), (test, _)) = panel.split.parts().values()
    calendar_days = Split(
        (panel.split.train[0], days_before(validation)),
        (validation, days_before(test)),
        (test, len(panel.dates)),
    )
    outcome = splits_are_purged(replace(panel, split=calendar_days))
    assert outcome.stops
    last = panel.dates[days_before(validation) - 1]
    assert outcome.figure.startswith(f"the last train label ({last}) ends ")
    assert f"trading days after validation starts ({panel.dates[validation]})" in outcome.figure
    assert outcome.numbers["trading_days/train_to_validation"] < 17


@pytest.mark.parametrize(("spare", "passes"), [(22, True), (21, False)])
def test_the_shortest_purge_ends_labels_before_the_next_part(spare: int, passes: bool) -> None:
    split = Split((0, 101 - spare), (100, 201 - spare), (200, 300))
    assert splits_are_purged(replace(world(7).panel, split=split)).passed is passes


def statements(prices: pl.DataFrame) -> pl.DataFrame:
    """Quarterly disclosures, weekends included: at noon, at and after the close, untimed."""
    rng = np.random.default_rng(5)
    times = (dt.time(12, 0), MARKET_CLOSE, dt.time(18, 0), None)
    first, last = prices["date"].min(), prices["date"].max()
    rows = []
    for number, code in enumerate(prices["code"].unique().sort()):
        date = first + dt.timedelta(days=int(rng.integers(0, 40)))  # type: ignore[operator]
        while date < last:
            rows.append((code, date, times[(number + date.day) % 4], float(rng.lognormal())))
            date += dt.timedelta(days=int(rng.integers(80, 100)))
    schema = {
        "code": pl.String, "disclosed_on": pl.Date, "disclosed_at": pl.Time, "sales": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def as_of(bars: pl.DataFrame, table: pl.DataFrame, usable_on: pl.Expr, by: str) -> pl.DataFrame:
    """Each bar with the newest row of its series that is usable on its date."""
    usable = table.with_columns(usable_on=usable_on).sort("usable_on", maintain_order=True)
    return bars.sort("date", "code").join_asof(
        usable, left_on="date", right_on="usable_on", by=by, check_sortedness=False
    )


def statement_join(usable_on: pl.Expr) -> Build:
    def build(known: Tables) -> pl.DataFrame:
        bars = known["prices"].select("date", "code")
        table = known["raw_statements"].sort("disclosed_on", "disclosed_at", nulls_last=True)
        return as_of(bars, table, usable_on, "code").select("date", "code", stmt_sales="sales")

    return build


NEXT_DAY = pl.col("disclosed_on") + pl.duration(days=1)
BEFORE_CLOSE = (pl.col("disclosed_at") < MARKET_CLOSE).fill_null(False)


@pytest.mark.parametrize(
    ("usable_on", "passes"),
    [
        (pl.when(BEFORE_CLOSE).then("disclosed_on").otherwise(NEXT_DAY), True),
        (pl.col("disclosed_on"), False),
    ],
    ids=["next trading day", "own day after the close"],
)
def test_a_statement_used_on_its_own_day_after_the_close_is_caught(
    usable_on: pl.Expr, passes: bool
) -> None:
    prices = world(7).raw["prices"]
    tables = {"prices": prices, "raw_statements": statements(prices)}
    build = statement_join(usable_on)
    for seed in range(5):
        outcome = no_lookahead(build(tables), tables, build, LookaheadConfig(1, seed))
        assert outcome.passed is passes, outcome.figure
        assert passes or outcome.figure.startswith("stmt_sales of S")


def flows(prices: pl.DataFrame) -> pl.DataFrame:
    """A week's flows, published on the Thursday after it."""
    rng = np.random.default_rng(6)
    dates = prices["date"].unique().sort()
    published = dates.filter(dates.dt.weekday() == 4)
    buy = rng.lognormal(size=len(published))
    return pl.DataFrame({"published_on": published, "section": "Prime", "foreign_buy": buy})


@pytest.mark.parametrize(
    ("delay", "passes"), [(1, True), (0, False)], ids=["next trading day", "same day"]
)
def test_a_flow_used_on_its_day_of_publication_is_caught(delay: int, passes: bool) -> None:
    prices = world(7).raw["prices"]
    usable_on = pl.col("published_on") + pl.duration(days=delay)

    def build(known: Tables) -> pl.DataFrame:
        bars = known["prices"].select("date", "code", section=pl.lit("Prime"))
        joined = as_of(bars, known["raw_investor_flows"], usable_on, "section")
        return joined.select("date", "code", flow_foreign="foreign_buy")

    tables = {"prices": prices, "raw_investor_flows": flows(prices)}
    for seed in range(5):
        outcome = no_lookahead(build(tables), tables, build, LookaheadConfig(1, seed))
        assert outcome.passed is passes, outcome.figure
        assert passes or outcome.figure.startswith("flow_foreign of S")


def test_a_retro_adjusted_price_level_is_caught() -> None:
    """A vendor's adjusted history: every later split rewrites all of it."""

    def build(known: Tables) -> pl.DataFrame:
        raw, _ = quarantine_invalid(known["raw_prices"])
        later = pl.col("adjustment_factor").cum_prod(reverse=True) / pl.col("adjustment_factor")
        close = pl.col("close") * later.over("code")
        return raw.sort("code", "date").select("date", "code", close=close)

    outcome = step(build, "raw_prices")
    assert outcome.stops
    assert pl.Series([outcome.figure]).str.contains(f"^close {ROW}").all(), outcome.figure
    no_split_left = world(7).raw["raw_prices"].with_columns(adjustment_factor=1.0)
    tables = {"raw_prices": no_split_left}
    outcome = no_lookahead(build(tables), tables, build, CONFIG)
    assert outcome.stops
    assert "rewritten" in outcome.figure


def survivors(known: Tables) -> pl.DataFrame:
    """Only stocks that still trade at the end."""
    prices = known["prices"]
    alive = prices.filter(pl.col("date") == pl.col("date").max())["code"]
    return to_universe({**known, "prices": prices.filter(pl.col("code").is_in(alive.implode()))})


def largest_of_all_time(known: Tables) -> pl.DataFrame:
    """Only the stocks with the largest turnover of the whole history."""
    by_size = (
        known["prices"].group_by("code").agg(pl.col("turnover").sum()).sort("turnover", "code")
    )
    largest = by_size["code"].tail(10)
    return to_universe(known).filter(pl.col("code").is_in(largest.implode()))


def never_delisted(known: Tables) -> pl.DataFrame:
    """Only stocks whose listing says nothing of an end."""
    staying = known["raw_listings"].filter(pl.col("delisted_on").is_null())["code"]
    return to_universe(known).filter(pl.col("code").is_in(staying.implode()))


@pytest.mark.parametrize("static", [survivors, largest_of_all_time, never_delisted])
def test_a_static_future_universe_is_caught(static: Build) -> None:
    outcome = step(static, "prices", "raw_listings")
    assert outcome.stops
    assert outcome.figure.startswith("(row) of S")


def shifted(entry: int, leave: int) -> Build:
    """A target of 5 days whose entry and exit lie so many days after the signal."""

    def build(known: Tables) -> pl.DataFrame:
        table = forward_returns(known["prices"]).drop("target_5d")
        closes = known["prices"].select("date", "code", "close").sort("code", "date")
        calendar = closes.select(pl.col("date").unique().sort())
        grid = closes.select(pl.col("code").unique().sort()).join(calendar, how="cross")
        grid = grid.join(closes, on=["date", "code"], how="left", maintain_order="left")
        value = (CLOSE.shift(-leave) / CLOSE.shift(-entry) - 1).over("code")
        return table.join(
            grid.select("date", "code", target_5d=value), on=["date", "code"], how="left"
        )

    return build


@pytest.mark.parametrize(
    ("entry", "leave", "seen"),
    [
        (1, 6, None),
        (0, 5, "removed"),
        (2, 7, "removed"),
        (0, 6, "up to"),
        (1, 5, "removed"),
    ],
    ids=["as promised", "a day early", "a day late", "entry at the signal", "exit a day early"],
)
def test_a_target_shifted_by_one_is_caught(entry: int, leave: int, seen: str | None) -> None:
    outcome = step(shifted(entry, leave), "prices", reads_ahead=READS_AHEAD)
    assert outcome.passed is (seen is None), outcome.figure
    if seen:
        assert pl.Series([outcome.figure]).str.contains(f"^target_5d {ROW}").all(), outcome.figure
        assert seen in outcome.figure


def test_a_target_filled_from_the_past_is_caught() -> None:
    def build(known: Tables) -> pl.DataFrame:
        table = forward_returns(known["prices"])
        past = (CLOSE / CLOSE.shift(1) - 1).over("code")
        past_return = known["prices"].sort("code", "date").select("date", "code", past=past)
        joined = table.join(past_return, on=["date", "code"], how="left")
        return joined.with_columns(pl.coalesce("target_1d", "past").alias("target_1d")).drop("past")

    outcome = step(build, "prices", reads_ahead=READS_AHEAD)
    assert outcome.stops
    assert outcome.figure.startswith("target_1d of S")


# --- the graph ---


def leaking_graph(first: int, last: int) -> Any:
    """A graph whose windows begin and end so many days from the refresh date; None is no limit."""

    def build(panel: Panel, config: GraphConfig, refresh: np.ndarray | None = None) -> StockGraph:
        if refresh is None:
            refresh = build_graph(panel, config).refresh
        built = [
            nearest_neighbours(
                panel.daily_return[max(at - first, 0) : at + last + 1],
                panel.observed[max(at - first, 0) : at + last + 1],
                config,
            )
            for at in refresh
        ]
        neighbours, correlation = zip(*built, strict=True)
        return StockGraph(refresh, np.stack(neighbours), np.stack(correlation), panel.hash)

    return build


@pytest.mark.parametrize(
    ("last", "passes"), [(0, True), (1, False), (10_000, False)],
    ids=["up to the date", "one day ahead", "full sample"],
)  # fmt: skip
def test_a_graph_of_later_returns_is_caught(last: int, passes: bool) -> None:
    panel, build = world(7).panel, leaking_graph(59, last)
    outcome = graph_has_no_lookahead(build(panel, GRAPH), panel, GRAPH, CONFIG, build)
    assert outcome.passed is passes, outcome.figure
    assert passes or "correlation_1" in (outcome.details or "")


# --- what removal alone does not see ---


def test_a_maximum_that_lies_before_every_cut_is_seen_in_the_rewritten_future() -> None:
    dates = [dt.date(2024, 1, 1) + dt.timedelta(days=number) for number in range(40)]
    rows = [
        (date, f"S{s:04}", 100.0 - number) for s in range(9) for number, date in enumerate(dates)
    ]
    tables = {"prices": pl.DataFrame(rows, schema=["date", "code", "close"], orient="row")}

    def build(known: Tables) -> pl.DataFrame:
        return known["prices"].select("date", "code", drawdown=CLOSE / CLOSE.max().over("code"))

    outcome = no_lookahead(build(tables), tables, build, CONFIG)
    assert outcome.stops
    assert "rewritten" in outcome.figure
    assert "removed" not in (outcome.details or "")


def test_a_table_without_a_future_to_take_away_does_not_pass() -> None:
    two_days = world(7).raw["prices"].filter(pl.col("date") < dt.date(2016, 1, 1)).head(2)
    outcome = no_lookahead(two_days, {"prices": two_days}, lambda known: known["prices"], CONFIG)
    assert outcome.stops
    assert outcome.figure.endswith("no future can be taken away")


def test_the_verdict_says_where_it_looked() -> None:
    outcome = step(to_universe, "prices", "raw_listings")
    assert outcome.passed
    assert outcome.numbers["cuts"] == 2
    assert outcome.numbers["seed"] == 11
    assert "the future removed and rewritten after 20" in outcome.figure
    assert (outcome.details or "").startswith("Cut after 20")
    assert "Not judged, as it has no date: raw_listings.name, raw_listings.sector" in (
        outcome.details or ""
    )
