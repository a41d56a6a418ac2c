"""Full-sequence flow: all frames of a clip flow at the same time, in a number that is known.

So are pretrained video models trained, whose clips this process samples as their own pipelines do.
A clip whose length is not given gets the greatest one allowed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flowcept.process.forward import Flowception
from flowcept.process.growth import Insertions
from flowcept.process.posterior import systematic
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Given
from flowcept.settings import SampleConfig

Levels = Callable[[int, int], Tensor]  # ``Process.progress`` of a sampler that is followed


class KnownLength(Insertions):
    """Insertions of a process that does not choose a length: all segments' counts are known.

    Without ``frames`` a clip gets the greatest length, shared out over its open gaps.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remaining is None:
            total = max((self.config.frames or self.high) - self.num_given, 0)
            open_G = torch.tensor([float(is_open) for is_open in self.given.open_gaps])
            self.remaining = systematic(total, open_G / open_G.sum(), self._uniform())


class Together(KnownLength):
    """All frames are there at ``tau = 0``."""

    def complete(self, index: int) -> bool:
        del index
        return True

    def start(self) -> list[int]:
        assert self.remaining is not None
        return self.remaining


@dataclass(frozen=True)
class FullSequence(Flowception):
    """All frames flow at the same time; ``schedule`` and ``late`` mean nothing.

    ``levels``, if set, says the denoising progress after each step in place of ``shift``.
    """

    levels: Levels | None = None

    @property
    def chooses(self) -> bool:
        return False

    def progress(self, num_steps: int, cells: int) -> Tensor:
        if self.levels is None:
            return super().progress(num_steps, cells)
        return self.levels(num_steps, cells)

    def draw_delays(self, context: Sequence[bool], generator: Generator) -> Tensor:
        del generator
        return torch.zeros(len(context), dtype=torch.float64)

    def draw_tau(self, delay_F: Tensor, generator: Generator) -> float:
        del delay_F
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    def missing_logits(self, size_logits_BK: Tensor, state: FrameState) -> Tensor:
        del state
        return size_logits_BK

    def grow(
        self, given: Given, generator: Generator, config: SampleConfig, bounds: tuple[int, int]
    ) -> Insertions:
        return Together(given, generator, config, bounds, parse_schedule(self.schedule))
