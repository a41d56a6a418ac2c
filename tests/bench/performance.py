"""Where time and memory go, as ratios of things measured in turn in one run.

python tests/bench/performance.py                     # everything; about 15 minutes on two cores
python tests/bench/performance.py --only step guidance

Machines are shared: two things that are compared run in turn, A B A B, and what is printed is the
median of the ratios of neighbours. The network is that of the default preset (64 px) with random
weights whose gates are open, or the shipped model where a row says so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import machine
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowcept import checkpoint, memory, tasks, theatre, train
from flowcept.codec import CodecConfig
from flowcept.device import autocast, pick_dtype
from flowcept.frames import FrameState, Prediction, PromptTokens
from flowcept.model import ModelConfig, Network
from flowcept.process import ProcessConfig, draw
from flowcept.sampler import Given, Model, clip_generator, concat_prompts, guided, sample
from flowcept.settings import SampleConfig, TrainConfig

CPU = torch.device("cpu")
PROMPT = 8  # tokens
Row = tuple[str, str, str]  # figure, asked, measured


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(a: Callable[[], object], b: Callable[[], object], pairs: int) -> tuple[float, float]:
    """Median seconds of ``a``, and the median over pairs of the ratio of ``b`` to ``a``."""
    a(), b()
    times = [(timed(a), timed(b)) for _ in range(pairs)]
    return statistics.median(x for x, _ in times), statistics.median(y / x for x, y in times)


def opened(network: Network) -> Network:
    """The same with gates that are not zero, so that nothing is skipped or denormal."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return network


def states(config: ModelConfig, lengths: Sequence[int]) -> tuple[FrameState, PromptTokens]:
    count = sum(lengths)
    state = FrameState(
        torch.randn(count, config.channels, config.height, config.width),
        torch.rand(count),
        torch.zeros(count, dtype=torch.long),
        torch.rand(len(lengths)),
        torch.ones(len(lengths), dtype=torch.bool),
        tuple(lengths),
    )
    prompts = (PROMPT,) * len(lengths)
    return state, PromptTokens(torch.randn(sum(prompts), config.text_width), prompts)


def loss_of(said: Prediction) -> torch.Tensor:
    return (
        said.velocity_FCHW.square().mean()
        + said.log_missing_F.mean()
        + said.log_missing_first_B.mean()
        + said.count_logits_BK.mean()
    )


def visible(clips: int, seed: int) -> list[int]:
    """Visible frames in training states of that many clips of the theatre."""
    rng, generator = np.random.default_rng(seed), clip_generator(seed)
    found: list[int] = []
    while len(found) < clips:
        law = theatre.length_law(theatre.sample_scene(rng))
        length = int(rng.choice(list(law), p=list(law.values())))
        latent_FCHW = torch.zeros(length, 1, 1, 1)
        pair = draw(latent_FCHW, [False] * length, ProcessConfig(), generator)
        if pair is not None:
            found.append(pair[0].lengths[0])
    return found


class Bench:
    def __init__(self, pairs: int, seed: int) -> None:
        self.pairs, self.seed = pairs, seed
        self.dtype = pick_dtype("auto", CPU)
        torch.manual_seed(seed)

    def pass_of(self, network: Network, lengths: Sequence[int]) -> Callable[[], None]:
        """A forward and backward pass on clips of these lengths."""
        work = states(network.config, lengths)

        def run() -> None:
            with autocast(CPU, self.dtype):
                said = network(*work)
            loss_of(said).backward()
            network.zero_grad()

        return run


def matrix(bench: Bench) -> list[Row]:
    """Forward and backward at 4,096 tokens against the machine's matrix products."""
    network = opened(Network(ModelConfig()))
    lengths, budget = [], 4096 // (network.config.patches + 1)
    for length in visible(200, bench.seed):
        if sum(lengths) + len(lengths) + length + 1 <= budget:
            lengths.append(length)
    run = bench.pass_of(network, lengths)
    with FlopCounterMode(display=False) as counter:
        run()
    side = 2048
    a, b = (torch.randn(side, side, dtype=bench.dtype) for _ in range(2))
    seconds, ratio = in_turn(run, lambda: [a @ b for _ in range(20)], bench.pairs)
    rate = 20 * 2 * side**3 / (seconds * ratio)
    own = counter.get_total_flops() / seconds
    return [
        (
            "forward and backward, 4,096 tokens, of the matrix rate in the same run",
            "50 %",
            f"{own / rate:.0%} ({own / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s, {seconds:.2f} s, "
            f"{bench.dtype})",
        )
    ]


