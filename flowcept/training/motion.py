"""Train a ``MotionNetwork`` on windows of real shots and of moving layers.

python -m flowcept.training.motion --clips DIR --photos DIR -o RUN --hours H
python -m flowcept.training.motion --clips DIR --photos DIR -o RUN --hours H --resume
python -m flowcept.training.motion --export RUN/state.pt -o motion.safetensors

RUN holds ``log.jsonl`` (losses; scores of held-out windows), ``state.pt`` (all that goes on),
``motion.safetensors`` (the averaged weights as a model file, as ``--export`` makes it of a state)
and ``sheet.png`` (held-out frames: left, guess, truth, right, error four times). SIGTERM and Ctrl-C
save the state first. A resumed run computes bit for bit what an uninterrupted one does if its
length is told in steps; if in hours, the rate follows the clock.

Shape suffixes: N windows, C channels, H W height and width, D cues, G counts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept import model_file
from flowcept.codecs import CodecConfig, Pixels
from flowcept.data.motion_windows import (
    Batch,
    MotionData,
    WindowDrawer,
    WindowsConfig,
    held_windows,
    prepare,
)
from flowcept.data.video import replacing
from flowcept.errors import UserError
from flowcept.model_file import Card, Weights
from flowcept.networks.flow import DisEstimator
from flowcept.networks.motion import (
    GapLaw,
    MotionConfig,
    MotionNetwork,
    hand_made,
    painted,
)
from flowcept.networks.motion_video import MotionVideo
from flowcept.networks.text import TextConfig, build_encoder
from flowcept.process.forward import Flowception
from flowcept.training.state import Files
from flowcept.training.stopping import stoppable, whole

LEVELS = 5  # of the Laplacian pyramid
LEAST_ERROR = 1e-4  # mean squared error, pictures in [-1, 1]: better than 46 dB earns nothing
LEAST_DIFFERENCE = 0.01  # of a pixel, in the same units, in what the expected error is taught
SHEET_ROWS = 8
LONGEST_STEP = 60.0  # seconds: of a step that took longer the process was paused for the rest
LOOK_EVERY = 200  # steps from one look for new flows to the next
STRIDES = (1, 2, 3, 4)  # shots are told at their own rate, at a half, a third and a quarter of it
LAW_RATE = 1e-3
LAW_DECAY = 0.1
LAW_BATCH = 64  # pairs of pictures a step
LAW_NOISE = 0.3  # of the cues' spread: few shots, and each has a pace to learn by heart


@dataclass(frozen=True)
class MotionTrainConfig:
    """How a network of motion is trained."""

    hours: float = 10.0  # of the whole training; the rate falls to 0 over them
    steps: int = 0  # of the whole training instead of hours; 0: hours
    learning_rate: float = 3e-4  # at its peak
    warmup: int = 300  # steps over which the rate rises
    weight_decay: float = 1e-3  # of AdamW
    clip: float = 0.5  # bound on the gradient's norm
    average: float = 0.999  # decay per step of the averaged weights
    log_error_weight: float = 1.0  # of the mean logarithm of the squared error
    expected_weight: float = 0.02  # of what the network expects of its own error
    law_steps: int = 4000  # of the law of gaps, before all else
    log_every: int = 50  # steps
    check_every: int = 500  # steps from one score of held-out windows to the next
    save_minutes: float = 5.0  # from one saved state to the next
    bfloat16: bool = True  # convolutions of the training alone
    seed: int = 0  # of weights and windows
    ready_only: bool = False  # draw only windows whose flows are in the cache already
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    network: MotionConfig = field(default_factory=MotionConfig)


# ---- losses ----------------------------------------------------------------------------------


def laplacian_loss(made_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Mean absolute difference of the levels of two Laplacian pyramids, the k-th times 2^k.

    A pyramid of the difference is the difference of the pyramids.
    """
    rest_NCHW = made_NCHW - truth_NCHW
    total = torch.zeros((), device=made_NCHW.device)
    for level in range(LEVELS - 1):
        coarse_NChw = F.avg_pool2d(rest_NCHW, 2)
        smooth = F.interpolate(coarse_NChw, rest_NCHW.shape[-2:], mode="bilinear")
        total = total + 2**level * (rest_NCHW - smooth).abs().mean()
        rest_NCHW = coarse_NChw
    loss: Tensor = total + 2 ** (LEVELS - 1) * rest_NCHW.abs().mean()
    return loss


