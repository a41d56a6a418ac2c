"""Attention within segments against a dense mask, and the path that CUDA takes.

Shape suffixes: R query rows, S key rows, P tokens per row, T U query and key tokens, N heads, E
head width.
"""

from __future__ import annotations

import itertools
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcept.networks import attention
from flowcept.networks.attention import Plan, attend, make_plan, run_lengths
from flowcept.networks.transformer import attention_plan, prompt_plan

CPU = torch.device("cpu")
LENGTHS = [(3,), (2, 5, 2), (0, 4, 1, 4, 0), (7, 7)]
TOKENS = 3  # per row of a query


def dense(q_TNE: Tensor, k_UNE: Tensor, v_UNE: Tensor, seen_TU: Tensor) -> Tensor:
    """Softmax attention written out, with a mask over all scores."""
    scores = torch.einsum("tne,une->ntu", q_TNE, k_UNE) / q_TNE.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen_TU, -torch.inf).softmax(-1)
    return torch.einsum("ntu,une->tne", weights, v_UNE)


def dense_rows(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, seen_RS: Tensor) -> Tensor:
    """The same for rows of tokens: a token sees all tokens of the rows that its own row sees."""
    seen_TU = seen_RS.repeat_interleave(q_RPNE.shape[1], 0)
    seen_TU = seen_TU.repeat_interleave(k_SPNE.shape[1], 1)
    flat = (x.flatten(0, 1) for x in (q_RPNE, k_SPNE, v_SPNE))
    return dense(*flat, seen_TU).view(q_RPNE.shape)


def clip_mask(lengths: Sequence[int], window: int, *, causal: bool = False) -> Tensor:
    """Which row sees which, from the definition; a clip's own row lies before its frames."""
    rows = [(b, f) for b, n in enumerate(lengths) for f in (None, *range(n))]

    def sees(a: tuple[int, int | None], b: tuple[int, int | None]) -> bool:
        near = not window or a[1] is None or b[1] is None or abs(a[1] - b[1]) <= window
        later = causal and b[1] is not None and (a[1] is None or b[1] > a[1])
        return a[0] == b[0] and near and not later

    return torch.tensor([[sees(a, b) for b in rows] for a in rows])


def prompt_mask(lengths: Sequence[int], prompts: Sequence[int]) -> Tensor:
    clip = [b for b, n in enumerate(lengths) for _ in range(n + 1)]
    owner = [b for b, n in enumerate(prompts) for _ in range(n)]
    return torch.tensor([[i == j for j in owner] for i in clip])


