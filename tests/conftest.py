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

GRAPH_RUN = "graph run"
"""The tests of these files use one run of the whole asset graph, or of its tables, which takes a
minute and lives in the process that made it."""
ON_GRAPH_RUN = {
    "test_acceptance.py", "test_alerts.py", "test_assets.py", "test_bad_input.py",
    "test_importance.py", "test_normalized_features.py", "test_queries.py", "test_realized.py",
    "test_resume_asset.py", "test_serving.py", "test_ui_metadata.py", "test_walk_forward.py",
}  # fmt: skip


def work_unit(nodeid: str) -> str:
    """Tests of one unit run in one process: a file's, or those of all files on the graph run."""
    file = nodeid.partition("::")[0]
    return GRAPH_RUN if Path(file).name in ON_GRAPH_RUN else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deals out the units, most tests first. (pytest 9 and xdist's own groups: no effect.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_unit(nodeid)

    return None if config.getvalue("dist") in ("no", "each") else ByUnit(config, log)


def pytest_collection_modifyitems(items):
    """The units are known by file name, to the process that deals them out too."""
    for item in items:
        if "whole" in getattr(item, "fixturenames", ()) and item.path.name not in ON_GRAPH_RUN:
            raise pytest.UsageError(
                f"tests/conftest.py: {item.path.name} uses the fixture 'whole' but is not in "
                "ON_GRAPH_RUN; add it, or each process makes that run again"
            )


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
