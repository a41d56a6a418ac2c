"""The forward process: a clip part of the way through (arXiv 2512.11438, section 3).

A clip of data becomes the visible frames at a random extended time, with the velocity of every
flowing frame and the exact number of frames missing in every open gap. Two habits keep the laws
exact. ``tau`` never depends on the delays. And a draw that teaches nothing gives None: the caller
goes on to the next clip. Drawing again for the same clip would weigh short and long clips
differently and so bend the law of lengths.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, G
gaps of a clip, K sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from flowcept.process import state as frames
from flowcept.process.growth import Insertions, Planned
from flowcept.process.posterior import START_FRAMES, missing_logits
from flowcept.process.schedule import parse_schedule
from flowcept.process.state import FrameState, Given, Role
from flowcept.settings import SampleConfig


class Process(Protocol):
    """A kind of delays: how training hides frames, and how sampling lets them appear."""

    @property
    def shift(self) -> float:
        """Of the denoising progress, see ``shifted``."""

    def progress(self, num_steps: int, cells: int) -> Tensor:
        """The denoising progress of a frame after each of its steps, ``[num_steps + 1]``, float64.

        ``cells`` are those of all latents of the longest clip that may be made.
        """

    @property
    def chooses(self) -> bool:
        """Whether it chooses how many frames a clip has."""

    @property
    def first(self) -> bool:
        """Whether a clip without given frames starts with its first frame."""

    @property
    def planned(self) -> bool:
        """Whether frames know their indices in the whole clip, from ``tau = 0`` on."""

    def draw_delays(self, context: Sequence[bool], generator: Generator) -> Tensor:
        """``delay_F`` of every frame of a clip, float64; 0 for given frames."""

    def draw_tau(self, delay_F: Tensor, generator: Generator) -> float:
        """An extended time at which to show a clip of these delays in training."""

    def draw_times(
        self, tau: float, delay_F: Tensor, given_F: Tensor, generator: Generator
    ) -> Tensor:
        """Flow times in training of visible frames with these delays."""

    def missing_logits(self, size_logits_BK: Tensor, state: FrameState) -> Tensor:
        """The log-law of how many frames are missing, from the network's law of sizes."""

    def grow(
        self, given: Given, generator: Generator, config: SampleConfig, bounds: tuple[int, int]
    ) -> Insertions:
        """The insertions of one clip; ``bounds`` of its length hold where ``config`` sets none."""


EVEN_IN_KAPPA = 0.1  # of the draws before ``tau = 1``, so that first steps are known
UNPLANNED = 0.1  # of the draws before ``tau = 1``: at 0, where there is no plan yet


@dataclass(frozen=True)
class Flowception:
    """Frames appear one by one at random delays (section 3). Part of every model file."""

    schedule: str = "linear"  # linear or power:EXPONENT
    shift: float = 1.0  # over 1: more of the steps at high noise
    first: bool = False  # without given frames a clip starts with its first frame
    planned: bool = False  # numbers and places are drawn at ``tau = 0``, and told
    # In training alone:
    late: float = 0.5  # share of draws past ``tau = 1``
    fill: float = 0.0  # share of clips past ``tau = 1`` whose finished frames flow again

    def __post_init__(self) -> None:
        parse_schedule(self.schedule)
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"shift must be positive, not {self.shift}")
        if not 0 < self.late < 1:
            raise ValueError(f"late must lie between 0 and 1, not {self.late}")
        if not 0 <= self.fill <= 1:
            raise ValueError(f"fill must lie between 0 and 1, not {self.fill}")

    @property
    def chooses(self) -> bool:
        return True

    def progress(self, num_steps: int, cells: int) -> Tensor:
        del cells
        return shifted(torch.arange(num_steps + 1).double() / num_steps, self.shift)

    def draw_delays(self, context: Sequence[bool], generator: Generator) -> Tensor:
        """Delays by the schedule; 0 for given frames and for the start frame.

        There is one where exactly one gap is open: of several a sampler could not know which. With
        ``first`` it is the clip's first frame, so that its place is known, and there is none where
        frames are given: these have their places.
        """
        delay_F = torch.zeros(len(context), dtype=torch.float64)
        generated = torch.tensor([f for f, given in enumerate(context) if not given])
        uniform = torch.rand(len(generated), generator=generator, dtype=torch.float64)
        delay_F[generated] = parse_schedule(self.schedule).inverse(uniform)
        if self.first:
            delay_F[: START_FRAMES * (not any(context))] = 0
            return delay_F

        gaps = sum(not given and (f == 0 or context[f - 1]) for f, given in enumerate(context))
        if gaps == 1:
            order = torch.randperm(len(generated), generator=generator)
            delay_F[generated[order[:START_FRAMES]]] = 0
        return delay_F

    def draw_tau(self, delay_F: Tensor, generator: Generator) -> float:  # noqa: ARG002
        """Extended time over [0, 1], or with probability ``late`` over [1, 2].

        It never depends on the delays; else the law is free, since what a network should say of a
        state does not depend on how often it is shown.
        """
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        early = 1 - self.late
        if uniform >= early:
            return 1 + (uniform - early) / self.late
        tau = uniform / early
        if self.planned and torch.rand((), generator=generator) < UNPLANNED:
            return 0.0
        if self.schedule == "linear" or torch.rand((), generator=generator) >= EVEN_IN_KAPPA:
            return tau
        # As precise as a state holds it: where that is 0 no frame may have appeared yet.
        return float(parse_schedule(self.schedule).inverse(torch.tensor(tau).double()).float())

    def draw_times(
        self, tau: float, delay_F: Tensor, given_F: Tensor, generator: Generator
    ) -> Tensor:
        """``tau - delay`` up to 1; past ``tau = 1``, with ``fill``, finished frames flow again.

        All frames are there then, and what the network should say of them does not depend on how
        their flow times were drawn: so more of them teach, at no cost.
        """
        time_F = torch.where(given_F, 1.0, (tau - delay_F).clamp(0, 1))
        if not self.fill or tau < 1 or torch.rand((), generator=generator) >= self.fill:
            return time_F
        fresh_F = torch.rand(len(time_F), generator=generator, dtype=torch.float64)
        return torch.where(given_F | (time_F < 1), time_F, fresh_F)

    def missing_logits(self, size_logits_BK: Tensor, state: FrameState) -> Tensor:
        schedule = parse_schedule(self.schedule)
        return missing_logits(size_logits_BK, state, schedule, first=self.first)

    def grow(
        self, given: Given, generator: Generator, config: SampleConfig, bounds: tuple[int, int]
    ) -> Insertions:
        kind, schedule = Planned if self.planned else Insertions, parse_schedule(self.schedule)
        return kind(given, generator, config, bounds, schedule, first=self.first)


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


