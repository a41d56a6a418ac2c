"""Classifier-free guidance (arXiv 2207.12598): a model that leans towards its prompts.

Shape suffixes: S prompt tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flowcept.process import state as frames
from flowcept.process.sampler import Model
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest


class PromptedNetwork(Protocol):
    """A network as it is trained: states and prompt tokens in, predictions out."""

    def __call__(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction: ...


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
        prompts = [conditional[clip] for clip in clips]
        if num_sides == 1:
            return network(state, concat_prompts(prompts), rest)
        prompts += [unconditional[clip] for clip in clips]
        both = network(frames.concat([state, state]), concat_prompts(prompts), rest)
        return _leaned(both, guidance)

    return model


def _leaned(both: Prediction, guidance: float) -> Prediction:
    """The conditional half of a prediction, its velocity led away from the other half's."""
    towards_FCHW, away_FCHW = both.velocity_FCHW.chunk(2)
    return Prediction(
        velocity_FCHW=torch.lerp(away_FCHW, towards_FCHW, guidance),
        log_missing_F=both.log_missing_F.chunk(2)[0],
        log_missing_first_B=both.log_missing_first_B.chunk(2)[0],
        size_logits_BK=both.size_logits_BK.chunk(2)[0],
    )


def concat_prompts(prompts: Sequence[PromptTokens]) -> PromptTokens:
    """The prompts of several clips end to end."""
    return PromptTokens(
        torch.cat([p.token_SD for p in prompts]), tuple(n for p in prompts for n in p.lengths)
    )
