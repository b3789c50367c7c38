"""Every feature against a plain loop over one stock's bars, and no feature sees the future."""

import datetime as dt
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl
import pytest

from atft_model.errors import InputError
from atft_pipeline.feature_registry import REGISTRY as CONTRACT
from atft_pipeline.transforms.features import Feature, Step, compute_features

REGISTRY = [
    feature
    for feature in CONTRACT
    if not any(need.startswith(("statements", "investor_flows")) for need in feature.needs)
]
"""Those of bars, listings and indices; test_fundamentals and test_flows have the others."""

DAYS = 300
SECTORS = {0: "A", 1: "A", 2: "A", 3: "A", 4: "A", 5: "B", 6: "B", 7: "B", 8: "B", 9: "B", 10: "C"}
"""Stock 11 has no sector; sector C is too small; B is too small until its late listing."""

LATE, GAP, GONE, FLAT_START, FLAT_LATER = 9, 3, 6, 1, 10

NO_INDEX = pl.DataFrame(schema={"date": pl.Date, "index": pl.String, "close": pl.Float64})


def _trades(stock: int, day: int) -> bool:
    if stock == LATE and day < 80:
        return False
    if stock == GAP and 150 <= day < 157:
        return False
    return not (stock == GONE and day >= 260)


def _market() -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = random.Random(7)
    calendar = [dt.date(2020, 1, 1) + dt.timedelta(days=day) for day in range(DAYS)]
    close = [50.0 * (stock + 1) for stock in range(12)]
    rows = []
    for day, date in enumerate(calendar):
        common = rng.gauss(0.0005, 0.01)
        for stock in range(12):
            move = (0.5 + stock / 10) * common + rng.gauss(0.0, 0.015)
            flat = (stock == FLAT_START and day < 40) or (stock == FLAT_LATER and 200 <= day < 230)
            close[stock] *= 1.0 if flat else math.exp(move)
            high = close[stock] * (1.0 if flat else 1.0 + rng.random() * 0.02)
            low = close[stock] * (1.0 if flat else 1.0 - rng.random() * 0.02)
            volume = float(rng.randint(100_000, 5_000_000))
            raw_close = close[stock] * (2.0 if day < 100 else 1.0)
            turnover = volume * close[stock]
            if _trades(stock, day):
                bar = (date, f"S{stock:02}", low, high, low, close[stock], volume)
                rows.append((*bar, turnover, raw_close))
    names = ["date", "code", "open", "high", "low", "close", "volume", "turnover", "raw_close"]
    prices = pl.DataFrame(rows, schema=names, orient="row")
    listings = pl.DataFrame(
        {
            "code": [f"S{stock:02}" for stock in range(12)],
            "sector": [SECTORS.get(stock) for stock in range(12)],
            "shares_outstanding": [None if stock == 0 else 1e8 * stock for stock in range(12)],
        }
    )
    return prices, listings


# --- the plain implementation: lists, loops, None where unknown ---

Series = list[float | None]


def _window(x: Series, t: int, n: int) -> list[float] | None:
    if t - n + 1 < 0:
        return None
    values = x[t - n + 1 : t + 1]
    return None if any(value is None for value in values) else values  # type: ignore[return-value]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float], ddof: int = 1) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - ddof))


def _returns(x: Series, n: int) -> Series:
    return [None if t < n else x[t] / x[t - n] - 1 for t in range(len(x))]  # type: ignore


def _rolled(x: Series, n: int, f: Callable[[list[float]], float | None]) -> Series:
    windows = [_window(x, t, n) for t in range(len(x))]
    return [None if w is None else f(w) for w in windows]


def _year(x: Series, f: Callable[[list[float]], float | None]) -> Series:
    """Over the last 252 entries, from 60 known ones."""
    out: Series = []
    for t in range(len(x)):
        known = [v for v in x[max(0, t - 251) : t + 1] if v is not None]
        out.append(None if len(known) < 60 or x[t] is None else f(known))
    return out