def roles_of(context: Sequence[bool]) -> list[Role]:
    """Roles in a whole clip: context is passive exactly when nothing is missing to its right."""
    following = [*context[1:], True]
    return [
        Role.GENERATED if not given else Role.PASSIVE if closed else Role.ACTIVE
        for given, closed in zip(context, following, strict=True)
    ]


def beside(
    latent_FCHW: Tensor, context: Sequence[bool], keyframe: Callable[[int], Tensor]
) -> tuple[Tensor, list[bool], list[bool]]:
    """A clip of a video codec as a sampler is given it: latents, which are given, and which beside.

    A given picture that others may come before stands beside the clip, alone (``keyframe``): right
    of the group that ends with it, which is to be generated.
    """
    rows, given, besides = list[Tensor](), list[bool](), list[bool]()
    for f, is_given in enumerate(context):
        alone = is_given and f > 0 and not context[f - 1]
        rows += [latent_FCHW[f], keyframe(f)] if alone else [latent_FCHW[f]]
        given += [False, True] if alone else [is_given]
        besides += [False, True] if alone else [False]
    return torch.stack(rows), given, besides


def draw(
    latent_FCHW: Tensor,
    context: Sequence[bool],
    process: Process,
    generator: Generator,
    keyframes: Sequence[bool] | None = None,
) -> tuple[FrameState, Target] | None:
    """One clip part of the way through, as a state of one clip and its targets.

    ``keyframes`` says which frames stand beside the clip. None where nothing is left to learn from
    it: ``tau`` past 1 and every frame finished.
    """
    delay_F = process.draw_delays(context, generator)
    tau = process.draw_tau(delay_F, generator)
    visible = [f for f in range(len(context)) if float(delay_F[f]) <= tau]
    given_F = torch.tensor([context[f] for f in visible], dtype=torch.bool)
    time_F = process.draw_times(tau, delay_F[visible], given_F, generator)
    if tau >= 1 and bool((time_F >= 1).all()):
        return None
    return _shown(latent_FCHW, context, visible, tau, time_F, process, generator, keyframes)


def draw_still(
    latent_1CHW: Tensor, process: Process, generator: Generator
) -> tuple[FrameState, Target]:
    """One frame of a clip, alone, at a uniform time; nothing is asked of how many are missing.

    It looks as a clip does at its start, but the state says that no other frame will come.
    """
    tau = float(torch.rand((), generator=generator, dtype=torch.float64))
    time_F = torch.tensor([tau], dtype=torch.float64)
    state, target = _shown(latent_1CHW, [False], [0], tau, time_F, process, generator)
    return replace(state, total_B=torch.ones(1, dtype=torch.long)), target


def _shown(
    latent_FCHW: Tensor,
    context: Sequence[bool],
    visible: Sequence[int],
    tau: float,
    time_F: Tensor,
    process: Process,
    generator: Generator,
    keyframes: Sequence[bool] | None = None,
) -> tuple[FrameState, Target]:
    """The visible frames of a clip with noise by their flow times, and the targets."""
    roles, time_F = roles_of(context), time_F.float()
    data_FCHW = latent_FCHW[visible]
    noise_FCHW = torch.randn(data_FCHW.shape, generator=generator)
    progress_F = shifted(time_F, process.shift)

    missing_G = (torch.tensor([-1, *visible, len(context)]).diff() - 1).float()
    state = FrameState(
        latent_FCHW=torch.lerp(noise_FCHW, data_FCHW, progress_F[:, None, None, None]),
        time_F=time_F,
        role_F=torch.tensor([roles[f] for f in visible], dtype=torch.long),
        tau_B=torch.tensor([tau], dtype=torch.float32),
        open_first_B=torch.tensor([not context[0] and (any(context) or not process.first)]),
        lengths=(len(visible),),
        keyframe_F=None if keyframes is None else torch.tensor([keyframes[f] for f in visible]),
    )
    if process.planned:
        indices, total = (visible, len(context)) if tau > 0 else ([-1] * len(visible), -1)
        state = replace(state, index_F=torch.tensor(indices), total_B=torch.tensor([total]))
    target = Target(
        velocity_FCHW=data_FCHW - noise_FCHW,
        missing_F=missing_G[1:],
        missing_first_B=missing_G[:1],
        total_B=torch.tensor([len(context) - len(visible)]),
    )
    return state, target


def concat(pairs: Sequence[tuple[FrameState, Target]]) -> tuple[FrameState, Target]:
    """All clips of all pairs, in order."""
    states, targets = zip(*pairs, strict=True)
    return frames.concat(states), frames.concat(targets)
