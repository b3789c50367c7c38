"""``python -m atft_model`` where only its five packages, and what they need, can be imported."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ALLOWED = ("torch", "numpy", "pyarrow", "torch-geometric", "jaxtyping")
FORBIDDEN = ("polars", "duckdb", "dagster", "pandera", "pandas", "matplotlib", "scipy")
ROOT = Path(__file__).parents[2]

# Python runs a module of this name at the start of every process that finds it on its path. Each
# finder of modules is asked through it, and what may not be found is not found: exactly as if it
# were not installed, also for importlib.util.find_spec.
SITE = """
import sys

FOUND = set({found!r})

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        standard = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        if top in FOUND or standard:
            return self.finder.find_spec(name, path, target)
        return None

    def __getattr__(self, name):
        return getattr(self.finder, name)

early = sorted(set(sys.modules) & set({forbidden!r}))
assert not early, f"imported before the block: {{early}}"
sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
"""


def with_requirements(distribution: str, seen: set[str]) -> set[str]:
    """Names of the distribution and of all that it needs, without extras."""
    # The one package outside the five that this file needs; pytest brings it.
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name = canonicalize_name(distribution)
    if name in seen:
        return seen
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for text in requires:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            with_requirements(requirement.name, seen)
    return seen


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that finds only what is allowed."""
    from packaging.utils import canonicalize_name

    distributions: set[str] = set()
    for name in ALLOWED:
        with_requirements(name, distributions)
    found = {"atft_model", "atft_pipeline", "sitecustomize"}
    for module, owners in importlib.metadata.packages_distributions().items():
        if distributions & {canonicalize_name(owner) for owner in owners}:
            found.add(module)
    assert not found & set(FORBIDDEN)
    folder = tmp_path_factory.mktemp("site")
    site = SITE.format(found=sorted(found), forbidden=FORBIDDEN)
    (folder / "sitecustomize.py").write_text(site)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment, cwd="/", capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_it_trains_and_predicts_with_nothing_else_installed(bare, stored_panel, tmp_path):
    panel, graph = map(str, stored_panel)
    settings = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": 1, "max_steps_per_epoch": 2, "device": "cpu"},
    }
    (tmp_path / "run.json").write_text(json.dumps(settings))
    trained = python(
        bare, "-W", "error::ImportWarning", "-m", "atft_model", "train", "--panel", panel,
        "--graph", graph, "--out", str(tmp_path / "run-1"), "--preset", "quick",
        "--run-file", str(tmp_path / "run.json"), "--ledger", str(tmp_path / "ledger.jsonl"),
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    record = json.loads((tmp_path / "run-1" / "run.json").read_text())
    assert record["steps"] == 2
    predicted = python(
        bare, "-m", "atft_model", "predict", "--run", str(tmp_path / "run-1"), "--panel", panel,
        "--graph", graph, "--out", str(tmp_path / "scores.parquet"),
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert len(scores) > 1000
    assert set(scores["checkpoint_hash"].to_pylist()) == {record["checkpoint_hash"]}
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["run_id"] == "run-1"


@pytest.mark.parametrize("module", FORBIDDEN)
def test_the_block_blocks_what_is_installed(bare, module):
    """Without it the module is found; with it, importing fails as if it were not there."""
    assert importlib.util.find_spec(module) is not None
    script = f"import importlib.util as u; assert u.find_spec({module!r}) is None; import {module}"
    done = python(bare, "-c", script)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: No module named '{module}'"


def test_a_stray_import_in_the_library_would_be_seen(bare):
    """The Dagster side stands beside the library on the path, and cannot be imported."""
    done = python(
        bare, "-c", "import atft_model.config; print('fine'); import atft_pipeline.schemas"
    )
    assert done.stdout == "fine\n"
    assert "ModuleNotFoundError: No module named 'p" in done.stderr
