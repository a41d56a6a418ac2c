"""Laws of lengths and places that the sampler makes with an exact network, by number of steps.

An exact oracle stands in for the network, so that draw rule and step alone are measured:

    python tests/bench/length_law.py --clips 4000 --seed 1
    python tests/bench/length_law.py --tables controls gaps --clips 1000
    python tests/bench/length_law.py --tables where --steps 4 8 16 64
    python tests/bench/length_law.py --tables where-three where-pictures where-alike --steps 4 16

``rules``: total variation of lengths to the truth, for every draw rule. ``controls``: the same for
the rate temperature and the length scale, to the law that each promises. ``gaps``: two gaps between
given frames, each of 1 or 5 frames, independently; and where the start frame of a clip ends up.

``where``: total variation of the counts of several gaps to their joint law. It is the law of two
gaps that make up ten frames, mostly 2 and 8 or 8 and 2; in ``where-three`` of three gaps; in
``where-pictures`` of three which what is given tells of; in ``where-alike`` any split of four
frames is as likely. Means and law of sizes are exact in all columns.

Shape suffixes: B clips, F frames, K counts.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import pvariance
from typing import Any
from unittest import mock

import baselines
import machine
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracle import (
    JOINT_LAWS,
    Arrangements,
    LengthOracle,
    Means,
    blank,
    empty,
    generators,
    sample,
    sizes_of,
    splits,
    total_variation,
    variation_floor,
)

from flowcept.process import compositions
from flowcept.process.forward import Flowception, Process
from flowcept.process.posterior import appeared_logits
from flowcept.process.sampler import Model, sample_steps
from flowcept.process.schedule import Schedule
from flowcept.process.state import FrameState, Given, Prediction
from flowcept.settings import SampleConfig

Row = Callable[[int, argparse.Namespace], Iterator[str]]  # the cells of a number of steps

LAW = {8: 0.2, 12: 0.5, 24: 0.3}
STEPS = (4, 8, 16, 32, 64, 128)
CONTROLS: tuple[dict[str, float], ...] = (
    {"rate_temperature": 0.0}, {"rate_temperature": 0.5}, {"rate_temperature": 4.0},
    {"length_scale": 0.6}, {"length_scale": 1.6},
)  # fmt: skip
LONGEST = 64
GAP = {1: 0.5, 5: 0.5}  # frames that come in each of two gaps
SUMS = {a + b: GAP[a] * GAP[b] * (1 + (a != b)) for a, b in ((1, 1), (1, 5), (5, 5))}
PICTURES = "all gaps open, by what is shown"
PLACES = 9  # frames of the clip whose start frame is looked for


def promised(control: dict[str, float]) -> dict[int, float]:
    """The law of lengths that a control stands for."""
    if "rate_temperature" in control:
        heat = control["rate_temperature"]
        most = max(LAW.values())
        powers = {n: (p / most) ** (1 / heat) if heat else float(p == most) for n, p in LAW.items()}
        return {n: p / sum(powers.values()) for n, p in powers.items()}
    law: Counter[int] = Counter()
    for n, p in LAW.items():  # what comes after the start frame, rounded up or down by chance
        wanted = control["length_scale"] * (n - 1)
        up = wanted - math.floor(wanted)
        law[1 + math.floor(wanted)] += p * (1 - up)
        law[2 + math.floor(wanted)] += p * up
    return dict(law)


class GapOracle:
    """Knows the law of each of the gaps between given frames, and so of their sum, exactly."""

    def __call__(
        self, state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        del clips, finished_F, may_rest
        missing, totals = [], []
        for given, tau in zip(state.given_F.split(state.lengths), state.tau_B, strict=True):
            at = given.nonzero().flatten().tolist()
            total_K, clip = np.ones(1), [0.0] * len(given)
            for left, right in itertools.pairwise(at):
                own_K = self.left(right - left - 1, tau)
                mean = float(own_K @ torch.arange(len(own_K), dtype=torch.float64))
                clip[left:right] = [mean / (right - left)] * (right - left)
                total_K = np.convolve(total_K, own_K.numpy())
            missing += clip
            totals.append(torch.from_numpy(total_K))
        log_F = torch.tensor(missing, dtype=torch.float64).log()
        nothing_B = torch.full((len(state.lengths),), -math.inf, dtype=torch.float64)
        sizes_BK = sizes_of(torch.stack(totals).log(), state, Schedule())
        return blank(state, log_F, nothing_B, sizes_BK)

    def left(self, appeared: int, tau: Tensor) -> Tensor:
        """Law of the frames still to come in a gap in which so many have appeared."""
        law_K = torch.tensor([GAP.get(k + appeared, 1e-9) for k in range(LONGEST)]).double()
        count_K = torch.arange(LONGEST, dtype=torch.float64)
        seen_K = appeared_logits(torch.tensor(appeared), count_K, tau.double().clamp(max=1))
        return (law_K.log() + seen_K).softmax(0)


def lengths(
    config: SampleConfig, clips: int, seed: int, process: Process | None = None
) -> list[int]:
    latents = sample(
        LengthOracle(LAW), [empty()] * clips, generators(clips, seed + 1000 * config.steps),
        config, process or Flowception(), max_length=LONGEST,
    )  # fmt: skip
    return [len(latent) for latent in latents]


def places(model: Model, given: Given, steps: int, clips: int, seed: int) -> Iterator[list[int]]:
    """Of each clip, the final places of the frames by name, given and start frames first."""
    made = sample_steps(
        model, [given] * clips, generators(clips, seed + 1000 * steps), SampleConfig(steps=steps),
        Flowception(), max_length=LONGEST,
    )  # fmt: skip
    for step in made:
        for clip in step.done:
            names = step.name_F.split(step.state.lengths)[step.clips.index(clip)].tolist()
            yield [names.index(name) for name in range(len(names))]


def rules(steps: int, options: argparse.Namespace) -> Iterator[str]:
    for rule in baselines.RULES:
        config, process = SampleConfig(steps=steps), baselines.Ruled(rule=rule)
        found = lengths(config, options.clips, options.seed, process)
        yield f"{total_variation(found, LAW):.4f}"


def controls(steps: int, options: argparse.Namespace) -> Iterator[str]:
    for control in CONTROLS:
        config = SampleConfig(steps=steps, **control)  # type: ignore[arg-type]
        found = lengths(config, options.clips, options.seed)
        yield f"{total_variation(found, promised(control)):.4f}"


def gaps(steps: int, options: argparse.Namespace) -> Iterator[str]:
    _, between = JOINT_LAWS["two gaps"]
    seed = options.seed + 1000 * steps
    found = splits(GapOracle(), between, SampleConfig(steps=steps), options.clips, seed)
    totals = Counter(map(sum, found))
    yield f"{total_variation(list(totals.elements()), SUMS):.4f}"
    yield f"{sum(not set(pair) <= set(GAP) for pair in found) / len(found):.1%}"
    starts = places(LengthOracle({PLACES: 1.0}), empty(), steps, options.clips, options.seed)
    yield f"{pvariance([first for first, *_ in starts]):.2f}"


def where(name: str) -> Row:
    """Rows of the table of a joint law: shares by three rules, then compositions."""
    law, given = JOINT_LAWS[name]
    exact = Arrangements(law)

    def shares(*arguments: Any) -> Prediction:
        return replace(exact(*arguments), tables=None)

    def row(steps: int, options: argparse.Namespace) -> Iterator[str]:
        config, seed = SampleConfig(steps=steps), options.seed + 1000 * steps

        def cell(model: Model, rule: str = "posterior") -> str:
            found = splits(model, given, config, options.clips, seed, baselines.Ruled(rule=rule))
            return f"{total_variation(found, law):.4f}"

        yield cell(shares)
        yield cell(shares, "multinomial")
        yield cell(shares, "bernoulli")
        yield cell(Means(exact))
        with mock.patch.object(compositions, "count_logits", exact.count_logits):
            yield cell(exact)

    return row


WHERE = ("shares, systematic", "shares, multinomial", "shares, Bernoulli (published)",
         "compositions, prior alone", "compositions")  # fmt: skip
TABLES: dict[str, tuple[Row, Sequence[str], Mapping[Any, float]]] = {
    "rules": (rules, baselines.RULES, LAW),
    "controls": (
        controls,
        [f"{name.replace('_', ' ')} {value:g}" for one in CONTROLS for name, value in one.items()],
        LAW,
    ),
    "gaps": (
        gaps,
        (
            "sums of two gaps", "clips with a gap that cannot be",
            f"variance of the start frame's place (truth {(PLACES**2 - 1) / 12:.2f})",
        ),
        SUMS,
    ),
    "where": (where("two gaps"), WHERE, JOINT_LAWS["two gaps"][0]),
    "where-three": (where("three gaps"), WHERE, JOINT_LAWS["three gaps"][0]),
    "where-pictures": (where(PICTURES), WHERE, JOINT_LAWS[PICTURES][0]),
    "where-alike": (where("gaps alike"), WHERE, JOINT_LAWS["gaps alike"][0]),
}  # fmt: skip


def described(law: Mapping[Any, float]) -> str:
    """The law, where it is short."""
    most = 12
    return str(law) if len(law) <= most else f"a law of {len(law)} cases"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["rules"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.described())
    print(f"{options.clips} clips, seed {options.seed}")
    began = time.monotonic()
    for table in options.tables:
        row, columns, law = TABLES[table]
        mean, deviation = variation_floor(law, options.clips)
        print(f"\n{table}: {described(law)}")
        print(f"floor: exact draws have {mean:.4f} +- {deviation:.4f}\n")
        print(f"| steps | {' | '.join(columns)} |")
        print("|---" * (len(columns) + 1) + "|")
        for steps in options.steps:
            print(f"| {steps} | {' | '.join(row(steps, options))} |", flush=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
