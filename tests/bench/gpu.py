"""Speed and memory on a CUDA device: the second table of docs/performance.md.

python tests/bench/gpu.py --output gpu.json                   # about half an hour
python tests/bench/gpu.py --output gpu.json --only attention
python tests/bench/gpu.py --device cpu --tiny --output x.json  # that the script runs, no more

What is compared runs in turn, A B A B, and the median of the ratios pair by pair is told with the
smallest and the largest. A run that is cut goes on where it stopped.

Shape suffixes: R rows, P tokens per row, N heads, E width of a head, T tokens, Q K queries and keys
of a padded clip, B clips.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from blank import blank
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flowcept.device import autocast
from flowcept.networks import attention
from flowcept.networks.attention import Plan
from flowcept.networks.layout import make_layout, to_device
from flowcept.networks.transformer import Transformer, TransformerConfig
from flowcept.process.forward import Flowception
from flowcept.process.guidance import guided
from flowcept.process.sampler import clip_generator, sample_steps
from flowcept.process.state import Given
from flowcept.settings import PRESETS, SampleConfig, TrainConfig
from flowcept.training.parts import network_config, text_config

Work = Callable[[], object]
GIB = 2**30
CARDS = (24, 80, 139)  # GB of the memory of cards


@dataclass(frozen=True)
class Scale:
    """How large everything is: as the table wants it, or small enough for a test."""

    lengths: tuple[int, ...]  # frames of the clips whose attention is compared
    frames: int  # of a clip that is trained on and sampled
    networks: dict[str, TransformerConfig]  # trained, by name
    side: int  # pixels of a frame that is sampled
    most: int  # frames of the largest clip that is tried
    matrix: int  # rows and columns of the matrices that tell the device's rate


def _square(side: int, **sizes: int) -> TransformerConfig:
    return TransformerConfig(channels=16, height=side, width=side, text_width=384, **sizes)


FULL = Scale(
    lengths=(64, 16, 40, 9, 64, 25, 33, 12),
    frames=64,
    networks={
        "100 M": _square(32, patch=2, stem_channels=128, hidden=768, depth=12, heads=12),
        "400 M": _square(32, patch=2, stem_channels=128, hidden=1280, depth=18, heads=20),
    },
    side=256,
    most=65536,
    matrix=8192,
)
TINY = Scale(
    lengths=(3, 1, 2, 2),
    frames=3,
    networks={"tiny": _square(4, patch=2, stem_channels=8, hidden=32, depth=2, heads=2)},
    side=16,
    most=8,
    matrix=64,
)


class Bench:
    """The device, and how time and memory are read off it."""

    def __init__(self, device: str, scale: Scale, pairs: int) -> None:
        self.device, self.scale, self.pairs = torch.device(device), scale, pairs
        self.dtype = torch.bfloat16
        self.cuda = self.device.type == "cuda"

    def seconds(self, work: Work) -> float:
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self, work: Work) -> float | None:
        """GiB that are alive at most, beyond what is there before; None on a CPU."""
        if not self.cuda:
            work()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - before) / GIB

    def taken_in_turn(self, works: dict[str, Work], base: str) -> dict[str, Any]:
        """Of each: median seconds, peak, and its time over that of ``base`` pair by pair."""
        peaks = {name: self.peak(work) for name, work in works.items()}  # warms up too
        rounds = [{n: self.seconds(work) for n, work in works.items()} for _ in range(self.pairs)]
        return {
            name: {
                "ms": 1e3 * statistics.median(r[name] for r in rounds),
                "over_base": statistics.median(r[name] / r[base] for r in rounds),
                "least": min(r[name] / r[base] for r in rounds),
                "most": max(r[name] / r[base] for r in rounds),
                "peak_gib": peaks[name],
            }
            for name in works
        }


Route = Callable[[Tensor, Tensor, Tensor], Tensor]


def routes(lengths: Sequence[int], patches: int, plan: Plan) -> dict[str, Route]:
    """Ways to attend within each clip; ``[R, P, N, E]`` in and out, rows clip by clip.

    ``lengths`` are frames; every clip has one row more. xformers and varlen where they exist.
    """
    rows = [n + 1 for n in lengths]
    tokens = [n * patches for n in rows]
    longest = max(tokens)

    def padded(q_RPNE: Tensor, k_RPNE: Tensor, v_RPNE: Tensor) -> Tensor:
        def spread(x_RPNE: Tensor) -> Tensor:
            clips = x_RPNE.flatten(0, 1).split(tokens)
            return nn.utils.rnn.pad_sequence(list(clips), batch_first=True).transpose(1, 2)

        at_K = torch.arange(longest, device=q_RPNE.device)
        real_BK = at_K < torch.tensor(tokens, device=q_RPNE.device)[:, None]
        q, k, v = (spread(x) for x in (q_RPNE, k_RPNE, v_RPNE))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=real_BK[:, None, None])
        clips = [one[:n] for one, n in zip(out.transpose(1, 2), tokens, strict=True)]
        return torch.cat(clips).view(q_RPNE.shape)

    found: dict[str, Route] = {
        "SDPA per segment": lambda q, k, v: attention._attend_sdpa(q, k, v, plan),
        "padded SDPA": padded,
    }
    if torch.cuda.is_available():
        ops = attention.xformers_ops()
        if ops is not None:
            found["xformers"] = lambda q, k, v: attention._attend_xformers(ops, q, k, v, plan)
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return found
        ends = torch.tensor([0, *itertools.accumulate(tokens)], dtype=torch.int32, device="cuda")

        def varlen(q_RPNE: Tensor, k_RPNE: Tensor, v_RPNE: Tensor) -> Tensor:
            q, k, v = (x.flatten(0, 1) for x in (q_RPNE, k_RPNE, v_RPNE))
            out: Tensor = varlen_attn(q, k, v, ends, ends, longest, longest)
            return out.view(q_RPNE.shape)

        found["varlen"] = varlen
    return found


def attention_routes(bench: Bench) -> dict[str, Any]:
    """Forward and backward of attention by each route: time, peak, error against float32."""
    name, config = next(iter(bench.scale.networks.items()))
    patches, width = _tokens(config), config.hidden // config.heads
    lengths = sorted(bench.scale.lengths)
    rows = sum(n + 1 for n in lengths)
    shape = (rows, patches, config.heads, width)
    plan = to_device(make_layout(lengths, [1] * len(lengths), 0), bench.device).within
    generator = torch.Generator().manual_seed(0)
    q, k, v, out_gradient = (torch.randn(shape, generator=generator) for _ in range(4))
    ways = routes(lengths, patches, plan)

    def both(route: Route, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(bench.device, dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = route(*inputs)
        out.backward(out_gradient.to(out))
        return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]

    exact = both(ways["SDPA per segment"], torch.float32)
    found = bench.taken_in_turn(
        {w: lambda route=route: both(route, bench.dtype) for w, route in ways.items()},
        "SDPA per segment",
    )
    for way, route in ways.items():
        errors = [
            float((a.float() - b).abs().max() / b.abs().max())
            for a, b in zip(both(route, bench.dtype), exact, strict=True)
        ]
        found[way]["error"] = max(errors)
    return {"network": name, "tokens": rows * patches, "routes": found}


def matrix_rate(bench: Bench) -> float:
    """Operations a second of a large matrix product in bfloat16."""
    size = bench.scale.matrix
    a, b = (torch.randn(size, size, device=bench.device, dtype=bench.dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / min(bench.seconds(lambda: a @ b) for _ in range(10))


def _tokens(config: TransformerConfig) -> int:
    """Tokens of a row: a frame's own and its patches."""
    rows, columns = config.grid
    return rows * columns + 1


