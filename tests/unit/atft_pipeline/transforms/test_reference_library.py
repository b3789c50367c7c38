"""The standard indicators against TA-Lib, where it defines them the same way.

Exponential ones start differently (TA-Lib on the mean of the first bars, ours on the first bar), so
they are compared once both have forgotten their start.
"""

import datetime as dt

import numpy as np
import polars as pl
import pytest
import talib

from atft_pipeline.feature_registry import REGISTRY
from atft_pipeline.transforms.features import compute_features

BARS = 1500
START = 1200  # (1 - 2/201)**1200, the slowest memory, is below 1e-5


def _market() -> tuple[pl.DataFrame, pl.DataFrame]:
    """One stock and an index, random walks."""
    rng = np.random.default_rng(5)
    dates = [dt.date(2015, 1, 1) + dt.timedelta(days=day) for day in range(BARS)]
    common = rng.normal(0.0, 0.01, BARS)
    close = 100.0 * np.exp(np.cumsum(0.8 * common + rng.normal(0.0, 0.015, BARS)))
    high = close * (1.0 + 0.02 * rng.random(BARS))
    low = close * (1.0 - 0.02 * rng.random(BARS))
    volume = rng.uniform(1e5, 5e6, BARS)
    prices = pl.DataFrame(
        {"date": dates, "code": ["A"] * BARS, "open": low, "high": high, "low": low,
         "close": close, "volume": volume, "turnover": volume * close, "raw_close": close}
    )  # fmt: skip
    index = pl.DataFrame(
        {"date": dates, "index": ["M"] * BARS, "close": 1000.0 * np.exp(np.cumsum(common))}
    )
    return prices, index


PRICES, INDEX = _market()
LISTINGS = pl.DataFrame({"code": ["A"], "sector": ["x"], "shares_outstanding": [1e9]})
CLOSE, HIGH, LOW = (PRICES[name].to_numpy() for name in ("close", "high", "low"))
VOLUME, LEVEL = PRICES["volume"].to_numpy(), INDEX["close"].to_numpy()
RETURN, MARKET_RETURN = talib.ROCP(CLOSE, 1), talib.ROCP(LEVEL, 1)


def _sample_std(values: np.ndarray, bars: int) -> np.ndarray:
    return talib.STDDEV(values, bars) * np.sqrt(bars / (bars - 1))


def _bands(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position within, and width of, the bands of 20 bars and two standard deviations."""
    upper, middle, lower = talib.BBANDS(values, 20, 2.0, 2.0)
    return (values - lower) / (upper - lower), (upper - lower) / middle


EXACT = {
    **{f"returns_{n}d": talib.ROCP(CLOSE, n) for n in (1, 5, 10, 20)},
    **{f"volatility_{n}d": _sample_std(RETURN, n) for n in (5, 10, 20, 60)},
    **{f"price_to_sma{n}": CLOSE / talib.SMA(CLOSE, n) - 1 for n in (5, 20, 60)},
    "ma_gap_5_20": talib.SMA(CLOSE, 5) / talib.SMA(CLOSE, 20) - 1,
    "bb_position": _bands(CLOSE)[0],
    "bb_width": _bands(CLOSE)[1],
    **{f"volume_ratio_{n}": VOLUME / talib.SMA(VOLUME, n) for n in (5, 20)},
    "stoch_k": talib.STOCHF(HIGH, LOW, CLOSE, 14, 1)[0],
    "beta_60d": talib.BETA(LEVEL, CLOSE, 60),
    "idio_vol_ratio": np.sqrt(1 - talib.CORREL(RETURN[1:], MARKET_RETURN[1:], 60) ** 2),
    "mkt_vol_20d": _sample_std(MARKET_RETURN, 20),
    "mkt_bb_pct_b": _bands(LEVEL)[0],
    "mkt_bb_bw": _bands(LEVEL)[1],
}
RECURSIVE = {
    **{f"ema_{n}": talib.EMA(CLOSE, n) / CLOSE - 1 for n in (5, 20, 200)},
    **{f"rsi_{n}": talib.RSI(CLOSE, n) for n in (2, 14)},
    "macd_histogram": talib.MACD(CLOSE)[2] / CLOSE,
    "mkt_ema20_slope_3": talib.ROCP(talib.EMA(LEVEL, 20), 3),
}


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    wanted = [feature for feature in REGISTRY if feature.name in EXACT | RECURSIVE]
    assert len(wanted) == len(EXACT | RECURSIVE)
    return compute_features(PRICES, LISTINGS, INDEX, wanted)


def _known(values: np.ndarray, start: int) -> np.ndarray:
    """The last values, those of the bars from ``start`` on."""
    return values[start - BARS :]


@pytest.mark.parametrize("name", EXACT)
def test_windowed_indicators_are_the_librarys(table: pl.DataFrame, name: str) -> None:
    ours, theirs = table[name].to_numpy(), _known(EXACT[name], 130)
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours[130:], theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", RECURSIVE)
def test_recursive_indicators_become_the_librarys(table: pl.DataFrame, name: str) -> None:
    ours, theirs = table[name].to_numpy(), _known(RECURSIVE[name], START)
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours[START:], theirs, rtol=2e-5, atol=2e-6)
