"""Pipelines of diffusers, saved as a folder, as models of this package.

A pretrained video model makes all frames of a clip at once, in a number that it does not choose.
So it is sampled here by ``FullSequence``, in Euler steps at the noise levels of its own scheduler:
the clip that its own pipeline makes of the same noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcept import model_file
from flowcept.codecs.pretrained import PretrainedVideo, load_pretrained
from flowcept.errors import UserError
from flowcept.model_file import Base, Card, Weights
from flowcept.networks.pretrained import LTX, WAN, Backbone, BackboneConfig, check_settings
from flowcept.networks.text import TextConfig, build_encoder
from flowcept.process.full_sequence import FullSequence, Levels
from flowcept.settings import sides

EULER = "FlowMatchEulerDiscreteScheduler"
TASKS = frozenset(["gen"])


@dataclass(frozen=True)
class Kind:
    """A pipeline of diffusers, and what it makes where nothing else is asked."""

    transformer: str  # its class
    recipe: str  # of its prompts
    size: tuple[int, int]  # height and width in pixels
    fps: float
    pictures: int
    levels: Callable[[Any, int, int], None]  # sets its scheduler's noise levels
    first_picture: bool = False  # whether frames are placed at their first picture


def _of_ltx(scheduler: Any, num_steps: int, tokens: int) -> None:  # noqa: ANN401
    """Even noise levels, moved by the number of tokens of a clip where the scheduler wants that."""
    settings = scheduler.config
    few, many = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
    low, high = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    even = [1 - step / num_steps for step in range(num_steps)]
    scheduler.set_timesteps(sigmas=even, mu=tokens * slope + low - slope * few)


SLOW_SHARE = 0.025  # of the noise that the first half of LTX-Video's later steps takes away


def _of_later_ltx(scheduler: Any, num_steps: int, tokens: int) -> None:  # noqa: ANN401
    """Noise falls little and evenly in the first half of the steps, then by a parabola."""
    del tokens
    slow = num_steps // 2
    levels = [1 - SLOW_SHARE * step / slow for step in range(slow)]
    fast = num_steps - slow
    # Through the end of the straight line with its slope, down to 0 after the last step.
    slope = SLOW_SHARE / slow if slow else 0.0
    start = 1 - SLOW_SHARE * (slow > 0)
    bend = (start - slope * fast) / fast**2
    levels += [start - slope * step - bend * step**2 for step in range(fast)]
    scheduler.set_timesteps(sigmas=levels, mu=0.0)


def _of_wan(scheduler: Any, num_steps: int, tokens: int) -> None:  # noqa: ANN401
    """The scheduler's own."""
    del tokens
    scheduler.set_timesteps(num_steps)


KINDS = {
    "LTXPipeline": Kind(LTX, "ltx", (512, 704), 25.0, 161, _of_ltx),
    "LTXConditionPipeline": Kind(
        LTX, "later-ltx", (512, 704), 25.0, 161, _of_later_ltx, first_picture=True
    ),
    "WanPipeline": Kind(WAN, "wan", (480, 832), 16.0, 81, _of_wan),
}


def load(
    folder: Path,
    dtype: torch.dtype,
    size: str | None = None,
    change: Callable[[Card], Card] | None = None,
) -> Weights:
    """A pipeline's parts as a model, the transformer and the prompt encoder in ``dtype``.

    ``size`` is WIDTHxHEIGHT, or the side of a square, by default the pipeline's own. ``change``
    makes the card of another model of it, whose network and process are built instead. Raises
    ``UserError``, one line, for a folder that is not of a pipeline that is known here, or lacks
    something, and for a size off its grid.
    """
    index = _read(folder / "model_index.json", folder)
    kind = _kind(index, folder)
    codec = load_pretrained(folder / "vae")
    if not isinstance(codec, PretrainedVideo):
        raise UserError(f"{folder}: its autoencoder is one of pictures, not of videos")
    height, width = kind.size if size is None else sides(size)
    transformer = _transformer(folder, kind, dtype)
    settings = {name: value for name, value in transformer.config.items() if name[0] != "_"}
    text_width = int(settings["caption_channels" if kind.transformer == LTX else "text_dim"])
    plain = _network(kind, codec, settings, text_width, (height, width))
    if settings["in_channels"] != codec.config.channels:
        raise UserError(f"{folder}: the transformer reads other latents than the autoencoder makes")

    text = TextConfig(kind.recipe, width=text_width, heads=1, source=str(folder))
    encoder = build_encoder(text).to(dtype)
    patches = plain.height * plain.width // plain.patch**2
    card = Card(
        network=plain,
        process=FullSequence(levels=_levels(folder, kind, patches)),
        text=text,
        codec=codec.config,
        size=(height, width),
        fps=kind.fps,
        lengths={plain.largest_size: 1},
        dataset=f"{index['_class_name']} of diffusers",
    )
    if change is not None:
        card = change(card)
    network = Backbone(card.network, card.process.shift, transformer)
    if change is None:
        network.tasks = TASKS
    for module in (network, encoder, codec):
        module.eval().requires_grad_(requires_grad=False)
    return Weights(network, encoder, codec, card, card.process)


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
    weights = load(folder, dtype, f"{width}x{height}", lambda _: card)
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
        return load(path, dtype, size)
    if model_file.read_card(path).base is not None:
        return load_adapter(path, dtype)
    return model_file.load(path)


