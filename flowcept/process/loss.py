"""The training objective (arXiv 2512.11438, section 3), as sums and the counts to divide them by.

Sums and counts stay apart so that a batch may be cut into parts, or spread over processes, and
still have the loss of the whole.

Shape suffixes: F frames of all clips, B clips, C H W channels and size of a latent, K counts, V the
width of a prompt token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from flowcept.process.forward import Target
from flowcept.process.state import FrameState, Prediction


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms."""

    velocity_weight: float = 1.0  # mean squared error of the velocity over flowing frames
    rate_weight: float = 0.1  # Poisson likelihood of the missing count, mean over open gaps
    count_weight: float = 0.1  # cross-entropy of the total missing count, mean over clips
    seen_weight: float = 0.1  # relative error of what given frames say, mean over their clips


@dataclass(frozen=True)
class Counts:
    """What each term is a mean over."""

    flowing: int  # frames that flow
    gaps: int  # open gaps of clips with tau < 1
    clips: int  # clips with tau < 1
    given: int  # clips with given frames

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.flowing + other.flowing,
            self.gaps + other.gaps,
            self.clips + other.clips,
            self.given + other.given,
        )


def count_terms(state: FrameState) -> Counts:
    """How many frames, gaps and clips of a state are scored."""
    early_B = state.tau_B < 1
    gaps = (state.open_F & early_B[state.clip_F]).sum() + (state.open_first_B & early_B).sum()
    return Counts(
        int(state.flowing_F.sum()), int(gaps), int(early_B.sum()), int(state.given_B.sum())
    )


def poisson_nll(log_mean: Tensor, count: Tensor) -> Tensor:
    """``mean - count log mean``: least, over constants, where the mean is the count's mean."""
    return log_mean.exp() - count * log_mean


def loss_sums(
    prediction: Prediction, state: FrameState, target: Target, said_BV: Tensor
) -> dict[str, Tensor]:
    """Sums over what ``count_terms`` counts: ``velocity``, ``missing``, ``count`` and ``seen``.

    ``said_BV`` is what each prompt says, the sum of its tokens; zero where there is no prompt.
    """
    early_B = state.tau_B < 1
    error_F = (prediction.velocity_FCHW.float() - target.velocity_FCHW).square().mean((1, 2, 3))
    gap_F = poisson_nll(prediction.log_missing_F.float(), target.missing_F)
    gap_B = poisson_nll(prediction.log_missing_first_B.float(), target.missing_first_B)
    count_B = F.cross_entropy(prediction.count_logits_BK.float(), target.total_B, reduction="none")
    scored_F = state.open_F & early_B[state.clip_F]
    scored_B = state.open_first_B & early_B
    return {
        "velocity": (error_F * state.flowing_F).sum(),
        "missing": (gap_F * scored_F).sum() + (gap_B * scored_B).sum(),
        "count": (count_B * early_B).sum(),
        "seen": _seen_sum(prediction, state, said_BV),
    }


def _seen_sum(prediction: Prediction, state: FrameState, said_BV: Tensor) -> Tensor:
    """Relative squared error of what given frames say against what their prompt says."""
    assert prediction.seen_BV is not None
    square_B = said_BV.square().sum(1)
    error_B = (prediction.seen_BV.float() - said_BV).square().sum(1)
    scored_B = state.given_B & (square_B > 0)
    return (error_B / square_B.clamp(min=1e-6) * scored_B).sum()


def total_loss(sums: dict[str, Tensor], counts: Counts, config: LossConfig) -> Tensor:
    """The weighted sum of the means; a term without anything to score is 0."""
    return (
        config.velocity_weight * sums["velocity"] / max(counts.flowing, 1)
        + config.rate_weight * sums["missing"] / max(counts.gaps, 1)
        + config.count_weight * sums["count"] / max(counts.clips, 1)
        + config.seen_weight * sums["seen"] / max(counts.given, 1)
    )
