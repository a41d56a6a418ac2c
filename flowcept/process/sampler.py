"""The sampler: clips grow and become clean at the same time (arXiv 2512.11438, section 3).

One loop serves every task and every process. A task is a ``Given``: clean frames and the gaps in
which others may appear. What is unusual here: the number of frames that appear in a step is drawn
from the network's posterior of the total still missing, which is the exact law of a step of any
size, so the law of lengths does not depend on the number of steps. Their places are shared out by
means alone, so where several gaps are open at first it does: what one gap tells of another is lost.

Times are whole ages over ``steps``: a generated frame has age 0 when it appears and is finished at
age ``steps``. Each clip has its own generator on the CPU and makes the same draws alone, in any
batch and on any device.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, G gaps of a
clip, N new frames, K counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flowcept.networks.resting import Cache, Rest
from flowcept.process import state as frames
from flowcept.process.forward import ProcessConfig, appeared_logits, shifted
from flowcept.process.schedule import Schedule, parse_schedule
from flowcept.process.state import FrameState, Prediction, PromptTokens, Role
from flowcept.settings import SampleConfig

LEAST_LOG = -60.0  # of a gap's missing frames: 1e-26, nothing beside any share that matters


@dataclass(frozen=True)
class Given:
    """What a clip starts from: the user's frames and where others may come between them."""

    latent_FCHW: Tensor  # clean; no frame at all for text-to-video
    open_gaps: tuple[bool, ...]  # one more than frames: before the first, then right of each
    missing: tuple[int, ...] | None = None  # exact number of frames to come in each gap, if known

    def __post_init__(self) -> None:
        if len(self.open_gaps) != self.latent_FCHW.shape[0] + 1:
            raise ValueError("there is one gap more than given frames")
        if self.missing is not None and len(self.missing) != len(self.open_gaps):
            raise ValueError("missing needs a count for every gap")


class Model(Protocol):
    """What the sampler asks: a prediction for a state whose clips are these of the request.

    ``resting_F``, a bool per frame on the CPU, names the finished frames from ``tau = 1`` on, where
    nothing is asked of them any more: no frame appears whose place is not known. Until then it is
    None.
    """

    def __call__(
        self, state: FrameState, clips: Sequence[int], resting_F: Tensor | None
    ) -> Prediction: ...


@dataclass(frozen=True)
class Step:
    """The clips after one step. ``ids`` name frames: the order in which they appeared."""

    index: int  # 0 for the start, then steps done
    clips: tuple[int, ...]  # clips that still run, in the order of the state
    state: FrameState
    age_F: Tensor  # int64 steps since a frame appeared; context frames are born finished
    ids: tuple[tuple[int, ...], ...]  # per running clip, a name for each visible frame
    new: tuple[tuple[int, ...], ...]  # names of the frames that this step inserted
    done: dict[int, Tensor]  # latent_FCHW of the clips that this step finished


def sample(
    model: Model,
    given: Sequence[Given],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
    process: ProcessConfig,
    *,
    max_length: int,
    min_length: int = 1,
) -> list[Tensor]:
    """The latents ``[F, C, H, W]`` of each clip; see ``sample_steps``."""
    bounds = {"min_length": min_length, "max_length": max_length}
    return latents_of(sample_steps(model, given, generators, config, process, **bounds))


def latents_of(steps: Iterable[Step]) -> list[Tensor]:
    """The latents ``[F, C, H, W]`` of each clip once all steps are done."""
    done: dict[int, Tensor] = {}
    for step in steps:
        done |= step.done
    return [done[clip] for clip in sorted(done)]


