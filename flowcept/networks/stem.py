"""The convolutional stem: latents to patches, and patches to velocities.

A patch is coarse: a thing's outline crosses it anywhere. So latents become patches, and patches
velocities, by convolutions within each frame over features of shrinking resolution, which also see
the same place in the visible frame before and after: the transformer's blocks say what is where and
how it moves, the convolutions how it looks there, and that it still looks so in the next frame.

Shape suffixes: F frames that are evaluated, C H W channels and size; features have their channels
last, as they stay in memory; D width of a condition.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.layers import adaln, chunked, zero_init
from flowcept.networks.layout import Layout
from flowcept.networks.resting import Memory


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

    before_F: Tensor  # numbers among all frames, 0 where there is none
    after_F: Tensor
    has_before_F111: Tensor  # bool
    has_after_F111: Tensor
    awake_F: Tensor | None  # numbers of the frames that are evaluated; None: all are
    memory: Memory | None  # of frames that rest

    @classmethod
    def of(cls, layout: Layout, memory: Memory | None) -> Self:
        before_F, after_F = layout.before_F, layout.after_F
        return cls(
            before_F.clamp(min=0),
            after_F.clamp(min=0),
            (before_F >= 0)[:, None, None, None],
            (after_F >= 0)[:, None, None, None],
            layout.awake_F,
            memory,
        )

    def all_frames(self, name: str, x_FHWC: Tensor) -> Tensor:
        """What all frames hold, from what those hold that are evaluated; ``name`` is a module's."""
        return x_FHWC if self.memory is None else self.memory.whole(name, x_FHWC, self.awake_F)

    def beside(self, all_FHWC: Tensor, rows: slice) -> Tensor:
        """What the frames before and after these rows hold at each place, 0 where none is.

        ``all_FHWC`` is of all frames, the rows are numbers among those that are evaluated.
        """
        before_FHWC = all_FHWC.index_select(0, self.before_F[rows]) * self.has_before_F111[rows]
        after_FHWC = all_FHWC.index_select(0, self.after_F[rows]) * self.has_after_F111[rows]
        return torch.cat([before_FHWC, after_FHWC], dim=-1)


class StemBlock(nn.Module):
    """Two convolutions within each frame, and between them a look at the frames beside it."""

    def __init__(self, channels: int, hidden: int, name: str) -> None:
        super().__init__()
        self.name = name  # unique in the network: what rests is remembered under it
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


def shrinking(patch: int) -> list[int]:
    """By which factors the resolution shrinks, step by step, until patches of cells are one."""
    halvings = (patch & -patch).bit_length() - 1
    odd = patch >> halvings
    return [2] * halvings + [odd] * (odd > 1 or not halvings)


class Stem(nn.Module):
    """From latents to patches and from patches to velocities.

    The features of each resolution are remembered on the way down and added to on the way up.
    """

    def __init__(
        self, latent_channels: int, channels: int, depth: int, patch: int, hidden: int
    ) -> None:
        """``channels`` are doubled with every shrinking, ``depth`` blocks stand at each resolution.

        ``patch`` cells along each side become one of width ``hidden``, as wide as a condition.
        """
        super().__init__()
        self.factors = shrinking(patch)
        widths = [channels * 2**level for level in range(len(self.factors))]
        coarser = [*widths[1:], hidden]
        squares = [factor**2 * width for factor, width in zip(self.factors, widths, strict=True)]

        def blocks(way: str) -> nn.ModuleList:
            return nn.ModuleList(
                StemBlocks(
                    StemBlock(width, hidden, f"stem.{way}.{level}.{number}")
                    for number in range(depth)
                )
                for level, width in enumerate(widths)
            )

        self.first = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.down, self.up = blocks("down"), blocks("up")
        self.merge = nn.ModuleList(map(nn.Linear, squares, coarser))
        self.divide = nn.ModuleList(map(nn.Linear, coarser, squares))
        self.film = nn.Linear(hidden, 2 * channels)
        self.velocity = nn.Conv2d(channels, latent_channels, 3, padding=1)
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
