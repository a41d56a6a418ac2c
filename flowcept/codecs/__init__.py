"""Codecs: clips of pictures <-> clips of latents. `KINDS` has them by name."""

from flowcept.codecs.autoencoder import Autoencoder
from flowcept.codecs.base import KINDS, Codec, CodecConfig, Pixels, to_frames, to_images
from flowcept.codecs.pretrained import Pretrained, PretrainedVideo

__all__ = ["KINDS", "Codec", "CodecConfig", "Pixels", "build_codec", "to_frames", "to_images"]

KINDS.update(pixels=Pixels, autoencoder=Autoencoder, diffusers=Pretrained)
KINDS["diffusers-video"] = PretrainedVideo


def build_codec(config: CodecConfig) -> Codec:
    """A codec with random weights; UserError if it needs diffusers and that is not installed."""
    return KINDS[config.kind](config)
