"""The convolutional stem: latents to patches and back, and what a frame sees of others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures_network import CLIPS, PROMPTS, SMALL, clip

from flowcept.networks.layout import make_layout
from flowcept.networks.resting import Memory
from flowcept.networks.stem import Neighbours, pixel_shuffle, pixel_unshuffle, shrinking
from flowcept.networks.transformer import Transformer
from flowcept.process import state as frames


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_squares_become_channels_and_back(factor: int) -> None:
    x_FHWC = torch.randn(2, 2 * factor, 3 * factor, 5)
    squares_FHWC = pixel_unshuffle(x_FHWC, factor)
    assert squares_FHWC.shape == (2, 2, 3, factor * factor * 5)
    square_C = x_FHWC[1, factor : 2 * factor, 2 * factor : 3 * factor].flatten()
    assert torch.equal(squares_FHWC[1, 1, 2], square_C)
    assert torch.equal(pixel_shuffle(squares_FHWC, factor), x_FHWC)


@pytest.mark.parametrize(("patch", "factors"), [(1, [1]), (2, [2]), (3, [3]), (8, [2, 2, 2])])
def test_cells_become_patches_of_any_size(patch: int, factors: list[int]) -> None:
    assert shrinking(patch) == factors
    config = replace(SMALL, height=2 * patch, width=patch, patch=patch)
    assert config.grid == (2, 1)
    net = Transformer(config, shift=1.0).eval()
    state = clip(3, 0)
    state = replace(state, latent_FCHW=torch.randn(3, 3, 2 * patch, patch))
    with torch.no_grad():
        net.stem.velocity.weight.normal_()
        velocity_FCHW = net(state, PROMPTS[0]).velocity_FCHW
    assert velocity_FCHW.shape == state.latent_FCHW.shape
    assert (velocity_FCHW.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("stem_depth", [0, 1])
def test_convolutions_see_their_frame_and_those_beside_it(stem_depth: int) -> None:
    """With silent transformer blocks a frame's velocity is its own, edge to edge.

    Each block of the stem looks one visible frame further, never into another clip.
    """
    torch.manual_seed(0)
    net = Transformer(replace(SMALL, stem_depth=stem_depth), shift=1.0).eval()
    with torch.no_grad():
        for parameter in net.stem.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    state = frames.concat([CLIPS[0], CLIPS[1], CLIPS[2]])
    prompt = frames.concat([PROMPTS[0], PROMPTS[1], PROMPTS[2]])
    before = net(state, prompt).velocity_FCHW
    for changed in range(sum(state.lengths)):
        changed_FCHW = state.latent_FCHW.clone()
        changed_FCHW[changed] += 1
        after = net(replace(state, latent_FCHW=changed_FCHW), prompt).velocity_FCHW
        reach = 2 * stem_depth * len(net.stem.factors)
        differs = (before != after).flatten(1)
        for frame, own in enumerate(state.clip_F):
            seen = own == state.clip_F[changed] and abs(frame - changed) <= reach
            assert differs[frame].all() if seen else not differs[frame].any()


def test_neighbours_hold_what_lies_beside_in_the_same_clip() -> None:
    neighbours = Neighbours.of(make_layout([1, 2, 3], [1] * 3, 0), None)
    x_FHWC = torch.arange(1.0, 7.0)[:, None, None, None]
    for start, stop in [(0, 6), (0, 2), (2, 4), (3, 6), (5, 6)]:
        rows = slice(start, stop)
        before, after = neighbours.beside(x_FHWC, rows).flatten(1).unbind(1)
        assert before.tolist() == [0, 0, 2, 0, 4, 5][rows]
        assert after.tolist() == [0, 3, 0, 5, 6, 0][rows]


def test_neighbours_that_rest_hold_what_they_held() -> None:
    """The second frame of three is evaluated again, those beside it are remembered."""
    memory = Memory()
    memory.enter(["a"], [3])
    x_FHWC = torch.arange(1.0, 4.0)[:, None, None, None]
    Neighbours.of(make_layout([3], [1], 0), memory).all_frames("block", x_FHWC)

    finished = [True, False, True]
    resting = Neighbours.of(make_layout([3], [1], 0, finished, resting=True), memory)
    all_FHWC = resting.all_frames("block", torch.full((1, 1, 1, 1), 9.0))
    assert all_FHWC.flatten().tolist() == [1, 9, 3]
    assert resting.beside(all_FHWC, slice(0, 1)).flatten().tolist() == [1, 3]
