"""What the laws of gaps are read from where no frame has a token for it: the rows on both sides.

Shape suffixes: R rows that are evaluated (each clip's own, then its frames), P tokens per row, D
width.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.layers import zero_init
from flowcept.networks.layout import Layout
from flowcept.networks.resting import Memory


class Gaps(nn.Module):
    """Features of the gap to the right of each row; before a clip's first frame lies its own row.

    The tokens of a row are pooled by attention with a learned query, at first all alike.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1, bias=False)
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width, bias=False)
        zero_init(self.query)

    def forward(self, x_RPD: Tensor, layout: Layout, memory: Memory | None) -> Tensor:
        """``[R, D]``, float32. A resting row repeats its last output; past the end it is 0."""
        weight_RP1 = self.query(x_RPD).softmax(1)
        row_RD = (weight_RP1 * x_RPD).sum(1)

        right_RD: Tensor = self.right(row_RD)
        if memory is not None:
            right_RD = memory.whole("gaps.right", right_RD, layout.awake_R)
        is_there_R1 = (layout.after_R >= 0)[:, None]
        right_RD = right_RD.index_select(0, layout.after_R.clamp(min=0)) * is_there_R1
        return F.silu(self.left(row_RD) + right_RD).float()