def _zip(f: Callable[..., float | None], *series: Series) -> Series:
    return [None if any(v is None for v in row) else f(*row) for row in zip(*series, strict=True)]


def _ema(x: Series, span: int, alpha: float | None = None, first: int | None = None) -> Series:
    a = 2 / (span + 1) if alpha is None else alpha
    out: Series = []
    state: float | None = None
    seen = 0
    for v in x:
        if v is not None:
            state = v if state is None else a * v + (1 - a) * state
            seen += 1
        out.append(state if v is not None and seen >= (first or span) else None)
    return out


def _sma_ratio(x: Series, n: int) -> Series:
    return _zip(lambda p, m: p / m - 1, x, _rolled(x, n, _mean))


def _gap(x: Series) -> Series:
    return _zip(lambda f, s: f / s - 1, _rolled(x, 5, _mean), _rolled(x, 20, _mean))


def _percent_b(x: Series) -> Series:
    def position(w: list[float]) -> float | None:
        if max(w) == min(w):
            return None
        low, high = _mean(w) - 2 * _std(w, 0), _mean(w) + 2 * _std(w, 0)
        return (w[-1] - low) / (high - low)

    return _rolled(x, 20, position)


def _bandwidth(x: Series) -> Series:
    return _rolled(x, 20, lambda w: 4 * _std(w, 0) / _mean(w))


def _rsi(x: Series, n: int) -> Series:
    change: Series = [None, *(b - a for a, b in itertools.pairwise(x))]  # type: ignore
    gain = _ema([None if c is None else max(c, 0.0) for c in change], n, 1 / n)
    loss = _ema([None if c is None else max(-c, 0.0) for c in change], n, 1 / n)
    return _zip(lambda g, k: 100 * g / (g + k) if g + k > 0 else None, gain, loss)


def _macd(x: Series) -> Series:
    macd = _zip(lambda a, b: a - b, _ema(x, 12), _ema(x, 26))
    return _zip(lambda m, s, p: (m - s) / p, macd, _ema(macd, 9), x)


def _stochastic(high: Series, low: Series, close: Series) -> Series:
    top, bottom = _rolled(high, 14, max), _rolled(low, 14, min)
    return _zip(lambda c, h, k: 100 * (c - k) / (h - k) if h > k else None, close, top, bottom)


def _pairs(r: Series, m: Series, f: Callable[[list[float], list[float]], float]) -> Series:
    out: Series = []
    for t in range(len(r)):
        own, market = _window(r, t, 60), _window(m, t, 60)
        out.append(None if own is None or market is None else f(own, market))
    return out


def _beta(own: list[float], market: list[float]) -> float:
    a, b = _mean(own), _mean(market)
    covariance = math.fsum((x - a) * (y - b) for x, y in zip(own, market, strict=True))
    return covariance / math.fsum((y - b) ** 2 for y in market)


def _residual_share(own: list[float], market: list[float]) -> float:
    """From the residuals of the regression, not from the correlation."""
    slope = _beta(own, market)
    residual = [x - slope * y for x, y in zip(own, market, strict=True)]
    return _std(residual) / _std(own)


