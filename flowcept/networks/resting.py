"""The kv_cache of finished frames: what is remembered of those that rest.

Once nothing is asked of a finished frame any more it *rests*: it is not evaluated again, and what
the others look at of it (keys, values, stem features) stays as it was. A third of the sampling
falls away by that. A resting frame no longer answers to how the rest goes on, which changes what is
made by too little to measure (docs/archive/sampling.md).

Shape suffixes: B clips, V the width of a prompt token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flowcept.process.state import Rest, rows_of


@dataclass
class Memory:
    """What a network remembers of one request between its evaluations.

    ``kept`` maps a name, of a module and of what it holds, to the tensor of all rows (each clip's
    own, then its frames) or of all frames.
    """

    names: list[object] = field(default_factory=list)  # of the clips that are remembered
    lengths: list[int] = field(default_factory=list)  # frames of each
    kept: dict[str, Tensor] = field(default_factory=dict)
    image_token_BV: Tensor | None = None

    def enter(self, names: Sequence[object], lengths: Sequence[int]) -> bool:
        """Begin an evaluation of these clips; whether frames may rest in it.

        What is remembered holds for clips of the same names and lengths, of which some may have
        left; else every frame is evaluated and remembered anew.
        """
        places = {name: place for place, name in enumerate(self.names)}
        known = [places.get(name, -1) for name in names]
        same = -1 not in known and [self.lengths[place] for place in known] == list(lengths)
        if not same:
            self.kept, self.image_token_BV = {}, None
        elif known != list(range(len(self.names))):
            self._keep(known)
        self.names, self.lengths = list(names), list(lengths)
        return same

    def _keep(self, clips: list[int]) -> None:
        """Forget all clips but these; no numbers have to travel to the device for it."""
        assert self.image_token_BV is not None
        one_each = [1] * len(self.names)
        self.image_token_BV = rows_of(clips, self.image_token_BV, one_each)
        num_frames, of_rows = sum(self.lengths), [n + 1 for n in self.lengths]
        self.kept = {
            name: rows_of(clips, x, self.lengths if len(x) == num_frames else of_rows)
            for name, x in self.kept.items()
        }

    def whole(self, name: str, x: Tensor, awake: Tensor | None) -> Tensor:
        """The values of all rows or frames, of which ``x`` are those evaluated now.

        ``awake`` has the numbers of these; None where they are all.
        """
        if awake is None:
            self.kept[name] = x.contiguous()  # no view, which would hold more
            return x
        return self.kept[name].index_copy_(0, awake, x)


def enter(
    rest: Rest | None, lengths: Sequence[int], order: Sequence[int]
) -> tuple[Memory | None, bool]:
    """Begin an evaluation of clips of so many frames in this order.

    The memory of their request, None where no frame may rest; and whether frames rest now.
    """
    if rest is None or not rest.may_rest:
        return None, False
    memory: Memory = rest.memory.setdefault("resting", Memory())
    return memory, memory.enter([rest.names[b] for b in order], [lengths[b] for b in order])
