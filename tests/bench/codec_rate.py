"""How fast the autoencoder learns, by its learning rate.

    flowcept stage CLIPS --models MODELS --clips 300 --size 128
    python tests/bench/codec_rate.py CLIPS --rates 0.002 0.001 0.0005

Every arm starts from the same weights, sees the same frames and keeps its rate (no fall at the
end, so that arms can be compared at any step). PSNR in dB of the averaged weights on frames that
are not trained on; at step 0 all arms are the cosine transform that the autoencoder starts as.
"""

import argparse
import tempfile
from pathlib import Path

import machine
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from flowcept.codecs import CodecConfig, build_codec, to_images
from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer
from flowcept.data.folder import scan
from flowcept.data.shards import PictureStore
from flowcept.settings import CodecSettings, DataSettings

HELD_OUT = 64  # frames
EARLY = 0.1  # share of the training at which the rate is the peak, warm-up aside


def arm(frames_FHW3: NDArray[np.uint8], rate: float, options: argparse.Namespace) -> list[float]:
    """PSNR after every so many steps."""
    torch.manual_seed(options.seed)
    config = CodecConfig("autoencoder", options.compression, options.channels, options.width)
    codec = build_codec(config)
    assert isinstance(codec, Autoencoder)
    settings = CodecSettings(codec_rate=rate, codec_steps=options.steps)
    trainer = CodecTrainer(codec, settings, options.seed, getattr(torch, options.dtype))
    held_FCHW = to_images(frames_FHW3[:HELD_OUT])
    rng = np.random.default_rng(options.seed)
    found = [codec.psnr(held_FCHW)]
    for step in tqdm(range(1, options.steps + 1), f"{rate}", disable=None):
        rows = np.sort(rng.integers(HELD_OUT, len(frames_FHW3), options.batch))
        trainer.step(to_images(frames_FHW3[rows]), EARLY)
        if step % options.every == 0:
            found.append(trainer.averaged.psnr(held_FCHW))
    return found


def frames_of(folder: Path, size: str, count: int, seed: int) -> NDArray[np.uint8]:
    """Some frames of the clips of a folder, in random order."""
    with tempfile.TemporaryDirectory() as cache:
        store = PictureStore(scan(folder, DataSettings(size=size)), Path(cache))
        order = np.random.default_rng(seed).permutation(len(store.array))[:count]
        return np.stack([store.array[row] for row in order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 1e-3, 5e-4])
    parser.add_argument("--size", default="128")
    parser.add_argument("--compression", type=int, default=8)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=100, help="steps between figures")
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    frames_FHW3 = frames_of(options.clips, options.size, options.frames, options.seed)
    steps = range(0, options.steps + 1, options.every)
    print(f"{machine.described()}; {options.dtype}, {options.batch} frames a step")
    print("| rate | " + " | ".join(map(str, steps)) + " |")
    print("|---|" + "---|" * len(steps))
    for rate in options.rates:
        found = arm(frames_FHW3, rate, options)
        print(f"| {rate:g} | " + " | ".join(f"{psnr:.2f}" for psnr in found) + " |", flush=True)


if __name__ == "__main__":
    main()
