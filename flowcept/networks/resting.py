"""What resting frames are remembered by: keys, values and cells of their last evaluation.

Once nothing is asked of a finished frame any more it *rests*: it is not evaluated again, and what
the others look at of it stays as it was. A third of flowception's sampling falls away by that, and
most of a causal autoregressive network's, which says exactly the same unless a given frame stands
right of an open gap: what that one reads of the frame before it stays as it was, too. In
flowception's a resting frame no longer answers to how the rest goes on, which changes what is made
by too little to measure (docs/log.md).

Shape suffixes: F frames of all clips, B clips, R rows (each clip's own row, then its frames), V the
width of a prompt token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcept.process.state import frame_rows


class Cache:
    """One request's memory, filled and read by the network, layer by layer in its own order."""

    def __init__(self) -> None:
        self.names: list[object] = []  # of the clips that are remembered
        self.lengths: list[int] = []
        self.seen_BV: Tensor | None = None  # what their given frames say
        self.awake_F: Tensor | None = None  # numbers of the frames evaluated now; None: all are
        self.awake_R: Tensor | None = None  # the same of rows
        self.awake_rows: list[int] | None = None  # the same where no device must be asked
        self.awake_lengths: tuple[int, ...] = ()  # the same, how many of each clip
        self._kept: list[tuple[bool, Tensor]] = []  # of rows or else of frames; all of them
        self._layer = 0

    def enter(self, names: Sequence[object], lengths: Sequence[int], resting_F: Tensor) -> None:
        """Begin an evaluation; ``resting_F`` is a bool per frame, on the CPU.

        What is remembered holds for clips of the same names and lengths, of which some may have
        left; else every frame is evaluated and remembered anew.
        """
        self._layer = 0
        places = {name: place for place, name in enumerate(self.names)}
        known = [places.get(name, -1) for name in names]
        same = -1 not in known and [self.lengths[place] for place in known] == list(lengths)
        if not same:
            self._kept, self.seen_BV = [], None
            self.awake_F = self.awake_R = self.awake_rows = None
        elif known != list(range(len(self.names))):
            self._keep(known)
        self.names, self.lengths = list(names), list(lengths)
        if same:
            self._wake(~resting_F)

    def _keep(self, clips: list[int]) -> None:
        """Forget all clips but these."""
        assert self.seen_BV is not None
        self.seen_BV = self.seen_BV[clips]
        of_frames = frame_rows(self.lengths, clips)
        of_rows = frame_rows([n + 1 for n in self.lengths], clips)
        self._kept = [(is_row, x[of_rows if is_row else of_frames]) for is_row, x in self._kept]

    def _wake(self, awake_F: Tensor) -> None:
        assert self.seen_BV is not None
        device = self.seen_BV.device
        one = torch.ones(1, dtype=torch.bool)  # a clip's own row never rests
        parts = awake_F.split(self.lengths)
        awake_R = torch.cat([torch.cat([one, part]) for part in parts])
        self.awake_F = awake_F.nonzero().flatten().to(device)
        self.awake_rows = awake_R.nonzero().flatten().tolist()
        self.awake_R = torch.tensor(self.awake_rows, device=device)
        self.awake_lengths = tuple(int(part.sum()) for part in parts)

    def frames(self, x: Tensor) -> Tensor:
        """The next layer's values of all frames, of which ``x`` are those evaluated now."""
        return self._recall(x, self.awake_F, is_row=False)

    def rows(self, x: Tensor) -> Tensor:
        """The same of all rows."""
        return self._recall(x, self.awake_R, is_row=True)

    def _recall(self, x: Tensor, awake: Tensor | None, *, is_row: bool) -> Tensor:
        if awake is None:
            self._kept.append((is_row, x.contiguous()))  # no view, which would hold more
            return x
        _, whole = self._kept[self._layer]
        self._layer += 1
        return whole.index_copy_(0, awake, x)


@dataclass(frozen=True)
class Rest:
    """What an evaluation is told: the names of its clips, and which frames may rest."""

    cache: Cache
    names: tuple[object, ...]
    resting_F: Tensor  # bool, on the CPU

    def select(self, lengths: Sequence[int], clips: Sequence[int]) -> Rest:
        """The chosen clips, in the order in which they are named."""
        rows = frame_rows(lengths, clips)
        return Rest(self.cache, tuple(self.names[b] for b in clips), self.resting_F[rows])
