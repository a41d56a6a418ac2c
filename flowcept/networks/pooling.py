"""Attention pooling: what laws are read from, where frames and clips have no tokens of their own.

A learned query weighs tokens, and what these say is averaged by the weights. A gap is read from the
patches of the frame to its left, the one before the first frame from the patches of that frame, and
the size of a clip from the patches of all its frames.

Shape suffixes: F frames that are evaluated, G frames of all, B clips, P patches per frame, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.layers import zero_init
from flowcept.networks.layout import Layout
from flowcept.networks.stem import Neighbours


class Pool(nn.Module):
    """What the patches of each frame say; at first the mean of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)
        zero_init(self.query)

    def forward(self, x_FPD: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[F, D]``, and the log of the weight ``[F]`` of all patches of a frame."""
        value_FPD = F.silu(self.value(x_FPD))
        score_FP1 = self.query(x_FPD)
        pooled_FD = (score_FP1.softmax(1) * value_FPD).sum(1)
        return pooled_FD, score_FP1.logsumexp((1, 2))


def pooled_by_clip(x_GD: Tensor, score_G: Tensor, clip_G: Tensor, num_clips: int) -> Tensor:
    """The mean of each clip's frames, weighted by softmax over them; 0 without any."""
    most_B = score_G.new_zeros(num_clips)
    most_B = most_B.scatter_reduce(0, clip_G, score_G.detach(), "amax", include_self=False)
    weight_G = (score_G - most_B[clip_G]).exp()
    total_B = score_G.new_zeros(num_clips).index_add(0, clip_G, weight_G)
    share_G = weight_G / total_B[clip_G]
    return x_GD.new_zeros(num_clips, x_GD.shape[1]).index_add(0, clip_G, share_G[:, None] * x_GD)


class Pools(nn.Module):
    """What is said of gaps and of whole clips, float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gap, self.first, self.clip = Pool(width), Pool(width), Pool(width)

    def forward(
        self, x_FPD: Tensor, layout: Layout, neighbours: Neighbours
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of gaps right of frames ``[F, D]``, before first frames and of clips ``[B, D]``.

        Frames that rest still say what they said. A clip without frames says 0.
        """
        num_clips = len(layout.order)
        all_GPD = neighbours.all_frames("pools", x_FPD).float()
        with torch.autocast(x_FPD.device.type, enabled=False):
            gap_FD, _ = self.gap(x_FPD.float())
            first_BD, _ = self.first(all_GPD[layout.first_N])
            say_GD, score_G = self.clip(all_GPD)
            clip_BD = pooled_by_clip(say_GD, score_G, layout.clip_G, num_clips)
        zero_BD = first_BD.new_zeros(num_clips, first_BD.shape[1])
        return gap_FD, zero_BD.index_copy(0, layout.first_clip_N, first_BD), clip_BD
