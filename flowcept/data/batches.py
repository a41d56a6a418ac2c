"""What one training step sees: which clips, in which order, and what is hidden of them.

A batch is a function of its arguments alone, so that training continues exactly.
"""

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowcept.data.contexts import draw_context
from flowcept.errors import UserError
from flowcept.process.forward import Process, Target, draw
from flowcept.process.state import FrameState
from flowcept.settings import ContextMixture, ObjectiveSettings, mixed

MOST_REFUSALS = 2000  # in a row; where one draw in 100 fits, as many happen once in 5e8


class ClipSource(Protocol):
    """What a training step draws from: latents with their captions."""

    captions: list[str]
    lengths: list[int]  # in latents

    def latent(self, i: int) -> Tensor:
        """`latent_FCHW` of clip i, float32."""


@dataclass(frozen=True)
class Batch:
    """Clips part of the way through, ready for one training step."""

    pairs: tuple[tuple[FrameState, Target], ...]  # one clip each
    prompts: tuple[str, ...]
    taken: int  # clips drawn from the data, those that taught nothing included


def draw_batch(
    clips: ClipSource,
    order: Sequence[int],
    *,
    seed: int,
    step: int,
    cursor: int,
    tokens: int,
    tokens_per_frame: int,
    least: int,
    process: Process,
    mixture: ContextMixture,
    objective: ObjectiveSettings,
) -> Batch:
    """The batch of one step: clips in shuffled order until ``tokens`` are reached.

    ``order`` are the clips to draw from, ``cursor`` is how many were drawn before. At least
    ``least`` clips are in a batch. A clip with given frames has its own share without a prompt:
    where the words always say who is seen, nothing is learned from the frames. The tokens of a clip
    are those of its visible frames and of its own row. Raises UserError if no clip fits a context.
    """
    generator = torch.Generator().manual_seed(mixed(seed, 1, step))
    coming = _shuffled(order, seed, cursor)
    pairs: list[tuple[FrameState, Target]] = []
    prompts: list[str] = []
    taken, refused, size = 0, 0, 0
    while size < tokens or len(pairs) < least:
        if refused == MOST_REFUSALS:
            remedy = "give --context-dropout, or the context none, more weight"
            raise UserError(f"{MOST_REFUSALS} clips in a row fit no context: {remedy}")
        clip = next(coming)
        taken += 1
        refused += 1

        drop_prompt, drop_context = torch.rand(2, generator=generator).tolist()
        context: list[bool] | None = [False] * clips.lengths[clip]
        if drop_context >= objective.context_dropout:
            context = draw_context(clips.lengths[clip], mixture, generator)
        if context is None:
            continue
        pair = draw(clips.latent(clip), context, process, generator)
        if pair is None:
            continue

        refused = 0
        given = any(context)
        dropout = objective.given_prompt_dropout if given else objective.prompt_dropout
        prompts.append("" if drop_prompt < dropout else clips.captions[clip])
        pairs.append(pair)
        size += _tokens(pair[0], tokens_per_frame)
    return Batch(tuple(pairs), tuple(prompts), taken)


def _shuffled(order: Sequence[int], seed: int, cursor: int) -> Iterator[int]:
    """Clips of `order` without end, from place `cursor` on; every pass is shuffled anew."""
    passes, start = divmod(cursor, len(order))
    for epoch in itertools.count(passes):
        generator = torch.Generator().manual_seed(mixed(seed, 0, epoch))
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
    n: int, fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """Split `range(n)` into clips to train on and about `fraction` * n clips to hold out.

    Clips of one group, say the pieces of one file, stay together. Whatever the fraction above 0,
    at least one group is held out if there are two, and at least one is always trained on.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"a held-out share of {fraction} is not possible; give 0 to under 1")
    labels = list(range(n)) if groups is None else list(groups)
    assert len(labels) == n, "one group per clip"
    names = list(dict.fromkeys(labels))
    wanted = max(math.floor(len(names) * fraction + 0.5), fraction > 0)
    count = min(wanted, max(len(names) - 1, 0))

    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[:count]}
    train_clips = [i for i, label in enumerate(labels) if label not in held]
    held_clips = [i for i, label in enumerate(labels) if label in held]
    return train_clips, held_clips
