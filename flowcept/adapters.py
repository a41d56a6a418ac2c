"""Adapters: what was learned beside a pretrained model, in a small file that names its base.

A base is told from others by a digest, so that an adapter never meets another model by mistake.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from flowcept import diffusers_folder, model_file
from flowcept.diffusers_folder import Stored, check_grid
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.networks.pretrained import Backbone
from flowcept.settings import sides

SAMPLED = 2**20  # bytes at both ends of a file of weights: fine-tuning changes some of them


def digest(folder: Path, part: str = "transformer") -> str:
    """What tells a folder's transformer, or another part, from others: of files' headers, ends."""
    found = hashlib.sha256()
    for path in sorted((folder / part).glob("*.safetensors")):
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            found.update(header + file.read(SAMPLED))
            file.seek(max(path.stat().st_size - SAMPLED, 0))
            found.update(file.read())
    return found.hexdigest()


def load_adapter(path: Path, dtype: torch.dtype, stored: Stored | None = None) -> Weights:
    """An adapter file and its base, which lies where it was in training or in FLOWCEPT_BASES.

    ``stored`` is as for ``diffusers_folder.load``. Raises ``UserError`` as ``load`` does, and for a
    base that is not there or is another one.
    """
    card = model_file.read_card(path)
    assert card.base is not None
    folder = base_of(path)
    if digest(folder) != card.base.digest:
        raise UserError(f"{path} was learned on another model than the one in {folder}")
    height, width = card.size
    weights = diffusers_folder.load(folder, dtype, f"{width}x{height}", lambda _: card, stored)
    model_file.fill(weights, path)
    weights.network.eval().requires_grad_(requires_grad=False)
    return weights


def base_of(path: Path) -> Path:
    """Where the base of an adapter file lies."""
    base = model_file.read_card(path).base
    assert base is not None
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


def open_model(
    path: Path, dtype: torch.dtype, size: str | None = None, stored: Stored | None = None
) -> Weights:
    """A model file, an adapter file with its base, or a diffusers folder.

    A pretrained network, trained on or not, makes clips of any ``size`` on its grid. What is
    ``stored`` is not read, but for the codec of a whole model's file.
    """
    if path.is_dir():
        return diffusers_folder.load(path, dtype, size)
    card = model_file.read_card(path)
    if card.base is not None:
        weights = load_adapter(path, dtype, stored)
    else:
        weights = model_file.load(path, None if stored is None else stored.text(card.text))
    return weights if size is None else at_size(weights, size)


def at_size(weights: Weights, size: str) -> Weights:
    """A pretrained network's model for clips of another size; any other network's as it is.

    Raises ``UserError`` for a size off its grid, and warns of one that it did not learn.
    """
    network, card = weights.network, weights.card
    if not isinstance(network, Backbone):
        return weights
    height, width = sides(size)
    check_grid((height, width), card.codec.compression * network.config.patch)
    learned = card.sizes or dict.fromkeys([f"{card.size[1]}x{card.size[0]}"])
    if f"{width}x{height}" not in learned:
        told = f"{width}x{height} is new to this model: it learned {', '.join(learned)}"
        warnings.warn(told, stacklevel=3)
    _, rows, columns = card.codec.latent_shape((height, width))
    network.config = replace(network.config, height=rows, width=columns)
    return replace(weights, card=replace(card, size=(height, width), network=network.config))
