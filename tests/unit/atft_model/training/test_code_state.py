"""The commit that a run was made with, and what differed from it, in real repositories."""

import subprocess
from pathlib import Path

import pytest

from atft_model.training.code_state import code_state, in_words


def git(folder: Path, *words: str) -> str:
    named = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *named, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of two modules, committed."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where a hook runs the tests
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project" / "model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "loop.py").write_text("step = 1\n")
    git(folder.parent, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    code_state.cache_clear()
    return folder


def state(package: Path) -> dict:
    code_state.cache_clear()
    return code_state(package)


def test_a_clean_repository_is_its_commit(package):
    commit = git(package, "rev-parse", "HEAD")
    assert state(package) == {"commit": commit, "changed": [], "difference": ""}
    assert in_words(state(package)) == commit[:12]


def test_a_changed_and_a_new_file_are_named_and_their_contents_tell_states_apart(package):
    (package / "loop.py").write_text("step = 2\n")
    (package / "extra.py").write_text("a = 1\n")
    first = state(package)
    assert first["changed"] == ["model/loop.py", "model/extra.py (new)"]
    assert in_words(first).endswith(", and 2 changed files")
    (package / "extra.py").write_text("a = 2\n")
    second = state(package)
    (package / "loop.py").write_text("step = 3\n")
    third = state(package)
    assert len({s["difference"] for s in (first, second, third)}) == 3
    assert first["commit"] == third["commit"]


def test_a_package_inside_another_projects_repository_is_not_of_its_commit(package):
    installed = package.parent / "site-packages" / "other"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    found = state(installed)
    assert found["commit"] is None
    assert "did not match any file" in found["reason"]
    assert in_words(found).startswith("unknown: ")


def test_no_repository_and_no_git_are_said_so(tmp_path, package, monkeypatch):
    alone = tmp_path / "alone"
    alone.mkdir()
    assert "not a git repository" in state(alone)["reason"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(package) == {"commit": None, "reason": "no git on this machine"}
