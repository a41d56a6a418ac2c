"""Who is where in a pack of clips: all that follows from lengths alone, made once an evaluation.

A *row* is a frame: its frame token, then its patches. Before the frames of a clip goes one more
row, the clip's own. Clips of equal shape are evaluated next to each other, so that they attend in
one call without being copied; the layout puts them there and back.

Shape suffixes: F frames that are evaluated, R rows of those and of the clips.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcept.networks.attention import Plan, PlanRows, on_device, plan_rows


@dataclass(frozen=True)
class Layout:
    """Numbers of clips, frames and rows, on the device; frames and rows in the order of evaluation.

    Where frames rest, ``frame_F``, ``clip_F``, ``index_F`` and rows are of the others.
    """

    order: tuple[int, ...]  # clips of the state, as they are evaluated
    lengths: tuple[int, ...]  # frames evaluated of each clip, in that order
    whole_lengths: tuple[int, ...]  # all its visible frames
    clip_order: Tensor | None  # ``order`` as a tensor; None: as they are
    clip_back: Tensor | None  # its inverse
    frame_F: Tensor | None  # the place in the state of each frame that is evaluated; None: all
    clip_F: Tensor  # number of its clip
    index_F: Tensor  # index among the visible frames of its clip
    before_F: Tensor  # bool: a visible frame of the clip lies before it, over all frames
    after_F: Tensor  # the same after it
    clip_rows: Tensor
    frame_rows: Tensor
    row_order: Tensor  # brings clips' rows, then frames', into the order of rows
    awake_F: Tensor | None  # numbers among all frames of those evaluated; None: all are
    awake_R: Tensor | None  # the same of rows
    within: Plan
    to_prompt: Plan

    def rows(self, of_clips: Tensor, of_frames: Tensor) -> Tensor:
        """Values of rows, from those of clips and of frames."""
        return torch.cat([of_clips, of_frames])[self.row_order]


def evaluation_order(lengths: Sequence[int], prompt_lengths: Sequence[int]) -> tuple[int, ...]:
    """The clips, those of equal shape next to each other."""
    clips = range(len(lengths))
    return tuple(sorted(clips, key=lambda b: (lengths[b], prompt_lengths[b])))


def make_layout(
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    window: int,
    resting: Sequence[bool] | None,
    device: torch.device,
) -> Layout:
    """The layout of clips of so many visible frames and prompt tokens, in the order of the state.

    ``window``: a frame sees those within this distance, 0 for all. ``resting`` tells for every
    frame of the state whether it rests; None where none does.
    """
    order = evaluation_order(lengths, prompt_lengths)
    starts = [0, *itertools.accumulate(lengths)]
    place = [starts[b] + f for b in order for f in range(lengths[b])]  # in the state
    index = [f for b in order for f in range(lengths[b])]
    owner = [number for number, b in enumerate(order) for _ in range(lengths[b])]
    whole = tuple(lengths[b] for b in order)

    awake = [f for f, one in enumerate(place) if resting is None or not resting[one]]
    counts = [0] * len(order)
    for frame in awake:
        counts[owner[frame]] += 1
    runs = runs_of([count + 1 for count in counts])
    clip_rows = [run.start for run in runs]
    frame_rows = [row for run in runs for row in run[1:]]
    own_rows = runs_of([length + 1 for length in whole])  # among all rows
    row_of = [row for run in own_rows for row in run[1:]]
    awake_rows = sorted([run.start for run in own_rows] + [row_of[frame] for frame in awake])

    within = attention_rows(whole, window, None if resting is None else awake_rows)
    to_prompt = prompt_rows(counts, [prompt_lengths[b] for b in order])
    own_place = [place[frame] for frame in awake]
    moved = own_place != list(range(len(place)))
    sorted_clips = list(order) == list(range(len(order)))
    found = on_device(
        {
            "clip order": None if sorted_clips else order,
            "clip back": None if sorted_clips else _inverse(order),
            "frame": own_place if moved else None,
            "clip": [owner[frame] for frame in awake],
            "index": [index[frame] for frame in awake],
            "before": [int(f > 0) for f in index],
            "after": [int(f + 1 < whole[b]) for f, b in zip(index, owner, strict=True)],
            "clip rows": clip_rows,
            "frame rows": frame_rows,
            "row order": _inverse([*clip_rows, *frame_rows]),
            "awake": None if resting is None else awake,
            "awake rows": None if resting is None else awake_rows,
            **within.lists("within"),
            **to_prompt.lists("to prompt"),
        },
        device,
    )
    return Layout(
        order=order,
        lengths=tuple(counts),
        whole_lengths=whole,
        clip_order=found.get("clip order"),
        clip_back=found.get("clip back"),
        frame_F=found.get("frame"),
        clip_F=found["clip"],
        index_F=found["index"],
        before_F=found["before"].bool(),
        after_F=found["after"].bool(),
        clip_rows=found["clip rows"],
        frame_rows=found["frame rows"],
        row_order=found["row order"],
        awake_F=found.get("awake"),
        awake_R=found.get("awake rows"),
        within=within.plan("within", found),
        to_prompt=to_prompt.plan("to prompt", found),
    )


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def attention_rows(
    lengths: Sequence[int], window: int, awake: Sequence[int] | None = None
) -> PlanRows:
    """Who sees whom among rows: within a clip all, or frames within ``window`` and the clip row.

    The clip row sees its whole clip. Queries are of all rows, or of the ``awake`` ones, ascending;
    keys are of all.
    """
    queries: list[list[int]] = []
    keys: list[list[int]] = []
    for run in runs_of([length + 1 for length in lengths]):
        clip_row, *frame_rows = rows = list(run)
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
    return plan_rows(queries, keys)


def prompt_rows(lengths: Sequence[int], prompt_lengths: Sequence[int]) -> PlanRows:
    """The rows of each clip, so many and one, see the tokens of its prompt."""
    return plan_rows(runs_of([n + 1 for n in lengths]), runs_of(prompt_lengths))


def runs_of(lengths: Sequence[int]) -> list[range]:
    """Numbers of what lies end to end, a run for each length."""
    ends = list(itertools.accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
