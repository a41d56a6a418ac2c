"""What the sampler gets, and what it made: given frames in, pictures out.

Shape suffixes: F frames, H W 3 a picture, C H W channels and size of a latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flowcept.clip import Growth
from flowcept.codecs import Codec
from flowcept.data import video
from flowcept.data.video import Frames
from flowcept.model_file import Card, Weights
from flowcept.networks.recipes import RecipeEncoder
from flowcept.process.guidance import guided
from flowcept.process.sampler import Step, sample_steps
from flowcept.process.state import Given, changed
from flowcept.settings import SampleConfig


def from_nothing(card: Card, device: torch.device | None = None) -> Given:
    """The start of a clip without any given frame, as in text-to-video."""
    return Given(torch.zeros(0, *card.codec.latent_shape(card.size), device=device), (True,))


def sample_clips(
    weights: Weights,
    given: Sequence[Given],
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    config: SampleConfig,
) -> Iterator[Step]:
    """Sample a clip for each given start, step by step (``sampler.sample_steps``).

    Lengths are in latents, by default bounded by those trained. Where no prompt differs from its
    negative one there is nothing to lean to: the network is asked once, not twice, a step.
    """
    leans = list(prompts) != list(negative_prompts) and weights.card.text.kind != "none"
    guidance = config.guidance if leans else 1.0
    if isinstance(weights.text, RecipeEncoder):
        weights.text.prepare([*prompts, *negative_prompts])
    toward = [weights.text([prompt]) for prompt in prompts]
    away = [weights.text([prompt]) for prompt in negative_prompts]
    weights.network.bring_to(given[0].latent_FCHW.device)  # after an encoder that may have left it
    model = guided(weights.network, toward, away, guidance, cached=config.cache)
    least, most = weights.card.min_length, weights.card.max_length
    return sample_steps(
        model, given, generators, config, weights.process, min_length=least, max_length=most
    )


@dataclass(frozen=True)
class Start:
    """What a clip starts from. Given latents are named by their number, which the sampler keeps."""

    given: Given
    beside: frozenset[int]  # those that stand beside the clip

    @staticmethod
    def of(given: Given, codec: Codec) -> Start:
        """With a video codec, keyframes stand beside the clip if frames may come before them."""
        if codec.pictures_per_latent == 1:
            return Start(given, frozenset())
        opened = given.open_gaps[:-1]
        beside = frozenset(number for number, gap in enumerate(opened) if gap)
        return Start(replace(given, keyframes=opened) if beside else given, beside)

    @property
    def known(self) -> int:
        """Latents that are given or known to come."""
        return len(self.given.latent_FCHW) + sum(self.given.missing or ())

    def own(self, step: Step) -> Step:
        """A step of this one clip, without what stands beside it."""
        if not self.beside:
            return step
        rows = [row for row, name in enumerate(step.name_F.tolist()) if name not in self.beside]
        rows_F = torch.tensor(rows, dtype=torch.int64, device=step.state.time_F.device)

        def own(name: str, x: Tensor) -> Tensor:
            return x if name.endswith("_B") else x[rows_F]

        kept = changed(step.state, own, lengths=(len(rows),))
        return replace(step, state=kept, age_F=step.age_F[rows], name_F=step.name_F[rows])

    def places(self, names: Sequence[int], codec: Codec) -> list[int]:
        """The picture that each given latent is, or ends with, by all names from left to right."""
        own = itertools.accumulate(name not in self.beside for name in names)
        ends = dict(zip(names, map(codec.pictures_of, own), strict=True))
        return [ends[number] - 1 for number in range(len(self.given.latent_FCHW))]


@dataclass(frozen=True)
class Made:
    """What calls of the sampler made, at the model's own size."""

    frames_FHW3: Frames
    growth: Growth
    order: list[int]  # names of the clip's latents, left to right
    places: list[int]  # of the picture that each given latent is, or ends with
    together: int  # latents that were sampled at once
    before: int = 0  # new pictures before those of the user's clip

    def __len__(self) -> int:
        return len(self.frames_FHW3)

    def followed(self, back: Made) -> Made:
        """The clip, then what lies between the two given ends of ``back``, and its growth."""
        start, end = back.places
        new_FHW3, _ = video.fit(
            back.frames_FHW3[start + 1 : end], self.frames_FHW3.shape[1:3], "stretch"
        )
        free = max(self.order) - 1  # new names there are from 2 on
        renamed = [
            [(free + name, time, new) for name, time, new in row if name > 1] for row in back.growth
        ]
        return replace(
            self,
            frames_FHW3=np.concatenate([self.frames_FHW3, new_FHW3]),
            growth=[*self.growth, *([*self.growth[-1], *row] for row in renamed)],
            order=[*self.order, *(free + name for name in back.order if name > 1)],
            together=max(self.together, back.together),
        )

    def without_last(self) -> Made:
        """All pictures but the last one, which is the first one again."""
        last = self.order[-1:] if len(self.order) == len(self.frames_FHW3) else []
        return replace(
            self,
            frames_FHW3=self.frames_FHW3[:-1],
            growth=[[seen for seen in row if seen[0] not in last] for row in self.growth],
            order=[name for name in self.order if name not in last],
            places=self.places[:-1],
        )


def visible(step: Step, num_steps: int) -> list[tuple[int, float, bool]]:
    frames = zip(step.name_F.tolist(), step.age_F.tolist(), strict=True)  # asks no device
    return [(name, age / num_steps, age == 0) for name, age in frames]
