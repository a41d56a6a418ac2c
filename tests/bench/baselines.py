"""What is compared with flowception, behind the package's own protocols.

Processes: full-sequence flow (all frames at once) and autoregressive flow (blocks of frames, one
after another); neither chooses a length. Draw rules: those that know the mean of the missing
counts only, the published Bernoulli draw among them. Orders of insertion other than the learned
one. Networks: causal attention, and values that turn with the distance between frames.

Networks are entered in ``networks.FAMILIES``, so that model files hold them where this is imported.

Shape suffixes: B clips, F frames, R rows, G gaps of a clip, K counts, N heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from flowcept.model_file import Weights
from flowcept.networks import FAMILIES, Family
from flowcept.networks.attention import Plan, make_plan
from flowcept.networks.layout import Layout, runs_of
from flowcept.networks.resting import Memory
from flowcept.networks.transformer import Block, Context, Transformer, TransformerConfig, rotate
from flowcept.process.compositions import Gaps
from flowcept.process.forward import Flowception
from flowcept.process.full_sequence import FullSequence, KnownLength
from flowcept.process.growth import Insertions
from flowcept.process.posterior import inverse_cdf, systematic
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Given, PromptTokens, Rest
from flowcept.settings import SampleConfig

RULES = ("posterior", "systematic", "bernoulli", "poisson")
ORDERS = ("learned", "random", "left-to-right", "bisection")


# --- processes


@dataclass
class Blocks(KnownLength):
    """So many frames at once, the next ones when they are finished."""

    block: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.total = sum(self.remaining or [])

    def complete(self, index: int) -> bool:
        return index >= self.config.steps * ((self.total - 1) // self.block)

    def start(self) -> list[int]:
        return self._next()

    def count(self, index: int, gaps: Gaps, size_logits_K: Tensor) -> list[int]:
        del gaps, size_logits_K
        ends = (index + 1) % self.config.steps == 0
        return self._next() if ends else [0] * len(self.segments)

    def _next(self) -> list[int]:
        """The next frames, at the end of what is there of their segment."""
        assert self.remaining is not None
        counts, left = [0] * len(self.segments), self.block
        for segment, remaining in enumerate(self.remaining):
            new = min(left, remaining)
            last = len(self.segments) - 1 - self.segments[::-1].index(segment)
            counts[last] += new
            self.remaining[segment] -= new
            left -= new
        return counts


@dataclass(frozen=True)
class Autoregressive(FullSequence):
    """Blocks of frames one after another, each clean before the next begins."""

    block: int = 1  # frames that start together

    def draw_delays(self, context: Sequence[bool], generator: Generator) -> Tensor:
        del generator
        delay_F = torch.zeros(len(context), dtype=torch.float64)
        generated = torch.tensor([f for f, given in enumerate(context) if not given])
        delay_F[generated] = (torch.arange(len(generated)) // self.block).double()
        return delay_F

    def draw_tau(self, delay_F: Tensor, generator: Generator) -> float:
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        return uniform * (float(delay_F.max()) + 1)

    def grow(
        self, given: Given, generator: Generator, config: SampleConfig, bounds: tuple[int, int]
    ) -> Insertions:
        schedule = parse_schedule(self.schedule)
        return Blocks(given, generator, config, bounds, schedule, self.block)


# --- rules and orders of insertion


@dataclass(frozen=True)
class Ruled(Flowception):
    """Flowception with another draw rule, or another order of insertion, in sampling.

    Rules are ``RULES``, and ``multinomial``: the posterior's number of frames, each in a gap of its
    own by their means.
    """

    rule: str = "posterior"
    order: str = "learned"

    def grow(
        self, given: Given, generator: Generator, config: SampleConfig, bounds: tuple[int, int]
    ) -> Insertions:
        words = (given, generator, config, bounds, parse_schedule(self.schedule))
        if self.rule == "multinomial":
            return Multinomial(*words)
        if self.rule != "posterior":
            return ByMean(*words, self.rule)
        return Insertions(*words) if self.order == "learned" else Ordered(*words, self.order)


@dataclass
class ByMean(Insertions):
    """The rules that know the mean only: wrong at any finite step."""

    rule: str = "bernoulli"

    def count(self, index: int, gaps: Gaps, size_logits_K: Tensor) -> list[int]:
        del size_logits_K
        log_missing_G = gaps.log_missing_G
        steps, length = self.config.steps, self.length
        if index >= steps or log_missing_G.isneginf().all():
            return [0] * (length + 1)
        mean_G = log_missing_G.exp()
        tau = torch.tensor(index / steps, dtype=torch.float64)
        kappa, after = self.schedule.kappa(torch.stack([tau, tau + 1 / steps])).tolist()
        if self.rule == "systematic":
            expected = float(mean_G.sum()) * (after - kappa) / (1 - kappa)
            new = math.floor(expected + self._uniform())
            counts = systematic(new, mean_G / mean_G.sum(), self._uniform())
        else:
            exponent = self.schedule.exponent
            rate_G = mean_G * exponent * tau ** (exponent - 1) / (1 - kappa) / steps
            rate_G[mean_G == 0] = 0  # closed gaps, even where the rate has no bound
            if self.rule == "bernoulli":
                drawn_G = torch.bernoulli(rate_G.clamp(max=1), generator=self.generator)
            else:
                drawn_G = torch.poisson(rate_G, generator=self.generator)
            counts = drawn_G.long().tolist()
        excess = sum(counts) - max(self.high - length, 0)
        for gap in reversed(range(len(counts))):
            taken = min(max(excess, 0), counts[gap])
            counts[gap] -= taken
            excess -= taken
        return counts


class Multinomial(Insertions):
    """New frames go to gaps one by one, each by the gaps' means, and know nothing of each other."""

    def _place(self, new: int, log_missing_G: Tensor) -> list[int]:
        shares_G = log_missing_G.softmax(-1)
        gap_N = [inverse_cdf(shares_G, self._uniform()) for _ in range(new)]
        return [gap_N.count(gap) for gap in range(len(shares_G))]


