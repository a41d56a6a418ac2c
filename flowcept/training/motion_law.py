"""Teach and score the law of how many frames lie between two pictures.

Shape suffixes: N pairs of pictures, D cues, G counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept.data.motion_windows import MotionData, Progress
from flowcept.networks.motion import GapLaw

STRIDES = (1, 2, 3, 4)  # shots are told at their own rate, at a half, a third and a quarter of it
LAW_RATE = 1e-3
LAW_DECAY = 0.1
LAW_BATCH = 64  # pairs of pictures a step
LAW_NOISE = 0.3  # of the cues' spread: few shots, and each has a pace to learn by heart


@dataclass(frozen=True)
class LawExamples:
    """Cues of pairs of pictures and the number of frames between them."""

    cue_ND: Tensor
    between_N: Tensor


def law_examples(
    data: MotionData, most: int, progress: Progress | None = None
) -> tuple[LawExamples, LawExamples]:
    """Pairs of at most so many frames between: those to learn from, and those held out."""
    table = data.law_examples(progress)
    known = table["between"] <= most
    parts = [known & (table["held"] == held) for held in (False, True)]
    learned, held = (LawExamples(table["cues"][rows], table["between"][rows]) for rows in parts)
    return slower(learned), slower(held)


def slower(examples: LawExamples) -> LawExamples:
    """The same pictures as of shots of which every frame, or every second, third or fourth is kept.

    A user's clip may have 60 frames a second or 8. So that all rates count alike, pairs whose
    distance a stride divides stand there as many times as the stride says: 1 in k distances is
    divided by k.
    """
    cues, betweens = [], []
    spacing_N = examples.between_N + 1
    for stride in STRIDES:
        rows = torch.nonzero(spacing_N % stride == 0)[:, 0].repeat(stride)
        cues.append(examples.cue_ND[rows])
        betweens.append(spacing_N[rows] // stride - 1)
    return LawExamples(torch.cat(cues), torch.cat(betweens))


def fit_law(
    law: GapLaw, examples: LawExamples, steps: int, seed: int, *, further: bool = False
) -> None:
    """Teach the law of gaps by cross-entropy, with noise on the cues; it takes seconds.

    A law that is taught ``further`` keeps the scale of the cues that it knows.
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
    """Those of one step, with noise on their cues."""
    rows = torch.randint(len(examples.cue_ND), (LAW_BATCH,), generator=generator)
    noise_ND = torch.randn(LAW_BATCH, examples.cue_ND.shape[1], generator=generator)
    cue_ND = examples.cue_ND[rows] + LAW_NOISE * spread_D * noise_ND
    return LawExamples(cue_ND, examples.between_N[rows])


@torch.no_grad()
def law_scores(law: GapLaw, examples: LawExamples) -> dict[str, float]:
    """Mean log score of the true counts, and how many lie in the central 80 %."""
    if not len(examples.cue_ND):
        return {}
    device = law.mean_D.device
    log_law_NG, between_N = law(examples.cue_ND.to(device)), examples.between_N.to(device)
    inside_N = within_central(log_law_NG, between_N, 0.8)
    return {
        "law_log_score": float(-F.nll_loss(log_law_NG, between_N)),
        "law_central_80": float(inside_N.float().mean()),
    }


def within_central(log_law_NG: Tensor, count_N: Tensor, share: float) -> Tensor:
    """Whether each count lies within the central share of its law: bool [N].

    The law's mass below and up to the count must leave neither tail: the count is inside unless all
    of its own mass lies in one of the two tails of ``(1 - share) / 2``.
    """
    up_to_NG = log_law_NG.double().exp().cumsum(1)
    up_to_N = up_to_NG.gather(1, count_N[:, None])[:, 0]
    below_N = up_to_N - log_law_NG.double().exp().gather(1, count_N[:, None])[:, 0]
    tail = (1 - share) / 2
    return (up_to_N > tail) & (below_N < 1 - tail)
