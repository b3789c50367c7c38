"""How later dates differ from the training dates, in raw units: a per-date score would hide it.

``fit_reference`` keeps what the training rows look like; ``measure_drift`` compares each later
month with it. Which difference is too large is decided in ``checks.drift``.

Rows are not independent, so their number says nothing about chance. The stocks of a date share one
market, and days within a month share its weather: 20,000 rows of ``volatility_20d`` in a month are
closer to one observation than to 20,000, and a market-wide series has one value per date to begin
with. The yardstick is therefore how far whole *training months* lie from the training reference:
what a calm model of independent rows would need is inside it (market factor, clustering of
volatility, overlapping lookbacks). Months of slow series resemble each other too; their lag-1
correlation r leaves ``n (1 - r) / (1 + r)`` independent months of n (Bartlett's formula for a
first-order autoregression). The expected deviation of a window of w months is that of one month,
scaled by ``sqrt(1 / n_training + 1 / n_w)`` in independent months; PSI, which is quadratic in the
differences of shares, by its square.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from atft_model.data.normalizer import LOWER_QUANTILE, UPPER_QUANTILE
from atft_pipeline.transforms.features import Feature

BINS = 10
"""Deciles of the training values; fewer where values tie."""

CUT = 20.0
"""In winsorized training standard deviations, four times what reaches the model: one absurd row
does not move a month of thousands, a change of unit does."""

FLAG_SCALE = 0.5
"""The standard deviation of a fair coin, used for all flags: a rare flag's own is so small that a
few more of it would be many standard deviations."""

SMALLEST_SHARE = 1e-4
"""Of a PSI bin; an empty bin has no logarithm."""

MIN_DATES = 10
"""Trading days of a month; a shorter one (the table's first and last) is not judged by itself."""

MIN_MONTHS = 6
"""Months from which a deviation between months, or a lasting move, can be told."""

WINDOW_MONTHS = 24
"""The longest window: a lasting move is judged on the last two years, not diluted by all."""

MAX_PERSISTENCE = 0.9
"""Largest month-to-month correlation believed: three years of months cannot tell 0.9 from 1."""


@dataclass(frozen=True)
class _Months:
    """Months and the rows that belong to them.

    Attributes:
        first_days: First calendar day of each month, rising.
        row_month: Of each row: position in ``first_days``.
        dates: Trading dates in each month.
    """

    first_days: list[dt.date]
    row_month: Int[np.ndarray, " rows"]
    dates: Int[np.ndarray, " months"]


@dataclass(frozen=True)
class _Sums:
    """What adds up over months: rows, known values, their sum, sum of squares and bin counts."""

    rows: Float[np.ndarray, " months"]
    known: Float[np.ndarray, " months"]
    total: Float[np.ndarray, " months"]
    square: Float[np.ndarray, " months"]
    bins: Float[np.ndarray, "months bins"]

    def over(self, first: int, last: int) -> "_Sums":
        """The months first to last, last excluded, as one."""
        part = slice(first, last)
        return _Sums(*(array[part].sum(axis=0, keepdims=True) for array in vars(self).values()))


def fit_reference(
    table: pl.DataFrame, features: Sequence[Feature], train_start: dt.date, train_end: dt.date
) -> pl.DataFrame:
    """What each feature's raw values look like on training dates, both ends included.

    Returns:
        One row per feature: ``feature, scope, normalizer, train_start, train_end, rows,
        missing_share``; ``lower, upper``, where values are cut; ``mean, std`` of the cut values (a
        flag's std is ``FLAG_SCALE``); ``edges, shares`` of the PSI bins; ``months``, whole training
        months that were compared; and what those months deviate from the reference:
        ``month_shift`` and ``month_log_std`` (root mean squares), ``month_psi`` (mean),
        ``persistence`` (lag-1 correlation of monthly means, corrected for its small-sample bias,
        from 0 to ``MAX_PERSISTENCE``). The last four are null with fewer than ``MIN_MONTHS``.
    """
    training = table.filter(pl.col("date").is_between(train_start, train_end))
    months = _months(training["date"])
    return pl.DataFrame(
        [
            {
                "feature": feature.name, "scope": feature.scope, "normalizer": feature.normalizer,
                "train_start": train_start, "train_end": train_end,
                **_fit_one(_values(training, feature.name), months, feature),
            }
            for feature in features
        ],
        schema=REFERENCE_SCHEMA,
    )  # fmt: skip


REFERENCE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "feature": pl.String,
    "scope": pl.String,
    "normalizer": pl.String,
    "train_start": pl.Date,
    "train_end": pl.Date,
    "rows": pl.Int64,
    "missing_share": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "mean": pl.Float64,
    "std": pl.Float64,
    "edges": pl.List(pl.Float64),
    "shares": pl.List(pl.Float64),
    "months": pl.Int32,
    "month_shift": pl.Float64,
    "month_log_std": pl.Float64,
    "month_psi": pl.Float64,
    "persistence": pl.Float64,
}


