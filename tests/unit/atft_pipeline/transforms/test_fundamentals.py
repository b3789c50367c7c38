"""Statement features against a plain loop over what was public, row by row; and no look-ahead."""

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from atft_pipeline.feature_registry import REGISTRY
from atft_pipeline.schemas import RAW_STATEMENTS
from atft_pipeline.transforms import fundamentals
from atft_pipeline.transforms.features import Feature, compute_features

CLOSE = dt.time(15, 0)
STOCKS = (*"ABCDEFGHI", "NONE", "OLD")
QUARTER_ENDS = [
    dt.date(year, month, 30 if month in (6, 9) else 31)
    for year in (2017, 2018, 2019, 2020, 2021)
    for month in (3, 6, 9, 12)
]
NO_INDEX = pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64})
LISTINGS = pl.DataFrame(
    {"code": STOCKS, "sector": ["x"] * len(STOCKS), "shares_outstanding": [1e6] * len(STOCKS)}
)
FEATURES = [
    feature for feature in REGISTRY if any(need.startswith("statements") for need in feature.needs)
]


def _calendar() -> list[dt.date]:
    days = [dt.date(2020, 1, 6) + dt.timedelta(days=n) for n in range(560)]
    rng = random.Random(1)
    return [day for day in days if day.weekday() < 5 and rng.random() > 0.03]


