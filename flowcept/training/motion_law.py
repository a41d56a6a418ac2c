"""Train and score the law of how many frames lie between two pictures.

Shape suffixes: N pairs of pictures, D cues, G counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept.data.motion_windows import MotionData, Progress
from flowcept.networks.motion import WIDEST, GapLaw

LAW_RATE = 1e-3
LAW_DECAY = 0.1
LAW_BATCH = 64  # pairs of pictures a step
LAW_NOISE = 0.7  # of the cues' spread: few shots, and each has a pace to learn by heart


@dataclass(frozen=True)
class LawExamples:
    """Cues of pairs of pictures, and the number of frames between each pair."""

    cue_ND: Tensor
    between_N: Tensor


def law_examples(
    data: MotionData, most: int, progress: Progress | None = None
) -> tuple[LawExamples, LawExamples]:
    """Pairs with at most ``most`` frames between: those to learn from, and those held out.

    Pairs wider than ``WIDEST`` are left out: farther apart, pictures show next to nothing of time.
    """
    return parted(data.law_examples(progress), most)


def parted(table: Mapping[str, Tensor], most: int) -> tuple[LawExamples, LawExamples]:
    """The pairs of a table of cues as ``law_examples`` gives them."""
    known = table["between"] <= min(most, WIDEST)
    rows = [known & (table["held"] == held) for held in (False, True)]
    learned, held = (LawExamples(table["cues"][one], table["between"][one]) for one in rows)
    return learned, held


def alike(between_N: Tensor) -> Tensor:
    """Weights that give every number of frames between the same total; they sum to 1."""
    _, number_N, counts = torch.unique(between_N, return_inverse=True, return_counts=True)
    weight_N: Tensor = 1 / (len(counts) * counts[number_N])
    return weight_N


def fit_law(
    law: GapLaw, examples: LawExamples, steps: int, seed: int, *, further: bool = False
) -> None:
    """Train the law of gaps by cross-entropy, with noise on the cues; it takes seconds.

    With ``further`` an already trained law keeps the scale of its cues.
    """
    if not further:
        law.mean_D.copy_(examples.cue_ND.mean(0))
        law.spread_D.copy_(examples.cue_ND.std(0) + 1e-3)
    optimiser = torch.optim.AdamW(law.parameters(), LAW_RATE, weight_decay=LAW_DECAY)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LAW_RATE * (1 - step / steps)
        drawn = _drawn(examples, law.spread_D, generator)
        loss = F.nll_loss(law(drawn.cue_ND), drawn.between_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _drawn(examples: LawExamples, spread_D: Tensor, generator: torch.Generator) -> LawExamples:
    """The examples of one step, with noise on their cues."""
    weight_N = alike(examples.between_N)
    rows = torch.multinomial(weight_N, LAW_BATCH, replacement=True, generator=generator)
    noise_ND = torch.randn(LAW_BATCH, examples.cue_ND.shape[1], generator=generator)
    cue_ND = examples.cue_ND[rows] + LAW_NOISE * spread_D * noise_ND
    return LawExamples(cue_ND, examples.between_N[rows])


@torch.no_grad()
def law_scores(law: GapLaw, examples: LawExamples) -> dict[str, float]:
    """Mean log score of the true counts, and their share in the central 80 %, weighted alike."""
    if not len(examples.cue_ND):
        return {}
    device = law.mean_D.device
    log_law_NG, between_N = law(examples.cue_ND.to(device)), examples.between_N.to(device)
    score_N = log_law_NG.gather(1, between_N[:, None])[:, 0]
    weight_N = alike(between_N)
    return {
        "law_log_score": float((weight_N * score_N).sum()),
        "law_central_80": float((weight_N * share_within(log_law_NG, between_N, 0.8)).sum()),
    }


def share_within(log_law_NG: Tensor, count_N: Tensor, share: float) -> Tensor:
    """How much of each count's own mass lies within the central share of its law: [N] in [0, 1].

    A count at the edge is partly inside. So for any correct law the mean is ``share``, however few
    counts it spreads over.
    """
    law_NG = log_law_NG.double().exp()
    own_N = law_NG.gather(1, count_N[:, None])[:, 0].clamp(min=1e-12)
    up_to_N = law_NG.cumsum(1).gather(1, count_N[:, None])[:, 0]
    tail = (1 - share) / 2
    inside_N = up_to_N.clamp(max=1 - tail) - (up_to_N - own_N).clamp(min=tail)
    return inside_N.clamp(min=0) / own_N
