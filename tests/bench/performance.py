"""Where time and memory go on a CPU, as ratios of pairs taken in one run: docs/performance.md.

python tests/bench/performance.py --output performance.json             # about twenty minutes
python tests/bench/performance.py --output performance.json --only training sampling

What is compared runs in turn, A B A B, and the median of the ratios pair by pair is printed with
the smallest and the largest: machines are shared, and their speed drifts. A run that is cut goes on
where it stopped. The padded baseline is the same network on clips that are all as long as the
longest one, with masks on keys and queries that are none; it computes what padding computes.

Shape suffixes: F frames, B clips, R query rows, S key rows, P tokens per row, N heads, E width of a
head.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from blank import blank
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from flowcept import model_file
from flowcept.codecs import CodecConfig, build_codec
from flowcept.data import batches, shapes, video
from flowcept.data.contexts import draw_context
from flowcept.device import autocast
from flowcept.model_file import Card, Weights
from flowcept.networks.attention import Plan, attend
from flowcept.networks.text import ByteEncoder, TextConfig, build_encoder
from flowcept.networks.transformer import Transformer, TransformerConfig
from flowcept.process import forward as process
from flowcept.process import state as frames
from flowcept.process.forward import Flowception, Target
from flowcept.process.guidance import guided
from flowcept.process.loss import LossConfig, count_terms
from flowcept.process.sampler import clip_generator, latents_of, sample_steps
from flowcept.process.state import FrameState, Given, Prediction, PromptTokens, Rest
from flowcept.settings import ContextMixture, ObjectiveSettings, SampleConfig
from flowcept.training.trainer import Learner

CPU = torch.device("cpu")
BFLOAT16 = torch.bfloat16
PROMPT = "a dog surfing at sunset"
Work = Callable[[], object]


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired(a: Work, b: Work, pairs: int) -> dict[str, Any]:
    """Median seconds of both after one warm-up each, and the ratio b / a pair by pair."""
    a(), b()
    times = [(seconds(a), seconds(b)) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in times)
    return {
        "a_s": statistics.median(a for a, _ in times),
        "b_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
    }


def drawn_lengths(clips: int, seed: int) -> list[int]:
    """Lengths of drawn clips."""
    rng = np.random.default_rng(seed)
    return [shapes.sample_length(shapes.sample_scene(rng), rng) for _ in range(clips)]


def prompts(text: Any, count: int) -> PromptTokens:
    return text([PROMPT] * count)


class Subject:
    """The default preset's network with a prompt encoder, as training and sampling hold it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.config, self.process = TransformerConfig(), Flowception(shift=2.0)
        self.network = Transformer(self.config, self.process.shift)
        with torch.no_grad():  # fresh gates are closed: open them, as training does
            for parameter in self.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        self.text = build_encoder(TextConfig(width=self.config.text_width))
        assert isinstance(self.text, ByteEncoder)
        self.text.know(PROMPT.split())
        self.learner = Learner(self.network, self.text, LossConfig(), self.process)
        self.row = self.network.tokens_per_frame

    def latent(self, length: int, seed: int) -> Tensor:
        shape = (length, *self.network.latent_shape)
        return torch.randn(shape, generator=clip_generator(seed))

    def batch(self, tokens: int) -> tuple[FrameState, Target, dict[str, int]]:
        """Clips of drawn lengths part of the way through, up to so many tokens."""
        generator, pairs, size = clip_generator(1), [], 0
        for number, length in enumerate(drawn_lengths(1000, 1)):
            context = draw_context(length, ContextMixture(), generator)
            pair = context and process.draw(
                self.latent(length, number), context, self.process, generator
            )
            if pair:
                size += (pair[0].lengths[0] + 1) * self.row
                if size > tokens:
                    break
                pairs.append(pair)
        state, target = process.concat(pairs)
        return state, target, count_terms(state, [PROMPT] * len(pairs))

    def step(self, state: FrameState, target: Target, counts: dict[str, int]) -> None:
        """Forward and backward."""
        with autocast(CPU, BFLOAT16):
            loss, _ = self.learner(state, target, [PROMPT] * len(state.lengths), counts)
        loss.backward()


