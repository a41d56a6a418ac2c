"""Classifier-free guidance (arXiv 2207.12598): a model that leans towards its prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowcept.process import state as frames
from flowcept.process.sampler import Model
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest

PromptedNetwork = Callable[[FrameState, PromptTokens, Rest], Prediction]  # as it is trained


def guided(
    network: PromptedNetwork,
    conditional: Sequence[PromptTokens],
    unconditional: Sequence[PromptTokens],
    guidance: float,
    *,
    cached: bool = True,
) -> Model:
    """A model of one request, whose clips have these prompts.

    Velocity: ``v = v_unconditional + guidance (v_conditional - v_unconditional)``. Lengths and
    places are those of the conditional side. Both sides run in one packed call; with ``guidance``
    1 the conditional one alone. With ``cached`` finished frames rest once they may.
    """
    memory: dict[str, Any] = {}

    def model(
        state: FrameState, clips: Sequence[int], finished_F: Tensor, may_rest: bool
    ) -> Prediction:
        num_sides = 1 if guidance == 1 else 2
        names = tuple((side, clip) for side in range(num_sides) for clip in clips)
        rest = Rest(names, finished_F.repeat(num_sides), cached and may_rest, memory)
        prompts = [(conditional, unconditional)[side][clip] for side, clip in names]
        said = network(frames.concat([state] * num_sides), frames.concat(prompts), rest)
        if num_sides == 1:
            return said
        towards, away = said.velocity_FCHW.chunk(2)
        said = frames.changed(said, lambda _, x: x.chunk(2)[0])
        return replace(said, velocity_FCHW=torch.lerp(away, towards, guidance))

    return model
