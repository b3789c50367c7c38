"""Window statistics against a plain loop, and their bits against another history."""

import math
import statistics
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from atft_pipeline.transforms.windows import (
    BLOCK,
    ago,
    bar_numbers,
    window_covariance,
    window_max,
    window_mean,
    window_min,
    window_std,
    window_var,
)

X, Y = pl.col("x"), pl.col("y")
LENGTHS = (120, 3, 1, 40)
"""Bars of four series below each other; two are shorter than the windows."""


def column(*series: np.ndarray) -> pl.DataFrame:
    """The series below each other."""
    first = np.concatenate([np.arange(len(values)) == 0 for values in series])
    values = pl.Series("x", np.concatenate(series), nan_to_null=True)
    return pl.DataFrame({"x": values, "y": values.reverse(), "bar": bar_numbers(first)})


def walks(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    series = [100.0 + rng.standard_normal(length).cumsum() for length in LENGTHS]
    series[0][30] = np.nan
    return series


def windows(frame: pl.DataFrame, bars: int) -> list[list[tuple[float | None, float | None]]]:
    """Of each row, the pairs of its series that the window holds."""
    rows = list(zip(frame["x"], frame["y"], strict=True))
    return [
        rows[max(t - bars, t - bar) + 1 : t + 1] for t, bar in enumerate(frame["bar"].to_list())
    ]


Plain = Callable[[list[float], list[float]], float]
FULL: dict[str, tuple[pl.Expr, int, Plain]] = {
    "mean of 20": (window_mean(X, 20), 20, lambda x, y: math.fsum(x) / 20),
    "mean of 5": (window_mean(X, 5), 5, lambda x, y: math.fsum(x) / 5),
    "mean of 1": (window_mean(X, 1), 1, lambda x, y: x[0]),
    "mean of 32": (window_mean(X, 32), 32, lambda x, y: math.fsum(x) / 32),
    "std of 20": (window_std(X, 20), 20, lambda x, y: statistics.stdev(x)),
    "population std of 7": (window_std(X, 7, ddof=0), 7, lambda x, y: statistics.pstdev(x)),
    "variance of 30": (window_var(X, 30), 30, lambda x, y: statistics.pvariance(x)),
    "covariance of 20": (
        window_covariance(X, Y, 20), 20, lambda x, y: statistics.covariance(x, y) * 19 / 20
    ),
    "largest of 14": (window_max(X, 14), 14, lambda x, y: max(x)),
    "smallest of 14": (window_min(X, 14), 14, lambda x, y: min(x)),
    "largest of 16": (window_max(X, 16), 16, lambda x, y: max(x)),
    "earlier by 5": (ago(X, 5), 6, lambda x, y: x[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_a_full_window_is_the_plain_one_and_unknown_where_a_value_is(name: str) -> None:
    expression, bars, plain = FULL[name]
    frame = column(*walks())
    found = frame.select(found=expression)["found"].to_list()
    known = 0
    for got, window in zip(found, windows(frame, bars), strict=True):
        x, y = [pair[0] for pair in window], [pair[1] for pair in window]
        read = (x, y) if name.startswith("covariance") else (x[:1],) if "earlier" in name else (x,)
        if len(window) < bars or any(None in values for values in read):
            assert got is None
        else:
            assert got == pytest.approx(plain(x, y), rel=1e-12)  # type: ignore[arg-type]
            known += 1
    assert known > 20


PARTIAL: dict[str, tuple[pl.Expr, Callable[[list[float]], float]]] = {
    "mean": (window_mean(X, 25, 10), lambda x: math.fsum(x) / len(x)),
    "std": (window_std(X, 25, min_samples=10), statistics.stdev),
    "largest": (window_max(X, 25, 10), max),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_a_window_that_may_be_partial_takes_its_known_values(name: str) -> None:
    expression, plain = PARTIAL[name]
    frame = column(*walks())
    found = frame.select(found=expression)["found"].to_list()
    for got, window in zip(found, windows(frame, 25), strict=True):
        known = [x for x, _ in window if x is not None]
        if len(known) < 10:
            assert got is None
        else:
            assert got == pytest.approx(plain(known), rel=1e-12)


ALL = {name: case[0] for name, case in FULL.items()} | {
    f"partial {name}": case[0] for name, case in PARTIAL.items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_window_has_the_same_bits_whatever_stands_before_it(name: str) -> None:
    """Other history, another place in the column, another block of rows."""
    rng = np.random.default_rng(3)
    tail = rng.lognormal(size=200)
    huge = rng.lognormal(20.0, size=BLOCK - 91)
    alone = column(tail)
    after = column(rng.random(11), np.concatenate([huge, tail]))
    expression = ALL[name]
    # y is x backwards, so give both frames the same second column over the tail.
    y = pl.Series("y", rng.random(200))
    alone = alone.with_columns(y)
    after = after.with_columns(y=pl.concat([pl.Series("y", huge[:1]).new_from_index(
        0, after.height - 200), y]))  # fmt: skip
    mine = alone.select(found=expression)["found"][60:]
    theirs = after.select(found=expression)["found"][-140:]
    assert mine.null_count() == 0
    assert (mine.to_numpy().view(np.uint64) == theirs.to_numpy().view(np.uint64)).all()


def test_a_running_sum_has_other_bits() -> None:
    """The test above can fail: it would for a mean from the difference of two running sums."""
    rng = np.random.default_rng(3)
    tail, huge = rng.lognormal(size=200), rng.lognormal(20.0, size=500)
    running = (X.cum_sum() - X.cum_sum().shift(20)) / 20
    alone = column(tail).select(running)["x"][60:]
    after = column(np.concatenate([huge, tail])).select(running)["x"][-140:]
    assert not alone.equals(after)


def test_an_empty_column_stays_empty() -> None:
    empty = column(np.array([]))
    for expression in ALL.values():
        assert empty.select(found=expression).height == 0
