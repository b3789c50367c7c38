"""The page of features is the registry's, and is the one in the repository."""

from pathlib import Path

import pytest

from atft_pipeline.__main__ import main
from atft_pipeline.feature_page import COMMAND, features_page
from atft_pipeline.feature_registry import REGISTRY

PAGE = Path(__file__).resolve().parents[3] / "docs" / "features.md"


def test_the_stored_page_is_current() -> None:
    assert PAGE.read_text() == features_page(), f"write it again: {COMMAND}"


def test_every_feature_has_a_row_with_all_cells() -> None:
    rows = [line for line in features_page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [feature.name for feature in REGISTRY]
    cells = [row.replace(r"\|", "").strip("|").split("|") for row in rows]
    assert all(len(row) == 5 and all(cell.strip() for cell in row) for row in cells)


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features-table"]) == 0
    assert capsys.readouterr().out == features_page()
