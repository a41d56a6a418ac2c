"""Training on shards: clips and prompts are there, so codec and prompt encoder are not read.

The codec is read for contact sheets and for files of whole models alone, and let go of again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowcept import model_file
from flowcept.adapters import base_of, digest
from flowcept.codecs import Codec
from flowcept.codecs.pretrained import load_pretrained
from flowcept.data.encoded import (
    INDEX,
    CodecRecord,
    EncodedClips,
    absent,
    digest_of_codec,
    named,
    read_index,
)
from flowcept.diffusers_folder import Stored, usual
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.models import Model, find
from flowcept.networks.pretrained import Backbone
from flowcept.networks.text import FROZEN, PromptEncoder, StoredPrompts, TextConfig
from flowcept.settings import OF_THE_SHARDS, CodecSettings, TextSettings, TrainConfig, flag


def open_shards(folder: Path, init: str) -> EncodedClips | None:
    """The clips of a folder of shards, None where it is none.

    Raises ``UserError`` where shards are not whole, or made by another codec or another prompt
    encoder than those of ``init``, the model to go on from.
    """
    if not (folder / INDEX).is_file():
        return None
    index = read_index(folder)
    base = _base(find(init)) if init else None
    places = [Path(index.codec.place)]
    if base is not None:
        places.insert(0, base.path / "vae" if base.is_folder else base.path)
    clips = EncodedClips(folder, index, partial(_checked_codec, places, index.codec))
    if base is not None:
        _check_codec(clips, base)
        _check_text(clips, base)
    return clips


def _base(model: Model) -> Model:
    """The pretrained model that an adapter belongs to; any other model itself."""
    is_adapter = not model.is_folder and model_file.read_card(model.path).base is not None
    return base_of(model.path) if is_adapter else model


def codec_at(place: Path) -> Codec:
    """The codec of a diffusers folder or of a model file."""
    return load_pretrained(place) if place.is_dir() else model_file.load_codec(place)


def _checked_codec(places: Sequence[Path], record: CodecRecord) -> Codec:
    """The codec that made the latents, from the first place that is there."""
    place = next((place for place in places if place.exists()), places[0])
    codec = codec_at(place)
    if digest_of_codec(codec) != record.weights:
        raise UserError(f"{place} is another codec than the one that made the shards")
    return codec.eval().requires_grad_(requires_grad=False)


def _check_codec(clips: EncodedClips, base: Model) -> None:
    """``UserError`` where the latents are not those of a model's codec, or it has none."""
    record, place = clips.index.codec, base.path
    if base.is_folder:
        place = base.path / "vae"
        if not place.is_dir():
            raise UserError(f"{base} has no folder vae, of which samples are made: get it again")
        if digest(base.path, "vae") == record.files:
            return
    codec = codec_at(place)
    if digest_of_codec(codec) != record.weights:
        raise UserError(
            f"{clips.folder} was made by another codec than that of {base}: run flowcept encode "
            f"with --codec {base}"
        )


def _check_text(clips: EncodedClips, base: Model) -> None:
    """``UserError`` where a model reads prompts in another way than those of the shards."""
    record = clips.index.text
    wanted = _frozen(base)
    if wanted is None:
        return  # it learns to read words
    remedy = f"run flowcept encode with --text {wanted.source}"
    if record is None:
        raise UserError(f"{clips.folder} holds no prompt embeddings, which {base} needs: {remedy}")
    part = Path(wanted.source) / "text_encoder"
    same = (wanted.kind, wanted.width) == (record.config.kind, record.config.width)
    if same and part.is_dir():  # training can do without the encoder's weights
        same = digest(part.parent, part.name) == record.files
    if not same:
        raise UserError(
            f"{clips.folder} was made by another prompt encoder than that of {base}: {remedy}"
        )


def _frozen(base: Model) -> TextConfig | None:
    """The frozen prompt encoder of a model; None of one that learns."""
    if base.is_folder:
        return usual(base.path).text
    text = model_file.read_card(base.path).text
    return text if text.kind in FROZEN else None


def stored_parts(clips: EncodedClips) -> Stored:
    """What stands for codec and prompt encoder."""

    def text(config: TextConfig) -> PromptEncoder:
        return StoredPrompts(config, clips.token_of)

    return Stored(absent(clips.index.codec.config), text)


def text_of(clips: EncodedClips) -> PromptEncoder | None:
    """What reads prompts for a new network; None: an encoder that learns."""
    record = clips.index.text
    return None if record is None else StoredPrompts(record.config, clips.token_of)


def settled(config: TrainConfig, clips: EncodedClips | None, given: Collection[str]) -> TrainConfig:
    """The settings of a run, of which shards have settled some.

    Raises ``UserError`` for one of these that is ``given`` and is another.
    """
    if clips is None:
        return config
    index = clips.index
    own: dict[str, Any] = {name: getattr(index, name) for name in OF_THE_SHARDS}
    own["size"] = named(index.size)
    asked = config.flat()
    parts = [CodecSettings, *([TextSettings] if index.text else [])]
    for name in (*own, *(one.name for kind in parts for one in fields(kind))):
        if name in given and own.get(name) != asked[name]:
            raise UserError(f"{flag(name)} {asked[name]} is settled by the shards: leave it out")
    if index.text and config.data.lexicon:
        raise UserError("--lexicon needs captions as words: encode them without --text")
    return config.changed(**own)


def facts_of(clips: EncodedClips, train: Sequence[int]) -> dict[str, Any]:
    """What a model's card says of the clips that it is trained on."""
    psnr = clips.psnr_of(train)
    sizes = Counter(named(clips.sizes[clip]) for clip in train)
    return {
        "dataset": clips.index.dataset,
        "fps": clips.index.fps,
        "codec_psnr": float(torch.tensor(psnr).quantile(0.05)) if psnr else None,
        "sizes": dict(sizes.most_common()) if len(sizes) > 1 else {},
    }


def check_sizes(clips: EncodedClips, origin: Weights | None) -> None:
    """Raise ``UserError`` where clips of several sizes meet a network of one."""
    several = len(set(clips.sizes)) > 1
    if several and not (origin and isinstance(origin.network, Backbone)):
        raise UserError(
            f"{clips.folder} holds clips of several sizes, which only a pretrained network learns: "
            "encode with --buckets none"
        )
