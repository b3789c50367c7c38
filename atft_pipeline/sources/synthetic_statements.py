"""The built-in market's company statements: what each company discloses, and when.

A company plans each fiscal year: a forecast of sales, operating and net profit for the year. Every
report (1Q, 2Q, 3Q) and now and then a revision between reports brings one surprise, a standard
normal number that moves the year's forecast of operating profit by ``REVISION`` times its size; the
full-year report lands on the last forecast, moved once more. So the surprise can be read off the
table: as the revision of a forecast, as full-year profit over the last forecast, and in growth.
``synthetic`` plants a drift after it; with ``signal=0`` the same statements foretell nothing.

As vendors deliver them, the rows have corrections (later, other figures, the same period), missing
items, companies that give no forecast or no operating profit, and stocks without any statement.
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Days = npt.NDArray[np.datetime64]

CLOSE = dt.time(15, 0)  # exchange-local; from it on a disclosure counts for the next trading day
HISTORY_YEARS = 2  # fiscal years before the first date, so that growth is known from the start
FISCAL_MONTHS = (3, 12, 6, 9)  # in which fiscal years end
FISCAL_MONTH_SHARES = (0.5, 0.2, 0.15, 0.15)  # of the companies
PERIODS = ("1Q", "2Q", "3Q", "FY")

REVISION = 0.06  # of the forecast profit, per unit of surprise
SURPRISE_LIMIT = 3.0  # surprises are cut there
SPONTANEOUS_SHARE = 0.25  # of the quarters; a revision between two reports
CORRECTED_SHARE = 0.03  # of the reports
MISSING_SHARE = 0.01  # of the single figures
NO_STATEMENT_SHARE = 0.04  # of the stocks: funds and foreign issuers
NO_FORECAST_SHARE = 0.05  # of the companies
NO_OPERATING_PROFIT_SHARE = 0.03  # of the companies: banks do not report one
BEFORE_CLOSE_SHARE = 0.30  # of the disclosures
UNTIMED_SHARE = 0.05  # of the disclosures; counted as after the close
SURPRISE_DENSITY = 0.018  # surprises per stock and trading day: 4.75 a year, of 96 % of stocks

ACTUALS = ("sales", "operating_profit", "net_profit")
FORECASTS = tuple(f"forecast_{item}" for item in ACTUALS)
FIGURES = (*ACTUALS, "total_assets", "equity", *FORECASTS, "shares_outstanding")


@dataclass(frozen=True)
class Company:
    """What statements need to know of the stocks, one entry per stock.

    Attributes:
        market_value: Currency; companies sell about as much a year as they are worth.
        shares: Outstanding before any split.
        split_date: NaT where there is none; from it on there are shares over split_factor.
        first_date: First trading date; nothing is disclosed before it where ``is_new``.
        last_date: Last trading date.
        is_new: Listed during the calendar, not before it.
    """

    codes: npt.NDArray[np.str_]
    market_value: Floats
    shares: Floats
    split_date: Days
    split_factor: Floats
    first_date: Days
    last_date: Days
    is_new: Bools

    def shares_on(self, day: Days) -> Floats:
        """Shares outstanding, in shares of each company's day."""
        return np.where(day >= self.split_date, self.shares / self.split_factor, self.shares)


@dataclass(frozen=True)
class Disclosures:
    """The table, and what of it moves prices.

    Attributes:
        frame: ``raw_statements``, sorted by (code, disclosed_on), times in order.
        surprise: Sum of the surprises that count from each trading day on, [days, stocks].
    """

    frame: pl.DataFrame
    surprise: Floats


