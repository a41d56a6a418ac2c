"""Attention pooling against sums written out, frame by frame and clip by clip."""

from __future__ import annotations

import torch
from fixtures_network import close
from torch.nn import functional as F

from flowcept.networks.layout import make_layout
from flowcept.networks.pooling import Pool, Pools, pooled_by_clip
from flowcept.networks.stem import Neighbours

LENGTHS = (3, 0, 5, 1)  # of the order in which they are evaluated: 0, 1, 3, 5


def opened(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def test_a_pool_begins_as_a_mean() -> None:
    pool, x_FPD = Pool(8), torch.randn(5, 4, 8)
    says_FD, score_F = pool(x_FPD)
    close(says_FD, F.silu(pool.value(x_FPD)).mean(1))
    assert score_F.unique().numel() == 1, "no frame counts more than another"


def test_weights_are_softmax_over_what_is_pooled() -> None:
    """Of the patches of a frame, and of all patches of a clip."""
    pools, lengths = opened(Pools(8)), sorted(LENGTHS)
    x_FPD = torch.randn(sum(lengths), 4, 8)
    layout = make_layout(LENGTHS, [1] * 4, 0, clip_rows=False)
    gap_FD, first_BD, clip_BD = pools(x_FPD, layout, Neighbours.of(layout, None))

    def written_out(pool: Pool, x_TD: torch.Tensor) -> torch.Tensor:
        weight_T1 = pool.query(x_TD).softmax(0)
        return (weight_T1 * F.silu(pool.value(x_TD))).sum(0)

    for says_D, x_PD in zip(gap_FD, x_FPD, strict=True):
        close(says_D, written_out(pools.gap, x_PD))
    for b, x_FPD_of_clip in enumerate(x_FPD.split(lengths)):
        if lengths[b]:
            close(first_BD[b], written_out(pools.first, x_FPD_of_clip[0]))
            close(clip_BD[b], written_out(pools.clip, x_FPD_of_clip.flatten(0, 1)))
        else:
            assert not first_BD[b].any()
            assert not clip_BD[b].any()


def test_weights_of_any_size_are_finite() -> None:
    """A clip whose scores all lie far below another's is still pooled by its own."""
    score_G = torch.tensor([500.0, 500.0, -500.0, -501.0])
    pooled_BD = pooled_by_clip(torch.eye(4), score_G, torch.tensor([0, 0, 2, 2]), 3)
    share = torch.tensor([0.0, -1.0]).softmax(0)
    close(pooled_BD[0], torch.tensor([0.5, 0.5, 0, 0]))
    close(pooled_BD[2], torch.tensor([0, 0, *share.tolist()]))
    assert not pooled_BD[1].any()