def log_error_loss(made_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Mean over pictures of the logarithm of the mean squared error: PSNR up to a factor."""
    error_N = (made_NCHW - truth_NCHW).square().flatten(1).mean(1)
    return torch.log(error_N + LEAST_ERROR).mean()


def expected_error_loss(log_error_N1HW: Tensor, made_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Squared difference of what error the network expects and what it has, as logarithms."""
    error_N1HW = (made_NCHW - truth_NCHW).abs().mean(1, keepdim=True).detach()
    near_N1HW = F.avg_pool2d(error_N1HW, 5, 1, 2, count_include_pad=False)
    return F.mse_loss(log_error_N1HW, torch.log(near_N1HW + LEAST_DIFFERENCE))


# ---- the run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LawExamples:
    """Cues of pairs of pictures and the number of frames between them."""

    cue_ND: Tensor
    between_N: Tensor


def _law_examples(data: MotionData, most: int) -> tuple[LawExamples, LawExamples]:
    """Those to learn from, and those held out."""
    table = data.law_examples()
    known = table["between"] <= most
    parts = [known & (table["held"] == held) for held in (False, True)]
    learned, held = (LawExamples(table["cues"][rows], table["between"][rows]) for rows in parts)
    return slower(learned), slower(held)


def slower(examples: LawExamples) -> LawExamples:
    """The same pictures as of shots of which every frame, or every second, third or fourth is kept.

    A user's clip may have 60 frames a second or 8. So that all rates count alike, pairs whose
    distance a stride divides stand there as many times as the stride says: 1 in k distances is
    divided by k.
    """
    cues, betweens = [], []
    spacing_N = examples.between_N + 1
    for stride in STRIDES:
        rows = torch.nonzero(spacing_N % stride == 0)[:, 0].repeat(stride)
        cues.append(examples.cue_ND[rows])
        betweens.append(spacing_N[rows] // stride - 1)
    return LawExamples(torch.cat(cues), torch.cat(betweens))


def fit_law(law: GapLaw, examples: LawExamples, steps: int, seed: int) -> None:
    """Teach the law of gaps by cross-entropy, with noise on the cues; it takes seconds."""
    cue_ND, between_N = examples.cue_ND, examples.between_N
    law.mean_D.copy_(cue_ND.mean(0))
    law.spread_D.copy_(cue_ND.std(0) + 1e-3)
    optimiser = torch.optim.AdamW(law.parameters(), LAW_RATE, weight_decay=LAW_DECAY)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LAW_RATE * (1 - step / steps)
        rows = torch.randint(len(cue_ND), (LAW_BATCH,), generator=generator)
        noise_ND = torch.randn(LAW_BATCH, cue_ND.shape[1], generator=generator)
        told_NG = law(cue_ND[rows] + LAW_NOISE * law.spread_D * noise_ND)
        loss = F.nll_loss(told_NG, between_N[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


class MotionTrainer:
    """A network, its average, and all that a step changes."""

    def __init__(self, data: MotionData, config: MotionTrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.network = MotionNetwork(config.network)
        self.law, self.held_law = _law_examples(data, config.network.most_missing)
        fit_law(self.network.law, self.law, config.law_steps, config.seed)
        self.network.law.requires_grad_(False)
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        self.learning = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.learning,
            config.learning_rate,
            (0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        self.rng = np.random.default_rng(config.seed)
        self.drawer = WindowDrawer(data, self.rng, ready_only=config.ready_only)
        self.step = 0
        self.seconds = 0.0  # of training, over all parts of the run

    def done(self) -> float:
        """Share of the training that lies behind."""
        if self.config.steps:
            return self.step / self.config.steps
        return self.seconds / 3600 / self.config.hours

    def rate(self) -> float:
        """The learning rate of the next step: rises over the warm-up, then a half cosine to 0."""
        rise = min(1.0, (self.step + 1) / self.config.warmup)
        fall = (1 + math.cos(math.pi * min(1.0, self.done()))) / 2
        return self.config.learning_rate * rise * fall

    def train_step(self) -> dict[str, float]:
        """One step of gradient descent; the losses of its batch."""
        config, batch = self.config, self.drawer.batch()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        losses, gain = self._losses(batch)
        weights = {
            "laplacian": 1.0,
            "log_error": config.log_error_weight,
            "expected": config.expected_weight,
        }
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.learning, config.clip)
        if bool(norm.isfinite()):
            self.optimiser.step()
            self._follow()
        self.step += 1
        return {**{name: float(loss.detach()) for name, loss in losses.items()}, "gain": gain}

    def _losses(self, batch: Batch) -> tuple[dict[str, Tensor], float]:
        """The losses of a batch, and its mean gain over the blend by hand, in dB."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            plan = self.network(batch.left_N3HW, batch.right_N3HW, batch.flows, batch.t_N)
        made = painted(batch.left_N3HW, batch.right_N3HW, plan)
        log_error = log_error_loss(made, batch.truth_N3HW)
        with torch.no_grad():
            hand_plan = hand_made(batch.left_N3HW, batch.right_N3HW, batch.flows, batch.t_N)
            hand = painted(batch.left_N3HW, batch.right_N3HW, hand_plan)
            gained = log_error_loss(hand, batch.truth_N3HW) - log_error
        losses = {
            "laplacian": laplacian_loss(made, batch.truth_N3HW),
            "log_error": log_error,
            "expected": expected_error_loss(plan.log_error_N1HW, made, batch.truth_N3HW),
        }
        return losses, 10 / math.log(10) * float(gained)

    @torch.no_grad()
    def _follow(self) -> None:
        """The average follows the weights, quickly at first."""
        keep = min(self.config.average, (self.step + 1) / (self.step + 10))
        ours, others = self.average.parameters(), self.network.parameters()
        torch._foreach_lerp_(list(ours), list(others), 1 - keep)

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]


# ---- scores ----------------------------------------------------------------------------------


@torch.no_grad()
def scores(network: MotionNetwork, windows: list[Batch], law: LawExamples) -> dict[str, float]:
    """Held-out PSNR in dB of network and hand-made blend, and how well the law of gaps tells.

    Means over windows, and of those whose frame has neighbours next to it (``second``) apart.
    """
    made, hand, near = [], [], []
    for window in windows:
        plans = [
            one(window.left_N3HW, window.right_N3HW, window.flows, window.t_N)
            for one in (network, hand_made)
        ]
        decibels = [
            _psnr(painted(window.left_N3HW, window.right_N3HW, plan), window.truth_N3HW)
            for plan in plans
        ]
        made.append(decibels[0])
        hand.append(decibels[1])
        near.append(float(window.t_N) == 0.5)
    told: dict[str, float] = {}
    if windows:
        told |= {"psnr": fmean(made), "hand_made": fmean(hand)}
        gains = [a - b for a, b in zip(made, hand, strict=True)]
        told["gain"], told["median_gain"] = fmean(gains), median(gains)
        told["best_gain"], told["worst_gain"] = max(gains), min(gains)
        halves = [gain for gain, half in zip(gains, near, strict=True) if half]
        told["gain_halfway"] = fmean(halves) if halves else math.nan
    if len(law.cue_ND):
        log_law_NG = network.law(law.cue_ND)
        told["law_log_score"] = float(-F.nll_loss(log_law_NG, law.between_N))
        told["law_central_80"] = float(
            within_central(log_law_NG, law.between_N, 0.8).float().mean()
        )
    return told


def within_central(log_law_NG: Tensor, count_N: Tensor, share: float) -> Tensor:
    """Whether each count lies within the central share of its law: bool [N].

    The law's mass below and up to the count must leave neither tail: the count is inside unless all
    of its own mass lies in one of the two tails of ``(1 - share) / 2``.
    """
    up_to_NG = log_law_NG.double().exp().cumsum(1)
    up_to_N = up_to_NG.gather(1, count_N[:, None])[:, 0]
    below_N = up_to_N - log_law_NG.double().exp().gather(1, count_N[:, None])[:, 0]
    tail = (1 - share) / 2
    return (up_to_N > tail) & (below_N < 1 - tail)


def _psnr(made_NCHW: Tensor, truth_NCHW: Tensor) -> float:
    error = (made_NCHW.clamp(-1, 1) - truth_NCHW).square().mean()
    return float(10 * torch.log10(4 / error.clamp(min=1e-8)))


@torch.no_grad()
def sheet(network: MotionNetwork, windows: list[Batch]) -> Image.Image:
    """Rows of held-out windows: left, guess, truth, right, four times the error."""
    rows = []
    step = max(1, len(windows) // SHEET_ROWS)
    for window in windows[::step][:SHEET_ROWS]:
        plan = network(window.left_N3HW, window.right_N3HW, window.flows, window.t_N)
        made = painted(window.left_N3HW, window.right_N3HW, plan).clamp(-1, 1)
        error = (made - window.truth_N3HW).abs() * 4 - 1
        shown = [window.left_N3HW, made, window.truth_N3HW, window.right_N3HW, error.clamp(-1, 1)]
        rows.append(torch.cat(shown, 3)[0])
    height, width = (max(row.shape[side] for row in rows) for side in (1, 2))
    padded = [F.pad(row, (0, width - row.shape[2], 0, height - row.shape[1])) for row in rows]
    pixels_HW3 = ((torch.cat(padded, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels_HW3.numpy())


# ---- from start to end -----------------------------------------------------------------------


def train_motion(
    data: MotionData,
    run: Path,
    config: MotionTrainConfig,
    *,
    resume: bool = False,
    pause_at: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> MotionTrainer:
    """Train until hours or steps are over, a signal comes, or ``pause_at`` steps are done."""
    run.mkdir(parents=True, exist_ok=True)
    state_file, files = run / "state.pt", Files(run)
    if state_file.exists() and not resume:
        raise UserError(f"{run} holds a training already: resume it, or take another folder")
    trainer = MotionTrainer(data, config)
    if state_file.exists():
        trainer.load(torch.load(state_file, weights_only=True))
        files.forget_after(trainer.step)
    windows = held_windows(data)
    saved, recent = time.monotonic(), []

    def note(told: dict[str, float]) -> None:
        files.append({"step": trainer.step, **{key: round(told[key], 6) for key in told}})

    with stoppable(), suppress(KeyboardInterrupt):
        while trainer.done() < 1 and trainer.step != pause_at:
            with whole():
                begun = time.monotonic()
                recent.append(trainer.train_step())
                trainer.seconds += min(time.monotonic() - begun, LONGEST_STEP)
                if trainer.step % config.log_every == 0:
                    told = {name: fmean(losses[name] for losses in recent) for name in recent[0]}
                    note({"hours": trainer.seconds / 3600, **told})
                    recent = []
                    say(f"step {trainer.step}, {trainer.done():.1%}: {told['gain']:+.3f} dB")
                if config.ready_only and trainer.step % LOOK_EVERY == 0:
                    trainer.drawer.look()
                if trainer.step % config.check_every == 0:
                    told = scores(trainer.average, windows, trainer.held_law)
                    note(told)
                    say(f"step {trainer.step}: {told}")
                    if windows:
                        sheet(trainer.average, windows).save(run / "sheet.png")
                if time.monotonic() - saved > 60 * config.save_minutes:
                    _save(trainer, run)
                    saved = time.monotonic()
    _save(trainer, run)
    return trainer


def _save(trainer: MotionTrainer, run: Path) -> None:
    """The state and the averaged network; each file is the old or the new one, always whole."""
    with replacing(run / "state.pt") as temporary:
        torch.save(trainer.state(), temporary)
    model_file.save(motion_weights(trainer.average, trainer.step), run / "motion.safetensors")


# ---- the model file --------------------------------------------------------------------------

FPS = 24.0  # at which frames between pictures are played


def motion_weights(network: MotionNetwork, steps: int = 0) -> Weights:
    """A network of so many training steps as a model that all commands know."""
    config, process = network.config, Flowception(first=True)
    video = MotionVideo(config, process.shift)
    video.motion = network
    text, codec = TextConfig(kind="none", width=1), CodecConfig("pixels", 1, 3)
    lengths = dict.fromkeys(range(2, config.most_missing + 3), 1)  # with the pictures around a gap
    card = Card(
        config, process, text, codec, (0, 0), FPS, lengths,
        steps=steps, dataset="shots of moving cameras and things, and moving layers of photographs",
    )  # fmt: skip
    return Weights(video, build_encoder(text), Pixels(codec), card, process)


def export(state: Path, output: Path) -> None:
    """Write the averaged weights of a run's state to a model file.

    Raises ``UserError`` where it is no such state, or of a network of another size.
    """
    network = MotionNetwork()
    try:
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["average"])
        steps = int(saved["step"])
    except Exception as error:  # pickles raise what they like
        raise UserError(f"{state} is no state of a training of motion") from error
    model_file.save(motion_weights(network.eval(), steps), output)


# ---- the command -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = MotionTrainConfig()
    parser.add_argument("--clips", type=Path, help="folder of clips without cuts")
    parser.add_argument("--photos", type=Path, help="folder of photographs, for moving layers")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the run, or the model file"
    )
    parser.add_argument("--export", type=Path, help="only make a model file of this state.pt")
    parser.add_argument("--cache", type=Path, help="of frames and flows; else within the run")
    parser.add_argument("--hours", type=float, default=defaults.hours)
    parser.add_argument("--steps", type=int, default=defaults.steps, help="instead of hours")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="fill the cache only, then stop")
    parser.add_argument(
        "--ready-only",
        action="store_true",
        help="draw only windows whose flows are in the cache, while another process prepares",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's state")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = MotionTrainConfig(
        hours=options.hours,
        steps=options.steps,
        seed=options.seed,
        ready_only=options.ready_only,
    )
    cache = options.cache or options.output / "cache"

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201 - the run's console

    try:
        if options.export:
            export(options.export, options.output)
            return
        if not options.clips:
            raise UserError("give a folder of --clips")
        data = MotionData(options.clips, options.photos, cache, config.windows, DisEstimator(), say)
        if options.prepare:
            data.law_examples(say)
            prepare(data, say)
            return
        train_motion(data, options.output, config, resume=options.resume, say=say)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
