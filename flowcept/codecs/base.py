"""Pictures <-> latents: what every codec is, and the codecs that take each picture alone.

Shapes: F pictures or latents of a clip, C channels (3 of a picture, `config.channels` of a latent),
H height, W width, 3 colours. Pictures of a codec (`image_FCHW`) are in [-1, 1], those of files
(`frames_FHW3`) uint8. A latent is `compression` times smaller than its picture along each side.

Latents are normalised per channel by statistics that are buffers of the codec, so that a flow model
sees about unit variance. All work goes by chunks of a fixed number of pixels: memory for
activations does not grow with the length of a clip.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowcept.errors import UserError, not_finite

LEAST_STD = 1e-4  # of a latent channel: one that is constant on the data is not blown up


def to_images(frames_FHW3: NDArray[np.uint8]) -> Tensor:
    """Pictures as files hold them -> `image_FCHW`, float32 in [-1, 1]."""
    return torch.from_numpy(np.array(frames_FHW3)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_frames(image_FCHW: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_images`, rounded; values outside [-1, 1] are cut.

    Raises UserError for values that are not finite.
    """
    if not bool(image_FCHW.isfinite().all()):
        raise not_finite()
    levels_FCHW = image_FCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    frames_FHW3: NDArray[np.uint8] = levels_FCHW.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return frames_FHW3


@dataclass(frozen=True)
class CodecConfig:
    """What a codec is. With the weights it rebuilds the codec; values outside are a UserError."""

    kind: str = "autoencoder"  # pixels, autoencoder, diffusers, diffusers-video: one of `KINDS`
    compression: int = 8  # pixels per latent cell along each side (pixels: 1)
    channels: int = 16  # latent channels (pixels: 3)
    width: int = 48  # channels of the autoencoder's first level
    source: str = ""  # of diffusers: the name of the class
    source_config: str = ""  # of diffusers: the JSON text of that class's settings, no paths
    pictures_per_latent: int = 1  # after a clip's first latent, which is one picture alone

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown codec {self.kind!r}; choose one of {', '.join(KINDS)}")
        if min(self.compression, self.channels, self.pictures_per_latent) < 1:
            raise UserError("codec compression, channels and pictures per latent must be positive")
        if self.width < 2 or self.width % 2:
            raise UserError("codec width must be positive and even")
        KINDS[self.kind].check(self)

    def latents_of(self, pictures: int) -> int:
        """Number of latents of the longest clip on the grid that has no more pictures."""
        return 1 + (pictures - 1) // self.pictures_per_latent

    def pictures_of(self, latents: int) -> int:
        """Number of pictures of a clip of so many latents."""
        return 1 + (latents - 1) * self.pictures_per_latent if latents else 0

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, H, W) of a latent of (height, width) pixels; ValueError off the grid of its cells."""
        (height, width), cell = size, self.compression
        if height % cell or width % cell:
            raise ValueError(
                f"frames of {height} x {width} need sides that are multiples of {cell}"
            )
        return self.channels, height // cell, width // cell


class Codec(nn.Module):
    """Clips of pictures in [-1, 1] <-> clips of latents of about unit variance.

    The first latent of a clip is one picture alone, every other one stands for
    `pictures_per_latent`. A clip is *on the grid* if its pictures fill its latents.

    A subclass gives the methods with `_raw`, which need neither check nor normalise. Those without
    do both; the rest of the package calls only them. They compute without gradients, in the dtype
    of the weights (or of an autocast around them), and return float32 on the codec's device.
    """

    mean_C: Tensor
    std_C: Tensor
    tiled: bool | None = None  # decode in overlapping tiles; None: this codec cannot

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        # Lengths and sizes are the settings' affair, so that a model's card can tell them alone.
        self.pictures_per_latent = config.pictures_per_latent
        self.latents_of = config.latents_of
        self.pictures_of = config.pictures_of
        self.latent_shape = config.latent_shape
        self.register_buffer("mean_C", torch.zeros(config.channels))
        self.register_buffer("std_C", torch.ones(config.channels))

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        """Raise UserError for settings that this kind of codec cannot have."""

    def encode_clip_raw(self, image_FCHW: Tensor) -> Tensor:
        """Latents, not normalised, of one whole clip on the grid."""
        raise NotImplementedError

    def encode_keyframes_raw(self, image_FCHW: Tensor) -> Tensor:
        """Latents, not normalised, of pictures that know nothing of each other: one of each."""
        return torch.cat([self.encode_clip_raw(image_1CHW) for image_1CHW in image_FCHW.split(1)])

    def decoding_bytes(self, pictures: int, size: tuple[int, int]) -> float:
        """Peak of decoding so many pictures of a height and width, beside weights and pictures."""
        del pictures, size
        return 0.0

    def decode_stream_raw(self, raw_FCHW: Tensor) -> Iterator[Tensor]:
        """Pictures of a clip's latents that are not normalised, some at a time, not clamped."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_clip(self, image_FCHW: Tensor) -> Tensor:
        """Latents of one whole clip; ValueError off the grid and for a wrong shape of pictures."""
        return self._normalized(self._checked_clip_raw(image_FCHW))

    @torch.no_grad()
    def encode_keyframes(self, image_FCHW: Tensor) -> Tensor:
        """Latents of single pictures, one of each; ValueError for a wrong shape of pictures."""
        self.check_pictures(image_FCHW)
        return self._normalized(self.encode_keyframes_raw(image_FCHW))

    encode = encode_clip  # the name that suits codecs that take each picture alone

    @torch.no_grad()
    def decode_stream(self, latent_FCHW: Tensor) -> Iterator[Tensor]:
        """Pictures of a clip in [-1, 1], in order, some at a time; ValueError for its channels."""
        channels = latent_FCHW.shape[1]
        if channels != self.config.channels:
            raise ValueError(f"latents have {channels} channels, not {self.config.channels}")
        mean_C11, std_C11 = self.mean_C.float()[:, None, None], self.std_C.float()[:, None, None]
        raw_FCHW = latent_FCHW.to(std_C11) * std_C11 + mean_C11
        for image_FCHW in self.decode_stream_raw(raw_FCHW):
            yield image_FCHW.float().clamp(-1, 1).contiguous()

    def decode(self, latent_FCHW: Tensor) -> Tensor:
        """All pictures of `decode_stream` at once."""
        return torch.cat(list(self.decode_stream(latent_FCHW)))

    def psnr(self, image_1CHW: Tensor) -> float:
        """Peak signal-to-noise ratio, in decibels, of one picture rebuilt from its latent."""
        rebuilt_1CHW = self.decode(self.encode_keyframes(image_1CHW))
        error = float((rebuilt_1CHW - image_1CHW).square().mean())
        return 10 * math.log10(4 / max(error, 1e-12))  # pictures reach from -1 to 1

    @torch.no_grad()
    def fit_statistics(self, clips: Iterable[Tensor]) -> None:
        """Set mean and standard deviation per channel from clips of pictures, read one by one.

        Raises ValueError if there is not one picture, and as `encode_clip` does.
        """
        count, total_C, square_C = 0, torch.zeros(()), torch.zeros(())
        for image_FCHW in clips:
            raw_FCHW = self._checked_clip_raw(image_FCHW).cpu().double()
            count += raw_FCHW.numel() // self.config.channels
            total_C = total_C + raw_FCHW.sum((0, 2, 3))
            square_C = square_C + raw_FCHW.square().sum((0, 2, 3))
        if not count:
            raise ValueError("latent statistics need at least one frame")
        mean_C = total_C / count
        variance_C = square_C / count - mean_C.square()
        self.mean_C.copy_(mean_C)
        self.std_C.copy_(variance_C.clamp_min(0).sqrt().clamp_min(LEAST_STD))

    def _checked_clip_raw(self, image_FCHW: Tensor) -> Tensor:
        self.check_pictures(image_FCHW)
        count, group = len(image_FCHW), self.pictures_per_latent
        on_grid = self.pictures_of(self.latents_of(count))
        if count != on_grid:
            raise ValueError(f"a clip of {count} pictures does not fill its latents, of {group} "
                             f"pictures after the first: cut it to {on_grid}")  # fmt: skip
        return self.encode_clip_raw(image_FCHW)

    def check_pictures(self, image_FCHW: Tensor) -> None:
        """Raise ValueError for other than 3 channels or sides off the cells."""
        _, channels, height, width = image_FCHW.shape
        if channels != 3:
            raise ValueError(f"frames have {channels} channels, not 3 channels of colour")
        self.latent_shape((height, width))

    def _normalized(self, raw_FCHW: Tensor) -> Tensor:
        mean_C11, std_C11 = self.mean_C.float()[:, None, None], self.std_C.float()[:, None, None]
        return (raw_FCHW.float() - mean_C11) / std_C11


