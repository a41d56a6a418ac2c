"""The sampler: clips grow and become clean at the same time (arXiv 2512.11438, section 3).

One loop serves every task and every process. A task is a ``Given``: clean frames and the gaps in
which others may appear. What is unusual here: the number of frames that appear in a step is drawn
from the posterior of the total still missing, which is the exact law of a step of any size, so
the law of lengths does not depend on the number of steps.

Flow times are whole ages over the number of steps. Each clip has its own generator on the CPU and
makes the same draws alone, in any batch and on any device. A step moves at most one tensor to the
device, the noise of new frames with their places, and one from it, what is said of missing frames;
after ``tau = 1`` none, but for the noise of clips that are refined.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, G gaps of a
clip, N new frames, K sizes, A ages.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from flowcept.errors import not_finite
from flowcept.process import state as frames
from flowcept.process.compositions import LEAST_LOG, Gaps, by_clip
from flowcept.process.forward import Process
from flowcept.process.growth import Insertions, Planned
from flowcept.process.state import FrameState, GapTables, Given, Prediction, Role
from flowcept.settings import SampleConfig

_NOTHING = torch.zeros(0, dtype=torch.float64)

# What the sampler asks: a prediction for a state whose clips are these of the request. The CPU
# knows which frames are finished, a bool per frame, and whether these may rest: from ``tau = 1``
# on nothing is asked of them any more.
Model = Callable[[FrameState, Sequence[int], Tensor, bool], Prediction]


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
) -> Iterator["Step"]:
    """Sample clips, from their start step by step until all are finished.

    ``generators`` are on the CPU, one per clip. ``min_length`` and ``max_length``, in latents,
    bound clips where the configuration does not. The latents' device is where the work is done.
    """
    growth = [
        process.grow(one, generator, config, (min_length, max_length))
        for one, generator in zip(given, generators, strict=True)
    ]
    cells = max([clip.high for clip in growth]) * math.prod(given[0].latent_FCHW.shape[2:])
    step = Step.start(given, growth, process.progress(config.steps, cells))
    step = step.grown([clip.start() for clip in growth])
    while True:
        yield step
        if not step.running:
            return
        step = step.only_running()
        finished_F, may_rest = step.age_F == config.steps, step.index >= config.steps
        prediction = model(step.told, step.clips, finished_F, may_rest)
        counts = step.counts(prediction)
        step = step.denoised(prediction.velocity_FCHW).grown(counts)
        if config.refine_age < config.steps:
            step = step.noised_again(config.refine_age)


def latents_of(steps: Iterable["Step"]) -> list[Tensor]:
    """The latents ``[F, C, H, W]`` of each clip once all steps are done."""
    done = {clip: latent_FCHW for step in steps for clip, latent_FCHW in step.done.items()}
    return [done[clip] for clip in sorted(done)]


def clip_generator(seed: int) -> torch.Generator:
    """The generator of one clip, on the CPU."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Step:
    """Clips after so many steps: those that are not finished, and those that the last step did."""

    index: int  # steps done
    clips: tuple[int, ...]  # numbers within the request, in the order of the state
    state: FrameState
    age_F: Tensor  # int64 on the CPU: steps since a frame appeared; given ones are born finished
    name_F: Tensor  # int64 on the CPU: in which order the frames of a clip appeared, from 0
    growth: tuple[Insertions, ...]
    num_steps: int  # the age at which a frame is finished
    progress_A: Tensor  # of denoising, at each age
    change_A: Tensor  # of it, in the step from each age to the next; at last 0
    again: frozenset[int] = frozenset()  # clips whose frames went back already

    @classmethod
    def start(
        cls, given: Sequence[Given], growth: Sequence[Insertions], progress_A: Tensor
    ) -> Self:
        """The given frames alone, at ``tau = 0``; ``progress_A`` is in float64, on the CPU."""
        num_steps = len(progress_A) - 1
        latent_FCHW = torch.cat([one.latent_FCHW for one in given])
        device, lengths = latent_FCHW.device, tuple(len(one.latent_FCHW) for one in given)
        after_frames = [is_open for one in given for is_open in one.open_gaps[1:]]
        roles = [Role.ACTIVE if is_open else Role.PASSIVE for is_open in after_frames]
        state = FrameState(
            latent_FCHW=latent_FCHW,
            time_F=torch.ones(len(roles), device=device),
            role_F=torch.tensor(roles, dtype=torch.long, device=device),
            tau_B=torch.zeros(len(given), device=device),
            open_first_B=torch.tensor([clip.open_first for clip in growth], device=device),
            lengths=lengths,
            keyframe_F=_keyframes(given, device),
        )
        age_F = torch.full((len(roles),), num_steps)
        name_F = torch.cat([torch.arange(length) for length in lengths])
        change_A = torch.diff(progress_A, append=progress_A[-1:])
        progress_A, change_A = torch.stack([progress_A, change_A]).to(latent_FCHW).unbind()
        clips, growing = tuple(range(len(given))), tuple(growth)
        return cls(0, clips, state, age_F, name_F, growing, num_steps, progress_A, change_A)

    @property
    def running(self) -> list[int]:
        """Rows of the clips in which a frame flows or may still appear."""
        ages = self.age_F.split(self.state.lengths)
        flows = [bool((age_F < self.num_steps).any()) for age_F in ages]
        grows = [not clip.complete(self.index) for clip in self.growth]
        return [b for b in range(len(self.clips)) if flows[b] or grows[b]]

    @property
    def done(self) -> dict[int, Tensor]:
        """``latent_FCHW`` of the clips that are finished."""
        latents, running = self.state.latent_FCHW.split(self.state.lengths), self.running
        return {clip: latents[b] for b, clip in enumerate(self.clips) if b not in running}

    @property
    def _device_age_F(self) -> Tensor:
        """``age_F`` on the device, where it follows from the flow times."""
        return (self.state.time_F * self.num_steps).round().long()

    @property
    def told(self) -> FrameState:
        """The state with the denoising progress of every frame."""
        return replace(self.state, progress_F=self.progress_A[self._device_age_F])

    def only_running(self) -> Self:
        """Without the clips that are finished."""
        kept = self.running
        if len(kept) == len(self.clips):
            return self
        return replace(
            self,
            clips=tuple(self.clips[b] for b in kept),
            state=frames.select(self.state, kept),
            age_F=frames.rows_of(kept, self.age_F, self.state.lengths),
            name_F=frames.rows_of(kept, self.name_F, self.state.lengths),
            growth=tuple(self.growth[b] for b in kept),
        )

    def counts(self, prediction: Prediction) -> list[list[int]]:
        """How many frames appear in each gap of each clip in the step that begins now."""
        if not any(clip.asks(self.index) for clip in self.growth):  # the device is not asked
            said = [(Gaps(_NOTHING), _NOTHING)] * len(self.growth)
        else:
            said = list(zip(*_on_host(self.state, prediction), strict=True))
        return [clip.count(self.index, *one) for clip, one in zip(self.growth, said, strict=True)]

    def denoised(self, velocity_FCHW: Tensor) -> Self:
        """A step further: every flowing frame by its own change of denoising progress."""
        state, last, index = self.state, self.num_steps, self.index + 1
        age_F = self._device_age_F
        change_F111 = self.change_A[age_F][:, None, None, None]
        flowing_F111 = (age_F < last)[:, None, None, None]
        moved_FCHW = state.latent_FCHW + change_F111 * velocity_FCHW
        state = replace(
            state,
            latent_FCHW=torch.where(flowing_F111, moved_FCHW, state.latent_FCHW),
            time_F=(age_F + 1).clamp(max=last) / last,
            tau_B=torch.full_like(state.tau_B, index / last),
        )
        return replace(self, index=index, state=state, age_F=(self.age_F + 1).clamp(max=last))

    def grown(self, counts: Sequence[Sequence[int]]) -> Self:
        """With new noise frames of age 0 in the gaps."""
        shape, lengths = self.state.latent_FCHW.shape[1:], self.state.lengths
        born = [clip.born(gaps, shape) for clip, gaps in zip(self.growth, counts, strict=True)]
        indices, totals = self._plan()
        if not any(born) and not (indices and self.index == 1):  # with the first step comes a plan
            return self
        noise = [noise_CHW for clip in born for noise_CHW in clip]
        names = [n + i for n, clip in zip(lengths, born, strict=True) for i in range(len(clip))]
        rows = frames.insertion_rows(lengths, counts)
        noise_NCHW, (rows_F, index_F, total_B) = _to_device(
            noise, [rows, indices, totals], self.state.latent_FCHW
        )
        state = frames.insert(self.state, counts, noise_NCHW, rows_F)
        if indices:
            state = replace(state, index_F=index_F, total_B=total_B)
        return replace(
            self,
            state=state,
            age_F=torch.cat([self.age_F, torch.zeros(len(names)).long()])[rows],
            name_F=torch.cat([self.name_F, torch.tensor(names)])[rows],
        )

    def _plan(self) -> tuple[list[int], list[int]]:
        """Indices of all frames, and numbers of frames of all clips, where clips are planned."""
        planned = [clip for clip in self.growth if isinstance(clip, Planned)]
        return [i for clip in planned for i in clip.indices], [clip.total for clip in planned]

    def noised_again(self, age: int) -> Self:
        """With the generated frames of clips that have just finished back at this age, once.

        All of a clip's frames are there then, so the last steps clean them together and mend what
        frames had to guess before their neighbours came (restart sampling, arXiv 2306.14878).
        """
        running = {self.clips[b] for b in self.running}
        finished = [b for b, clip in enumerate(self.clips) if clip not in running | self.again]
        starts = torch.tensor([0, *self.state.lengths]).cumsum(0)
        rows, noise = [], []
        for b in finished:
            name_F = self.name_F[starts[b] : starts[b + 1]]
            own = (name_F >= self.growth[b].num_given).nonzero().flatten() + starts[b]
            rows += own.tolist()
            noise += self.growth[b].noise(len(own), self.state.latent_FCHW.shape[1:])
        if not rows:
            return self

        latent_FCHW = self.state.latent_FCHW
        noise_NCHW, (row_N,) = _to_device(noise, [rows], latent_FCHW)
        progress = self.change_A[:age].sum()
        latent_NCHW = torch.lerp(noise_NCHW, latent_FCHW[row_N], progress)
        state = replace(
            self.state,
            latent_FCHW=latent_FCHW.index_copy(0, row_N, latent_NCHW),
            time_F=self.state.time_F.index_fill(0, row_N, age / self.num_steps),
        )
        age_F = self.age_F.index_fill(0, torch.tensor(rows), age)
        again = self.again | {self.clips[b] for b in finished}
        return replace(self, state=state, age_F=age_F, again=again)


