"""``MotionNetwork`` as a model of this package: frames between given pictures, of any size.

Latents are the pictures themselves. Every flowing frame between two given ones is guessed at its
place, from these two and the given ones beyond them, never from made ones; the velocity leads
straight to the guess. So a frame ends up as its last evaluation has it. By then all frames of a
clip are there, whatever the number of steps, provided that none was there before the first one:
the process of such a model has no start frame beside given ones (``Flowception.first``). One step
is therefore enough; more show other states on the way, and make the same frames of the same counts.

Shape suffixes: F frames, G given pictures, B clips, C H W channels and size, K counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.base import VideoNetwork
from flowcept.networks.flow import DisEstimator, MotionEstimator
from flowcept.networks.motion import (
    Flows,
    Gap,
    MotionConfig,
    MotionNetwork,
    bend_of,
    gap_logits,
    guess,
    total_law,
    working_size,
)
from flowcept.process.forward import shifted
from flowcept.process.posterior import BEYOND
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest, Role, select

LEAST_MISSING = 0.05  # frames that a gap still lacks at least, where more came than expected
# Numbers of 4 bytes: of a frame in the sampler, a pixel; of one evaluation, a pixel of the picture
# and a pixel of the size at which motion is estimated (measured on a CPU, a fifth above it).
SAMPLED, PAINTED, WORKED = 24, 60, 350


class MotionVideo(VideoNetwork):
    """A ``MotionNetwork`` behind the protocol of all networks."""

    tasks = frozenset(["interp"])
    steps = 1
    gapwise = True
    config: MotionConfig

    def __init__(self, config: MotionConfig, shift: float) -> None:
        super().__init__()
        self.config, self.shift = config, shift
        self.motion = MotionNetwork(config)
        self.estimator: MotionEstimator = DisEstimator()

    @property
    def tokens_per_frame(self) -> int:
        return 1

    @property
    def largest_size(self) -> int:
        return self.config.most_missing

    def sampling_bytes(
        self, frames: int, latent_shape: tuple[int, int, int], dtype: torch.dtype
    ) -> float:
        del dtype  # most is kept in float32
        height, width = latent_shape[1:]
        work = working_size(torch.empty(1, 1, height, width, device="meta"))
        return 4 * (height * width * (SAMPLED * frames + PAINTED) + WORKED * work.numel())

    def forward(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocities to the guesses; the law of a clip's size is that of the sum of its open gaps.

        What is measured between given pictures is kept as long as the request.
        """
        del prompt  # words mean nothing here
        known: dict[object, Measured] = {}
        if rest is not None:
            known = rest.memory.setdefault("motion", known)
        names = range(len(state.lengths)) if rest is None else rest.names
        said = []
        for row, name in enumerate(names):
            clip = select(state, [row])
            if name not in known:
                given_GCHW = clip.latent_FCHW[clip.given_F]
                known[name] = Measured(self.motion, self.estimator, given_GCHW)
            said.append(self._clip(clip, known[name]))
        velocities, missing, laws = zip(*said, strict=True)
        longest = max(map(len, laws))
        padded = [F.pad(law_K, (0, longest - len(law_K)), value=BEYOND) for law_K in laws]
        return Prediction(
            velocity_FCHW=torch.cat(velocities),
            log_missing_F=torch.cat(missing),
            log_missing_first_B=torch.full_like(state.tau_B, math.log(LEAST_MISSING)),
            size_logits_BK=torch.stack(padded).to(state.tau_B.device),
        )

    def _clip(self, state: FrameState, measured: Measured) -> tuple[Tensor, Tensor, Tensor]:
        """Velocities, logarithms of missing counts and the log-law of the size of one clip."""
        velocity_FCHW = torch.zeros_like(state.latent_FCHW)
        missing_F = torch.full_like(state.time_F, LEAST_MISSING)
        places = state.given_F.nonzero().flatten().tolist()
        counts = [right - left - 1 for left, right in itertools.pairwise(places)]
        laws = []
        for number, (left, right) in enumerate(itertools.pairwise(places)):
            inside = slice(left + 1, right)
            velocity_FCHW[inside] = self._velocities(state, inside, measured, number, counts)
            if state.role_F[left] == Role.ACTIVE:
                laws.append(measured.law(number))
                still = max(_mean(laws[-1]) - counts[number], LEAST_MISSING)
                missing_F[left:right] = still / (right - left)
        law_NK = torch.stack(laws) if laws else torch.zeros(0, 1)
        return velocity_FCHW, missing_F.log(), total_law(law_NK).clamp(min=BEYOND)

    def _velocities(
        self,
        state: FrameState,
        inside: slice,
        measured: Measured,
        number: int,
        counts: Sequence[int],
    ) -> Tensor:
        """Those of the frames of one gap, 0 of finished ones."""
        latent_FCHW, time_F = state.latent_FCHW[inside], state.time_F[inside]
        velocity_FCHW = torch.zeros_like(latent_FCHW)
        left_F = 1 - shifted(time_F, self.shift)  # of the denoising
        flowing = state.flowing_F[inside].nonzero().flatten().tolist()
        gap = measured.gap(number, counts) if flowing else None
        for frame in flowing:
            assert gap is not None
            made_CHW, _ = guess(self.motion, gap, (frame + 1) / (len(time_F) + 1))
            velocity_FCHW[frame] = (made_CHW - latent_FCHW[frame]) / left_F[frame]
        return velocity_FCHW

    def blocks(self) -> Iterator[nn.Module]:
        yield from (self.motion.describe, self.motion.coarse, self.motion.fine)

    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        for block in self.blocks():
            block.compile(dynamic=True, **options)

    def grow_law(self, largest_size: int) -> MotionConfig:
        self.config = replace(self.config, most_missing=largest_size)
        self.motion.law.most_missing = largest_size
        return self.config


