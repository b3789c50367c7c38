"""Checks of ``prices`` and ``trading_universe``: how much was unusable or strange, and the keys."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl

from atft_model.config import setting
from atft_pipeline.checks.outcome import Outcome, markdown_table
from atft_pipeline.transforms.suspect_moves import KINDS

SHOWN = 20
"""Rows shown with a verdict."""


@dataclass(frozen=True)
class PricesGate:
    """When too much of the raw data is unusable or strange."""

    max_quarantined_share: float = setting(
        0.05, "Share of raw rows in quarantine above which prices are not stored: the real file "
        "has under 1 % unusable bars, so 5 % means a broken delivery."
    )  # fmt: skip
    max_suspect_move_share: float = setting(
        5e-5, "Share of bars whose move is suspect above which prices are not stored: 1 in 20,000. "
        "The real file has 1 in 65,000; a file that nobody adjusted for splits about 1 in 10,000, "
        "since a stock splits every thirty to fifty years."
    )  # fmt: skip
    always_allowed_moves: int = setting(
        10, "Suspect moves that are allowed in a file of any size: a share means little in a small "
        "one."
    )  # fmt: skip


@dataclass(frozen=True)
class QuarantineLimits:
    """Share of raw rows that may be in quarantine, by reason; above it prices are not stored."""

    off_calendar: float = setting(
        1e-3, "A few padded or misdated days a year; more means another week: closed_weekdays."
    )
    zero_volume: float = setting(
        0.04, "Days without a trade, which vendors pad: 0.7 % of NASDAQ bars, more in thin markets."
    )
    missing_value: float = setting(
        0.04, "Days without a trade that the vendor leaves blank; as many as zero_volume."
    )
    bad_adjustment_factor: float = setting(
        1e-4, "A split that cannot be read spoils all later prices of its stock."
    )
    bad_turnover: float = setting(1e-3, "Traded value is nobody's guess: negative means damage.")
    negative_volume: float = setting(1e-4, "Never true: overflow or damage.")
    non_positive_price: float = setting(1e-3, "Quotes that were not there: 0.01 % of NASDAQ bars.")
    high_below_low: float = setting(
        1e-3, "Single slips; more means that two columns are exchanged."
    )
    close_outside_range: float = setting(
        2e-3, "0.002 % of NASDAQ bars; more means that close is adjusted and the range is not."
    )
    open_outside_range: float = setting(
        2e-3, "0.03 % of NASDAQ bars, nearly all on the one day that the vendor mixed up."
    )
    conflicting_duplicate: float = setting(
        2e-3, "Corrections delivered beside the first version; more means two sources in one file."
    )
    duplicate_key: float = setting(
        0.01, "Harmless, but more than a month of a decade delivered twice is no accident."
    )
    stale_bar: float = setting(
        1e-3, "0.0005 % of NASDAQ bars; more means that the vendor fills forward."
    )
    sparse_date: float = setting(
        0.01, "One or two dates a year; more means that the file's stocks do not share a calendar."
    )
    unconfirmed_jump: float = setting(
        1e-4, "0.0002 % of NASDAQ bars; more means unrecorded splits or mixed units."
    )


def quarantined_share(raw_rows: int, quarantine: pl.DataFrame, gate: PricesGate) -> Outcome:
    """The rows that cannot be used are few, and counted by reason."""
    reasons = rows_by_reason(quarantine)
    share = quarantine.height / max(raw_rows, 1)
    counts = {f"rows/{reason}": rows for reason, rows in reasons.iter_rows()}
    return Outcome(
        "quarantined_share_within_limit",
        share <= gate.max_quarantined_share,
        f"{quarantine.height:,} of {raw_rows:,} rows ({share:.2%})",
        f"at most {gate.max_quarantined_share:.0%}",
        numbers={"quarantined_share": share, **counts},
        details=markdown_table(["reason", "rows"], reasons.iter_rows()),
    )


def reasons_within_limits(
    raw_rows: int, quarantine: pl.DataFrame, limits: QuarantineLimits, picture: str = ""
) -> Outcome:
    """No single reason takes more rows than its limit: 1 % of zero volume is a thin market, 1 %
    of closes outside their range is a broken column.

    Args:
        raw_rows: Rows delivered.
        quarantine: The rejected ones with their reasons.
        limits: Largest share by reason.
        picture: Markdown shown with the table: since when.

    Raises:
        KeyError: a reason without a limit, which is a rule added without one.
    """
    limit_of = dataclasses.asdict(limits)
    found = dict(rows_by_reason(quarantine).iter_rows())
    shares = {reason: rows / max(raw_rows, 1) for reason, rows in found.items()}
    over = [reason for reason, share in shares.items() if share > limit_of[reason]]
    fullest = max(shares, key=lambda reason: shares[reason] / max(limit_of[reason], 1e-12),
                  default=None)  # fmt: skip
    named = over or ([fullest] if fullest else [])
    rows = [
        (reason, found.get(reason, 0), f"{shares.get(reason, 0.0):.4%}", f"{limit:.4%}")
        for reason, limit in limit_of.items()
    ]
    return Outcome(
        "quarantine_reasons_within_limits",
        not over,
        "; ".join(f"{reason} {shares[reason]:.4%} (limit {limit_of[reason]:.4%})"
                  for reason in named) or "no row in quarantine",
        "every reason within its own limit",
        numbers={"reasons_over_limit": len(over),
                 **{f"share/{reason}": share for reason, share in shares.items()}},
        details=f"{markdown_table(['reason', 'rows', 'share', 'limit'], rows)}\n\n{picture}",
    )  # fmt: skip


def suspect_moves_within_limit(bars: int, moves: pl.DataFrame, gate: PricesGate) -> Outcome:
    """Few bars move further than trading and recorded splits explain."""
    allowed = max(int(gate.max_suspect_move_share * bars), gate.always_allowed_moves)
    counts = dict(moves.group_by("kind").len().sort("kind").iter_rows())
    shown = moves.sort("date", "code", descending=[True, False]).head(SHOWN)
    meanings = [(kind, counts.get(kind, 0), meaning) for kind, meaning in KINDS.items()]
    return Outcome(
        "suspect_moves_within_limit",
        moves.height <= allowed,
        f"{moves.height:,} of {bars:,} bars"
        + "".join(f", {count} {kind}" for kind, count in counts.items()),
        f"at most {allowed:,}; more means splits that the source lacks, or prices adjusted twice",
        numbers={"suspect_moves": moves.height, **{f"kind/{k}": n for k, n in counts.items()}},
        details=markdown_table(["kind", "bars", "meaning"], meanings)
        + "\n\n" + markdown_table(shown.columns, shown.iter_rows()),
    )  # fmt: skip


def keys_unique(table: pl.DataFrame) -> Outcome:
    """No (date, code) stands on two rows."""
    repeated = table.height - table.select("date", "code").n_unique()
    shown = table.filter(table.select("date", "code").is_duplicated()).head(SHOWN)
    return Outcome(
        "keys_unique", repeated == 0, f"{repeated:,} repeated keys in {table.height:,} rows",
        "no (date, code) on two rows", numbers={"repeated_keys": repeated},
        details=markdown_table(shown.columns, shown.iter_rows()) if repeated else None,
    )  # fmt: skip


def rows_within_stocks_times_dates(table: pl.DataFrame, upstream: pl.DataFrame) -> Outcome:
    """A table has no more rows than the table that it was made from has stocks times dates.

    Counted on the table upstream: a join that doubles rows, or one that brings in stocks and dates
    from elsewhere, shows here even where the table's own keys look right.
    """
    stocks, dates = upstream["code"].n_unique(), upstream["date"].n_unique()
    foreign = table.join(upstream, on=["date", "code"], how="anti").height
    return Outcome(
        "rows_within_stocks_times_dates",
        table.height <= stocks * dates and not foreign,
        f"{table.height:,} rows, {stocks:,} stocks × {dates:,} dates"
        + (f", {foreign:,} rows without a row upstream" if foreign else ""),
        f"at most {stocks * dates:,} rows, each with a row upstream",
        numbers={"rows": table.height, "filled_share": table.height / max(stocks * dates, 1),
                 "foreign_rows": foreign},
    )  # fmt: skip


def universe_is_wide(universe: pl.DataFrame, min_stocks: int) -> Outcome:
    """Dates have enough members to rank."""
    per_date = universe.group_by("date").len()["len"]
    median = float(np.median(per_date.to_numpy())) if len(per_date) else 0.0
    return Outcome(
        "universe_is_wide", median >= min_stocks,
        f"median {median:.0f} stocks per date over {len(per_date):,} dates",
        f"at least {min_stocks}", numbers={"median_stocks": median, "dates": len(per_date)},
    )  # fmt: skip


def rows_by_reason(quarantine: pl.DataFrame) -> pl.DataFrame:
    """(reason, rows), the most frequent first."""
    return quarantine.group_by("reason").len("rows").sort(["rows", "reason"],
                                                          descending=[True, False])  # fmt: skip
