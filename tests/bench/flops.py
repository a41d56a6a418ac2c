"""Floating-point operations of training and sampling against full-sequence flow, by length.

python tests/bench/flops.py                       # the default preset's network; a few minutes

Operations are counted by PyTorch's own counter on the network itself, on tensors without contents,
for every number of visible frames that the process draws; so nothing here is a formula of ours.
A clip has a prompt of 8 tokens. Training counts forward and backward passes of the clips that teach
something (the others are never computed); sampling counts all evaluations with as many steps for
both, without guidance, lengths known. Both on the schedule's extended time [0, 2]. With ``fill``
finished frames flow again in training; with ``refine`` all do so in sampling, and none rests then.

Shape suffixes: F frames, C H W a latent, S prompt tokens, D their width.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import machine
import torch
from blank import blank, no_autocast
from torch.utils.flop_counter import FlopCounterMode

from flowcept.data.contexts import draw_context
from flowcept.model_file import Card
from flowcept.networks import build_network
from flowcept.networks.transformer import TransformerConfig
from flowcept.process.forward import Flowception, Process, draw
from flowcept.process.sampler import clip_generator
from flowcept.process.state import Rest
from flowcept.settings import ContextMixture, SampleConfig


class Counter:
    """Operations for one clip of so many visible frames, in units of 10^9."""

    def __init__(self, config: TransformerConfig) -> None:
        with torch.device("meta"):
            self.network = build_network(config, shift=1.0)

    @functools.cache  # noqa: B019 - the counter lives as long as the program
    def forward(self, visible: int, awake: int) -> float:
        """One evaluation, in which all visible frames are ``awake`` or the others rest."""
        if awake == visible:
            with torch.no_grad():
                return self._count(visible, None, backward=False)
        awake_F = torch.zeros(visible, dtype=torch.bool)
        awake_F[torch.linspace(0, visible - 1, awake).long()] = True
        rest = Rest((0,), ~awake_F, may_rest=True)
        with torch.no_grad():
            self._count(visible, rest, backward=False)  # remembers
            return self._count(visible, rest, backward=False)

    @functools.cache  # noqa: B019
    def both(self, visible: int) -> float:
        """An evaluation and its backward pass."""
        return self._count(visible, None, backward=True)

    def _count(self, visible: int, rest: Rest | None, *, backward: bool) -> float:
        state, prompt = blank(self.network, [visible])
        with no_autocast(), FlopCounterMode(display=False) as counter:
            said = self.network(state, prompt, rest)
            if backward:
                heads = (said.velocity_FCHW, said.log_missing_F, said.log_missing_first_B)
                sum((head.sum() for head in heads), said.size_logits_BK.sum()).backward()
        return counter.get_total_flops() / 1e9


@functools.cache
def counter_of(config: TransformerConfig) -> Counter:
    """The counter of a network, which remembers what it counted."""
    return Counter(config)


def drawn(length: int, process: Process, draws: int, seed: int) -> list[tuple[int, int]]:
    """Visible and flowing frames in training states of clips of this length."""
    generator = clip_generator(seed)
    latent_FCHW = torch.zeros(length, 1, 1, 1)
    found = (draw(latent_FCHW, [False] * length, process, generator) for _ in range(draws))
    return [(p[0].lengths[0], int(p[0].flowing_F.sum())) for p in found if p is not None]


def per_clip(
    card: Card, process: Process, mixture: ContextMixture, draws: int, seed: int
) -> tuple[float, float]:
    """Mean operations of training, forward and backward, and frames that flow, of a drawn clip.

    Over lengths and contexts as the trainer draws them; what it passes over is passed over here.
    """
    counter, generator = counter_of(card.network), clip_generator(seed)
    lengths = [n for n, count in card.lengths.items() for _ in range(count)]
    seen: list[tuple[int, int]] = []  # visible and flowing
    while len(seen) < draws:
        length = lengths[int(torch.randint(len(lengths), (), generator=generator))]
        context = draw_context(length, mixture, generator)
        if context is not None:
            pair = draw(torch.zeros(length, 1, 1, 1), context, process, generator)
            if pair is not None:
                seen.append((pair[0].lengths[0], int(pair[0].flowing_F.sum())))
    return fmean(counter.both(visible) for visible, _ in seen), fmean(f for _, f in seen)


def walked(
    length: int, process: Process, steps: int, seed: int, *, cached: bool, refine: float = 0.0
) -> list[tuple[int, int]]:
    """Visible and evaluated frames at each evaluation of one clip's sampling.

    Delays are those of training. ``cached``: finished frames rest as in the sampler, from tau = 1
    on, and all are evaluated whenever one has appeared.
    """
    delay_F = process.draw_delays([False] * length, clip_generator(seed))
    born_F = (delay_F * steps).ceil()  # the step that inserts a frame
    found: list[tuple[int, int]] = []
    for index in range(int(born_F.max()) + steps):
        visible = int((born_F <= index).sum())
        rests = cached and index > steps and visible == found[-1][0]
        finished = int((born_F <= index - steps).sum()) if rests else 0
        found.append((visible, visible - finished))
    config = SampleConfig(steps=steps, refine=refine)
    return found + [(length, length)] * (steps - config.refine_age)


def of_sampling(
    card: Card, process: Process, steps: int, draws: int, seed: int, *, cached: bool = True
) -> float:
    """Mean operations of sampling a clip of a length from the data, without guidance."""
    counter, generator = counter_of(card.network), clip_generator(seed)
    lengths = [n for n, count in card.lengths.items() for _ in range(count)]
    total = 0.0
    for number in range(draws):
        length = lengths[int(torch.randint(len(lengths), (), generator=generator))]
        way = walked(length, process, steps, number, cached=cached)
        total += sum(counter.forward(*frames) for frames in way)
    return total / draws


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 4], help="0: all frames")
    parser.add_argument("--late", type=float, nargs="+", default=[0.5, 0.25], help="of training")
    parser.add_argument("--fill", type=float, nargs="+", default=[0.75], help="of training")
    parser.add_argument("--refine", type=float, nargs="+", default=[0.75], help="of sampling")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine.described())
    print(
        f"{options.draws} draws, {options.steps} steps, seed {options.seed}; 10^9 operations, then "
        "their ratio to full-sequence; of training also per frame that flows"
    )
    columns = ["frames", "window", "training: full-sequence", *trainings(options)]
    columns += ["sampling: full-sequence", *samplings(options)]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    config = TransformerConfig()  # the default preset's, for 64 pixels
    for length in options.lengths:
        for window in options.windows:
            for cell in _cells(replace(config, window=window), length, options):
                print(f"| {cell}", end=" ", flush=True)
            print("|")


def trainings(options: argparse.Namespace) -> dict[str, Flowception]:
    """Processes of training, by their columns' names."""
    by_late = {f"late {late:g}": Flowception(late=late) for late in options.late}
    return by_late | {f"fill {fill:g}": Flowception(fill=fill) for fill in options.fill}


def samplings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """How ``walked`` samples, by the columns' names."""
    plain: dict[str, dict[str, Any]] = {"no cache": {"cached": False}, "cache": {"cached": True}}
    return plain | {
        f"cache, refine {refine:g}": {"cached": True, "refine": refine} for refine in options.refine
    }


def _cells(config: TransformerConfig, length: int, options: argparse.Namespace) -> Iterator[str]:
    """One row of the table."""
    counter = counter_of(config)
    yield str(length)
    yield str(config.window or "all")
    whole = counter.both(length)
    yield f"{whole:.1f}"
    for process in trainings(options).values():
        seen = drawn(length, process, options.draws, options.seed)
        each = fmean(counter.both(visible) for visible, _ in seen)
        flowing = fmean(count for _, count in seen) / length
        yield f"{each:.1f}: {each / whole:.2f}, {each / whole / flowing:.2f}"
    full = options.steps * counter.forward(length, length)
    yield f"{full:.0f}"
    for how in samplings(options).values():
        way = walked(length, Flowception(), options.steps, options.seed, **how)
        made = sum(counter.forward(*frames) for frames in way)
        yield f"{made:.0f}: {made / full:.2f}"


if __name__ == "__main__":
    main()
