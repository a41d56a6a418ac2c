"""The head that tells how the counts of a clip's gaps go together.

Shape suffixes: B clips, F frames, G gaps of a clip, D width of a token, H features, 2H features of
a gap and what each frame in it adds to those of the gaps right of it.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from flowcept.networks.layers import zero_init
from flowcept.process.compositions import by_clip, from_here_on
from flowcept.process.state import GapTables


class Compositions(nn.Module):
    """Features of every gap, and the tables to read them with."""

    def __init__(self, width: int, features: int, largest: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, features)
        self.right = nn.Linear(width, features, bias=False)
        self.adds = nn.Linear(width, features, bias=False)
        nn.init.normal_(self.adds.weight, std=0.1 * width**-0.5)  # counts are large beside features
        self.left = nn.Embedding(largest + 1, features)  # by how many frames are left
        self.total = nn.Embedding(largest + 1, features)  # by how many are missing in all
        self.count = nn.Linear(features, largest + 1, bias=False)
        nn.init.normal_(self.left.weight, std=0.1)
        nn.init.normal_(self.total.weight, std=0.1)
        zero_init(self.count)

    @property
    def tables(self) -> GapTables:
        return GapTables(self.left.weight, self.total.weight, self.count.weight.mT)

    def forward(
        self,
        token_FD: Tensor,
        clip_BD: Tensor,
        open_F: Tensor,
        open_first_B: Tensor,
        lengths: Sequence[int],
    ) -> Tensor:
        """``[B, G, 2H]``: what each gap's own token says, and those of open gaps right of it.

        Frames' tokens are of the gaps after them, clips' of those before the first frame.
        """
        token_BGD = by_clip(clip_BD, token_FD, lengths)
        open_BG1 = by_clip(open_first_B, open_F, lengths)[..., None].to(token_BGD)
        shown_BGD = token_BGD * open_BG1
        right_BGD = from_here_on(shown_BGD) - shown_BGD
        count_BG1 = from_here_on(open_BG1) - open_BG1
        entry_BGH = self.own(token_BGD) + self.right(right_BGD / count_BG1.clamp(min=1))
        features_BG2H: Tensor = torch.cat([entry_BGH, self.adds(token_BGD)], dim=-1)
        return features_BG2H

    def grown(self, largest: int) -> Self:
        """The same up to another largest count: more are left as the most known ones are."""
        more = type(self)(self.own.in_features, self.own.out_features, largest)
        more.to(self.count.weight.device)
        known = self.state_dict()
        for name, weight in more.state_dict().items():
            old = known[name]
            weight[: len(old)].copy_(old)
            if name in ("left.weight", "total.weight"):
                weight[len(old) :].copy_(old[-1])
        return more
