"""What gaps are read from, against sums written out."""

from __future__ import annotations

import torch
from fixtures_network import close
from torch.nn import functional as F

from flowcept.networks.gaps import Gaps
from flowcept.networks.layout import make_layout
from flowcept.networks.resting import Memory

LENGTHS = (3, 0, 2)  # evaluated in the order 0, 2, 3: rows [0], [1, 2, 3], [4, 5, 6, 7]
AFTER = (-1, 2, 3, -1, 5, 6, 7, -1)


def gaps() -> Gaps:
    """With a query that asks for something."""
    torch.manual_seed(0)
    module = Gaps(8)
    torch.nn.init.normal_(module.query.weight)
    return module


def expected(module: Gaps, x_RPD: torch.Tensor) -> torch.Tensor:
    rows = [(module.query(x_PD).softmax(0) * x_PD).sum(0) for x_PD in x_RPD]
    says = [
        module.left(row) + (module.right(rows[after]) if after >= 0 else 0)
        for row, after in zip(rows, AFTER, strict=True)
    ]
    return F.silu(torch.stack(says))


def test_a_gap_is_read_from_the_rows_on_both_sides() -> None:
    module, x_RPD = gaps(), torch.randn(8, 4, 8)
    layout = make_layout(LENGTHS, [1] * 3, 0)
    assert layout.after_R.tolist() == list(AFTER)
    close(module(x_RPD, layout, None), expected(module, x_RPD))


def test_rows_that_rest_say_what_they_said() -> None:
    module, memory = gaps(), Memory()
    before_RPD, now_RPD = torch.randn(8, 4, 8), torch.randn(8, 4, 8)
    module(before_RPD, make_layout(LENGTHS, [1] * 3, 0), memory)

    rests = [True, False, True, False, True]  # frames, clip by clip, as in the state
    layout = make_layout(LENGTHS, [1] * 3, 0, rests, resting=True)
    awake = layout.awake_R.tolist()
    assert awake == [0, 1, 2, 4, 6]
    rested_R11 = torch.ones(8, dtype=torch.bool).index_fill(0, layout.awake_R, 0)[:, None, None]
    together_RPD = torch.where(rested_R11, before_RPD, now_RPD)
    close(module(now_RPD[awake], layout, memory), expected(module, together_RPD)[awake])


def test_tokens_of_a_row_count_alike_at_first() -> None:
    torch.manual_seed(0)
    module, x_RPD = Gaps(8), torch.randn(8, 4, 8)
    layout = make_layout(LENGTHS, [1] * 3, 0)
    mean_RPD = x_RPD.mean(1, keepdim=True).expand_as(x_RPD)
    close(module(x_RPD, layout, None), module(mean_RPD, layout, None))
