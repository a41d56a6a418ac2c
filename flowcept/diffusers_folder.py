"""Pipelines of diffusers, saved as a folder, as models of this package.

A pretrained video model makes all frames of a clip at once, in a number that it does not choose.
So it is sampled here by ``FullSequence``, in Euler steps at the noise levels of its own scheduler:
the clip that its own pipeline makes of the same noise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcept.codecs import Codec, build_codec
from flowcept.codecs.pretrained import PretrainedVideo, load_pretrained, read_config
from flowcept.diffusers_pipelines import KINDS, Kind, kind_of
from flowcept.errors import UserError
from flowcept.model_file import Card, Weights
from flowcept.networks.pretrained import LTX, Backbone, BackboneConfig, check_settings
from flowcept.networks.text import NoEncoder, PromptEncoder, TextConfig, build_encoder
from flowcept.process.full_sequence import FullSequence, Levels
from flowcept.settings import sides

EULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class Stored:
    """What takes the place of autoencoder and prompt encoder where their work is done already."""

    codec: Codec  # its shapes are enough
    text: Callable[[TextConfig], PromptEncoder]


@dataclass(frozen=True)
class Usual:
    """What clips of a folder's pipeline are like by default."""

    size: tuple[int, int]  # height and width
    pictures: int
    step: int  # pixels: sides are multiples of it
    text: TextConfig


def load(
    folder: Path,
    dtype: torch.dtype,
    size: str | None = None,
    change: Callable[[Card], Card] | None = None,
    stored: Stored | None = None,
    *,
    source: str | None = None,
) -> Weights:
    """A pipeline's parts as a model, the transformer and the prompt encoder in ``dtype``.

    ``size`` is WIDTHxHEIGHT, or the side of a square, by default the pipeline's own. ``change``
    makes the card of another model of it, whose network and process are built instead. With
    ``stored`` neither autoencoder nor prompt encoder is read. ``source`` is the name by which the
    card finds the folder again. Raises ``UserError``, one line, for a folder that is not of a
    pipeline that is known here, or lacks something, and for a size off its grid.
    """
    kind = _kind(folder)
    with torch.random.fork_rng(devices=[]):  # what is added to it starts the same without a codec
        codec = load_pretrained(folder / "vae") if stored is None else stored.codec
    if not isinstance(codec, PretrainedVideo):
        raise UserError(f"{folder}: its autoencoder is for pictures, not for videos")
    card = _card(folder, kind, codec, kind.size if size is None else sides(size))
    if change is not None:
        card = change(card)
    card = replace(card, text=replace(card.text, source=source or str(folder.absolute())))

    network = Backbone(card.network, card.process.shift, _transformer(folder, kind, dtype))
    if change is None:
        network.tasks, network.extends_backward = kind.tasks, kind.backward
    if stored is None:
        text: PromptEncoder = build_encoder(card.text, folder).to(dtype)
    else:
        text = stored.text(card.text)
    for module in (network, text, codec):
        module.eval().requires_grad_(requires_grad=False)
    return Weights(network, text, codec, card, card.process)


def outline(folder: Path, source: str | None = None) -> Weights:
    """A pipeline's parts without contents: no weights are read. Errors as for ``load``."""
    kind = _kind(folder)
    with torch.device("meta"):
        codec = build_codec(read_config(folder / "vae"))
        if not isinstance(codec, PretrainedVideo):
            raise UserError(f"{folder}: its autoencoder is for pictures, not for videos")
        card = _card(folder, kind, codec, kind.size)
        network = Backbone(card.network, card.process.shift)
    network.tasks, network.extends_backward = kind.tasks, kind.backward
    text = replace(card.text, source=source or str(folder.absolute()))
    return Weights(network, NoEncoder(text), codec, replace(card, text=text), card.process)


def check(folder: Path) -> None:
    """Raise ``UserError`` for the settings of a model that is not known here, weights unread."""
    kind = _kind(folder)
    _settings(folder, kind)
    _scheduler(folder)


def tasks_of(folder: Path) -> frozenset[str]:
    """The commands for which a folder's pipeline was trained."""
    return _kind(folder).tasks


def usual(folder: Path) -> Usual:
    """What a folder's pipeline makes by itself, without its weights; errors as for ``load``."""
    kind = _kind(folder)
    if not (folder / "vae" / "config.json").is_file():
        raise UserError(f"{folder} has no folder vae: give a whole diffusers folder")
    cell = read_config(folder / "vae").compression
    settings = _settings(folder, kind)
    width = settings["caption_channels" if kind.transformer == LTX else "text_dim"]
    patch = 1 if kind.transformer == LTX else settings["patch_size"][-1]
    text = TextConfig(kind.recipe, width=width, heads=1, source=str(folder.resolve()))
    return Usual(kind.size, kind.pictures, cell * patch, text)


