"""Moves between a stock's bars that trading hardly explains: named and counted, never taken out.

A move of a factor three may be news, a split that nobody recorded, or an error. Which one is not
known on the day, and taking large moves out of the data would take out the outcomes that matter
most. So they stay in ``prices``; what is surely unusable by itself is for ``validity``.
"""

import math
from dataclasses import dataclass

import polars as pl

from atft_model.config import setting

SPLIT_RATIOS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 100)
"""New shares for one old one, or the reverse. 3:2 is left out: bad news takes a third off often."""

SMALLEST_SPLIT = 1.3
"""Recorded factors nearer to 1 are stock dividends, which a day's move can hide."""

KINDS = {
    "recorded_split_not_seen": "the factor says split, but the price did not move by it: it was "
    "likely adjusted already, and the split is taken out twice",
    "after_gap": "no bar for long before: halted, bankrupt, relisted, or another company",
    "reverted": "back where the price was before the last move: one of the two was an error",
    "unrecorded_split": "opens at a split's ratio to the last close and trades calmly, without a "
    "factor: a split that the source lacks, and a return that nobody had",
    "unexplained": "news, a merger, or an error",
}
"""What each kind means, in the order in which they are tried."""


@dataclass(frozen=True)
class MoveRules:
    """Which moves are suspect."""

    move_factor: float = setting(
        3.0, "Close times or divided by this from one bar to the next, recorded splits taken out: "
        "24 times in 2.4 million NASDAQ bars, a good part of them unrecorded splits."
    )  # fmt: skip
    split_tolerance: float = setting(
        0.05, "How far the open may lie from a split's exact ratio (log): an ordinary night's move."
    )  # fmt: skip
    calm_range: float = setting(
        1.15, "High over low up to which a day is calm; a day on which news halves a price is not."
    )  # fmt: skip
    gap_dates: int = setting(
        20, "Market dates since the last bar from which on a move is that of a gap, not of a day."
    )  # fmt: skip
    reverted_factor: float = setting(
        1.5, "How near the close must be to the one before the last move to be back where it was."
    )  # fmt: skip


def suspect_moves(prices: pl.DataFrame, rules: MoveRules | None = None) -> pl.DataFrame:
    """The bars whose adjusted close is far from the one before, with the kind of move.

    A row's kind uses bars up to its own date. ``reverted`` is therefore given to the move back, on
    the day on which it is known, and the move there keeps what it was called.

    Args:
        prices: Adjusted bars, unique (date, code), sorted by (code, date).
        rules: Thresholds; the defaults if not given.

    Returns:
        ``suspect_moves``: key, kind, and the move from the previous bar's adjusted close to this
        one's as a ratio; sorted by (code, date).
    """
    rules = rules or MoveRules()
    calendar = prices.select(pl.col("date").unique().sort()).with_row_index("day")
    same_code = pl.col("code") == pl.col("code").shift(1)
    before = {
        f"previous_{name}": pl.when(same_code).then(pl.col(name).shift(1))
        for name in ("date", "day", "close", "raw_close")
    }
    bars = (
        prices.select("date", "code", "open", "high", "low", "close", "raw_close")
        .join(calendar.cast({"day": pl.Int64}), on="date", how="left", maintain_order="left")
        .with_columns(**before)
        .with_columns(
            close_2_ago=pl.when(same_code).then(pl.col("previous_close").shift(1)),
            move=pl.col("close") / pl.col("previous_close"),
            raw_move=pl.col("raw_close") / pl.col("previous_raw_close"),
        )
        # The smallest move of any kind: of a recorded split, more than half was not seen.
        .filter(_distance(pl.col("move")) >= math.log(SMALLEST_SPLIT) / 2)
    )
    kinds = _rules_of_kinds(rules)
    named = pl.coalesce(pl.when(kinds[kind]).then(pl.lit(kind)) for kind in KINDS)
    return bars.select(
        "date", "code", named.alias("kind"), "previous_date", "previous_close", "close", "move"
    ).filter(pl.col("kind").is_not_null())


def _rules_of_kinds(rules: MoveRules) -> dict[str, pl.Expr]:
    """An expression per kind; null and false where there is no bar before."""
    far = _distance(pl.col("move")) > math.log(rules.move_factor)
    gap = pl.col("day") - pl.col("previous_day") > rules.gap_dates
    # What adjustment took out between the two bars, also for a bar that is in quarantine.
    recorded = _distance(pl.col("raw_move") / pl.col("move")) > math.log(SMALLEST_SPLIT)
    opening = pl.col("open") / pl.col("previous_close")
    calm = pl.col("high") < rules.calm_range * pl.col("low")
    at_split_ratio = pl.any_horizontal(
        _distance(opening * ratio) < rules.split_tolerance
        for shares in SPLIT_RATIOS
        for ratio in (shares, 1 / shares)
    )
    back = _distance(pl.col("close") / pl.col("close_2_ago")) < math.log(rules.reverted_factor)
    return {
        "recorded_split_not_seen": recorded
        & (_distance(pl.col("raw_move")) < _distance(pl.col("move"))),
        "after_gap": far & gap,
        "reverted": far & back,
        "unrecorded_split": ~recorded & ~gap & calm & at_split_ratio,
        "unexplained": far,
    }


def _distance(ratio: pl.Expr) -> pl.Expr:
    """How far a ratio is from 1, the same for up and down."""
    return ratio.log().abs()