@dataclass(frozen=True)
class History:
    """What the sampler remembers of each visible frame, in the order of the state."""

    age_F: Tensor  # int64 on the CPU: steps since the frame appeared
    velocity_FCHW: Tensor  # of the step before; without meaning at age 0

    def rows(self, chosen: Sequence[int]) -> History:
        return History(self.age_F[chosen], self.velocity_FCHW[chosen])

    def insert(self, count: int, rows: Sequence[int]) -> History:
        """The same with new frames of age 0; ``rows`` is from ``insertion_rows``."""
        more_NCHW = self.velocity_FCHW.new_zeros(count, *self.velocity_FCHW.shape[1:])
        age_F = torch.cat([self.age_F, self.age_F.new_zeros(count)])
        return History(age_F, torch.cat([self.velocity_FCHW, more_NCHW])).rows(rows)


@torch.no_grad()
def sample_steps(
    model: Model,
    given: Sequence[Given],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
    process: ProcessConfig,
    *,
    max_length: int,
    min_length: int = 1,
) -> Iterator[Step]:
    """Sample clips step by step; each yields the state, new frames and finished clips.

    ``generators`` are on the CPU, one per clip. ``min_length`` and ``max_length`` bound clips where
    the configuration does not. The latents' device is where the work is done. The baselines, whose
    length must be known, need ``config.frames`` or the given frames' ``missing``.
    """
    growth = [
        Growth(one, generator, config, process, min_length, max_length)
        for one, generator in zip(given, generators, strict=True)
    ]
    state = frames.concat([_initial(one) for one in given])
    finished_F = torch.full_like(state.role_F, config.steps, device="cpu")
    history = History(finished_F, torch.zeros_like(state.latent_FCHW))
    counts = [clip.start() for clip in growth]
    state, history, new = _insert(state, history, counts, growth)
    clips = tuple(range(len(given)))
    index = 0
    while True:
        ages_BF = history.age_F.split(state.lengths)
        finished = [
            row
            for row, (clip, ages) in enumerate(zip(clips, ages_BF, strict=True))
            if growth[clip].complete(index) and bool((ages == config.steps).all())
        ]
        latents = state.latent_FCHW.split(state.lengths)
        done = {clips[row]: latents[row] for row in finished}
        ids = tuple(tuple(growth[clip].ids) for clip in clips)
        yield Step(index, clips, state, history.age_F, ids, new, done)
        running = [row for row in range(len(clips)) if row not in finished]
        if not running:
            return
        if finished:
            history = history.rows(frames.frame_rows(state.lengths, running))
            state, clips = frames.select(state, running), tuple(clips[row] for row in running)
        rests = index >= config.steps
        prediction = model(state, clips, history.age_F == config.steps if rests else None)
        state, history = _move(state, history, prediction, config, process.shift)
        new = ((),) * len(clips)
        if not all(growth[clip].complete(index) for clip in clips):  # else no device is asked
            counts = [
                growth[clip].count(index, log_missing, logits, length)
                for clip, log_missing, logits, length in zip(
                    clips, *_per_clip(state, prediction), state.lengths, strict=True
                )
            ]
            state, history, new = _insert(state, history, counts, [growth[clip] for clip in clips])
        index += 1
        tau = torch.full_like(state.tau_B, index / config.steps)
        state = replace(state, tau_B=tau)


def _initial(given: Given) -> FrameState:
    """The given frames alone, at ``tau = 0``."""
    latent_FCHW, device = given.latent_FCHW, given.latent_FCHW.device
    length = latent_FCHW.shape[0]
    roles = [Role.ACTIVE if gap else Role.PASSIVE for gap in given.open_gaps[1:]]
    return FrameState(
        latent_FCHW=latent_FCHW,
        time_F=torch.ones(length, device=device),
        role_F=torch.tensor(roles, dtype=torch.long, device=device),
        tau_B=torch.zeros(1, device=device),
        open_first_B=torch.tensor([given.open_gaps[0]], device=device),
        lengths=(length,),
    )