@dataclass
class Ordered(Insertions):
    """Keeps each segment's number of new frames and chooses the gaps within by ``order``."""

    order: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.widths = [1.0] * len(self.segments)  # of each gap, as a share of its segment

    def born(self, counts: Sequence[int], shape: Sequence[int]) -> list[Tensor]:
        shares = zip(self.widths, counts, strict=True)
        self.widths = [width / (count + 1) for width, count in shares for _ in range(count + 1)]
        return super().born(counts, shape)

    def _place(self, new: int, log_missing_G: Tensor) -> list[int]:
        counts = super()._place(new, log_missing_G)
        placed = [0] * len(counts)
        for segment in sorted(set(self.segments)):
            gaps = [g for g, own in enumerate(self.segments) if own == segment]
            widths = {g: self.widths[g] for g in gaps}
            for _ in range(sum(counts[g] for g in gaps)):
                gap = self._choose(gaps, widths)
                placed[gap] += 1
                widths[gap] = self.widths[gap] / (placed[gap] + 1)
        return placed

    def _choose(self, gaps: Sequence[int], widths: dict[int, float]) -> int:
        if self.order == "random":
            return gaps[int(self._uniform() * len(gaps))]
        if self.order == "left-to-right":
            return gaps[-1]
        return max(gaps, key=lambda gap: widths[gap])


# --- networks


@dataclass(frozen=True)
class CausalConfig(TransformerConfig):
    """A network whose frames see none after them, and whose clip rows see no frame."""


class CausalTransformer(Transformer):
    """Attention over the past alone."""

    def _laid_out(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None
    ) -> tuple[Layout, Memory | None]:
        layout, memory = super()._laid_out(state, prompt, rest)
        lengths = [state.lengths[b] for b in layout.order]
        awake = None if layout.awake_R is None else layout.awake_R.tolist()
        plan, device = causal_plan(lengths, self.config.window, awake), state.latent_FCHW.device
        orders = {one: getattr(plan, one) for one in ("query_order", "key_order", "back_order")}
        moved = {one: rows.to(device) for one, rows in orders.items() if rows is not None}
        within, after_F = replace(plan, **moved), torch.full_like(layout.after_F, -1)
        return replace(layout, after_F=after_F, within=within), memory


def causal_plan(lengths: Sequence[int], window: int, awake: Sequence[int] | None) -> Plan:
    """A frame sees its clip's row, itself and frames before it; the clip's row itself alone."""
    queries: list[list[int]] = []
    keys: list[list[int]] = []
    for run in runs_of([length + 1 for length in lengths]):
        clip_row, *frames = run
        queries += [[row] for row in run]
        keys.append([clip_row])
        for number in range(len(frames)):
            first = max(number - window, 0) if window else 0
            keys.append([clip_row, *frames[first : number + 1]])
    if awake is not None:
        number_of = {row: number for number, row in enumerate(awake)}
        kept = [i for i, (row,) in enumerate(queries) if row in number_of]
        queries, keys = [[number_of[queries[i][0]]] for i in kept], [keys[i] for i in kept]
    return make_plan(queries, keys)


@dataclass(frozen=True)
class RotaryValuesConfig(TransformerConfig):
    """A network in which what frames take from each other turns with their distance."""


class RotaryValuesBlock(Block):
    """Values turn by their own frame's index; what is gathered turns back by the asking frame's.

    So only the distance matters: a linear layer before and one after can carry a motion on by so
    many frames.
    """

    def gathered(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        cosine, sine = value_rotary(context.layout.index_R, v.shape[-2], v.shape[-1])
        cosine, sine = cosine.to(v.dtype), sine.to(v.dtype)
        y_RPNE = super().gathered(q, k, rotate(v, (cosine, sine)), context)
        return rotate(y_RPNE, (cosine, -sine))


class RotaryValuesTransformer(Transformer):
    """A transformer of such blocks."""

    block_type = RotaryValuesBlock


def value_rotary(index_R: Tensor, heads: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[R, 1, N, E/2]`` by which values turn with the index.

    Half of each head's pairs turn, at rates that lie evenly, over all heads, from 0 to half a turn
    a frame; the others are as in plain attention.
    """
    half = head_width // 2
    turning = half // 2
    rate = torch.linspace(0, math.pi, heads * turning, device=index_R.device)
    rate_NE = F.pad(rate.view(turning, heads).T, (0, half - turning))
    angle = index_R.float()[:, None, None, None] * rate_NE
    return angle.cos(), angle.sin()


FAMILIES["causal"] = Family(CausalConfig, CausalTransformer)
FAMILIES["rotary-values"] = Family(RotaryValuesConfig, RotaryValuesTransformer)


# --- as settings


def process_of(kind: str, plain: Flowception) -> Flowception:
    """The process called flowception, full-sequence or autoregressive, with these settings."""
    kinds = {
        "flowception": Flowception,
        "full-sequence": FullSequence,
        "autoregressive": Autoregressive,
    }
    return kinds[kind](**vars(plain))


def sampled_by(weights: Weights, kind: str) -> tuple[Weights, bool]:
    """A model sampled by a process of this kind, and whether its finished frames may rest.

    Not in baselines whose frames see later ones: they would rest as of when those were noise.
    """
    rests = kind == "flowception" or isinstance(weights.network, CausalTransformer)
    return replace(weights, process=process_of(kind, weights.card.process)), rests
