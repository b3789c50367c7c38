"""Every check has advice for the operator, and docs/checks.md is the page of today's checks."""

from pathlib import Path

import dagster as dg
import pytest

from atft_pipeline.__main__ import all_checks
from atft_pipeline.checks.outcome import spec
from atft_pipeline.checks_page import ADVICE, COMMAND, checks_page

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"


def test_every_check_has_advice_and_a_kind():
    assert {check.name for check in all_checks()} <= ADVICE.keys()
    assert {check.metadata["kind"] for check in all_checks()} == {"integrity", "skill"}


def test_the_page_is_current():
    assert PAGE.read_text() == checks_page(all_checks()), f"out of date: run {COMMAND}"


def test_a_check_without_advice_is_noticed():
    with pytest.raises(KeyError, match="moon_is_full"):
        checks_page([*all_checks(), spec("prices", "moon_is_full", "The moon is full.")])


def test_every_asset_shows_who_what_and_where():
    """Description, owner, kinds and group: what the UI shows of an asset before it is opened."""
    from atft_pipeline.definitions import defs

    for asset in defs.resolve_asset_graph().assets_defs:
        for shown in asset.specs:
            name = shown.key.to_user_string()
            assert shown.description, name
            assert shown.owners, name
            assert shown.kinds, name
            assert shown.group_name not in (None, "default"), name
            assert isinstance(shown, dg.AssetSpec)