class Measured:
    """How things move between the given pictures of one clip; each flow and law is found once."""

    def __init__(
        self, network: MotionNetwork, estimator: MotionEstimator, picture_GCHW: Tensor
    ) -> None:
        self.network, self.estimator = network, estimator
        self.picture_GCHW = picture_GCHW.clone()  # no view, which would hold the whole clip
        self.work_G1CHW = [working_size(picture[None]) for picture in self.picture_GCHW]
        self.flows: dict[tuple[int, int], Tensor] = {}
        self.laws: dict[int, Tensor] = {}

    def law(self, number: int) -> Tensor:
        """The log-law of how many frames lie in a gap, on the CPU."""
        if number not in self.laws:
            left_CHW, right_CHW = self.picture_GCHW[number : number + 2]
            with _precise(left_CHW):
                law_K = gap_logits(self.network, self._estimated, left_CHW, right_CHW)
            self.laws[number] = law_K.cpu()
        return self.laws[number]

    def gap(self, number: int, counts: Sequence[int]) -> Gap:
        """A gap, curved by the pictures beyond; ``counts`` of frames in each gap tell how far."""
        right = number + 1
        there, back = self._flow(number, right), self._flow(right, number)
        bend_left = bend_of(there, *self._beyond(number, number - 1, number, counts))
        bend_right = bend_of(back, *self._beyond(right, right + 1, number, counts))
        return Gap(
            self.picture_GCHW[number],
            self.picture_GCHW[right],
            self.work_G1CHW[number],
            self.work_G1CHW[right],
            Flows(there, back, bend_left, bend_right),
        )

    def _beyond(
        self, end: int, other: int, number: int, counts: Sequence[int]
    ) -> tuple[Tensor | None, float]:
        """The flow from a gap's end to the picture beyond, and how many gaps away that lies."""
        if not 0 <= other < len(self.work_G1CHW):
            return None, 1.0
        spacing = counts[min(end, other)] + 1
        return self._flow(end, other), spacing / (counts[number] + 1)

    def _flow(self, first: int, second: int) -> Tensor:
        """From one work picture to another: [1, 2, H, W]."""
        pair = first, second
        if pair not in self.flows:
            pictures = [self.work_G1CHW[number][0] for number in pair]
            with _precise(pictures[0]):
                self.flows[pair] = self._estimated(*pictures)[None]
        return self.flows[pair]

    def _estimated(self, first_CHW: Tensor, second_CHW: Tensor) -> Tensor:
        """A flow where the pictures are."""
        return self.estimator(first_CHW, second_CHW).to(first_CHW.device)


def _precise(like: Tensor) -> torch.autocast:
    """No autocast: laws and flows are float32."""
    return torch.autocast(like.device.type, enabled=False)


def _mean(log_law_K: Tensor) -> float:
    return float((log_law_K.exp() * torch.arange(len(log_law_K))).sum())
