"""The built-in market: raw tables drawn from a seed, with a known planted signal and known defects.

What belongs here: drawing the market and handing it out as the frames of ``base.MarketSource``.
What does not: cleaning it, adjusting it, or computing features; the pipeline treats this source
like any vendor's.

How a stock moves. Its simple return on a day is

    market drift + beta * market + sector + cluster + own noise + planted drift

where every factor and every noise is Student t with GARCH(1,1) volatility and conditional mean 0.
A cluster is a handful of stocks inside one sector with a factor of their own: the neighbours that
a correlation graph should find. No vendor column names it. Because the noise has mean 0 in simple
returns, and the market drift is the same for every stock, nothing but the planted drift makes one
stock's expected return differ from another's; with ``signal=0`` none does.

What is planted. Let ``own`` be a day's return minus its sector's mean, standardised across the
day's stocks. Each part below is a daily signal, standardised across stocks, which then decays:

    reversal      -own, fast decay: linear in past returns
    momentum      +own, slow decay: linear in past returns
    volume gate   -own * tanh(z(log volume_ratio_20)): returns made on heavy volume reverse, on
                  light volume they continue (after Campbell, Grossman and Wang 1993)
    neighbours    mean ``own`` of the cluster's others: a stock that lags its neighbours catches up
    statement     the surprise of a company statement (``synthetic_statements``), from the day on
                  which it counts as public; slow decay: the drift after earnings announcements
                  (Bernard and Thomas 1989)

The volume gate and the neighbours are made orthogonal to ``own`` on every date, so that no linear
model of a stock's own returns sees them: the volume gate needs an interaction, the neighbours need
a graph. A signal of close t acts on the returns of days t+2, t+3, ...: all of it can still be
earned by who enters at close t+1. Prices do not jump on the day of a statement: nothing but the
drift follows from it.

Sectors move on their own, unless ``sector_links`` plants a tree of links between them, half within
the day and half on the next, and passes on the given share of what a sector's stocks do together:
something for the structure learner to find. Stocks' volatility grows with it. Who enters at close
t+1 earns nothing by them, so the planted return is the same with and without.

What it comes to (300 stocks, 1,200 dates, 5 seeds): the oracle rank IC at 5 days is 0.070, between
0.067 and 0.072 by seed. A linear model of the features correlates with the planted return by 0.6
within a date: it can reach 0.6 of that rank IC, of which 0.06 needs the statements.
Two things to know when judging a model against it. The oracle leaves out feedback: see
``planted_return``. And ``signal=0`` makes *mean* returns equal, which is what a portfolio earns,
but not medians: compounding skews the returns of volatile stocks, so that ranking by low volatility
has a rank IC of about 0.007 at 5 days and 0.015 at 20, with no return to it.
"""

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from atft_model.errors import InputError
from atft_pipeline.schemas import LIMIT_FLAGS
from atft_pipeline.sources.synthetic_flows import draw_flows
from atft_pipeline.sources.synthetic_statements import (
    SURPRISE_DENSITY,
    Company,
    Days,
    draw_disclosures,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HORIZONS = (1, 5, 10, 20)  # trading days
INDEX_NAME = "MARKET"
HOLIDAYS = ((1, 1), (5, 1), (7, 4), (12, 25))  # (month, day); closed where it is a weekday
HALF_DAY = (12, 24)  # (month, day); open where it is a weekday, at HALF_DAY_VOLUME of normal volume
HALF_DAY_VOLUME = 0.35

SECTORS = (
    "Communication", "Consumer Discretionary", "Consumer Staples", "Energy", "Financials",
    "Health Care", "Industrials", "Information Technology", "Materials", "Real Estate", "Utilities",
)  # fmt: skip
MARKETS = ("Prime", "Standard", "Growth")  # by descending market value
MARKET_SHARES = (0.5, 0.3, 0.2)  # of the stocks

WARM_UP = 120  # days simulated before the first date, so that volatility, volume and signals settle
EXECUTION_LAG = 2  # days from a signal's close to the first return it moves; entry lies between
VOLUME_WINDOW = 20  # days of the mean under the volume gate, as in feature volume_ratio_20
CLUSTER_SIZE = 10  # stocks, about: k = 10 nearest neighbours then cover a cluster

# Daily standard deviations (fractions). A stock's total comes to about 2 %, of which the cluster
# factor is large enough for a 60-day correlation to tell members from the rest of the sector.
MARKET_VOLATILITY = 0.008
SECTOR_VOLATILITY = 0.004
CLUSTER_VOLATILITY = 0.011
IDIOSYNCRATIC_VOLATILITY = 0.012
MARKET_DRIFT = 0.0003  # per day, the same for every stock: about 7.5 % a year
DEGREES_OF_FREEDOM = 5.0  # of the Student t shocks: heavy tails with finite variance
SHOCK_LIMIT = 6.0  # standard deviations; shocks are clipped on both sides, which keeps their mean 0
RETURN_LIMIT = 0.5  # a day's return before drift is clipped to +-50 %, again on both sides
GARCH_ALPHA, GARCH_BETA = 0.06, 0.92  # reaction and memory: volatility shocks halve in 34 days
VARIANCE_LIMIT = 9.0  # times the long-run variance, against runaway volatility


@dataclass(frozen=True)
class SignalPart:
    """One planted part.

    Attributes:
        decay: Share of a signal that is left a day later.
        weight: Standard deviation of the drift it plants, in units of DAILY_DRIFT.
        density: Share of stocks and days that a signal of variance 1 comes on; on others it is 0.
    """

    decay: float
    weight: float
    density: float = 1.0


PARTS = {
    "reversal": SignalPart(decay=0.60, weight=0.75),
    "momentum": SignalPart(decay=0.93, weight=0.40),
    "volume_gate": SignalPart(decay=0.50, weight=0.75),
    "neighbours": SignalPart(decay=0.50, weight=0.65),
    "statement": SignalPart(decay=0.95, weight=0.25, density=SURPRISE_DENSITY),
}
DAILY_DRIFT = 0.00105  # fraction per day; sets the oracle rank IC (0.05 to 0.08 at 5 days)

DIRTY_ROWS = {
    "duplicate_key": 6,  # a second row of the same key, equal in all columns
    "conflicting_duplicate": 6,  # a second row of the same key, with its close at the low
    "non_positive_price": 6,  # close 0
    "high_below_low": 6,  # high and low exchanged
    "close_outside_range": 6,  # close 10 % above the high
    "zero_volume": 6,  # a bar that moved on no volume
}  # rows each, under the reason that quarantine gives; none lies on a split's ex-date
SPLIT_FACTORS = (0.5, 0.5, 0.2, 2.0)  # in turn: two 2:1 splits, a 5:1 split, a 1:2 reverse split


@dataclass(frozen=True)
class SyntheticConfig:
    """What market to draw; the same config gives the same tables, bit for bit.

    Raises:
        InputError: If a field is out of its range.
    """

    seed: int = 1337  # any integer >= 0; the project's fixed seed
    stocks: int = 300  # codes over the whole period; enough for 30 stocks per decile
    dates: int = 1200  # trading days; under 5 years, so that the quick preset reads it in seconds
    start: dt.date = dt.date(2015, 1, 5)  # first trading day on or after it opens the calendar
    sectors: int = 11  # 1 to 11 named sectors; few enough that each holds two or three clusters
    markets: int = 3  # 1 to 3 named market segments, by market value
    signal: float = 1.0  # multiplies the planted drift; 0 plants nothing, at all
    sector_links: float = 0.0  # share of a sector's move that those it drives receive; 0: no links
    late_listing_share: float = 0.10  # of the stocks; listed after the first date
    delisting_share: float = 0.08  # of the stocks; delisted before the last date
    split_share: float = 0.04  # of the stocks; one split each, factors from SPLIT_FACTORS
    halt_share: float = 0.03  # of the stocks; one halt of 2 to 5 days each
    unclassified_share: float = 0.02  # of the stocks; the listings give no sector
    dirty_rows: bool = True  # plants DIRTY_ROWS, so that quarantine has work

    def __post_init__(self) -> None:
        limits = {
            "seed": (self.seed, 0, None, "any whole number from 0"),
            "stocks": (self.stocks, 20, 99_999, "20 to 99999 stocks"),
            "dates": (self.dates, 60, 20_000, "60 to 20000 trading days"),
            "sectors": (self.sectors, 1, len(SECTORS), f"1 to {len(SECTORS)} sectors"),
            "markets": (self.markets, 1, len(MARKETS), f"1 to {len(MARKETS)} markets"),
            "signal": (self.signal, 0.0, 5.0, "0 (none) to 5 times the default strength"),
            "sector_links": (self.sector_links, 0.0, 2.0, "0 (none) to 2"),
            "late_listing_share": (self.late_listing_share, 0.0, 0.25, "0 to 0.25"),
            "delisting_share": (self.delisting_share, 0.0, 0.25, "0 to 0.25"),
            "split_share": (self.split_share, 0.0, 0.25, "0 to 0.25"),
            "halt_share": (self.halt_share, 0.0, 0.25, "0 to 0.25"),
            "unclassified_share": (self.unclassified_share, 0.0, 0.25, "0 to 0.25"),
        }
        for field, (value, low, high, allowed) in limits.items():
            # Written so that NaN fails too.
            if not (low <= value and (high is None or value <= high)):
                raise InputError(
                    f"synthetic market: {field} = {value}; expected {allowed}: change {field}"
                )


@dataclass(frozen=True)
class _Stocks:
    """What is fixed over time, one entry per stock; days count from the first warm-up day."""

    codes: npt.NDArray[np.str_]
    sector: Ints
    cluster: Ints
    market: Ints
    unclassified: Bools  # no sector in the listings, though the stock moves with one
    beta: Floats
    first_price: Floats  # currency, at the first warm-up day
    shares: Floats  # outstanding before any split
    market_value: Floats  # currency, at the first warm-up day
    listed_on: list[dt.date]
    first_day: Ints  # first day with a bar
    last_day: Ints  # last day with a bar
    split_day: Ints  # ex-date; -1 where the stock never splits
    split_factor: Floats
    halt_start: Ints  # first halted day; -1 where the stock never halts
    halt_stop: Ints  # first day traded again
    halt_shows_bar: Bools  # True: flat bars with volume 0 while halted; False: no bars


@dataclass(frozen=True)
class _Bars:
    """The clean market, [days, stocks]; prices and volume in units before any split."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    factor_product: Floats  # product of the split factors up to the day: raw = price * product
    factor: Floats
    traded: Bools
    shown: Bools  # the vendor delivers a bar: traded, or halted with flat bars


class SyntheticMarket:
    """The built-in market as a ``MarketSource``; drawn on first use, once per process."""

    name: str = "synthetic"

    def __init__(self, config: SyntheticConfig | None = None) -> None:
        self.config = config or SyntheticConfig()

    def raw_prices(self) -> pl.DataFrame:
        """Unadjusted bars sorted by (code, date), the planted defects of DIRTY_ROWS included.

        A halt shows either as missing days or as flat bars with volume 0 and turnover 0.
        """
        return self._tables.prices

    def raw_listings(self) -> pl.DataFrame:
        """One row per code; ``shares_outstanding`` counts shares before any split.

        ``delisted_on`` is the last trading date, null for stocks that trade on.
        """
        return self._tables.listings

    def raw_indices(self) -> pl.DataFrame:
        """One index, weighted by market value, of the stocks that traded on both days."""
        return self._tables.indices

    def raw_statements(self) -> pl.DataFrame:
        """Disclosures of most stocks, from two fiscal years before the first date on.

        Sorted by (code, disclosed_on) and by time on a day. 30 % come before the close, 65 % after
        it, 5 % without a time. Corrections, forecast revisions and missing items included; the
        stocks without any statement are funds and the like.
        """
        return self._tables.statements

    def raw_investor_flows(self) -> pl.DataFrame:
        """Weeks by market section, published six days after their Friday, some a week later."""
        return self._tables.flows

    def planted_return(self) -> pl.DataFrame:
        """Expectation, known at close t, of close[t+1+h] / close[t+1] - 1 relative to the market.

        It counts what the signals up to close t contribute to the returns of days t+2 to t+1+h.
        Left out: the contributions of signals yet to come. Their conditional mean is small, as a
        coming signal is a function of coming returns, which hold little but noise. It is not 0:
        planted drift moves those returns, and reversal then takes part of it back. Measured over 5
        seeds, realised returns regress on planted ones with slope 0.99 (standard error 0.00) at 1
        day, 0.91 (0.01) at 5, 0.94 (0.02) at 10 and 0.99 (0.02) at 20 days.

        One row per (date, code) of ``raw_prices``, without duplicates; all 0 where ``signal`` is 0.
        """
        return self._tables.planted

    def defects(self) -> pl.DataFrame:
        """Where DIRTY_ROWS were planted: date, code, defect; what quarantine must find.

        Sorted by (code, date), one row per spoiled key (a key with two rows is listed once).

        The flat bars of a halt, also of zero volume, are not listed.
        """
        return self._tables.defects

    def clusters(self) -> pl.DataFrame:
        """The true neighbourhoods, code and cluster: an answer key that no vendor table shows."""
        return self._tables.clusters

    def sector_links(self) -> pl.DataFrame:
        """The planted links between sectors: source, target, lag (days), weight; an answer key."""
        return self._tables.sector_links

    def missing(self) -> dict[str, str]:
        """Nothing: the built-in market has every table."""
        return {}

    @property
    def _tables(self) -> "_Tables":
        return _draw_tables(self.config)


@dataclass(frozen=True)
class _Tables:
    prices: pl.DataFrame
    listings: pl.DataFrame
    indices: pl.DataFrame
    statements: pl.DataFrame
    flows: pl.DataFrame
    planted: pl.DataFrame
    defects: pl.DataFrame
    clusters: pl.DataFrame
    sector_links: pl.DataFrame


@dataclass(frozen=True)
class _SectorLink:
    """One sector's effect on another after ``lag`` days: the share of its move passed on."""

    source: int
    target: int
    lag: int
    weight: float


def trading_calendar(start: dt.date, dates: int) -> list[dt.date]:
    """The first ``dates`` weekdays from ``start`` on that are no holiday."""
    calendar: list[dt.date] = []
    day = start
    while len(calendar) < dates:
        if day.weekday() < 5 and (day.month, day.day) not in HOLIDAYS:
            calendar.append(day)
        day += dt.timedelta(days=1)
    return calendar


@lru_cache(maxsize=1)  # one asset per raw table asks, each with a source of its own
def _draw_tables(config: SyntheticConfig) -> _Tables:
    # One stream per purpose: a change in one part leaves the draws of the others alone, and the
    # noise of a market is the same with and without signal.
    streams = np.random.SeedSequence(config.seed).spawn(9)
    static, noise, activity, intraday, dirt, company, flow, gaps, tree = (
        np.random.default_rng(seed) for seed in streams
    )
    calendar = trading_calendar(config.start, config.dates)
    stocks = _draw_stocks(static, gaps, config, calendar)
    days = WARM_UP + config.dates
    disclosures = draw_disclosures(company, _company(stocks, calendar), _simulated_days(calendar))

    traded = _traded_days(stocks, days)
    links = _draw_sector_links(tree, int(stocks.sector.max()) + 1, config.sector_links)
    base, scale = _draw_base_returns(noise, stocks, days, links)
    volume = _draw_volume(activity, stocks, base / scale, calendar)
    returns, states = _simulate_returns(
        base, volume, traded, stocks, disclosures.surprise, config.signal
    )
    bars = _draw_bars(intraday, stocks, returns, scale, volume, traded)

    prices, defects = _price_frames(dirt, bars, stocks, calendar, config.dirty_rows)
    return _Tables(
        prices=prices,
        listings=_listings_frame(stocks, calendar),
        indices=_index_frame(bars, stocks, calendar),
        statements=disclosures.frame,
        flows=draw_flows(flow, MARKETS[: config.markets], calendar[0], calendar[-1]),
        planted=_planted_frame(states, bars, stocks, calendar, config.signal),
        defects=defects,
        clusters=pl.DataFrame({"code": stocks.codes, "cluster": stocks.cluster}).sort("code"),
        sector_links=pl.DataFrame(
            [(SECTORS[link.source], SECTORS[link.target], link.lag, link.weight) for link in links],
            schema={
                "source": pl.String,
                "target": pl.String,
                "lag": pl.Int32,
                "weight": pl.Float64,
            },
            orient="row",
        ),
    )


def _simulated_days(calendar: list[dt.date]) -> Days:
    """The calendar, after as many earlier weekdays as the market is warmed up for."""
    dates = np.array(calendar, dtype="datetime64[D]")
    return np.concatenate([np.busday_offset(dates[0], np.arange(-WARM_UP, 0)), dates])


def _company(stocks: _Stocks, calendar: list[dt.date]) -> Company:
    days = _simulated_days(calendar)
    return Company(
        codes=stocks.codes,
        market_value=stocks.market_value,
        shares=stocks.shares,
        split_date=np.where(
            stocks.split_day >= 0, days[stocks.split_day], np.datetime64("NaT", "D")
        ),
        split_factor=stocks.split_factor,
        first_date=days[stocks.first_day],
        last_date=days[stocks.last_day],
        is_new=stocks.first_day > 0,
    )


def _draw_stocks(
    rng: np.random.Generator,
    gaps: np.random.Generator,
    config: SyntheticConfig,
    calendar: list[dt.date],
) -> _Stocks:
    count, dates = config.stocks, config.dates
    unclassified = np.zeros(count, np.bool_)
    unclassified[gaps.permutation(count)[: round(config.unclassified_share * count)]] = True
    clusters = max(1, round(count / CLUSTER_SIZE))
    # Codes are dealt out at random, so that the order of codes tells nothing about clusters.
    cluster = rng.permutation(np.arange(count) * clusters // count)
    first_price = np.exp(rng.normal(np.log(1500.0), 0.7, count)).clip(150.0, 20_000.0)
    market_value = np.exp(rng.normal(np.log(1e11), 1.2, count))
    rank = np.argsort(np.argsort(-market_value)) / count
    market = np.searchsorted(np.cumsum(MARKET_SHARES[: config.markets - 1]), rank, side="right")

    # Events fall on different stocks, so that each can be judged alone.
    shares = (
        config.late_listing_share, config.delisting_share, config.split_share, config.halt_share
    )  # fmt: skip
    bounds = np.cumsum([_event_count(share, count) for share in shares])
    late, gone, split, halted, _ = np.split(rng.permutation(count), bounds)

    def days_between(low: float, high: float, size: int) -> Ints:
        """Days drawn evenly between two fractions of the calendar."""
        return WARM_UP + rng.integers(int(low * dates), int(high * dates), size)

    first_day, last_day = np.zeros(count, np.int64), np.full(count, WARM_UP + dates - 1)
    split_day, split_factor = np.full(count, -1), np.ones(count)
    halt_start, halt_stop = np.full(count, -1), np.full(count, -1)
    halt_shows_bar = np.zeros(count, np.bool_)
    first_day[late] = days_between(0.1, 0.6, late.size)
    last_day[gone] = days_between(0.4, 0.95, gone.size)
    split_day[split] = days_between(0.15, 0.85, split.size)
    split_factor[split] = np.resize(SPLIT_FACTORS, split.size)
    halt_start[halted] = days_between(0.2, 0.8, halted.size)
    halt_stop[halted] = halt_start[halted] + rng.integers(2, 6, halted.size)
    halt_shows_bar[halted[::2]] = True

    age = rng.integers(365, 30 * 365, count)
    listed_on = [
        calendar[day - WARM_UP] if day else calendar[0] - dt.timedelta(days=int(days))
        for day, days in zip(first_day, age, strict=True)
    ]
    width = max(4, len(str(count)))
    return _Stocks(
        codes=np.array([f"S{number:0{width}d}" for number in range(1, count + 1)]),
        sector=cluster % config.sectors,
        cluster=cluster,
        market=market,
        unclassified=unclassified,
        beta=rng.normal(1.0, 0.2, count).clip(0.4, 1.6),
        first_price=first_price,
        shares=np.round(market_value / first_price, -3),
        market_value=market_value,
        listed_on=listed_on,
        first_day=first_day,
        last_day=last_day,
        split_day=split_day,
        split_factor=split_factor,
        halt_start=halt_start,
        halt_stop=halt_stop,
        halt_shows_bar=halt_shows_bar,
    )


def _event_count(share: float, count: int) -> int:
    """Stocks that an event happens to: at least 2 (both kinds of halt) unless the share is 0."""
    return max(2, round(share * count)) if share > 0 else 0


def _traded_days(stocks: _Stocks, days: int) -> Bools:
    """[days, stocks]: listed and not halted."""
    day = np.arange(days)[:, None]
    listed = (day >= stocks.first_day) & (day <= stocks.last_day)
    return listed & ~((day >= stocks.halt_start) & (day < stocks.halt_stop))


def _garch(rng: np.random.Generator, days: int, series: int) -> tuple[Floats, Floats]:
    """Noise [days, series] of mean 0 and long-run variance 1, and its standard deviations.

    GARCH(1,1) of Bollerslev (1986) with Student t shocks.
    """
    spread = np.sqrt(DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2.0))
    shocks = rng.standard_t(DEGREES_OF_FREEDOM, (days, series)) / spread
    shocks = shocks.clip(-SHOCK_LIMIT, SHOCK_LIMIT)
    noise, deviation = np.empty_like(shocks), np.empty_like(shocks)
    variance = np.ones(series)
    for day in range(days):
        deviation[day] = np.sqrt(variance)
        noise[day] = deviation[day] * shocks[day]
        news = GARCH_ALPHA * noise[day] ** 2 + GARCH_BETA * variance
        variance = np.minimum(1.0 - GARCH_ALPHA - GARCH_BETA + news, VARIANCE_LIMIT)
    return noise, deviation


def _draw_sector_links(
    rng: np.random.Generator, sectors: int, size: float
) -> tuple[_SectorLink, ...]:
    """A tree: every sector but the first of a random order has one driver, causes first."""
    if not size:
        return ()
    order = rng.permutation(sectors)
    return tuple(
        _SectorLink(
            int(order[rng.integers(place)]), int(order[place]), place % 2,
            size * float(rng.choice([-1.0, 1.0])),
        )
        for place in range(1, sectors)
    )  # fmt: skip


def _from_drivers(moves: Floats, links: tuple[_SectorLink, ...]) -> Floats:
    """What each sector receives from those that drive it, [days, sectors].

    Args:
        moves: Each sector's own. What it received itself is passed on too. On the first days
            nothing comes from the days before.
    """
    received = np.zeros_like(moves)
    for link in links:
        driver = moves[:, link.source] + received[:, link.source]
        driver = np.concatenate([np.zeros(link.lag), driver[: len(driver) - link.lag]])
        received[:, link.target] += link.weight * driver
    return received


def _draw_base_returns(
    rng: np.random.Generator, stocks: _Stocks, days: int, links: tuple[_SectorLink, ...] = ()
) -> tuple[Floats, Floats]:
    """Returns without market drift and signal, and their standard deviations, [days, stocks]."""
    count = len(stocks.codes)
    level = IDIOSYNCRATIC_VOLATILITY * np.exp(rng.normal(0.0, 0.15, count))
    market, market_deviation = _garch(rng, days, 1)
    sector, sector_deviation = _garch(rng, days, int(stocks.sector.max()) + 1)
    cluster, cluster_deviation = _garch(rng, days, int(stocks.cluster.max()) + 1)
    own, own_deviation = _garch(rng, days, count)

    loading = MARKET_VOLATILITY * stocks.beta
    base = (
        loading * market
        + SECTOR_VOLATILITY * sector[:, stocks.sector]
        + CLUSTER_VOLATILITY * cluster[:, stocks.cluster]
        + level * own
    )
    if links:
        together = SECTOR_VOLATILITY * sector + CLUSTER_VOLATILITY * np.column_stack(
            [cluster[:, stocks.cluster[stocks.sector == s]].mean(axis=1)
             for s in range(sector.shape[1])]
        )  # fmt: skip
        base = base + _from_drivers(together, links)[:, stocks.sector]
    variance = (
        (loading * market_deviation) ** 2
        + (SECTOR_VOLATILITY * sector_deviation[:, stocks.sector]) ** 2
        + (CLUSTER_VOLATILITY * cluster_deviation[:, stocks.cluster]) ** 2
        + (level * own_deviation) ** 2
    )
    return base.clip(-RETURN_LIMIT, RETURN_LIMIT), np.sqrt(variance)


def _draw_volume(
    rng: np.random.Generator, stocks: _Stocks, surprise: Floats, calendar: list[dt.date]
) -> Floats:
    """Shares traded, in units before any split, [days, stocks].

    The logarithm is the stock's own level, a slow AR(1), a daily noise, and a response to the size
    of the day's return (``surprise``, in standard deviations).
    """
    days, count = surprise.shape
    level = np.log(0.004 * stocks.shares) + rng.normal(0.0, 0.5, count)  # 0.4 % of shares a day
    news = rng.normal(0.0, 0.22, (days, count))
    slow = np.zeros((days, count))
    for day in range(1, days):
        slow[day] = 0.9 * slow[day - 1] + news[day]
    response = 0.25 * np.abs(surprise).clip(0.0, 4.0)
    volume = np.exp(level + slow + rng.normal(0.0, 0.15, (days, count)) + response)
    half_days = [(day.month, day.day) == HALF_DAY for day in calendar]
    volume[WARM_UP:][half_days] *= HALF_DAY_VOLUME
    return volume


def _simulate_returns(
    base: Floats,
    volume: Floats,
    traded: Bools,
    stocks: _Stocks,
    surprise: Floats,
    strength: float,
) -> tuple[Floats, Floats]:
    """Walks the days: yesterday's signals move today's returns, which make today's signals.

    Returns:
        Simple returns [days, stocks], and per part the decayed sum of its signals up to and
        including each close, [days, parts, stocks].
    """
    days, count = base.shape
    seen = traded.copy()  # a return is seen where both of its closes are
    seen[1:] &= traded[:-1]
    gate = _volume_gate(volume, seen)
    decay = np.array([[part.decay] for part in PARTS.values()])
    loading = strength * _drift_loading()
    returns, states = base + MARKET_DRIFT, np.zeros((days, len(PARTS), count))
    for day in range(1, days):
        if day >= EXECUTION_LAG:
            returns[day] += loading @ states[day - EXECUTION_LAG]
        signals = _daily_signals(returns[day], gate[day], seen[day], stocks)
        states[day] = decay * states[day - 1] + np.vstack([signals, surprise[day]])
    return returns, states


def _drift_loading() -> Floats:
    """Drift of a day per unit of each part's decayed sum; the sum's own spread is divided out."""
    return np.array(
        [
            DAILY_DRIFT * part.weight * np.sqrt((1.0 - part.decay**2) / part.density)
            for part in PARTS.values()
        ]
    )


def _volume_gate(volume: Floats, seen: Bools) -> Floats:
    """tanh of the cross-sectional z-score of log(volume / mean volume of 20 days), in (-1, 1)."""
    total = np.cumsum(volume, axis=0)
    total[VOLUME_WINDOW:] -= total[:-VOLUME_WINDOW].copy()
    length = np.minimum(np.arange(1, len(volume) + 1), VOLUME_WINDOW)[:, None]
    log_ratio = np.log(volume * length / total)
    return np.tanh([_standardise(row, mask) for row, mask in zip(log_ratio, seen, strict=True)])


def _daily_signals(returns: Floats, gate: Floats, seen: Bools, stocks: _Stocks) -> Floats:
    """The day's signals from returns, in the order of PARTS; 0 where no return is seen."""
    own = _standardise(returns - _group_mean(returns, seen, stocks.sector), seen)
    own = _standardise(own / np.sqrt(1.0 + (own / 4.0) ** 2), seen)  # soft limit against outliers
    gated = _standardise(_orthogonal(own * gate, own, seen), seen)
    others = _standardise(_orthogonal(_others_mean(own, seen, stocks.cluster), own, seen), seen)
    return np.stack([-own, own, -gated, others])


def _standardise(values: Floats, seen: Bools) -> Floats:
    """z-score across the seen stocks; 0 for the others, and for all where nothing varies."""
    count = max(int(seen.sum()), 1)
    centred = np.where(seen, values - (values @ seen) / count, 0.0)
    deviation = np.sqrt(centred @ centred / count)
    return centred / deviation if deviation > 1e-12 else np.zeros_like(centred)


def _orthogonal(values: Floats, own: Floats, seen: Bools) -> Floats:
    """Residual of a regression of ``values`` on ``own`` (mean 0) across the seen stocks."""
    centred = np.where(seen, values - (values @ seen) / max(int(seen.sum()), 1), 0.0)
    size = own @ own
    return centred - (centred @ own) / size * own if size > 0 else centred


def _group_mean(values: Floats, seen: Bools, group: Ints) -> Floats:
    """Mean over the seen stocks of each stock's group; 0 where there is none."""
    total = np.bincount(group, weights=np.where(seen, values, 0.0))
    return (total / np.maximum(np.bincount(group, weights=seen), 1.0))[group]


def _others_mean(values: Floats, seen: Bools, group: Ints) -> Floats:
    """Mean over the seen stocks of each stock's group but itself; 0 where there is none."""
    mine = np.where(seen, values, 0.0)
    total = np.bincount(group, weights=mine)[group] - mine
    count = np.bincount(group, weights=seen)[group] - seen
    return total / np.maximum(count, 1.0)


def _draw_bars(
    rng: np.random.Generator,
    stocks: _Stocks,
    returns: Floats,
    scale: Floats,
    volume: Floats,
    traded: Bools,
) -> _Bars:
    """Opens, highs and lows around the closes: an overnight gap, then a Brownian bridge."""
    days, count = returns.shape
    close = stocks.first_price * np.cumprod(1.0 + returns, axis=0)
    previous = np.vstack([stocks.first_price, close[:-1]])
    move = np.log(close / previous)
    night = 0.25  # share of a day's variance that falls between close and open
    gap = night * move + np.sqrt(night * (1 - night)) * scale * rng.standard_normal((days, count))
    rest, variance = move - gap, (1 - night) * scale**2

    def bridge_maximum(end: Floats) -> Floats:
        """Maximum of a Brownian bridge from 0 to ``end``, drawn by inversion."""
        exponential = rng.standard_exponential((days, count))
        return (end + np.sqrt(end**2 + 2.0 * variance * exponential)) / 2.0

    opening = previous * np.exp(gap)
    high = opening * np.exp(bridge_maximum(rest))
    low = opening * np.exp(-bridge_maximum(-rest))

    day = np.arange(days)[:, None]
    factor: Floats = np.where(day == stocks.split_day, stocks.split_factor, 1.0)
    halted = (day >= stocks.halt_start) & (day < stocks.halt_stop)
    flat = halted & stocks.halt_shows_bar
    frozen = close[np.maximum(stocks.halt_start - 1, 0), np.arange(count)]
    return _Bars(
        open=np.where(flat, frozen, opening),
        high=np.where(flat, frozen, high),
        low=np.where(flat, frozen, low),
        close=np.where(flat, frozen, close),
        volume=np.where(flat, 0.0, volume),
        factor_product=np.cumprod(factor, axis=0, dtype=np.float64),
        factor=factor,
        traded=traded,
        shown=traded | flat,
    )


def _price_frames(
    rng: np.random.Generator,
    bars: _Bars,
    stocks: _Stocks,
    calendar: list[dt.date],
    dirty_rows: bool,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The vendor's table, defects included, and the list of defects."""
    shown = bars.shown[WARM_UP:].T  # code-major, as the table is sorted

    def cells(values: Floats) -> Floats:
        return values[WARM_UP:].T[shown]

    product = cells(bars.factor_product)
    price = {
        column: np.round(cells(values) * product, 2)  # two decimals, as vendors quote
        for column, values in zip(
            ("open", "high", "low", "close"),
            (bars.open, bars.high, bars.low, bars.close),
            strict=True,
        )
    }
    volume = np.round(cells(bars.volume) / product)
    typical = (price["open"] + price["high"] + price["low"] + price["close"]) / 4.0
    frame = _keys(shown, stocks, calendar).with_columns(
        **{column: pl.Series(values) for column, values in price.items()},
        volume=pl.Series(volume),
        turnover=pl.Series(np.round(volume * typical)),
        adjustment_factor=pl.Series(cells(bars.factor)),
        **dict.fromkeys(LIMIT_FLAGS, pl.lit(None, pl.Boolean)),  # this market has no price limits
    )
    return _with_defects(rng, frame, dirty_rows)


def _keys(shown: Bools, stocks: _Stocks, calendar: list[dt.date]) -> pl.DataFrame:
    """(date, code) of the True cells of ``shown``, [stocks, dates], sorted by (code, date)."""
    stock, day = np.nonzero(shown)
    dates = np.array(calendar, dtype="datetime64[D]")
    return pl.DataFrame(
        {"date": pl.Series(dates).gather(day), "code": pl.Series(stocks.codes).gather(stock)}
    )


def _with_defects(
    rng: np.random.Generator, frame: pl.DataFrame, dirty_rows: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Spoils the rows of DIRTY_ROWS, each in another row of a plain traded bar."""
    plain = (frame["volume"] > 0) & (frame["adjustment_factor"] == 1.0)
    plain &= (frame["high"] > frame["low"]) & (frame["close"] > frame["low"])
    counts = DIRTY_ROWS if dirty_rows else dict.fromkeys(DIRTY_ROWS, 0)
    rows = rng.choice(np.flatnonzero(plain.to_numpy()), sum(counts.values()), replace=False)
    names = np.repeat(np.array(list(counts)), list(counts.values()))
    defects = pl.DataFrame({"row": rows, "defect": names}, schema={"row": pl.Int64, "defect": str})

    def is_(name: str) -> pl.Expr:
        return pl.col("defect").eq_missing(name)

    marked = frame.with_row_index("row").cast({"row": pl.Int64}).join(
        defects, on="row", how="left", maintain_order="left"
    )  # fmt: skip
    copies = marked.filter(is_("duplicate_key") | is_("conflicting_duplicate")).with_columns(
        close=pl.when(is_("conflicting_duplicate")).then("low").otherwise("close")
    )
    spoiled = marked.with_columns(
        high=pl.when(is_("high_below_low")).then("low").otherwise("high"),
        low=pl.when(is_("high_below_low")).then("high").otherwise("low"),
        close=pl.when(is_("non_positive_price"))
        .then(0.0)
        .when(is_("close_outside_range"))
        .then((pl.col("high") * 1.1).round(2))
        .otherwise("close"),
        volume=pl.when(is_("zero_volume")).then(0.0).otherwise("volume"),
        turnover=pl.when(is_("zero_volume")).then(0.0).otherwise("turnover"),
    )
    # The vendor's first delivery stands before its copy.
    dirty = pl.concat([spoiled, copies]).sort("row", maintain_order=True)
    listed = marked.filter(pl.col("defect").is_not_null()).select("date", "code", "defect")
    return dirty.select(frame.columns), listed


def _listings_frame(stocks: _Stocks, calendar: list[dt.date]) -> pl.DataFrame:
    last = WARM_UP + len(calendar) - 1
    gone = [calendar[day - WARM_UP] if day < last else None for day in stocks.last_day.tolist()]
    return pl.DataFrame(
        {
            "code": stocks.codes,
            "name": [f"Company {code[1:]}" for code in stocks.codes.tolist()],
            "sector": [
                None if unknown else SECTORS[number]
                for number, unknown in zip(stocks.sector, stocks.unclassified, strict=True)
            ],
            "market": [MARKETS[number] for number in stocks.market],
            "listed_on": stocks.listed_on,
            "delisted_on": pl.Series(gone, dtype=pl.Date),
            "shares_outstanding": stocks.shares,
        }
    ).sort("code")


def _index_frame(bars: _Bars, stocks: _Stocks, calendar: list[dt.date]) -> pl.DataFrame:
    value = bars.close * stocks.shares
    both = bars.traded[1:] & bars.traded[:-1]
    growth = np.where(both, value[1:], 0.0).sum(1) / np.where(both, value[:-1], 0.0).sum(1)
    level = np.cumprod(growth[WARM_UP:])  # growth[WARM_UP] leads from the first date to the second
    return pl.DataFrame(
        {
            "date": calendar,
            "index": [INDEX_NAME] * len(calendar),
            "close": np.round(1000.0 * np.concatenate([[1.0], level]), 4),
        }
    )


def _planted_frame(
    states: Floats, bars: _Bars, stocks: _Stocks, calendar: list[dt.date], strength: float
) -> pl.DataFrame:
    shown = bars.shown[WARM_UP:].T
    loading = strength * _drift_loading()
    decay = np.array([part.decay for part in PARTS.values()])
    planted: dict[str, Floats] = {}
    for horizon in HORIZONS:
        # Sum of decay**j for j = 0 .. horizon - 1: the days t+2 .. t+1+horizon.
        days = (1.0 - decay**horizon) / (1.0 - decay)
        expected = np.einsum("p,dps->ds", loading * days, states[WARM_UP:])
        planted[f"target_{horizon}d"] = expected.T[shown]
    return _keys(shown, stocks, calendar).with_columns(
        **{column: pl.Series(values) for column, values in planted.items()}
    )