def _prices() -> pl.DataFrame:
    rng = random.Random(2)
    rows = [
        (day, code, *[10.0 + rng.random()] * 4, 1e4, 1e5, 10.0)
        for code in STOCKS
        for day in _calendar()
        if rng.random() > 0.02  # halts
    ]
    names = ["date", "code", "open", "high", "low", "close", "volume", "turnover", "raw_close"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _statements() -> pl.DataFrame:
    """Reports, corrections (some much later, some partial), revisions; out of order, with gaps."""
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []

    def disclose(code: str, day: dt.date, year_end: dt.date, period: str | None, **items: Any):
        time = rng.choice([None, dt.time(9, 30), dt.time(14, 59), CLOSE, dt.time(16, 45)])
        kept = {name: None if rng.random() < 0.06 else value for name, value in items.items()}
        rows.append(
            {"code": code, "disclosed_on": day, "disclosed_at": time, "fiscal_year_end": year_end,
             "period": period, "document": None} | kept
        )  # fmt: skip

    for code in STOCKS:
        if code == "NONE":
            continue
        start = rng.randrange(4)
        for place, end in enumerate(QUARTER_ENDS):
            quarter = (place + start) % 4 + 1
            if code == "OLD" and end > dt.date(2020, 3, 31):
                continue  # stops reporting
            ends = QUARTER_ENDS[place + 4 - quarter] if place + 4 - quarter < 20 else None
            if ends is None:
                continue
            if code == "E":  # 52 or 53 weeks: on a Friday near the month's end
                ends = ends + dt.timedelta(days=(4 - ends.weekday() + 3) % 7 - 3)
            sales = quarter * rng.uniform(50, 150)
            actuals = {
                "sales": rng.choice([sales, sales, sales, 0.0]),
                "operating_profit": rng.choice([rng.uniform(-20, 40), 0.0, rng.uniform(5, 40)]),
                "net_profit": rng.uniform(-15, 30),
                "total_assets": rng.uniform(200, 400),
                "equity": rng.uniform(-20, 200),
            }

            def forecasts() -> dict[str, float]:
                return {
                    "forecast_sales": rng.uniform(300, 400),
                    "forecast_operating_profit": rng.choice([rng.uniform(-10, 120), 0.0, 70.0]),
                    "forecast_net_profit": rng.uniform(-10, 90),
                }

            day = end + dt.timedelta(days=rng.randrange(20, 60))
            disclose(code, day, ends, ("1Q", "2Q", "3Q", "FY")[quarter - 1],
                     **actuals, **(forecasts() if quarter < 4 else {}))  # fmt: skip
            if rng.random() < 0.4:
                later = day + dt.timedelta(days=rng.randrange(0, 200))
                disclose(code, later, ends, ("1Q", "2Q", "3Q", "FY")[quarter - 1],
                         operating_profit=rng.uniform(-20, 40), net_profit=1.0)  # fmt: skip
            if rng.random() < 0.4:
                later = day + dt.timedelta(days=rng.randrange(0, 60))
                disclose(code, later, ends, None, **forecasts())
    rng.shuffle(rows)
    schema = {name: column.dtype.type for name, column in RAW_STATEMENTS.columns.items()}
    return pl.DataFrame(rows, schema=schema)


PRICES = _prices()
STATEMENTS = _statements()


def features_of(
    prices: pl.DataFrame, statements: pl.DataFrame, features: Sequence[Feature] = FEATURES
) -> pl.DataFrame:
    return compute_features(prices, LISTINGS, NO_INDEX, features, statements)


TABLE = features_of(PRICES, STATEMENTS)


# --- the plain implementation: for each bar, read everything that was public, in order ---


def _fiscal_month(day: dt.date) -> int:
    early = day - dt.timedelta(days=7)
    return early.year * 12 + early.month


def _is_public(row: dict[str, Any], date: dt.date) -> bool:
    if row["disclosed_on"] == date:
        return row["disclosed_at"] is not None and row["disclosed_at"] < CLOSE
    return row["disclosed_on"] < date


def _moment(row: dict[str, Any]) -> tuple:
    time = row["disclosed_at"]
    return row["disclosed_on"], time is None, time or CLOSE


def _divided(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b == 0 else a / b


def _grown(now: float | None, before: float | None) -> float | None:
    if now is None or before is None or before == 0:
        return None
    return (now - before) / abs(before)


def _plain(rows: list[dict[str, Any]], date: dt.date, calendar: list[dt.date]) -> dict[str, Any]:
    public = sorted((row for row in rows if _is_public(row, date)), key=_moment)
    features: dict[str, Any] = {feature.name: None for feature in FEATURES}
    features |= {"stmt_imp_statement": 0.0, "is_stmt_valid": 0.0}
    if not public:
        return features
    last = public[-1]
    known_on = next(day for day in calendar if _is_public(last, day))
    days = calendar.index(date) - calendar.index(known_on)
    if known_on == calendar[0]:
        first = last["disclosed_on"]
        if not (last["disclosed_at"] and last["disclosed_at"] < CLOSE):
            first += dt.timedelta(days=1)
        while first < calendar[0]:  # nobody knows the trading days before: weekdays
            days += first.weekday() < 5
            first += dt.timedelta(days=1)
    features["stmt_imp_statement"] = float(days == 0)
    if days > 130:
        return features
    features["stmt_days_since_statement"] = float(days)
    reported: dict[tuple[int, int], dict[str, float]] = {}
    planned: dict[int, dict[str, float]] = {}
    revisions: dict[str, float | None] = {}
    for row in public:
        month = _fiscal_month(row["fiscal_year_end"])
        items = {name: row[name] for name in fundamentals.ACTUALS if row[name] is not None}
        if items and row["period"]:
            period = (month, ("1Q", "2Q", "3Q", "FY").index(row["period"]) + 1)
            reported.setdefault(period, {}).update(items)
        for name in ("forecast_operating_profit", "forecast_net_profit"):
            if row[name] is not None:
                before = planned.setdefault(month, {}).get(name)
                revisions[name] = _grown(row[name], before)
                planned[month][name] = row[name]
    features["stmt_rev_fore_op"] = revisions.get("forecast_operating_profit")
    features["stmt_rev_fore_np"] = revisions.get("forecast_net_profit")
    if not reported:
        return features
    month, quarter = max(reported)
    now = reported[month, quarter]
    before = reported.get((month - 12, quarter), {})
    last_year = reported.get((month - 12, 4), {})
    plan = planned.get(month, {})
    features["is_stmt_valid"] = 1.0
    for short, item in (("sales", "sales"), ("op", "operating_profit"), ("np", "net_profit")):
        features[f"stmt_yoy_{short}"] = _grown(now.get(item), before.get(item))
    sales = now.get("sales") or None
    features["stmt_opm"] = _divided(now.get("operating_profit"), sales)
    features["stmt_npm"] = _divided(now.get("net_profit"), sales)
    for short, item in (("op", "operating_profit"), ("np", "net_profit")):
        forecast = plan.get(f"forecast_{item}")
        features[f"stmt_progress_{short}"] = (
            _divided(now.get(item), forecast) if forecast and forecast > 0 else None
        )
    profit = now.get("net_profit")
    if quarter < 4:
        parts = (profit, last_year.get("net_profit"), before.get("net_profit"))
        profit = None if None in parts else parts[0] + parts[1] - parts[2]  # type: ignore
    for short, item in (("roe", "equity"), ("roa", "total_assets")):
        capital = now.get(item)
        features[f"stmt_{short}"] = _divided(profit, capital) if capital and capital > 0 else None
    return features


@pytest.fixture(scope="module")
def plain() -> pl.DataFrame:
    calendar = _calendar()
    by_code: dict[str, list[dict[str, Any]]] = {code: [] for code in STOCKS}
    for row in STATEMENTS.iter_rows(named=True):
        by_code[row["code"]].append(row)
    keys = TABLE.select("date", "code").rows()
    rows = [_plain(by_code[code], date, calendar) for date, code in keys]
    return pl.DataFrame(rows, schema={feature.name: pl.Float64 for feature in FEATURES})


def test_they_are_the_statement_part_of_the_contract() -> None:
    assert [feature.name for feature in FEATURES] == [
        "stmt_yoy_sales", "stmt_yoy_op", "stmt_opm", "stmt_progress_op", "stmt_rev_fore_op",
        "stmt_imp_statement", "stmt_days_since_statement", "stmt_yoy_np", "stmt_npm",
        "stmt_progress_np", "stmt_rev_fore_np", "stmt_roe", "stmt_roa", "is_stmt_valid",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [feature.name for feature in FEATURES])
def test_feature_matches_plain_loop(name: str, plain: pl.DataFrame) -> None:
    found, expected = TABLE[name].to_list(), plain[name].to_list()
    assert len(found) == len(expected)
    for (date, code), got, want in zip(
        TABLE.select("date", "code").iter_rows(), found, expected, strict=True
    ):
        assert (got is None) == (want is None), f"{date} {code}: {got} for {want}"
        if want is not None:
            assert got == pytest.approx(want, rel=1e-5, abs=1e-6), f"{date} {code}"
    values = [value for value in found if value is not None]
    assert len(values) > 800
    assert len(set(values)) > (1 if name.startswith(("is_", "stmt_imp")) else 15)


# --- by hand -----------------------------------------------------------------------------------


def _one_company(*rows: dict[str, Any]) -> dict[dt.date, dict[str, Any]]:
    """Features of company A by date, from rows that differ from one report only."""
    report = {
        "code": "A", "disclosed_on": dt.date(2020, 2, 10), "disclosed_at": dt.time(16, 0),
        "fiscal_year_end": dt.date(2020, 3, 31), "period": "3Q",
    }  # fmt: skip
    schema = {name: column.dtype.type for name, column in RAW_STATEMENTS.columns.items()}
    statements = pl.DataFrame([report | row for row in rows], schema=schema)
    table = features_of(PRICES.filter(pl.col("code") == "A"), statements)
    return {row["date"]: row for row in table.iter_rows(named=True)}


def _around(day: dt.date) -> tuple[dt.date, dt.date]:
    """The last bar up to a day and the first after it."""
    dates = PRICES.filter(pl.col("code") == "A")["date"]
    return dates.filter(dates <= day).max(), dates.filter(dates > day).min()  # type: ignore


def test_after_the_close_counts_from_the_next_trading_day() -> None:
    day, following = _around(dt.date(2020, 2, 10))
    assert day == dt.date(2020, 2, 10), "a bar on the day itself, or nothing is tested"
    by_date = _one_company({"sales": 100.0, "operating_profit": 10.0})
    assert by_date[day]["stmt_opm"] is None
    assert by_date[following]["stmt_opm"] == pytest.approx(0.1)
    assert by_date[following]["stmt_imp_statement"] == 1.0
    early = _one_company({"sales": 100.0, "operating_profit": 10.0, "disclosed_at": dt.time(11, 0)})
    assert early[day]["stmt_opm"] == pytest.approx(0.1)


def test_growth_is_matched_on_the_fiscal_period_not_on_the_row_before() -> None:
    _, following = _around(dt.date(2020, 2, 10))
    year_ago = {"disclosed_on": dt.date(2019, 2, 8), "fiscal_year_end": dt.date(2019, 3, 31)}
    between = {"disclosed_on": dt.date(2019, 11, 8), "period": "2Q"}
    by_date = _one_company({"sales": 80.0} | year_ago, {"sales": 999.0} | between, {"sales": 100.0})
    assert by_date[following]["stmt_yoy_sales"] == pytest.approx(0.25)
    without = _one_company({"sales": 999.0} | between, {"sales": 100.0})
    assert without[following]["stmt_yoy_sales"] is None, "never the row before"


def test_a_correction_changes_what_is_known_from_its_own_day_on() -> None:
    _, following = _around(dt.date(2020, 2, 10))
    correction = {"disclosed_on": dt.date(2020, 3, 10), "operating_profit": 20.0}
    by_date = _one_company({"sales": 100.0, "operating_profit": 10.0}, correction)
    before, after = _around(dt.date(2020, 3, 10))
    assert by_date[following]["stmt_opm"] == by_date[before]["stmt_opm"] == pytest.approx(0.1)
    assert by_date[after]["stmt_opm"] == pytest.approx(0.2), "sales as first reported"


def test_a_revision_compares_forecasts_of_the_same_year_only() -> None:
    forecast = "forecast_operating_profit"
    next_year = {"fiscal_year_end": dt.date(2021, 3, 31), "period": None}
    by_date = _one_company(
        {forecast: 50.0},
        {forecast: 60.0, "disclosed_on": dt.date(2020, 3, 2)},
        {forecast: 90.0, "disclosed_on": dt.date(2020, 5, 11)} | next_year,
        {forecast: 81.0, "disclosed_on": dt.date(2020, 8, 11)} | next_year,
    )
    revision = {
        day: by_date[_around(day)[1]]["stmt_rev_fore_op"]
        for day in (dt.date(2020, 2, 10), dt.date(2020, 3, 2), dt.date(2020, 5, 11),
                    dt.date(2020, 8, 11))
    }  # fmt: skip
    assert list(revision.values()) == [None, pytest.approx(0.2), None, pytest.approx(-0.1)]


def test_a_row_delivered_twice_is_one_disclosure() -> None:
    second = {"forecast_net_profit": 60.0, "disclosed_on": dt.date(2020, 3, 2)}
    by_date = _one_company({"forecast_net_profit": 50.0}, second, second)
    revised = by_date[_around(dt.date(2020, 3, 2))[1]]["stmt_rev_fore_np"]
    assert revised == pytest.approx(0.2)


def test_shares_outstanding_are_the_newest_statements_else_the_listings() -> None:
    statements = STATEMENTS.clear().vstack(STATEMENTS.filter(pl.col("code") == "A").head(1))
    statements = statements.with_columns(
        disclosed_on=dt.date(2020, 2, 10), disclosed_at=dt.time(16), shares_outstanding=4e6
    )
    rate = [feature for feature in REGISTRY if feature.name == "turnover_rate"]
    table = features_of(PRICES, statements, rate)
    late = (pl.col("code") == "A") & (pl.col("date") > dt.date(2020, 2, 10))
    traded = 1e5 / 10.0  # turnover over raw close, the same on every bar
    assert set(table.filter(late)["turnover_rate"]) == {
        pl.Series([traded / 4e6], dtype=pl.Float32)[0]
    }
    assert set(table.filter(~late)["turnover_rate"]) == {
        pl.Series([traded / 1e6], dtype=pl.Float32)[0]
    }


def test_a_moved_fiscal_year_end_has_no_year_before() -> None:
    _, following = _around(dt.date(2020, 2, 10))
    year_ago = {"disclosed_on": dt.date(2019, 2, 8), "fiscal_year_end": dt.date(2018, 12, 31)}
    by_date = _one_company({"sales": 80.0} | year_ago, {"sales": 100.0})
    assert by_date[following]["stmt_yoy_sales"] is None


def test_what_is_stale_is_not_believed() -> None:
    by_date = _one_company({"sales": 100.0, "operating_profit": 10.0})
    valid = [row["is_stmt_valid"] for row in by_date.values()]
    known = [row["stmt_opm"] is not None for row in by_date.values()]
    assert known == [value == 1.0 for value in valid]
    assert 100 < sum(known) <= fundamentals.STALE_DAYS + 1
    assert not known[-1]


# --- look-ahead --------------------------------------------------------------------------------


def _past_is_unchanged(day: dt.date) -> bool:
    """Whether rewriting, and removing, what became public after a close leaves the past alone."""
    public = pl.col("disclosed_on") < day
    public |= (pl.col("disclosed_on") == day) & (pl.col("disclosed_at") < CLOSE).fill_null(False)
    past = pl.col("date") <= day
    numbers = pl.when(public).then(pl.col(pl.Float64)).otherwise(pl.col(pl.Float64) * -7.0 + 3.0)
    before = TABLE.filter(past)
    rewritten = features_of(PRICES, STATEMENTS.with_columns(numbers)).filter(past)
    removed = features_of(PRICES.filter(past), STATEMENTS.filter(public))
    return before.equals(rewritten) and before.equals(removed)


def _days_with_late_disclosures() -> list[dt.date]:
    dates = set(PRICES["date"])
    late = STATEMENTS.filter(
        pl.col("disclosed_at").fill_null(CLOSE) >= CLOSE, pl.col("period").is_not_null()
    )
    return sorted(day for day in late["disclosed_on"] if day in dates)


def test_rewriting_the_future_leaves_the_past_bit_identical() -> None:
    days = _days_with_late_disclosures()
    assert len(days) > 10
    for day in days[::3]:
        assert _past_is_unchanged(day), day


def test_a_statement_used_on_its_own_day_after_the_close_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fundamentals, "counts_from", lambda on, at: on)
    assert not all(_past_is_unchanged(day) for day in _days_with_late_disclosures()[::3])


def test_a_feature_without_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'stmt_yoy_sales' needs statements.sales.*not there"):
        compute_features(PRICES, LISTINGS, NO_INDEX, FEATURES)
    with pytest.raises(ValueError, match=r"'is_stmt_valid' needs statements.disclosed_on"):
        features_of(PRICES, STATEMENTS.clear(), FEATURES[-1:])