def _move(
    state: FrameState, history: History, prediction: Prediction, config: SampleConfig, shift: float
) -> tuple[FrameState, History]:
    """Every flowing frame one step on, by its own change of denoising progress.

    Euler's step follows the velocity of now. The multistep one (Adams and Bashforth's of second
    order, for steps of unequal size) goes on bending it as it has bent since the step before; a
    frame's first step is Euler's.
    """
    steps, age_F = config.steps, history.age_F
    younger_F, older_F = (age_F - 1).clamp(min=0), (age_F + 1).clamp(max=steps)
    before_F, now_F, next_F = (
        shifted(ages_F.double() / steps, shift) for ages_F in (younger_F, age_F, older_F)
    )
    velocity_FCHW = prediction.velocity_FCHW
    if config.solver == "multistep":
        bend_F = torch.where(age_F > 0, (next_F - now_F) / (2 * (now_F - before_F)), 0)
        change_FCHW = velocity_FCHW - history.velocity_FCHW
        velocity_FCHW = velocity_FCHW + _per_frame(bend_F, velocity_FCHW) * change_FCHW
    latent_FCHW = state.latent_FCHW + _per_frame(next_F - now_F, velocity_FCHW) * velocity_FCHW
    flowing_F = (age_F < steps).to(state.latent_FCHW.device)[:, None, None, None]
    latent_FCHW = torch.where(flowing_F, latent_FCHW, state.latent_FCHW)
    time_F = (older_F.double() / steps).to(state.time_F)
    state = replace(state, latent_FCHW=latent_FCHW, time_F=time_F)
    return state, History(older_F, prediction.velocity_FCHW)


def _per_frame(factor_F: Tensor, like_FCHW: Tensor) -> Tensor:
    return factor_F.to(like_FCHW)[:, None, None, None]


def _per_clip(state: FrameState, prediction: Prediction) -> tuple[list[Tensor], list[Tensor]]:
    """Per clip, on the CPU and in float64: log-missing by gap (closed: -inf), count logits.

    An open gap keeps a share, however small, since the length may be fixed against the network.
    """

    def of_open(log: Tensor, is_open: Tensor) -> Tensor:
        log = torch.where(is_open, log.clamp(min=LEAST_LOG), -math.inf)
        return log.cpu().double()  # in this order: not every device knows float64

    log_F = of_open(prediction.log_missing_F, state.open_F).split(state.lengths)
    log_B = of_open(prediction.log_missing_first_B, state.open_first_B)
    gaps = [torch.cat([log_B[b, None], part]) for b, part in enumerate(log_F)]
    return gaps, list(prediction.count_logits_BK.cpu().double())


def _insert(
    state: FrameState, history: History, counts: list[list[int]], growth: Sequence[Growth]
) -> tuple[FrameState, History, tuple[tuple[int, ...], ...]]:
    """New noise frames of age 0 in the gaps; also their names, clip by clip."""
    shape = state.latent_FCHW.shape[1:]
    new = tuple(clip.born(gaps) for clip, gaps in zip(growth, counts, strict=True))
    if not any(new):
        return state, history, new
    noise = [
        torch.randn(shape, generator=clip.generator)
        for clip, names in zip(growth, new, strict=True)
        for _ in names
    ]
    latent_NCHW = torch.stack(noise).to(state.latent_FCHW)
    rows = frames.insertion_rows(state.lengths, counts)
    history = history.insert(len(noise), rows)
    return frames.insert(state, counts, latent_NCHW, rows), history, new