def measure_drift(table: pl.DataFrame, reference: pl.DataFrame) -> pl.DataFrame:
    """Each month after the training dates against the reference, and the last months together.

    Args:
        table: The ``features`` table, raw units, with every feature of the reference.
        reference: From ``fit_reference``.

    Returns:
        One row per feature and month, and one per feature for the last ``WINDOW_MONTHS`` together
        where there are ``MIN_MONTHS`` or more. ``month`` is the first day of the (last) month,
        ``months`` how many the row holds, ``dates`` their trading days. ``mean_shift`` is in
        training standard deviations, ``std_ratio`` and ``psi`` against the training dates,
        ``missing_growth`` the rise of the share of unknown values; the first three are null where
        nothing is known. ``shift_noise, log_std_noise, psi_noise`` are what a window as long
        deviates by itself; null where the reference is too short to tell.
    """
    later = table.filter(pl.col("date") > reference["train_end"].max())
    months = _months(later["date"])
    count = len(months.first_days)
    windows = [(month, month + 1) for month in range(count)]
    if count >= MIN_MONTHS:
        windows.append((max(count - WINDOW_MONTHS, 0), count))
    rows = [
        row
        for known in reference.iter_rows(named=True)
        for row in _measure_one(_values(later, known["feature"]), months, windows, known)
    ]
    return pl.DataFrame(rows, schema=DRIFT_SCHEMA)


DRIFT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "feature": pl.String,
    "scope": pl.String,
    "normalizer": pl.String,
    "month": pl.Date,
    "months": pl.Int32,
    "dates": pl.Int32,
    "rows": pl.Int64,
    "mean_shift": pl.Float64,
    "std_ratio": pl.Float64,
    "psi": pl.Float64,
    "missing_growth": pl.Float64,
    "shift_noise": pl.Float64,
    "log_std_noise": pl.Float64,
    "psi_noise": pl.Float64,
}


def population_stability_index(
    shares: Float[np.ndarray, "... bins"], reference: Float[np.ndarray, " bins"]
) -> Float[np.ndarray, "..."]:
    """``sum((p - q) ln(p / q))`` of the bins' shares, each at least ``SMALLEST_SHARE``."""
    p, q = np.maximum(shares, SMALLEST_SHARE), np.maximum(reference, SMALLEST_SHARE)
    return ((p - q) * np.log(p / q)).sum(axis=-1)


def _fit_one(values: Float[np.ndarray, " rows"], months: _Months, feature: Feature) -> dict:
    known = np.sort(values[np.isfinite(values)])
    if feature.normalizer == "none":
        lower, upper, edges = 0.0, 1.0, np.array([0.5])
    else:
        winsorized = known.clip(*_quantiles(known, [LOWER_QUANTILE, UPPER_QUANTILE]))
        center, spread = winsorized.mean(dtype=np.float64), winsorized.std(dtype=np.float64)
        lower, upper = float(center - CUT * spread), float(center + CUT * spread)
        edges = np.unique(_quantiles(known, np.arange(1, BINS) / BINS))
    sums = _sums(values, months, lower, upper, edges)
    whole = sums.over(0, len(sums.rows))
    mean, std = _moments(whole)
    scale = FLAG_SCALE if feature.normalizer == "none" else float(std[0])
    shares = whole.bins[0] / whole.known[0]
    deviation = _month_deviation(sums, months, float(mean[0]), scale, shares)
    return {
        "rows": len(values), "missing_share": 1.0 - float(whole.known[0] / len(values)),
        "lower": lower, "upper": upper, "mean": float(mean[0]), "std": scale,
        "edges": edges.tolist(), "shares": shares.tolist(), **deviation,
    }  # fmt: skip