def draw_disclosures(rng: np.random.Generator, company: Company, trading_days: Days) -> Disclosures:
    """Statements of all companies up to the last trading day.

    Args:
        rng: The market's stream for statements.
        company: The stocks.
        trading_days: Rising; the days of ``surprise``.
    """
    count = len(company.codes)
    month = rng.choice(FISCAL_MONTHS, count, p=FISCAL_MONTH_SHARES)
    silent = rng.random(count) < NO_STATEMENT_SHARE
    rows = _Rows(rng, company, month, silent)
    first, last = (day.astype(dt.date).year for day in trading_days[[0, -1]])
    plan = _Plan.drawn(rng, company)
    for year in range(first - HISTORY_YEARS, last + 2):
        plan = _fiscal_year(rng, rows, plan, year)
    return rows.finish(trading_days)


@dataclass(frozen=True)
class _Plan:
    """Where the companies stand in a fiscal year, one entry per stock; currency.

    ``usual_margin`` is operating profit over sales to which margins return. ``season`` is the share
    of the year's [sales, profit] made by the end of each quarter, [2, 4, stocks], 1 at the last.
    """

    sales: Floats
    operating_profit: Floats
    tax_rate: Floats
    usual_margin: Floats
    equity_share: Floats
    season: Floats

    @classmethod
    def drawn(cls, rng: np.random.Generator, company: Company) -> "_Plan":
        count = len(company.codes)
        sales = company.market_value * np.exp(rng.normal(0.0, 0.6, count))
        margin = rng.normal(0.08, 0.05, count)
        season = np.stack(
            [rng.dirichlet([size] * 4, count).cumsum(axis=1).T for size in (200.0, 40.0)]
        )
        return cls(
            sales=sales,
            operating_profit=sales * margin,
            tax_rate=rng.uniform(0.25, 0.40, count),
            usual_margin=margin,
            equity_share=rng.uniform(0.2, 0.7, count),
            season=season,
        )

    def revised(self, surprise: Floats) -> "_Plan":
        """The year's forecast after a surprise; sales move a quarter as much as profit."""
        return _replaced(
            self,
            self.sales * (1.0 + 0.25 * REVISION * surprise),
            self.operating_profit + REVISION * surprise * np.abs(self.operating_profit),
        )

    def next_year(self, rng: np.random.Generator) -> "_Plan":
        """The first forecast of the following year: growth, and margins on their way back."""
        count = len(self.sales)
        sales = self.sales * np.exp(rng.normal(0.03, 0.06, count))
        margin = (self.operating_profit / self.sales + self.usual_margin) / 2.0
        return _replaced(self, sales, sales * (margin + rng.normal(0.0, 0.01, count)))


def _replaced(plan: _Plan, sales: Floats, operating_profit: Floats) -> _Plan:
    return _Plan(
        sales, operating_profit, plan.tax_rate, plan.usual_margin, plan.equity_share, plan.season
    )


