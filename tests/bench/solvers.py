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
import mobilenet
import torch

from flowcept import model_file as checkpoint
from flowcept.evaluation import metrics
from flowcept.evaluation.evaluate import (
    draw_clips,
    feature_scores,
    length_scores,
    load_maker,
    of_captions,
)
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
    maker = load_maker(checkpoint.find(options.model), options.seed, "auto", "auto")
    clips = draw_clips(maker, options.data, options.clips)
    network = mobilenet.MobileNet(options.features, maker.device)
    real = network.frames_of(clips)
    print(machine.described())
    print(
        f"{len(clips)} clips, guidance {config.guidance:g}, seed {options.seed}, "
        f"{maker.card.steps} training steps, {network.name}"
    )
    print("| solver | steps | distance of clips (5 % to 95 %) | frames | changes", end=" ")
    print("| lengths, total variation | seconds |\n|---|---|---|---|---|---|---|")
    for steps in options.steps:
        for solver in options.solvers:
            started = time.perf_counter()
            made = of_captions(maker, clips, replace(config, steps=steps, solver=solver))
            seconds = time.perf_counter() - started
            frames = real, network.frames_of(made)
            of_clips = map(mobilenet.of_clips, frames)
            found = feature_scores(network.name, *of_clips, options.seed)
            score, low, high = found["distance"]
            of_frames = metrics.frechet_of_samples(*map(torch.cat, frames))
            of_changes = metrics.frechet_of_samples(*map(mobilenet.changes, frames))
            print(
                f"| {solver} | {steps} | {score:.2f} ({low:.2f} to {high:.2f}) "
                f"| {of_frames:.2f} | {of_changes:.2f} "
                f"| {length_scores(clips, made)['total_variation']:.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
