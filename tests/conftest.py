"""Shared fixtures; shapes declared with jaxtyping are enforced in every test."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Only where shapes are declared: elsewhere it would check plain types, as pyright does, and take a
# quarter of the time of a training step.
LIBRARY = Path(__file__).parents[1] / "atft_model"
install_import_hook(
    [
        ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
        for path in sorted(LIBRARY.rglob("*.py"))
        if "jaxtyping" in path.read_text()
    ],
    "beartype.beartype",
)

from atft_model.data.graph import GraphConfig, build_graph, write_graph  # noqa: E402
from atft_model.data.panel import write_panel  # noqa: E402
from atft_model.data.toy_panel import make_panel  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """One worker for each file, and one for all files that use the whole graph's run.

    That run takes 45 s, and lives in the process that made it.
    """
    shared = {item.path for item in items if "whole" in getattr(item, "fixturenames", ())}
    for item in items:
        group = "whole" if item.path in shared else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """No setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith(("ATFT_", "DAGSTER_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def stored_panel(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a stored small panel and its graph."""
    from atft_model.data.panel import read_panel

    root = tmp_path_factory.mktemp("stored")
    write_panel(make_panel(), root / "panel")
    panel = read_panel(root / "panel")
    write_graph(build_graph(panel, GraphConfig(neighbours=5)), root / "graph")
    return root / "panel", root / "graph"
