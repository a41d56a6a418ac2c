"""Train a ``MotionNetwork``: its losses and its trainer.

``python -m flowcept.training.motion --export STATE.pt -o MODEL.safetensors`` makes a model file of
the averaged weights of a ``state.pt``, which runs wrote before ``flowcept train --network motion``
existed; the run of the shipped file was one.

Shape suffixes: N windows, C channels, H W height and width.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
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
    held_windows,
    read_law_table,
)
from flowcept.device import autocast
from flowcept.errors import UserError
from flowcept.model_file import Card, Training, Weights
from flowcept.networks.motion import GapLaw, MotionConfig, MotionNetwork, hand_made, painted
from flowcept.networks.motion_video import MotionVideo
from flowcept.networks.text import TextConfig, build_encoder
from flowcept.process.forward import Flowception
from flowcept.settings import MotionOptimizerSettings, MotionTrainConfig
from flowcept.training.distributed import Machine
from flowcept.training.lineage import ended_training
from flowcept.training.motion_law import LawExamples, fit_law, law_scores, parted
from flowcept.training.motion_scores import scores, sheet

LEVELS = 5  # of the Laplacian pyramid
LEAST_ERROR = 1e-4  # mean squared error, pictures in [-1, 1]: better than 46 dB earns nothing
LEAST_DIFFERENCE = 0.01  # of a pixel, in the same units, in what the expected error is taught
LOG_ERROR_WEIGHT = 1.0  # of the mean logarithm of the squared error
EXPECTED_WEIGHT = 0.02  # of what the network expects of its own error
MOST_SKIPPED = 20  # steps in a row whose gradient is not finite: then training has diverged
DECIBELS = 10 / math.log(10)  # of a natural logarithm
FLOWS_A_WINDOW = 2  # about, that are new to it: of its gap and of those beside it
FPS = 24.0  # at which frames between pictures are played


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
    """Mean over pictures of the logarithm of the mean squared error: PSNR up to factor and sign."""
    error_N = (made_NCHW - truth_NCHW).square().flatten(1).mean(1)
    return torch.log(error_N + LEAST_ERROR).mean()


def expected_error_loss(log_error_N1HW: Tensor, made_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Squared difference between the logarithms of the expected and the actual error."""
    error_N1HW = (made_NCHW - truth_NCHW).abs().mean(1, keepdim=True).detach()
    near_N1HW = F.avg_pool2d(error_N1HW, 5, 1, 2, count_include_pad=False)
    return F.mse_loss(log_error_N1HW, torch.log(near_N1HW + LEAST_DIFFERENCE))


# ---- the trainer -----------------------------------------------------------------------------


