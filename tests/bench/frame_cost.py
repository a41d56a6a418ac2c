"""What a frame costs on the ring: our network in both its forms against a plain padded transformer.

python tests/bench/frame_cost.py                   # about ten minutes
python tests/bench/frame_cost.py --pairs 3 --hidden 32 --stem-channels 8

The peer has the width, depth, heads and MLP of the ring's network and no more: a frame is one
token, clips are padded to the longest one of their batch with a mask on keys, full-sequence flow
trains and samples all frames at once, and each block makes its adaptive normalisation of the clip's
time. Optimiser, averaged weights, precision, clips a step and lengths are those of ours. What is
compared runs in turn, A B C A B C; medians, and ratios pair by pair. Seconds are the processor's,
of one thread, which other programs on the machine disturb less than the clock's.

Then, how far the limit is: every matrix product and convolution of a step is run again alone, with
operands of the same shapes; the share is the time they take so, of the time of the whole. The rest
goes to what the profiler says, by what operators are for; what no operator explains is Python.

Shape suffixes: B clips, F frames of a clip with padding, F of all frames where packed; D width,
N heads, E head width, C H W a latent, 6 parts of a modulation.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import machine
import numpy as np
import ring
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from flowcept.codecs import CodecConfig, build_codec
from flowcept.device import autocast, pick_dtype
from flowcept.networks.layers import TIME_WAVES, adaln, layer_norm, timestep_embedding
from flowcept.process.guidance import guided
from flowcept.process.sampler import clip_generator, latents_of, sample_steps
from flowcept.process.state import Given
from flowcept.settings import SampleConfig, TrainConfig
from flowcept.training.distributed import Machine, Team
from flowcept.training.parts import Clips, assemble
from flowcept.training.trainer import Average, Trainer, adamw

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
        self.contents = "rings"

    def latent(self, i: int) -> Tensor:
        return self.latents[i]


class Ours:
    """The ring's network with its trainer, in one of its forms."""

    def __init__(self, rings: Rings, options: argparse.Namespace, *, pooled: bool) -> None:
        shape = {"hidden": options.hidden, "stem_channels": options.stem_channels}
        plain = {"schedule": "linear", "place": False, "late": 0.5, "shift": 1.0, "decay": 0.3}
        config = ring.config(10**6, options.seed, None, **shape, **plain, pooled=pooled)
        dtype = pick_dtype("auto", CPU)
        clips = Clips(rings, list(range(len(rings.lengths))), [])  # type: ignore[arg-type]
        facts = {"dataset": "rings", "fps": 12.0}
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
        self.dtype, self.generator = like.machine.dtype, clip_generator(config.machine.seed)
        self.place_in_data = 0

    def forward(self, noisy_BFC: Tensor, time_B: Tensor, real_BF: Tensor) -> Tensor:
        condition_BD = self.time(timestep_embedding(time_B))
        x_BFD = self.read(noisy_BFC)
        x_BFD = x_BFD + self.place[: x_BFD.shape[1]].to(x_BFD.dtype)
        for block in self.blocks:
            x_BFD = block(x_BFD, condition_BD, real_BF[:, None, None])
        return self.say(layer_norm(x_BFD))

    def start(self) -> None:
        """Once the weights are there: their optimiser and average."""
        self.optimizer = adamw(self, self.config.optimizer)  # type: ignore[arg-type]
        self.average = Average(_Copied(self), self.config.optimizer.ema)  # type: ignore[arg-type]

    def train_on(self, clips: int) -> int:
        """A step on the next clips of the data."""
        total = len(self.rings.lengths)
        chosen = [(self.place_in_data + i) % total for i in range(clips)]
        self.place_in_data += clips
        latents = [self.rings.latents[clip].flatten(1) for clip in chosen]
        clean_BFC = pad_sequence(latents, batch_first=True)
        real_BF = _real([len(latent) for latent in latents])
        noise_BFC = torch.randn(clean_BFC.shape, generator=self.generator)
        time_B = torch.rand(clips, generator=self.generator)
        noisy_BFC = torch.lerp(noise_BFC, clean_BFC, time_B[:, None, None])
        with autocast(CPU, self.dtype):
            velocity_BFC = self(noisy_BFC, time_B, real_BF)
        error_BF = (velocity_BFC.float() - (clean_BFC - noise_BFC)).square().mean(-1)
        ((error_BF * real_BF).sum() / real_BF.sum()).backward()
        nn.utils.clip_grad_norm_(self.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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


class _Copied:
    """What an average copies."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def copied(self) -> nn.Module:
        weights = nn.Module()
        for number, weight in enumerate(self.peer.parameters()):
            weights.register_parameter(str(number), nn.Parameter(weight.detach().clone()))
        return weights


def _real(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


# ---- the limit ---------------------------------------------------------------------------------

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
PURPOSES = {  # by the first pattern that an operator's name matches
    "optimiser and average": r"adam|foreach|linalg_vector_norm|lerp_",
    "matrix products": r"mm$|convolution|mkldnn|linear|matmul",
    "attention's softmax": r"softmax|scaled_dot|flash",
    "copies and casts": r"copy|clone|contiguous|cat$|stack|index|select|slice|gather|scatter|split|"
    r"repeat|expand|pad|to$|fill|zero|empty|chunk|flatten|view|reshape|transpose|permute|unbind",
    "normalisation": r"norm",
    "elementwise": r".*",
}
PYTHON = "Python and what it calls"


@dataclass(frozen=True)
class Operand:
    """What a product needs to know of a tensor."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype

    def made(self) -> Tensor:
        steps = zip(self.shape, self.stride, strict=True)
        reach = sum((size - 1) * stride for size, stride in steps)
        return torch.randn(1 + reach, dtype=self.dtype).as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """Which matrix products are asked for, and how often: operands by shape, stride and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()
        self.operands: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            operands = tree_map_only(Tensor, lambda x: Operand(x.shape, x.stride(), x.dtype), args)
            self.calls[func, repr(operands)] += 1
            self.operands[func, repr(operands)] = operands
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """Of all of them, each kind run alone."""
        total = 0.0
        for (func, words), count in self.calls.items():
            made = tree_map_only(Operand, Operand.made, self.operands[func, words])
            total += count * median(seconds(lambda: func(*made)) for _ in range(3))  # noqa: B023
        return total


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def share_of_limit(work: Callable[[], object], pairs: int) -> float:
    """Time of the products alone over that of the whole, in turn; the median."""
    with Recorder() as recorder:
        work()
    recorder.seconds()
    return median(recorder.seconds() / seconds(work) for _ in range(pairs))


def purposes(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the time by what it goes to, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        whole = seconds(work)
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        name = event.key.rpartition("::")[2]
        purpose = next(p for p, pattern in PURPOSES.items() if re.search(pattern, name))
        operator = event.key.startswith("aten::")
        spent[purpose if operator else PYTHON] += event.self_cpu_time_total / 1e6
    spent[PYTHON] += max(whole - sum(spent.values()), 0)
    return {purpose: value / sum(spent.values()) for purpose, value in spent.most_common()}


def compared(works: dict[str, Callable[[], float]], pairs: int) -> None:
    """Clips a second of each, and the ratio to the first one's."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(pairs + 1):
        for name, work in works.items():
            started = time.process_time()
            clips = work()
            if number:  # the first is a warm-up
                rates[name].append(clips / (time.process_time() - started))
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
    peer.start()
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