def _keyframes(given: Sequence[Given], device: torch.device) -> Tensor | None:
    """Which given frames stand beside their clips; None where none does."""
    if all(one.keyframes is None for one in given):
        return None
    marked = [mark for one in given for mark in one.keyframes or [False] * len(one.latent_FCHW)]
    return torch.tensor(marked, dtype=torch.bool, device=device)


def _on_host(state: FrameState, prediction: Prediction) -> tuple[list[Gaps], list[Tensor]]:
    """Per clip, on the CPU and in float64: what is said of its gaps, and logits of sizes.

    An open gap keeps a share, however small, since the length may be fixed against the network.
    Raises UserError for laws that are no numbers.
    """
    log_BG = by_clip(prediction.log_missing_first_B, prediction.log_missing_F, state.lengths)
    open_BG = by_clip(state.open_first_B, state.open_F, state.lengths)
    log_BG = torch.where(open_BG, log_BG.clamp(min=LEAST_LOG), -math.inf)
    said: list[Tensor] = [log_BG, prediction.size_logits_BK]
    if prediction.gap_BG2H is not None and prediction.tables is not None:
        said += [prediction.gap_BG2H, *vars(prediction.tables).values()]
    packed = torch.cat([x.flatten() for x in said]).cpu().double()  # in one journey
    if bool(packed.isnan().any()):
        raise not_finite()
    parts = zip(packed.split([x.numel() for x in said]), said, strict=True)
    log_BG, size_BK, *features = (part.view(x.shape) for part, x in parts)

    counts = [length + 1 for length in state.lengths]
    gaps = [Gaps(log_G[:count]) for log_G, count in zip(log_BG, counts, strict=True)]
    if features:
        gap_BG2H, tables = features[0], GapTables(*features[1:])
        gaps = [
            replace(one, feature_G2H=gap_G2H, tables=tables)
            for one, gap_G2H in zip(gaps, gap_BG2H, strict=True)
        ]
    return gaps, list(size_BK)


def _to_device(
    noise: Sequence[Tensor], numbers: Sequence[Sequence[int]], like: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Noise ``[N, C, H, W]`` and lists of numbers on the device of ``like``, in one journey.

    Numbers travel as float32, which holds whole ones up to 2**24 exactly.
    """
    assert max((max(some, default=0) for some in numbers), default=0) < 2**24
    noise_NCHW = torch.stack(list(noise)) if noise else torch.zeros(0, *like.shape[1:])
    parts = [noise_NCHW.flatten(), *(torch.tensor(some, dtype=torch.float32) for some in numbers)]
    moved = torch.cat(parts).to(like.device).split([len(part) for part in parts])
    return moved[0].view(noise_NCHW.shape).to(like.dtype), [some.long() for some in moved[1:]]
