"""What a solver's steps buy: distance to real clips by solver and number of steps.

flowcept theatre data --clips 400 --size 64 --seed 9
python tests/bench/solvers.py data --features mobilenet.safetensors

The same captions and seeds for every row; distances are those of ``flowcept evaluate``. A row's
evaluations are at most twice its steps (frames that appear late are finished late).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import machine

from flowcept import model_file as checkpoint
from flowcept.evaluation.evaluate import Evaluation, feature_scores, features_of, length_scores
from flowcept.evaluation.features import load_features
from flowcept.settings import SOLVERS, SampleConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="theatre")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 8, 12, 16, 25])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--guidance", type=float, default=SampleConfig().guidance)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = SampleConfig(guidance=options.guidance)
    work = Evaluation(
        checkpoint.find(options.model), options.data, config, clips=options.clips,
        seed=options.seed, device="auto", dtype="auto", progress=lambda *_: None,
    )  # fmt: skip
    network = load_features(options.features, work.device)
    real = features_of(network, work.real)
    print(machine.described())
    print(
        f"{len(work.real)} clips, guidance {config.guidance:g}, seed {options.seed}, "
        f"{work.card.steps} training steps, {network.name}"
    )
    print("| solver | steps | distance of clips (5 % to 95 %) | frames | changes", end=" ")
    print("| lengths, total variation | seconds |\n|---|---|---|---|---|---|---|")
    for steps in options.steps:
        for solver in options.solvers:
            work.config = replace(config, steps=steps, solver=solver)
            started = time.perf_counter()
            made = work.of_captions()
            seconds = time.perf_counter() - started
            found = feature_scores(network.name, real, features_of(network, made), options.seed)
            score, low, high = found["of clips"]
            print(
                f"| {solver} | {steps} | {score:.2f} ({low:.2f} to {high:.2f}) "
                f"| {found['of frames']:.2f} | {found['of changes']:.2f} "
                f"| {length_scores(work.real, made)['total_variation']:.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
