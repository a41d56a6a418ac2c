"""Where a theatre model's velocity loss lies: by flow time and by latent channel, on fresh clips.

python tests/bench/velocity_by_time.py --model theatre --clips 160 --seed 99
"""

import argparse

import machine
import numpy as np
import torch
from judge import cast_of

from flowcept import model_file
from flowcept.codecs import to_images
from flowcept.data import theatre
from flowcept.process.forward import concat, draw, draw_context
from flowcept.settings import ContextMixture

PART = 20  # clips at once
BINS = 10
CONTEXTS = ("none", "first", "first_last", "keyframes", "alternate", "first_k", "last_k", "runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="theatre")
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--context", choices=CONTEXTS, default="none")
    parser.add_argument("--seed", type=int, default=99)
    options = parser.parse_args()
    weights = model_file.load(model_file.find(options.model))
    size, actors = weights.card.size[0], cast_of(weights.card)
    mixture = ContextMixture(**{name: float(name == options.context) for name in CONTEXTS})
    rng = np.random.default_rng(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    bin_F: list[int] = []
    error_FC: list[torch.Tensor] = []
    for start in range(0, options.clips, PART):
        pairs, prompts = [], []
        for _ in range(min(PART, options.clips - start)):
            scene = theatre.sample_scene(rng, actors=actors)
            prompt = theatre.caption(scene, rng)
            latent_FCHW = weights.codec.encode(to_images(theatre.draw_clip(scene, size, rng)))
            context = draw_context(len(latent_FCHW), mixture, generator)
            if context is None:  # the clip is too short for this kind
                continue
            drawn = draw(latent_FCHW, context, weights.card.process, generator)
            if drawn is not None:
                pairs.append(drawn)
                prompts.append(prompt)
        state, target = concat(pairs)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            prediction = weights.network(state, weights.text(prompts))
        flowing_F = state.flowing_F
        error = (prediction.velocity_FCHW - target.velocity_FCHW).square().mean((2, 3))
        error_FC.append(error[flowing_F])
        bin_F += (state.time_F[flowing_F] * BINS).long().clamp(max=BINS - 1).tolist()
    errors, bins = torch.cat(error_FC), torch.tensor(bin_F)
    print(machine.described())
    print(f"{options.model}, context {options.context}, {len(bins)} flowing frames, mean ", end="")
    print(f"{float(errors.mean()):.3f}, seed {options.seed}")
    by_time = [float(errors[bins == b].mean()) for b in range(BINS)]
    print("by tenth of flow time:", " ".join(f"{value:.3f}" for value in by_time))
    by_channel = zip(weights.codec.std_C.tolist(), errors.mean(0).tolist(), strict=True)
    print("by channel, spread of its raw values: loss")
    print("  " + ", ".join(f"{std:.2f}: {value:.3f}" for std, value in sorted(by_channel)))


if __name__ == "__main__":
    main()
