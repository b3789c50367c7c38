"""Which raw bars can be believed: one table of reasons, and the split into valid and quarantine.

A new rule is one line in the stage that it belongs to. Repairs do not belong here: a bar is taken
as it is or kept aside whole, never patched, because a patched bar cannot be told from a real one.
Moves that are strange but may be real are counted in ``suspect_moves``; they stay in ``prices``.

Every verdict is what could be said at the close of the bar's own date. It never changes when later
bars arrive, even where they show that it was wrong: features of that date were computed on it.
"""

from dataclasses import dataclass

import polars as pl

from atft_model.config import setting
from atft_pipeline.transforms.adjust import split_adjust

KEY = ("date", "code")
BAR = ("open", "high", "low", "close", "volume")
PRICE = ("open", "high", "low", "close")

Rule = tuple[str, pl.Expr]


@dataclass(frozen=True)
class ValidityRules:
    """How far a bar may be off before it is not believed."""

    rounding_tolerance: float = setting(
        1e-3, "How far open and close may lie outside [low, high], as a share of the price. "
        "Vendors round each column by itself, often to a cent: 0.1 % of a price of 10."
    )  # fmt: skip
    closed_weekdays: tuple[int, ...] = setting(
        (6, 7), "ISO weekdays (Monday is 1) on which the market never trades: a bar dated so is "
        "off the calendar. Empty for a market that trades every day."
    )  # fmt: skip
    stale_bars: int = setting(
        3, "Bars in a row that are equal in all five values, from which on the last is a copy. Two "
        "in a row do occur where a stock trades once a day: 65 times in 2.4 million NASDAQ bars."
    )  # fmt: skip
    stale_bars_that_moved: int = setting(
        2, "The same for a bar with high above low: repeating a day's range to the cent and its "
        "volume to the share is a copy at once (4 times in 2.4 million NASDAQ bars)."
    )  # fmt: skip
    sparse_date_share: float = setting(
        0.5, "A date with fewer usable bars than this share of the usual number is left out "
        "whole: a holiday padded for a few stocks, a last day still being filled, or a day that "
        "the vendor mixed up. (On 2011-08-02 of the NASDAQ file two thirds of the opens lie "
        "outside [low, high], because the rest of the bar is the next day's, in the bars that "
        "pass too.) Half days trade nearly every stock."
    )  # fmt: skip
    sparse_date_window: int = setting(
        60, "Earlier dates whose median number of stocks is usual: a quarter, so that a market "
        "that really shrinks is believed again after about half."
    )  # fmt: skip
    jump_factor: float = setting(
        10.0, "A close above this many times the highest of the bars before, splits taken out, is "
        "held back until the next bar agrees. Of 2.4 million NASDAQ bars five did so, and none was "
        "a return: unrecorded reverse splits, relistings, one company in place of another."
    )  # fmt: skip
    jump_bars: int = setting(
        5, "Bars before whose highest close counts for jump_factor: a week, so that the way back "
        "from a few prices that are too low is no jump."
    )  # fmt: skip