def _series_features(level: Series, r: Series) -> dict[str, Series]:
    """Of the market's date series."""
    vol = _rolled(r, 20, _std)
    ema20 = _ema(level, 20)
    high_vol = _zip(
        lambda v, m, s: float(v > m + s),
        vol,
        _year(vol, _mean),
        _year(vol, _std),
    )
    return {
        "mkt_ret_1d": _returns(level, 1),
        "mkt_ret_5d": _returns(level, 5),
        "mkt_ret_10d": _returns(level, 10),
        "mkt_ret_20d": _returns(level, 20),
        "mkt_gap_5_20": _gap(level),
        "mkt_vol_20d": vol,
        "mkt_bull_200": _zip(lambda x, m: float(x > m), level, _rolled(level, 200, _mean)),
        "mkt_high_vol": high_vol,
        "mkt_ret_1d_z": _zip(lambda x, m, s: (x - m) / s, r, _year(r, _mean), _year(r, _std)),
        "mkt_dd_from_peak": _zip(lambda x, p: x / p - 1, level, _year(level, max)),
        "mkt_bb_bw": _bandwidth(level),
        "mkt_bb_pct_b": _percent_b(level),
        "mkt_ema20_slope_3": [
            None if t < 3 or ema20[t - 3] is None else ema20[t] / ema20[t - 3] - 1  # type: ignore
            for t in range(len(level))
        ],
    }


def _sector_features(level: Series, r: Series, members: list[int]) -> dict[str, Series]:
    vol = _rolled(r, 20, _std)
    vol_z = _zip(lambda x, m, s: (x - m) / s, vol, _year(vol, _mean), _year(vol, _std))
    features = {
        "sec_mom_20": _returns(level, 20),
        "sec_ret_5d_eq": _returns(level, 5),
        "sec_vol_20_z": vol_z,
        "sec_gap_5_20": _gap(level),
    }
    return {
        name: [v if n >= 5 else None for v, n in zip(x, members, strict=True)]
        for name, x in features.items()
    }


def _stock_features(
    bars: dict[str, Series],
    market: dict[str, Series],
    sector: dict[str, Series],
    shares: float | None,
) -> dict[str, Series]:
    """Of one stock; ``market`` and ``sector`` already stand on the stock's own dates."""
    c, h, k, v = bars["close"], bars["high"], bars["low"], bars["volume"]
    r = _returns(c, 1)
    m = market["mkt_ret_1d"]
    beta = _pairs(r, m, _beta)
    log_range = _zip(lambda a, b: math.log(a / b) ** 2, h, k)
    members = sector["members"]
    traded = _zip(lambda t, p: t / p, bars["turnover"], bars["raw_close"])
    return {
        **{f"returns_{n}d": _returns(c, n) for n in (1, 5, 10, 20)},
        "log_returns_1d": _zip(lambda x: math.log(1 + x), r),
        **{f"volatility_{n}d": _rolled(r, n, _std) for n in (5, 10, 20, 60)},
        **{f"ema_{n}": _zip(lambda e, p: e / p - 1, _ema(c, n), c) for n in (5, 20, 200)},
        **{f"price_to_sma{n}": _sma_ratio(c, n) for n in (5, 20, 60)},
        "ma_gap_5_20": _gap(c),
        "bb_position": _percent_b(c),
        "bb_width": _bandwidth(c),
        **{f"volume_ratio_{n}": _rolled(v, n, lambda w: w[-1] / _mean(w)) for n in (5, 20)},
        "turnover_rate": [None if shares is None else x / shares for x in traded],  # type: ignore
        "beta_60d": beta,
        "alpha_1d": _zip(lambda x, b, y: x - b * y, r, beta, m),
        "alpha_5d": _zip(lambda x, b, y: x - b * y, _returns(c, 5), beta, market["mkt_ret_5d"]),
        "rel_strength_5d": _zip(lambda x, y: x - y, _returns(c, 5), market["mkt_ret_5d"]),
        "idio_vol_ratio": _pairs(r, m, _residual_share),
        "beta_stability_60d": _rolled(beta, 60, lambda w: 1 / (1 + _std(w))),
        "trend_align_mkt": _zip(
            lambda a, b: float(abs(a) > 1e-9 and abs(b) > 1e-9 and (a > 0) == (b > 0)),
            _gap(c),
            market["mkt_gap_5_20"],
        ),
        "close_to_high": _zip(lambda a, b: a / b - 1, c, h),
        "close_to_low": _zip(lambda a, b: a / b - 1, c, k),
        "realized_volatility": _rolled(
            log_range, 20, lambda w: math.sqrt(_mean(w) / (4 * math.log(2)))
        ),
        "rsi_2": _rsi(c, 2),
        "rsi_14": _rsi(c, 14),
        "macd_histogram": _macd(c),
        "stoch_k": _stochastic(h, k, c),
        "alpha_vs_sec_1d": _zip(
            lambda x, y, n: x - y if n >= 5 else None, r, sector["return"], members
        ),
        "is_valid_ma": [float(t >= 199) for t in range(len(c))],
        "is_sec_cs_valid": [float((n or 0) >= 5) for n in members],
    }


