"""The in-between prior: what a frame between two finished ones may look like, from those alone.

A frame just inserted is noise, so that all that is known of how it looks stands beside it; to carry
that along a motion takes more convolutions than a look at the same place. What the network takes
for the clean frame is pulled towards this guess, so far as flow time and place say that it can be
trusted.

Shape suffixes: F frames between two finished ones, C H W channels and size of a latent, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.layers import chunked, layer_norm, zero_init
from flowcept.networks.stem import convolve
from flowcept.process.state import FrameState


def between(state: FrameState) -> Tensor:
    """Flowing frames of which both neighbours in their clip are finished, ``[F]`` bool."""
    finished_F = F.pad((state.time_F >= 1).long(), (1, 1)).bool()
    clip_F = F.pad(state.clip_F, (1, 1), value=-1)
    both_F = finished_F[:-2] & finished_F[2:]
    return state.flowing_F & both_F & (clip_F[:-2] == clip_F[2:])


class Residual(nn.Module):
    """Two convolutions within each frame, added to what it shows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        zero_init(self.second)

    def forward(self, x_FHWC: Tensor) -> Tensor:
        return x_FHWC + convolve(self.second, F.silu(convolve(self.first, layer_norm(x_FHWC))))


class InBetween(nn.Module):
    """A guess of the clean frame, and how far to trust it."""

    def __init__(self, latent_channels: int, channels: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2 * latent_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(depth)))
        self.last = nn.Conv2d(channels, latent_channels, 3, padding=1)
        self.where = nn.Linear(channels, 1)
        self.when = nn.Linear(hidden, 1, bias=False)
        zero_init(self.where, self.when)

    def guess(self, before_FCHW: Tensor, after_FCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent of each frame, and ``[F, 1, H, W]`` how far to trust it where."""
        x_FHWC = convolve(self.first, torch.cat([before_FCHW, after_FCHW], 1).permute(0, 2, 3, 1))
        x_FHWC = layer_norm(self.blocks(x_FHWC))
        latent_FHWC, trust_FHW1 = convolve(self.last, x_FHWC), self.where(x_FHWC)
        return latent_FHWC.permute(0, 3, 1, 2).float(), trust_FHW1.permute(0, 3, 1, 2).float()

    def forward(
        self,
        velocity_FCHW: Tensor,
        latent_FCHW: Tensor,
        progress_F: Tensor,
        condition_FD: Tensor,
        before_FCHW: Tensor,
        after_FCHW: Tensor,
    ) -> Tensor:
        """The velocity of frames at ``latent = (1 - s) noise + s data``, ``s`` their progress."""

        def work(rows: slice) -> Tensor:
            guess_FCHW, trust_F1HW = self.guess(before_FCHW[rows], after_FCHW[rows])
            trust_F1HW = trust_F1HW + self.when(condition_FD[rows])[..., None, None].float()
            left_F111 = (1 - progress_F[rows])[:, None, None, None]
            clean_FCHW = latent_FCHW[rows] + left_F111 * velocity_FCHW[rows]
            pull_FCHW: Tensor = trust_F1HW * (guess_FCHW - clean_FCHW)
            return velocity_FCHW[rows] + pull_FCHW

        widest = self.last.in_channels  # features of each place
        return chunked(work, velocity_FCHW[:, :1].expand(-1, widest, -1, -1))
