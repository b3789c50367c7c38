"""Batches of runs: every date once, of one length each, never fewer than planned."""

import numpy as np
import pytest
import torch

from atft_model.data.batches import (
    DevicePanel,
    Share,
    epoch_batches,
    fewest_batches,
    fit_target_scale,
    shares,
)
from atft_model.data.graph import read_graph
from atft_model.data.panel import fit_statistics, read_panel
from atft_model.data.relative import MIN_SECTOR


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


@pytest.mark.parametrize("runs", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9])
def test_the_parts_of_a_batch_hold_each_of_its_dates_once(runs, length, parts):
    starts = 100 * np.arange(runs)
    cut = shares(starts, length, parts)
    assert [part.number for part in cut] == list(range(parts))
    dates = [
        int(start) + day
        for part in cut
        if not part.empty
        for start in part.starts
        for day in range(part.length)
    ]
    assert sorted(dates) == [int(start) + day for start in starts for day in range(length)]
    full = [len(part.starts) * part.length for part in cut if not part.empty]
    assert max(full) - min(full) <= max(runs, length)
    assert len(full) == min(parts, max(runs, length))


def test_only_what_scores_rank_is_relative_to_the_sector(stored_panel):
    """The mean is that of the stocks that can be scored; some that are tradable cannot be."""
    panel = read_panel(stored_panel[0])
    train, starts, length = panel.split.train, np.array([30, 77]), 6
    by_date, by_sector = (
        DevicePanel(
            panel, read_graph(stored_panel[1], panel), fit_statistics(panel, train),
            fit_target_scale(panel, train), 5, torch.device("cpu"), relative_to,
        )
        for relative_to in ("date", "sector")
    )  # fmt: skip
    assert by_date.rank_target is by_date.target
    assert (np.asarray(panel.tradable) & ~by_sector.scorable_on_host).any()
    by_date, by_sector = (data.batch(starts, length) for data in (by_date, by_sector))
    assert torch.equal(by_date.rank_target, by_date.target)
    assert torch.equal(by_sector.target, by_date.target)
    assert torch.equal(by_sector.valid, by_date.valid)
    for run, start in enumerate(starts):
        for day in range(length):
            raw = torch.from_numpy(np.array(panel.targets[start + day], dtype=np.float64))
            for number in (1, 2, 3):
                mine = (by_sector.sector[run] == number) & by_sector.valid[run, day, :, 1]
                assert mine.sum() >= MIN_SECTOR
                returns = raw[by_sector.stocks[run][mine], 1]
                torch.testing.assert_close(
                    by_sector.rank_target[run, day, mine, 1], (returns - returns.mean()).float()
                )
    assert (by_sector.rank_target[~by_sector.valid] == 0).all()


def test_a_batch_is_counted_as_its_tensors_are(stored_panel):
    """On the host, from the panel, for the means of its loss: as the device would count them."""
    panel = read_panel(stored_panel[0])
    scale = fit_target_scale(panel, panel.split.train)
    data = DevicePanel(
        panel, read_graph(stored_panel[1], panel), fit_statistics(panel, panel.split.train), scale,
        5, torch.device("cpu"),
    )  # fmt: skip
    starts, length = np.array([30, 77, 150]), 6
    counts, batch = data.count(starts, length, 39), data.batch(starts, length)
    per_date = batch.valid.flatten(0, 1).sum(dim=1)
    assert counts.windows == batch.windows == int(batch.scorable.sum())
    assert counts.dates == 18
    assert counts.entries == int(batch.valid.sum())
    assert counts.ranked == tuple((per_date >= 39).sum(dim=0).tolist())
    assert 0 < sum(counts.ranked) < 18 * len(panel.horizons)
    assert counts.spread == tuple((per_date >= 2).sum(dim=0).tolist())
    empty = data.share(Share(starts[:1], 1, 0, empty=True))
    assert not empty.valid.any()
    assert not empty.scorable.any()
