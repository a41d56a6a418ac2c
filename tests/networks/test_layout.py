"""Who is where in a pack: orders and their inverses, who is evaluated, who lies beside whom."""

from __future__ import annotations

import pytest
import torch
from fake_device import FakeDevice
from fixtures_network import CLIPS, ORDER, PROMPTS, clip_mask, prompt_mask

from flowcept.networks.attention import Plan
from flowcept.networks.in_between import between
from flowcept.networks.layout import (
    attention_plan,
    evaluation_order,
    make_layout,
    prompt_plan,
    runs_of,
    to_device,
)
from flowcept.process import state as frames

LENGTHS = [state.lengths[0] for state in CLIPS]  # 4, 1, 6, 0, 4
TOKENS = [one.lengths[0] for one in PROMPTS]  # 3, 2, 3, 5, 2
RESTING = [False, True, True, False, True, *[True, False] * 3, True, True, True, False]


def seen(plan: Plan, num_queries: int, num_keys: int) -> torch.Tensor:
    """Which query row sees which key row, as a mask."""
    query_order = range(num_queries) if plan.query_order is None else plan.query_order.tolist()
    key_order = range(num_keys) if plan.key_order is None else plan.key_order.tolist()
    queries, keys = iter(query_order), iter(key_order)
    mask = torch.zeros(num_queries, num_keys, dtype=torch.bool)
    for group in plan.groups:
        for _ in range(group.runs):
            run = [next(queries) for _ in range(group.queries)]
            mask[
                torch.tensor(run)[:, None], torch.tensor([next(keys) for _ in range(group.keys)])
            ] = True
    assert next(queries, None) is next(keys, None) is None
    return mask


def test_numbers_end_to_end() -> None:
    assert runs_of([2, 0, 3]) == [range(2), range(2, 2), range(2, 5)]


@pytest.mark.parametrize("window", [0, 1, 2, 9])
def test_a_row_sees_its_clip_or_what_is_near(window: int) -> None:
    rows = sum(LENGTHS) + len(LENGTHS)
    mask = clip_mask(LENGTHS, window)
    assert torch.equal(seen(attention_plan(LENGTHS, window), rows, rows), mask)
    awake = [0, 1, 4, 5, 7, 8, 13, 14, 15]
    awake_plan = attention_plan(LENGTHS, window, awake)
    assert torch.equal(seen(awake_plan, len(awake), rows), mask[awake])


def test_a_row_sees_the_prompt_of_its_clip() -> None:
    rows = sum(LENGTHS) + len(LENGTHS)
    assert torch.equal(
        seen(prompt_plan(LENGTHS, TOKENS), rows, sum(TOKENS)), prompt_mask(LENGTHS, TOKENS)
    )


def test_clips_of_equal_shape_lie_next_to_each_other() -> None:
    assert evaluation_order(LENGTHS, TOKENS) == tuple(ORDER)
    layout = make_layout(LENGTHS, TOKENS, 0)
    assert layout.order == tuple(ORDER)
    assert layout.order_B.tolist() == ORDER
    assert layout.order_B[layout.back_B].tolist() == list(range(5))


@pytest.mark.parametrize("resting", [False, True])
def test_numbers_are_those_of_the_frames_that_are_evaluated(resting: bool) -> None:
    """Against the state itself, put into the order of evaluation."""
    state = frames.concat(CLIPS)
    ordered = frames.select(state, ORDER)
    place_F = frames.rows_of(ORDER, torch.arange(sum(LENGTHS)), LENGTHS)
    index_F = torch.cat([torch.arange(length) for length in ordered.lengths])
    awake_F = ~torch.tensor(RESTING)[place_F] if resting else torch.ones_like(ordered.given_F)
    own = awake_F.nonzero().flatten()

    layout = make_layout(LENGTHS, TOKENS, 0, RESTING, resting=resting)
    assert torch.equal(layout.place_F, place_F[own])
    assert torch.equal(layout.clip_R[layout.frame_rows], ordered.clip_F[own])
    assert torch.equal(layout.index_R[layout.frame_rows], index_F[own])
    assert layout.clip_R[layout.clip_rows].tolist() == list(range(5))
    assert layout.index_R[layout.clip_rows].tolist() == [-1] * 5
    assert layout.lengths == tuple(torch.bincount(ordered.clip_F[own], minlength=5).tolist())
    if resting:
        assert torch.equal(layout.awake_F, own)
        rows = [
            row for row, (_, index) in enumerate(all_rows()) if index < 0 or awake_F[frame(row)]
        ]
        assert layout.awake_R.tolist() == rows
    else:
        assert layout.awake_F is layout.awake_R is None


def all_rows() -> list[tuple[int, int]]:
    """Clip, in the order of evaluation, and index of every row; -1 of the clip's own."""
    return [(b, f) for b, clip in enumerate(ORDER) for f in range(-1, LENGTHS[clip])]


def frame(row: int) -> int:
    """Number among all frames of a row that is one."""
    return sum(index >= 0 for _, index in all_rows()[:row])


@pytest.mark.parametrize("resting", [False, True])
def test_rows_are_each_clip_and_then_its_frames(resting: bool) -> None:
    layout = make_layout(LENGTHS, TOKENS, 0, RESTING, resting=resting)
    clips, of_frames = torch.arange(5), 10 + torch.arange(len(layout.place_F))
    rows = layout.rows(clips, of_frames)
    assert torch.equal(rows[layout.clip_rows], clips)
    assert torch.equal(rows[layout.frame_rows], of_frames)
    assert layout.clip_R.tolist() == sorted(layout.clip_R.tolist())


@pytest.mark.parametrize("resting", [False, True])
def test_neighbours_are_the_frames_beside_in_the_same_clip(resting: bool) -> None:
    """Whether those are evaluated or rest."""
    finished = [False, True, False, False, True, False]
    layout = make_layout([3, 0, 1, 2], [1] * 4, 0, finished, resting=resting)
    assert layout.order == (1, 2, 3, 0)  # frames are then [3], [4, 5], [0, 1, 2]
    beside = list(zip(layout.before_F.tolist(), layout.after_F.tolist(), strict=True))
    every = [(-1, -1), (-1, 2), (1, -1), (-1, 4), (3, 5), (4, -1)]
    assert beside == ([every[0], every[2], every[3], every[5]] if resting else every)


@pytest.mark.parametrize("resting", [False, True])
def test_what_flows_between_two_finished_frames(resting: bool) -> None:
    """Of a state whose given frames are the finished ones, as the state itself tells."""
    state = frames.select(frames.concat(CLIPS), [2, 0, 1])
    finished = (~state.flowing_F).tolist()
    layout = make_layout(state.lengths, [1] * 3, 0, finished, resting=resting)
    between_F = torch.zeros(len(finished), dtype=torch.bool)
    between_F[layout.place_F[layout.between_F]] = True
    assert between_F.any()
    assert torch.equal(between_F, between(state))
    assert make_layout(state.lengths, [1] * 3, 0).between_F is None


def test_all_numbers_come_to_a_device_in_one_copy() -> None:
    layout = make_layout(LENGTHS, TOKENS, 1, RESTING, resting=True)
    with FakeDevice() as device:
        moved = to_device(layout, torch.device("cuda"))
        assert len(device.into) == 1
        assert moved.within.groups == layout.within.groups
        for one, other in ((moved, layout), (moved.within, layout.within)):
            for name, value in vars(other).items():
                if isinstance(value, torch.Tensor):
                    assert getattr(one, name).is_cuda
                    assert torch.equal(getattr(one, name).cpu(), value)