def pad(state: FrameState, longest: int) -> tuple[FrameState, list[int]]:
    """Every clip with finished generated frames of zeros at its end, and where its own are."""
    lengths = [longest] * len(state.lengths)
    rows = [b * longest + f for b, n in enumerate(state.lengths) for f in range(n)]
    total = longest * len(lengths)

    def spread(x: Tensor, fill: float) -> Tensor:
        out = x.new_full((total, *x.shape[1:]), fill)
        out[rows] = x
        return out

    wide = FrameState(
        spread(state.latent_FCHW, 0),
        spread(state.time_F, 1),
        spread(state.role_F, 0),
        state.tau_B,
        state.open_first_B,
        tuple(lengths),
    )
    return wide, rows


@contextmanager
def masked(network: Transformer, lengths: Sequence[int], longest: int) -> Iterator[None]:
    """Attention among rows of padded clips leaves out what is padding."""
    real_BS = torch.arange(longest + 1)[None] <= torch.tensor(lengths)[:, None]

    def masked_attend(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, plan: Plan) -> Tensor:
        rows = len(lengths) * (longest + 1)
        if len(q_RPNE) != rows or len(k_SPNE) != rows:
            return attend(q_RPNE, k_SPNE, v_SPNE, plan)
        mask_BS = real_BS.repeat_interleave(q_RPNE.shape[1], 1)[:, None, None]
        q, k, v = (
            x.unflatten(0, (len(lengths), -1)).flatten(1, 2).transpose(1, 2)
            for x in (q_RPNE, k_SPNE, v_SPNE)
        )
        if q.requires_grad:  # the same plain products that packed training takes
            score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            score = score.masked_fill(~mask_BS, -torch.inf)
            out = score.softmax(-1, dtype=q.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BS)
        return out.transpose(1, 2).reshape(q_RPNE.shape)

    network.attend = masked_attend
    try:
        yield
    finally:
        network.attend = attend


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, views left out: what nothing fused would move."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
        known = {x.untyped_storage()._cdata for x in read}
        fresh = any(x.untyped_storage()._cdata not in known for x in written)
        if fresh or func._schema.is_mutable:
            self.bytes += sum(x.numel() * x.element_size() for x in read + written)
        return made


