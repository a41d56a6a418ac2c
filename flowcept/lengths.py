"""Lengths: users count pictures, the sampler counts latents (``Grid``, ``Edge``)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowcept.codecs import Codec
from flowcept.data.video import Frames
from flowcept.errors import UserError
from flowcept.settings import SampleConfig


@dataclass(frozen=True)
class Grid:
    """The numbers of pictures that a codec can make, and of the latents behind them.

    A length may count only new pictures; ``known`` others are in the clip too.
    """

    codec: Codec
    known: int = 0

    @property
    def least(self) -> int:
        """Latents of the shortest clip with anything new."""
        return self.codec.latents_of(self.known) + 1

    def pictures(self, latents: int) -> int:
        """Pictures of a clip of so many latents that a length counts."""
        return self.codec.pictures_of(latents) - self.known

    def latents(self, pictures: int) -> int:
        """Latents of the longest clip of no more pictures than asked for, if there is one."""
        return max(self.codec.latents_of(self.known + pictures), self.least)

    def enough(self, pictures: int) -> int:
        """Latents of the shortest clip of no fewer pictures than asked for."""
        return self.codec.latents_of(self.known + pictures + self.codec.pictures_per_latent - 1)

    def told(self, name: str, asked: int | None, latents: int | None) -> list[str]:
        """A note if the model cannot make exactly the number that was asked for."""
        if not asked or not latents or self.pictures(latents) == asked:
            return []
        first = ", ".join(str(self.pictures(self.least + more)) for more in range(3))
        made = self.pictures(latents)
        return [f"`{name}={asked}`: this model makes {first}, ...; {asked} becomes {made}"]

    def in_latents(self, config: SampleConfig) -> tuple[SampleConfig, list[str]]:
        """The controls with lengths in latents of the whole clip, and notes on what was rounded.

        Raises ``UserError`` where no length that can be made lies within the bounds.
        """
        if config.frames:
            exact = self.latents(config.frames)
            notes = self.told("frames", config.frames, exact)
            return replace(config, frames=exact, min_length=None, max_length=None), notes
        least = config.min_length and self.enough(config.min_length)
        most = config.max_length and self.latents(config.max_length)
        notes = self.told("min_length", config.min_length, least)
        notes += self.told("max_length", config.max_length, most)
        if least and most and least > most:
            raise UserError("no possible length lies within the bounds: " + "; ".join(notes))
        return replace(config, min_length=least, max_length=most), notes


@dataclass(frozen=True)
class Edge(Grid):
    """An end of a clip at which it grows, with the pictures that the model knows there."""

    backward: bool = False  # whether it is the first

    def seen(self, frames_FHW3: Frames) -> Frames:
        return frames_FHW3[: self.known] if self.backward else frames_FHW3[-self.known :]

    def new(self, frames_FHW3: Frames) -> Frames:
        """Pictures of a made clip beyond those that were seen."""
        return frames_FHW3[: -self.known] if self.backward else frames_FHW3[self.known :]
