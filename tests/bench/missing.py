"""What tells how many frames are missing: lengths, the caption, or what the frames show.

python tests/bench/missing.py

Fresh clips of a theatre model's actors, part of the way through before ``tau = 1``. Mean log score,
in nats, of laws of the missing count: by Bayes' rule from the number of visible frames and the
lengths of all training clips, or the true law of what the caption says, neither of which looks at
a picture; and the network's, without and with the caption. Standard errors are over clips.
"""

import argparse
from statistics import fmean, stdev

import machine
import numpy as np
import torch

from flowcept import model_file
from flowcept.codecs import to_images
from flowcept.data import theatre
from flowcept.device import autocast, pick_dtype
from flowcept.evaluation.evaluate import STATES, length_logits, log_score
from flowcept.process.forward import concat, draw
from flowcept.process.sampler import clip_generator

ACTORS = ("dog", "cat", "penguin", "frog", "panda", "fox", "ghost", "pumpkin")  # of the shipped


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="theatre")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--seed", type=int, default=77)
    options = parser.parse_args()
    weights = model_file.load(model_file.find(options.model))
    card, generator = weights.card, clip_generator(options.seed)
    rng, size = np.random.default_rng(options.seed), weights.network.largest_size + 1
    cpu = torch.device("cpu")
    everything = length_logits(card.lengths, size)
    found: dict[str, list[float]] = {}
    states = 0
    for _ in range(options.clips):
        scene = theatre.sample_scene(rng, actors=ACTORS)
        words = theatre.caption(scene, rng)
        images = to_images(theatre.draw_clip(scene, card.size[0], rng))
        with autocast(cpu, pick_dtype("auto", cpu)), torch.inference_mode():
            latent_FCHW = weights.codec.encode(images).float()
        context = [False] * len(latent_FCHW)
        drawn = (draw(latent_FCHW, context, card.process, generator) for _ in range(STATES))
        pairs = [pair for pair in drawn if pair is not None and float(pair[0].tau_B) < 1]
        if not pairs:
            continue
        state, target = concat(pairs)
        states += len(pairs)
        of_caption = length_logits(theatre.length_law(scene), size)
        of_sizes = {
            "all lengths": everything.expand(len(pairs), -1),
            "the caption's lengths": of_caption.expand(len(pairs), -1),
        }
        for name, prompt in (("network, no caption", ""), ("network", words)):
            with autocast(cpu, pick_dtype("auto", cpu)), torch.inference_mode():
                tokens = weights.text([prompt] * len(pairs))
                of_sizes[name] = weights.network(state, tokens).size_logits_BK.float()
        for name, size_logits_BK in of_sizes.items():
            logits_BK = card.process.missing_logits(size_logits_BK, state)
            score = log_score(logits_BK.double().softmax(-1), target.total_B)
            found.setdefault(name, []).append(score)
    print(machine.described())
    print(f"{options.model}, {states} states of {options.clips} clips, seed {options.seed}")
    for name, scores in found.items():
        print(f"  {name:<24}{fmean(scores):.3f} +- {stdev(scores) / len(scores) ** 0.5:.3f}")


if __name__ == "__main__":
    main()
