"""How many frames are still missing: Bayes' rule, and draws from its law.

The network says the law of a clip's *size*, the number of frames that are generated in all. How
many of them have appeared by ``tau`` is known, and with which probability, too: so the law of how
many are still missing follows and need not be learned.

Shape suffixes: B clips, K counts 0..largest, G gaps of a clip.
"""

import math

import torch
from torch import Tensor

from flowcept.process.schedule import Schedule
from flowcept.process.state import FrameState, Role

START_FRAMES = 1  # noise frames at tau = 0 where exactly one gap is open; 1 reaches every length
LEAST_HIDDEN = 1e-7  # probability that a frame is still hidden just before ``tau = 1``
BEYOND = -1e4  # logit of a size that a law does not reach: next to nothing, and still a number


def appeared_logits(appeared: Tensor, count_K: Tensor, kappa: Tensor) -> Tensor:
    """Log-probability, up to a constant, that so many have appeared where K are still missing.

    Of the frames that were hidden at ``tau = 0`` each has appeared by ``tau`` with probability
    kappa: ``binomial(appeared + K, appeared) (1 - kappa)^K``. ``appeared`` and ``kappa`` broadcast
    with ``count_K``.
    """
    ways = torch.lgamma(appeared + count_K + 1) - torch.lgamma(count_K + 1.0)
    return ways + count_K * (1 - kappa).clamp(min=LEAST_HIDDEN).log()


def missing_logits(
    size_logits_BK: Tensor, state: FrameState, schedule: Schedule, *, first: bool = False
) -> Tensor:
    """The log-law, up to a constant, of how many frames each clip still misses, ``[B, K]``.

    ``size_logits_BK`` is over the number of generated frames of the whole clip. Bayes' rule:
    ``P(K) ~ P(size = visible + K) P(appeared | K)``. ``first``: clips without given frames alone
    have a start frame.
    """
    visible_B = state.count_B(~state.given_F)
    if first:
        starts_B = START_FRAMES * (state.count_B(state.given_F) == 0)
    else:
        open_gaps_B = state.count_B(state.role_F == Role.ACTIVE) + state.open_first_B
        starts_B = START_FRAMES * (open_gaps_B == 1)
    appeared_B1 = (visible_B - starts_B).clamp(min=0)[:, None]

    count_K = torch.arange(size_logits_BK.shape[1], device=visible_B.device)
    kappa_B = schedule.kappa(state.tau_B.clamp(0, 1))
    seen_BK = appeared_logits(appeared_B1, count_K, kappa_B[:, None])

    size_BK, largest = visible_B[:, None].long() + count_K, len(count_K) - 1
    law_BK = size_logits_BK.gather(1, size_BK.clamp(max=largest))
    return torch.where(size_BK <= largest, law_BK, BEYOND) + seen_BK


def tempered(log_weights: Tensor, temperature: float) -> Tensor:
    """Logarithms of ``weights ** (1 / temperature)``, the largest 0; at 0 all others are -inf."""
    under = log_weights - log_weights.max()  # first, so that no small temperature overflows
    if temperature == 0:
        return torch.where(under == 0, 0.0, -math.inf)
    return under / temperature


def inverse_cdf(law_K: Tensor, uniform: float) -> int:
    """The count whose share of the unit interval holds ``uniform`` in [0, 1)."""
    cumulative_K = law_K.double().cumsum(0)
    return int((cumulative_K / cumulative_K[-1] <= uniform).sum().clamp(max=len(law_K) - 1))


def systematic(total: int, shares_G: Tensor, uniform: float) -> list[int]:
    """``total`` shared out with one uniform draw: each gap gets its share rounded up or down."""
    cumulative_G = shares_G.double().cumsum(0)
    cumulative_G = cumulative_G / cumulative_G[-1]
    edges_G = torch.floor(total * cumulative_G + uniform).long()
    return torch.diff(edges_G, prepend=edges_G.new_zeros(1)).tolist()
