"""Company statements: what was known of a company after each disclosure, and ratios of it.

Periods are matched by fiscal year and quarter, never by counting rows: a correction, a revision
between two reports or a report that came out of turn shifts nothing. A fiscal year is known by its
last month; years that end on a weekday near a month's end (52 or 53 weeks) are taken together by
looking a week back. A company that moves its year end has no year before until a year has passed.
"""

import polars as pl

from atft_pipeline.transforms.as_of import counts_from
from atft_pipeline.transforms.returns import ratio

STALE_DAYS = 130
"""Trading days after which nothing that was disclosed is believed any more: over half a year, so
that companies that report twice a year stay known."""

ACTUALS = ("sales", "operating_profit", "net_profit", "total_assets", "equity")
FORECASTS = ("forecast_operating_profit", "forecast_net_profit")
QUARTERS = {"1Q": 1, "2Q": 2, "3Q": 3, "FY": 4}
YEAR = 4 * 12  # a year in period numbers: four for each month in which a fiscal year may end


def known_statements(statements: pl.DataFrame) -> pl.DataFrame:
    """What was known of its company after each disclosure, corrections included.

    Args:
        statements: The ``raw_statements`` table.

    Returns:
        One row per distinct row of ``statements``, sorted by ``code`` and ``counts_from`` (the
        first day on whose close it is known):

        * ``quarter`` (1 to 4) of the newest period with any actual figure; null before the first;
        * ``sales``, ``operating_profit``, ``net_profit`` (cumulative from the fiscal year's start),
          ``total_assets`` and ``equity`` of that period, as last reported or corrected;
        * the same with ``_year_before`` (same quarter, fiscal year before) and ``_last_year`` (that
          whole fiscal year), as known now;
        * ``forecast_operating_profit``, ``forecast_net_profit`` for that period's fiscal year;
        * ``newest_`` and ``previous_`` of both: the newest forecast of any fiscal year, and the one
          before it for the same fiscal year;
        * ``shares_outstanding``: the newest figure, in shares of its own day.

        Null where never disclosed.
    """
    rows = _in_order(statements)
    reports = rows.filter(
        pl.any_horizontal(pl.col(ACTUALS).is_not_null()), pl.col("period_number").is_not_null()
    ).with_columns(pl.col(ACTUALS).forward_fill().over("code", "period_number"))
    newest = rows.join(
        reports.select("order", newest="period_number"), on="order", how="left",
        maintain_order="left",
    ).select("code", "order", pl.col("newest").cum_max().forward_fill().over("code"))  # fmt: skip
    year_end = (pl.col("newest") - 1) // 4 * 4 + 4
    forecasts = rows.filter(
        pl.any_horizontal(pl.col(FORECASTS).is_not_null()), pl.col("year_number").is_not_null()
    ).with_columns(pl.col(FORECASTS).forward_fill().over("code", "year_number"))
    return pl.concat(
        [
            rows.select("code", "counts_from"),
            rows.select(pl.col("shares_outstanding").forward_fill().over("code")),
            newest.select(quarter=pl.col("newest") - year_end + 4),
            _looked_up(newest, pl.col("newest"), reports, "period_number", ACTUALS),
            _looked_up(newest, pl.col("newest") - YEAR, reports, "period_number", ACTUALS)
            .rename("{}_year_before".format),
            _looked_up(newest, year_end - YEAR, reports, "period_number", ACTUALS)
            .rename("{}_last_year".format),
            _looked_up(newest, year_end, forecasts, "year_number", FORECASTS),
            *(_revisions(rows, forecast) for forecast in FORECASTS),
        ],
        how="horizontal",
    )  # fmt: skip


def _in_order(statements: pl.DataFrame) -> pl.DataFrame:
    """Rows as they became known, with the numbers of their period and of their year's end.

    A row delivered twice is one disclosure: its forecast does not confirm itself.
    """
    near_end = pl.col("fiscal_year_end").dt.offset_by("-7d")
    month = near_end.dt.year().cast(pl.Int32) * 12 + near_end.dt.month()
    quarter = pl.col("period").replace_strict(QUARTERS, default=None, return_dtype=pl.Int32)
    return (
        statements.unique(maintain_order=True)
        .with_columns(
            counts_from=counts_from(pl.col("disclosed_on"), pl.col("disclosed_at")),
            period_number=month * 4 + quarter,
            year_number=month * 4 + 4,
        )
        .sort("code", "counts_from", "disclosed_on", "disclosed_at", nulls_last=True,
              maintain_order=True)
        .with_row_index("order")
    )  # fmt: skip


def _looked_up(
    newest: pl.DataFrame, wanted: pl.Expr, table: pl.DataFrame, number: str, items: tuple[str, ...]
) -> pl.DataFrame:
    """The items of the wanted period or year of the same company, as known at each row."""
    return newest.select("code", "order", wanted.alias(number)).join_asof(
        table.select("code", "order", number, *items), on="order", by=["code", number],
        check_sortedness=False,
    ).select(items)  # fmt: skip


def _revisions(rows: pl.DataFrame, forecast: str) -> pl.DataFrame:
    """The newest forecast of an item, and the one before it for the same fiscal year."""
    given = rows.filter(pl.col(forecast).is_not_null(), pl.col("year_number").is_not_null())
    pairs = given.select(
        "code",
        "order",
        pl.col(forecast).alias(f"newest_{forecast}"),
        pl.col(forecast).shift(1).over("code", "year_number").alias(f"previous_{forecast}"),
    )
    return rows.select("code", "order").join_asof(
        pairs, on="order", by="code", check_sortedness=False
    ).drop("code", "order")  # fmt: skip


def growth(now: pl.Expr, before: pl.Expr) -> pl.Expr:
    """``(now - before) / |before|``: above zero where it rose, also out of a loss."""
    return ratio(now - before, before.abs())


def year_on_year(item: str) -> pl.Expr:
    """Growth of a cumulative figure over the same quarter of the fiscal year before."""
    return growth(pl.col(item), pl.col(f"{item}_year_before"))


def margin(profit: str) -> pl.Expr:
    """Profit over sales, both cumulative; null without sales."""
    return pl.when(pl.col("sales") > 0.0).then(pl.col(profit) / pl.col("sales"))


def progress(profit: str) -> pl.Expr:
    """Cumulative profit over the forecast for its whole fiscal year; null where that is a loss."""
    forecast = pl.col(f"forecast_{profit}")
    return pl.when(forecast > 0.0).then(pl.col(profit) / forecast)


def revision(profit: str) -> pl.Expr:
    """Growth of the newest forecast over the previous one for the same fiscal year."""
    return growth(pl.col(f"newest_forecast_{profit}"), pl.col(f"previous_forecast_{profit}"))


def trailing_year(item: str) -> pl.Expr:
    """The last four quarters: so far this year, plus last year's rest."""
    rest = pl.col(f"{item}_last_year") - pl.col(f"{item}_year_before")
    return pl.when(pl.col("quarter") == 4).then(pl.col(item)).otherwise(pl.col(item) + rest)


def return_on(capital: str) -> pl.Expr:
    """Net profit of the last four quarters over capital; null where that is not positive."""
    return pl.when(pl.col(capital) > 0.0).then(trailing_year("net_profit") / pl.col(capital))
