"""Attention within short runs of many lengths, padded to be one batch.

Shape suffixes: R query rows, S key rows, P tokens per row, N heads, E head width; G runs, Q and K
query and key tokens of the longest run, or rows; M places of rows, ``G`` times the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Padded:
    """Runs that are all made as long as the longest: which row stands at each place."""

    runs: int
    queries_M: Tensor  # row at each place; 0 where that is padding
    back_R: Tensor  # place of each row
    keys_M: Tensor
    real_GK: Tensor | None  # bool; None: no key is padding

    @classmethod
    def of(
        cls,
        query_order: Tensor | None,
        key_order: Tensor | None,
        queries: Sequence[tuple[int, int]],
        keys: Sequence[tuple[int, int]],
    ) -> Self:
        """Of runs that lie end to end in these orders of rows, so many of such a length."""
        queries_GQ = _padded(query_order, queries)
        keys_GK = _padded(key_order, keys)
        real_GK = keys_GK >= 0
        return cls(
            runs=len(queries_GQ),
            queries_M=queries_GQ.clamp(min=0).flatten(),
            back_R=_places(queries_GQ),
            keys_M=keys_GK.clamp(min=0).flatten(),
            real_GK=None if bool(real_GK.all()) else real_GK,
        )


def _padded(order: Tensor | None, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of each run, and -1 for padding."""
    sizes = [runs * length for runs, length in shapes]
    rows = torch.arange(sum(sizes)) if order is None else order
    most = max(length for _, length in shapes)
    parts = zip(rows.split(sizes), shapes, strict=True)
    return torch.cat([F.pad(x.view(shape), (0, most - shape[1]), value=-1) for x, shape in parts])


def _places(rows: Tensor) -> Tensor:
    """Where each row stands, each standing at one place."""
    flat = rows.flatten()
    places = (flat >= 0).nonzero().flatten()
    return places[flat[places].argsort()]


def attend_padded(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, padded: Padded) -> Tensor:
    """Attention of all runs in one batch; padding has no weight. Rows as they were."""

    def batch(x: Tensor, rows_M: Tensor) -> Tensor:
        x_GKPNE: Tensor = x.index_select(0, rows_M).unflatten(0, (padded.runs, -1))
        return x_GKPNE.flatten(1, 2).transpose(1, 2)

    q_GNQE = batch(q_RPNE * q_RPNE.shape[-1] ** -0.5, padded.queries_M)
    k_GNKE, v_GNKE = batch(k_SPNE, padded.keys_M), batch(v_SPNE, padded.keys_M)
    score_GNQK = q_GNQE @ k_GNKE.transpose(-1, -2)
    if padded.real_GK is not None:
        real_GK = padded.real_GK.repeat_interleave(k_SPNE.shape[1], 1)
        score_GNQK = score_GNQK.masked_fill(~real_GK[:, None, None], -torch.inf)
    out_GNQE: Tensor = score_GNQK.softmax(-1, dtype=q_RPNE.dtype) @ v_GNKE
    out_MPNE = out_GNQE.transpose(1, 2).reshape(-1, *q_RPNE.shape[1:])
    return out_MPNE.index_select(0, padded.back_R)
