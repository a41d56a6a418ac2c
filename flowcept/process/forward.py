"""The forward process: a clip part of the way through (arXiv 2512.11438, section 3).

A clip of data becomes the visible frames at a random extended time, with the velocity of every
flowing frame and the exact number of frames missing in every open gap. Two habits keep the laws
exact. ``tau`` never depends on the delays. And a draw that teaches nothing, or a context that does
not fit a clip, gives None: the caller goes on to the next clip. Drawing again for the same clip
would weigh short and long clips differently and so bend the law of lengths.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, K counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flowcept.process import state as frames
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Role
from flowcept.settings import ContextMixture

PROCESSES = ("flowception", "full-sequence", "autoregressive")


@dataclass(frozen=True)
class ProcessConfig:
    """How delays and ``tau`` are drawn. Part of every model file."""

    kind: str = "flowception"  # flowception, or a baseline: full-sequence, autoregressive
    schedule: str = "linear"  # linear, cosine, power or power:EXPONENT; flowception only
    num_start: int = (
        1  # noise frames visible from tau = 0 where one gap is open; 1 reaches all lengths
    )
    shift: float = 1.0  # over 1 spends more of the denoising on noise
    block: int = 1  # frames that start together; autoregressive only
    late: float = 0.5  # share of draws past ``tau = 1``, in training alone; flowception only

    def __post_init__(self) -> None:
        if self.kind not in PROCESSES:
            raise ValueError(f"unknown process {self.kind!r}: use {', '.join(PROCESSES)}")
        parse_schedule(self.schedule)
        if self.num_start < 0 or self.block < 1 or not 0 < self.shift < float("inf"):
            raise ValueError("num_start must be at least 0, block at least 1, shift positive")
        if not 0 < self.late < 1:
            raise ValueError("late must lie between 0 and 1")


LONGEST_RUN = 8  # most context frames in a row that training shows at either end


@dataclass(frozen=True)
class Target:
    """What a prediction for a ``FrameState`` should be."""

    velocity_FCHW: Tensor  # data - noise; means something on flowing frames only
    missing_F: Tensor  # float count of hidden frames right of each frame
    missing_first_B: Tensor  # the same before the first frame
    total_B: Tensor  # int64: hidden frames of the whole clip


def shifted(time: Tensor, shift: float) -> Tensor:
    """The denoising progress ``s = t / (t + shift (1 - t))`` of flow time t, both in [0, 1]."""
    return time / (time + shift * (1 - time))


def _randint(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def draw_context(
    num_frames: int, mixture: ContextMixture, generator: torch.Generator
) -> list[bool] | None:
    """Which frames of a clip are given; None where the drawn kind does not fit this length.

    Everything but the places of inner frames is drawn without looking at ``num_frames``, so that
    the law of lengths behind a given context is the data's own, cut to those that can hold it.
    """
    kinds = [f.name for f in fields(mixture)]
    weights = torch.tensor([getattr(mixture, kind) for kind in kinds], dtype=torch.float64)
    kind = kinds[int(torch.multinomial(weights, 1, generator=generator))]
    n = num_frames
    given: set[int] = set()
    if kind == "first":
        given = {0}
    elif kind == "first_last":
        given = {0, n - 1}
    elif kind == "keyframes":
        inner = _randint(1, 3, generator)
        if n < inner + 3:
            return None
        given = {0, n - 1, *(1 + torch.randperm(n - 2, generator=generator)[:inner]).tolist()}
    elif kind == "alternate":
        if n % 2 == 0:
            return None  # the last frame is given too
        given = set(range(0, n, 2))
    elif kind == "first_k":
        given = set(range(_randint(1, LONGEST_RUN, generator)))
    elif kind == "last_k":
        given = set(range(n - _randint(1, LONGEST_RUN, generator), n))
    elif kind == "runs":
        given = _draw_runs(n, generator)
        if not given:
            return None
    if min(given, default=0) < 0 or max(given, default=0) >= n or len(given) == n:
        return None
    return [f in given for f in range(n)]


def _draw_runs(num_frames: int, generator: torch.Generator) -> set[int]:
    """Two or three runs of given frames with room between them; empty where they do not fit.

    Whether the clip begins and ends with a given frame is drawn first, since a model sees it.
    """
    runs = [_randint(1, 4, generator) for _ in range(_randint(2, 3, generator))]
    opens = [
        _randint(0, 1, generator),
        _randint(0, 1, generator),
    ]  # before the first, after the last
    gaps = [opens[0], *[1] * (len(runs) - 1), opens[1]]  # least number of frames in each
    spare = num_frames - sum(runs) - sum(gaps)
    if spare < 0:
        return set()
    wide = [gap for gap, least in enumerate(gaps) if least]
    cuts = torch.randint(0, spare + 1, (len(wide) - 1,), generator=generator).sort().values.tolist()
    for gap, low, high in zip(wide, [0, *cuts], [*cuts, spare], strict=True):
        gaps[gap] += high - low
    given: set[int] = set()
    start = 0
    for gap, run in zip(gaps, runs, strict=False):
        given |= set(range(start + gap, start + gap + run))
        start += gap + run
    return given


def roles_of(context: Sequence[bool]) -> list[Role]:
    """Roles in a whole clip: context is passive exactly when nothing is missing to its right."""
    following = [*context[1:], True]
    return [
        Role.GENERATED if not given else Role.PASSIVE if closed else Role.ACTIVE
        for given, closed in zip(context, following, strict=True)
    ]


def draw_delays(
    context: Sequence[bool], config: ProcessConfig, generator: torch.Generator
) -> Tensor:
    """``delay_F`` of every frame of a clip, float64; 0 for context and start frames."""
    delay_F = torch.zeros(len(context), dtype=torch.float64)
    generated = torch.tensor([f for f, given in enumerate(context) if not given])
    if config.kind == "autoregressive":
        delay_F[generated] = (torch.arange(len(generated)) // config.block).double()
    elif config.kind == "flowception":
        uniform = torch.rand(len(generated), generator=generator, dtype=torch.float64)
        delay_F[generated] = parse_schedule(config.schedule).inverse(uniform)
        gaps = sum(not given and (f == 0 or context[f - 1]) for f, given in enumerate(context))
        if gaps == 1:  # with several open gaps a sampler could not know how to share them out
            order = torch.randperm(len(generated), generator=generator)
            delay_F[generated[order[: config.num_start]]] = 0
    return delay_F


FIRST = 0.1  # of the early draws


def draw_tau(delay_F: Tensor, config: ProcessConfig, generator: torch.Generator) -> float:
    """Extended time: over [0, 1], by ``late`` over [1, 2]; or over a baseline's whole run.

    What a network should say of a state does not depend on how often it is shown, so that the law
    is free, unless it depends on the delays. Of the draws over [0, 1] the share ``FIRST`` is even
    in ``kappa``, not ``tau``: where most frames appear at once, a sampler's first steps are known.
    """
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    if config.kind == "flowception":
        early = 1 - config.late
        if uniform >= early:
            return 1 + (uniform - early) / config.late
        tau = uniform / early
        if config.schedule == "linear" or torch.rand((), generator=generator) >= FIRST:
            return tau
        # As precise as a state holds it: where that is 0 no frame may have appeared yet.
        return float(parse_schedule(config.schedule).inverse(torch.tensor(tau).double()).float())
    return uniform * (1.0 if config.kind == "full-sequence" else float(delay_F.max()) + 1)


def draw(
    latent_FCHW: Tensor, context: Sequence[bool], config: ProcessConfig, generator: torch.Generator
) -> tuple[FrameState, Target] | None:
    """One clip part of the way through, as a state of one clip and its targets.

    None where nothing is left to learn from it: ``tau`` past 1 and every frame finished.
    """
    delay_F = draw_delays(context, config, generator)
    tau = draw_tau(delay_F, config, generator)
    if tau >= 1 and tau - float(delay_F.max()) >= 1:
        return None
    visible = [f for f in range(len(context)) if float(delay_F[f]) <= tau]
    roles = roles_of(context)
    given = torch.tensor([context[f] for f in visible], dtype=torch.bool)
    time_F = torch.where(given, 1.0, (tau - delay_F[visible]).clamp(0, 1)).float()
    data_FCHW = latent_FCHW[visible]
    noise_FCHW = torch.randn(data_FCHW.shape, generator=generator)
    progress = shifted(time_F, config.shift)[:, None, None, None]
    edges = [-1, *visible, len(context)]
    missing = [float(right - left - 1) for left, right in itertools.pairwise(edges)]
    state = FrameState(
        latent_FCHW=torch.lerp(noise_FCHW, data_FCHW, progress),
        time_F=time_F,
        role_F=torch.tensor([roles[f] for f in visible], dtype=torch.long),
        tau_B=torch.tensor([tau], dtype=torch.float32),
        open_first_B=torch.tensor([not context[0]]),
        lengths=(len(visible),),
    )
    target = Target(
        velocity_FCHW=data_FCHW - noise_FCHW,
        missing_F=torch.tensor(missing[1:]),
        missing_first_B=torch.tensor(missing[:1]),
        total_B=torch.tensor([len(context) - len(visible)]),
    )
    return state, target


LEAST_HIDDEN = 1e-7  # probability that a frame is still hidden just before ``tau = 1``
BEYOND = -1e4  # logit of a size that a law does not reach: next to nothing, and still a number


def appeared_logits(appeared: Tensor, count_K: Tensor, kappa: Tensor) -> Tensor:
    """Log-probability, up to a constant, that so many have appeared where K are still missing.

    Of the frames that were hidden at ``tau = 0`` each has appeared by ``tau`` with probability
    kappa: ``binomial(appeared + K, appeared) (1 - kappa)^K``. ``appeared`` and ``kappa`` broadcast
    with ``count_K``.
    """
    ways = torch.lgamma(appeared + count_K + 1) - torch.lgamma(count_K + 1.0)
    return ways + count_K * (1 - kappa).clamp(min=LEAST_HIDDEN).log()


def missing_logits(size_logits_BK: Tensor, state: FrameState, config: ProcessConfig) -> Tensor:
    """The log-law, up to a constant, of how many frames are missing, from one of how many come.

    ``size_logits_BK`` is over the number of generated frames of the whole clip, as far as what is
    seen tells it. What the mere number of visible ones tells is known and need not be learned:
    Bayes' rule, ``P(K) ~ P(visible + K) P(appeared | K)``. The law of a baseline, whose number of
    frames is known, is taken for that of the missing ones.
    """
    if config.kind != "flowception":
        return size_logits_BK
    visible_B = state.count_B(~state.given_F)
    one_gap_B = state.count_B(state.role_F == Role.ACTIVE) + state.open_first_B == 1
    appeared_B1 = (visible_B - config.num_start * one_gap_B).clamp(min=0)[:, None]
    count_K = torch.arange(size_logits_BK.shape[1], device=visible_B.device)
    kappa_B = parse_schedule(config.schedule).kappa(state.tau_B.clamp(0, 1))
    seen_BK = appeared_logits(appeared_B1, count_K, kappa_B[:, None])
    size_BK, largest = visible_B[:, None].long() + count_K, len(count_K) - 1
    law_BK = size_logits_BK.gather(1, size_BK.clamp(max=largest))
    return torch.where(size_BK <= largest, law_BK, BEYOND) + seen_BK


def concat(pairs: Sequence[tuple[FrameState, Target]]) -> tuple[FrameState, Target]:
    """All clips of all pairs, in order."""
    targets = [target for _, target in pairs]
    tensors = {f.name: torch.cat([getattr(t, f.name) for t in targets]) for f in fields(Target)}
    return frames.concat([state for state, _ in pairs]), Target(**tensors)