class _Rows:
    """Collects disclosures of one kind at a time, for all companies at once."""

    def __init__(
        self, rng: np.random.Generator, company: Company, fiscal_month: Ints, silent: Bools
    ) -> None:
        count = len(company.codes)
        self.company = company
        self.fiscal_month = fiscal_month
        self.no_forecast = rng.random(count) < NO_FORECAST_SHARE
        self.no_operating_profit = rng.random(count) < NO_OPERATING_PROFIT_SHARE
        self.silent = silent
        self.parts: list[pl.DataFrame] = []

    def period_end(self, year: int, quarter: int) -> Days:
        """Last day of a quarter (0 to 3) of the fiscal year that ends in ``year``."""
        following = (year - 1970) * 12 + self.fiscal_month - 3 * (3 - quarter)
        first_day = following.astype("datetime64[M]").astype("datetime64[D]")
        return (first_day.astype(np.int64) - 1).astype("datetime64[D]")

    def add(
        self, chosen: Bools, day: Days, minute: Ints, year: int, period: str | None,
        document: str, figures: dict[str, Floats], surprise: Floats | None = None,
    ) -> None:  # fmt: skip
        """A row for each chosen company, disclosed on its day at its minute (-1: no time)."""
        company = self.company
        chosen = chosen & ~self.silent & (day <= company.last_date)
        chosen &= ~company.is_new | (day >= company.first_date)
        values = {name: figures.get(name) for name in FIGURES}
        columns: dict[str, pl.Series] = {
            "stock": pl.Series(np.flatnonzero(chosen)),
            "code": pl.Series(company.codes[chosen], dtype=pl.String),
            "disclosed_on": pl.Series(day[chosen]),
            "minute": pl.Series(minute[chosen]),
            "fiscal_year_end": pl.Series(self.period_end(year, 3)[chosen]),
            "period": pl.Series([period] * int(chosen.sum()), dtype=pl.String),
            "document": pl.Series([document] * int(chosen.sum()), dtype=pl.String),
            "surprise": pl.Series(np.zeros(chosen.sum()) if surprise is None else surprise[chosen]),
        }
        for name, value in values.items():
            column = np.full(len(chosen), np.nan) if value is None else np.round(value)
            hidden = self._hidden(name)
            columns[name] = pl.Series(np.where(hidden, np.nan, column)[chosen]).fill_nan(None)
        self.parts.append(pl.DataFrame(columns))

    def _hidden(self, name: str) -> Bools:
        """Companies that never give this figure."""
        hidden = np.zeros(len(self.silent), np.bool_)
        if name in FORECASTS:
            hidden = hidden | self.no_forecast
        if name.endswith("operating_profit"):
            hidden = hidden | self.no_operating_profit
        return hidden

    def finish(self, trading_days: Days) -> Disclosures:
        """All rows up to the last trading day in the order of their disclosure."""
        rows = pl.concat(self.parts).filter(pl.col("disclosed_on") <= trading_days[-1])
        # Untimed ones stand last on their day, as they count last.
        timed = pl.when(pl.col("minute") >= 0).then("minute").otherwise(24 * 60)
        rows = rows.sort("code", "disclosed_on", timed, "fiscal_year_end", maintain_order=True)
        surprise = _surprise_by_day(rows, trading_days, len(self.silent))
        time_of_day = pl.when(pl.col("minute") >= 0).then(
            pl.time(pl.col("minute") // 60, pl.col("minute") % 60)
        )
        frame = rows.select(
            "code", "disclosed_on", time_of_day.alias("disclosed_at"), "fiscal_year_end", "period",
            "document", *FIGURES,
        )  # fmt: skip
        return Disclosures(frame, surprise)


def _surprise_by_day(rows: pl.DataFrame, trading_days: Days, stocks: int) -> Floats:
    close = CLOSE.hour * 60 + CLOSE.minute
    before_close = ((rows["minute"] >= 0) & (rows["minute"] < close)).to_numpy()
    counts_from = rows["disclosed_on"].to_numpy() + np.where(before_close, 0, 1)
    day = np.searchsorted(trading_days, counts_from)
    early = rows["disclosed_on"].to_numpy() < trading_days[0]
    known = ~early & (day < len(trading_days))
    surprise = np.zeros((len(trading_days), stocks))
    place = (day[known], rows["stock"].to_numpy()[known])
    np.add.at(surprise, place, rows["surprise"].to_numpy()[known])
    return surprise


def _fiscal_year(rng: np.random.Generator, rows: _Rows, plan: _Plan, year: int) -> _Plan:
    """Discloses the fiscal year that ends in ``year``, and with its end the next one's plan."""
    count = len(rows.silent)
    everyone = np.ones(count, np.bool_)
    for quarter, period in enumerate(PERIODS):
        surprise = rng.standard_normal(count).clip(-SURPRISE_LIMIT, SURPRISE_LIMIT)
        plan = plan.revised(surprise)
        last = quarter == 3
        day = _weekday(rows.period_end(year, quarter) + rng.integers(28, 56 if last else 50, count))
        minute = _minutes(rng, count)
        figures = _actuals(rng, plan, quarter) | ({} if last else _forecasts(rng, plan))
        figures |= {"shares_outstanding": rows.company.shares_on(rows.period_end(year, quarter))}
        for name in figures:
            figures[name] = np.where(rng.random(count) < MISSING_SHARE, np.nan, figures[name])
        rows.add(everyone, day, minute, year, period, "statement", figures, surprise)
        _correction(rng, rows, day, year, period, figures)
        if not last:
            plan = _revision(rng, rows, plan, year, quarter)
        else:
            plan = plan.next_year(rng)
            rows.add(everyone, day, minute, year + 1, None, "forecast", _forecasts(rng, plan))
    return plan


def _revision(rng: np.random.Generator, rows: _Rows, plan: _Plan, year: int, quarter: int) -> _Plan:
    """Some companies revise between two reports; forecasts only."""
    count = len(rows.silent)
    chosen = rng.random(count) < SPONTANEOUS_SHARE
    surprise = rng.standard_normal(count).clip(-SURPRISE_LIMIT, SURPRISE_LIMIT)
    surprise = np.where(chosen & ~rows.no_forecast, surprise, 0.0)
    plan = plan.revised(surprise)
    day = _weekday(rows.period_end(year, quarter) + rng.integers(60, 100, count))
    rows.add(
        chosen & ~rows.no_forecast, day, _minutes(rng, count), year, None, "forecast revision",
        _forecasts(rng, plan), surprise,
    )  # fmt: skip
    return plan


def _correction(
    rng: np.random.Generator, rows: _Rows, day: Days, year: int, period: str,
    figures: dict[str, Floats],
) -> None:  # fmt: skip
    """The same period again, with other profits and the actuals only."""
    count = len(rows.silent)
    corrected = {name: figures[name] for name in (*ACTUALS, "total_assets", "equity")}
    for name in ("operating_profit", "net_profit"):
        corrected[name] = corrected[name] * (1.0 + rng.normal(0.0, 0.02, count))
    later = _weekday(day + rng.integers(3, 150, count))
    rows.add(
        rng.random(count) < CORRECTED_SHARE, later, _minutes(rng, count), year, period,
        "correction", corrected,
    )  # fmt: skip


def _actuals(rng: np.random.Generator, plan: _Plan, quarter: int) -> dict[str, Floats]:
    """From the year's start to the quarter's end; at the year's end exactly what was planned."""
    count = len(plan.sales)
    noise = 0.0 if quarter == 3 else 1.0
    sales = plan.sales * plan.season[0, quarter] * (1.0 + noise * rng.normal(0.0, 0.005, count))
    profit = plan.operating_profit * plan.season[1, quarter]
    profit = profit * (1.0 + noise * rng.normal(0.0, 0.02, count))
    assets = plan.sales * 1.2 * (1.0 + rng.normal(0.0, 0.02, count))
    return {
        "sales": sales,
        "operating_profit": profit,
        "net_profit": _net(rng, plan, profit),
        "total_assets": assets,
        "equity": assets * plan.equity_share,
    }


def _forecasts(rng: np.random.Generator, plan: _Plan) -> dict[str, Floats]:
    profit = plan.operating_profit
    planned = (plan.sales, profit, _net(rng, plan, profit))
    return dict(zip(FORECASTS, planned, strict=True))


def _net(rng: np.random.Generator, plan: _Plan, profit: Floats) -> Floats:
    """After tax and what does not belong to operations."""
    return profit * (1.0 - plan.tax_rate) * (1.0 + rng.normal(0.0, 0.02, len(profit)))


def _weekday(day: Days) -> Days:
    """The same day, or the Monday after it; a holiday is no obstacle to disclosing."""
    return np.busday_offset(day.astype("datetime64[D]"), 0, roll="forward")


def _minutes(rng: np.random.Generator, count: int) -> Ints:
    """Minute of the day of each disclosure; -1 where the vendor gives no time."""
    close = CLOSE.hour * 60 + CLOSE.minute
    minute = rng.integers(close, close + 180, count)
    early = rng.random(count) < BEFORE_CLOSE_SHARE
    minute = np.where(early, rng.integers(9 * 60, close, count), minute)
    return np.where(rng.random(count) < UNTIMED_SHARE, -1, minute)