@dataclass
class _Group:
    """An equally weighted mean of stocks, by date."""

    dates: list[dt.date]
    members: list[int]
    returns: Series
    level: Series


def _equal_weighted(stocks: dict[str, pl.DataFrame], codes: list[str]) -> _Group:
    by_date: dict[dt.date, list[float | None]] = {}
    for code in codes:
        own = _returns(stocks[code]["close"].to_list(), 1)
        for date, value in zip(stocks[code]["date"], own, strict=True):
            by_date.setdefault(date, []).append(value)
    dates = sorted(by_date)
    group = _Group(dates, [len(by_date[date]) for date in dates], [], [])
    worth = 1.0
    for date in dates:
        known = [value for value in by_date[date] if value is not None]
        group.returns.append(_mean(known) if known else None)
        worth *= 1 + (group.returns[-1] or 0.0)
        group.level.append(worth)
    return group


def _on(dates: list[dt.date], group: _Group, series: Series) -> Series:
    known = dict(zip(group.dates, series, strict=True))
    return [known.get(date) for date in dates]


def _plain_features(prices: pl.DataFrame, listings: pl.DataFrame) -> dict[str, dict[str, Series]]:
    """By code and feature name."""
    stocks = {code: prices.filter(pl.col("code") == code).sort("date") for code in listings["code"]}
    sector_of = dict(zip(listings["code"], listings["sector"], strict=True))
    shares_of = dict(zip(listings["code"], listings["shares_outstanding"], strict=True))
    market = _equal_weighted(stocks, list(stocks))
    market_features = _series_features(market.level, market.returns)
    sectors = {
        name: _equal_weighted(stocks, [code for code in stocks if sector_of[code] == name])
        for name in sorted({name for name in sector_of.values() if name})
    }
    out: dict[str, dict[str, Series]] = {}
    for code, frame in stocks.items():
        dates = frame["date"].to_list()
        on_market = {name: _on(dates, market, x) for name, x in market_features.items()}
        sector = sectors.get(sector_of[code])
        empty: Series = [None] * len(dates)
        sector_columns: dict[str, Series] = {"return": empty, "members": empty}
        on_sector = {name: empty for name in _sector_features([], [], [])}
        if sector is not None:
            of_sector = _sector_features(sector.level, sector.returns, sector.members)
            on_sector = {name: _on(dates, sector, x) for name, x in of_sector.items()}
            sector_columns = {
                "return": _on(dates, sector, sector.returns),
                "members": _on(dates, sector, list(sector.members)),
            }
        bars = {name: frame[name].to_list() for name in frame.columns[2:]}
        own = _stock_features(bars, on_market, sector_columns, shares_of[code])
        out[code] = own | on_market | on_sector
    return out


MARKET, LISTINGS = _market()
TABLE = compute_features(
    MARKET.sample(fraction=1.0, shuffle=True, seed=1), LISTINGS, NO_INDEX, REGISTRY
)
PLAIN = _plain_features(MARKET, LISTINGS)


def _assert_same(found: pl.Series, expected: Series) -> int:
    """Equal to float32 precision, null in the same places; how many values are known."""
    assert found.len() == len(expected)
    for t, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert (got is None) == (want is None), f"bar {t}: {got} for {want}"
        if want is not None:
            assert got == pytest.approx(want, rel=1e-5, abs=1e-6), f"bar {t}"
    return found.len() - found.null_count()


