"""A stored structure: what comes back, and every reason not to use it."""

from dataclasses import replace

import pytest

from atft_model.errors import InputError
from atft_model.structure.record import Edge
from atft_model.structure.stored import StoredStructure, publish_structure, read_structure
from tests.support.structure_record import EDGES, sound_record

SOUND = StoredStructure(sound_record(), "", {"A": "metals", "B": "banks"}, "panel-1")


def test_it_comes_back_as_it_was(tmp_path):
    version = publish_structure(SOUND, tmp_path)
    again = read_structure(tmp_path)
    assert again.record is not None
    assert again.record.edges == SOUND.record.edges
    assert again.group_of == SOUND.group_of
    assert again.refusal("panel-1") is None
    slower = replace(
        SOUND, record=sound_record(seconds={"table": 9.0}, processor_seconds={"table": 8.0})
    )
    assert publish_structure(slower, tmp_path) == version  # how long it took is not what it says


def test_the_last_version_is_the_only_one(tmp_path):
    first = publish_structure(SOUND, tmp_path)
    second = publish_structure(replace(SOUND, panel_hash="panel-2"), tmp_path)
    assert first != second
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [second]


def test_another_panels_structure_is_refused():
    assert "is of panel panel-1, not of panel-2" in (SOUND.refusal("panel-2") or "")


def test_nothing_learned_is_refused_with_the_reason(tmp_path):
    publish_structure(StoredStructure(None, "too few days", {}, "panel-1"), tmp_path)
    again = read_structure(tmp_path)
    assert again.record is None
    assert again.refusal("panel-1") == "nothing was learned: too few days"


def test_a_failed_check_is_refused_by_name_even_if_somebody_stored_a_better_verdict(tmp_path):
    cycle = (*EDGES, Edge("banks", "metals", 0, 0.2, 0.9, 0.9, True))
    publish_structure(replace(SOUND, record=sound_record(edges=cycle)), tmp_path)
    assert (read_structure(tmp_path).refusal("panel-1") or "").startswith("is_acyclic: ")


def test_a_warning_alone_refuses_nothing():
    hidden = {"likely": True, "bic_gain": 90.0, "driven_share": 0.9}
    assert replace(SOUND, record=sound_record(hidden_factor=hidden)).refusal("panel-1") is None


def test_a_structure_that_was_never_learned_is_an_error(tmp_path):
    with pytest.raises(InputError, match="materialize learned_structure first"):
        read_structure(tmp_path)