def _read(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON file of the folder."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} has no {path.relative_to(folder)}: give a whole diffusers folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read; get the folder again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read; get the folder again")
    return found


def _kind(index: dict[str, Any], folder: Path) -> Kind:
    """What the folder's pipeline is here."""
    name = index.get("_class_name")
    if name not in KINDS:
        raise UserError(f"{folder} holds a {name}; flowcept reads {', '.join(KINDS)}")
    if (index.get("transformer_2") or [None])[0] is not None:
        raise UserError(f"{folder} has two transformers; flowcept reads models of one")
    return KINDS[name]


def _transformer(folder: Path, kind: Kind, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The transformer with its weights, in ``dtype`` but for what diffusers keeps precise."""
    try:
        import diffusers
    except ImportError as error:
        message = f'{folder} needs the package diffusers; pip install ".[diffusers]"'
        raise UserError(message) from error
    settings = _read(folder / "transformer" / "config.json", folder)
    if settings.get("_class_name") != kind.transformer:
        raise UserError(f"{folder}: class {settings.get('_class_name')} is not {kind.transformer}")
    try:
        made = getattr(diffusers, kind.transformer).from_pretrained(
            folder / "transformer", torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # the folder may hold anything
        why = str(error).partition("\n")[0]
        raise UserError(f"{folder}: the transformer cannot be read: {why}") from error
    check_settings(kind.transformer, dict(made.config))
    return made


def _network(
    kind: Kind,
    codec: PretrainedVideo,
    settings: dict[str, Any],
    text_width: int,
    size: tuple[int, int],
) -> BackboneConfig:
    """The network's settings; ``UserError`` for a size that is off its grid."""
    patch = settings["patch_size"][-1] if kind.transformer == WAN else 1
    step = codec.config.compression * patch
    if any(side % step for side in size):
        height, width = size
        near = "x".join(str(max(round(side / step), 1) * step) for side in (width, height))
        raise UserError(f"{width}x{height} is off the grid of this model, of {step} pixels: "
                        f"try --size {near}")  # fmt: skip
    channels, rows, columns = codec.latent_shape(size)
    return BackboneConfig(
        source=kind.transformer,
        source_config=json.dumps(settings, sort_keys=True),
        channels=channels,
        height=rows,
        width=columns,
        text_width=text_width,
        pictures_per_latent=codec.pictures_per_latent,
        compression=codec.config.compression,
        fps=kind.fps,
        first_picture=kind.first_picture,
        largest_size=codec.latents_of(kind.pictures),
    )


def _levels(folder: Path, kind: Kind, patches: int) -> Levels:
    """The noise levels of the folder's scheduler, of frames of so many patches, as progress."""
    import diffusers

    settings = _read(folder / "scheduler" / "scheduler_config.json", folder)
    name = str(settings.get("_class_name"))
    flows = name == EULER or settings.get("use_flow_sigmas")
    if not (flows and re.fullmatch(r"\w+Scheduler", name) and hasattr(diffusers, name)):
        raise UserError(f"{folder}: its scheduler {name} is not one of rectified flow")

    def levels(num_steps: int, frames: int) -> Tensor:
        scheduler = getattr(diffusers, name).from_config(settings)
        kind.levels(scheduler, num_steps, frames * patches)
        progress_A = 1 - torch.as_tensor(scheduler.sigmas).double().cpu()
        assert len(progress_A) == num_steps + 1
        assert math.isclose(float(progress_A[-1]), 1)
        return progress_A

    return levels