def _network(bench: Bench, config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config, Flowception().shift).to(bench.device)


def _step(network: Transformer, lengths: Sequence[int], bench: Bench) -> Work:
    """Forward and backward on clips of these lengths."""
    state, prompt = blank(network, lengths, bench.device)
    outputs = ("velocity_FCHW", "log_missing_F", "log_missing_first_B", "size_logits_BK")

    def step() -> None:
        with autocast(bench.device, bench.dtype):
            said = network(state, prompt)
        loss = sum(getattr(said, name).square().mean() for name in outputs)
        assert isinstance(loss, Tensor)
        network.zero_grad(set_to_none=True)
        loss.backward()

    return step


def training(bench: Bench) -> dict[str, Any]:
    """A training step on one clip: its share of the matrix rate, and what checkpointing costs."""
    found: dict[str, Any] = {}
    for name, config in bench.scale.networks.items():
        network = _network(bench, config).train()
        step = _step(network, [bench.scale.frames], bench)
        with FlopCounterMode(display=False) as counter:
            step()
        operations = counter.get_total_flops()

        def recomputed(network: Transformer = network, step: Work = step) -> None:
            network.checkpoint_blocks = True
            step()
            network.checkpoint_blocks = False

        rate = matrix_rate(bench)
        times = bench.taken_in_turn({"plain": step, "checkpointing": recomputed}, "plain")
        found[name] = {
            "weights": sum(p.numel() for p in network.parameters()),
            "tokens": (bench.scale.frames + 1) * _tokens(config),
            "operations": operations,
            "of_matrix_rate": operations / (times["plain"]["ms"] / 1e3) / rate,
            "matrix_rate": rate,
            "times": times,
        }
    return found


