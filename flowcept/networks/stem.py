"""The convolutional stem: latents to patches, and patches to velocities.

A patch is coarse: a thing's outline crosses it anywhere. So latents become patches, and patches
velocities, by convolutions within each frame over features of shrinking resolution, which also see
the same place in the visible frame before and after: the transformer's blocks say what is where and
how it moves, the convolutions how it looks there, and that it still looks so in the next frame.

Shape suffixes: F frames that are evaluated, C H W channels and size; features have their channels
last, as they stay in memory; D width of a condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.layers import adaln, chunked, zero_init
from flowcept.networks.layout import Layout
from flowcept.networks.resting import Memory


@dataclass(frozen=True)
class StemConfig:
    """Shape of the stem."""

    latent_channels: int
    channels: int  # at the latent's own resolution; twice as many at every coarser one
    depth: int  # blocks at each resolution, on the way down and on the way up
    patch: int  # latent cells along each side of a patch
    hidden: int  # width of a patch, and of the condition

    @property
    def factors(self) -> list[int]:
        """By how much the resolution shrinks, step by step, until cells are patches."""
        halvings = (self.patch & -self.patch).bit_length() - 1
        odd = self.patch >> halvings
        return [2] * halvings + [odd] * (odd > 1 or not halvings)

    @property
    def widths(self) -> list[int]:
        """Channels before each shrinking."""
        return [self.channels * 2**level for level in range(len(self.factors))]


def film(layer: nn.Linear, x_FHWC: Tensor, condition_FD: Tensor) -> Tensor:
    """Features of each frame, normalised, scaled and shifted by its condition."""
    scale, shift = layer(condition_FD)[:, None, None].to(x_FHWC.dtype).chunk(2, dim=-1)
    return adaln(x_FHWC, shift, scale)


def convolve(layer: nn.Module, x_FHWC: Tensor) -> Tensor:
    """A convolution of features that have their channels last."""
    y_FCHW: Tensor = layer(x_FHWC.permute(0, 3, 1, 2))
    return y_FCHW.permute(0, 2, 3, 1)


def pixel_unshuffle(x_FHWC: Tensor, factor: int) -> Tensor:
    """Squares become channels: ``[F, H / factor, W / factor, factor * factor * C]``."""
    num_frames, height, width, channels = x_FHWC.shape
    squares = (num_frames, height // factor, factor, width // factor, factor, channels)
    return x_FHWC.reshape(squares).transpose(2, 3).flatten(3)


def pixel_shuffle(x_FHWC: Tensor, factor: int) -> Tensor:
    """The inverse of ``pixel_unshuffle``."""
    channels = x_FHWC.shape[3] // factor**2
    x_FhwyxC = x_FHWC.reshape(*x_FHWC.shape[:3], factor, factor, channels)
    return x_FhwyxC.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@dataclass(frozen=True)
class Neighbours:
    """Finds what the frames before and after each frame hold, in its own clip."""

    layout: Layout
    memory: Memory | None  # of frames that rest

    def all_frames(self, name: str, x_FHWC: Tensor) -> Tensor:
        """What all frames hold, from what those hold that are evaluated; ``name`` is a module's."""
        return x_FHWC if self.memory is None else self.memory.frames(name, x_FHWC)

    def beside(self, all_FHWC: Tensor, rows: slice) -> Tensor:
        """What the frames before and after these rows hold at each place, 0 where none is.

        ``all_FHWC`` is of all frames, the rows are numbers among those that are evaluated.
        """
        layout, awake_F = self.layout, self.layout.awake_F
        if awake_F is None:
            low, high = max(rows.start - 1, 0), min(rows.stop + 1, len(all_FHWC))
            near_FHWC, own = all_FHWC[low:high], slice(rows.start - low, rows.stop - low)
            before_FHWC, after_FHWC = near_FHWC.roll(1, 0)[own], near_FHWC.roll(-1, 0)[own]
            has_before_F, has_after_F = layout.before_F[rows], layout.after_F[rows]
        else:
            own_F = awake_F[rows]
            before_FHWC = all_FHWC[(own_F - 1).clamp(min=0)]
            after_FHWC = all_FHWC[(own_F + 1).clamp(max=len(all_FHWC) - 1)]
            has_before_F, has_after_F = layout.before_F[own_F], layout.after_F[own_F]
        before_FHWC = before_FHWC * has_before_F[:, None, None, None]
        after_FHWC = after_FHWC * has_after_F[:, None, None, None]
        return torch.cat([before_FHWC, after_FHWC], dim=-1)


