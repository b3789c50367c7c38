"""Which raw bars can be believed: one table of reasons, and the split into valid and quarantine.

A new rule is one line in the stage that it belongs to. Repairs do not belong here: a bar is taken
as it is or kept aside whole, never patched, because a patched bar cannot be told from a real one.
"""

from dataclasses import dataclass

import polars as pl

KEY = ("date", "code")
BAR = ("open", "high", "low", "close", "volume")
PRICE = ("open", "high", "low", "close")

Rule = tuple[str, pl.Expr]


@dataclass(frozen=True)
class ValidityRules:
    """How far a bar may be off before it is not believed.

    Attributes:
        rounding_tolerance: How far open and close may lie outside [low, high], as a share of the
            price. Vendors round each column by itself, often to a cent: 0.1 % of a price of 10.
        sparse_date_share: A date with fewer usable bars than this share of the usual number is
            left off the calendar whole: a holiday padded for a few stocks, a last day still being
            filled, or a day that the vendor mixed up. (Seen in real data: on one date two thirds
            of the opens lay outside [low, high] because the rest of the bar was the next day's,
            in the bars that passed too.) Half days trade nearly every stock.
        sparse_date_window: Earlier dates whose median number of stocks is usual; a quarter, so
            that a market that really shrinks is believed again after about half.
    """

    rounding_tolerance: float = 1e-3
    sparse_date_share: float = 0.5
    sparse_date_window: int = 60


def quarantine_invalid(
    raw: pl.DataFrame, rules: ValidityRules | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits raw bars into those that can be used and those that cannot, with the reason.

    The three stages run in order, and within a stage the first rule that fails gives the reason.
    Later stages look only at rows that passed so far: of two bars of one key, one of them without
    volume, the other is valid. What is decided about a date uses that date and earlier ones only.

    Args:
        raw: ``raw_prices``; nulls, NaN and repeated keys allowed.
        rules: Tolerances; the defaults if not given.

    Returns:
        Valid rows (the columns of ``raw``, keys unique) and the quarantine (the same columns and
        ``reason``), both sorted by (code, date). Together they hold every row of ``raw`` once.
    """
    rules = rules or ValidityRules()
    rows = raw.sort("code", "date", maintain_order=True)
    rows = rows.with_columns(_first_failing(bar_rules(rules)).alias("reason"))
    rows = rows.with_columns(_still_valid(_first_failing(repeat_rules(raw.columns))))
    sparse = sparse_dates(rows.filter(pl.col("reason").is_null()), rules)
    date_rules = (("sparse_date", pl.col("date").is_in(sparse.implode())),)
    rows = rows.with_columns(_still_valid(_first_failing(date_rules)))

    valid = rows.filter(pl.col("reason").is_null()).drop("reason")
    quarantine = rows.filter(pl.col("reason").is_not_null())
    assert valid.height + quarantine.height == raw.height, "a row was lost or doubled"
    return valid, quarantine


def bar_rules(rules: ValidityRules) -> tuple[Rule, ...]:
    """What is wrong with a bar by itself.

    No trade comes before no price: vendors write a day without a trade as zero volume with zero
    open, high and low and yesterday's close, and the missing trade is the cause of all of it. A
    bar that has volume and close but no open, high or low is kept aside as a whole: its close may
    be right, but nothing in the bar confirms it, and ranges and volatilities cannot use it.
    """
    price_high = pl.col("high") * (1 + rules.rounding_tolerance)
    price_low = pl.col("low") * (1 - rules.rounding_tolerance)
    factor, turnover = pl.col("adjustment_factor"), pl.col("turnover")  # turnover may be unknown
    return (
        ("missing_value", ~pl.all_horizontal(pl.col(BAR).is_finite().fill_null(False))),
        ("bad_adjustment_factor", ~(factor.is_finite() & (factor > 0)).fill_null(False)),
        ("bad_turnover", (turnover < 0) | turnover.is_infinite()),
        ("negative_volume", pl.col("volume") < 0),
        ("zero_volume", pl.col("volume") == 0),
        ("non_positive_price", pl.any_horizontal(pl.col(PRICE) <= 0)),
        ("high_below_low", pl.col("high") < pl.col("low")),
        ("close_outside_range", ~pl.col("close").is_between(price_low, price_high)),
        ("open_outside_range", ~pl.col("open").is_between(price_low, price_high)),
    )


def repeat_rules(columns: list[str]) -> tuple[Rule, ...]:
    """What is wrong with bars that share a key: differing ones all go, of equal ones one stays."""
    key = (*KEY, pl.col("reason").is_null())
    values = pl.struct(name for name in columns if name not in KEY)
    return (
        ("conflicting_duplicate", values.n_unique().over(*key) > 1),
        ("duplicate_key", ~pl.struct(*key).is_first_distinct()),
    )


def sparse_dates(bars: pl.DataFrame, rules: ValidityRules) -> pl.Series:
    """Dates with far fewer usable bars than the dates before; never the first date."""
    traded = bars.group_by("date").agg(pl.len().alias("stocks")).sort("date")
    usual = (
        pl.col("stocks")
        .cast(pl.Float64)
        .rolling_median(rules.sparse_date_window, min_samples=1)
        .shift(1)
    )
    return traded.filter(pl.col("stocks") < rules.sparse_date_share * usual)["date"]


def _first_failing(rules: tuple[Rule, ...]) -> pl.Expr:
    """The reason of the first rule that holds for the row; null where none does."""
    return pl.coalesce(pl.when(fails).then(pl.lit(reason)) for reason, fails in rules)


def _still_valid(reason: pl.Expr) -> pl.Expr:
    """Keeps the reason that a row has; gives the new one only to rows without."""
    return pl.coalesce("reason", reason).alias("reason")