def step(bench: Bench) -> list[Row]:
    """A training step of 24 clips, packed, against the same clips filled up to the longest.

    Filling up costs at least this: masks come on top and are left out here.
    """
    network = opened(Network(ModelConfig()))
    lengths = visible(24, bench.seed)
    packed = bench.pass_of(network, lengths)
    padded = bench.pass_of(network, [max(lengths)] * len(lengths))
    _, ratio = in_turn(packed, padded, bench.pairs)
    tokens = (max(lengths) + 1) * len(lengths) / (sum(lengths) + len(lengths))
    return [("packed training step over padded", "1.6 x", f"{ratio:.2f} x ({tokens:.2f} x tokens)")]


def padded_model(model: Model, length: int) -> Model:
    """The same model on a buffer: every clip is filled up with noise to ``length`` frames."""

    def run(state: FrameState, clips: Sequence[int]) -> Prediction:
        rows, fill = [], sum(state.lengths)
        for start, count in zip(np.cumsum([0, *state.lengths[:-1]]), state.lengths, strict=True):
            rows += [*range(int(start), int(start) + count), *[fill] * (length - count)]

        def filled(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values, values[:1]])[rows]

        own = [row for row, source in enumerate(rows) if source != fill]
        said = model(
            replace(
                state,
                latent_FCHW=filled(state.latent_FCHW),
                time_F=filled(state.time_F),
                role_F=filled(state.role_F),
                lengths=(length,) * len(state.lengths),
            ),
            clips,
        )
        return replace(
            said, velocity_FCHW=said.velocity_FCHW[own], log_missing_F=said.log_missing_F[own]
        )

    return run


class Sixteen:
    """Sixteen prompts for the shipped model, sampled together."""

    def __init__(self, bench: Bench, clips: int = 16, guidance: float = 1.0) -> None:
        self.bench, self.studio = bench, tasks.load("theatre")
        self.settings = SampleConfig(steps=8, guidance=guidance)
        rng = np.random.default_rng(bench.seed)
        text = self.studio.weights.text
        with torch.inference_mode():
            self.prompts = [
                text([theatre.caption(theatre.sample_scene(rng), rng)]) for _ in range(clips)
            ]
            self.away = [text([""])] * clips
        self.model = guided(self.studio.weights.network, self.prompts, self.away, guidance, 1.0)

    def sample(self, model: Model) -> list[torch.Tensor]:
        config = self.studio.card.network
        nothing = torch.zeros(0, config.channels, config.height, config.width)
        count = len(self.prompts)
        with autocast(CPU, self.bench.dtype), torch.inference_mode():
            return sample(
                model,
                [Given(nothing, (True,))] * count,
                [clip_generator(self.bench.seed + clip) for clip in range(count)],
                self.settings,
                self.studio.card.process,
                max_length=self.studio.card.max_length,
            )


def sampling(bench: Bench) -> list[Row]:
    """16 clips of the shipped model, packed, against a buffer of its maximum length.

    The buffer's clips follow what the packed ones said, so that both make the same.
    """
    work = Sixteen(bench)
    longest = work.studio.card.max_length
    said: list[Prediction] = []
    shown: list[FrameState] = []

    def kept(state: FrameState, clips: Sequence[int]) -> Prediction:
        shown.append(state)
        said.append(work.model(state, clips))
        return said[-1]

    work.sample(kept)

    def packed() -> None:
        work.sample(work.model)

    def padded() -> None:
        filled, answers = padded_model(work.model, longest), iter(said)

        def run(state: FrameState, clips: Sequence[int]) -> Prediction:
            filled(state, clips)
            return next(answers)

        work.sample(run)

    _, ratio = in_turn(packed, padded, bench.pairs)
    tokens = sum(len(state.lengths) * (longest + 1) for state in shown) / sum(
        sum(state.lengths) + len(state.lengths) for state in shown
    )
    return [
        (
            f"packed sampling of 16 clips over a buffer of {longest} frames",
            "1.8 x",
            f"{ratio:.2f} x ({tokens:.2f} x tokens)",
        )
    ]