class MotionTrainer:
    """Weights, their average, the optimiser and the place in the data, from step to step."""

    counts = ("windows",)  # of what a log tells how many there were a second
    curves = ("laplacian",)  # that are drawn

    def __init__(
        self,
        network: MotionNetwork,
        data: MotionData,
        held_law: LawExamples,
        config: MotionTrainConfig,
        machine: Machine,
        dataset: str,
        trainings: tuple[Training, ...],
    ) -> None:
        self.config, self.machine, self.dataset = config, machine, dataset
        self.trainings = trainings
        self.network = network.to(machine.device)
        self.network.law.requires_grad_(False)  # taught beforehand
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        self.learning = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.learning,
            config.optimizer.learning_rate,
            (0.9, 0.99),
            weight_decay=config.optimizer.weight_decay,
        )
        self.held_law, self.windows, self.contents = held_law, held_windows(data), data.folder.name
        self.rng = np.random.default_rng(config.machine.seed)
        self.drawer = WindowDrawer(data, self.rng)
        self.step, self.skipped, self.seen = 0, 0, 0  # of windows

    @property
    def num_held(self) -> int:
        """Number of held-out windows."""
        return len(self.windows)

    def learning_rate(self, progress: float) -> float:
        """Learning rate of the next step: rises over the warm-up, then a half cosine to 0."""
        settings = self.config.optimizer
        rise = min(1.0, (self.step + 1) / max(settings.warmup, 1))
        fall = (1 + math.cos(math.pi * progress)) / 2
        return settings.learning_rate * rise * fall

    def train_step(self, progress: float = 0.0) -> dict[str, Tensor | float]:
        """One step of gradient descent: the losses of its batch, gradient norm, rate and counts."""
        batch, rate = self.drawer.batch().to(self.machine.device), self.learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.learning, self.config.optimizer.clip)
        self.skipped = 0 if bool(norm.isfinite()) else self.skipped + 1
        if not self.skipped:
            self.optimizer.step()
            self._follow()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seen += len(batch.t_N)
        diverged = self.skipped > MOST_SKIPPED
        told = {
            "norm": math.inf if diverged else 0.0 if self.skipped else float(norm),
            "rate": rate,
            "windows": float(len(batch.t_N)),
        }
        return {**losses, **told}

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Add a batch's gradients; its losses, and its mean gain over the blend by hand, in dB."""
        terms = self._losses(batch)
        weights = {"log_error": LOG_ERROR_WEIGHT, "expected": EXPECTED_WEIGHT}
        weighted = [weights.get(name, 1.0) * term for name, term in terms.items()]
        torch.stack(weighted).sum().backward()
        told = {name: float(term.detach()) for name, term in terms.items()}
        return {**told, "gain": DECIBELS * (by_hand(batch) - told["log_error"])}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(self.machine.device, self.machine.dtype):
            plan = self.network(batch.left_N3HW, batch.right_N3HW, batch.flows, batch.t_N)
        made_N3HW = painted(batch.left_N3HW, batch.right_N3HW, plan)
        return {
            "laplacian": laplacian_loss(made_N3HW, batch.truth_N3HW),
            "log_error": log_error_loss(made_N3HW, batch.truth_N3HW),
            "expected": expected_error_loss(plan.log_error_N1HW, made_N3HW, batch.truth_N3HW),
        }

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights, quickly at first."""
        keep = min(self.config.optimizer.ema, (self.step + 1) / (self.step + 10))
        ours, others = self.average.parameters(), self.network.parameters()
        torch._foreach_lerp_(list(ours), list(others), 1 - keep)

    def seconds(self, steps: int) -> float:
        """How long ``steps`` steps take here, by timing one and a flow; nothing is learned."""
        drawer, data = WindowDrawer(self.drawer.data, np.random.default_rng(0)), self.drawer.data
        batch = drawer.batch().to(self.machine.device)
        for _ in range(2):  # the first one warms up
            begun = time.monotonic()
            self._backward(batch)
            self.optimizer.zero_grad(set_to_none=True)
        stepped = time.monotonic()
        data.estimated(data.shots[0], 0, 2)
        step, flow = stepped - begun, time.monotonic() - stepped
        windows = steps * data.config.pixels / max(self.drawer.sides) ** 2
        return steps * step + min(FLOWS_A_WINDOW * windows, self.drawer.num_gaps) * flow

    def held_out(self) -> dict[str, float]:
        """Scores of the averaged weights on held-out windows; empty if there are none."""
        told = scores(self.average, self.windows, self.machine.device)
        told |= law_scores(self.average.law, self.held_law)
        return {f"held_out_{name}": value for name, value in told.items()}

    def told(self, means: Mapping[str, float]) -> str:
        """A short text on the last steps."""
        return f"{means['gain']:+.2f} dB"

    def sheet(self) -> Image.Image:
        """A contact sheet by the averaged weights, of held-out windows if there are any."""
        shown = self.windows or held_windows(self.drawer.data, learned=True)
        return sheet(self.average, shown, self.machine.device)

    def weights(self) -> Weights:
        """The averaged model as it goes into a file."""
        made = motion_weights(self.average, self.step, self.dataset, trainings=self.trainings)
        card = ended_training(made.card, self.config, self.step, self.seen)
        return replace(made, card=card)

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on; the tensors are the live ones."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "seen": self.seen,
            "clips": self.contents,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ``ValueError`` if it has other clips or other weights."""
        if state["clips"] != self.contents:
            raise ValueError("other clips")
        self.step, self.skipped = state["step"], state["skipped"]
        self.seen = state.get("seen", 0)  # of runs that did not count them
        self.rng.bit_generator.state = json.loads(state["rng"])
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError) as error:
            raise ValueError("other weights") from error


