"""The kv_cache of finished frames: what is remembered of those that rest.

Once nothing is asked of a finished frame any more it *rests*: it is not evaluated again, and what
the others look at of it (keys, values, stem features) stays as it was. A third of the sampling
falls away by that. A resting frame no longer answers to how the rest goes on, which changes what is
made by too little to measure (docs/log.md).

Shape suffixes: B clips, V the width of a prompt token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flowcept.process.state import Rest, frame_rows


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
        """Forget all clips but these."""
        assert self.image_token_BV is not None
        self.image_token_BV = self.image_token_BV[clips]
        num_frames = sum(self.lengths)
        of_frames = frame_rows(self.lengths, clips)
        of_rows = frame_rows([n + 1 for n in self.lengths], clips)
        self.kept = {
            name: x[of_frames if len(x) == num_frames else of_rows] for name, x in self.kept.items()
        }

    def whole(self, name: str, x: Tensor, awake: Tensor | None) -> Tensor:
        """The values of all rows or frames, of which ``x`` are those evaluated now.

        ``awake`` has the numbers of these; None where they are all.
        """
        if awake is None:
            self.kept[name] = x.contiguous()  # no view, which would hold more
            return x
        return self.kept[name].index_copy_(0, awake, x)


def memory_of(rest: Rest | None) -> Memory | None:
    """The memory of a request whose frames may rest now; None where none may."""
    if rest is None or not rest.may_rest:
        return None
    memory: Memory = rest.memory.setdefault("resting", Memory())
    return memory
