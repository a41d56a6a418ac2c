"""What a frame costs on the ring: our network in both its forms against a plain padded transformer.

python tests/bench/frame_cost.py                   # about ten minutes
python tests/bench/frame_cost.py --pairs 3 --hidden 32 --stem-channels 8

The peer has the width, depth, heads and MLP of the ring's network and no more: a frame is one
token, clips are padded to the longest one of their batch with a mask on keys, full-sequence flow
trains and samples all frames at once, and each block makes its adaptive normalisation of the clip's
time. Optimiser, averaged weights, precision, clips a step and lengths are those of ours. What is
compared runs in turn, A B C A B C; medians, and ratios pair by pair. Seconds are the processor's,
of one thread, which other programs on the machine disturb less than the clock's.

Then, how far the limit is (``limit.py``): the share that a step reaches of the rate of its matrix
products alone, and the three things that take most of the rest.

Shape suffixes: B clips, F frames of the longest clip, C numbers of a frame, D width, N heads, E
head width, 6 parts of a modulation.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from statistics import median

import machine
import numpy as np
import ring
import torch
from limit import purposes, seconds, share_of_limit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flowcept.codecs import CodecConfig, build_codec
from flowcept.device import autocast, pick_dtype
from flowcept.networks.layers import TIME_WAVES, adaln, layer_norm, timestep_embedding
from flowcept.process.guidance import guided
from flowcept.process.sampler import clip_generator, latents_of, sample_steps
from flowcept.process.state import Given
from flowcept.settings import SampleConfig, TrainConfig
from flowcept.training.distributed import Machine, Team
from flowcept.training.lineage import begun_training
from flowcept.training.optimizers import Optimizers
from flowcept.training.parts import Clips, assemble
from flowcept.training.trainer import Average, Trainer

CPU = torch.device("cpu")
FRAME = (3, 3, 3)  # channels, height and width of a latent


class Rings:
    """Clips of the ring, in memory, in place of a folder's."""

    def __init__(self, clips: int, seed: int) -> None:
        drawn = [ring.draw(np.random.default_rng([seed, number])) for number in range(clips)]
        images = [torch.from_numpy(clip).permute(0, 3, 1, 2) / 127.5 - 1 for clip in drawn]
        self.codec = build_codec(CodecConfig("pixels", compression=1, channels=3))
        self.codec.fit_statistics(images)
        self.latents = [self.codec.encode(image) for image in images]
        self.lengths = [len(image) for image in images]
        self.captions = [""] * clips
        self.sizes = [FRAME[1:]] * clips
        self.keyframe = None

    def latent(self, i: int) -> Tensor:
        return self.latents[i]


class Ours:
    """The ring's network with its trainer, in one of its forms."""

    def __init__(self, rings: Rings, options: argparse.Namespace, *, pooled: bool) -> None:
        shape = {"hidden": options.hidden, "stem_channels": options.stem_channels}
        plain = {"schedule": "linear", "place": False, "late": 0.5, "shift": 1.0, "decay": 0.3}
        plain |= {"first": False, "fill": 0.0}
        config = ring.config(10**6, options.seed, None, **shape, **plain, pooled=pooled)
        dtype = pick_dtype("auto", CPU)
        clips = Clips(rings, list(range(len(rings.lengths))), [])  # type: ignore[arg-type]
        trainings = begun_training(config, "rings", "", ())
        facts = {"dataset": "rings", "fps": 12.0, "trainings": trainings}
        weights = assemble(config, clips, rings.codec, None, None, "transformer", **facts)
        self.trainer = Trainer(weights, clips, config, Machine(CPU, dtype, Team()))

    def train(self) -> int:
        return int(self.trainer.train_step()["clips"])

    def sample(self, lengths: Sequence[int], steps: int) -> None:
        weights, dtype = self.trainer.weights(), self.trainer.machine.dtype
        with torch.no_grad(), autocast(CPU, dtype):
            prompts = [weights.text([""])] * len(lengths)
            steps_of = sample_steps(
                guided(weights.network, prompts, prompts, 1.0),
                [Given(torch.zeros(0, *FRAME), (True,), (length,)) for length in lengths],
                [clip_generator(number) for number in range(len(lengths))],
                SampleConfig(steps=steps),
                weights.process,
                max_length=max(lengths),
            )
            assert [len(latent) for latent in latents_of(steps_of)] == list(lengths)


