"""Where missing frames go: the joint law of the counts of all open gaps, by the chain rule.

Gap by gap from left to right: of the frames that are left, how many lie in this one, given what
the network says of it, how many are left and how many the clip misses in all? Each count is drawn
from its own conditional law, so that a step of any size may let frames appear in several gaps.

What is learned is added to a prior that the means of the gaps fix: the Dirichlet-multinomial law
with as much concentration as gaps are open. Where all gaps are alike it makes every arrangement of
the missing frames equally likely.

Shape suffixes: B clips, F frames, G gaps of a clip (before its first frame, then right of each),
N any gaps, H features, 2H features of a gap and what each frame in it adds to those of the gaps
right of it, K counts 0..largest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flowcept.process.posterior import BEYOND, inverse_cdf, tempered
from flowcept.process.state import FrameState, GapTables, Prediction

LEAST_LOG = -60.0  # of a gap's missing frames: 1e-26, nothing beside any share that matters
TINY = 1e-30  # concentration of an open gap in which no frame is expected


@dataclass(frozen=True)
class Gaps:
    """A network's prediction for the gaps of one clip, float64 on the CPU."""

    log_missing_G: Tensor  # log of the mean missing count, of closed gaps -inf
    feature_G2H: Tensor | None = None
    tables: GapTables | None = None  # None: nothing but the means is known


def count_logits(
    entry_NH: Tensor, tables: GapTables, left_N: Tensor, total_N: Tensor, prior_N2: Tensor
) -> Tensor:
    """The log-law ``[N, K]``, up to a constant, of how many frames lie in each gap.

    ``entry_NH`` are its features with what the counts left of it add to them. ``left_N`` frames lie
    in it or right of it, ``total_N`` in the whole clip, none of them over the largest count;
    ``prior_N2`` are the concentrations of this gap and of those right of it.
    """
    entry_NH = entry_NH + tables.left_KH[left_N] + tables.total_KH[total_N]
    return F.silu(entry_NH) @ tables.count_HK + prior_logits(left_N, prior_N2, tables.largest)


def prior_logits(left_N: Tensor, prior_N2: Tensor, largest: int) -> Tensor:
    """The same before anything is learned: a beta-binomial law of 0..largest frames."""
    own_N1, others_N1 = prior_N2.split(1, dim=1)
    count_K = torch.arange(largest + 1, device=left_N.device)
    beside_NK = left_N[:, None] - count_K

    def ways(count: Tensor, concentration_N1: Tensor) -> Tensor:
        return torch.lgamma(count + concentration_N1) - torch.lgamma(count + 1.0)

    logits_NK = ways(count_K, own_N1) + ways(beside_NK.clamp(min=0), others_N1)
    return torch.where(beside_NK >= 0, logits_NK, BEYOND)


def draw(
    gaps: Gaps, missing: int, total: int, temperature: float, uniform: Callable[[], float]
) -> list[int]:
    """How many of ``missing`` frames, all that lie in the open gaps, lie in each.

    ``total`` frames are missing in the whole clip; ``uniform`` draws from [0, 1). A count beyond
    the tables follows the prior. ``temperature`` is of the law of each count.
    """
    assert gaps.feature_G2H is not None
    assert gaps.tables is not None
    prior_G = _concentrations(gaps.log_missing_G)
    *open_gaps, last = (prior_G > 0).nonzero().flatten().tolist()
    entry_GH, adds_GH = gaps.feature_G2H.chunk(2, dim=1)
    counts, left, placed_1H = [0] * len(prior_G), missing, torch.zeros_like(entry_GH[:1])
    for gap in open_gaps:
        if not left:
            break
        left_1, prior_12 = (
            torch.tensor([left]),
            torch.stack([prior_G[gap], prior_G[gap + 1 :].sum()])[None],
        )
        if total <= gaps.tables.largest:
            entry_1H, total_1 = entry_GH[gap] + placed_1H, torch.tensor([total])
            law_1K = count_logits(entry_1H, gaps.tables, left_1, total_1, prior_12)
        else:
            law_1K = prior_logits(left_1, prior_12, left)
        law_K = tempered(law_1K[0, : left + 1], temperature).softmax(-1)
        counts[gap] = inverse_cdf(law_K, uniform())
        left -= counts[gap]
        placed_1H = placed_1H + counts[gap] * adds_GH[gap]
    counts[last] = left
    return counts


def _concentrations(log_missing: Tensor) -> Tensor:
    """Of the prior, from means with the gaps of a clip as last axis; 0 where it is -inf.

    They sum up to the number of open gaps.
    """
    is_open = ~log_missing.isneginf()
    shares = log_missing.softmax(-1).nan_to_num(0.0)
    return (shares * is_open.sum(-1, keepdim=True)).clamp(min=TINY) * is_open


def num_scored(state: FrameState) -> int:
    """Of how many gaps ``cross_entropy_sum`` is a sum: all that are open but the last of a clip."""
    open_B = state.count_B(state.open_F) + state.open_first_B
    return int(((open_B - 1).clamp(min=0) * state.asked_B).sum())


def cross_entropy_sum(
    prediction: Prediction, state: FrameState, missing_F: Tensor, missing_first_B: Tensor
) -> Tensor:
    """Minus the log-probability of the true counts, where ``tau < 1``; the means learn nothing."""
    if prediction.tables is None or prediction.gap_BG2H is None:
        return state.tau_B.new_zeros(())
    lengths = state.lengths
    open_BG = by_clip(state.open_first_B, state.open_F, lengths)
    log_BG = by_clip(prediction.log_missing_first_B, prediction.log_missing_F, lengths)
    log_BG = log_BG.detach().float().clamp(min=LEAST_LOG)
    prior_BG = _concentrations(torch.where(open_BG, log_BG, -torch.inf))
    count_BG = by_clip(missing_first_B, missing_F, lengths).long()
    left_BG = from_here_on(count_BG)
    scored_BG = open_BG & (from_here_on(open_BG.long()) > 1) & state.asked_B[:, None]

    entry_BGH, adds_BGH = prediction.gap_BG2H.float().chunk(2, dim=2)
    added_BGH = count_BG[..., None] * adds_BGH
    placed_BGH = added_BGH.cumsum(1) - added_BGH  # by the gaps left of each

    right_BG = F.pad(from_here_on(prior_BG)[:, 1:], (0, 1))  # not a difference: it must not be 0
    prior_BG2 = torch.stack([prior_BG, right_BG], dim=-1)
    logits_NK = count_logits(
        (entry_BGH + placed_BGH).flatten(0, 1),
        prediction.tables,
        left_BG.flatten(),
        left_BG[:, :1].expand_as(left_BG).flatten(),
        torch.where(scored_BG[..., None], prior_BG2, 1.0).flatten(0, 1),
    )
    loss_N = F.cross_entropy(logits_NK, count_BG.flatten(), reduction="none")
    return (loss_N * scored_BG.flatten()).sum()


def by_clip(of_clips: Tensor, of_frames: Tensor, lengths: Sequence[int]) -> Tensor:
    """Values of gaps ``[B, G, ...]``: a clip's, then its frames', then 0 up to the most gaps."""
    parts = zip(of_clips.split(1), of_frames.split(list(lengths)), strict=True)
    return pad_sequence([torch.cat(pair) for pair in parts], batch_first=True)


def from_here_on(x_BG: Tensor) -> Tensor:
    """Sums over each gap, the second axis, and those right of it."""
    return x_BG.flip(1).cumsum(1).flip(1)
