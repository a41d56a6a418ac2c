"""The head that says how the counts of gaps go together."""

from __future__ import annotations

import pytest
import torch
from fixtures_network import CLIPS, PROMPTS, close, network, run
from torch import Tensor

from flowcept.networks.compositions import Compositions
from flowcept.networks.transformer import Transformer
from flowcept.process import state as frames
from flowcept.process.compositions import cross_entropy_sum
from flowcept.process.state import Prediction


@pytest.fixture(scope="module")
def net() -> Transformer:
    return network(compositions=5)


def features(prediction: Prediction) -> Tensor:
    assert prediction.gap_BG2H is not None
    return prediction.gap_BG2H


def test_features_are_of_each_clip_alone_in_any_order(net: Transformer) -> None:
    order = [4, 2, 0, 3, 1]
    packed = features(run(net, order))
    assert packed.shape == (5, 1 + max(len(clip.time_F) for clip in CLIPS), 10)
    for row, b in enumerate(order):
        gaps = CLIPS[b].lengths[0] + 1
        close(packed[row, :gaps], features(run(net, [b]))[0])


def test_a_gap_is_told_of_the_open_ones_right_of_it(generator: torch.Generator) -> None:
    head = Compositions(6, 3, 4)
    token_FD = torch.randn(4, 6, generator=generator)
    clip_BD = torch.randn(1, 6, generator=generator)
    is_open, first = torch.tensor([True, False, True, True]), torch.tensor([True])

    def said(changed: int) -> Tensor:
        moved_FD = token_FD.clone()
        moved_FD[changed] += 1
        return head(moved_FD, clip_BD, is_open, first, (4,))[0, :, :3]

    plain = head(token_FD, clip_BD, is_open, first, (4,))[0, :, :3]
    seen = [
        [gap for gap in range(5) if not torch.equal(said(f)[gap], plain[gap])] for f in range(4)
    ]
    # Gap f + 1 lies right of frame f. The gap after frame 1 is closed: no other hears of it.
    assert seen == [[0, 1], [2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_every_weight_of_the_head_learns(net: Transformer) -> None:
    state = frames.concat([CLIPS[b] for b in (0, 2, 4)])
    state = frames.changed(state, lambda name, x: x * 0 + 0.5 if name == "tau_B" else x)
    prediction = net(state, frames.concat([PROMPTS[b] for b in (0, 2, 4)]))
    missing_F = (state.open_F * torch.arange(len(state.time_F)) % 3).float()
    loss = cross_entropy_sum(prediction, state, missing_F, state.open_first_B.float())
    assert net.compositions is not None
    gradients = torch.autograd.grad(loss, list(net.compositions.parameters()))
    assert all(float(g.abs().sum()) > 0 for g in gradients)


def test_a_fresh_head_knows_nothing_beyond_the_means() -> None:
    head = Compositions(6, 3, 4)
    assert not head.tables.count_HK.any()
    assert [tuple(table.shape) for table in vars(head.tables).values()] == [(5, 3), (5, 3), (3, 5)]


def test_a_law_that_grows_keeps_what_it_knows(net: Transformer) -> None:
    grown = network(compositions=5)
    before = grown.compositions.tables
    grown.grow_law(12)
    after = grown.compositions.tables
    assert after.largest == 12
    assert torch.equal(after.left_KH[:10], before.left_KH)
    assert torch.equal(after.left_KH[10:], before.left_KH[-1:].expand(3, -1))
    assert torch.equal(after.count_HK[:, :10], before.count_HK)
    assert not after.count_HK[:, 10:].any()
    close(features(run(grown, [0, 2])), features(run(net, [0, 2])))
