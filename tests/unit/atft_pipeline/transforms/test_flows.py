"""Flow features against a plain loop over what was published, date by date; and no look-ahead."""

import datetime as dt
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from atft_pipeline.feature_registry import REGISTRY
from atft_pipeline.schemas import RAW_INVESTOR_FLOWS, WHOLE_MARKET
from atft_pipeline.transforms import flows
from atft_pipeline.transforms.features import Feature, compute_features

MARKETS = {"A": "Prime", "B": "Prime", "C": "Growth", "D": None, "E": "Elsewhere"}
NO_INDEX = pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64})
LISTINGS = pl.DataFrame(
    {
        "code": list(MARKETS),
        "sector": ["x"] * len(MARKETS),
        "market": list(MARKETS.values()),
        "shares_outstanding": [1e6] * len(MARKETS),
    }
)
FEATURES = [
    feature
    for feature in REGISTRY
    if any(need.startswith("investor_flows") for need in feature.needs)
]
FLAGS = ("flow_shock_flag", "flow_impulse", "is_flow_valid")


def _calendar() -> list[dt.date]:
    rng = random.Random(1)
    days = [dt.date(2020, 1, 6) + dt.timedelta(days=n) for n in range(400)]
    return [day for day in days if day.weekday() < 5 and rng.random() > 0.03]


