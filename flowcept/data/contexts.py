"""Which frames of a clip training shows as given, so that one network learns every task.

A context that does not fit a clip is None: the caller goes on to the next clip. Drawing again for
the same clip would weigh short and long clips differently and so bend the law of lengths.
"""

from dataclasses import asdict

import torch
from torch import Generator

from flowcept.settings import ContextMixture

LONGEST_RUN = 8  # most context frames in a row that training shows at either end


def draw_context(
    num_frames: int, mixture: ContextMixture, generator: Generator
) -> list[bool] | None:
    """Which frames of a clip are given; None where the drawn kind does not fit this length.

    Everything but the places of inner frames is drawn without looking at ``num_frames``, so that
    the law of lengths behind a given context is the data's own, cut to those that can hold it.
    """
    weights = asdict(mixture)
    law = torch.tensor(list(weights.values()), dtype=torch.float64)
    kind = list(weights)[int(torch.multinomial(law, 1, generator=generator))]
    given = _draw_given(kind, num_frames, generator)
    if given is None or not given < set(range(num_frames)):
        return None
    return [f in given for f in range(num_frames)]


def _draw_given(kind: str, num_frames: int, generator: Generator) -> set[int] | None:
    """The frames that a kind of context gives, of which some may lie outside of the clip."""
    last = num_frames - 1
    match kind:
        case "first":
            return {0}
        case "first_last":
            return {0, last}
        case "keyframes":
            inner = _randint(1, 3, generator)
            if num_frames < inner + 3:
                return None
            return {0, last, *(1 + torch.randperm(last - 1, generator=generator)[:inner]).tolist()}
        case "alternate":
            return None if last % 2 else set(range(0, num_frames, 2))  # the last one is given too
        case "first_k":
            return set(range(_randint(1, LONGEST_RUN, generator)))
        case "last_k":
            return set(range(num_frames - _randint(1, LONGEST_RUN, generator), num_frames))
        case "runs":
            return _draw_runs(num_frames, generator)
    return set()


def _draw_runs(num_frames: int, generator: Generator) -> set[int] | None:
    """Two or three runs of given frames with room between them; None where they do not fit.

    Whether the clip begins and ends with a given frame is drawn first, since a model sees it.
    """
    runs = [_randint(1, 4, generator) for _ in range(_randint(2, 3, generator))]
    open_first, open_last = _randint(0, 1, generator), _randint(0, 1, generator)
    least = [open_first, *[1] * (len(runs) - 1), open_last]  # frames before and after each run
    spare = num_frames - sum(runs) - sum(least)
    if spare < 0:
        return None

    cuts = torch.randint(0, spare + 1, (sum(least) - 1,), generator=generator).sort().values
    more = iter(torch.tensor([0, *cuts, spare]).diff().tolist())  # for each gap that may be there
    given: set[int] = set()
    start = 0
    for gap, run in zip(least, runs, strict=False):
        start += gap + next(more) if gap else 0
        given |= set(range(start, start + run))
        start += run
    return given


def _randint(low: int, high: int, generator: Generator) -> int:
    """A whole number in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
