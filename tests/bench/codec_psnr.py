"""PSNR of a model's codec on fresh theatre clips that no training has seen.

python tests/bench/codec_psnr.py --model theatre --clips 100 --seed 12345
"""

import argparse
import platform

import numpy as np
import torch

from flowcept import checkpoint, metrics, theatre
from flowcept.data import to_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="theatre")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=12345)
    options = parser.parse_args()
    weights = checkpoint.load(checkpoint.find(options.model))
    actors = theatre.ACTORS if theatre.find_font() else theatre.SHAPES
    values = []
    for clip in range(options.clips):
        rng = np.random.default_rng([options.seed, clip])
        scene = theatre.sample_scene(rng, actors=actors)
        image_FCHW = to_images(theatre.draw_clip(scene, weights.card.size[0], rng))
        decoded_FCHW = weights.codec.decode(weights.codec.encode(image_FCHW))
        values.append(metrics.psnr(decoded_FCHW, image_FCHW))
    print(f"{platform.machine()}, python {platform.python_version()}, torch {torch.__version__}")
    kind = "emoji" if actors is theatre.ACTORS else "shapes"
    print(f"{options.clips} fresh clips of {kind}, seed {options.seed}")
    print(f"PSNR {np.mean(values):.2f} dB, standard deviation over clips {np.std(values):.2f}")


if __name__ == "__main__":
    main()
