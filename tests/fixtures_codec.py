"""Small codecs and pictures for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from flowcept.codecs import CodecConfig, build_codec
from flowcept.codecs.autoencoder import Autoencoder


def small_codec(compression: int = 8, channels: int = 8, width: int = 16) -> Autoencoder:
    torch.manual_seed(0)
    codec = build_codec(CodecConfig(compression=compression, channels=channels, width=width))
    assert isinstance(codec, Autoencoder)
    return codec


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Discs of random colour, place and size on gradients; `[count, 3, size, size]`."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, size)
    a, b, c = torch.rand(3, count, 3, 1, 1, generator=generator) * 2 - 1
    y, x = torch.rand(2, count, 1, 1, 1, generator=generator) - 0.5
    radius = torch.rand(count, 1, 1, 1, generator=generator) * 0.5 + 0.2
    ground = a + (b - a) * (line[:, None] + 1) / 2 + torch.zeros(size)
    inside = (line[:, None] - y) ** 2 + (line - x) ** 2 < radius**2
    return torch.where(inside, c, ground)


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))
