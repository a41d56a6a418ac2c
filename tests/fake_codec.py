"""A video codec for tests: importing this module registers it as the kind ``fake-video``.

A latent holds the pixels of ``GROUP`` pictures in its channels, so that decoding is exact; of one
picture alone it holds as many copies. ``fake_config`` describes one for model files:

    codec = build_codec(fake_config(compression=4))  # latents of 192 channels
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept.codecs import KINDS, Codec, CodecConfig
from flowcept.errors import UserError

GROUP = 4  # pictures per latent
WINDOW = 2  # latents decoded at once


def fake_config(compression: int = 2) -> CodecConfig:
    channels = GROUP * 3 * compression**2
    return CodecConfig("fake-video", compression, channels, pictures_per_latent=GROUP)


class FakeVideo(Codec):
    """Groups of pictures, stacked in the channels of one latent each."""

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        channels = GROUP * 3 * config.compression**2
        if (config.channels, config.pictures_per_latent) != (channels, GROUP):
            raise UserError(f"the codec fake-video has {channels} channels of {GROUP} pictures")

    def encode_clip_raw(self, image_FCHW: Tensor) -> Tensor:
        copies_FCHW = image_FCHW[:1].repeat(1, GROUP, 1, 1)
        groups_FCHW = image_FCHW[1:].reshape(-1, *copies_FCHW.shape[1:])
        return self._cells(torch.cat([copies_FCHW, groups_FCHW]))

    def decode_stream_raw(self, raw_FCHW: Tensor) -> Iterator[Tensor]:
        stack_FCHW = F.pixel_shuffle(raw_FCHW, self.config.compression)
        yield stack_FCHW[:1, -3:]
        for window_FCHW in stack_FCHW[1:].split(WINDOW):
            yield window_FCHW.unflatten(1, (GROUP, 3)).flatten(0, 1)

    def _cells(self, stack_FCHW: Tensor) -> Tensor:
        return F.pixel_unshuffle(stack_FCHW.to(self.mean_C), self.config.compression)


KINDS["fake-video"] = FakeVideo
