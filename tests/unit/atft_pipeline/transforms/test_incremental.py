"""Extending the feature table gives, to the bit, what building all of it gives; or says why not."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from atft_pipeline.feature_registry import REGISTRY
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms import incremental
from atft_pipeline.transforms.adjust import split_adjust
from atft_pipeline.transforms.features import Feature, compute_features
from atft_pipeline.transforms.incremental import (
    NOTHING,
    Plan,
    build_or_extend,
    built_from,
    content_hash,
    with_stored,
)
from atft_pipeline.transforms.lookahead import differences, known_at_close
from atft_pipeline.transforms.validity import quarantine_invalid

Tables = dict[str, pl.DataFrame]
TABLES = ("raw_prices", "raw_listings", "raw_indices", "raw_statements", "raw_investor_flows")
MARKET = SyntheticMarket(SyntheticConfig(seed=3, stocks=45, dates=300))
WORLD: Tables = {name: getattr(MARKET, name)() for name in TABLES}
DATES = WORLD["raw_prices"]["date"].unique().sort().to_list()
KNOWN = 284
"""Position of the newest date of the table that is extended."""


def on(
    position: int, change: Callable[[Tables], Tables] = lambda known: known, world: Tables = WORLD
) -> Tables:
    """What a source delivers on a date, changed, with the prices made of it."""
    known = {name: known_at_close(table, DATES[position]) for name, table in world.items()}
    known = change(known)
    return known | {"prices": split_adjust(*quarantine_invalid(known["raw_prices"]))}


def compute(
    tables: Tables, since: dt.date | None = None, features: tuple[Feature, ...] = REGISTRY
) -> pl.DataFrame:
    return compute_features(
        tables["prices"], tables["raw_listings"], tables["raw_indices"], features,
        tables["raw_statements"], tables["raw_investor_flows"], since,
    )  # fmt: skip


class Stored:
    """A table and the record beside it, as they lie in the data set's folder."""

    def __init__(self, tables: Tables) -> None:
        self.table = compute(tables)
        self.record = with_stored(built_from(tables, REGISTRY), content_hash(self.table))

    def extend(self, tables: Tables, features: tuple[Feature, ...] = REGISTRY) -> Plan:
        now = built_from(tables, features)
        self.table, done = build_or_extend(
            tables["prices"], now, self.table, self.record,
            lambda since: compute(tables, since, features),
        )  # fmt: skip
        self.record = with_stored(now, content_hash(self.table))
        return done


@pytest.fixture(scope="module")
def first() -> tuple[pl.DataFrame, pl.DataFrame]:
    stored = Stored(on(KNOWN))
    return stored.table, stored.record


@pytest.fixture
def stored(first: tuple[pl.DataFrame, pl.DataFrame]) -> Stored:
    copy = Stored.__new__(Stored)
    copy.table, copy.record = first
    return copy


# --- what may come on a day ---


def nothing(known: Tables) -> Tables:
    return known


def other_close(position: int) -> Callable[[Tables], Tables]:
    """One bar of one stock is corrected."""

    def corrected(known: Tables) -> Tables:
        bars = known["raw_prices"]
        day = bars.filter(pl.col("date") == DATES[position])
        code = day["code"].sort()[7]
        here = (pl.col("date") == DATES[position]) & (pl.col("code") == code)
        prices = pl.col("open", "high", "low", "close")
        return known | {
            "raw_prices": bars.with_columns(pl.when(here).then(prices * 1.02).otherwise(prices))
        }

    return corrected


def without_some_stock(known: Tables) -> Tables:
    """A stock has no bar any more."""
    gone = (pl.col("code") == "S0011") & (pl.col("date") >= DATES[KNOWN - 2])
    return known | {"raw_prices": known["raw_prices"].filter(~gone)}


def with_new_listing(known: Tables) -> Tables:
    """A stock that nobody knew before has its first bar on the newest day."""
    bars = known["raw_prices"]
    newest = bars.filter(pl.col("date") == bars["date"].max()).head(1)
    listing = known["raw_listings"].head(1)
    return known | {
        "raw_prices": pl.concat([bars, newest.with_columns(code=pl.lit("N0001"))]),
        "raw_listings": pl.concat(
            [known["raw_listings"], listing.with_columns(code=pl.lit("N0001"))]
        ),
    }