def _prices() -> pl.DataFrame:
    rng = random.Random(2)
    rows = [
        (day, code, *[10.0 + rng.random()] * 4, 1e4, 1e5, 10.0)
        for code in MARKETS
        for day in _calendar()
        if rng.random() > 0.02
    ]
    names = ["date", "code", "open", "high", "low", "close", "volume", "turnover", "raw_close"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _flows(sections: Sequence[str] = ("Prime", "Growth")) -> pl.DataFrame:
    """Weeks published on time, late, never, again and out of order, with gaps in the figures."""
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for section in sections:
        monday = dt.date(2019, 2, 4) if section == "Growth" else dt.date(2018, 9, 3)
        while monday < dt.date(2021, 2, 1):
            level = math.exp(rng.gauss(0, 0.2))
            figures = {name: level * rng.uniform(90, 110) for name in flows.FIGURES}
            friday = monday + dt.timedelta(days=4)
            lag = rng.choice([6, 6, 6, 6, 13, 20])
            days = [lag] if rng.random() > 0.05 else []
            days += [lag + rng.randrange(1, 60)] if rng.random() < 0.2 else []
            for place, wait in enumerate(days):
                known = {
                    name: None if rng.random() < 0.02 else value * (1 + 0.05 * place)
                    for name, value in figures.items()
                }
                rows.append(
                    {"published_on": friday + dt.timedelta(days=wait), "first_date": monday,
                     "last_date": friday, "section": section} | known
                )  # fmt: skip
            monday += dt.timedelta(days=7)
    rng.shuffle(rows)
    schema = {name: column.dtype.type for name, column in RAW_INVESTOR_FLOWS.columns.items()}
    return pl.DataFrame(rows, schema=schema)


PRICES = _prices()
FLOWS = _flows()


def features_of(
    prices: pl.DataFrame, table: pl.DataFrame, features: Sequence[Feature] = FEATURES
) -> pl.DataFrame:
    return compute_features(prices, LISTINGS, NO_INDEX, features, flows=table)


TABLE = features_of(PRICES, FLOWS)


# --- the plain implementation: for each date, read everything that was published -----------------


def _net(week: dict[str, Any], kind: str) -> float | None:
    bought, sold = week[f"{kind}_buy"], week[f"{kind}_sell"]
    return None if bought is None or sold is None else bought - sold


def _both(week: dict[str, Any], kind: str) -> float | None:
    bought, sold = week[f"{kind}_buy"], week[f"{kind}_sell"]
    return None if bought is None or sold is None else bought + sold


def _known(values: list[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return known if len(known) >= 26 else None


def _z(values: list[float | None], last: int) -> float | None:
    """Of the week in place ``last``, among the 52 up to it."""
    known = _known(values[max(0, last - 51) : last + 1])
    if known is None or values[last] is None:
        return None
    return (values[last] - statistics.fmean(known)) / statistics.stdev(known)  # type: ignore


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _scores(weeks: list[dict[str, Any]]) -> dict[str, float | None]:
    foreign = [_net(week, "foreign") for week in weeks]
    individual = [_net(week, "individual") for week in weeks]
    activity = [_both(week, "total") for week in weeks]
    last = len(weeks) - 1
    year_ago = max(0, last - 51)
    smart = [_minus(_z(foreign, t), _z(individual, t)) for t in range(year_ago, last + 1)]
    recent = smart[-4:]
    spread = _known(smart)
    year = _known(activity[-52:])
    total = _net(weeks[last], "total")
    net = [foreign[last], individual[last],
           _minus(_minus(total, foreign[last]), individual[last])]  # fmt: skip
    return {
        "flow_foreign_net_z": _z(foreign, last),
        "flow_individual_net_z": _z(individual, last),
        "flow_activity_z": _z(activity, last),
        "flow_smart_idx": smart[-1],
        "flow_smart_mom4": None if None in recent else smart[-1] - statistics.fmean(recent),  # type: ignore
        "flow_shock_flag": None
        if smart[-1] is None or spread is None
        else float(abs(smart[-1]) >= 2 * statistics.stdev(spread)),  # type: ignore
        "flow_foreign_net_ratio": _over(foreign[last], _both(weeks[last], "foreign")),
        "flow_individual_net_ratio": _over(individual[last], _both(weeks[last], "individual")),
        "flow_activity_ratio": _over(activity[last], statistics.fmean(year) if year else None),
        "flow_breadth_pos": None if None in net else sum(value > 0 for value in net) / 3,  # type: ignore
    }


def _plain(section: str, date: dt.date, table: pl.DataFrame) -> dict[str, float | None]:
    features: dict[str, float | None] = {feature.name: None for feature in FEATURES}
    features["is_flow_valid"] = 0.0
    weeks: dict[dt.date, dict[str, Any]] = {}
    first_published: dict[dt.date, dt.date] = {}
    public = table.filter(pl.col("section") == section, pl.col("published_on") < date)
    for row in public.sort("published_on", maintain_order=True).iter_rows(named=True):
        weeks[row["last_date"]] = row
        first_published.setdefault(row["last_date"], row["published_on"])
    if not weeks:
        return features
    calendar = _calendar()
    published = first_published[max(weeks)]
    days = sum(published < day < date for day in calendar)
    if published < calendar[0]:  # nobody knows the trading days before: weekdays
        before = [published + dt.timedelta(days=n) for n in range(1, 400)]
        days += sum(day.weekday() < 5 for day in before if day < calendar[0])
    features |= {"flow_days_since": float(days), "flow_impulse": float(days == 0)}
    if days > 7:
        return features
    ordered = [weeks[day] for day in sorted(weeks)]
    return features | _scores(ordered) | {"is_flow_valid": 1.0}


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str | None, dt.date], dict[str, float | None]]:
    unknown = {feature.name: None for feature in FEATURES} | {"is_flow_valid": 0.0}
    values: dict[tuple[str | None, dt.date], dict[str, float | None]] = {}
    for date in _calendar():
        for market in set(MARKETS.values()):
            in_table = market in ("Prime", "Growth")
            values[market, date] = _plain(market, date, FLOWS) if in_table else unknown
    return values


def test_they_are_the_flow_part_of_the_contract() -> None:
    assert [feature.name for feature in FEATURES] == [
        "flow_foreign_net_z", "flow_individual_net_z", "flow_activity_z", "flow_smart_idx",
        "flow_smart_mom4", "flow_shock_flag", "flow_impulse", "flow_days_since",
        "flow_foreign_net_ratio", "flow_individual_net_ratio", "flow_activity_ratio",
        "flow_breadth_pos", "is_flow_valid",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [feature.name for feature in FEATURES])
def test_feature_matches_plain_loop(
    name: str, plain: dict[tuple[str | None, dt.date], dict[str, float | None]]
) -> None:
    for row in TABLE.iter_rows(named=True):
        got, want = row[name], plain[MARKETS[row["code"]], row["date"]][name]
        assert (got is None) == (want is None), f"{row['date']} {row['code']}: {got} for {want}"
        if want is not None:
            assert got == pytest.approx(want, rel=1e-5, abs=1e-6), f"{row['date']} {row['code']}"
    values = TABLE[name].drop_nulls()
    assert values.len() > 400
    few = {"flow_breadth_pos": 3, "flow_days_since": 10}
    assert values.n_unique() >= (2 if name in FLAGS else few.get(name, 60))


# --- sections ----------------------------------------------------------------------------------


def test_stocks_of_one_section_share_its_flows_and_others_have_none() -> None:
    by_code = {code: TABLE.filter(pl.col("code") == code) for code in MARKETS}
    name = "flow_foreign_net_z"
    both = by_code["A"].join(by_code["B"], on="date", suffix="_b")
    assert both[name].equals(both[f"{name}_b"])
    apart = by_code["A"].join(by_code["C"], on="date", suffix="_c").drop_nulls(name)
    assert not apart[name].equals(apart[f"{name}_c"])
    for code in ("D", "E"):
        assert by_code[code][name].null_count() == by_code[code].height
        assert by_code[code]["is_flow_valid"].sum() == 0


def test_flows_of_the_whole_market_are_every_stocks() -> None:
    table = features_of(PRICES, _flows([WHOLE_MARKET]))
    dates = table.group_by("date").agg(pl.col("flow_foreign_net_z").n_unique())
    assert dates["flow_foreign_net_z"].max() == 1
    assert set(table.filter(pl.col("is_flow_valid") == 1)["code"]) == set(MARKETS)


def test_too_short_a_history_gives_ratios_but_no_scores() -> None:
    early = FLOWS.filter(pl.col("last_date") > dt.date(2020, 10, 1))
    table = features_of(PRICES, early)
    assert table["flow_foreign_net_ratio"].drop_nulls().len() > 100
    assert table["flow_foreign_net_z"].drop_nulls().is_empty()
    assert table["flow_activity_ratio"].drop_nulls().is_empty()


def test_weeks_that_never_change_have_no_score() -> None:
    flat = FLOWS.with_columns(pl.lit(100.0).alias(name) for name in flows.FIGURES)
    table = features_of(PRICES, flat)
    assert table["flow_activity_z"].drop_nulls().is_empty()
    assert set(table["flow_activity_ratio"].drop_nulls()) == {1.0}


# --- look-ahead --------------------------------------------------------------------------------


def _past_is_unchanged(day: dt.date) -> bool:
    """Whether rewriting, and removing, what was published from a day on leaves it alone."""
    public, past = pl.col("published_on") < day, pl.col("date") <= day
    numbers = pl.when(public).then(pl.col(pl.Float64)).otherwise(pl.col(pl.Float64) * -7.0 + 3.0)
    before = TABLE.filter(past)
    rewritten = features_of(PRICES, FLOWS.with_columns(numbers)).filter(past)
    removed = features_of(PRICES.filter(past), FLOWS.filter(public))
    return before.equals(rewritten) and before.equals(removed)


def _days_of_publication() -> list[dt.date]:
    dates = set(PRICES["date"])
    return sorted({day for day in FLOWS["published_on"] if day in dates})[::6]


def test_rewriting_the_future_leaves_the_past_bit_identical() -> None:
    assert len(_days_of_publication()) > 5
    for day in _days_of_publication():
        assert _past_is_unchanged(day), day


def test_a_week_used_on_the_day_of_its_publication_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = flows._publications

    def leaking(table: pl.DataFrame, since: dt.date | None) -> pl.DataFrame:
        return honest(table, since).with_columns(counts_from="published_on")

    monkeypatch.setattr(flows, "_publications", leaking)
    assert not all(_past_is_unchanged(day) for day in _days_of_publication())