@torch.no_grad()
def by_hand(batch: Batch) -> float:
    """The log-error loss of the blend by hand, with nothing learned."""
    plan = hand_made(batch.left_N3HW, batch.right_N3HW, batch.flows, batch.t_N)
    return float(log_error_loss(painted(batch.left_N3HW, batch.right_N3HW, plan), batch.truth_N3HW))


# ---- the model file --------------------------------------------------------------------------


def motion_weights(
    network: MotionNetwork,
    steps: int = 0,
    dataset: str = "",
    hours: float = 0.0,
    trainings: tuple[Training, ...] = (),
) -> Weights:
    """A motion network after ``steps`` training steps, as a model that all commands can use."""
    config, process = network.config, Flowception(first=True)
    video = MotionVideo(config, process.shift)
    video.motion = network
    text, codec = TextConfig(kind="none", width=1), CodecConfig("pixels", 1, 3)
    card = Card(
        network=config,
        process=process,
        text=text,
        codec=codec,
        size=(0, 0),
        fps=FPS,
        lengths=dict.fromkeys(range(2, config.most_missing + 3), 1),  # with both ends of a gap
        steps=steps,
        dataset=dataset,
        hours=hours,
        trainings=trainings,
    )
    return Weights(video, build_encoder(text), Pixels(codec), card, process)


# What the shipped file learned from, with those whom its licences ask to be named.
SHIPPED_FROM = (
    "shots of moving cameras and things, and moving layers of photographs: altered excerpts of "
    "Tears of Steel, (CC) Blender Foundation, mango.blender.org (CC-BY-3.0); Sintel (trailer), "
    "(c) Blender Foundation, www.sintel.org (CC-BY-3.0); sample videos of Intel Corporation, "
    "intel-iot-devkit (CC-BY-4.0); sample videos and pictures of The Flutter Authors, Mapillary "
    "and Piero Toffanin (BSD), GoPro, Inc., and The Android Open Source Project (Apache-2.0), Kivy "
    "Team, Udacity, Inc., and Microsoft Corporation (MIT); and photographs under CC0 or in the "
    "public domain"
)


def export(state: Path, output: Path, cues: Path | None = None) -> None:
    """Write the averaged weights of a ``state.pt`` of the shipped file's run to a model file.

    With ``cues``, the ``law.npz`` of a training's cache, the law of gaps is trained anew. Raises
    ``UserError`` for a file of another kind, or of a network of another size.
    """
    network = MotionNetwork()
    try:
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["average"])
        steps, hours = int(saved["step"]), saved["seconds"] / 3600
    except Exception as error:  # pickles raise what they like
        raise UserError(f"{state} is not a state of a motion training") from error
    if cues:
        network.law = _law_of(cues, network.config)
    model_file.save(motion_weights(network.eval(), steps, SHIPPED_FROM, hours), output)


def _law_of(cues: Path, config: MotionConfig) -> GapLaw:
    """A law of gaps trained on a table of cues, with those of held-out shots; always the same."""
    try:
        table = read_law_table(cues)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{cues} is not a law.npz of a training's cache") from error
    table["held"] = torch.zeros_like(table["held"])
    examples, _ = parted(table, config.most_missing)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the first weights
        law = GapLaw(config.law_hidden, config.most_missing)
    fit_law(law, examples, MotionOptimizerSettings().law_steps, seed=0)
    return law


def main() -> None:
    """The command in this module's docstring."""
    parser = argparse.ArgumentParser(
        description="Make a model file of a state.pt; training is flowcept train --network motion."
    )
    parser.add_argument("--export", type=Path, required=True, help="the state.pt")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model file")
    parser.add_argument(
        "--law", type=Path, help="a cache's law.npz, to train the law of gaps anew (takes seconds)"
    )
    options = parser.parse_args()
    try:
        export(options.export, options.output, options.law)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