def with_split(known: Tables) -> Tables:
    """The newest day is the ex-date of a 2:1 split."""
    bars = known["raw_prices"]
    here = (pl.col("date") == bars["date"].max()) & (pl.col("code") == "S0005")
    halved = pl.col("open", "high", "low", "close", "adjustment_factor") * 0.5
    return known | {
        "raw_prices": bars.with_columns(pl.when(here).then(halved).otherwise(halved / 0.5))
    }


def with_late_statement(known: Tables) -> Tables:
    """A statement that should have come a month ago."""
    late = (
        known["raw_statements"]
        .tail(1)
        .with_columns(disclosed_on=pl.lit(DATES[KNOWN - 20]), sales=pl.col("sales") * 1.1)
    )
    return known | {"raw_statements": pl.concat([known["raw_statements"], late])}


def with_week_corrected(known: Tables) -> Tables:
    """The figures of a week are published again, with other values."""
    again = known["raw_investor_flows"].sort("last_date").tail(4)
    again = again.with_columns(pl.col("foreign_buy") * 1.3, published_on=pl.lit(DATES[KNOWN]))
    return known | {"raw_investor_flows": pl.concat([known["raw_investor_flows"], again])}


def with_other_sector(known: Tables) -> Tables:
    """The listing table says another sector of a stock, for all its history."""
    other = pl.when(pl.col("code") == "S0020").then(pl.lit("another")).otherwise("sector")
    return known | {"raw_listings": known["raw_listings"].with_columns(sector=other)}


def with_index_corrected(known: Tables) -> Tables:
    rows = known["raw_indices"]
    here = pl.col("date") == DATES[KNOWN - 9]
    return known | {
        "raw_indices": rows.with_columns(
            close=pl.when(here).then(1.0).otherwise(0.0) + pl.col("close")
        )
    }


DAYS: dict[str, tuple[int, Callable[[Tables], Tables], int | None]] = {
    "a new day": (KNOWN + 1, nothing, KNOWN + 1),
    "five new days": (KNOWN + 5, nothing, KNOWN + 1),
    "a bar corrected yesterday": (KNOWN, other_close(KNOWN - 1), KNOWN - 1),
    "a bar corrected long ago": (KNOWN + 1, other_close(60), 60),
    "a stock delisted": (KNOWN + 1, without_some_stock, KNOWN - 2),
    "a stock listed": (KNOWN + 1, with_new_listing, KNOWN + 1),
    "a split": (KNOWN + 1, with_split, KNOWN + 1),
    "a late statement": (KNOWN + 1, with_late_statement, KNOWN - 20),
    "a week corrected": (KNOWN + 1, with_week_corrected, KNOWN + 1),
    "an index close corrected": (KNOWN + 1, with_index_corrected, KNOWN - 9),
}


@pytest.mark.parametrize("name", DAYS)
def test_the_extended_table_is_the_built_one_to_the_bit(name: str, stored: Stored) -> None:
    position, change, since = DAYS[name]
    tables = on(position, change)
    done = stored.extend(tables)
    assert done.since == (None if since is None else DATES[since]), done.why
    assert differences(compute(tables), stored.table) == []


def test_day_after_day_it_stays_the_built_one() -> None:
    """Steps of up to 24 days, corrections among them; the market derived, as there is no index."""
    rng = np.random.default_rng(8)
    world = WORLD | {"raw_indices": WORLD["raw_indices"].clear()}
    position = 230
    stored = Stored(on(position, nothing, world))
    while position < len(DATES) - 6:
        position += int(rng.integers(1, 25))
        position = min(position, len(DATES) - 1)
        correction = other_close(int(rng.integers(position - 30, position)))
        tables = on(position, correction if rng.random() < 0.5 else nothing, world)
        done = stored.extend(tables)
        assert done.since is not None
        assert differences(compute(tables), stored.table) == []


