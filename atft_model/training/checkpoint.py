"""Checkpoints: atomic files of weights, named by a hash of the weights alone."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from atft_model.data.artifacts import HASH_LENGTH
from atft_model.errors import InputError


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, temporary)
    os.replace(temporary, path)
    return weights_hash(weights)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Weights on the CPU, loaded without executing code.

    Raises:
        InputError: no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: no checkpoint here; train the model first")
    return torch.load(path, map_location="cpu", weights_only=True)
