"""How one clip grows: how many frames appear in a step, and in which gaps.

The number is drawn from the posterior of how many are missing, which is the exact law of a step of
any size. Their places are shared out by the gaps' means, so where several gaps are open at first
what one gap tells of another is lost.

Shape suffixes: G gaps of a clip, K counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from flowcept.process.posterior import (
    START_FRAMES,
    appeared_logits,
    inverse_cdf,
    systematic,
    tempered,
)
from flowcept.process.schedule import Schedule, jump
from flowcept.process.state import Given
from flowcept.settings import SampleConfig


class Growth(Protocol):
    """The insertions of one clip, step by step. ``ids`` name its visible frames, left to right."""

    ids: list[int]
    generator: torch.Generator

    def complete(self, index: int) -> bool:
        """Whether no frame can appear any more after ``index`` steps."""
        ...

    def start(self) -> list[int]:
        """New frames per gap at ``tau = 0``."""
        ...

    def count(self, index: int, log_missing_G: Tensor, size_logits_K: Tensor) -> list[int]:
        """New frames per gap in the step from ``tau = index / steps`` to the next.

        ``log_missing_G`` is the log of each gap's mean missing count, -inf where it is closed;
        ``size_logits_K`` the log-law of the clip's size. Both are float64 on the CPU.
        """
        ...

    def born(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Take note of new frames, so many in each gap; their names."""
        ...


class Insertions:
    """Flowception's growth (arXiv 2512.11438, section 3), with exact laws for steps of any size.

    A *segment* is what lies between two neighbouring given frames (or beyond the outer ones);
    given gap g opens segment g.
    """

    def __init__(
        self,
        given: Given,
        generator: torch.Generator,
        config: SampleConfig,
        schedule: Schedule,
        *,
        min_length: int,
        max_length: int,
    ) -> None:
        """``min_length`` and ``max_length`` bound the clip where ``config`` does not."""
        self.generator, self.config, self.schedule = generator, config, schedule
        self.open_gaps = given.open_gaps
        self.num_given = given.latent_FCHW.shape[0]
        self.ids = list(range(self.num_given))
        self.named = self.num_given  # frames that were ever named
        self.segments = list(range(self.num_given + 1))  # of each gap
        self.remaining = list(given.missing) if given.missing is not None else None  # by segment

        wanted = config.frames or config.min_length
        self.least = 1 if wanted else min_length  # no shorter clip exists, whatever the law says
        longest = max(max_length, self.num_given, wanted or 1)
        self.high = config.frames or config.max_length or longest
        self.low = wanted or min(min_length, self.high)

    def complete(self, index: int) -> bool:
        return index >= self.config.steps

    def start(self) -> list[int]:
        counts = [0] * len(self.open_gaps)
        if sum(self.open_gaps) != 1:
            return counts  # a sampler could not know how to share start frames out
        gap = self.open_gaps.index(True)
        room = self.high - len(self.ids) if self.remaining is None else self.remaining[gap]
        counts[gap] = max(min(START_FRAMES, room), 0)
        if self.remaining is not None:
            self.remaining[gap] -= counts[gap]
        return counts

    def count(self, index: int, log_missing_G: Tensor, size_logits_K: Tensor) -> list[int]:
        steps = self.config.steps
        if index >= steps or log_missing_G.isneginf().all():
            return [0] * len(log_missing_G)
        appear = jump(self.schedule, index / steps, (index + 1) / steps)
        if self.remaining is not None:
            return self._known(appear, log_missing_G)
        missing = self._draw_missing(index, size_logits_K)
        return self._place(self._binomial(missing, appear), log_missing_G)

    def born(self, counts: Sequence[int]) -> tuple[int, ...]:
        ids: list[int] = []
        segments: list[int] = []
        new: list[int] = []
        for gap, count in enumerate(counts):
            if gap:
                ids.append(self.ids[gap - 1])
            names = list(range(self.named, self.named + count))
            self.named += count
            ids += names
            new += names
            segments += [self.segments[gap]] * (count + 1)
        self.ids, self.segments = ids, segments
        return tuple(new)

    def _draw_missing(self, index: int, size_logits_K: Tensor) -> int:
        """The number of frames still to come, from its posterior within the bounds.

        A scale fixes the size by one draw, at the first step: later evidence would undo it.
        """
        if index == 0 and self.config.length_scale != 1:
            self._fix_scaled(size_logits_K)
        length = len(self.ids)
        low, high = max(self.low - length, 0), max(self.high - length, 0)
        return self._drawn(index, size_logits_K, low, high)

    def _fix_scaled(self, size_logits_K: Tensor) -> None:
        """Draw the size, scale what is still to come, and let the bounds leave no other.

        Bounds cut a scaled size. To condition on them would let scales over 1 shorten clips.
        """
        length, largest = len(self.ids), len(size_logits_K) - 1
        least = min(max(self.least - length, 0), max(largest - length + self.num_given, 0))
        missing = self.config.length_scale * self._drawn(0, size_logits_K, least, largest)
        size = length + math.floor(missing + self._uniform())
        self.low = self.high = min(max(size, self.low), self.high)

    def _drawn(self, index: int, size_logits_K: Tensor, low: int, high: int) -> int:
        """A missing count in ``low..high`` from the tempered law of sizes and Bayes' rule.

        The temperature is of the law of sizes, before what the mere number of visible frames tells:
        of the posterior itself it would be undone by the evidence of the steps that follow.
        """
        visible = len(self.ids) - self.num_given
        largest = len(size_logits_K) - 1 - visible
        if low > largest:
            return low  # a size beyond the law's: only the bound is known
        high = min(high, largest)
        starts = START_FRAMES if sum(self.open_gaps) == 1 else 0
        appeared = torch.tensor(max(visible - starts, 0))

        count_K = torch.arange(low, high + 1, dtype=torch.float64)
        tau = torch.tensor(index / self.config.steps, dtype=torch.float64)
        seen_K = appeared_logits(appeared, count_K, self.schedule.kappa(tau))
        size_K = size_logits_K[visible + low : visible + high + 1]
        law_K = tempered(size_K, self.config.rate_temperature) + seen_K
        return low + inverse_cdf(law_K.softmax(-1), self._uniform())

    def _known(self, appear: float, log_missing_G: Tensor) -> list[int]:
        """Every segment's own number of frames to come is known."""
        assert self.remaining is not None
        counts = [0] * len(log_missing_G)
        for segment, remaining in enumerate(self.remaining):
            new = self._binomial(remaining, appear)
            self.remaining[segment] -= new
            if new:
                outside_G = torch.tensor([s != segment for s in self.segments])
                placed = self._place(new, log_missing_G.masked_fill(outside_G, -math.inf))
                counts = [a + b for a, b in zip(counts, placed, strict=True)]
        return counts

    def _place(self, new: int, log_missing_G: Tensor) -> list[int]:
        """Share ``new`` frames out over the gaps."""
        shares_G = tempered(log_missing_G, self.config.rate_temperature).softmax(-1)
        return systematic(new, shares_G, self._uniform())

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def _binomial(self, count: int, probability: float) -> int:
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64)
        return int((draws < probability).sum())
