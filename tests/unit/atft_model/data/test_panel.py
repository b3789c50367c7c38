"""The panel's reader: it opens what was written and refuses everything else, in one line."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from atft_model.data.artifacts import current_version, publish
from atft_model.data.panel import ARRAYS, RAW, Panel, check_axes, read_panel, write_panel
from atft_model.errors import InputError


@pytest.fixture
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


OF_FILES = ("hash", "files", "lengths")


def _stored_with(panel: Panel, root: Path, raw: tuple[str, ...] = RAW, **changes) -> Path:
    """A panel whose arrays or manifest facts differ, under hashes that fit them."""
    write_panel(panel, root / "good")
    manifest = json.loads((current_version(root / "good", "panel") / "manifest.json").read_text())
    facts = {key: value for key, value in manifest.items() if key not in OF_FILES}
    arrays = {name: np.asarray(getattr(panel, name)) for name in ARRAYS}
    for name, value in changes.items():
        is_array = isinstance(value, np.ndarray) or (value is None and name in ARRAYS)
        place = arrays if is_array else facts
        if value is None:
            del place[name]
        else:
            place[name] = value
    publish(root / "bad", arrays, facts, raw)
    return root / "bad"


def test_what_was_written_is_read(panel, tmp_path):
    written = dataclasses.replace(panel, inputs={"prices": "0123"})
    assert write_panel(written, tmp_path) != panel.hash
    read = read_panel(tmp_path)
    for field in dataclasses.fields(Panel):
        left, right = getattr(read, field.name), getattr(written, field.name)
        if field.name in ARRAYS:
            np.testing.assert_array_equal(left, right)
            assert isinstance(left, np.memmap)
        elif field.name != "hash":
            assert left == right


def test_features_in_another_order_are_another_panel(panel, tmp_path):
    names = panel.feature_names[::-1]
    assert write_panel(dataclasses.replace(panel, feature_names=names), tmp_path) != panel.hash
    with pytest.raises(InputError, match="feature 0 is 'feature_0', the panel has 'feature_5'"):
        check_axes(read_panel(tmp_path), panel.feature_names, "run r")
    with pytest.raises(InputError, match="5 features, the panel has 6"):
        check_axes(panel, panel.feature_names[:5], "run r")


def test_a_manifest_with_swapped_features_is_refused(panel, tmp_path):
    write_panel(panel, tmp_path)
    path = current_version(tmp_path, "panel") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["features"] = manifest["features"][::-1]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was edited after it was written"):
        read_panel(tmp_path)


def test_another_tensor_under_the_same_manifest_is_refused(panel, tmp_path):
    write_panel(panel, tmp_path)
    folder = current_version(tmp_path, "panel")
    features = np.array(panel.features)
    features[3, 2, 1] += 1e-3
    features.tofile(folder / "features.raw")
    with pytest.raises(InputError, match=r"features\.raw: content differs from the manifest"):
        read_panel(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "panel format 1, expected 3; materialize panel again"),
        ({"inputs": None}, "no inputs; materialize panel again"),
        ({"targets": None}, r"no targets\.npy; materialize"),
        ({"features": [f"feature_{i % 5}" for i in range(6)]}, "features holds feature_0 twice"),
        ({"codes": ["S000"] * 40}, "codes holds S000 twice"),
        ({"normalizers": ["cross_section"]}, "1 normalizers .cross_section. for 6 features"),
        ({"normalizers": ["magic"] * 6}, "6 normalizers .magic. for 6 features; expected one of"),
        ({"dates": ["2020-01-02", "2020-01-01"]}, "dates do not rise"),
        (
            {"codes": ["S000"]},
            r"230,400 bytes, but the manifest names .* = \[240, 1, 6\] of float32",
        ),
        ({"raw": ()}, r"no features\.raw, length of features\.raw; materialize"),
        ({"horizons": [1, 5]}, r"targets\.npy: float32 \[240, 40, 4\], but the manifest"),
        ({"observed": np.ones((240, 40), np.float32)}, r"observed\.npy: float32 .* of bool"),
        ({"sector": np.zeros(3, np.int16)}, r"sector\.npy: int16 \[3\]"),
    ],
)
def test_a_mismatch_is_refused(panel, tmp_path, changes, message):
    """Also where the hashes fit, as after a writer with a fault."""
    folder = _stored_with(panel, tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_panel(folder)
    assert "\n" not in str(caught.value)
