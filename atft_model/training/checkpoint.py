"""Checkpoints: atomic files of weights, named by a hash of the weights alone, and of a run's state.

``state.pt`` holds all that a run needs to go on bit for bit: weights, optimizer, schedule, place in
the epoch's order, random states, guard, pending readings. It is tensors and plain values, so it
loads with ``weights_only=True``.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atft_model.data.artifacts import HASH_LENGTH
from atft_model.errors import InputError

FORMAT = 2
"""Of a run's files. Raise it when their names, fields or meaning change, or when the same config
builds other tensors: runs of earlier formats are then refused by name."""

KEPT = "epoch-*.pt"
"""Weights of the last epochs."""

REBUILD = "train again: dagster asset materialize --select trained_model"


def check_format(found: Any, folder: Path) -> None:
    """Refuses a run that another version of the code left.

    Raises:
        InputError: the run's format is not today's.
    """
    if found != FORMAT:
        raise InputError(f"{folder}: run format {found}, expected {FORMAT}; {REBUILD}")


def fill(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Puts a run's weights into the model that its config builds.

    Raises:
        InputError: they are those of another layout.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    odd = sorted(
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    )
    if odd:
        name = odd[0]
        raise InputError(
            f"{folder}: weights of another layout: {len(odd)} tensors differ, first {name}: found "
            f"{given.get(name, 'none')}, expected {wanted.get(name, 'none')}; {REBUILD}"
        )
    model.load_state_dict(dict(weights))


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and bytes; the same weights in another file hash the same."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:HASH_LENGTH]


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Writes the weights beside ``path`` and renames; returns their hash."""
    save_state(path, {name: tensor.detach().cpu() for name, tensor in weights.items()})
    return weights_hash(weights)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes beside ``path`` and renames: a kill leaves the old checkpoint or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Weights on the CPU, loaded without executing code.

    Raises:
        InputError: no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: no checkpoint here; train the model first")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_state(path: Path) -> dict[str, Any]:
    """A run's state on the CPU, loaded without executing code.

    Raises:
        InputError: weights that are not those that were saved.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    found = weights_hash(state["model"])
    saved = json.loads(state["host"]).get("weights_hash", found)  # earlier versions wrote none
    if found != saved:
        raise InputError(
            f"{path}: its weights hash {found}, {saved} was saved; it was changed: train again"
        )
    return state


def weights_files(folder: Path) -> list[Path]:
    """The weights that a run keeps: of the best epoch, and of the last ones."""
    return [folder / "best.pt", folder / "last.pt", *sorted(folder.glob(KEPT))]


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each place where two nested tables of settings differ, in words."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}[{place}]")
    elif before != now:
        yield f"{path} was {_short(before)}, is now {_short(now)}"


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else repr(value)