def _quantiles(
    ordered: Float[np.ndarray, " values"], shares: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Values at these shares of an ordered array: themselves values, so that ties stay ties."""
    at = np.round(np.asarray(shares) * (len(ordered) - 1)).astype(np.int64)
    return ordered[at].astype(np.float64)


def _month_deviation(
    sums: _Sums, months: _Months, mean: float, scale: float, shares: Float[np.ndarray, " bins"]
) -> dict[str, float | int | None]:
    """How far whole training months lie from all of them together."""
    # The warm-up of a long lookback has months of a few stocks: they are no typical months.
    typical = sums.known >= 0.5 * np.median(sums.known[sums.known > 0])
    whole = np.flatnonzero(typical & (months.dates >= MIN_DATES))
    if len(whole) < MIN_MONTHS:
        names = ("month_shift", "month_log_std", "month_psi", "persistence")
        return {"months": len(whole), **dict.fromkeys(names)}
    part = _Sums(*(array[whole] for array in vars(sums).values()))
    month_mean, month_std = _moments(part)
    shift = (month_mean - mean) / scale
    psi = population_stability_index(part.bins / part.known[:, None], shares)
    return {
        "months": len(whole),
        "month_shift": float(np.sqrt(np.mean(shift**2))),
        "month_log_std": float(np.sqrt(np.mean(_log_ratio(month_std, scale) ** 2))),
        "month_psi": float(psi.mean()),
        "persistence": _persistence(shift),
    }


def _persistence(shift: Float[np.ndarray, " months"]) -> float:
    """Lag-1 correlation plus Kendall's correction ``(1 + 3 r) / n`` of its downward bias."""
    before, after = shift[:-1], shift[1:]
    if np.ptp(before) == 0.0 or np.ptp(after) == 0.0:
        return MAX_PERSISTENCE
    r = float(np.corrcoef(before, after)[0, 1])
    return float(np.clip(r + (1.0 + 3.0 * r) / len(shift), 0.0, MAX_PERSISTENCE))


def _measure_one(
    values: Float[np.ndarray, " rows"],
    months: _Months,
    windows: Sequence[tuple[int, int]],
    known: dict,
) -> list[dict]:
    edges, shares = np.array(known["edges"]), np.array(known["shares"])
    sums = _sums(values, months, known["lower"], known["upper"], edges)
    rows = []
    for first, last in windows:
        part = sums.over(first, last)
        count, seen = last - first, float(part.known[0])
        row = {
            "feature": known["feature"], "scope": known["scope"], "normalizer": known["normalizer"],
            "month": months.first_days[last - 1], "months": count,
            "dates": int(months.dates[first:last].sum()), "rows": int(part.rows[0]),
            "missing_growth": 1.0 - seen / float(part.rows[0]) - known["missing_share"],
            **_noise(known, count),
        }  # fmt: skip
        if seen:
            mean, std = _moments(part)
            psi = population_stability_index(part.bins[0] / seen, shares)
            row["mean_shift"] = float((mean[0] - known["mean"]) / known["std"])
            row["std_ratio"] = float(std[0] / known["std"])
            row["psi"] = float(psi)
        rows.append(row)
    return rows


def _noise(known: dict, months: int) -> dict[str, float | None]:
    """The deviations that a window of ``months`` has without any drift; a month's is measured."""
    if known["month_shift"] is None:
        return dict.fromkeys(("shift_noise", "log_std_noise", "psi_noise"))
    spread = 1.0
    if months > 1:
        independent = (1.0 - known["persistence"]) / (1.0 + known["persistence"])
        training, window = known["months"] * independent, months * independent
        spread = 1.0 / max(training, 1.0) + 1.0 / max(window, 1.0)
    return {
        "shift_noise": known["month_shift"] * spread**0.5,
        "log_std_noise": known["month_log_std"] * spread**0.5,
        "psi_noise": known["month_psi"] * spread,
    }


def _months(date: pl.Series) -> _Months:
    days = pl.DataFrame({"date": date, "month": date.dt.truncate("1mo")})
    found = days.group_by("month").agg(pl.col("date").n_unique().alias("dates")).sort("month")
    position = found.select("month", at=pl.int_range(pl.len(), dtype=pl.Int64))
    at = days.join(position, on="month", how="left", maintain_order="left")["at"].to_numpy()
    return _Months(found["month"].to_list(), at, found["dates"].to_numpy().astype(np.int64))


def _sums(
    values: Float[np.ndarray, " rows"],
    months: _Months,
    lower: float,
    upper: float,
    edges: Float[np.ndarray, " edges"],
) -> _Sums:
    """Monthly sums of the values cut to [lower, upper]; bins are (-inf, edge], ..., (edge, inf)."""
    count, bins = len(months.first_days), len(edges) + 1
    known = np.isfinite(values)
    month, seen = months.row_month[known], values[known]
    cut = np.clip(seen.astype(np.float64), lower, upper)
    bin_of = np.searchsorted(edges.astype(seen.dtype), seen, side="left")
    return _Sums(
        rows=np.bincount(months.row_month, minlength=count).astype(float),
        known=np.bincount(month, minlength=count).astype(float),
        total=np.bincount(month, weights=cut, minlength=count),
        square=np.bincount(month, weights=cut * cut, minlength=count),
        bins=np.bincount(month * bins + bin_of, minlength=count * bins)
        .reshape(count, bins)
        .astype(float),
    )


def _moments(sums: _Sums) -> tuple[Float[np.ndarray, " months"], Float[np.ndarray, " months"]]:
    """Mean and population standard deviation of each entry."""
    mean = sums.total / sums.known
    return mean, np.sqrt(np.maximum(sums.square / sums.known - mean * mean, 0.0))


def _log_ratio(std: Float[np.ndarray, " months"], scale: float) -> Float[np.ndarray, " months"]:
    """``ln(std / scale)``, at least that of a thousandth: a month of one value has no logarithm."""
    return np.log(np.maximum(std / scale, 1e-3))


def _values(table: pl.DataFrame, name: str) -> Float[np.ndarray, " rows"]:
    """The column in its own precision, null turned into NaN."""
    return table[name].fill_null(float("nan")).to_numpy()