class PeerBlock(nn.Module):
    """Self-attention and an MLP, with adaptive normalisation of its own."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up = nn.Linear(width, mlp_ratio * width)
        self.down = nn.Linear(mlp_ratio * width, width)

    def forward(self, x_BFD: Tensor, condition_BD: Tensor, mask_B11F: Tensor) -> Tensor:
        parts_B16D = self.modulation(condition_BD).unflatten(-1, (1, 6, -1)).to(x_BFD.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts_B16D.unbind(2)
        qkv = self.qkv(adaln(x_BFD, shift, scale)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        y_BNFE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11F)
        x_BFD = x_BFD + gate * self.out(y_BNFE.transpose(1, 2).flatten(2))
        y_BFD = F.gelu(self.up(adaln(x_BFD, mlp_shift, mlp_scale)), approximate="tanh")
        return x_BFD + mlp_gate * self.down(y_BFD)


class Peer(nn.Module):
    """A plain transformer over padded clips, trained and sampled by full-sequence flow."""

    def __init__(self, rings: Rings, config: TrainConfig, like: Trainer) -> None:
        super().__init__()
        shape, self.rings, self.config = config.network, rings, config
        width, pixels, longest = shape.hidden, int(np.prod(FRAME)), max(rings.lengths)
        self.read, self.say = nn.Linear(pixels, width), nn.Linear(width, pixels)
        self.place = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.time = nn.Sequential(
            nn.Linear(2 * TIME_WAVES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.blocks = nn.ModuleList(
            PeerBlock(width, shape.heads, like.card.network.mlp_ratio) for _ in range(shape.depth)
        )
        self.dtype, self.seen = like.machine.dtype, 0
        self.average = Average(self, config.optimizer.ema)  # type: ignore[arg-type]
        self.optimizers = Optimizers([*self.parameters()], [], config.optimizer)

    def copied(self) -> Peer:
        return copy.deepcopy(self)

    def forward(self, noisy_BFC: Tensor, time_B: Tensor, real_BF: Tensor) -> Tensor:
        condition_BD = self.time(timestep_embedding(time_B))
        x_BFD = self.read(noisy_BFC)
        x_BFD = x_BFD + self.place[: x_BFD.shape[1]].to(x_BFD.dtype)
        for block in self.blocks:
            x_BFD = block(x_BFD, condition_BD, real_BF[:, None, None])
        return self.say(layer_norm(x_BFD))

    def train_on(self, clips: int) -> int:
        """A step on the next clips of the data."""
        chosen = [(self.seen + i) % len(self.rings.latents) for i in range(clips)]
        self.seen += clips
        latents = [self.rings.latents[clip].flatten(1) for clip in chosen]
        clean_BFC = pad_sequence(latents, batch_first=True)
        real_BF = _real([len(latent) for latent in latents])
        noise_BFC, time_B = torch.randn(clean_BFC.shape), torch.rand(clips)
        noisy_BFC = torch.lerp(noise_BFC, clean_BFC, time_B[:, None, None])
        with autocast(CPU, self.dtype):
            velocity_BFC = self(noisy_BFC, time_B, real_BF)
        error_BF = (velocity_BFC.float() - (clean_BFC - noise_BFC)).square().mean(-1)
        ((error_BF * real_BF).sum() / real_BF.sum()).backward()
        nn.utils.clip_grad_norm_(self.parameters(), self.config.optimizer.clip)
        self.optimizers.step(self.config.optimizer.learning_rate)
        self.average.update(self)  # type: ignore[arg-type]
        return clips

    @torch.no_grad()
    def sample(self, lengths: Sequence[int], steps: int) -> None:
        real_BF = _real(lengths)
        x_BFC = torch.randn(*real_BF.shape, int(np.prod(FRAME)))
        with autocast(CPU, self.dtype):
            for step in range(steps):
                time_B = torch.full((len(lengths),), step / steps)
                x_BFC = x_BFC + self(x_BFC, time_B, real_BF).float() / steps


def _real(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def compared(works: dict[str, Callable[[], float]], pairs: int) -> None:
    """Clips a second of each, and the ratio to the first one's."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(pairs + 1):
        for name, work in works.items():
            done: list[float] = []
            spent = seconds(lambda: done.append(work()))  # noqa: B023
            if number:  # the first is a warm-up
                rates[name].append(done[0] / spent)
    base, *_ = rates.values()
    for name, own in rates.items():
        ratios = sorted(a / b for a, b in zip(own, base, strict=True))
        print(
            f"| {name} | {median(own):.1f} | {median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--clips", type=int, default=32, help="sampled together")
    parser.add_argument("--steps", type=int, default=10, help="of sampling")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--stem-channels", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rings = Rings(1000, options.seed)
    forms = {f"{name} form": Ours(rings, options, pooled=name == "new") for name in ("old", "new")}
    like = forms["new form"].trainer
    peer = Peer(rings, like.config, like)
    lengths = [ring.LENGTHS[number % len(ring.LENGTHS)] for number in range(options.clips)]
    step_clips = forms["new form"].train()

    print(f"{machine.described()}, {like.machine.dtype}, seed {options.seed}")
    networks = {"peer": peer} | {name: form.trainer.learner for name, form in forms.items()}
    for name, module in networks.items():
        print(f"{name}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f} million weights")
    training = {"peer": lambda: peer.train_on(step_clips)}
    training |= {name: form.train for name, form in forms.items()}

    def sampled(one: Peer | Ours) -> Callable[[], float]:
        return lambda: one.sample(lengths, options.steps) or options.clips

    sampling = {name: sampled(one) for name, one in {"peer": peer, **forms}.items()}
    for title, works in {"training": training, "sampling": sampling}.items():
        print(f"\n| {title} | clips a second | over the peer |\n|---|---|---|")
        compared(works, options.pairs)
        for name, work in works.items():
            share = share_of_limit(work, max(options.pairs // 3, 1))
            spent = purposes(work).items()
            thieves = [f"{what} {part:.0%}" for what, part in spent if what != "matrix products"]
            print(f"{name}: products alone {share:.0%} of the time; {', '.join(thieves[:3])}")


if __name__ == "__main__":
    main()
