"""The algebra of packed states."""

from __future__ import annotations

import pytest
import torch

from flowcept.process import state as frames
from flowcept.process.state import FrameState, Role


def make(lengths: tuple[int, ...], offset: float = 0.0) -> FrameState:
    count, clips = sum(lengths), len(lengths)
    return FrameState(
        latent_FCHW=torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4) + offset,
        time_F=torch.linspace(0, 1, count) if count else torch.zeros(0),
        role_F=torch.arange(count) % 3,
        tau_B=torch.arange(clips) * 0.25 + offset,
        open_first_B=torch.arange(clips) % 2 == 0,
        lengths=lengths,
    )


def same(a: FrameState, b: FrameState) -> bool:
    names = ("latent_FCHW", "time_F", "role_F", "tau_B", "open_first_B")
    equal = all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
    return equal and a.lengths == b.lengths


def test_frames_know_their_clip() -> None:
    state = make((2, 0, 3))
    assert state.clip_F.tolist() == [0, 0, 2, 2, 2]
    assert state.count_B(state.role_F == 1).tolist() == [1, 0, 1]


def test_flowing_and_open_follow_role_and_time() -> None:
    state = FrameState(
        torch.zeros(4, 1, 1, 1),
        torch.tensor([0.0, 1.0, 1.0, 1.0]),
        torch.tensor([Role.GENERATED, Role.GENERATED, Role.ACTIVE, Role.PASSIVE]),
        torch.zeros(1),
        torch.tensor([True]),
        (4,),
    )
    assert state.flowing_F.tolist() == [True, False, False, False]
    assert state.open_F.tolist() == [True, True, True, False]


def test_select_takes_concat_apart() -> None:
    parts = [make((2,)), make((0,), 10), make((3,), 20)]
    whole = frames.concat(parts)
    for clip, part in enumerate(parts):
        assert same(frames.select(whole, [clip]), part)
    assert same(frames.concat([frames.select(whole, [0]), frames.select(whole, [1, 2])]), whole)
    swapped = frames.select(whole, [2, 0])
    assert swapped.latent_FCHW[:, 0, 0, 0].tolist() == [20, 21, 22, 0, 1]
    assert swapped.tau_B.tolist() == [20, 0]


def test_insert_puts_new_frames_into_their_gaps() -> None:
    state = make((2, 0, 1))
    counts = [[1, 0, 2], [3], [0, 0]]
    new = torch.arange(100, 106).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4)
    grown = frames.insert(state, counts, new, frames.insertion_rows(state.lengths, counts))
    assert grown.lengths == (5, 3, 1)
    assert grown.latent_FCHW[:, 0, 0, 0].tolist() == [100, 0, 1, 101, 102, 103, 104, 105, 2]
    assert grown.time_F.tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0, 1]
    assert grown.role_F.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert torch.equal(grown.tau_B, state.tau_B)


def test_shapes_are_checked() -> None:
    good = make((2, 1))
    with pytest.raises(AssertionError):
        FrameState(good.latent_FCHW, good.time_F, good.role_F, good.tau_B, good.open_first_B, (2,))
    with pytest.raises(AssertionError):
        frames.insertion_rows((2,), [[0, 1]])


def test_to_keeps_everything() -> None:
    state = make((2, 1))
    assert same(state.to("cpu"), state)
