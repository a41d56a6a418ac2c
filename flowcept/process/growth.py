"""How one clip grows: how many frames appear in a step, and in which gaps.

The number is drawn from the posterior of how many are missing, which is the exact law of a step of
any size. Their places follow from the joint law of the gaps' counts, where the network has one
(``compositions.py``); else they are shared out by the gaps' means, and what one gap tells of
another is lost.

Shape suffixes: G gaps of a clip, K counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor

from flowcept.process import compositions, posterior
from flowcept.process.compositions import Gaps
from flowcept.process.schedule import Schedule
from flowcept.process.state import Given
from flowcept.settings import SampleConfig


@dataclass
class Insertions:
    """Flowception's growth (arXiv 2512.11438, section 3), with exact laws for steps of any size.

    A *segment* is what lies between two neighbouring given frames (or beyond the outer ones);
    given gap g opens segment g.
    """

    given: Given
    generator: Generator
    config: SampleConfig
    bounds: tuple[int, int]  # least and largest length, where ``config`` sets none
    schedule: Schedule
    first: bool = field(default=False, kw_only=True)  # start with the first frame, if none is given

    def __post_init__(self) -> None:
        self.num_given = len(self.given.latent_FCHW)
        self.length = self.num_given  # visible frames
        self.segments = list(range(self.num_given + 1))  # of each gap
        missing = self.given.missing
        self.remaining = list(missing) if missing is not None else None  # by segment
        starts = not self.num_given if self.first else sum(self.given.open_gaps) == 1
        self.starts = posterior.START_FRAMES * starts
        self.open_first = self.given.open_gaps[0] and not (self.first and self.starts)

        min_length, max_length = self.bounds
        wanted = self.config.frames or self.config.min_length
        self.least = 1 if wanted else min_length  # no shorter clip exists, whatever the law says
        longest = max(max_length, self.num_given, wanted or 1)
        self.high = self.config.frames or self.config.max_length or longest
        self.low = wanted or min(min_length, self.high)

    def complete(self, index: int) -> bool:
        """Whether no frame can appear any more after ``index`` steps, whatever was drawn."""
        return index >= self.config.steps

    def asks(self, index: int) -> bool:
        """Whether ``count`` needs the network's prediction of missing frames."""
        return not self.complete(index)

    def start(self) -> list[int]:
        """New frames per gap at ``tau = 0``."""
        counts = [0] * len(self.segments)
        if self.starts:
            gap = self.given.open_gaps.index(True)
            room = self.high - self.length if self.remaining is None else self.remaining[gap]
            counts[gap] = max(min(self.starts, room), 0)
        if self.remaining is not None:
            self.remaining = [a - b for a, b in zip(self.remaining, counts, strict=True)]
        return counts

    def count(self, index: int, gaps: Gaps, size_logits_K: Tensor) -> list[int]:
        """New frames per gap in the step from ``tau = index / steps`` to the next.

        ``size_logits_K`` is the log-law of the clip's size, float64 on the CPU.
        """
        steps = self.config.steps
        if index >= steps or gaps.log_missing_G.isneginf().all():
            return [0] * len(self.segments)
        appear = self.schedule.jump(index / steps, (index + 1) / steps)
        if self.remaining is not None:
            return self._known(appear, gaps)
        missing = self._missing(index, size_logits_K)
        return self._appearing(missing, missing, appear, gaps)

    def born(self, counts: Sequence[int], shape: Sequence[int]) -> list[Tensor]:
        """Take note of new frames, so many in each gap; their noise, each of this shape."""
        self.length += sum(counts)
        segments = zip(self.segments, counts, strict=True)
        self.segments = [segment for segment, count in segments for _ in range(count + 1)]
        return self.noise(sum(counts), shape)

    def noise(self, count: int, shape: Sequence[int]) -> list[Tensor]:
        """For so many frames, each of this shape."""
        return [torch.randn(shape, generator=self.generator) for _ in range(count)]

    def _missing(self, index: int, size_logits_K: Tensor) -> int:
        """How many frames are still to come, as far as they are not known."""
        if index == 0 and self.config.length_scale != 1:
            self._fix_scaled(size_logits_K)
        low, high = max(self.low - self.length, 0), max(self.high - self.length, 0)
        return self._drawn(index, size_logits_K, low, high)

    def _fix_scaled(self, size_logits_K: Tensor) -> None:
        """Draw the size, scale what is still to come, and let the bounds leave no other.

        It is fixed by one draw at the first step: later evidence would undo a scale. Bounds cut a
        scaled size. To condition on them would let scales over 1 shorten clips.
        """
        length, largest = self.length, len(size_logits_K) - 1
        least = min(max(self.least - length, 0), max(largest - length + self.num_given, 0))
        missing = self.config.length_scale * self._drawn(0, size_logits_K, least, largest)
        size = length + math.floor(missing + self._uniform())
        self.low = self.high = min(max(size, self.low), self.high)

    def _drawn(self, index: int, size_logits_K: Tensor, low: int, high: int) -> int:
        """A missing count in ``low..high`` from the tempered law of sizes and Bayes' rule.

        The temperature is of the law of sizes, before what the mere number of visible frames tells:
        of the posterior itself it would be undone by the evidence of the steps that follow.
        """
        visible = self.length - self.num_given
        largest = len(size_logits_K) - 1 - visible
        if low > largest:
            return low  # a size beyond the law's: only the bound is known

        appeared = torch.tensor(max(visible - self.starts, 0))
        count_K = torch.arange(low, min(high, largest) + 1, dtype=torch.float64)
        tau = torch.tensor(index / self.config.steps, dtype=torch.float64)
        seen_K = posterior.appeared_logits(appeared, count_K, self.schedule.kappa(tau))
        size_K = size_logits_K[visible + low :][: len(count_K)]
        law_K = posterior.tempered(size_K, self.config.rate_temperature) + seen_K
        return low + posterior.inverse_cdf(law_K.softmax(-1), self._uniform())

    def _known(self, appear: float, gaps: Gaps) -> list[int]:
        """Every segment's own number of frames to come is known."""
        assert self.remaining is not None
        counts, total = [0] * len(self.segments), sum(self.remaining)
        for segment, remaining in enumerate(self.remaining):
            if remaining:
                outside_G = torch.tensor([s != segment for s in self.segments])
                log_missing_G = gaps.log_missing_G.masked_fill(outside_G, -math.inf)
                inside = replace(gaps, log_missing_G=log_missing_G)
                new = self._appearing(remaining, total, appear, inside)
                self.remaining[segment] -= sum(new)
                counts = [a + b for a, b in zip(counts, new, strict=True)]
        return counts

    def _appearing(self, missing: int, total: int, appear: float, gaps: Gaps) -> list[int]:
        """New frames per gap, where of ``missing`` ones in them each appears with a probability.

        ``total`` are missing in the whole clip.
        """
        if gaps.tables is None:
            return self._place(self._binomial(missing, appear), gaps.log_missing_G)
        temperature = self.config.rate_temperature
        missing_G = compositions.draw(gaps, missing, total, temperature, self._uniform)
        return [self._binomial(count, appear) for count in missing_G]

    def _place(self, new: int, log_missing_G: Tensor) -> list[int]:
        """Share ``new`` frames out by the gaps' means; at temperature 0 without a draw."""
        uniform = self._uniform() if self.config.rate_temperature else 0.5
        return posterior.systematic(new, log_missing_G.softmax(-1), uniform)

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def _binomial(self, count: int, probability: float) -> int:
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64)
        return int((draws < probability).sum())


