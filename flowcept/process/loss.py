"""The training objective (arXiv 2512.11438, section 3), as sums and the counts to divide them by.

Sums and counts stay apart so that a batch may be cut into parts, or spread over processes, and
still have the loss of the whole.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, V the width of
a prompt token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept.process import compositions
from flowcept.process.forward import Process, Target
from flowcept.process.state import FrameState, Prediction

LARGEST_LOG = 8.0  # of a mean count, 2,981 frames: beyond it the loss goes on in a straight line


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms."""

    velocity: float = 1.0  # mean squared error of the velocity
    missing: float = 0.1  # Poisson likelihood of the missing count
    count: float = 0.1  # cross-entropy of the total missing count
    composition: float = 0.1  # cross-entropy of the missing count of each gap, given those before
    image: float = 0.1  # relative error of the image token


def count_terms(state: FrameState, prompts: Sequence[str]) -> dict[str, int]:
    """What each term is a mean over, of a state whose clips have these prompts, "" for none."""
    asked_B = state.asked_B
    gaps = (state.open_F & asked_B[state.clip_F]).sum() + (state.open_first_B & asked_B).sum()
    given_B = state.count_B(state.given_F) > 0
    prompted_B = torch.tensor([bool(prompt) for prompt in prompts])
    return {
        "velocity": int(state.flowing_F.sum()),  # frames that flow
        "missing": int(gaps),  # open gaps of clips that may miss frames
        "count": int(asked_B.sum()),  # such clips
        "composition": compositions.num_scored(state),
        "image": int((given_B & prompted_B).sum()),  # clips with given frames and a prompt
    }


def poisson_nll(log_mean: Tensor, count: Tensor) -> Tensor:
    """``mean - count log mean``: least, over constants, where the mean is the count's mean.

    Beyond ``LARGEST_LOG`` the exponential goes on as its tangent, so that no loss overflows.
    """
    bounded = log_mean.clamp(max=LARGEST_LOG)
    return bounded.exp() * (1 + (log_mean - bounded)) - count * log_mean


def loss_sums(
    prediction: Prediction,
    state: FrameState,
    target: Target,
    process: Process,
    said_BV: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms by name, each a sum over what ``count_terms`` counts.

    ``said_BV`` is what each prompt says, the sum of its tokens, zero where there is no prompt; it
    teaches networks that have an image token.
    """
    asked_B = state.asked_B
    error_F = (prediction.velocity_FCHW.float() - target.velocity_FCHW).square().mean((1, 2, 3))

    gap_F = poisson_nll(prediction.log_missing_F.float(), target.missing_F)
    gap_B = poisson_nll(prediction.log_missing_first_B.float(), target.missing_first_B)
    scored_F = state.open_F & asked_B[state.clip_F]
    scored_B = state.open_first_B & asked_B

    logits_BK = process.missing_logits(prediction.size_logits_BK.float(), state)
    count_B = F.cross_entropy(logits_BK, target.total_B, reduction="none")
    return {
        "velocity": (error_F * state.flowing_F).sum(),
        "missing": (gap_F * scored_F).sum() + (gap_B * scored_B).sum(),
        "count": (count_B * asked_B).sum(),
        "composition": compositions.cross_entropy_sum(
            prediction, state, target.missing_F, target.missing_first_B
        ),
        "image": _image_sum(prediction.image_token_BV, state, said_BV),
    }


def _image_sum(token_BV: Tensor | None, state: FrameState, said_BV: Tensor | None) -> Tensor:
    """Relative squared error of what given frames say against what their prompt says."""
    if token_BV is None or said_BV is None:
        return state.tau_B.new_zeros(())
    square_B = said_BV.square().sum(1)
    error_B = (token_BV.float() - said_BV).square().sum(1)
    scored_B = (state.count_B(state.given_F) > 0) & (square_B > 0)
    return (error_B / square_B.clamp(min=1e-6) * scored_B).sum()


def total_loss(
    sums: Mapping[str, Tensor], counts: Mapping[str, int], weights: LossConfig
) -> Tensor:
    """The weighted sum of the means; a term without anything to score is 0."""
    terms = [getattr(weights, name) * x / max(counts[name], 1) for name, x in sums.items()]
    return sum(terms, torch.zeros(()))