def _clip(
    bench: Bench, network: Transformer, config: SampleConfig, after: Work = lambda: None
) -> None:
    """Sample one clip of ``config.frames``, both sides guided."""
    assert config.frames
    _, prompt = blank(network, [1], bench.device)
    model = guided(network, [prompt], [prompt], config.guidance, cached=config.cache)
    given = [Given(torch.zeros(0, *network.latent_shape, device=bench.device), (True,))]
    generators, most = [clip_generator(0)], config.frames
    with autocast(bench.device, bench.dtype), torch.inference_mode():
        for _ in sample_steps(model, given, generators, config, Flowception(), max_length=most):
            after()


def waits(bench: Bench) -> dict[str, Any]:
    """How often a step of the sampler waits for the device, before and after ``tau = 1``.

    Counted by PyTorch's own debug mode, which warns of each wait.
    """
    network = _network(bench, next(iter(bench.scale.networks.values()))).eval()
    counts: list[int] = []
    config = SampleConfig(frames=bench.scale.frames)
    _clip(bench, network, config)  # kernels are chosen here
    if bench.cuda:
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")

            def noted() -> None:
                counts.append(sum("synchroniz" in str(w.message).lower() for w in told))
                told.clear()

            _clip(bench, network, config, noted)
    finally:
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("default")
    before, after = counts[1 : config.steps + 1], counts[config.steps + 1 :]
    return {"start": counts[0], "before": before, "after": after}


def largest(bench: Bench) -> dict[str, Any]:
    """Frames of the longest clip that fits in the memory of cards, trained and sampled."""
    found: dict[str, Any] = {}
    total = torch.cuda.mem_get_info()[1] if bench.cuda else None
    for name, config in bench.scale.networks.items():
        network = _network(bench, config)

        def trained(frames: int, network: Transformer = network) -> None:
            network.train()
            network.checkpoint_blocks = True
            _step(network, [frames], bench)()

        def sampled(frames: int, network: Transformer = network) -> None:
            network.eval()
            _clip(bench, network, SampleConfig(frames=frames, steps=2))

        for card in CARDS:
            if total is not None and card * 1e9 > total:
                continue
            if total is not None:
                torch.cuda.set_per_process_memory_fraction(card * 1e9 / total)
            for task, work in (("training", trained), ("sampling", sampled)):
                found[f"{name}, {card} GB, {task}"] = _most(bench, work)
        if total is not None:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return found


