"""Splits, versions on disk and the graph."""

import json

import numpy as np
import pytest

from atft_model.data.artifacts import current_version, publish, read_manifest
from atft_model.data.graph import GraphConfig, nearest_neighbours, read_graph
from atft_model.data.panel import read_panel
from atft_model.data.splits import Split, SplitConfig, assert_purged, split_dates
from atft_model.errors import InputError

HORIZONS = (1, 5, 10, 20)


def test_parts_are_purged_and_embargoed():
    split = split_dates(1000, HORIZONS, SplitConfig(embargo=5))
    assert split.validation[0] - split.train[1] == 26
    assert split.test[0] - split.validation[1] == 26
    assert_purged(split, HORIZONS)


def test_a_label_across_the_boundary_is_refused():
    with pytest.raises(InputError, match="leave 21 trading days"):
        assert_purged(Split((0, 80), (100, 200), (230, 300)), HORIZONS)


def test_too_few_dates_are_refused():
    with pytest.raises(InputError, match="give more dates"):
        split_dates(100, HORIZONS, SplitConfig())


def test_versions_are_verified_when_read(tmp_path):
    first = publish(tmp_path, {"a": np.arange(3)}, {"x": 1})
    assert publish(tmp_path, {"a": np.arange(3)}, {"x": 1}) == first
    folder = current_version(tmp_path, "thing")
    read_manifest(folder, "thing")
    data = bytearray((folder / "a.npy").read_bytes())
    data[-1] ^= 1
    (folder / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match="content differs"):
        read_manifest(folder, "thing")
    (folder / "a.npy").unlink()
    with pytest.raises(InputError, match="missing"):
        read_manifest(folder, "thing")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "x": 2}))
    with pytest.raises(InputError, match="edited"):
        read_manifest(folder, "thing")
    with pytest.raises(InputError, match="materialize panel first"):
        read_panel(tmp_path / "nothing")


def test_neighbours_equal_corrcoef():
    rng = np.random.default_rng(0)
    returns = rng.standard_normal((60, 1)) + rng.standard_normal((60, 30))
    observed = np.ones_like(returns, dtype=bool)
    neighbours, correlation = nearest_neighbours(returns, observed, GraphConfig(neighbours=4))
    matrix = np.corrcoef(returns.T)
    np.fill_diagonal(matrix, -2)
    expected = np.argsort(-matrix, axis=1)[:, :4]
    assert (neighbours == expected).all()
    assert np.allclose(correlation, np.take_along_axis(matrix, expected, axis=1), atol=1e-5)


def test_a_graph_of_another_panel_is_refused(stored_panel):
    import dataclasses

    panel = dataclasses.replace(read_panel(stored_panel[0]), hash="other")
    with pytest.raises(InputError, match="materialize stock_graph again"):
        read_graph(stored_panel[1], panel)


def test_a_graph_has_the_same_bits_beside_stocks_that_are_not_listed_yet():
    """The low bits of a matrix product depend on its shape."""
    rng = np.random.default_rng(3)
    for stocks in (33, 61, 97, 130):
        returns = rng.standard_normal((60, stocks)).astype(np.float32)
        beside = np.insert(returns, [0, 5, 5, 20, stocks], np.nan, axis=1)
        neighbours, correlation = nearest_neighbours(
            returns, np.isfinite(returns), GraphConfig(neighbours=5)
        )
        more, more_correlation = nearest_neighbours(
            beside, np.isfinite(beside), GraphConfig(neighbours=5)
        )
        listed = np.isfinite(beside).all(axis=0)
        assert (more_correlation[listed] == correlation).all()
        assert (np.flatnonzero(listed)[neighbours] == more[listed]).all()
        assert (more[~listed] == -1).all()
