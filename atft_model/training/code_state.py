"""Which code a run was made with: the state of the git repository that this package lies in."""

import hashlib
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from atft_model.data.artifacts import HASH_LENGTH

PACKAGE = Path(__file__).parents[1]


@cache
def code_state(package: Path = PACKAGE) -> dict[str, Any]:
    """Commit of the package's repository, and how the files there differ from it.

    Asked once: what a process runs is what it imported.

    Returns:
        Plain values: ``commit``; ``changed``, the tracked files of the repository that differ from
        it, and the package's files that it does not hold; ``difference``, a hash of all that, empty
        where nothing differs. Where there is no repository of the package, or no git to ask,
        ``commit`` is None and ``reason`` says why.
    """
    try:
        commit = _git(package, "rev-parse", "HEAD").strip()
        # A package that was installed inside another project's repository is no part of it.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(package, "diff", "--name-only", "HEAD").splitlines()
        difference = _git(package, "diff", "--no-ext-diff", "--binary", "HEAD")
        new = _git(package, "ls-files", "--others", "--exclude-standard").splitlines()
    except FileNotFoundError:
        return {"commit": None, "reason": "no git on this machine"}
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        return {"commit": None, "reason": said[0] if said else f"git ended with {error.returncode}"}
    digest = hashlib.sha256(difference.encode())
    for name in new:
        digest.update(name.encode() + (package / name).read_bytes())
    changed += [f"{package.name}/{name} (new)" for name in new]
    return {
        "commit": commit,
        "changed": changed,
        "difference": digest.hexdigest()[:HASH_LENGTH] if changed else "",
    }


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=60,
        encoding="utf-8", errors="replace",
    ).stdout  # fmt: skip


def in_words(state: Mapping[str, Any]) -> str:
    """In one line."""
    if state["commit"] is None:
        return f"unknown: {state['reason']}"
    changed = f", and {len(state['changed'])} changed files" * bool(state["changed"])
    return state["commit"][:12] + changed
