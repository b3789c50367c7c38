"""Which drift is too much: limits for each month and for the last months together.

A difference counts when it is large for the model *and* large for the feature: each limit is a
floor in effect size or a multiple of what the feature's training months deviate by themselves
(``transforms.drift`` says why), whichever is larger. Stock-level features have a ceiling too: with
hundreds of stocks a move of almost one training standard deviation that lasts is no weather. A
market-wide series has none, because it has one value per date: three years of it hold a handful of
independent looks, and a calmer market is no fault of the data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from atft_model.config import setting
from atft_pipeline.checks.outcome import Outcome, markdown_table
from atft_pipeline.transforms.drift import MIN_DATES

SHOWN = 15
"""Rows shown with a verdict, worst first."""

MARKET_WIDE = ("market", "section")
"""Scopes of one value per date, or of one for each of a few market sections."""

CEILING_MONTHS = 12
"""A move that lasted a year is no season."""


@dataclass(frozen=True)
class DriftLimits:
    """ERROR limits of drift after the training dates; ``drift_warn_share`` of one is a WARN.

    Calibrated on the built-in market (seeds 1337, 1 to 4) and the real file 2010 to 2015, in
    training standard deviations unless said; the figures in the reasons are from there.
    """

    on_drift: Literal["fail", "warn"] = setting(
        "fail", "At the ERROR level: fail stores no table, warn stores it and says so."
    )
    drift_warn_share: float = setting(
        0.9, "Share of an ERROR limit from which a figure is a WARN: the calibration set that "
        "comes nearest reaches 0.85."
    )  # fmt: skip
    lasting_shift: float = setting(
        0.5, "Floor for the mean shift of the last months together: half a standard deviation "
        "moves the model's input by as much as it ever varies between typical stocks."
    )  # fmt: skip
    lasting_shift_ceiling: float = setting(
        0.9, "Ceiling for stock and sector features over a year or more: a move by one standard "
        "deviation fails whatever the feature's past. For market-wide ones it is a WARN."
    )  # fmt: skip
    lasting_noise: float = setting(
        5.0, "Multiple of the window's own deviation, itself estimated from three years: 3 would "
        "be right for one normal figure, here are three each of 60 heavy-tailed features."
    )  # fmt: skip
    lasting_log_std: float = setting(
        0.7, "Floor for |ln(std ratio)| of the last months together: twice or half the spread."
    )
    lasting_log_std_ceiling: float = setting(
        1.1, "Ceiling of the same for stock and sector features over a year: thrice or a third."
    )
    lasting_psi: float = setting(
        0.75, "Floor for PSI of the last months together; by the usual reading 0.25 is a marked "
        "change, and ordinary regimes reach it here."
    )  # fmt: skip
    lasting_psi_ceiling: float = setting(
        2.0, "Ceiling of the same for stock and sector features over a year."
    )
    month_shift: float = setting(
        0.9, "Floor for the mean shift of a single month: features whose months hardly differ "
        "(alpha_1d, volume_ratio_5) fail in the first month that moves by one."
    )  # fmt: skip
    month_shift_ceiling: float = setting(
        12.0, "Ceiling of the same: a change of unit, not of the market, whose stormiest month "
        "moved mkt_vol_20d by 9.5 in 35 built-in markets."
    )  # fmt: skip
    month_noise: float = setting(
        15.0, "Multiple of a month's own deviation: one month may be a crash that training never "
        "saw, with volatility 10 such deviations up."
    )  # fmt: skip
    month_log_std: float = setting(
        2.3, "|ln(std ratio)| of a single month for stock and sector features: ten times the "
        "spread or a tenth; a column that went dead."
    )  # fmt: skip
    missing_growth: float = setting(
        0.4,
        "Rise of the share of unknown values in any month: a table that stopped arriving. "
        "Forecasts and statements have seasons: stmt_rev_fore_np rises by 0.24 every June.",
    )


def drift_within_limits(judged: pl.DataFrame, limits: DriftLimits, picture: str = "") -> Outcome:
    """Raw statistics after the training dates are near those of the training dates.

    Args:
        judged: From ``judge``.
        limits: At the ERROR level ``on_drift`` says whether the verdict stops.
        picture: Markdown shown below the worst rows.
    """
    levels = dict(judged.group_by("level").len().iter_rows())
    errors, warnings = levels.get("error", 0), levels.get("warn", 0)
    worst = judged.sort("of_limit", descending=True, nulls_last=True)
    named = worst.filter(pl.col("level") != "ok").unique("feature", maintain_order=True)
    reasons = named["reason"].to_list()
    more = f" and {len(reasons) - 3} more features" if len(reasons) > 3 else ""
    if judged.is_empty():
        figure = "no month after the training dates"
    elif reasons:
        figure = "; ".join(reasons[:3]) + more
    else:
        top = worst.row(0, named=True)
        figure = f"worst {top['feature']}: {top['of_limit']:.0%} of its limit"
    table = markdown_table(SHOWN_COLUMNS, worst.select(SHOWN_COLUMNS).head(SHOWN).iter_rows())
    by_feature = judged.filter(pl.col("level") == "error")["feature"].n_unique()
    largest = judged["of_limit"].max()
    return Outcome(
        "drift_within_limits",
        not reasons,
        figure,
        f"below {limits.drift_warn_share:.0%} of each limit",
        severity="ERROR" if errors and limits.on_drift == "fail" else "WARN",
        numbers={
            "features_at_error": by_feature,
            "rows_at_error": errors,
            "rows_at_warn": warnings,
            "worst_share_of_limit": float(largest) if isinstance(largest, float) else 0.0,
        },
        details=f"{table}\n\n{picture}",
    )


SHOWN_COLUMNS = [
    "feature", "month", "months", "mean_shift", "std_ratio", "psi", "missing_growth", "of_limit",
    "level",
]  # fmt: skip


def judge(measured: pl.DataFrame, limits: DriftLimits) -> pl.DataFrame:
    """The ``feature_drift`` table: what was measured, and the verdict on each row.

    Args:
        measured: From ``transforms.drift.measure_drift``.
        limits: The ERROR limits.

    Returns:
        The same rows with ``of_limit`` (the largest figure as a share of its ERROR limit; null for
        a month too short to judge), ``level`` (ok, warn or error) and ``reason`` (what is out, in
        words; null when ok).
    """
    verdicts = [_judge_row(row, limits) for row in measured.iter_rows(named=True)]
    schema = {"of_limit": pl.Float64, "level": pl.String, "reason": pl.String}
    return measured.hstack(pl.DataFrame(verdicts, schema=schema, orient="row"))


def _judge_row(row: Mapping[str, Any], limits: DriftLimits) -> tuple[float | None, str, str | None]:
    if row["months"] == 1 and row["dates"] < MIN_DATES:
        return None, "ok", None
    allowed = month_limits(row, limits) if row["months"] == 1 else lasting_limits(row, limits)
    figures = {
        "mean shift": row["mean_shift"],
        "ln(std ratio)": _log(row["std_ratio"]),
        "PSI": row["psi"],
        "rise of missing share": row["missing_growth"],
    }
    shares = {
        name: (value if name == "rise of missing share" else abs(value)) / allowed[name]
        for name, value in figures.items()
        if value is not None
    }
    name = max(shares, key=lambda key: shares[key])
    share = shares[name]
    level = "error" if share >= 1.0 else "warn" if share >= limits.drift_warn_share else "ok"
    bound = allowed[name]
    if level == "ok" and _moved_with_its_market(row, limits):
        name, level, bound = "mean shift", "warn", limits.lasting_shift_ceiling
    if level == "ok":
        return share, level, None
    when = f"{row['month']:%Y-%m}"
    span = when if row["months"] == 1 else f"the {row['months']} months to {when}"
    return (
        share,
        level,
        (f"{row['feature']}: {name} is {figures[name]:.3g} in {span}, expected below {bound:.3g}"),
    )


def _moved_with_its_market(row: Mapping[str, Any], limits: DriftLimits) -> bool:
    """A market-wide series that moved as far, for as long, as would be an ERROR of a stock's.

    Chance may explain it, so nothing stops; a person should still hear of it.
    """
    return (
        row["scope"] in MARKET_WIDE
        and row["normalizer"] != "none"
        and row["months"] >= CEILING_MONTHS
        and row["mean_shift"] is not None
        and abs(row["mean_shift"]) >= limits.lasting_shift_ceiling
    )


def month_limits(row: Mapping[str, Any], limits: DriftLimits) -> dict[str, float]:
    """What a single month may deviate; infinite where one month tells nothing."""
    shift = max(limits.month_shift, _times(limits.month_noise, row["shift_noise"]))
    flag, market = row["normalizer"] == "none", row["scope"] in MARKET_WIDE
    return {
        "mean shift": math.inf if flag and market else min(shift, limits.month_shift_ceiling),
        # A market-wide series may hold one value, or any part of its range, for a month.
        "ln(std ratio)": math.inf if flag or market else limits.month_log_std,
        "PSI": math.inf,
        "rise of missing share": limits.missing_growth,
    }


def lasting_limits(row: Mapping[str, Any], limits: DriftLimits) -> dict[str, float]:
    """What the last months together may deviate."""
    noise = limits.lasting_noise
    shift = max(limits.lasting_shift, _times(noise, row["shift_noise"]))
    log_std = max(limits.lasting_log_std, _times(noise, row["log_std_noise"]))
    psi = max(limits.lasting_psi, _times(noise, row["psi_noise"]))
    flag, market = row["normalizer"] == "none", row["scope"] in MARKET_WIDE
    if not market and row["months"] >= CEILING_MONTHS:
        shift = min(shift, limits.lasting_shift_ceiling)
        log_std = min(log_std, limits.lasting_log_std_ceiling)
        psi = min(psi, limits.lasting_psi_ceiling)
    return {
        # A flag of the whole market says which regime it is in: a year of one value is no fault.
        "mean shift": math.inf if flag and market else shift,
        "ln(std ratio)": math.inf if flag else log_std,
        "PSI": math.inf if flag else psi,
        "rise of missing share": limits.missing_growth,
    }


def _times(factor: float, noise: float | None) -> float:
    """No reference for chance (too few training months) leaves the ceiling as the limit."""
    return math.inf if noise is None else factor * noise


def _log(ratio: float | None) -> float | None:
    return None if ratio is None else math.log(max(ratio, 1e-3))
