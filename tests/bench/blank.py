"""States and prompts that say nothing, to count the work of an evaluation with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch

from flowcept.networks.transformer import Transformer
from flowcept.process.state import FrameState, PromptTokens

PROMPT = 8  # tokens of a prompt, about


def blank(
    network: Transformer, lengths: Sequence[int], device: torch.device | str = "meta"
) -> tuple[FrameState, PromptTokens]:
    """Clips of so many visible frames, at the start and without given ones, with prompts."""
    num_frames, num_clips = sum(lengths), len(lengths)
    state = FrameState(
        torch.zeros(num_frames, *network.latent_shape, device=device),
        torch.zeros(num_frames, device=device),
        torch.zeros(num_frames, dtype=torch.long, device=device),
        torch.zeros(num_clips, device=device),
        torch.ones(num_clips, dtype=torch.bool, device=device),
        tuple(lengths),
    )
    tokens = torch.zeros(PROMPT * num_clips, network.config.text_width, device=device)
    return state, PromptTokens(tokens, (PROMPT,) * num_clips)


def no_autocast() -> AbstractContextManager[object]:
    """Networks run on the ``meta`` device within it, which has no autocast."""
    return patch.object(torch, "autocast", lambda *_, **__: nullcontext())