def test_unchanged_inputs_change_nothing(stored: Stored) -> None:
    before = content_hash(stored.table)
    done = stored.extend(on(KNOWN))
    assert (done.since, done.why) == (NOTHING, "no input has changed")
    assert content_hash(stored.table) == before
    assert done.in_words(stored.table).startswith("0 rows computed, ")


# --- what cannot be proved unchanged is built anew ---


def test_a_record_of_another_table_is_not_believed(stored: Stored) -> None:
    """As a run leaves it that is killed after the record and before the table."""
    stored.record = with_stored(built_from(on(KNOWN), REGISTRY), content_hash(stored.table.head(5)))
    assert stored.extend(on(KNOWN + 1)).why.startswith("the record beside the stored table")


def test_a_table_edited_by_hand_is_not_believed(stored: Stored) -> None:
    first = pl.int_range(pl.len()) == 0
    stored.table = stored.table.with_columns(
        returns_1d=pl.when(first).then(0.5).otherwise("returns_1d").cast(pl.Float32)
    )
    assert stored.extend(on(KNOWN + 1)).since is None
    assert differences(compute(on(KNOWN + 1)), stored.table) == []


def test_a_record_in_another_form_is_not_believed(stored: Stored) -> None:
    stored.record = stored.record.drop("part")
    assert stored.extend(on(KNOWN)).since is None


def test_other_features_are_computed_on_all_dates(stored: Stored) -> None:
    fewer = REGISTRY[:-1]
    done = stored.extend(on(KNOWN), fewer)
    assert (done.since, done.why) == (None, "feature contract changed")
    assert differences(compute(on(KNOWN), features=fewer), stored.table) == []


@pytest.mark.parametrize(
    ("where", "what", "why"),
    [("_code", lambda: "other code", "code changed"),
     ("platform.python_version", lambda: "3.0", "libraries changed")],
)  # fmt: skip
def test_other_code_or_libraries_compute_all_dates(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, where: str, what: Callable, why: str
) -> None:
    monkeypatch.setattr(f"{incremental.__name__}.{where}", what)
    assert stored.extend(on(KNOWN)).why == why


def test_a_section_that_first_appears_concerns_every_date(stored: Stored) -> None:
    """Its stocks read the whole market's flows before, on every date."""
    tables = on(KNOWN + 1)
    flows = tables["raw_investor_flows"]
    tables["raw_investor_flows"] = pl.concat(
        [flows, flows.tail(1).with_columns(section=pl.lit("X"))]
    )
    assert stored.extend(tables).why == "flow sections changed"


def test_a_past_publication_of_flows_that_was_corrected_starts_where_it_counts(
    stored: Stored,
) -> None:
    tables = on(KNOWN)
    flows = tables["raw_investor_flows"]
    day = flows.filter(pl.col("published_on") < DATES[KNOWN - 30])["published_on"].max()
    here = pl.when(pl.col("published_on") == day).then(1.5).otherwise(1.0)
    tables["raw_investor_flows"] = flows.with_columns(pl.col("foreign_buy") * here)
    done = stored.extend(tables)
    assert (done.since, done.why.split()[0]) == (day + dt.timedelta(days=1), "raw_investor_flows")
    assert differences(compute(tables), stored.table) == []


def test_another_sector_concerns_a_stock_from_its_first_bar_on(stored: Stored) -> None:
    tables = on(KNOWN, with_other_sector)
    first_bar = tables["prices"].filter(pl.col("code") == "S0020")["date"].min()
    assert stored.extend(tables).since == first_bar
    assert differences(compute(tables), stored.table) == []


def test_a_lookback_that_is_too_short_is_unknown_never_another_stocks(stored: Stored) -> None:
    """What the extension gives a feature is what it declares to read."""
    liar = replace(
        next(feature for feature in REGISTRY if feature.name == "volatility_60d"), lookback=20
    )
    last = DATES[KNOWN]
    assert compute(on(KNOWN), last, (liar,))["volatility_60d"].null_count() == len(
        compute(on(KNOWN), last, (liar,))
    )