@pytest.mark.parametrize("name", [feature.name for feature in REGISTRY])
def test_feature_matches_plain_loop(name: str) -> None:
    known = sum(
        _assert_same(TABLE.filter(pl.col("code") == code)[name], PLAIN[code][name])
        for code in LISTINGS["code"]
    )
    assert known > 100


@pytest.mark.parametrize("feature", REGISTRY, ids=lambda feature: feature.name)
def test_first_value_needs_no_more_bars_than_the_lookback_says(feature: Feature) -> None:
    first_bars = TABLE.filter(pl.col("code") == "S02")[feature.name].is_not_null().arg_max()
    assert first_bars is not None
    assert first_bars < feature.lookback


def test_table_has_one_sorted_row_per_price_and_registry_order() -> None:
    assert TABLE.columns == ["date", "code", *(feature.name for feature in REGISTRY)]
    assert TABLE.select("date", "code").equals(MARKET.sort("code", "date").select("date", "code"))
    assert set(TABLE.dtypes[2:]) == {pl.Float32}
    values = TABLE.drop("date", "code")
    assert all(values[name].drop_nulls().is_finite().all() for name in values.columns)


def test_columns_follow_the_features_asked_for() -> None:
    chosen = [REGISTRY[20], REGISTRY[3], REGISTRY[30]]
    table = compute_features(MARKET, LISTINGS, NO_INDEX, chosen)
    assert table.columns == ["date", "code", *(feature.name for feature in chosen)]
    assert table.equals(TABLE.select(table.columns))


def _index(seed: int, days: int = DAYS) -> pl.DataFrame:
    rng = random.Random(seed)
    dates = sorted(set(MARKET["date"]))[:days]
    closes = [1000 * math.exp(0.01 * rng.gauss(0, 1)) for _ in dates]
    return pl.DataFrame({"date": dates, "index": ["TOPIX"] * len(dates), "close": closes})


def _future_rewritten(frame: pl.DataFrame, after: dt.date, seed: int) -> pl.DataFrame:
    future = pl.col("date") > after
    noise = pl.Series([random.Random(seed + i).uniform(0.2, 5.0) for i in range(frame.height)])
    return frame.with_columns(
        pl.when(future).then(pl.col(pl.Float64) * noise).otherwise(pl.col(pl.Float64))
    )


def _past_is_unchanged(features: Sequence[Feature], indices: pl.DataFrame, day: int) -> bool:
    """Whether rewriting, and removing, all data after a day leaves every earlier bit alone."""
    cut = sorted(set(MARKET["date"]))[day]
    past = pl.col("date") <= cut
    before = compute_features(MARKET, LISTINGS, indices, features).filter(past)
    rewritten = compute_features(
        _future_rewritten(MARKET, cut, seed=day),
        LISTINGS,
        _future_rewritten(indices, cut, seed=-day),
        features,
    ).filter(past)
    removed = compute_features(MARKET.filter(past), LISTINGS, indices.filter(past), features)
    return before.equals(rewritten) and before.equals(removed)


@pytest.mark.parametrize("day", [79, 155, 262])
@pytest.mark.parametrize("indices", [NO_INDEX, _index(3)], ids=["derived", "index"])
def test_rewriting_the_future_leaves_the_past_bit_identical(
    day: int, indices: pl.DataFrame
) -> None:
    assert _past_is_unchanged(REGISTRY, indices, day)


@pytest.mark.parametrize(
    ("scope", "leak"),
    [
        ("stock", pl.col("close") / pl.col("close").max()),
        ("stock", pl.col("close").rolling_mean(5, center=True)),
        ("market", pl.col("level") / pl.col("level").max()),
        ("sector", pl.col("return_1d") - pl.col("return_1d").mean()),
    ],
)
def test_a_planted_leak_is_seen(scope: str, leak: pl.Expr) -> None:
    leaking = replace(REGISTRY[0], scope=scope, normalizer="time_series", expression=leak)
    assert not _past_is_unchanged([leaking], NO_INDEX, 155)


