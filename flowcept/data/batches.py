"""What one training step sees: which clips, in which order, and what is hidden of them.

A batch is a function of its arguments alone, so that training continues exactly.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from flowcept.data.contexts import draw_context
from flowcept.errors import UserError
from flowcept.lexicon import Lexicon
from flowcept.process.forward import Process, Target, beside, draw, draw_still
from flowcept.process.state import FrameState
from flowcept.settings import ContextMixture, ObjectiveSettings, mixed

Pair = tuple[FrameState, Target]
MOST_REFUSALS = 2000  # in a row; where one draw in 100 fits, as many happen once in 5e8


Keyframe = Callable[[int, int], Tensor]


class ClipSource(Protocol):
    """What a training step draws from: latents with their captions."""

    captions: list[str]
    lengths: list[int]  # in latents
    sizes: list[tuple[int, int]]  # height and width of its pictures, or of its latents
    # Of video codecs: the latent of the last picture alone of a latent of a clip, by their numbers
    keyframe: Keyframe | None

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""


@dataclass(frozen=True)
class Batch:
    """Clips part of the way through, ready for one training step."""

    pairs: tuple[Pair, ...]  # one clip each
    prompts: tuple[str, ...]
    taken: int  # clips drawn from the data, those that taught nothing included


@dataclass(frozen=True)
class Lessons:
    """Clips, and how much of them a training step sees."""

    clips: ClipSource
    process: Process
    mixture: ContextMixture
    objective: ObjectiveSettings
    lexicon: Lexicon | None = None
    # Of video codecs: the latent of the last picture alone of a latent of a clip, by their numbers.
    keyframe: Keyframe | None = None

    def draw(self, clip: int, generator: Generator) -> tuple[Pair, str] | None:
        """A clip part of the way through, and its prompt; None if it teaches nothing.

        A clip with given frames has its own share without a prompt: where the words always say who
        is seen, nothing is learned from the frames.
        """
        length, objective = self.clips.lengths[clip], self.objective
        drop_prompt, drop_context = torch.rand(2, generator=generator).tolist()
        context: list[bool] | None = [False] * length
        if drop_context >= objective.context_dropout:
            context = draw_context(length, self.mixture, generator)
        if context is None:
            return None
        pair = self._shown(clip, context, generator)
        if pair is None:
            return None
        dropout = objective.given_prompt_dropout if any(context) else objective.prompt_dropout
        return pair, "" if drop_prompt < dropout else self._caption(clip, generator)

    def still(self, clip: int, generator: Generator) -> tuple[Pair, str]:
        """One frame of a clip, any of them, and its prompt."""
        frame = int(torch.randint(self.clips.lengths[clip], (), generator=generator))
        drop_prompt = float(torch.rand((), generator=generator))
        if self.keyframe is None:
            latent_1CHW = self.clips.latent(clip)[frame : frame + 1]
        else:
            latent_1CHW = self.keyframe(clip, frame)[None]
        pair = draw_still(latent_1CHW, self.process, generator)
        dropped = drop_prompt < self.objective.prompt_dropout
        return pair, "" if dropped else self._caption(clip, generator)

    def _shown(self, clip: int, context: Sequence[bool], generator: Generator) -> Pair | None:
        """A clip part of the way through, of which some frames are given."""
        latent_FCHW = self.clips.latent(clip)
        if self.keyframe is None:
            return draw(latent_FCHW, context, self.process, generator)
        keyframe = partial(self.keyframe, clip)
        latent_FCHW, given, keyframes = beside(latent_FCHW, context, keyframe)
        return draw(latent_FCHW, given, self.process, generator, keyframes)

    def _caption(self, clip: int, generator: Generator) -> str:
        """A clip's caption, some of its words replaced by others of the lexicon."""
        caption = self.clips.captions[clip]
        if self.lexicon is None:
            return caption

        def draw() -> float:
            return float(torch.rand((), generator=generator))

        return self.lexicon.paraphrase(caption, self.objective.paraphrase, draw)

    def taught(
        self, order: Sequence[int], seed: int, step: int, cursor: int, *, stills: bool
    ) -> Iterator[tuple[int, Pair, str]]:
        """What clips teach, and how many were drawn by then; UserError if no clip does."""
        generator = Generator().manual_seed(mixed(seed, 1, step))
        last = 0
        for taken, clip in enumerate(_shuffled(order, seed, cursor), start=1):
            if drawn := (self.still if stills else self.draw)(clip, generator):
                last = taken
                yield taken, *drawn
            elif taken - last == MOST_REFUSALS:
                remedy = "give --context-dropout, or the context none, more weight"
                raise UserError(f"{MOST_REFUSALS} clips in a row fit no context: {remedy}")


