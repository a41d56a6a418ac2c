"""Total variation of sampled lengths to the truth, for every draw rule and number of steps.

An exact oracle stands in for the network, so that the rule and the step alone are measured:

    python tests/bench/length_law.py --clips 4000 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import machine
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracle import LengthOracle, empty, generators, total_variation, variation_floor

from flowcept.process import ProcessConfig
from flowcept.sampler import sample
from flowcept.settings import SampleConfig

LAW = {8: 0.2, 12: 0.5, 24: 0.3}
STEPS = (4, 8, 16, 32, 64, 128)
RULES = ("posterior", "systematic", "bernoulli", "poisson")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mean, deviation = variation_floor(LAW, options.clips)
    print(machine.described())
    print(f"lengths {LAW}, {options.clips} clips, seed {options.seed}")
    print(f"floor: exact draws have {mean:.4f} +- {deviation:.4f}")
    print("| steps | " + " | ".join(options.rules) + " |")
    print("|---|" + "---|" * len(options.rules))
    began = time.monotonic()
    for steps in options.steps:
        cells = []
        for rule in options.rules:
            latents = sample(
                LengthOracle(LAW),
                [empty()] * options.clips,
                generators(options.clips, options.seed + 1000 * steps),
                SampleConfig(steps=steps, insertion=rule),
                ProcessConfig(),
                max_length=64,
            )
            cells.append(f"{total_variation([len(x) for x in latents], LAW):.4f}")
        print(f"| {steps} | " + " | ".join(cells) + " |", flush=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
