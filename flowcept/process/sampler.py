"""The sampler: clips grow and become clean at the same time (arXiv 2512.11438, section 3).

One loop serves every task and every process. A task is a ``Given``: clean frames and the gaps in
which others may appear. What is unusual here: the number of frames that appear in a step is drawn
from the posterior of the total still missing, which is the exact law of a step of any size, so
the law of lengths does not depend on the number of steps.

Times are whole ages over the number of steps: a generated frame has age 0 when it appears and is
finished at that age. Each clip has its own generator on the CPU and makes the same draws alone, in
any batch and on any device. A step moves at most one tensor to the device, the noise of new frames
with their places, and one from it, what is said of missing frames; after ``tau = 1`` none.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, G gaps of a
clip, N new frames, K sizes, A ages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flowcept.process import state as frames
from flowcept.process.forward import Process, shifted
from flowcept.process.growth import Growth
from flowcept.process.state import FrameState, Given, Prediction, Role
from flowcept.settings import SampleConfig

LEAST_LOG = -60.0  # of a gap's missing frames: 1e-26, nothing beside any share that matters


class Model(Protocol):
    """What the sampler asks: a prediction for a state whose clips are these of the request.

    ``finished_F``, a bool per frame on the CPU, names the frames that do not flow. From ``tau = 1``
    on they ``may_rest``: nothing is asked of them any more.
    """

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction: ...


@dataclass(frozen=True)
class Step:
    """The clips after one step. ``ids`` name frames: the order in which they appeared."""

    index: int  # 0 for the start, then steps done
    clips: tuple[int, ...]  # clips that still run, in the order of the state
    state: FrameState
    age_F: Tensor  # int64 on the CPU, steps since a frame appeared; given frames are born finished
    ids: tuple[tuple[int, ...], ...]  # per running clip, a name for each visible frame
    new: tuple[tuple[int, ...], ...]  # names of the frames that this step inserted
    done: dict[int, Tensor]  # latent_FCHW of the clips that this step finished


def sample(
    model: Model,
    given: Sequence[Given],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
    process: Process,
    *,
    max_length: int,
    min_length: int = 1,
) -> list[Tensor]:
    """The latents ``[F, C, H, W]`` of each clip; see ``sample_steps``."""
    steps = sample_steps(
        model, given, generators, config, process, min_length=min_length, max_length=max_length
    )
    return latents_of(steps)


def latents_of(steps: Iterable[Step]) -> list[Tensor]:
    """The latents ``[F, C, H, W]`` of each clip once all steps are done."""
    done: dict[int, Tensor] = {}
    for step in steps:
        done |= step.done
    return [done[clip] for clip in sorted(done)]


@torch.no_grad()
def sample_steps(
    model: Model,
    given: Sequence[Given],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
    process: Process,
    *,
    max_length: int,
    min_length: int = 1,
) -> Iterator[Step]:
    """Sample clips step by step; each yields the state, new frames and finished clips.

    ``generators`` are on the CPU, one per clip. ``min_length`` and ``max_length``, in latents,
    bound clips where the configuration does not. The latents' device is where the work is done.
    """
    growth = [
        process.grow(one, generator, config, min_length=min_length, max_length=max_length)
        for one, generator in zip(given, generators, strict=True)
    ]
    clock = Clock.of(config.steps, process.shift, given[0].latent_FCHW)
    running = Running.start(given, growth, clock)
    running, new = running.grown([clip.start() for clip in growth])

    for index in itertools.count():
        finished = running.finished(index)
        yield running.step(index, new, finished)
        running = running.without(finished)
        if not running.clips:
            return

        finished_F, may_rest = running.age_F == config.steps, index >= config.steps
        prediction = model(running.state, running.clips, finished_F, may_rest)
        running = running.denoised(prediction.velocity_FCHW)
        running, new = running.grown(running.counts(index, prediction))
        running = running.at(index + 1)


@dataclass(frozen=True)
class Clock:
    """What a frame's age means, and how far a step takes it: tables on the latents' device."""

    num_steps: int
    time_A: Tensor  # flow time of a frame of this age
    change_A: Tensor  # of its denoising progress in the step from this age to the next; at last 0

    @staticmethod
    def of(num_steps: int, shift: float, like: Tensor) -> Clock:
        time_A = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        progress_A = shifted(time_A, shift)
        change_A = torch.diff(progress_A, append=progress_A[-1:])
        return Clock(num_steps, time_A.float().to(like.device), change_A.to(like))


@dataclass(frozen=True)
class Running:
    """The clips that still run: their state, and what the sampler remembers of each frame."""

    state: FrameState
    age_F: Tensor  # int64 on the CPU: steps since the frame appeared
    device_age_F: Tensor  # the same where the latents are
    clips: tuple[int, ...]  # numbers within the request
    growth: tuple[Growth, ...]
    clock: Clock

    @staticmethod
    def start(given: Sequence[Given], growth: Sequence[Growth], clock: Clock) -> Running:
        """The given frames alone, at ``tau = 0``."""
        state = _initial(given)
        device_age_F = torch.full_like(state.role_F, clock.num_steps)
        age_F = torch.full((len(state.role_F),), clock.num_steps)
        clips = tuple(range(len(given)))
        return Running(state, age_F, device_age_F, clips, tuple(growth), clock)

    def step(self, index: int, new: tuple[tuple[int, ...], ...], finished: Sequence[int]) -> Step:
        """What is told of these clips after ``index`` steps, some of which are finished."""
        latents = self.state.latent_FCHW.split(self.state.lengths)
        done = {self.clips[row]: latents[row] for row in finished}
        ids = tuple(tuple(clip.ids) for clip in self.growth)
        return Step(index, self.clips, self.state, self.age_F, ids, new, done)

    def finished(self, index: int) -> list[int]:
        """Rows of the clips in which no frame flows and none can appear any more."""
        ages = self.age_F.split(self.state.lengths)
        return [
            row
            for row, (clip, age_F) in enumerate(zip(self.growth, ages, strict=True))
            if clip.complete(index) and bool((age_F == self.clock.num_steps).all())
        ]

    def without(self, rows: Sequence[int]) -> Running:
        """All clips but these."""
        if not rows:
            return self
        kept = [row for row in range(len(self.clips)) if row not in rows]
        lengths = self.state.lengths
        return replace(
            self,
            state=frames.select(self.state, kept),
            age_F=frames.rows_of(self.age_F, lengths, kept),
            device_age_F=frames.rows_of(self.device_age_F, lengths, kept),
            clips=tuple(self.clips[row] for row in kept),
            growth=tuple(self.growth[row] for row in kept),
        )

    def denoised(self, velocity_FCHW: Tensor) -> Running:
        """Every flowing frame one Euler step on, by its own change of denoising progress."""
        latent_FCHW, last = self.state.latent_FCHW, self.clock.num_steps
        change_F111 = self.clock.change_A[self.device_age_F][:, None, None, None]
        moved_FCHW = latent_FCHW + change_F111 * velocity_FCHW
        flowing_F111 = (self.device_age_F < last)[:, None, None, None]
        device_age_F = (self.device_age_F + 1).clamp(max=last)
        state = replace(
            self.state,
            latent_FCHW=torch.where(flowing_F111, moved_FCHW, latent_FCHW),
            time_F=self.clock.time_A[device_age_F],
        )
        age_F = (self.age_F + 1).clamp(max=last)
        return replace(self, state=state, age_F=age_F, device_age_F=device_age_F)

    def counts(self, index: int, prediction: Prediction) -> list[list[int]]:
        """How many frames appear in each gap of each clip in the step that ``index`` begins."""
        lengths = self.state.lengths
        if all(clip.complete(index) for clip in self.growth):
            return [[0] * (length + 1) for length in lengths]  # the device is not asked
        log_missing, size_logits = _on_host(self.state, prediction)
        return [
            clip.count(index, log_missing_G, size_logits_K)
            for clip, log_missing_G, size_logits_K in zip(
                self.growth, log_missing, size_logits, strict=True
            )
        ]

    def grown(self, counts: Sequence[Sequence[int]]) -> tuple[Running, tuple[tuple[int, ...], ...]]:
        """With new noise frames of age 0 in the gaps, and their names, clip by clip."""
        new = tuple(clip.born(gaps) for clip, gaps in zip(self.growth, counts, strict=True))
        if not any(new):
            return self, new
        shape = self.state.latent_FCHW.shape[1:]
        noise = [
            torch.randn(shape, generator=clip.generator)
            for clip, names in zip(self.growth, new, strict=True)
            for _ in names
        ]
        rows = frames.insertion_rows(self.state.lengths, counts)
        noise_NCHW, rows_F = _to_device(torch.stack(noise), rows, self.state.latent_FCHW)

        age_F = torch.cat([self.age_F, self.age_F.new_zeros(len(noise))])[rows]
        born_N = self.device_age_F.new_zeros(len(noise))
        device_age_F = torch.cat([self.device_age_F, born_N])[rows_F]
        state = frames.insert(self.state, counts, noise_NCHW, rows_F)
        return replace(self, state=state, age_F=age_F, device_age_F=device_age_F), new

    def at(self, index: int) -> Running:
        """The same after ``index`` steps."""
        tau_B = torch.full_like(self.state.tau_B, index / self.clock.num_steps)
        return replace(self, state=replace(self.state, tau_B=tau_B))


def _initial(given: Sequence[Given]) -> FrameState:
    """The given frames of all clips, at ``tau = 0``."""
    latent_FCHW = torch.cat([one.latent_FCHW for one in given])
    device = latent_FCHW.device
    roles = [Role.ACTIVE if gap else Role.PASSIVE for one in given for gap in one.open_gaps[1:]]
    open_first = [one.open_gaps[0] for one in given]
    return FrameState(
        latent_FCHW=latent_FCHW,
        time_F=torch.ones(len(roles), device=device),
        role_F=torch.tensor(roles, dtype=torch.long, device=device),
        tau_B=torch.zeros(len(given), device=device),
        open_first_B=torch.tensor(open_first, device=device),
        lengths=tuple(len(one.latent_FCHW) for one in given),
    )


def _on_host(state: FrameState, prediction: Prediction) -> tuple[list[Tensor], list[Tensor]]:
    """Per clip, on the CPU and in float64: log-missing by gap (closed: -inf), logits of sizes.

    An open gap keeps a share, however small, since the length may be fixed against the network.
    """

    def of_open(log: Tensor, is_open: Tensor) -> Tensor:
        return torch.where(is_open, log.clamp(min=LEAST_LOG), -math.inf)

    log_F = of_open(prediction.log_missing_F, state.open_F)
    log_B = of_open(prediction.log_missing_first_B, state.open_first_B)
    size_BK = prediction.size_logits_BK
    said = torch.cat([log_F, log_B, size_BK.flatten()]).cpu().double()  # in one journey

    of_frames, first_B, sizes = said.split([len(log_F), len(log_B), size_BK.numel()])
    per_clip = enumerate(of_frames.split(state.lengths))
    gaps = [torch.cat([first_B[b, None], log_G]) for b, log_G in per_clip]
    return gaps, list(sizes.view(size_BK.shape))


def _to_device(noise_NCHW: Tensor, rows: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and row numbers on the device of ``like``, in one journey.

    Row numbers travel as float32, which holds whole numbers up to 2**24 exactly.
    """
    assert max(rows, default=0) < 2**24
    packed = torch.cat([noise_NCHW.flatten(), torch.tensor(rows, dtype=torch.float32)])
    packed = packed.to(like.device)
    noise, rows_F = packed.split([noise_NCHW.numel(), len(rows)])
    return noise.view(noise_NCHW.shape).to(like.dtype), rows_F.long()


def clip_generator(seed: int) -> torch.Generator:
    """The generator of one clip, on the CPU."""
    return torch.Generator().manual_seed(seed)