KINDS: dict[str, type[Codec]] = {}  # by the names of `CodecConfig.kind`


class ImageCodec(Codec):
    """A codec that takes each picture alone: one latent each."""

    chunk_pixels: ClassVar[int] = 2**20  # at once, to bound memory: 16 pictures of 256 x 256
    memory_format: ClassVar[torch.memory_format] = torch.channels_last  # convolutions' fastest

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        if config.pictures_per_latent != 1:
            raise UserError(f"the codec {config.kind} takes each picture alone: 1 per latent")

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        """Latents before normalisation; differentiable, not chunked."""
        raise NotImplementedError

    def decode_raw(self, raw_FCHW: Tensor) -> Tensor:
        """Pictures of such latents; not clamped, differentiable, not chunked."""
        raise NotImplementedError

    def encode_clip_raw(self, image_FCHW: Tensor) -> Tensor:
        chunks = self._chunks(image_FCHW, pixels_per_cell=1)
        return torch.cat([self.encode_raw(chunk).float().contiguous() for chunk in chunks])

    encode_keyframes_raw = encode_clip_raw

    def decode_stream_raw(self, raw_FCHW: Tensor) -> Iterator[Tensor]:
        for chunk_FCHW in self._chunks(raw_FCHW, pixels_per_cell=self.config.compression**2):
            yield self.decode_raw(chunk_FCHW)

    def _chunks(self, x_FCHW: Tensor, pixels_per_cell: int) -> Iterator[Tensor]:
        """Runs of as many frames as are computed at once, on the weights' device and dtype."""
        like = next(self.parameters(), self.mean_C)
        pixels = x_FCHW.shape[2] * x_FCHW.shape[3] * pixels_per_cell
        for chunk_FCHW in x_FCHW.split(max(1, self.chunk_pixels // max(1, pixels))):
            yield chunk_FCHW.to(like.device, like.dtype, memory_format=self.memory_format)


class Pixels(ImageCodec):
    """No compression: a latent is the picture itself, normalised."""

    @classmethod
    def check(cls, config: CodecConfig) -> None:
        super().check(config)
        if (config.compression, config.channels) != (1, 3):
            raise UserError("the codec pixels has compression 1 and 3 channels; set them so")

    def encode_raw(self, image_FCHW: Tensor) -> Tensor:
        return image_FCHW

    def decode_raw(self, raw_FCHW: Tensor) -> Tensor:
        return raw_FCHW