def test_market_features_follow_the_index_where_there_is_one() -> None:
    indices = _index(5)
    table = compute_features(MARKET, LISTINGS, indices, REGISTRY)
    closes = indices["close"].to_list()
    plain = _series_features(closes, _returns(closes, 1))
    one_stock = table.filter(pl.col("code") == "S00")
    for name, expected in plain.items():
        assert _assert_same(one_stock[name], expected) > 90, name


def test_a_date_without_index_value_is_null_and_no_other() -> None:
    whole = _index(5)
    dates = whole["date"]
    holed = whole.filter(pl.col("date") != dates[100])
    market_return = [feature for feature in REGISTRY if feature.name == "mkt_ret_1d"]
    table = compute_features(MARKET, LISTINGS, holed, market_return)
    unknown = table.filter(pl.col("mkt_ret_1d").is_null())["date"].unique().sort().to_list()
    assert unknown == [dates[0], dates[100]]


def test_zero_volume_gives_null_not_infinity() -> None:
    silent = MARKET.with_columns(volume=pl.lit(0.0))
    ratios = [feature for feature in REGISTRY if feature.name.startswith("volume_ratio")]
    table = compute_features(silent, LISTINGS, NO_INDEX, ratios)
    assert table["volume_ratio_5"].null_count() == table.height


def test_a_value_too_large_for_float32_is_null() -> None:
    huge = replace(REGISTRY[0], expression=pl.col("close") * 1e300)
    table = compute_features(MARKET, LISTINGS, NO_INDEX, [huge])
    assert table["returns_1d"].null_count() == table.height


def test_a_code_without_listing_has_no_sector_features() -> None:
    table = compute_features(
        MARKET, LISTINGS.filter(pl.col("code") != "S02"), NO_INDEX, REGISTRY
    ).filter(pl.col("code") == "S02")
    assert table["sec_mom_20"].null_count() == table.height
    assert table["is_sec_cs_valid"].to_list() == [0.0] * table.height
    assert table["returns_1d"].null_count() == 1


def test_duplicate_keys_are_refused() -> None:
    with pytest.raises(InputError, match=r"^prices: 2 rows share their \(date, code\).*2020-01-01"):
        compute_features(pl.concat([MARKET, MARKET[:1]]), LISTINGS, NO_INDEX, REGISTRY)
    with pytest.raises(InputError, match=r"^listings: 2 rows share their \(code\).*S03"):
        compute_features(MARKET, pl.concat([LISTINGS, LISTINGS[3:4]]), NO_INDEX, REGISTRY)


def _reading(*steps: Step) -> Feature:
    return Feature("x", "x", "price", "stock", (), 1, "none", steps[0].column, steps)


def test_a_step_may_read_one_that_stands_after_it() -> None:
    twice = Step("twice", 2.0 * pl.col("close"))
    more = Step("more", twice.column + 1.0)
    prices, listings = _market()
    table = compute_features(prices, listings, _index(1), [_reading(more, twice)])
    close = prices.sort("code", "date")["close"]
    assert table["x"].to_list() == (2.0 * close + 1.0).cast(pl.Float32).to_list()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((Step("a", pl.col("b") + 1), Step("b", pl.col("a") + 1)), "steps a, b read each other"),
        ((Step("a", pl.col("close")), Step("a", pl.col("open"))), "its step 'a' is another one"),
    ],
)
def test_steps_that_cannot_be_worked_out_are_refused(steps: tuple[Step, ...], message: str) -> None:
    prices, listings = _market()
    with pytest.raises(ValueError, match=message):
        compute_features(prices, listings, _index(1), [_reading(*steps)])
