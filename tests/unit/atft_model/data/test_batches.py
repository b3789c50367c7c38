"""Batches of runs: every date once, of one length each, never fewer than planned."""

import numpy as np
import pytest

from atft_model.data.batches import epoch_batches, fewest_batches


def calendar(dates: int, gaps: int) -> np.ndarray:
    """Usable dates, some left out."""
    usable = np.ones(dates, dtype=bool)
    usable[np.random.default_rng(dates).integers(0, dates, gaps)] = False
    return usable


@pytest.mark.parametrize(("dates", "gaps"), [(1, 0), (7, 0), (121, 0), (300, 2), (300, 25)])
@pytest.mark.parametrize("length", [1, 4, 8])
@pytest.mark.parametrize("runs_per_batch", [1, 3])
def test_an_epoch_holds_every_date_once(dates, gaps, length, runs_per_batch):
    usable = calendar(dates, gaps)
    for generator in (None, np.random.default_rng(0)):
        seen = []
        for starts, run in epoch_batches(usable, length, runs_per_batch, generator):
            assert 1 <= len(starts) <= runs_per_batch
            assert 1 <= run <= length
            seen += [start + day for start in starts for day in range(run)]
        assert sorted(seen) == np.flatnonzero(usable).tolist()


def test_epochs_differ_and_the_seed_decides():
    usable = calendar(121, 0)

    def epochs(seed: int) -> list[list[tuple[list[int], int]]]:
        generator = np.random.default_rng(seed)
        return [
            [(starts.tolist(), run) for starts, run in epoch_batches(usable, 8, 2, generator)]
            for _ in range(3)
        ]

    first = epochs(1)
    assert first == epochs(1)
    assert first != epochs(2)
    assert first[0] != first[1] != first[2]


@pytest.mark.parametrize(("dates", "gaps"), [(121, 0), (121, 10), (300, 0), (300, 2), (720, 10)])
@pytest.mark.parametrize("length", [4, 8, 16])
@pytest.mark.parametrize("runs_per_batch", [1, 2, 3, 7])
def test_no_epoch_has_fewer_batches_than_planned(dates, gaps, length, runs_per_batch):
    usable = calendar(dates, gaps)
    planned = fewest_batches(usable, length, runs_per_batch)
    generator = np.random.default_rng(0)
    found = [len(list(epoch_batches(usable, length, runs_per_batch, generator))) for _ in range(60)]
    assert min(found) == planned


def test_the_uncut_epoch_can_have_more_than_others():
    """Planning with it asked for twenty readings of epochs that have nineteen steps."""
    usable = calendar(300, 0)
    assert len(list(epoch_batches(usable, 8, 2))) == 20
    assert fewest_batches(usable, 8, 2) == 19
