"""Teach a model's in-between prior alone, before all is trained on.

flowcept theatre scenes --clips 10000 --seed 300
python tests/bench/between.py theatre scenes -o start.safetensors --cache cache --minutes 25
flowcept train scenes -o run --init start.safetensors ...

In a training step of the whole network about one frame in ten lies between two finished ones; here
all do, and nothing else is computed: about twenty times as many for the same work. How far the
network trusts the guess is left as it was. ``model`` may have none yet.

Printed: latent error, and PSNR over linear blending of clips that were held out. Half of the time
the learning rate falls to 0. Shape suffixes as in ``flowcept.networks.transformer``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import machine
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept import model_file, models
from flowcept.codecs import Codec, to_images
from flowcept.data.folder import scan
from flowcept.data.shards import LatentStore, PictureStore
from flowcept.evaluation.metrics import psnr
from flowcept.model_file import Weights
from flowcept.networks import build_network
from flowcept.networks.in_between import InBetween
from flowcept.settings import DataSettings

BATCH = 32
HELD_OUT = 64  # clips


def grown(weights: Weights, between: int) -> Weights:
    """The same model with convolutions between frames, which guess nothing yet."""
    config = replace(weights.card.network, between=between)
    network = build_network(config, weights.card.process.shift)
    missing, unknown = network.load_state_dict(weights.network.state_dict(), strict=False)
    assert not unknown and all(name.startswith("in_between.") for name in missing)
    return replace(weights, network=network, card=replace(weights.card, network=config))


@dataclass(frozen=True)
class Scenes:
    """Clips to learn from, and others."""

    known_FCHW: Tensor  # latents of all clips, float16
    inner: Tensor  # numbers of those that are neither first nor last in their clip
    held: list[tuple[Tensor, Tensor]]  # images and latents


def read(folder: Path, weights: Weights, cache: Path) -> Scenes:
    height, width = weights.card.size
    images = PictureStore(scan(folder, DataSettings(f"{width}x{height}")), cache)
    latents = LatentStore(images, weights.codec, cache, device="cpu", dtype=torch.bfloat16)
    clips = [latents.latent(i) for i in range(len(latents))]
    ends = itertools.accumulate(map(len, clips[HELD_OUT:]), initial=0)
    inner = [torch.arange(a + 1, b - 1) for a, b in itertools.pairwise(ends)]
    held = [(to_images(images.rows(i)), clips[i]) for i in range(HELD_OUT)]
    return Scenes(torch.cat(clips[HELD_OUT:]).half(), torch.cat(inner), held)


@torch.no_grad()
def gain(between: InBetween, codec: Codec, scenes: Scenes) -> float:
    """PSNR of every second frame over linear blending, decibels."""
    gains = []
    for image_FCHW, latent_FCHW in scenes.held:
        last = len(latent_FCHW) - 1 + len(latent_FCHW) % 2
        real, given = image_FCHW[1:last:2], image_FCHW[:last:2]
        guess_FCHW, _ = between.guess(latent_FCHW[: last - 2 : 2], latent_FCHW[2:last:2])
        made = codec.decode(guess_FCHW)
        blend = (given[:-1] + given[1:]) / 2
        gains.append(psnr(made, real) - psnr(blend, real))
    return fmean(gains)


def teach(between: InBetween, codec: Codec, scenes: Scenes, options: argparse.Namespace) -> None:
    optimiser = torch.optim.AdamW(between.parameters(), options.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(options.seed)
    begun, step, total = time.process_time(), 0, 0.0
    while (share := (time.process_time() - begun) / 60 / options.minutes) < 1:
        rate = options.learning_rate * min(1, step / 50) * min(1, 2 * (1 - share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(scenes.inner), (BATCH,), generator=generator)
        middle = scenes.inner[chosen]
        sides = [scenes.known_FCHW[middle + side].float() for side in (-1, 1)]
        with torch.autocast("cpu", torch.bfloat16):
            # backwards as well
            made_FCHW, _ = between.guess(*(sides if step % 2 else sides[::-1]))
        loss = F.mse_loss(made_FCHW, scenes.known_FCHW[middle].float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(between.parameters(), 1.0)
        optimiser.step()
        step, total = step + 1, total + float(loss.detach())
        if step % 500 == 0:
            decibels = gain(between, codec, scenes)
            print(f"step {step}, {share:.0%}: error {total / 500:.4f}, {decibels:+.2f} dB")
            total = 0.0
    decibels = gain(between, codec, scenes)
    print(f"step {step}: {decibels:+.2f} dB over linear blending, {HELD_OUT} held-out clips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="of frames and latents")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=25, help="of processor time")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weights = model_file.load(models.find(options.model).path)
    if weights.network.in_between is None:
        weights = grown(weights, options.blocks)
    between = weights.network.in_between
    assert between is not None
    between.requires_grad_()
    scenes = read(options.data, weights, options.cache)
    print(machine.described())
    print(f"{len(scenes.inner)} frames between two, seed {options.seed}")
    between.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teach(between, weights.codec, scenes, options)
    model_file.save(weights, options.output)


if __name__ == "__main__":
    main()