def outside(bench: Bench) -> list[Row]:
    """Share of sampling that is not spent in the network, one clip and 16."""
    cells = []
    for clips in (1, 16):
        work = Sixteen(bench, clips, guidance=2.0)
        shares = []
        for _ in range(bench.pairs):
            inside = 0.0

            def model(state: FrameState, which: Sequence[int], work: Sixteen = work) -> Prediction:
                nonlocal inside
                started = time.perf_counter()
                said = work.model(state, which)
                inside += time.perf_counter() - started
                return said

            total = timed(lambda work=work, model=model: work.sample(model))
            shares.append(1 - inside / total)
        cells.append(f"{statistics.median(shares):.1%} ({clips} clip{'s' * (clips > 1)})")
    return [("sampling outside the network", "5 %", ", ".join(cells))]


def guidance(bench: Bench) -> list[Row]:
    """Both sides of guidance in one packed call against two calls, the shipped model."""
    cells = []
    for clips in (1, 16):
        work = Sixteen(bench, clips, guidance=2.0)
        network = work.studio.weights.network

        def two(
            state: FrameState,
            which: Sequence[int],
            work: Sixteen = work,
            network: Network = network,
        ) -> Prediction:
            wanted = network(state, concat_prompts([work.prompts[clip] for clip in which]))
            base = network(state, concat_prompts([work.away[clip] for clip in which]))
            return replace(
                wanted,
                velocity_FCHW=torch.lerp(base.velocity_FCHW, wanted.velocity_FCHW, 2.0),
            )

        _, ratio = in_turn(
            lambda work=work: work.sample(work.model),
            lambda work=work, two=two: work.sample(two),
            bench.pairs,
        )
        cells.append(f"two calls take {ratio:.2f} x ({clips} clip{'s' * (clips > 1)})")
    calls = 0
    work = Sixteen(bench, 1)

    def counted(state: FrameState, which: Sequence[int]) -> Prediction:
        nonlocal calls
        calls += len(state.lengths)
        return work.model(state, which)

    work.sample(counted)
    cells.append(f"guidance 1: {calls} clips in {2 * work.settings.steps} evaluations at most")
    return [("guidance in one packed call", "not slower than two", "; ".join(cells))]


LENGTHS = (16, 64, 256, 1024)


def length(bench: Bench) -> list[Row]:
    """One evaluation of a clip of growing length under local attention, window 4."""
    network = opened(Network(ModelConfig(window=4))).eval()
    seconds: dict[int, list[float]] = {n: [] for n in LENGTHS}
    work = {n: states(network.config, [n]) for n in LENGTHS}
    with autocast(CPU, bench.dtype), torch.inference_mode():
        for _ in range(bench.pairs + 1):
            for n in LENGTHS:
                seconds[n].append(timed(lambda n=n: network(*work[n])))
    per_frame = {n: statistics.median(times[1:]) / n * 1e3 for n, times in seconds.items()}
    held = {n: memory.evaluation_bytes(network, [n]) / n / 2**20 for n in LENGTHS}
    figure = "one evaluation, window 4, at 16, 64, 256, 1,024 frames"
    return [
        (
            f"{figure}: ms a frame",
            "linear within 10 %",
            ", ".join(f"{value:.2f}" for value in per_frame.values()),
        ),
        (
            f"{figure}: MiB a frame, counted in float32",
            "linear within 10 %",
            ", ".join(f"{value:.2f}" for value in held.values()),
        ),
    ]


PEAK = """
import re, sys
from pathlib import Path
from flowcept.cli import main
try:
    main()
finally:
    found = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    print("peak", int(found[1]) * 1024 / 1e9)
"""


