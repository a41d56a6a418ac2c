"""How far a prompt reaches: what one other word changes in a theatre model's first prediction.

python tests/bench/prompt_reach.py --model theatre

From one noise frame at the start of sampling, where nothing but the prompt says what to make: mean
squared difference of velocities between two prompts, averaged over noise, and the expected length.
"""

import argparse

import machine
import torch

from flowcept import model_file
from flowcept.process.state import FrameState

PROMPTS = (
    "a dog surfing",
    "a robot surfing",
    "a dog walking",
    "a dog surfing slowly",
    "a dog surfing at night",
    "a dog surfing in the snow",
    "a robot walking in the snow",
    "",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="theatre")
    parser.add_argument("--noises", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weights = model_file.load(model_file.find(options.model))
    network, count = weights.card.network, options.noises
    generator = torch.Generator().manual_seed(options.seed)
    shape = (count, network.channels, network.height, network.width)
    state = FrameState(
        latent_FCHW=torch.randn(shape, generator=generator),
        time_F=torch.zeros(count),
        role_F=torch.zeros(count, dtype=torch.long),
        tau_B=torch.zeros(count),
        open_first_B=torch.ones(count, dtype=torch.bool),
        lengths=(1,) * count,
    )
    print(machine.described())
    print(f"{options.model}, {weights.card.steps} steps; {count} noises, seed {options.seed}")
    first = None
    for prompt in PROMPTS:
        with torch.no_grad():
            prediction = weights.network(state, weights.text([prompt] * count))
        velocity = prediction.velocity_FCHW
        first = velocity if first is None else first
        law_K = prediction.size_logits_BK.softmax(-1).mean(0)
        length = float((law_K * torch.arange(len(law_K))).sum())
        change = float((velocity - first).square().mean())
        print(f"  {prompt or '(none)':<30} velocity {change:.4f}  expected length {length:.1f}")


if __name__ == "__main__":
    main()
