"""Folders of arrays with a manifest: written whole or not at all, verified when read. No torch.

Layout under a root: ``<content hash>/manifest.json`` and its files, and ``current.json``, which
names the folder in use. A killed writer leaves the old ``current.json`` or the new one.

An array is a ``.npy`` file, or a ``.raw`` one: its bytes without a header, of which the manifest
says how many count. Such a file can be shared by a version and the next one, which holds the same
entries and some more (:func:`append_raw`).
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atft_model.errors import InputError

HASH_LENGTH = 16
"""Hex digits kept of a SHA-256: 64 bits name a version; nobody here forges one."""

READ_AT_A_TIME = 1 << 20
"""Bytes: into a core's cache, in a buffer that is used again."""


@dataclass(frozen=True)
class RawFile:
    """An array's bytes in a file: the first ``length``, their hash, and what follows is nothing."""

    path: Path
    length: int
    hash: str


def file_hash(path: Path, length: int | None = None) -> str:
    """Hash of a file's bytes, or of its first ``length``."""
    if length is None:
        with path.open("rb") as file:
            return _digits(hashlib.file_digest(file, "sha256"))
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        _read_into(hasher, file, length)
    return _digits(hasher)


def _digits(hasher: Any) -> str:
    return hasher.hexdigest()[:HASH_LENGTH]


def _read_into(hasher: Any, file: Any, length: int) -> None:
    """The next ``length`` bytes of an unbuffered file, or what there is of them."""
    buffer = memoryview(bytearray(min(length, READ_AT_A_TIME)))
    while length and (count := file.readinto(buffer[: min(length, len(buffer))])):
        hasher.update(buffer[:count])
        length -= count


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
    raw: Collection[str] = (), ready: Mapping[str, RawFile] | None = None,
) -> str:  # fmt: skip
    """Stores arrays and facts as a new version under ``root`` and points ``current.json`` at it.

    Args:
        raw: Names of the arrays to be stored without a header; whoever reads them knows their type
            and shape from the facts.
        ready: Those of them that a file holds already; it is moved into the version.

    Returns:
        The content hash: equal arrays and facts give the same hash and rewrite nothing.
    """
    root.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    try:
        files, lengths = {}, {}
        for name, array in arrays.items():
            path = building / (f"{name}.raw" if name in raw else f"{name}.npy")
            if ready and name in ready:
                os.replace(ready[name].path, path)
                files[path.name], lengths[path.name] = ready[name].hash, ready[name].length
                continue
            if name in raw:
                np.ascontiguousarray(array).tofile(path)
                lengths[path.name] = array.nbytes
            else:
                np.save(path, array)
            files[path.name] = file_hash(path)
        body = {**facts, "files": files, "lengths": lengths}
        content = text_hash(json.dumps(body, sort_keys=True))
        manifest = json.dumps({"hash": content, **body}, indent=1)
        (building / "manifest.json").write_text(manifest)
        if not (root / content).exists():
            os.replace(building, root / content)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    write_text_atomically(root / "current.json", json.dumps({"hash": content}))
    return content


def append_raw(old: RawFile, keep: int, new: np.ndarray, to: Path) -> RawFile:
    """The first ``keep`` bytes of a stored array and a new array's after them.

    Where all bytes are kept, ``to`` becomes a second name of the stored file and only the new bytes
    are written, behind those of the stored version, which nobody reads there. Where some are not,
    where others stand there already (another run's, or one's that was killed), or where the file
    system knows no second names, the kept bytes are copied.

    Args:
        old: The stored file, as its manifest describes it.
        keep: Bytes.
        new: What follows them.
        to: Where the result shall lie, on the same file system.

    Raises:
        InputError: the stored file is not what its manifest says, or holds fewer bytes.
    """
    kept = hashlib.sha256()
    with old.path.open("rb", buffering=0) as file:
        _read_into(kept, file, keep)
        hasher = kept.copy()
        _read_into(hasher, file, max(0, old.length - keep))
    if _digits(hasher) != old.hash or keep > old.length:
        raise InputError(
            f"{old.path}: content differs from the manifest (expected {old.hash} of "
            f"{old.length:,} bytes, {keep:,} of them wanted); materialize it anew"
        )
    rest = np.ascontiguousarray(new)
    kept.update(rest.data)
    if not (keep == old.length and _appended_in_place(old, rest, to)):
        with old.path.open("rb") as source, to.open("wb") as target:
            done = 0
            while done < keep:
                done += os.sendfile(target.fileno(), source.fileno(), done, keep - done)
            target.seek(keep)
            rest.tofile(target)
    return RawFile(to, keep + rest.nbytes, _digits(kept))


def _appended_in_place(old: RawFile, rest: np.ndarray, to: Path) -> bool:
    """Whether the bytes were written behind the stored ones, under a second name."""
    with old.path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        if file.seek(0, os.SEEK_END) != old.length:
            return False
        try:
            os.link(old.path, to)
        except OSError:  # no hard links here
            return False
        rest.tofile(file)
    return True


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
    lengths = manifest.get("lengths", {})
    for name, expected in manifest["files"].items():
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: missing; materialize {what} again")
        if file_hash(folder / name, lengths.get(name)) != expected:
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
