"""Who is where in a pack of clips: all that follows from lengths alone, made once an evaluation.

A *row* is a frame. Where clips have rows of their own, each stands before the frames of its clip.
Clips of equal shape are evaluated next to each other, so that they attend in one call without being
copied; the layout puts them there and back.

Shape suffixes: B clips, F frames that are evaluated, R rows of those and of the clips; G all
frames, those that rest too; N clips that have any.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowcept.networks.attention import Plan, integers, inverse, make_plan


@dataclass(frozen=True)
class Layout:
    """Numbers of clips, frames and rows, int64, all in the order of evaluation.

    Frames and rows are those that are evaluated: where frames rest, the others.
    """

    order: tuple[int, ...]  # clips of the state, as they are evaluated
    lengths: tuple[int, ...]  # frames of each that are evaluated
    order_B: Tensor  # ``order`` as a tensor
    back_B: Tensor  # its inverse
    place_F: Tensor  # place of each frame in the state
    before_F: Tensor  # number, among all frames, of the one before it in its clip; -1: none
    after_F: Tensor  # the same of the one after it
    clip_R: Tensor  # number of each row's clip
    index_R: Tensor  # index among the visible frames of the clip; -1 of the clip's own row
    first_N: Tensor  # number, among all frames, of the first one of each clip that has any
    first_clip_N: Tensor  # number of that clip
    clip_G: Tensor  # number of each frame's clip, of all frames
    clip_rows: Tensor | None  # None: clips have no rows of their own, rows are frames
    frame_rows: Tensor | None
    row_order: Tensor | None  # brings clips' rows, then frames', into the order of rows
    awake_F: Tensor | None  # numbers, among all, of the frames that are evaluated; None: all are
    awake_R: Tensor | None  # the same of rows
    between_F: Tensor | None  # flowing frames between two finished ones; None: not known here
    within: Plan
    to_prompt: Plan

    def rows(self, of_clips: Tensor, of_frames: Tensor) -> Tensor:
        """Values of rows, from those of clips, where these have any, and of frames."""
        if self.row_order is None:
            return of_frames
        return torch.cat([of_clips, of_frames])[self.row_order]

    def frames(self, of_rows: Tensor) -> Tensor:
        """Values of frames, from those of rows."""
        return of_rows if self.frame_rows is None else of_rows[self.frame_rows]


def to_device(layout: Layout, device: torch.device) -> Layout:
    """The same on a device, where all numbers come in one copy."""
    if device.type == "cpu":
        return layout
    found: list[Tensor] = []

    def take(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _with_tensors(layout, take)
    moved = iter(torch.cat(found).to(device).split([len(x) for x in found]))
    return _with_tensors(layout, lambda _: next(moved))


T = TypeVar("T", Layout, Plan)


def _with_tensors(record: T, change: Callable[[Tensor], Tensor]) -> T:
    """The record with each of its tensors changed, those of its plans too, always in one order."""
    changed: dict[str, Any] = {}
    for one in fields(record):
        value = getattr(record, one.name)
        if isinstance(value, Tensor):
            changed[one.name] = change(value)
        elif isinstance(value, Plan):
            changed[one.name] = _with_tensors(value, change)
    return replace(record, **changed)


def evaluation_order(lengths: Sequence[int], prompt_lengths: Sequence[int]) -> tuple[int, ...]:
    """The clips, those of equal shape next to each other."""
    clips = range(len(lengths))
    return tuple(sorted(clips, key=lambda b: (lengths[b], prompt_lengths[b])))


def make_layout(
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    window: int,
    finished: Sequence[bool] | None = None,
    *,
    resting: bool = False,
    clip_rows: bool = True,
) -> Layout:
    """The layout, on the CPU, of clips of so many visible frames and prompt tokens.

    ``window``: a frame sees those within this distance, 0 for all. ``finished`` tells of every
    frame of the state whether it does not flow; where they are ``resting`` those are not evaluated.
    ``clip_rows``: whether each clip has a row of its own.
    """
    order = evaluation_order(lengths, prompt_lengths)
    starts = [0, *itertools.accumulate(lengths)]  # of clips among the frames of the state
    ordered = [lengths[b] for b in order]
    first = [0, *itertools.accumulate(ordered)]  # of clips among all frames as they are evaluated
    done = [[False] * length for length in ordered]
    if finished is not None:
        done = [list(finished[starts[b] : starts[b + 1]]) for b in order]

    # A row is clip b of the order and frame f of that clip, or -1 for the clip's own row.
    awake = [[f for f, one in enumerate(clip) if not (resting and one)] for clip in done]
    counts = tuple(map(len, awake))
    own = (-1,) if clip_rows else ()
    rows = [(b, f) for b, frames in enumerate(awake) for f in (*own, *frames)]
    of_clips = [row for row, (_, f) in enumerate(rows) if f < 0]
    of_frames = [row for row, (_, f) in enumerate(rows) if f >= 0]
    awake_rows = [first[b] + f + len(own) * (b + 1) for b, f in rows]

    frames = [(b, f) for b, f in rows if f >= 0]
    before = [first[b] + f - 1 if f > 0 else -1 for b, f in frames]
    after = [first[b] + f + 1 if f + 1 < ordered[b] else -1 for b, f in frames]
    filled = [b for b, length in enumerate(ordered) if length]
    between = [number for number, (b, f) in enumerate(frames) if _is_between(done[b], f)]
    return Layout(
        order=order,
        lengths=counts,
        order_B=integers(order),
        back_B=inverse(order),
        place_F=integers([starts[order[b]] + f for b, f in frames]),
        before_F=integers(before),
        after_F=integers(after),
        clip_R=integers([b for b, _ in rows]),
        index_R=integers([f for _, f in rows]),
        first_N=integers([first[b] for b in filled]),
        first_clip_N=integers(filled),
        clip_G=integers([b for b, length in enumerate(ordered) for _ in range(length)]),
        clip_rows=integers(of_clips) if clip_rows else None,
        frame_rows=integers(of_frames) if clip_rows else None,
        row_order=inverse([*of_clips, *of_frames]) if clip_rows else None,
        awake_F=integers([first[b] + f for b, f in frames]) if resting else None,
        awake_R=integers(awake_rows) if resting else None,
        between_F=None if finished is None else integers(between),
        within=attention_plan(
            ordered, window, awake_rows if resting else None, clip_rows=clip_rows
        ),
        to_prompt=prompt_plan(counts, [prompt_lengths[b] for b in order], clip_rows=clip_rows),
    )


def _is_between(finished: Sequence[bool], frame: int) -> bool:
    """Whether a frame flows while those before and after it in its clip are finished."""
    inside = 0 < frame < len(finished) - 1
    return inside and not finished[frame] and finished[frame - 1] and finished[frame + 1]


def attention_plan(
    lengths: Sequence[int],
    window: int,
    awake: Sequence[int] | None = None,
    *,
    clip_rows: bool = True,
) -> Plan:
    """Who sees whom among rows: within a clip all, or frames within ``window`` and the clip row.

    The clip row, where there is one, sees its whole clip. Queries are of all rows, or of the
    ``awake`` ones, ascending; keys are of all.
    """
    queries: list[Sequence[int]] = []
    keys: list[Sequence[int]] = []
    for rows in runs_of([length + clip_rows for length in lengths]):
        own, frame_rows = rows[:clip_rows], rows[clip_rows:]
        if not window or len(frame_rows) <= window + 1:
            queries.append(rows)
            keys.append(rows)
            continue
        queries += [[row] for row in rows]
        keys += [rows] * len(own)
        for frame in range(len(frame_rows)):
            near = frame_rows[max(frame - window, 0) : frame + window + 1]
            keys.append([*own, *near])
    if awake is not None:
        number = {row: i for i, row in enumerate(awake)}
        queries = [[number[row] for row in run if row in number] for run in queries]
    return make_plan(queries, keys)


def prompt_plan(
    lengths: Sequence[int], prompt_lengths: Sequence[int], *, clip_rows: bool = True
) -> Plan:
    """The rows of each clip, its frames and its own, see the tokens of its prompt."""
    return make_plan(runs_of([n + clip_rows for n in lengths]), runs_of(prompt_lengths))


def runs_of(lengths: Sequence[int]) -> list[range]:
    """Numbers of what lies end to end, a run for each length."""
    ends = list(itertools.accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
