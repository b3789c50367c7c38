"""The order of every date against NumPy's own sort, on values that float32 cannot hold."""

import numpy as np
import pytest

from atft_model.metrics import ordering
from atft_model.metrics.ordering import ascending_order, tied_slots

RNG = np.random.default_rng(7)
SHAPE = (6, 257)


def _values(kind: str) -> np.ndarray:
    normal = RNG.standard_normal(SHAPE)
    if kind == "float32 cannot tell them apart":
        return 1.0 + 1e-9 * normal
    if kind == "pairs that float32 cannot tell apart":
        return np.where(RNG.random(SHAPE) < 0.2, np.roll(normal, 1, axis=1) + 1e-14, normal)
    if kind == "ties":
        return normal.round(1)
    if kind == "constant":
        return np.full(SHAPE, 0.1)
    if kind == "every size":
        return normal * 10.0 ** RNG.integers(-320, 308, SHAPE)
    if kind == "infinities and both zeros":
        return RNG.choice([-np.inf, -1.0, -0.0, 0.0, 1e-320, 1.0, np.inf], SHAPE)
    return normal


KINDS = [
    "normal", "ties", "constant", "every size", "infinities and both zeros",
    "float32 cannot tell them apart", "pairs that float32 cannot tell apart",
]  # fmt: skip


@pytest.mark.parametrize("share_missing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_that_of_a_full_sort(kind: str, share_missing: float) -> None:
    values = _values(kind)
    missing = RNG.random(SHAPE) < share_missing
    values[missing & (RNG.random(SHAPE) < 0.5)] = np.nan  # missing values may be anything
    places, tied = ascending_order(values, missing)
    order = places - np.arange(len(values))[:, None] * SHAPE[1]
    for day in range(len(values)):
        known = values[day, ~missing[day]]
        n = len(known)
        np.testing.assert_array_equal(np.sort(order[day]), np.arange(SHAPE[1]))
        np.testing.assert_array_equal(values[day, order[day, :n]], np.sort(known))
        np.testing.assert_array_equal(order[day, n:], np.flatnonzero(missing[day]))
        assert tied[day] == (len(np.unique(known)) < n)


def test_a_few_swaps_are_enough_for_a_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full sort is there for the rest; with it gone, pairs still come out right."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("sorted in full")

    values = np.where(np.arange(1000) % 10 == 0, 1e-12, 0.0) + (np.arange(1000) // 2 * 2 + 1.0)
    values = values + np.tile([0.0, -1e-12], 500)
    shuffled = RNG.permuted(np.tile(values, (4, 1)), axis=1)
    nothing = np.zeros(shuffled.shape, dtype=bool)
    monkeypatch.setattr(ordering.np, "argsort", refuse)
    places, tied = ascending_order(shuffled, nothing)
    np.testing.assert_array_equal(shuffled.take(places), np.sort(shuffled, axis=1))
    assert not tied.any()


def test_three_in_a_row_the_wrong_way_round_keep_their_values() -> None:
    values = np.tile(np.arange(40.0), (3, 1))
    values[1, 10:13] = 10.0 + np.array([3e-12, 2e-12, 1e-12])
    places, tied = ascending_order(values, np.zeros(values.shape, dtype=bool))
    assert places[1, 9:14].tolist() == [49, 52, 51, 50, 53]
    assert not tied.any()


def test_the_two_zeros_are_a_tie() -> None:
    values = np.array([[1.0, 0.0, -1.0, -0.0], [1.0, 0.0, -1.0, -2.0]])
    assert ascending_order(values, np.zeros(values.shape, dtype=bool))[1].tolist() == [True, False]


def test_groups_of_ties_reach_from_their_first_slot_to_their_last() -> None:
    values = np.array([[2.0, 1.0, np.inf, 1.0, np.inf, 3.0, np.inf]])
    missing = np.arange(7)[None] == 4  # its value counts for nothing, whatever it is
    places, tied = ascending_order(values, missing)
    first, last = tied_slots(values, places, np.array([6]))
    assert tied.tolist() == [True]
    assert first.tolist() == [[0, 0, 2, 3, 4, 4, 6]]
    assert last.tolist() == [[1, 1, 2, 3, 5, 5, 6]]