def floors(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part beside its operations over the matrix rate, its bytes over bandwidth."""
    a, b = (torch.randn(2048, 2048, dtype=BFLOAT16) for _ in range(2))
    large = torch.randn(2**26)
    other = torch.empty_like(large)
    rate = 2 * 2048**3 / statistics.median(seconds(lambda: a @ b) for _ in range(20))
    bandwidth = (
        2 * 4 * 2**26 / statistics.median(seconds(lambda: other.copy_(large)) for _ in range(20))
    )
    state, target, counts = subject.batch(4096)
    seen, words = blank(subject.network, [16, 16], "cpu")
    codec = build_codec(CodecConfig("autoencoder", 4, subject.config.channels, 64)).eval()
    image_FCHW, latent_FCHW = torch.rand(16, 3, 64, 64), subject.latent(16, 1)

    def evaluation() -> None:
        with autocast(CPU, BFLOAT16), torch.inference_mode():
            subject.network(seen, words)

    def encode() -> None:
        with autocast(CPU, BFLOAT16):
            codec.encode(image_FCHW)

    def decode() -> None:
        with autocast(CPU, BFLOAT16):
            codec.decode(latent_FCHW)

    parts: dict[str, Work] = {
        "training step, 4,096 tokens": lambda: subject.step(state, target, counts),
        "evaluation, 16 frames, both sides of guidance": evaluation,
        "encode 16 frames": encode,
        "decode 16 frames": decode,
    }
    found: dict[str, Any] = {"gflops": rate / 1e9, "gbytes_per_s": bandwidth / 1e9}
    for name, work in parts.items():
        work()
        with FlopCounterMode(display=False) as counter:
            work()
        with Traffic() as traffic:
            work()
        found[name] = {
            "s": statistics.median(seconds(work) for _ in range(options.pairs)),
            "operations_s": counter.get_total_flops() / rate,
            "bytes_s": traffic.bytes / bandwidth,
        }
    with tempfile.TemporaryDirectory() as folder:
        frames_FHW3 = np.random.default_rng(0).integers(0, 255, (16, 256, 256, 3), dtype=np.uint8)
        path = Path(folder) / "out.mp4"
        found["write 16 frames of 256 px as mp4"] = {
            "s": statistics.median(
                seconds(lambda: video.write_video(path, frames_FHW3, 12)) for _ in range(5)
            )
        }
    return found


def matrix(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward at 4,096 tokens against the rate of plain matrix products."""
    state, target, counts = subject.batch(4096)
    with FlopCounterMode(display=False) as counter:
        subject.step(state, target, counts)
    work = counter.get_total_flops()
    a, b = (torch.randn(2048, 2048, dtype=BFLOAT16) for _ in range(2))
    products = 20

    def multiply() -> None:
        for _ in range(products):
            a @ b

    found = paired(multiply, lambda: subject.step(state, target, counts), options.pairs)
    rate = products * 2 * 2048**3 / found["a_s"] / 1e9
    own = work / found["b_s"] / 1e9
    share = work / (products * 2 * 2048**3)
    return {
        "matrix_gflops": rate,
        "network_gflops": own,
        "share": share / found["ratio"],
        "least": share / found["most"],
        "most": share / found["least"],
        "tokens": (sum(state.lengths) + len(state.lengths)) * subject.row,
    }


def training(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """A packed step against the same step on padded clips with masks, drawn lengths."""
    state, target, counts = subject.batch(4096)
    longest = max(state.lengths)
    wide, rows = pad(state, longest)
    far = replace(
        target,
        velocity_FCHW=wide.latent_FCHW.new_zeros(wide.latent_FCHW.shape),
        missing_F=wide.time_F.new_zeros(wide.time_F.shape),
    )
    far.velocity_FCHW[rows] = target.velocity_FCHW
    far.missing_F[rows] = target.missing_F

    def padded() -> None:
        with masked(subject.network, state.lengths, longest):
            subject.step(wide, far, counts)

    found = paired(lambda: subject.step(state, target, counts), padded, options.pairs)
    return found | {"tokens": (len(wide.time_F) + len(state.lengths))
                    / (sum(state.lengths) + len(state.lengths))}  # fmt: skip


def _sampled(subject: Subject, network: Any, clips: int, config: SampleConfig) -> list[Tensor]:
    """Clips of drawn lengths, known beforehand so that both ways do the same work."""
    lengths = drawn_lengths(clips, 2)
    given = [Given(subject.latent(0, 0), (True,), (length,)) for length in lengths]
    with autocast(CPU, BFLOAT16), torch.inference_mode():
        words = [prompts(subject.text, 1)] * clips
        steps = sample_steps(
            guided(network, words, words, config.guidance, cached=config.cache),
            given,
            [clip_generator(clip) for clip in range(clips)],
            config,
            subject.process,
            max_length=64,
        )
        return latents_of(steps)


def sampling(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """16 clips packed against a buffer of the longest length for every one of them."""
    longest = max(drawn_lengths(1000, 1))
    config = SampleConfig(guidance=1.0, cache=False)

    def buffered(state: FrameState, prompt: PromptTokens, _: Rest | None) -> Prediction:
        wide, rows = pad(state, longest)
        with masked(subject.network, state.lengths, longest):
            said = subject.network(wide, prompt)
        return replace(
            said, velocity_FCHW=said.velocity_FCHW[rows], log_missing_F=said.log_missing_F[rows]
        )

    return paired(
        lambda: _sampled(subject, subject.network, 16, config),
        lambda: _sampled(subject, buffered, 16, config),
        options.pairs,
    ) | {"longest": longest}


def outside(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """The share of sampling that is not the network: bookkeeping, noise, insertion, packing."""
    inside = 0.0

    def timed(state: FrameState, prompt: PromptTokens, rest: Rest | None) -> Prediction:
        nonlocal inside
        started = time.perf_counter()
        said = subject.network(state, prompt, rest)
        inside += time.perf_counter() - started
        return said

    shares = {}
    for clips in (1, 16):
        found = []
        for _ in range(options.pairs + 1):
            inside = 0.0
            whole = seconds(lambda clips=clips: _sampled(subject, timed, clips, SampleConfig()))
            found.append(1 - inside / whole)
        shares[f"{clips} clips"] = statistics.median(found[1:])
    return shares


def guidance(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of guidance in one packed call against two calls; evaluations at guidance 1."""

    def twice(state: FrameState, prompt: PromptTokens, _: Rest | None) -> Prediction:
        half = len(state.lengths) // 2
        tokens = prompt.token_SD.split([sum(prompt.lengths[:half]), sum(prompt.lengths[half:])])
        parts = []
        for number, words in enumerate(tokens):
            chosen = range(number * half, (number + 1) * half)
            lengths = prompt.lengths[number * half : (number + 1) * half]
            said = subject.network(frames.select(state, chosen), PromptTokens(words, lengths))
            parts.append(said)
        names = ("velocity_FCHW", "log_missing_F", "log_missing_first_B", "size_logits_BK")
        return Prediction(*(torch.cat([getattr(p, name) for p in parts]) for name in names))

    found: dict[str, Any] = {}
    for clips in (1, 8):
        config = SampleConfig(cache=False)
        found[f"{clips} clips"] = paired(
            lambda clips=clips, config=config: _sampled(subject, subject.network, clips, config),
            lambda clips=clips, config=config: _sampled(subject, twice, clips, config),
            options.pairs,
        )
    calls: list[int] = []

    def counted(state: FrameState, prompt: PromptTokens, rest: Rest | None) -> Prediction:
        calls.append(len(state.lengths))
        return subject.network(state, prompt, rest)

    _sampled(subject, counted, 1, SampleConfig(guidance=1.0))
    return found | {"clips per evaluation at guidance 1": sorted(set(calls))}


def cache(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Sampling in which finished frames rest against evaluating every frame to the end."""
    found = {}
    for clips in (1, 8):
        works = [
            lambda clips=clips, kept=kept: _sampled(
                subject, subject.network, clips, SampleConfig(cache=kept)
            )
            for kept in (True, False)
        ]
        found[f"{clips} clips"] = paired(*works, options.pairs)
    return found


PEAK = """
from pathlib import Path
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM:"))
"""
LONG = """
import sys, time
import flowcept
path, frames, output = sys.argv[1:]
studio = flowcept.load(path)
started = time.perf_counter()
clip = studio.generate(
    "a dog", frames=int(frames), steps=2, guidance=1.0, scale=1, seed=1
)
clip.save(output)
print(time.perf_counter() - started, peak())
"""
LOAD = """
import time
started = time.perf_counter()
import torch
imported = time.perf_counter()
from flowcept import model_file, models
model_file.load(models.find(models.DEFAULT).path)
print(imported - started, time.perf_counter() - imported)
"""
GEN = """
from flowcept import cli
try:
    cli.main()
finally:
    print(peak())
"""


def length(_: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Making and writing one clip by its frames, of which those within 4 are seen; 128 pixels.

    A process for each; loading is not timed, but its memory counts.
    """
    config = TransformerConfig(height=32, width=32, largest_size=64, window=4)
    torch.manual_seed(0)
    card = Card(
        network=config, process=Flowception(), text=TextConfig(width=config.text_width),
        codec=CodecConfig("autoencoder", 4, config.channels, 64), size=(128, 128), fps=12.0,
        lengths={64: 1}, dataset="none", prompts={}, words={}, steps=0,
    )  # fmt: skip
    weights: Weights = model_file.build(card)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.safetensors"
        model_file.save(weights, path)
        for count in options.lengths:
            words = [str(path), str(count), f"{folder}/{count}.mp4"]
            done = subprocess.run(
                [sys.executable, "-c", PEAK + LONG, *words],
                check=True,
                capture_output=True,
                text=True,
            )
            took, peak = done.stdout.split()
            found[str(count)] = {"s": float(took), "GiB": float(peak)}
    return found


def loader(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Drawing a batch against the step that learns from it, at the default preset's tokens."""

    class Clips:
        lengths = drawn_lengths(400, 3)
        captions = [PROMPT] * 400

        def latent(self, i: int) -> Tensor:
            return stored[i].float()

    stored = [subject.latent(n, i).half() for i, n in enumerate(Clips.lengths)]

    def draw() -> batches.Batch:
        lessons = batches.Lessons(Clips(), subject.process, ContextMixture(), ObjectiveSettings())
        return batches.draw_batch(
            lessons, range(400), seed=0, step=0, cursor=0, tokens=4096,
            tokens_per_frame=subject.row, least=1,
        )  # fmt: skip

    state, target = process.concat(draw().pairs)
    counts = count_terms(state, [PROMPT] * len(state.lengths))
    return paired(lambda: subject.step(state, target, counts), draw, options.pairs)


def startup(_: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Processes: --help; importing torch, then loading the shipped model; gen, and its memory."""

    def run(*words: str) -> Work:
        return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)

    help_s = [seconds(run("-m", "flowcept", "--help")) for _ in range(options.pairs + 1)][1:]

    def load() -> list[float]:
        command = [sys.executable, "-c", LOAD]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [float(word) for word in done.stdout.split()]

    torch_s, load_s = zip(*[load() for _ in range(options.pairs + 1)][1:], strict=True)
    with tempfile.TemporaryDirectory() as folder:
        words = ("-m", "flowcept", "gen", "a dog surfing", "-q", "--seed", "1")
        gen_s = [seconds(run(*words, "-o", f"{folder}/{i}.mp4")) for i in range(options.pairs)]
        measured = [sys.executable, "-c", PEAK + GEN, *words[2:], "-o", f"{folder}/last.mp4"]
        done = subprocess.run(measured, check=True, capture_output=True, text=True)
        peak = float(done.stdout.split()[-1])
    return {
        "help_s": statistics.median(help_s),
        "load_s": statistics.median(load_s),
        "torch_s": statistics.median(torch_s),
        "gen_s": statistics.median(gen_s),
        "gen_worst_s": max(gen_s),
        "gen_GiB": peak,
    }


WAITING = {  # how threads wait for each other
    "passive": {"OMP_WAIT_POLICY": "passive"},  # what the command sets
    "as OpenMP does": {"OMP_WAIT_POLICY": ""},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "import torch; torch.set_num_threads(1); x = torch.ones(600, 600)\nwhile True: x @ x"


def waiting(_: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Processes: gen by how threads wait, with nothing, one and two busy processes beside it."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}

    def gen(words: dict[str, str], folder: str) -> Work:
        command = [sys.executable, "-m", "flowcept", "gen", "a dog surfing", "-q", "--seed", "1"]
        command += ["-o", f"{folder}/out.mp4"]
        return lambda: subprocess.run(command, check=True, capture_output=True, env=own | words)

    found: dict[str, Any] = {}
    for busy in range(3):
        beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            with tempfile.TemporaryDirectory() as folder:
                works = {name: gen(words, folder) for name, words in WAITING.items()}
                rounds = [{n: seconds(w) for n, w in works.items()} for _ in range(options.pairs)]
        finally:
            for process in beside:
                process.kill()
                process.wait()
        found[str(busy)] = {n: statistics.median(r[n] for r in rounds) for n in works}
    return found


SECTIONS = {
    f.__name__: f
    for f in (floors, matrix, training, sampling, outside, guidance, cache, length, loader, startup,
              waiting)
}  # fmt: skip


def _spread(part: dict[str, Any]) -> str:
    return f"{part['ratio']:.2f} x ({part['least']:.2f} to {part['most']:.2f})"


def rows(done: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Figure, asked, measured."""
    if part := done.get("matrix"):
        yield (
            f"forward and backward, {part['tokens']} tokens, bf16, of the matrix rate",
            "50 %",
            f"{part['share']:.0%} ({part['least']:.0%} to {part['most']:.0%}); "
            f"{part['network_gflops']:.0f} of {part['matrix_gflops']:.0f} GFLOP/s",
        )
    if part := done.get("training"):
        yield (
            f"padded training step over packed; {part['tokens']:.2f} x the tokens",
            "1.6 x",
            _spread(part),
        )
    if part := done.get("sampling"):
        yield (
            f"padded sampling of 16 clips ({part['longest']} frames) over packed",
            "1.8 x",
            _spread(part),
        )
    if part := done.get("outside"):
        yield (
            "sampling outside the network",
            "5 %",
            ", ".join(f"{name} {share:.1%}" for name, share in part.items()),
        )
    for name, part in done.get("cache", {}).items():
        yield f"finished frames evaluated over at rest, {name}", "1.5 x", _spread(part)
    if part := done.get("guidance"):
        for name in ("1 clips", "8 clips"):
            yield f"guidance in two calls over one, {name}", "1 x", _spread(part[name])
        yield (
            "evaluations a step at guidance 1",
            "1",
            f"{part['clips per evaluation at guidance 1']} clips each",
        )
    if part := done.get("length"):
        yield (
            "a clip by its frames, 128 px, window 4",
            "linear within 10 %; 1,024 under 2 GB",
            (
                "; ".join(
                    f"{n}: {p['s']:.1f} s, {p['GiB'] * 1.0737:.2f} GB" for n, p in part.items()
                )
            ),
        )
    if part := done.get("loader"):
        yield "drawing a batch, of a training step", "3 %", f"{part['ratio']:.2%}"
    if part := done.get("startup"):
        yield "flowcept --help", ".5 s", f"{part['help_s']:.2f} s"
        yield (
            "shipped model beside import torch",
            ".5 s",
            f"{part['load_s']:.2f} s ({part['torch_s']:.2f} s for torch)",
        )
        yield (
            'gen "a dog surfing", whole process',
            "8 s",
            (
                f"{part['gen_s']:.1f} s (worst {part['gen_worst_s']:.1f}), "
                f"{part['gen_GiB'] * 1.0737:.2f} GB"
            ),
        )
    for busy, part in done.get("waiting", {}).items():
        yield (
            f"the same beside {busy} busy processes, by how threads wait",
            "as one thread",
            "; ".join(f"{name} {s:.1f} s" for name, s in part.items()),
        )


def floor_rows(part: dict[str, Any]) -> Iterator[str]:
    """The table of parts and their floors."""
    yield (
        f"Matrix products {part['gflops']:.0f} GFLOP/s (bfloat16, 2,048 squared), copying "
        f"{part['gbytes_per_s']:.1f} GB/s.\n"
    )
    yield "| part | measured | operations over matrix rate | bytes moved over bandwidth |"
    yield "|---|---|---|---|"
    for name, one in part.items():
        if isinstance(one, dict):
            floor = [f"{one[k] * 1e3:.0f} ms" if k in one else "" for k in FLOORS]
            yield f"| {name} | {one['s'] * 1e3:.0f} ms | {floor[0]} | {floor[1]} |"


FLOORS = ("operations_s", "bytes_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON of what is done so far")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024])
    options = parser.parse_args()
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    done.setdefault("machine", machine.described())
    subject = Subject()
    for name in options.only:
        if name not in done:
            done[name] = SECTIONS[name](subject, options)
            options.output.write_text(json.dumps(done, indent=1) + "\n")
    print(f"{done['machine']}; {options.pairs} pairs, medians\n")
    if "floors" in done:
        print("\n".join(floor_rows(done["floors"])) + "\n")
    print("| figure | goal | measured |\n|---|---|---|")
    print("\n".join(f"| {figure} | {asked} | {found} |" for figure, asked, found in rows(done)))


if __name__ == "__main__":
    main()