def _most(bench: Bench, work: Callable[[int], None]) -> int:
    """The most frames that ``work`` can do before memory runs out, within an eighth."""

    def fits(frames: int) -> bool:
        try:
            work(frames)
        except torch.OutOfMemoryError:
            return False
        finally:
            if bench.cuda:
                torch.cuda.empty_cache()
        return True

    low = 1
    while low < bench.scale.most and fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > max(low // 8, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def clip(bench: Bench) -> dict[str, Any]:
    """One clip by the network of each preset, eager and with compiled blocks; without the codec."""
    found: dict[str, Any] = {}
    config = SampleConfig(frames=bench.scale.frames)
    for preset, changes in PRESETS.items():
        settings = TrainConfig.from_flat(changes)
        codec, patch = settings.codec, settings.network.patch
        cells = max(bench.scale.side // codec.compression, patch)
        latent, text = (codec.codec_channels, cells, cells), text_config(settings.text)
        shape = network_config(settings, latent, 256, text.width, "transformer")
        network = _network(bench, shape).eval()
        works: dict[str, Work] = {"eager": lambda n=network: _clip(bench, n, config)}
        if bench.cuda:
            compiled = _network(bench, shape).eval()
            compiled.compile_blocks()
            works["compiled"] = lambda n=compiled: _clip(bench, n, config)
        found[preset] = {
            "weights": sum(p.numel() for p in network.parameters()),
            "pixels": cells * codec.compression,
            "frames": bench.scale.frames,
            "times": bench.taken_in_turn(works, "eager"),
        }
    return found


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "attention": attention_routes,
    "training": training,
    "waits": waits,
    "clip": clip,
    "largest": largest,
}


def _cost(part: dict[str, Any]) -> str:
    peak = "" if part["peak_gib"] is None else f", {part['peak_gib']:.2f} GiB"
    ratio = f"{part['over_base']:.2f} x ({part['least']:.2f} to {part['most']:.2f})"
    return f"{part['ms']:.1f} ms, {ratio}{peak}"


def rows(done: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table."""
    lines: list[tuple[str, str]] = []
    if part := done.get("attention"):
        for way, one in part["routes"].items():
            figure = f"attention of {part['tokens']} tokens, forward and backward, {way}"
            lines.append((figure, f"{_cost(one)}, error {one['error']:.1e}"))
    for name, one in done.get("training", {}).items():
        figure = f"training, {name} ({one['weights'] / 1e6:.0f} M), {one['tokens']} tokens"
        share = f"{one['of_matrix_rate']:.0%} of {one['matrix_rate'] / 1e12:.1f} TFLOP/s"
        lines.append((f"{figure}, of the matrix rate", share))
        lines += [(f"{figure}, {way}", _cost(t)) for way, t in one["times"].items()]
    if part := done.get("waits"):
        lines.append(("waits for the device a step, before tau = 1", str(part["before"])))
        lines.append(("waits for the device a step, after", str(part["after"])))
    for preset, one in done.get("clip", {}).items():
        figure = f"a clip of {one['frames']} frames of {one['pixels']} px, {preset}"
        lines += [(f"{figure}, {way}", _cost(t)) for way, t in one["times"].items()]
    for case, frames in done.get("largest", {}).items():
        lines.append((f"longest clip, {case}", f"{frames} frames"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="small enough for a test")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --tiny tries the script itself")
    bench = Bench(options.device, TINY if options.tiny else FULL, options.pairs)
    card = torch.cuda.get_device_name() if bench.cuda else "no GPU"
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    for section in options.only:
        if section not in done:
            done[section] = SECTIONS[section](bench)
            options.output.write_text(json.dumps(done, indent=1))
    print(f"{card}; {machine.described()}; {options.pairs} pairs, seed 0")
    print("\n| figure | measured |\n|---|---|")
    for figure, measured in rows(done):
        print(f"| {figure} | {measured} |")


if __name__ == "__main__":
    main()
