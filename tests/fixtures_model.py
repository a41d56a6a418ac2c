"""Tiny model files with random weights, for tests of tasks and commands."""

from __future__ import annotations

from pathlib import Path

import torch
from fake_codec import fake_config

from flowcept import model_file as checkpoint
from flowcept.codecs import CodecConfig
from flowcept.lexicon import Lexicon
from flowcept.model_file import Card
from flowcept.networks.motion import MotionConfig, MotionNetwork
from flowcept.networks.text import TextConfig
from flowcept.networks.transformer import TransformerConfig
from flowcept.process.forward import Flowception
from flowcept.training.motion import motion_weights

SIZE = 32  # pixels of a frame's side
LENGTHS = {4: 1, 6: 2, 8: 3, 10: 2, 12: 1}  # trained clips by number of frames
WORDS = {"a": 3, "dog": 2, "surfing": 2, "cat": 1}

LEXICON = Lexicon(
    {"actor": {"dog": ("puppy",), "cat": ("kitten",)}, "action": {"surfing": ("riding a wave",)}}
)

SMALL_MOTION = MotionConfig(
    features=8, compared=4, coarse=(8, 8, 8), fine=(8, 8, 8), law_hidden=8, most_missing=6
)


def write_motion(path: Path) -> Path:
    """A model of motion that has not learned: the blend by hand, and a broad law of gaps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MotionNetwork(SMALL_MOTION)
    checkpoint.save(motion_weights(network, 5), path)
    return path


def write_model(path: Path, codec: str = "autoencoder", lexicon: Lexicon | None = None) -> Path:
    """A model that knows nothing, with open gates, so that every input changes its output."""
    if codec == "pixels":
        codec_config = CodecConfig(kind="pixels", compression=1, channels=3)
    elif codec == "fake-video":
        codec_config = fake_config(compression=4)
    else:
        codec_config = CodecConfig(compression=8, channels=8, width=16)
    cells = SIZE // codec_config.compression
    text = TextConfig(width=24, depth=1, heads=2, tokens=2)
    network = TransformerConfig(
        channels=codec_config.channels,
        height=cells,
        width=cells,
        largest_size=max(LENGTHS),
        text_width=text.width,
        hidden=32,
        depth=2,
        heads=2,
        patch=cells // 2,
        stem_channels=8,
    )
    process = Flowception()
    prompts = {"a dog surfing": 2, "a cat": 1}
    card = Card(
        network, process, text, codec_config, (SIZE, SIZE), 12.0, LENGTHS,
        codec_psnr=4.0, steps=7, dataset="toy", prompts=prompts, words=WORDS,
        lexicon=lexicon,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = checkpoint.build(card)
        with torch.no_grad():
            for parameter in weights.network.parameters():
                if not parameter.any():  # gates and heads start at zero
                    parameter.normal_(std=0.3)
    checkpoint.save(weights, path)
    return path
