"""What a run trains: network, prompt encoder and card, new or of a model to go on from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowcept.codecs import Codec
from flowcept.data import folder as data
from flowcept.data.folder import FrameStore, LatentStore
from flowcept.errors import UserError
from flowcept.model_file import WORDS, Card, Weights
from flowcept.networks.text import ByteEncoder, PromptEncoder, TextConfig, build_encoder, words_of
from flowcept.networks.transformer import ModelConfig, Network
from flowcept.process.forward import ProcessConfig
from flowcept.settings import DataSettings, TextSettings, TrainConfig, from_mapping

PROMPTS = 64  # of the training prompts at most are listed in a card, the most frequent


@dataclass(frozen=True)
class Clips:
    """The clips of a run as latents, and which of them are trained on."""

    latents: LatentStore
    train: list[int]
    held: list[int]


def split(store: FrameStore | LatentStore, config: TrainConfig) -> tuple[list[int], list[int]]:
    """Clips to train on and clips to hold out; pieces of one file stay together."""
    groups = [entry.path for entry in store.entries]
    return data.split_held_out(len(store), config.data.held_out, config.machine.seed, groups)


def data_config(settings: DataSettings) -> data.DataConfig:
    return data.DataConfig(
        settings.frame_size, settings.fps, settings.min_frames, settings.max_frames, settings.fit
    )


def process_of(config: TrainConfig) -> ProcessConfig:
    return from_mapping(ProcessConfig, asdict(config.process))


def text_config(settings: TextSettings) -> TextConfig:
    """The prompt encoder that the settings name; ``UserError`` where its folder holds none."""
    if settings.text_source:
        width = _frozen_width(settings.text_source)
        return TextConfig("pretrained", width=width, heads=1, source=settings.text_source)
    return TextConfig(width=settings.text_width, depth=settings.text_depth)


def _frozen_width(source: str) -> int:
    """Width of the tokens of a T5 or CLIP in a folder."""
    try:
        found = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no prompt encoder in {source}: expected a folder with config.json"
        ) from error
    tables = [found, found.get("text_config")] if isinstance(found, dict) else []
    names = ("d_model", "hidden_size")
    widths = [table.get(name) for table in tables if isinstance(table, dict) for name in names]
    width = next((width for width in widths if width), None)
    if not isinstance(width, int):
        raise UserError(f"{source}/config.json does not say the encoder's width")
    return width


def network_config(
    config: TrainConfig, latent: tuple[int, int, int], longest: int, text_width: int
) -> ModelConfig:
    """The network for latents of so many channels, rows and columns, and clips so long."""
    channels, height, width = latent
    shape = asdict(config.network) | {
        "channels": channels,
        "height": height,
        "width": width,
        "max_count": longest,
        "text_width": text_width,
    }
    shape["cells"] = shape.pop("stem_channels")
    shape["cell_depth"] = shape.pop("stem_depth")
    return from_mapping(ModelConfig, shape)


def check_parts(config: TrainConfig) -> None:
    """Raise ``UserError`` for what would only show after the codec's training."""
    try:
        process_of(config)
        text = text_config(config.text)
        network_config(config, (1, config.network.patch, config.network.patch), 1, text.width)
    except ValueError as error:
        raise UserError(str(error)) from error
    if text.kind == "pretrained":
        build_encoder(text)


def assemble(
    config: TrainConfig,
    clips: Clips,
    codec: Codec,
    process: ProcessConfig,
    origin: Weights | None,
    **facts: Any,  # noqa: ANN401 - of the card: dataset and fps
) -> Weights:
    """The modules to train and their card; those of ``origin`` where there is one."""
    torch.manual_seed(config.machine.seed)
    latents = clips.latents
    captions = [latents.captions[clip] for clip in clips.train]
    words = Counter(word for caption in captions for word in set(words_of(caption)))
    known = commonest(words, WORDS)
    longest = max(latents.lengths)  # clips held out are scored as well
    if origin is None:
        network, text = _new(config, latents.latent(0).shape[1:], longest, process, known)
    else:
        network, text = _further(origin, longest, process)
    network.checkpoint_blocks = config.machine.checkpointing

    card = Card(
        network=network.config,
        process=process,
        text=text.config,
        codec=codec.config,
        size=config.data.frame_size,
        lengths=dict(sorted(Counter(latents.lengths[clip] for clip in clips.train).items())),
        fit=config.data.fit,
        prompts=commonest(Counter(filter(None, captions)), PROMPTS),
        words=known,
        **facts,
    )
    return Weights(network, text, codec, card)


def commonest(counts: Counter[str], most: int) -> dict[str, int]:
    """The largest counts, equal ones by name, so that equal runs write equal files."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:most])


def _new(
    config: TrainConfig,
    latent: Sequence[int],
    longest: int,
    process: ProcessConfig,
    known: Iterable[str],
) -> tuple[Network, PromptEncoder]:
    """Network and prompt encoder as they are before the first step."""
    text = text_config(config.text)
    channels, height, width = latent
    network = Network(
        network_config(config, (channels, height, width), longest, text.width), process
    )
    encoder = build_encoder(text)
    if isinstance(encoder, ByteEncoder):
        encoder.know(known)
    return network, encoder


def _further(
    origin: Weights, longest: int, process: ProcessConfig
) -> tuple[Network, PromptEncoder]:
    """Network and prompt encoder of a model file, to be trained on; frozen encoders stay so."""
    network = origin.network
    if longest > network.config.max_count:
        network.count_to(longest)
    network.process = process
    network.requires_grad_().train()
    if origin.card.text.kind == "bytes":
        origin.text.requires_grad_()
    return network, origin.text
