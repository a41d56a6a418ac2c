"""Adapters: small files of what was trained on top of a pretrained model, which they name.

A base is told from others by a digest, so that an adapter never meets another model by mistake.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from flowcept import diffusers_folder, model_file
from flowcept.codecs import Codec
from flowcept.codecs.pretrained import load_pretrained
from flowcept.diffusers_folder import Stored
from flowcept.errors import UserError
from flowcept.hub import WEIGHTS, parse
from flowcept.model_file import Card, Weights
from flowcept.models import Model, find, places
from flowcept.networks import FAMILIES, family_of
from flowcept.networks.pretrained import LORA_TARGETS, Backbone
from flowcept.networks.recipes import RECIPES
from flowcept.networks.text import NoEncoder, build_encoder

SAMPLED = 2**20  # bytes at both ends of a file of weights: fine-tuning changes some of them
ELSEWHERE = "give its place by --base FOLDER, or set FLOWCEPT_BASES to the folder that holds it"


def digest(folder: Path, part: str = "transformer") -> str:
    """A digest that identifies a folder's transformer, or another part: of files' headers, ends."""
    found = hashlib.sha256()
    files = sorted((folder / part).glob("*.safetensors"))
    loaded = [one for one in files if WEIGHTS.fullmatch(one.name)]
    for path in loaded or files:
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            found.update(header + file.read(SAMPLED))
            file.seek(max(path.stat().st_size - SAMPLED, 0))
            found.update(file.read())
    return found.hexdigest()


def fingerprint(path: Path) -> str:
    """A digest that identifies a model: SHA-256 of its file, for a folder its ``digest``."""
    if path.is_dir():
        return digest(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_model(
    model: Model,
    dtype: torch.dtype,
    size: str | None = None,
    base: str | None = None,
    stored: Stored | None = None,
) -> Weights:
    """A model file, an adapter file with its base, or a diffusers folder.

    A pretrained network, trained on or not, makes clips of any ``size`` on its grid. ``base`` names
    the pretrained model that a file belongs to, where that is not where it was. What is ``stored``
    is not read, but for the codec of a whole model's file. Raises ``UserError`` for what cannot be
    read, and for a base that is not there or another one.
    """
    if model.is_folder:
        if base is not None:
            raise _baseless(model)
        return diffusers_folder.load(model.path, dtype, size, source=model.source)
    card = model_file.read_card(model.path)
    if card.base is not None:
        return load_adapter(model.path, dtype, base, stored)
    if base is not None and card.text.kind not in RECIPES:
        raise _baseless(model)
    if stored is not None:
        return model_file.load(model.path, stored.text(card.text), dtype)
    reads = card.text.kind in RECIPES
    text = build_encoder(card.text, _reader(card, model.path, base)) if reads else None
    return model_file.load(model.path, text, dtype)


def _baseless(model: Model) -> UserError:
    return UserError(f"`base` has no effect on {model.name}, which needs none: leave it out")


def tasks_of(model: Model) -> frozenset[str]:
    """The commands that a model is for; no weights are read."""
    if model.is_folder:
        return diffusers_folder.tasks_of(model.path)
    card = model_file.read_card(model.path)
    tasks: frozenset[str] = FAMILIES[family_of(card.network)].network.tasks
    return tasks


def outline(model: Model) -> Weights:
    """What a model is, for people: of one that was pretrained no weights are read, nor its base."""
    if model.is_folder:
        return diffusers_folder.outline(model.path, model.source)
    card = model_file.read_card(model.path)
    if card.text.kind not in RECIPES:
        return model_file.load(model.path)
    with torch.device("meta"):
        return model_file.build(card, NoEncoder(card.text))


def open_codec(model: Model) -> Codec:
    """The codec of a model, or of a folder that holds only a codec; the rest is not read."""
    if model.is_folder:
        return load_pretrained(model.path)
    if model_file.read_card(model.path).base is not None:
        return load_pretrained(base_of(model.path).path)
    return model_file.load_codec(model.path)


def load_adapter(
    path: Path, dtype: torch.dtype, base: str | None = None, stored: Stored | None = None
) -> Weights:
    """An adapter file and its base; as ``open_model``."""
    card = model_file.read_card(path)
    assert card.base is not None
    found = base_of(path, base)
    height, width = card.size
    weights = diffusers_folder.load(
        found.path, dtype, f"{width}x{height}", lambda _: card, stored, source=found.source
    )
    model_file.fill(weights, path)
    weights.network.eval().requires_grad_(requires_grad=False)
    return weights


def base_of(path: Path, given: str | None = None) -> Model:
    """An adapter's base: the first at a place where it may be whose weights are those of then."""
    base = model_file.read_card(path).base
    assert base is not None
    others, why = [], ""
    for place in places(base.source, given):
        try:
            model = find(place)
        except UserError as error:
            why = str(error)
            continue
        if digest(model.path) == base.digest:
            return model
        others.append(place)
    if others:
        raise UserError(f"{path} was trained on another model than {others[0]}; {ELSEWHERE}")
    raise UserError(
        why if given else f"{path} needs its base, which is not there: {_lost(base.source, why)}"
    )


def _reader(card: Card, path: Path, given: str | None) -> Path:
    """The folder whose text encoder a whole model file reads prompts with."""
    why = ""
    for place in places(card.text.source, given):
        try:
            return find(place, part="text_encoder").path
        except UserError as error:
            why = str(error)
    told = f"{path} needs a text encoder, which is not there"
    raise UserError(why if given else f"{told}: {_lost(card.text.source, why)}")


def _lost(source: str, why: str) -> str:
    """What a recorded base or text encoder was, and how to say where it is now."""
    return f"{why}; {ELSEWHERE}" if parse(source) else f"it was {source}; {ELSEWHERE}"


def merge(adapter: Path, output: Path, base: str | None = None) -> None:
    """Write an adapter and its base as one model file, float32.

    Raises ``UserError`` as ``open_model`` does, and for a file that is no adapter.
    """
    _check_adapter(adapter)
    weights = load_adapter(adapter, torch.float32, base)
    assert isinstance(weights.network, Backbone)
    card = replace(weights.card, network=weights.network.merge_lora(), base=None)
    model_file.save(replace(weights, card=card), output)


def export_lora(adapter: Path, output: Path) -> None:
    """Write only an adapter's LoRA, as pipelines of diffusers read it; no base is needed.

    What only flowcept reads, such as the laws of missing frames, is left out.
    """
    rank = _check_adapter(adapter).network.lora
    if not rank:
        raise UserError(f"{adapter} has no LoRA (trained with --lora 0): leave out --lora-only")
    stored = re.compile(r"network\.(transformer\..*\.lora_[AB])\.default\.weight")
    tensors = {
        f"{match[1]}.weight": tensor
        for name, tensor in load_file(adapter).items()
        if (match := stored.fullmatch(name))
    }
    settings = {"r": rank, "lora_alpha": rank, "target_modules": list(LORA_TARGETS)}
    told = {f"transformer.{name}": value for name, value in settings.items()}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    model_file.write(output, tensors, header)


def _check_adapter(path: Path) -> Card:
    """The card of an adapter file; ``UserError`` for any other."""
    card = model_file.read_card(path)
    if card.base is None:
        raise UserError(f"{path} is already a whole model: there is nothing to merge")
    return card
