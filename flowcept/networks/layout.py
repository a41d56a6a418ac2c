"""Who is where in a pack of clips: all that follows from lengths alone, made once an evaluation.

A *row* is a frame: its frame token, then its patches. Before the frames of a clip goes one more
row, the clip's own. Clips of equal shape are evaluated next to each other, so that they attend in
one call without being copied; the layout puts them there and back.

Shape suffixes: B clips, F frames that are evaluated, R rows of those and of the clips.
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
    after_R: Tensor  # number, among all rows, of the one after each in its clip; -1: none
    clip_R: Tensor  # number of each row's clip
    index_R: Tensor  # index among the visible frames of the clip; -1 of the clip's own row
    clip_rows: Tensor
    frame_rows: Tensor
    row_order: Tensor  # brings clips' rows, then frames', into the order of rows
    awake_F: Tensor | None  # numbers, among all, of the frames that are evaluated; None: all are
    awake_R: Tensor | None  # the same of rows
    between_F: Tensor | None  # flowing frames between two finished ones; None: not known here
    within: Plan
    to_prompt: Plan

    def rows(self, of_clips: Tensor, of_frames: Tensor) -> Tensor:
        """Values of rows, from those of clips and of frames."""
        return torch.cat([of_clips, of_frames])[self.row_order]


T = TypeVar("T", bound=Any)  # a record of numbers and plans


def to_device(record: T, device: torch.device) -> T:
    """The same on a device, where all numbers come in one copy."""
    if device.type == "cpu":
        return record
    found: list[Tensor] = []

    def take(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _with_tensors(record, take)
    moved = iter(torch.cat(found).to(device).split([len(x) for x in found]))
    return _with_tensors(record, lambda _: next(moved))


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
) -> Layout:
    """The layout, on the CPU, of clips of so many visible frames and prompt tokens.

    ``window``: a frame sees those within this distance, 0 for all. ``finished`` tells of every
    frame of the state whether it does not flow; where they are ``resting`` those are not evaluated.
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
    rows = [(b, f) for b, frames in enumerate(awake) for f in (-1, *frames)]
    clip_rows = [row for row, (_, f) in enumerate(rows) if f < 0]
    frame_rows = [row for row, (_, f) in enumerate(rows) if f >= 0]
    awake_rows = [first[b] + b + 1 + f for b, f in rows]
    after_rows = [first[b] + b + 2 + f if f + 1 < ordered[b] else -1 for b, f in rows]

    frames = [(b, f) for b, f in rows if f >= 0]
    before = [first[b] + f - 1 if f > 0 else -1 for b, f in frames]
    after = [first[b] + f + 1 if f + 1 < ordered[b] else -1 for b, f in frames]
    between = [number for number, (b, f) in enumerate(frames) if _is_between(done[b], f)]
    return Layout(
        order=order,
        lengths=counts,
        order_B=integers(order),
        back_B=inverse(order),
        place_F=integers([starts[order[b]] + f for b, f in frames]),
        before_F=integers(before),
        after_F=integers(after),
        after_R=integers(after_rows),
        clip_R=integers([b for b, _ in rows]),
        index_R=integers([f for _, f in rows]),
        clip_rows=integers(clip_rows),
        frame_rows=integers(frame_rows),
        row_order=inverse([*clip_rows, *frame_rows]),
        awake_F=integers([first[b] + f for b, f in frames]) if resting else None,
        awake_R=integers(awake_rows) if resting else None,
        between_F=None if finished is None else integers(between),
        within=attention_plan(ordered, window, awake_rows if resting else None),
        to_prompt=prompt_plan(counts, [prompt_lengths[b] for b in order]),
    )


def _is_between(finished: Sequence[bool], frame: int) -> bool:
    """Whether a frame flows while those before and after it in its clip are finished."""
    inside = 0 < frame < len(finished) - 1
    return inside and not finished[frame] and finished[frame - 1] and finished[frame + 1]


def attention_plan(lengths: Sequence[int], window: int, awake: Sequence[int] | None = None) -> Plan:
    """Who sees whom among rows: within a clip all, or frames within ``window`` and the clip row.

    The clip row sees its whole clip. Queries are of all rows, or of the ``awake`` ones, ascending;
    keys are of all.
    """
    queries: list[Sequence[int]] = []
    keys: list[Sequence[int]] = []
    for rows in runs_of([length + 1 for length in lengths]):
        clip_row, *frame_rows = rows
        if not window or len(frame_rows) <= window + 1:
            queries.append(rows)
            keys.append(rows)
            continue
        queries += [[row] for row in rows]
        keys.append(rows)
        for frame in range(len(frame_rows)):
            near = frame_rows[max(frame - window, 0) : frame + window + 1]
            keys.append([clip_row, *near])
    if awake is not None:
        number = {row: i for i, row in enumerate(awake)}
        asking = [[number[row] for row in run if row in number] for run in queries]
        queries = [run for run in asking if run]
        keys = [seen for seen, run in zip(keys, asking, strict=True) if run]
    return make_plan(queries, keys)


def prompt_plan(lengths: Sequence[int], prompt_lengths: Sequence[int]) -> Plan:
    """The rows of each clip, so many and one, see the tokens of its prompt."""
    return make_plan(runs_of([n + 1 for n in lengths]), runs_of(prompt_lengths))


def runs_of(lengths: Sequence[int]) -> list[range]:
    """Numbers of what lies end to end, a run for each length."""
    ends = list(itertools.accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
