"""A small network none of whose weights is silent, packs of clips for it, and dense masks.

Shape suffixes: R query rows, S key rows, P tokens per row, T U query and key tokens, N heads, E
head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcept.networks.attention import Plan
from flowcept.networks.transformer import Transformer, TransformerConfig
from flowcept.process import state as frames
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest

SMALL = TransformerConfig(
    channels=3, height=4, width=4, largest_size=9, text_width=12, hidden=32, depth=2, heads=2,
    patch=2, stem_channels=8, between=1, place=True,
)  # fmt: skip


FORMS = pytest.mark.parametrize("pooled", [False, True], ids=["tokens", "pooled"])


def network(window: int = 0, seed: int = 0, **settings: int) -> Transformer:
    """A network whose every weight counts: fresh gates are closed and would hide mistakes."""
    torch.manual_seed(seed)
    net = Transformer(replace(SMALL, window=window, **settings), shift=1.0).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    return net


def close(a: Tensor, b: Tensor, msg: str | None = None) -> None:
    """Equal up to float32 rounding; a mistake changes the outputs by a thousand times as much."""
    atol = 1e-4 * max(1.0, b.detach().abs().max().item()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=1e-3, atol=atol, msg=msg)


def clip(length: int, seed: int) -> FrameState:
    """A clip of random frames, of which the second and fourth are given and the third flows."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.rand(length, generator=generator) < 0.3
    given[1:4] = torch.tensor([True, False, True])[: max(length - 1, 0)]
    roles = torch.where(given, torch.randint(1, 3, (length,), generator=generator), 0)
    time = torch.rand(length, generator=generator)
    return FrameState(
        torch.randn(length, 3, 4, 4, generator=generator),
        torch.where(given, 1.0, time),
        roles,
        torch.rand(1, generator=generator) * 2,
        torch.rand(1, generator=generator) < 0.5,
        (length,),
    )


def prompt(length: int, seed: int) -> PromptTokens:
    generator = torch.Generator().manual_seed(seed)
    return PromptTokens(torch.randn(length, 12, generator=generator), (length,))


CLIPS = [clip(length, seed) for seed, length in enumerate((4, 1, 6, 0, 4))]
ORDER = [3, 1, 4, 0, 2]  # by length of clip and prompt: the order in which the network packs them
PROMPTS = [prompt(length, seed + 50) for seed, length in enumerate((3, 2, 3, 5, 2))]


def run(net: Transformer, chosen: Sequence[int], rest: Rest | None = None) -> Prediction:
    """What is said of some of the clips, packed."""
    state = frames.concat([CLIPS[b] for b in chosen])
    return net(state, frames.concat([PROMPTS[b] for b in chosen]), rest)


def outputs(prediction: Prediction) -> list[Tensor]:
    """Those of frames first, then those of clips."""
    return [
        prediction.velocity_FCHW,
        prediction.log_missing_F,
        prediction.log_missing_first_B,
        prediction.size_logits_BK,
    ]


def score(prediction: Prediction) -> Tensor:
    """A sum over clips of something that uses every output."""
    every = [*outputs(prediction), prediction.image_token_BV]
    return sum((out.sin() * (i + 1)).sum() for i, out in enumerate(every))


def dense(q_TNE: Tensor, k_UNE: Tensor, v_UNE: Tensor, seen_TU: Tensor) -> Tensor:
    """Softmax attention written out, with a mask over all scores."""
    scores = torch.einsum("tne,une->ntu", q_TNE, k_UNE) / q_TNE.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen_TU, -torch.inf).softmax(-1)
    return torch.einsum("ntu,une->tne", weights, v_UNE)


def dense_rows(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, seen_RS: Tensor) -> Tensor:
    """Attention of rows: a token sees all tokens of the rows that its own row sees."""
    seen_TU = seen_RS.repeat_interleave(q_RPNE.shape[1], 0)
    seen_TU = seen_TU.repeat_interleave(k_SPNE.shape[1], 1)
    flat = (x.flatten(0, 1) for x in (q_RPNE, k_SPNE, v_SPNE))
    return dense(*flat, seen_TU).view(q_RPNE.shape)


def clip_mask(lengths: Sequence[int], window: int) -> Tensor:
    """Which row sees which, from the definition; a clip's own row lies before its frames."""
    rows = [(b, f) for b, n in enumerate(lengths) for f in (None, *range(n))]

    def sees(a: tuple[int, int | None], b: tuple[int, int | None]) -> bool:
        near = not window or a[1] is None or b[1] is None or abs(a[1] - b[1]) <= window
        return a[0] == b[0] and near

    return torch.tensor([[sees(a, b) for b in rows] for a in rows])


def prompt_mask(lengths: Sequence[int], prompts: Sequence[int]) -> Tensor:
    """Which row sees which token of all prompts."""
    clip_of_row = [b for b, n in enumerate(lengths) for _ in range(n + 1)]
    clip_of_token = [b for b, n in enumerate(prompts) for _ in range(n)]
    return torch.tensor([[i == j for j in clip_of_token] for i in clip_of_row])


def check_against_dense_attention(net: Transformer, own_RR: Tensor) -> None:
    """Outputs and gradients are those of attention with a mask over all scores of a pack.

    ``own_RR`` tells which row sees which row; a row sees its clip's prompt and the image token.
    """
    packed = run(net, ORDER)
    score(packed).backward()
    gradient = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    counts = [PROMPTS[b].lengths[0] + 1 for b in ORDER]  # the image token, too
    other = prompt_mask([CLIPS[b].lengths[0] for b in ORDER], counts)

    def masked(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        del plan
        return dense_rows(q, k, v, own_RR if q.shape[1] == k.shape[1] else other)

    net.attend = masked
    reference = run(net, ORDER)
    for a, c in zip(outputs(packed), outputs(reference), strict=True):
        close(a, c)
    score(reference).backward()
    for (name, p), g in zip(net.named_parameters(), gradient, strict=True):
        close(p.grad, g, msg=name)