class StemBlock(nn.Module):
    """Two convolutions within each frame, and between them a look at the frames beside it."""

    def __init__(self, channels: int, hidden: int, name: str) -> None:
        super().__init__()
        self.name = name  # unique in the network
        self.film = nn.Linear(hidden, 2 * channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.beside = nn.Linear(2 * channels, channels, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        zero_init(self.film, self.beside, self.second)

    def forward(self, x_FHWC: Tensor, condition_FD: Tensor, neighbours: Neighbours) -> Tensor:
        def alone(rows: slice) -> Tensor:
            return convolve(self.first, film(self.film, x_FHWC[rows], condition_FD[rows]))

        def together(rows: slice) -> Tensor:
            z_FHWC = y_FHWC[rows] + self.beside(neighbours.beside(all_FHWC, rows))
            return x_FHWC[rows] + convolve(self.second, F.silu(z_FHWC))

        y_FHWC = chunked(alone, x_FHWC)
        all_FHWC = neighbours.all_frames(self.name, y_FHWC)
        return chunked(together, x_FHWC)


class StemBlocks(nn.ModuleList):
    """Blocks one after another."""

    def forward(self, x_FHWC: Tensor, condition_FD: Tensor, neighbours: Neighbours) -> Tensor:
        for block in self:
            x_FHWC = block(x_FHWC, condition_FD, neighbours)
        return x_FHWC


class Stem(nn.Module):
    """From latents to patches and from patches to velocities.

    The features of each resolution are remembered on the way down and added to on the way up.
    """

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        self.factors, widths = config.factors, config.widths
        coarser = [*widths[1:], config.hidden]
        squares = [factor**2 * c for factor, c in zip(self.factors, widths, strict=True)]

        def blocks(way: str) -> nn.ModuleList:
            return nn.ModuleList(
                StemBlocks(
                    StemBlock(c, config.hidden, f"stem.{way}.{level}.{number}")
                    for number in range(config.depth)
                )
                for level, c in enumerate(widths)
            )

        self.first = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.down, self.up = blocks("down"), blocks("up")
        self.merge = nn.ModuleList(map(nn.Linear, squares, coarser))
        self.divide = nn.ModuleList(map(nn.Linear, coarser, squares))
        self.film = nn.Linear(config.hidden, 2 * widths[0])
        self.velocity = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)
        zero_init(self.film, self.velocity)

    def to_patches(
        self, latent_FCHW: Tensor, condition_FD: Tensor, neighbours: Neighbours
    ) -> tuple[Tensor, list[Tensor]]:
        """Patches ``[F, H, W, D]``, and the features of each resolution, finest first."""
        x_FHWC = convolve(self.first, latent_FCHW.permute(0, 2, 3, 1))
        features = []
        for factor, blocks, merge in zip(self.factors, self.down, self.merge, strict=True):
            x_FHWC = blocks(x_FHWC, condition_FD, neighbours)
            features.append(x_FHWC)
            x_FHWC = _merged(merge, x_FHWC, factor)
        return x_FHWC, features

    def to_velocity(
        self,
        patch_FHWD: Tensor,
        features: list[Tensor],
        condition_FD: Tensor,
        neighbours: Neighbours,
    ) -> Tensor:
        """The velocity ``[F, C, H, W]`` that patches say, float32; ``features`` are used up."""
        x_FHWC = patch_FHWD
        ways = list(zip(self.factors, self.up, self.divide, strict=True))
        for factor, blocks, divide in reversed(ways):
            x_FHWC = _divided(divide, x_FHWC, factor, features.pop())
            x_FHWC = blocks(x_FHWC, condition_FD, neighbours)

        def velocity(rows: slice) -> Tensor:
            y_FHWC = F.silu(film(self.film, x_FHWC[rows], condition_FD[rows]))
            return convolve(self.velocity, y_FHWC)

        return chunked(velocity, x_FHWC).permute(0, 3, 1, 2).float()


def _merged(layer: nn.Module, x_FHWC: Tensor, factor: int) -> Tensor:
    def work(rows: slice) -> Tensor:
        y_FHWC: Tensor = layer(pixel_unshuffle(x_FHWC[rows], factor))
        return y_FHWC

    return chunked(work, x_FHWC)


def _divided(layer: nn.Module, x_FHWC: Tensor, factor: int, same_FHWC: Tensor) -> Tensor:
    def work(rows: slice) -> Tensor:
        return same_FHWC[rows] + pixel_shuffle(layer(x_FHWC[rows]), factor)

    return chunked(work, same_FHWC)