def draw_batch(
    lessons: Lessons,
    order: Sequence[int],
    *,
    seed: int,
    step: int,
    cursor: int,
    tokens: int,
    tokens_per_frame: int,
    least: int,
    stills: bool = False,
) -> Batch:
    """The batch of one step: clips in shuffled order until ``tokens`` are reached.

    ``order`` are the clips to draw from, ``cursor`` is how many were drawn before. At least
    ``least`` clips are in a batch; with ``stills`` one frame of each, alone. The tokens of a clip
    are those of its visible frames and of its own row. Raises UserError if no clip fits a context.
    """
    taught = lessons.taught(order, seed, step, cursor, stills=stills)
    pairs, prompts = list[Pair](), list[str]()
    taken = size = 0
    while size < tokens or len(pairs) < least:
        taken, pair, prompt = next(taught)
        pairs.append(pair)
        prompts.append(prompt)
        size += _tokens(pair[0], tokens_per_frame)
    return Batch(tuple(pairs), tuple(prompts), taken)


def by_size(clips: Sequence[int], sizes: Sequence[Hashable]) -> list[list[int]]:
    """Clips that can lie in one batch, the most of one size first; `sizes` are of all clips."""
    groups: dict[Hashable, list[int]] = {}
    for clip in clips:
        groups.setdefault(sizes[clip], []).append(clip)
    return sorted(groups.values(), key=len, reverse=True)


def _shuffled(order: Sequence[int], seed: int, cursor: int) -> Iterator[int]:
    """Clips of `order` without end, from place `cursor` on; every pass is shuffled anew."""
    passes, start = divmod(cursor, len(order))
    for epoch in itertools.count(passes):
        generator = Generator().manual_seed(mixed(seed, 0, epoch))
        shuffle = torch.randperm(len(order), generator=generator)[start:].tolist()
        yield from (order[place] for place in shuffle)
        start = 0


def _tokens(state: FrameState, tokens_per_frame: int) -> int:
    """Of a state of one clip: those of its visible frames and of its own row."""
    return (state.lengths[0] + 1) * tokens_per_frame


def split_batch(batch: Batch, tokens: int, tokens_per_frame: int) -> list[list[int]]:
    """Clips of a batch in parts of at most ``tokens`` each (one clip at least)."""
    parts: list[list[int]] = []
    size = 0
    for clip, (state, _) in enumerate(batch.pairs):
        own = _tokens(state, tokens_per_frame)
        if not parts or size + own > tokens:
            parts.append([])
            size = 0
        parts[-1].append(clip)
        size += own
    return parts


def split_held_out(
    groups: Sequence[Hashable], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split clips into those to train on and about a fraction (under 1) to hold out, by number.

    Clips of one group, say the pieces of one file, stay together. Whatever the fraction above 0,
    at least one group is held out if there are two, and at least one is always trained on.
    """
    names = list(dict.fromkeys(groups))
    wanted = max(math.floor(len(names) * fraction + 0.5), fraction > 0)
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[: min(wanted, len(names) - 1)]}
    clips = range(len(groups))
    return [i for i in clips if groups[i] not in held], [i for i in clips if groups[i] in held]
