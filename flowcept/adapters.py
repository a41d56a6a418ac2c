"""Adapters: what was learned beside a pretrained model, in a small file that names its base.

A base is told from others by a digest, so that an adapter never meets another model by mistake.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import torch

from flowcept import diffusers_folder, model_file
from flowcept.errors import UserError
from flowcept.model_file import Base, Weights
from flowcept.networks.pretrained import Backbone

SAMPLED = 2**20  # bytes at both ends of a file of weights: fine-tuning changes some of them


def digest(folder: Path) -> str:
    """What tells a folder's transformer from others, of its files' headers and ends."""
    found = hashlib.sha256()
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            found.update(header + file.read(SAMPLED))
            file.seek(max(path.stat().st_size - SAMPLED, 0))
            found.update(file.read())
    return found.hexdigest()


def fingerprint(path: Path) -> str:
    """What tells a model from all others: SHA-256 of its file, of a folder its ``digest``."""
    if path.is_dir():
        return digest(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_adapter(path: Path, dtype: torch.dtype) -> Weights:
    """An adapter file and its base, which lies where it was in training or in FLOWCEPT_BASES.

    Raises ``UserError`` as ``load`` does, and for a base that is not there or is another one.
    """
    card = model_file.read_card(path)
    assert card.base is not None
    folder = _base(card.base, path)
    if digest(folder) != card.base.digest:
        raise UserError(f"{path} was learned on another model than the one in {folder}")
    height, width = card.size
    weights = diffusers_folder.load(folder, dtype, f"{width}x{height}", lambda _: card)
    model_file.fill(weights, path)
    weights.network.eval().requires_grad_(requires_grad=False)
    return weights


def _base(base: Base, path: Path) -> Path:
    """Where an adapter's base lies."""
    then = Path(base.folder)
    bases = os.environ.get("FLOWCEPT_BASES")
    places = [then, *([Path(bases) / then.name] if bases else [])]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"{path} belongs to {then}, which is not there: name the folder that holds it in "
        "FLOWCEPT_BASES"
    )


def merge(adapter: Path, output: Path) -> None:
    """Write an adapter and its base as one model file, float32.

    Raises ``UserError`` as ``load_adapter`` does, and for a file that is no adapter.
    """
    if model_file.read_card(adapter).base is None:
        raise UserError(f"{adapter} is a whole model already: there is nothing to merge")
    weights = load_adapter(adapter, torch.float32)
    assert isinstance(weights.network, Backbone)
    card = replace(weights.card, network=weights.network.merge_lora(), base=None)
    model_file.save(replace(weights, card=card), output)


def open_model(path: Path, dtype: torch.dtype, size: str | None = None) -> Weights:
    """A model file, an adapter file with its base, or a diffusers folder."""
    if path.is_dir():
        return diffusers_folder.load(path, dtype, size)
    if model_file.read_card(path).base is not None:
        return load_adapter(path, dtype)
    return model_file.load(path)