def draw_qkv(
    queries: int, keys: int, tokens: int = TOKENS, *, grad: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of queries, keys and values; prompt rows have one token each."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((queries, TOKENS), (keys, tokens), (keys, tokens))
    return tuple(
        torch.randn(*s, 2, 8, generator=generator, dtype=torch.float64, requires_grad=grad)
        for s in shapes
    )


def plans() -> list[tuple[str, Plan, Tensor, int]]:
    """Name, plan, the mask that it stands for, and tokens per row of keys."""
    cases = []
    for lengths in LENGTHS:
        for window in (0, 1, 2):
            plan = attention_plan(lengths, window, CPU)
            cases.append((f"{lengths} window {window}", plan, clip_mask(lengths, window), TOKENS))
            plan = attention_plan(lengths, window, CPU, causal=True)
            mask = clip_mask(lengths, window, causal=True)
            cases.append((f"{lengths} window {window}, causal", plan, mask, TOKENS))
        prompts = tuple(2 + b % 3 for b in range(len(lengths)))
        plan = prompt_plan(lengths, prompts, CPU)
        cases.append((f"{lengths} prompt", plan, prompt_mask(lengths, prompts), 1))
    return cases


CASES = pytest.mark.parametrize(
    ("plan", "seen_RS", "tokens"), [c[1:] for c in plans()], ids=[c[0] for c in plans()]
)


@CASES
@pytest.mark.parametrize("small", [0, 1024], ids=["fused", "plain"])
@pytest.mark.parametrize("part", [1, 50, attention.PART])
def test_segments_equal_the_dense_mask(
    plan: Plan, seen_RS: Tensor, tokens: int, small: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SMALL", small)
    monkeypatch.setattr(attention, "PART", part)
    q, k, v = draw_qkv(*seen_RS.shape, tokens)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    out, expected = attend(q, k, v, plan), dense_rows(q, k, v, seen_RS)
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        torch.testing.assert_close(attend(q.detach(), k, v, plan), expected)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_planted_mistake_is_seen() -> None:
    """A window that is one frame too wide does not equal the mask."""
    q, k, v = draw_qkv(8, 8)
    out = attend(q, k, v, attention_plan((7,), 2, CPU))
    assert not torch.allclose(out, dense_rows(q, k, v, clip_mask((7,), 1)))


def test_local_attention_saves_for_real() -> None:
    """64 frames of 9 tokens, window 2: a frame scores against 5 frames and the clip's row."""

    def scores(window: int) -> int:
        queries, keys = run_lengths(attention_plan((64,), window, CPU), 9, 9)
        return sum(a * b for a, b in zip(queries, keys, strict=True))

    assert scores(0) == (65 * 9) ** 2
    assert scores(2) <= 64 * 9 * (6 * 9) + 9 * (65 * 9)
    assert scores(2) < 0.11 * scores(0)


def test_equal_lengths_are_batched() -> None:
    assert len(attention_plan((4,) * 50, 0, CPU).groups) == 1
    assert len(attention_plan((4, 6) * 25, 0, CPU).groups) == 2
    assert len(attention_plan((20,) * 10, 2, CPU).groups) == 4  # clip rows; 3, 4 or 5 frames seen


class FakeMask:
    """What ``BlockDiagonalMask`` is: runs of queries, each with its run of keys."""

    made = 0

    def __init__(self, queries: list[int], keys: list[int]) -> None:
        self.queries, self.keys = queries, keys

    @classmethod
    def from_seqlens(
        cls, q_seqlen: list[int], kv_seqlen: list[int] | None = None, *, device: object = None
    ) -> FakeMask:
        del device
        assert all(isinstance(n, int) and n > 0 for n in [*q_seqlen, *(kv_seqlen or [])])
        FakeMask.made += 1
        return cls(list(q_seqlen), list(kv_seqlen or q_seqlen))

    def materialize(self) -> Tensor:
        blocks = [torch.ones(a, b) for a, b in zip(self.queries, self.keys, strict=True)]
        return torch.block_diag(*blocks).bool()


def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: FakeMask | None = None
) -> Tensor:
    """The call's documented contract: ``[1, M, N, E]`` and a mask over all of M."""
    assert query.ndim == key.ndim == value.ndim == 4
    assert query.shape[0] == key.shape[0] == value.shape[0] == 1
    assert isinstance(attn_bias, FakeMask)
    assert sum(attn_bias.queries) == query.shape[1]
    assert sum(attn_bias.keys) == key.shape[1] == value.shape[1]
    return dense(query[0], key[0], value[0], attn_bias.materialize())[None]


@pytest.fixture
def no_cache() -> Iterator[None]:
    attention.xformers_ops.cache_clear()
    yield
    attention.xformers_ops.cache_clear()


@pytest.fixture
def fake_xformers(monkeypatch: pytest.MonkeyPatch, no_cache: None) -> types.ModuleType:
    del no_cache
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules = [types.ModuleType(name) for name in names]
    for module, child in itertools.pairwise(modules):
        setattr(module, child.__name__.rpartition(".")[2], child)
    modules[1].memory_efficient_attention = memory_efficient_attention
    modules[3].BlockDiagonalMask = FakeMask
    for module in modules:
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeMask, "made", 0)
    return modules[1]


@CASES
def test_the_cuda_path_gives_the_same(
    plan: Plan,
    seen_RS: Tensor,
    tokens: int,
    fake_xformers: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(plan, block_masks={})
    qkv = draw_qkv(*seen_RS.shape, tokens)
    ops = attention.xformers_ops()
    assert ops is fake_xformers
    expected = attend(*qkv, plan)
    assert FakeMask.made == 0
    monkeypatch.setattr(
        attention, "_attend_sdpa", lambda *rest: attention._attend_xformers(ops, *rest)
    )
    for _ in range(2):
        torch.testing.assert_close(attend(*qkv, plan), expected)
    assert FakeMask.made == 1, "the mask is made once per plan"


def test_a_failing_import_falls_back_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, no_cache: None
) -> None:
    del no_cache

    class Broken:
        """An import that does not match torch can raise anything."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            del path, target
            if name.split(".", maxsplit=1)[0] == "xformers":
                raise RuntimeError("built for another torch\nand a second line")

    for name in [n for n in sys.modules if n.split(".")[0] == "xformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.warns(UserWarning) as seen:
        assert attention.xformers_ops() is None
        assert attention.xformers_ops() is None
    assert len(seen) == 1
    text = str(seen[0].message)
    assert "built for another torch" in text
    assert "\n" not in text


def test_xformers_is_not_imported_on_a_cpu(monkeypatch: pytest.MonkeyPatch, no_cache: None) -> None:
    del no_cache
    monkeypatch.setitem(sys.modules, "xformers", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(*draw_qkv(8, 8), make_plan([range(8)], [range(8)], CPU))
    assert attention.xformers_ops.cache_info().misses == 0
