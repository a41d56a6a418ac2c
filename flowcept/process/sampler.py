"""The sampler: clips grow and become clean at the same time (arXiv 2512.11438, section 3).

One loop serves every task and every process. A task is a ``Given``: clean frames and the gaps in
which others may appear. What is unusual here: the number of frames that appear in a step is drawn
from the posterior of the total still missing, which is the exact law of a step of any size, so
the law of lengths does not depend on the number of steps.

Flow times are whole ages over the number of steps: a generated frame has age 0 when it appears and
is finished at an age of so many steps. Each clip has its own generator on the CPU and makes the
same draws alone, in any batch and on any device. A step moves at most one tensor to the device, the
noise of new frames with their places, and one from it, what is said of missing frames; after
``tau = 1`` none.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, G gaps of a
clip, N new frames, K sizes, A ages.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from flowcept.process import state as frames
from flowcept.process.forward import Process, shifted
from flowcept.process.growth import Insertions
from flowcept.process.state import FrameState, Given, Prediction, Role
from flowcept.settings import SampleConfig

LEAST_LOG = -60.0  # of a gap's missing frames: 1e-26, nothing beside any share that matters
Names = tuple[tuple[int, ...], ...]  # of frames, clip by clip: the order in which they appeared


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
    """The clips after one step."""

    index: int  # 0 for the start, then steps done
    clips: tuple[int, ...]  # clips that still run, in the order of the state
    state: FrameState
    age_F: Tensor  # int64 on the CPU: steps since a frame appeared; given ones are born finished
    ids: Names  # of all visible frames
    new: Names  # of those that this step inserted
    done: dict[int, Tensor]  # latent_FCHW of the clips that this step finished


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
        process.grow(one, generator, config, (min_length, max_length))
        for one, generator in zip(given, generators, strict=True)
    ]
    running = Running.start(given, growth, config.steps, process.shift)
    running = running.grown([clip.start() for clip in growth])

    for index in itertools.count():
        finished = running.finished(index)
        yield running.step(index, finished)
        if len(finished) == len(running.clips):
            return
        running = running.without(finished)

        finished_F, may_rest = running.age_F == config.steps, index >= config.steps
        prediction = model(running.state, running.clips, finished_F, may_rest)
        running = running.denoised(index + 1, prediction.velocity_FCHW)
        running = running.grown(running.counts(index, prediction))


def latents_of(steps: Iterable[Step]) -> list[Tensor]:
    """The latents ``[F, C, H, W]`` of each clip once all steps are done."""
    done: dict[int, Tensor] = {}
    for step in steps:
        done |= step.done
    return [done[clip] for clip in sorted(done)]


def clip_generator(seed: int) -> torch.Generator:
    """The generator of one clip, on the CPU."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Running:
    """The clips that still run: their state, and what the sampler remembers of each."""

    state: FrameState
    age_F: Tensor  # int64 on the CPU: steps since a frame appeared; given ones are born finished
    clips: tuple[int, ...]  # numbers within the request
    growth: tuple[Insertions, ...]
    num_steps: int
    change_A: Tensor  # of denoising progress, in the step from each age to the next; at last 0
    new: Names = ()  # of the frames that the last step inserted

    @classmethod
    def start(
        cls, given: Sequence[Given], growth: Sequence[Insertions], num_steps: int, shift: float
    ) -> Self:
        """The given frames alone, at ``tau = 0``."""
        latent_FCHW = torch.cat([one.latent_FCHW for one in given])
        device, num_frames = latent_FCHW.device, len(latent_FCHW)
        before_first = [one.open_gaps[0] for one in given]
        after_frames = [is_open for one in given for is_open in one.open_gaps[1:]]
        roles = [Role.ACTIVE if is_open else Role.PASSIVE for is_open in after_frames]
        state = FrameState(
            latent_FCHW=latent_FCHW,
            time_F=torch.ones(num_frames, device=device),
            role_F=torch.tensor(roles, dtype=torch.long, device=device),
            tau_B=torch.zeros(len(given), device=device),
            open_first_B=torch.tensor(before_first, device=device),
            lengths=tuple(len(one.latent_FCHW) for one in given),
        )
        progress_A = shifted(torch.arange(num_steps + 1).double() / num_steps, shift)
        change_A = torch.diff(progress_A, append=progress_A[-1:]).to(latent_FCHW)
        age_F, clips = torch.full((num_frames,), num_steps), tuple(range(len(given)))
        return cls(state, age_F, clips, tuple(growth), num_steps, change_A)

    def finished(self, index: int) -> list[int]:
        """Rows of the clips in which no frame flows and, after ``index`` steps, none can appear."""
        ages = self.age_F.split(self.state.lengths)
        old = [bool((age_F == self.num_steps).all()) for age_F in ages]
        return [b for b, clip in enumerate(self.growth) if old[b] and clip.complete(index)]

    def step(self, index: int, finished: Sequence[int]) -> Step:
        """What is told of these clips after ``index`` steps, some of which are finished."""
        latents = self.state.latent_FCHW.split(self.state.lengths)
        ids = tuple(tuple(clip.ids) for clip in self.growth)
        done = {self.clips[b]: latents[b] for b in finished}
        return Step(index, self.clips, self.state, self.age_F, ids, self.new, done)

    def without(self, finished: Sequence[int]) -> Self:
        """All clips but these."""
        if not finished:
            return self
        kept = [b for b in range(len(self.clips)) if b not in finished]
        return replace(
            self,
            state=frames.select(self.state, kept),
            age_F=frames.rows_of(kept, self.age_F, self.state.lengths),
            clips=tuple(self.clips[b] for b in kept),
            growth=tuple(self.growth[b] for b in kept),
        )

    def denoised(self, index: int, velocity_FCHW: Tensor) -> Self:
        """After ``index`` steps: every flowing frame by its own change of denoising progress on."""
        state, last = self.state, self.num_steps
        age_F = (state.time_F * last).round().long()  # as ``self.age_F``, on the device
        change_F111 = self.change_A[age_F][:, None, None, None]
        flowing_F111 = (age_F < last)[:, None, None, None]
        moved_FCHW = state.latent_FCHW + change_F111 * velocity_FCHW
        state = replace(
            state,
            latent_FCHW=torch.where(flowing_F111, moved_FCHW, state.latent_FCHW),
            time_F=(age_F + 1).clamp(max=last) / last,
            tau_B=torch.full_like(state.tau_B, index / last),
        )
        return replace(self, state=state, age_F=(self.age_F + 1).clamp(max=last))

    def counts(self, index: int, prediction: Prediction) -> list[list[int]]:
        """How many frames appear in each gap of each clip in the step that ``index`` begins."""
        if all(clip.complete(index) for clip in self.growth):
            return [[0] * (length + 1) for length in self.state.lengths]  # no device is asked
        said = zip(self.growth, *_on_host(self.state, prediction), strict=True)
        return [clip.count(index, log_missing_G, size_K) for clip, log_missing_G, size_K in said]

    def grown(self, counts: Sequence[Sequence[int]]) -> Self:
        """With new noise frames of age 0 in the gaps."""
        new = tuple(clip.born(gaps) for clip, gaps in zip(self.growth, counts, strict=True))
        if not any(new):
            return replace(self, new=new)
        shape = self.state.latent_FCHW.shape[1:]
        noise = [
            torch.randn(shape, generator=clip.generator)
            for clip, names in zip(self.growth, new, strict=True)
            for _ in names
        ]
        rows = frames.insertion_rows(self.state.lengths, counts)
        noise_NCHW, rows_F = _to_device(torch.stack(noise), rows, self.state.latent_FCHW)
        state = frames.insert(self.state, counts, noise_NCHW, rows_F)
        age_F = torch.cat([self.age_F, self.age_F.new_zeros(len(noise))])[rows]
        return replace(self, state=state, age_F=age_F, new=new)


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
    per_clip = zip(first_B, of_frames.split(state.lengths), strict=True)
    gaps = [torch.cat([first[None], log_G]) for first, log_G in per_clip]
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