def _kind(folder: Path) -> Kind:
    """What the folder's pipeline is here."""
    index = _read(folder / "model_index.json", folder)
    kind = kind_of(index)
    if kind is None:
        name = index.get("_class_name")
        raise UserError(f"{folder} holds a {name}; flowcept reads {', '.join(KINDS)}")
    if (index.get("transformer_2") or [None])[0] is not None:
        raise UserError(f"{folder} has two transformers; flowcept reads only models with one")
    return kind


def _read(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON file of the folder."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} has no {path.relative_to(folder)}: give a whole diffusers folder"
        ) from error
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read; get the folder again")
    return found


def _card(folder: Path, kind: Kind, codec: PretrainedVideo, size: tuple[int, int]) -> Card:
    """What the plain model is."""
    network = _network(folder, kind, codec, size)
    return Card(
        network=network,
        process=FullSequence(levels=_levels(folder, kind, network.patch)),
        text=TextConfig(kind.recipe, width=network.text_width, heads=1),
        codec=codec.config,
        size=size,
        fps=kind.fps,
        lengths={network.largest_size: 1},
        dataset=f"diffusers folder {folder.resolve().name}",
    )


def _network(
    folder: Path, kind: Kind, codec: PretrainedVideo, size: tuple[int, int]
) -> BackboneConfig:
    """The network's settings; ``UserError`` where they fit neither codec nor size."""
    settings = _settings(folder, kind)
    same_family = ("LTX" in codec.config.source) == (kind.transformer == LTX)
    if settings["in_channels"] != codec.config.channels or not same_family:
        raise UserError(f"{folder}: the transformer cannot read the autoencoder's latents")
    patch = 1 if kind.transformer == LTX else settings["patch_size"][-1]
    check_grid(size, codec.config.compression * patch)
    channels, height, width = codec.latent_shape(size)
    return BackboneConfig(
        source=kind.transformer,
        source_config=json.dumps(settings, sort_keys=True),
        channels=channels,
        height=height,
        width=width,
        text_width=settings["caption_channels" if kind.transformer == LTX else "text_dim"],
        pictures_per_latent=codec.pictures_per_latent,
        compression=codec.config.compression,
        fps=kind.fps,
        first_picture=kind.first_picture,
        largest_size=codec.latents_of(kind.pictures),
    )


def check_grid(size: tuple[int, int], step: int) -> None:
    """Raise ``UserError`` for sides that are no multiples of so many pixels."""
    if any(side % step for side in size):
        height, width = size
        near = "x".join(str(max(round(side / step), 1) * step) for side in (width, height))
        grid = f"no size of this model, whose sides are multiples of {step}"
        raise UserError(f'{width}x{height} is {grid}: try `size="{near}"`')


def _settings(folder: Path, kind: Kind) -> dict[str, Any]:
    """All settings of the folder's transformer, those that its file leaves out too."""
    found = _read(folder / "transformer" / "config.json", folder)
    if found.get("_class_name") != kind.transformer:
        raise UserError(f"{folder}: class {found.get('_class_name')} is not {kind.transformer}")
    try:
        with torch.device("meta"):
            whole = _library(folder, kind.transformer).from_config(found).config
    except UserError:
        raise
    except Exception as error:  # the folder may hold anything
        raise _unreadable(folder, error) from error
    settings = {name: value for name, value in whole.items() if name[0] != "_"}
    check_settings(kind.transformer, settings)
    return settings


def _transformer(folder: Path, kind: Kind, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The transformer with its weights, in ``dtype`` but for what diffusers keeps precise."""
    try:
        return _library(folder, kind.transformer).from_pretrained(
            folder / "transformer", torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # the folder may hold anything
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> UserError:
    why = str(error).partition("\n")[0]
    return UserError(f"{folder}: the transformer cannot be read: {why}")


def _library(folder: Path, name: str) -> Any:  # noqa: ANN401
    """A class of diffusers."""
    try:
        import diffusers
    except ImportError as error:
        message = f'{folder} needs the package diffusers; pip install ".[diffusers]"'
        raise UserError(message) from error
    return getattr(diffusers, name)


def _levels(folder: Path, kind: Kind, patch: int) -> Levels:
    """The noise levels of the folder's scheduler, as progress; a patch has such sides in cells."""
    new_scheduler = _scheduler(folder)

    def levels(num_steps: int, cells: int) -> Tensor:
        scheduler = new_scheduler()
        kind.levels(scheduler, num_steps, cells // patch**2)
        progress_A = 1 - torch.as_tensor(scheduler.sigmas).double().cpu()
        assert len(progress_A) == num_steps + 1
        assert math.isclose(float(progress_A[-1]), 1)
        return progress_A

    return levels


def _scheduler(folder: Path) -> Callable[[], Any]:
    """What makes the folder's scheduler; ``UserError`` for one that is not of rectified flow."""
    settings = _read(folder / "scheduler" / "scheduler_config.json", folder)
    name = str(settings.get("_class_name"))
    flows = name == EULER or settings.get("use_flow_sigmas")
    if not (flows and re.fullmatch(r"\w+Scheduler", name)):
        raise UserError(f"{folder}: its scheduler {name} is not for rectified flow")
    made = _library(folder, name)
    return lambda: made.from_config(settings)