class Planned(Insertions):
    """A clip whose frames are all planned at ``tau = 0``: their number, places and delays.

    From then on every frame knows its index in the whole clip, and the network is asked no more.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.indices = [-1] * self.num_given  # of visible frames, -1 while there is no plan
        self.total = -1  # frames of the whole clip
        self.births: list[tuple[int, int]] = []  # step and index of every frame to come

    def asks(self, index: int) -> bool:
        return index == 0 and not self.complete(index)

    def count(self, index: int, gaps: Gaps, size_logits_K: Tensor) -> list[int]:
        if index == 0:
            self._plan(self._hidden(gaps, size_logits_K))
        new = [place for step, place in self.births if step == index]
        ends = pairwise([-1, *self.indices, self.total])
        self.indices = sorted([*self.indices, *new])
        return [sum(low < place < high for place in new) for low, high in ends]

    def born(self, counts: Sequence[int], shape: Sequence[int]) -> list[Tensor]:
        if self.total < 0:
            self.indices = [-1] * (self.length + sum(counts))
        return super().born(counts, shape)

    def _hidden(self, gaps: Gaps, size_logits_K: Tensor) -> list[int]:
        """How many frames are to come in each gap."""
        if gaps.log_missing_G.isneginf().all():
            return [0] * len(self.segments)
        if self.remaining is not None:
            return self._known(1.0, gaps)
        missing = self._missing(0, size_logits_K)
        return self._appearing(missing, missing, 1.0, gaps)

    def _plan(self, hidden_G: Sequence[int]) -> None:
        """Indices of the visible frames, and of every hidden one with the step that shows it."""
        self.total = self.length + sum(hidden_G)
        before = [sum(hidden_G[: gap + 1]) for gap in range(self.length)]
        self.indices = [frame + count for frame, count in enumerate(before)]
        places = sorted(set(range(self.total)) - set(self.indices))
        uniform_N = torch.rand(len(places), generator=self.generator, dtype=torch.float64)
        step_N = (self.schedule.inverse(uniform_N) * self.config.steps).ceil().long() - 1
        steps = step_N.clamp(0, self.config.steps - 1).tolist()
        self.births = list(zip(steps, places, strict=True))