class Growth:
    """One clip's insertions: how many frames appear at each step, and in which gaps.

    A *segment* is what lies between two neighbouring given frames (or beyond the outer ones);
    given gap g opens segment g.
    """

    def __init__(
        self,
        given: Given,
        generator: torch.Generator,
        config: SampleConfig,
        process: ProcessConfig,
        min_length: int,
        max_length: int,
    ) -> None:
        self.given, self.generator, self.config, self.process = given, generator, config, process
        self.schedule: Schedule = parse_schedule(process.schedule)
        num_given = given.latent_FCHW.shape[0]
        self.ids = list(range(num_given))  # names of the visible frames, left to right
        self.named = num_given
        self.segments = list(range(num_given + 1))  # of each gap
        self.widths = [1.0] * (num_given + 1)  # of each gap, as a share of its segment
        exact = config.frames
        asked = exact or config.min_length
        self.least = 1 if asked else min_length  # no shorter clip exists, whatever the network says
        self.high = exact or config.max_length or max(max_length, num_given, asked or 1)
        self.low = asked or min(min_length, self.high)
        self.remaining = list(given.missing) if given.missing is not None else None
        if self.remaining is None and process.kind != "flowception":
            if exact is None:
                raise ValueError("this process does not choose a length: frames must be set")
            gaps = [g for g, is_open in enumerate(given.open_gaps) if is_open]
            shares = torch.tensor([float(g in gaps) for g in range(num_given + 1)])
            total = max(exact - num_given, 0)
            self.remaining = systematic(total, shares / shares.sum(), self._uniform())

    def complete(self, index: int) -> bool:
        """Whether no frame can appear any more after ``index`` steps."""
        if self.process.kind == "autoregressive":
            return not any(self.remaining or [])
        return index >= self.config.steps or self.process.kind == "full-sequence"

    def start(self) -> list[int]:
        """New frames per gap at ``tau = 0``."""
        gaps = self.given.open_gaps
        counts = [0] * len(gaps)
        if self.process.kind == "full-sequence":
            assert self.remaining is not None
            counts, self.remaining = list(self.remaining), [0] * len(gaps)
        elif self.process.kind == "autoregressive":
            counts = self._block()
        elif sum(gaps) == 1:
            gap = gaps.index(True)
            room = self.high - len(self.ids) if self.remaining is None else self.remaining[gap]
            counts[gap] = max(min(self.process.num_start, room), 0)
            if self.remaining is not None:
                self.remaining[gap] -= counts[gap]
        return counts

    def count(
        self, index: int, log_missing_G: Tensor, count_logits_K: Tensor, length: int
    ) -> list[int]:
        """New frames per gap in the step from ``tau = index / steps`` to the next.

        ``log_missing_G`` is -inf where a gap is closed; ``length`` frames are visible.
        """
        steps = self.config.steps
        if self.process.kind == "autoregressive":
            return self._block() if (index + 1) % steps == 0 else [0] * (length + 1)
        if index >= steps or self.process.kind == "full-sequence" or log_missing_G.isneginf().all():
            return [0] * (length + 1)
        appear = self.schedule.jump(index / steps, (index + 1) / steps)
        if self.remaining is not None:
            return self._known(appear, log_missing_G)
        if self.config.insertion == "posterior":
            missing = self._draw_missing(index, count_logits_K, length)
            return self._place(self._binomial(missing, appear), log_missing_G)
        return self._from_mean(index, appear, log_missing_G, length)

    def _draw_missing(self, index: int, count_logits_K: Tensor, length: int) -> int:
        """The number of frames still to come, from its posterior within the bounds.

        The temperature is of the law of sizes, before what the mere number of visible frames tells:
        of the posterior itself it would be undone by the evidence of the steps that follow. So is a
        scale, unless the size is fixed by one draw: at the first step.
        """
        if index == 0 and self.config.length_scale != 1:
            self._fix_scaled(count_logits_K, length)
        low, high = max(self.low - length, 0), max(self.high - length, 0)
        if length - len(self.given.latent_FCHW) + low >= len(count_logits_K):
            return low  # a size beyond the law's: only the bound is known
        return self._drawn(index, count_logits_K[: high + 1], length, low)

    def _fix_scaled(self, count_logits_K: Tensor, length: int) -> None:
        """Draw the size, scale what is still to come, and let the bounds leave no other.

        Bounds cut a scaled size. To condition on them would let scales over 1 shorten clips.
        """
        least = min(max(self.least - length, 0), len(count_logits_K) - 1)
        missing = self.config.length_scale * self._drawn(0, count_logits_K, length, least)
        size = length + math.floor(missing + self._uniform())
        self.low = self.high = min(max(size, self.low), self.high)

    def _drawn(self, index: int, count_logits_K: Tensor, length: int, low: int) -> int:
        """A missing count of at least ``low`` from the tempered law."""
        uniform, open_gaps = self._uniform(), sum(self.given.open_gaps)
        starts = self.process.num_start if open_gaps == 1 else 0
        appeared = torch.tensor(max(length - len(self.given.latent_FCHW) - starts, 0))
        kappa = self.schedule.kappa(torch.tensor(index / self.config.steps, dtype=torch.float64))
        count_K = torch.arange(low, len(count_logits_K), dtype=torch.float64)
        seen_K = appeared_logits(appeared, count_K, kappa)
        law_K = tempered(count_logits_K[low:] - seen_K, self.config.rate_temperature) + seen_K
        return low + inverse_cdf(law_K.softmax(-1), uniform)

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
        counts = systematic(new, shares_G, self._uniform())
        return counts if self.config.order == "learned" else self._reorder(counts)

    def _reorder(self, counts: list[int]) -> list[int]:
        """Keep each segment's number of new frames, choose the gaps within by ``order``."""
        placed = [0] * len(counts)
        for segment in sorted(set(self.segments)):
            gaps = [g for g, s in enumerate(self.segments) if s == segment]
            widths = {g: self.widths[g] for g in gaps}
            for _ in range(sum(counts[g] for g in gaps)):
                if self.config.order == "random":
                    gap = gaps[int(self._uniform() * len(gaps))]
                elif self.config.order == "left-to-right":
                    gap = gaps[-1]
                else:
                    gap = max(gaps, key=lambda g: widths[g])
                placed[gap] += 1
                widths[gap] = self.widths[gap] / (placed[gap] + 1)
        return placed

    def _from_mean(
        self, index: int, appear: float, log_missing_G: Tensor, length: int
    ) -> list[int]:
        """The rules that know the mean only: wrong at any finite step, kept for comparison."""
        mean_G, steps = log_missing_G.exp() * self.config.length_scale, self.config.steps
        if self.config.insertion == "systematic":
            expected = float(mean_G.sum()) * appear
            new = math.floor(expected + self._uniform())
            counts = systematic(new, mean_G / mean_G.sum(), self._uniform())
        else:
            tau = torch.tensor(index / steps, dtype=torch.float64)
            rate_G = mean_G * self.schedule.hazard(tau) / steps
            rate_G[mean_G == 0] = 0  # closed gaps, even where the hazard has no bound
            draw = torch.bernoulli if self.config.insertion == "bernoulli" else torch.poisson
            bounded_G = rate_G.clamp(max=1) if self.config.insertion == "bernoulli" else rate_G
            counts = draw(bounded_G, generator=self.generator).long().tolist()
        excess = sum(counts) - max(self.high - length, 0)
        for gap in reversed(range(len(counts))):
            taken = min(max(excess, 0), counts[gap])
            counts[gap] -= taken
            excess -= taken
        return counts

    def _block(self) -> list[int]:
        """The next frames of the autoregressive baseline, at the end of what is there."""
        assert self.remaining is not None
        counts, left = [0] * len(self.segments), self.process.block
        for segment, remaining in enumerate(self.remaining):
            new = min(left, remaining)
            last = len(self.segments) - 1 - self.segments[::-1].index(segment)
            counts[last] += new
            self.remaining[segment] -= new
            left -= new
        return counts

    def born(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Take note of new frames: their names, and the gaps that they split."""
        ids, segments, widths, new = [], [], [], []
        for gap, count in enumerate(counts):
            if gap:
                ids.append(self.ids[gap - 1])
            names = list(range(self.named, self.named + count))
            self.named += count
            ids += names
            new += names
            segments += [self.segments[gap]] * (count + 1)
            widths += [self.widths[gap] / (count + 1)] * (count + 1)
        self.ids, self.segments, self.widths = ids, segments, widths
        return tuple(new)

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def _binomial(self, count: int, probability: float) -> int:
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64)
        return int((draws < probability).sum())


def tempered(log_weights: Tensor, temperature: float) -> Tensor:
    """Logarithms of ``weights ** (1 / temperature)``, the largest 0; at 0 all others are -inf."""
    under = log_weights - log_weights.max()  # first, so that no small temperature overflows
    if temperature == 0:
        return torch.where(under == 0, 0.0, -math.inf)
    return under / temperature


def inverse_cdf(law_K: Tensor, uniform: float) -> int:
    """The count whose share of the unit interval holds ``uniform`` in [0, 1)."""
    cumulative_K = law_K.double().cumsum(0)
    return int((cumulative_K / cumulative_K[-1] <= uniform).sum().clamp(max=len(law_K) - 1))


def systematic(total: int, shares_G: Tensor, uniform: float) -> list[int]:
    """``total`` shared out with one uniform draw: each gap gets its share rounded up or down."""
    cumulative_G = shares_G.double().cumsum(0)
    cumulative_G = cumulative_G / cumulative_G[-1]
    edges_G = torch.floor(total * cumulative_G + uniform).long()
    return torch.diff(edges_G, prepend=edges_G.new_zeros(1)).tolist()


class PromptedNetwork(Protocol):
    """A network as it is trained: states and prompt tokens in, predictions out."""

    def __call__(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None
    ) -> Prediction: ...


def guided(
    network: PromptedNetwork,
    prompts: Sequence[PromptTokens],
    away: Sequence[PromptTokens],
    guidance: float,
    rate_guidance: float,
    *,
    cached: bool = True,
) -> Model:
    """A model that leans from the ``away`` prompts towards the ``prompts``, one of each per clip.

    Velocity: ``v = v_away + w (v - v_away)``; the same for log-missing and for the log-posterior
    with ``rate_guidance``. Both sides run in one packed call; without guidance one side runs. It
    serves one request: with ``cached`` it remembers what frames are that rest.
    """
    cache = Cache()

    def model(state: FrameState, clips: Sequence[int], resting_F: Tensor | None) -> Prediction:
        wanted = [prompts[clip] for clip in clips]
        sides = 1 if guidance == rate_guidance == 1 else 2
        names = tuple((side, clip) for side in range(sides) for clip in clips)
        rest = None
        if cached and resting_F is not None:
            rest = Rest(cache, names, resting_F.repeat(sides))
        if sides == 1:
            return network(state, concat_prompts(wanted), rest)
        unwanted = [away[clip] for clip in clips]
        both = network(frames.concat([state, state]), concat_prompts([*wanted, *unwanted]), rest)

        def lean(values: Tensor, weight: float) -> Tensor:
            towards, base = values.chunk(2)
            return torch.lerp(base, towards, weight)

        return Prediction(
            velocity_FCHW=lean(both.velocity_FCHW, guidance),
            log_missing_F=lean(both.log_missing_F, rate_guidance),
            log_missing_first_B=lean(both.log_missing_first_B, rate_guidance),
            count_logits_BK=lean(both.count_logits_BK.log_softmax(-1), rate_guidance),
        )

    return model


def concat_prompts(prompts: Sequence[PromptTokens]) -> PromptTokens:
    """The prompts of several clips end to end."""
    return PromptTokens(
        torch.cat([p.token_SD for p in prompts]), tuple(n for p in prompts for n in p.lengths)
    )


def clip_generator(seed: int) -> torch.Generator:
    """The generator of one clip, on the CPU."""
    return torch.Generator().manual_seed(seed)
