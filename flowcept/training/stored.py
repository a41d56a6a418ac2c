"""Training on shards: latents and prompts exist, so codec and prompt encoder are not loaded.

The codec is loaded only for contact sheets and for files of whole models, then freed again.
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
    """The clips of a folder of shards; None for another folder.

    Raises ``UserError`` if shards are missing, or were made by another codec or prompt encoder than
    those of ``init``, the model to start from.
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
    """The pretrained model that an adapter needs; any other model itself."""
    is_adapter = not model.is_folder and model_file.read_card(model.path).base is not None
    return base_of(model.path) if is_adapter else model


def codec_at(place: Path) -> Codec:
    """The codec of a diffusers folder or of a model file."""
    return load_pretrained(place) if place.is_dir() else model_file.load_codec(place)


def _checked_codec(places: Sequence[Path], record: CodecRecord) -> Codec:
    """The codec that made the latents, from the first place that exists."""
    place = next((place for place in places if place.exists()), places[0])
    codec = codec_at(place)
    if digest_of_codec(codec) != record.weights:
        raise UserError(f"{place} is not the codec that made the shards")
    return codec.eval().requires_grad_(requires_grad=False)


def _check_codec(clips: EncodedClips, base: Model) -> None:
    """``UserError`` if the latents are of another codec than the model's, or it has none."""
    record, place = clips.index.codec, base.path
    if base.is_folder:
        place = base.path / "vae"
        if not place.is_dir():
            raise UserError(f"{base} has no folder vae, which contact sheets need: get it again")
        if digest(base.path, "vae") == record.files:
            return
    codec = codec_at(place)
    if digest_of_codec(codec) != record.weights:
        raise UserError(
            f"{clips.folder} was made with another codec than that of {base}: run flowcept encode "
            f"with --codec {base}"
        )


def _check_text(clips: EncodedClips, base: Model) -> None:
    """``UserError`` if the model has another prompt encoder than the shards."""
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
            f"{clips.folder} was made with another prompt encoder than that of {base}: {remedy}"
        )


def _frozen(base: Model) -> TextConfig | None:
    """The frozen prompt encoder of a model; None if it is trained."""
    if base.is_folder:
        return usual(base.path).text
    text = model_file.read_card(base.path).text
    return text if text.kind in FROZEN else None


def stored_parts(clips: EncodedClips) -> Stored:
    """Stand-ins for codec and prompt encoder."""

    def text(config: TextConfig) -> PromptEncoder:
        return StoredPrompts(config, clips.token_of)

    return Stored(absent(clips.index.codec.config), text)


def text_of(clips: EncodedClips) -> PromptEncoder | None:
    """The stored prompts for a new network; None for a prompt encoder that is trained."""
    record = clips.index.text
    return None if record is None else StoredPrompts(record.config, clips.token_of)


def settled(config: TrainConfig, clips: EncodedClips | None, given: Collection[str]) -> TrainConfig:
    """The settings of a run, with those that its shards fix.

    Raises ``UserError`` if one of these is ``given`` with another value.
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
            raise UserError(f"{flag(name)} {asked[name]} differs from the shards: leave it out")
    if index.text and config.data.lexicon:
        raise UserError("--lexicon needs captions as text: run flowcept encode without --text")
    return config.changed(**own)


def facts_of(clips: EncodedClips, train: Sequence[int]) -> dict[str, Any]:
    """The card's entries on the clips that a model is trained on."""
    psnr = clips.psnr_of(train)
    sizes = Counter(named(clips.sizes[clip]) for clip in train)
    return {
        "dataset": clips.index.dataset,
        "fps": clips.index.fps,
        "codec_psnr": float(torch.tensor(psnr).quantile(0.05)) if psnr else None,
        "sizes": dict(sizes.most_common()) if len(sizes) > 1 else {},
    }


def check_sizes(clips: EncodedClips, origin: Weights | None) -> None:
    """Raise ``UserError`` if clips have several sizes and the network takes only one."""
    several = len(set(clips.sizes)) > 1
    if several and not (origin and isinstance(origin.network, Backbone)):
        raise UserError(
            f"{clips.folder} holds clips of several sizes, which only a pretrained network takes: "
            "run flowcept encode with --buckets none"
        )
