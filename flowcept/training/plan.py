"""How long a run will take, printed at its start: steps are timed, and nothing is learned."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer
from flowcept.data.batches import Keyframe
from flowcept.data.shards import PictureStore
from flowcept.errors import counted
from flowcept.settings import ReportSettings, TrainConfig
from flowcept.training.clock import Part, span
from flowcept.training.distributed import Team
from flowcept.training.parts import Clips, assemble, split
from flowcept.training.state import Config, Run
from flowcept.training.trainer import Trainer

FIRST_SHEET = 100  # the step of the first contact sheet


def is_sheet_due(step: int, every: ReportSettings) -> bool:
    """Whether a contact sheet is made after a step."""
    return step == FIRST_SHEET or step % every.sample_every == 0


@dataclass(frozen=True)
class Ahead:
    """Steps that are still to come, and how long they take."""

    steps: int
    seconds: float  # of all of them
    most: float = math.inf  # hours at most

    @property
    def hours(self) -> float:
        return min(self.seconds / 3600, self.most)

    def hours_of(self, steps: int) -> float:
        """Hours until ``steps`` steps are taken, at most all."""
        return min(self.hours, self.seconds / 3600 * steps / max(self.steps, 1))

    def __str__(self) -> str:
        """The hours in words, and how many steps fit."""
        if self.hours < self.most:
            return f"{span(self.hours)} ({counted(self.steps, 'step')})"
        fit = round(self.steps * 3600 * self.hours / self.seconds)
        return f"{span(self.hours)} (about {counted(fit, 'step')})"


def first_pictures(ahead: Ahead, run: Run[Config], step: int = 0, before: float = 0.0) -> str:
    """When the network's first contact sheet comes; ``step`` are done, ``before`` in hours."""
    last, every = step + ahead.steps, run.config.report
    due = next((n for n in range(step + 1, last) if is_sheet_due(n, every)), last)
    first = span(before + ahead.hours_of(due - step))
    return f"  the first contact sheet will be in {run.files.samples} after {first}"


def codec_plan(
    trainer: CodecTrainer, part: Part, pictures: PictureStore, run: Run[TrainConfig]
) -> Iterator[str]:
    """The lines printed before the codec's steps: time of the codec, then of the network."""
    steps = part.steps - trainer.num_steps
    codec = Ahead(steps, steps * _seconds_of_codec(trainer, pictures), part.hours_left)
    if run.config.text.text_source:  # an encoder that is large to load twice
        yield f"plan: {codec} for the codec (frames to latents), then the network"
        return
    left, steps = run.clock.end - run.clock.hours - codec.hours, run.config.optimizer.steps
    network = Ahead(steps, _rehearsed(trainer.codec, pictures, run).seconds(steps), left)
    yield f"plan: {codec} for the codec (frames to latents), then {network} for the network"
    yield first_pictures(network, run, before=codec.hours)


def _seconds_of_codec(trainer: CodecTrainer, pictures: PictureStore) -> float:
    """Seconds of a step of the codec on this machine."""
    copied, settings = copy.deepcopy(trainer.codec), trainer.settings
    measured = CodecTrainer(copied, settings, dtype=trainer.dtype)
    image_FCHW = torch.zeros(settings.codec_batch, 3, *pictures.array.shape[1:3])
    for _ in range(2):  # the first one warms up
        begun = time.monotonic()
        float(measured.step(image_FCHW)["loss"])
    return time.monotonic() - begun


@dataclass
class Unmade:
    """Stand-ins for latents that are not made yet, with their lengths, sizes and captions."""

    captions: list[str]
    lengths: list[int]
    sizes: list[tuple[int, int]]  # of latents
    channels: int
    keyframe: Keyframe | None = None

    def latent(self, i: int) -> Tensor:
        """``latent_FCHW`` of clip i, all 0."""
        return torch.zeros(self.lengths[i], self.channels, *self.sizes[i])


def _rehearsed(codec: Autoencoder, pictures: PictureStore, run: Run[TrainConfig]) -> Trainer:
    """A trainer of the network for clips that are not encoded yet, to time its steps."""
    lengths = [codec.latents_of(count) for count in pictures.lengths]
    channels, height, width = codec.latent_shape(pictures.array.shape[1:3])
    unmade = Unmade(pictures.captions, lengths, [(height, width)] * len(lengths), channels)
    clips = Clips(unmade, *split(pictures, run.config))
    weights = assemble(run.config, clips, codec, None, None, "transformer", fps=1.0)
    return Trainer(weights, clips, run.config, replace(run.machine, team=Team()))
