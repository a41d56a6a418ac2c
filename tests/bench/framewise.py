"""Single frames of made clips: when they appeared, and which frames of the real clip they are.

For clips whose caption says all that can be seen, as sprites': character, action and direction.

Shape suffixes: M made and R real frames of one clip, P values of a picture, F frames, C H W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from flowcept.evaluation.evaluate import BATCH, Clip, Maker, clips_like
from flowcept.process.sampler import Step, clip_generator
from flowcept.process.state import Given
from flowcept.sampling import sample_clips
from flowcept.settings import SampleConfig, mixed

SCORES = ("look", "look, first born", "look, later born", "same", "place")


def parts(count: int, what: str) -> Iterator[list[int]]:
    """Numbers of clips that are worked on at once, with a bar of the time left."""
    for part in tqdm(torch.arange(count).split(BATCH), desc=what, unit="batch", mininterval=5):
        yield part.tolist()


@dataclass(frozen=True)
class Made(Clip):
    """A clip, and in which order its frames appeared."""

    born_F: Tensor


class Recorder(Maker):
    """A maker that tells in which order frames appeared."""

    def clips(self, real: list[Clip], config: SampleConfig, task: str, *, told: bool) -> list[Made]:
        """As ``evaluate.clips_like`` makes them."""
        orders: list[Tensor] = []
        recording = _Recording(**vars(self), orders=orders)
        made = clips_like(recording, real, config, task, told=told)
        return [
            Made(clip.image_FCHW, clip.caption, born_F)
            for clip, born_F in zip(made, orders, strict=True)
        ]


@dataclass(frozen=True)
class _Recording(Maker):
    orders: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def sample(
        self, what: str, given: list[Given], real: list[Clip], config: SampleConfig
    ) -> list[Tensor]:
        latents: list[Tensor] = []
        for rows in parts(len(given), what):
            captions = [real[i].caption for i in rows]
            generators = [clip_generator(mixed(self.seed, "clips", i)) for i in rows]
            asked = [given[i] for i in rows], captions, [""] * len(rows), generators
            with self.autocast():
                done = _finished(sample_clips(self.studio.weights, *asked, config))
            latents += [latent_FCHW for latent_FCHW, _ in done]
            self.orders.extend(born_F for _, born_F in done)
        return latents


def _finished(steps: Iterator[Step]) -> list[tuple[Tensor, Tensor]]:
    """The latents of each clip once all steps are done, and the order of its frames."""
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for step in steps:
        running, lengths = step.running, step.state.lengths
        parts = zip(step.state.latent_FCHW.split(lengths), step.name_F.split(lengths), strict=True)
        for row, (clip, part) in enumerate(zip(step.clips, parts, strict=True)):
            if row not in running:
                done[clip] = part
    return [done[clip] for clip in sorted(done)]


def errors(made: Made, real_RCHW: Tensor) -> dict[str, float]:
    """Squared errors of a clip's frames against those of the clip that its caption is of, x 1000.

    *Look* is the error of the real frame that is nearest, *place* how many frames that one stands
    from where it should, with the lengths made equal; of frames that are as near, the one that
    stands best. *Same* is the error at the same index, where the lengths agree.
    """
    made_MP, real_RP = (image.flatten(1).double() for image in (made.image_FCHW, real_RCHW))
    error_MR = torch.stack([(real_RP - frame_P).square().mean(1) for frame_P in made_MP])
    look_M = error_MR.amin(1)
    wanted_M = torch.linspace(0, len(real_RP) - 1, len(made_MP), dtype=torch.float64)
    offset_MR = (torch.arange(len(real_RP)) - wanted_M[:, None]).abs()
    farther_MR = error_MR > look_M[:, None] + 1e-12
    agree, first_M = len(made_MP) == len(real_RP), made.born_F == 0
    errors = {
        "look": look_M,
        "look, first born": look_M[first_M],
        "look, later born": look_M[~first_M],
        "same": error_MR.diagonal() if agree else torch.tensor([torch.nan]),
    }
    place = offset_MR.masked_fill(farther_MR, torch.inf).amin(1).mean()
    return {name: 1000 * float(error.mean()) for name, error in errors.items()} | {
        "place": float(place)
    }
