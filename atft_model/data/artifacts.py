"""Folders of arrays with a manifest: written whole or not at all, verified when read. No torch.

Layout under a root: ``<content hash>/manifest.json`` and its ``.npy`` files, and ``current.json``,
which names the folder in use. A killed writer leaves the old ``current.json`` or the new one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from atft_model.errors import InputError

HASH_LENGTH = 16
"""Hex digits kept of a SHA-256: 64 bits name a version; nobody here forges one."""

COPIED_AT_A_TIME = 1 << 20
"""Bytes."""


def file_hash(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_LENGTH]


def text_hash(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def write_text_atomically(path: Path, text: str) -> None:
    """Writes beside ``path`` and renames: readers see the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def publish(
    root: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any],
    ready: Mapping[str, Path] | None = None,
) -> str:  # fmt: skip
    """Stores arrays and facts as a new version under ``root`` and points ``current.json`` at it.

    Args:
        ready: Files that hold some of the arrays already, as ``np.save`` writes them, on the same
            file system; they are moved into the version.

    Returns:
        The content hash: equal arrays and facts give the same hash and rewrite nothing.
    """
    root.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    try:
        files = {}
        for name, array in arrays.items():
            if ready and name in ready:
                os.replace(ready[name], building / f"{name}.npy")
            else:
                np.save(building / f"{name}.npy", array)
            files[f"{name}.npy"] = file_hash(building / f"{name}.npy")
        body = {**facts, "files": files}
        content = text_hash(json.dumps(body, sort_keys=True))
        manifest = json.dumps({"hash": content, **body}, indent=1)
        (building / "manifest.json").write_text(manifest)
        if not (root / content).exists():
            os.replace(building, root / content)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    write_text_atomically(root / "current.json", json.dumps({"hash": content}))
    return content


def grow_array(old: Path, expected: str, keep: int, new: np.ndarray, to: Path) -> None:
    """Writes the first entries of a stored array followed by new ones, as ``np.save`` would.

    The bytes go from file to file: on a large array that is a fraction of what it costs to have
    it in memory.

    Args:
        old: The ``.npy`` file.
        expected: Its content hash, from the manifest of its version.
        keep: Entries along the first axis that are kept.
        new: What follows them; other axes and type as stored.
        to: Where to write.

    Raises:
        InputError: the stored array is not what its manifest says, or of another shape or type.
    """
    stored = np.load(old, mmap_mode="r")
    if stored.shape[1:] != new.shape[1:] or stored.dtype != new.dtype or keep > len(stored):
        raise InputError(
            f"{old}: {stored.dtype} {list(stored.shape)}; expected {new.dtype} of at least {keep} "
            f"entries {list(new.shape[1:])}; materialize it anew"
        )
    left = keep * stored[:1].nbytes
    with ThreadPoolExecutor(1) as beside, old.open("rb") as source, to.open("wb") as target:
        found = beside.submit(file_hash, old)  # on the other core, while this one copies
        facts = np.lib.format.header_data_from_array_1_0(new)
        np.lib.format.write_array_header_1_0(
            target, {**facts, "shape": (keep + len(new), *new.shape[1:])}
        )
        source.seek(old.stat().st_size - stored.nbytes)
        while left:
            left -= target.write(source.read(min(left, COPIED_AT_A_TIME)))
        target.write(np.ascontiguousarray(new).data)
    if found.result() != expected:
        raise InputError(
            f"{old}: content differs from the manifest (expected {expected}); materialize it anew"
        )


def current_version(root: Path, what: str) -> Path:
    """The folder that ``current.json`` names.

    Raises:
        InputError: nothing was published under ``root`` yet.
    """
    pointer = root / "current.json"
    if not pointer.exists():
        raise InputError(f"{root}: no {what} here; materialize {what} first")
    return root / json.loads(pointer.read_text())["hash"]


def read_manifest(folder: Path, what: str) -> dict[str, Any]:
    """The manifest of a version, after every file's hash and its own were recomputed.

    Raises:
        InputError: no manifest, a missing file, or content that differs from the manifest.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(f"{folder}: not a {what} (no manifest.json); materialize {what} again")
    manifest = json.loads(path.read_text())
    body = {key: value for key, value in manifest.items() if key != "hash"}
    if text_hash(json.dumps(body, sort_keys=True)) != manifest.get("hash"):
        raise InputError(f"{path}: was edited after it was written; materialize {what} again")
    for name, expected in manifest["files"].items():
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: missing; materialize {what} again")
        if file_hash(folder / name) != expected:
            raise InputError(
                f"{folder / name}: content differs from the manifest (expected {expected}); "
                f"materialize {what} again"
            )
    return manifest


def prune(root: Path, keep: set[str]) -> list[str]:
    """Removes versions other than ``keep`` and the current one; returns what it removed."""
    keep = keep | {current_version(root, "artifact").name}
    removed = [p for p in root.iterdir() if p.is_dir() and p.name not in keep]
    for path in removed:
        shutil.rmtree(path)
    return [path.name for path in removed]