def long_clip(bench: Bench) -> list[Row]:
    """`gen --frames 1024` of a model of 128 px with random weights, window 4, as a process."""
    card = tasks.load("theatre").card
    network = replace(card.network, height=32, width=32, window=4)
    codec = CodecConfig(
        kind="autoencoder", compression=4, channels=network.channels, width=card.codec.width
    )
    torch.manual_seed(bench.seed)
    weights = checkpoint.build(replace(card, network=network, codec=codec, size=(128, 128)))
    opened(weights.network)
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "long.safetensors"
        checkpoint.save(weights, model)
        for guided_by in ("1", "2"):
            words = ["gen", "", "-m", str(model), "--frames", "1024", "--steps", "2", "--scale"]
            words += ["1", "--guidance", guided_by, "--seed", "1", "-o", f"{folder}/long.mp4"]
            run = subprocess.run(
                [sys.executable, "-c", PEAK, *words], check=True, capture_output=True, text=True
            )
            peak = float(run.stdout.split()[-1])
            cells.append(f"{peak:.2f} GB (guidance {guided_by})")
    return [("gen of 1,024 frames at 128 px: peak memory", "2 GB", ", ".join(cells))]


def loader(bench: Bench) -> list[Row]:
    """Drawing a batch against the whole training step, default preset, on the theatre."""
    shares = []
    draw_own, step_own, run_own = (
        train.Trainer.draw,
        train.Trainer.train_step,
        train.Trainer.run_to_end,
    )
    spent = 0.0

    def drawn(self: train.Trainer) -> object:
        nonlocal spent
        started = time.perf_counter()
        batch = draw_own(self)
        spent += time.perf_counter() - started
        return batch

    def run(self: train.Trainer, *_: object) -> None:
        nonlocal spent
        for number in range(bench.pairs + 1):
            spent = 0.0
            total = timed(lambda: step_own(self))
            if number:
                shares.append(spent / total)

    train.Trainer.draw, train.Trainer.run_to_end = drawn, run  # type: ignore[method-assign,assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            theatre.write_theatre(data, 60, seed=bench.seed)
            train.train(data, Path(folder) / "run", TrainConfig(codec_steps=1), quiet=True)
    finally:
        train.Trainer.draw, train.Trainer.run_to_end = draw_own, run_own  # type: ignore[method-assign]
    return [("data loader, of the training step", "3 %", f"{statistics.median(shares):.1%}")]


LOAD = """
import time
started = time.perf_counter()
import torch
middle = time.perf_counter()
from flowcept import tasks
tasks.load("theatre")
print(middle - started, time.perf_counter() - middle)
"""


def start(bench: Bench) -> list[Row]:
    """`--help`, and what opening the shipped model adds to importing torch, as processes."""
    python = [sys.executable]
    helped = [
        timed(lambda: subprocess.run([*python, "-m", "flowcept.cli", "--help"], check=True,
                                     stdout=subprocess.DEVNULL))
        for _ in range(bench.pairs)
    ]  # fmt: skip
    loaded = []
    for _ in range(bench.pairs):
        run = subprocess.run([*python, "-c", LOAD], check=True, capture_output=True, text=True)
        loaded.append([float(value) for value in run.stdout.split()])
    torch_s, load_s = (statistics.median(column) for column in zip(*loaded, strict=True))
    return [
        ("flowcept --help", ".5 s", f"{statistics.median(helped):.2f} s"),
        (
            "opening the shipped model beside import torch",
            ".5 s",
            f"{load_s:.2f} s (import torch {torch_s:.2f} s)",
        ),
    ]


def gen(bench: Bench) -> list[Row]:
    """`gen "a dog surfing"` with defaults, the whole process."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(bench.pairs):
            words = ["gen", "a dog surfing", "-o", f"{folder}/{seed}.mp4", "--seed", str(seed)]
            command = [sys.executable, "-m", "flowcept.cli", *words, "--quiet"]
            seconds.append(timed(lambda command=command: subprocess.run(command, check=True)))
    measured = f"{statistics.median(seconds):.1f} s (worst {max(seconds):.1f})"
    return [('gen "a dog surfing", whole process', "8 s", measured)]


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    f.__name__: f
    for f in (matrix, step, sampling, outside, guidance, length, long_clip, loader, start, gen)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bench = Bench(options.pairs, options.seed)
    print(f"{machine.described()}; seed {options.seed}, medians of {options.pairs}")
    print("\n| figure | asked | measured |\n|---|---|---|")
    for name in options.only:
        for row in SECTIONS[name](bench):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
