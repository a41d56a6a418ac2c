"""What a run trains: network, prompt encoder and card, new or of a model to start from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowcept import diffusers_folder
from flowcept.adapters import digest
from flowcept.codecs import Codec
from flowcept.data.batches import ClipSource, split_held_out
from flowcept.data.encoded import EncodedClips
from flowcept.data.folder import digest_of
from flowcept.data.shards import LatentStore, PictureStore
from flowcept.diffusers_folder import Stored
from flowcept.errors import UserError
from flowcept.lexicon import Lexicon
from flowcept.model_file import WORDS, Base, Card, Weights
from flowcept.models import Model
from flowcept.networks import FAMILIES, VideoNetwork, build_network
from flowcept.networks.text import ByteEncoder, PromptEncoder, TextConfig, build_encoder, words_of
from flowcept.process.forward import Flowception, Process
from flowcept.settings import TextSettings, TrainConfig, from_mapping

PROMPTS = 64  # of the training prompts at most are listed in a card, the most frequent


@dataclass(frozen=True)
class Clips:
    """The clips of a run as latents, split into those to train on and those held out."""

    latents: ClipSource
    train: list[int]
    held: list[int]

    @property
    def contents(self) -> str:
        """A digest of captions and lengths; paths do not count."""
        return digest_of(self.latents.captions, self.latents.lengths)


def split(
    store: PictureStore | LatentStore | EncodedClips, config: TrainConfig
) -> tuple[list[int], list[int]]:
    """Clips to train on and clips to hold out; pieces of one file stay on one side."""
    groups = [entry.path for entry in store.entries]
    return split_held_out(groups, config.data.held_out, config.machine.seed)


def process_of(config: TrainConfig) -> Flowception:
    return from_mapping(Flowception, asdict(config.process))


def text_config(settings: TextSettings) -> TextConfig:
    """The prompt encoder that the settings name; ``UserError`` if its folder holds none."""
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
        raise UserError(f"{source}/config.json lacks the encoder's width (d_model or hidden_size)")
    return width


def network_config(
    config: TrainConfig, latent: Sequence[int], longest: int, text_width: int, family: str
) -> Any:  # noqa: ANN401 - each family has settings of its own
    """The network's settings for latents ``(channels, rows, columns)`` and the longest clip."""
    channels, height, width = latent
    shape = {
        **asdict(config.network),
        "place": config.network.place or config.process.planned,
        "channels": channels,
        "height": height,
        "width": width,
        "largest_size": longest,
        "text_width": text_width,
    }
    return from_mapping(FAMILIES[family].config, shape)


def check_parts(config: TrainConfig, family: str) -> None:
    """Raise ``UserError`` for bad settings that would else fail only after the codec's training."""
    try:
        process_of(config)
        text = text_config(config.text)
        patch = config.network.patch
        network_config(config, (1, patch, patch), 1, text.width, family)
    except ValueError as error:
        raise UserError(str(error)) from error
    if text.kind == "pretrained":
        build_encoder(text)
    if config.data.lexicon:
        Lexicon.load(Path(config.data.lexicon))


def pretrained(
    found: Model, config: TrainConfig, dtype: torch.dtype, stored: Stored | None = None
) -> Weights:
    """A diffusers folder as a model to start from, with the run's process.

    With ``lora`` or ``freeze`` its own weights are frozen and kept in ``dtype``.
    """
    rank, beside = config.optimizer.lora, bool(config.optimizer.lora or config.optimizer.freeze)
    base = Base(found.source, digest(found.path)) if beside else None

    def change(plain: Card) -> Card:
        network = replace(plain.network, lora=rank)
        return replace(plain, network=network, process=process_of(config), base=base)

    torch.manual_seed(config.machine.seed)  # of what is added
    precision = dtype if beside else torch.float32
    return diffusers_folder.load(
        found.path, precision, config.data.size, change, stored, source=found.source
    )


def assemble(
    config: TrainConfig,
    clips: Clips,
    codec: Codec,
    origin: Weights | None,
    process: Process | None,
    family: str,
    text: PromptEncoder | None = None,
    **facts: Any,  # noqa: ANN401
) -> Weights:
    """The modules to train, from ``origin`` if there is one, with card and process.

    ``text``, if given, is the prompt encoder of a new network. ``facts`` are further entries of the
    card: dataset, frames per second, and on its codec.
    """
    torch.manual_seed(config.machine.seed)
    longest = max(clips.latents.lengths)  # clips held out are scored as well
    named = process_of(config)
    shift = named.shift if process is None else process.shift
    if origin is None:
        latent = clips.latents.latent(0).shape[1:]
        shape, network, text = _new(config, latent, longest, shift, family, text)
    else:
        network, text = _further(origin, longest, shift)
        shape = network.at_rate(facts["fps"])
    network.checkpoint_blocks = config.machine.checkpointing
    counts = tables(clips)
    card = Card(
        network=shape,
        process=named,
        text=text.config,
        codec=codec.config,
        size=config.data.frame_size,
        fit=config.data.fit,
        base=None if origin is None else origin.card.base,
        lexicon=_lexicon(config.data.lexicon, origin, counts["words"]),
        **counts,
        **facts,
    )
    if origin is None and isinstance(text, ByteEncoder):
        text.know(card.words)
    return Weights(network, text, codec, card, process or named)


def _new(
    config: TrainConfig,
    latent: Sequence[int],
    longest: int,
    shift: float,
    family: str,
    text: PromptEncoder | None,
) -> tuple[Any, VideoNetwork, PromptEncoder]:
    """A new network with its settings, and a prompt encoder."""
    reads = text_config(config.text) if text is None else text.config
    shape = network_config(config, latent, longest, reads.width, family)
    return shape, build_network(shape, shift), text or build_encoder(reads)


def _further(origin: Weights, longest: int, shift: float) -> tuple[VideoNetwork, PromptEncoder]:
    """Network and prompt encoder of a model, to train further; frozen encoders stay frozen."""
    network = origin.network
    if longest > network.largest_size:
        network.grow_law(longest)
    network.shift = shift
    network.learn(whole=origin.card.base is None)
    if origin.card.text.kind == "bytes":
        origin.text.requires_grad_()
    return network, origin.text


def _lexicon(path: str, origin: Weights | None, words: Collection[str]) -> Lexicon | None:
    """The lexicon of a file, or of the model to start from, for words of the captions."""
    inherited = None if origin is None else origin.card.lexicon
    lexicon = Lexicon.load(Path(path)) if path else inherited
    return lexicon and lexicon.within(words)


def check_lexicon(path: str, captions: Iterable[str]) -> None:
    """Raise ``UserError`` if no caption has a class of the lexicon in the settings."""
    words = {word for caption in captions for word in words_of(caption)}
    if path and not Lexicon.load(Path(path)).within(words).classes:
        examples = ", ".join(sorted(words)[:8]) or "none"
        raise UserError(f"no caption has a word of {path}'s classes; words of captions: {examples}")


def tables(clips: Clips) -> dict[str, Any]:
    """The card's counts of lengths, prompts and words; equal counts are sorted by name."""
    lengths = Counter(clips.latents.lengths[clip] for clip in clips.train)
    captions = [clips.latents.captions[clip] for clip in clips.train]
    words = Counter(word for caption in captions for word in set(words_of(caption)))
    return {
        "lengths": dict(sorted(lengths.items())),
        "prompts": _commonest(Counter(filter(None, captions)), PROMPTS),
        "words": _commonest(words, WORDS),
    }


def _commonest(counts: Counter[str], most: int) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:most])