def quarantine_invalid(
    raw: pl.DataFrame, rules: ValidityRules | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits raw bars into those that can be used and those that cannot, with the reason.

    The stages run in order, and within a stage the first rule that fails gives the reason. Later
    stages look only at rows that passed so far: of two bars of one key, one of them without
    volume, the other is valid. A verdict uses the row's own date and earlier ones only.

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
    parts = [_split(rows)]
    for stage in (_stale, _on_sparse_dates, _unconfirmed_jumps):
        valid = parts[-1][0]
        rejected = pl.concat(part[1] for part in parts)
        reason = stage(valid, rejected.drop("reason"), rules)
        parts.append(_split(valid.with_columns(reason.alias("reason"))))

    valid = parts[-1][0]
    quarantine = pl.concat(part[1] for part in parts).sort("code", "date", maintain_order=True)
    assert valid.height + quarantine.height == raw.height, "a row was lost or doubled"
    return valid, quarantine


def bar_rules(rules: ValidityRules) -> tuple[Rule, ...]:
    """What is wrong with a bar by itself.

    No trade comes before no price: vendors write a day without a trade as zero volume with zero
    or blank open, high and low and yesterday's close, and the missing trade is the cause of all of
    it. A bar that has volume and close but no open, high or low is kept aside as a whole: its close
    may be right, but nothing in the bar confirms it, and ranges and volatilities cannot use it.
    """
    price_high = pl.col("high") * (1 + rules.rounding_tolerance)
    price_low = pl.col("low") * (1 - rules.rounding_tolerance)
    factor, turnover = pl.col("adjustment_factor"), pl.col("turnover")  # turnover may be unknown
    closed = pl.col("date").dt.weekday().is_in(list(rules.closed_weekdays))
    return (
        ("off_calendar", closed),
        ("zero_volume", pl.col("volume") == 0),
        ("missing_value", ~pl.all_horizontal(pl.col(BAR).is_finite().fill_null(False))),
        ("bad_adjustment_factor", ~(factor.is_finite() & (factor > 0)).fill_null(False)),
        ("bad_turnover", (turnover < 0) | turnover.is_infinite()),
        ("negative_volume", pl.col("volume") < 0),
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


REASONS = (
    *(reason for reason, _ in bar_rules(ValidityRules())),
    *(reason for reason, _ in repeat_rules([*BAR])),
    "stale_bar",
    "sparse_date",
    "unconfirmed_jump",
)
"""Every reason that a quarantined row may carry, in the order in which rules are tried."""


def _stale(valid: pl.DataFrame, _: pl.DataFrame, rules: ValidityRules) -> pl.Series:
    """``stale_bar`` for the bars that copy the one before.

    The first copies of a run pass, since one day's repeat can be chance; they are not recalled when
    the run goes on. A price that stands still on changing volume is no copy.
    """
    as_before = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in ("code", *BAR))
    row = pl.int_range(pl.len())
    first_of_run = pl.when(~as_before.fill_null(False)).then(row).forward_fill()
    in_a_row = row - first_of_run + 1
    moved = pl.col("high") > pl.col("low")
    too_many = pl.when(moved).then(rules.stale_bars_that_moved).otherwise(rules.stale_bars)
    return valid.select(_reason("stale_bar", in_a_row >= too_many)).to_series()


def _on_sparse_dates(valid: pl.DataFrame, _: pl.DataFrame, rules: ValidityRules) -> pl.Series:
    sparse = sparse_dates(valid, rules)
    rule = pl.col("date").is_in(sparse.implode())
    return valid.select(_reason("sparse_date", rule)).to_series()


def sparse_dates(bars: pl.DataFrame, rules: ValidityRules) -> pl.Series:
    """Dates with far fewer usable bars than the dates before; never the first date.

    A last day that is still being filled is one of them. It carries no reason of its own: whether a
    date is the last one changes with the next delivery, and its verdict must not.
    """
    traded = bars.group_by("date").agg(pl.len().alias("stocks")).sort("date")
    usual = (
        pl.col("stocks")
        .cast(pl.Float64)
        .rolling_median(rules.sparse_date_window, min_samples=1)
        .shift(1)
    )
    return traded.filter(pl.col("stocks") < rules.sparse_date_share * usual)["date"]


def _unconfirmed_jumps(
    valid: pl.DataFrame, rejected: pl.DataFrame, rules: ValidityRules
) -> pl.Series:
    """``unconfirmed_jump`` for a close far above all of the last bars, recorded splits taken out.

    A price that is wrong for one day and one that has changed for good look the same on the day;
    only the next bar tells. So the bar is held back, and the next one is believed whichever level
    it takes: back where the price was, or near the bar that was held back. What was held back
    stays so.

    Only rises are held back. A fall of nine tenths may be the last bar before a delisting: leaving
    it out would erase the worst losses. And no rise from a stock's first bar is known.
    """
    bars = split_adjust(valid, rejected)
    highest_before = (
        pl.col("close").shift(1).rolling_max(rules.jump_bars, min_samples=1).over("code")
    )
    rise = pl.col("close") > rules.jump_factor * highest_before
    return bars.select(_reason("unconfirmed_jump", rise.fill_null(False))).to_series()


def quarantine_by_month(raw: pl.DataFrame, quarantine: pl.DataFrame) -> pl.DataFrame:
    """How much of each month's raw rows each reason took: (month, reason, rows, share).

    Every reason that occurs has a row in every month of ``raw``, with 0 where it took none.
    """
    month = pl.col("date").dt.truncate("1mo").alias("month")
    raw_rows = raw.group_by(month).len("raw_rows").drop_nulls("month")
    found = quarantine.group_by(month, "reason").len("rows")
    reasons = quarantine.select(pl.col("reason").unique())
    return (
        raw_rows.join(reasons, how="cross")
        .join(found, on=["month", "reason"], how="left")
        .with_columns(pl.col("rows").fill_null(0))
        .select("month", "reason", "rows", share=pl.col("rows") / pl.col("raw_rows"))
        .sort("reason", "month")
    )


def _split(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    valid = pl.col("reason").is_null()
    return rows.filter(valid).drop("reason"), rows.filter(~valid)


def _reason(reason: str, fails: pl.Expr) -> pl.Expr:
    return pl.when(fails).then(pl.lit(reason))


def _first_failing(rules: tuple[Rule, ...]) -> pl.Expr:
    """The reason of the first rule that holds for the row; null where none does."""
    return pl.coalesce(_reason(reason, fails) for reason, fails in rules)


def _still_valid(reason: pl.Expr) -> pl.Expr:
    """Keeps the reason that a row has; gives the new one only to rows without."""
    return pl.coalesce("reason", reason).alias("reason")
