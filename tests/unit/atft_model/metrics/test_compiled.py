"""Rank ICs in machine code are NumPy's to the last bit, whatever the values; and can be missing."""

import sys
from collections.abc import Iterator

import numba
import numpy as np
import pytest
from scipy import stats

from atft_model.metrics import compiled, rank_ic
from atft_model.metrics.rank_ic import MIN_STOCKS

DATES = 6
STOCKS = (2, 3, 29, 30, 300, 4001)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Whether machine code is in use is remembered by the process."""
    yield
    rank_ic._compiled.cache_clear()


def _plain(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal(shape), rng.standard_t(2, shape)


def _awkward(kind: str, stocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(stocks)
    x, y = _plain(rng, (DATES, stocks))
    match kind:
        case "tied scores":
            x = x.round(1)
        case "tied returns":
            y[rng.random(y.shape) < 0.2] = 0.0
        case "ties on both sides":
            x, y = x.round(), y.round()
        case "zeros of both signs":
            x = np.where(rng.random(x.shape) < 0.5, 0.0, -0.0) * (x > 1) + x * (x < 0)
        case "constant":
            x[:] = 1.0
        case "nearly constant":
            x = 1.0 + 1e-12 * x
        case "two clusters that float32 cannot resolve":
            x = np.where(rng.random(x.shape) < 0.5, 1.0, 1e9) + 1e-6 * x
        case "sizes beyond float32":
            x, y = x * 1e300, y * 1e-310
        case "heavy tails":
            x = np.sign(x) * np.exp(20 * x * x)
    return x, y, rng.random(x.shape) < 0.9


@pytest.mark.parametrize("stocks", STOCKS)
@pytest.mark.parametrize(
    "kind",
    ["plain", "tied scores", "tied returns", "ties on both sides", "zeros of both signs",
     "constant", "nearly constant", "two clusters that float32 cannot resolve",
     "sizes beyond float32", "heavy tails"],
)  # fmt: skip
def test_machine_code_gives_the_bits_of_numpy(kind: str, stocks: int) -> None:
    x, y, usable = _awkward(kind, stocks)
    found = np.full(DATES, 9.0)
    compiled.rank_correlations(x, y, usable, 2, found)
    np.testing.assert_array_equal(found, rank_ic._rank_correlation(x, y, usable, 2))
    if kind in ("plain", "tied scores", "two clusters that float32 cannot resolve") and stocks > 29:
        theirs = stats.spearmanr(x[0][usable[0]], y[0][usable[0]]).statistic
        assert found[0] == pytest.approx(theirs, abs=1e-12)


def test_dates_with_few_pairs_are_undefined() -> None:
    x, y = _plain(np.random.default_rng(0), (2, MIN_STOCKS))
    usable = np.ones(x.shape, dtype=bool)
    usable[1, 0] = False
    found = np.empty(2)
    compiled.rank_correlations(x, y, usable, MIN_STOCKS, found)
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_many_cells_are_ranked_by_machine_code_and_then_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = _plain(np.random.default_rng(0), (40, 50))
    usable = np.ones(x.shape, dtype=bool)
    few = rank_ic.rank_ic(x, y, usable)
    assert not rank_ic._compiled.cache_info().currsize
    monkeypatch.setattr(rank_ic, "_CELLS_WORTH_COMPILED_CODE", x.size)
    # A transposed array and float32 too: the code itself takes plain float64 alone.
    np.testing.assert_array_equal(rank_ic.rank_ic(x, y, usable), few)
    assert rank_ic._compiled.cache_info().currsize
    monkeypatch.undo()
    assert rank_ic._compiled_if_worth_it(1) is compiled.rank_correlations
    turned = np.asfortranarray(x.astype(np.float32)), np.asfortranarray(y), usable
    with_code = rank_ic.rank_ic(*turned)
    rank_ic._compiled.cache_clear()
    np.testing.assert_array_equal(with_code, rank_ic.rank_ic(*turned))


def test_without_numba_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "atft_model.metrics.compiled")
    assert rank_ic._compiled_if_worth_it(10**9) is None


def test_another_missing_module_is_not_taken_for_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atft_model.metrics.compiled", None)
    with pytest.raises(ModuleNotFoundError, match="compiled"):
        rank_ic._compiled_if_worth_it(10**9)


def test_where_nothing_can_be_stored_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the folders numba would store it in only the one that nobody named.
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")

    def copied(x: np.ndarray, y: np.ndarray, usable: np.ndarray, n: int, out: np.ndarray) -> None:
        out[:] = x[:, 0]

    out = np.zeros(2)
    compiled.machine_code(copied)(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1), bool), 0, out)
    assert out.tolist() == [1.0, 1.0]
