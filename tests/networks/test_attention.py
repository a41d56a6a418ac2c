"""Attention within segments against a dense mask, and the path that CUDA takes.

Shape suffixes: R query rows, S key rows, N heads, E head width.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeCuda
from fake_xformers import FakeMask, install
from fixtures_network import clip_mask, dense_rows, prompt_mask
from torch import Tensor

from flowcept.networks import attention
from flowcept.networks.attention import Group, Plan, attend, inverse, make_plan, run_lengths
from flowcept.networks.layout import attention_plan, prompt_plan

LENGTHS = [(3,), (2, 5, 2), (0, 4, 1, 4, 0), (7, 7)]
TOKENS = 3  # per row of a query


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
            plan = attention_plan(lengths, window)
            cases.append((f"{lengths} window {window}", plan, clip_mask(lengths, window), TOKENS))
        prompts = tuple(2 + b % 3 for b in range(len(lengths)))
        plan = prompt_plan(lengths, prompts)
        cases.append((f"{lengths} prompt", plan, prompt_mask(lengths, prompts), 1))
    return cases


CASES = pytest.mark.parametrize(
    ("plan", "seen_RS", "tokens"), [c[1:] for c in plans()], ids=[c[0] for c in plans()]
)


def test_runs_of_one_shape_are_one_group() -> None:
    plan = make_plan([[4, 0], [2], [1, 3]], [[5], [6, 6], [7]])
    assert plan.groups == (Group(2, 2, 1), Group(1, 1, 2))
    assert plan.query_order is not None
    assert plan.query_order.tolist() == [4, 0, 1, 3, 2]
    assert plan.key_order is not None
    assert plan.key_order.tolist() == [5, 7, 6, 6]
    assert plan.back_order is not None
    assert plan.query_order[plan.back_order].tolist() == [0, 1, 2, 3, 4]


def test_rows_that_lie_as_groups_want_them_are_not_moved() -> None:
    plan = make_plan([[0, 1], [2, 3]], [[0], [1]])
    assert plan.query_order is plan.key_order is plan.back_order is None


def test_an_order_has_an_inverse() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(order[inverse(order.tolist())], torch.arange(5))


@CASES
@pytest.mark.parametrize("small", [0, 1024], ids=["fused", "plain"])
@pytest.mark.parametrize("part", [1, 50, attention.PART])
@pytest.mark.parametrize("many", [0, 100], ids=["padded", "by shape"])
def test_segments_equal_the_dense_mask(
    plan: Plan,
    seen_RS: Tensor,
    tokens: int,
    small: int,
    part: int,
    many: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(plan, padded=[])
    monkeypatch.setattr(attention, "MANY", many)
    assert plan.is_short(TOKENS, tokens) is (many == 0)
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
    out = attend(q, k, v, attention_plan((7,), 2))
    assert not torch.allclose(out, dense_rows(q, k, v, clip_mask((7,), 1)))


def test_local_attention_saves_for_real() -> None:
    """64 frames of 9 tokens, window 2: a frame scores against 5 frames and the clip's row."""

    def scores(window: int) -> int:
        queries, keys = run_lengths(attention_plan((64,), window), 9, 9)
        return sum(a * b for a, b in zip(queries, keys, strict=True))

    assert scores(0) == (65 * 9) ** 2
    assert scores(2) <= 64 * 9 * (6 * 9) + 9 * (65 * 9)
    assert scores(2) < 0.11 * scores(0)


def test_equal_lengths_are_batched() -> None:
    assert len(attention_plan((4,) * 50, 0).groups) == 1
    assert len(attention_plan((4, 6) * 25, 0).groups) == 2
    assert len(attention_plan((20,) * 10, 2).groups) == 4  # clip rows; 3, 4 or 5 frames seen


def test_only_many_short_runs_are_padded() -> None:
    """Few shapes, or long runs, take little more than their own work as they are."""
    many = make_plan([[i] for i in range(5)], [range(i, i + i + 1) for i in range(5)])
    assert many.is_short(1, 1)
    assert many.is_short(64, 12)
    assert not many.is_short(65, 1)
    assert not many.is_short(1, 13)
    few = make_plan([[i] for i in range(4)], [range(i, i + i + 1) for i in range(4)])
    assert not few.is_short(1, 1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_a_cpu_gathers_part_by_part(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 runs of 27 key tokens: on CUDA without xformers they are one call."""
    calls: list[int] = []
    monkeypatch.setattr(attention, "xformers_ops", lambda: None)
    monkeypatch.setattr(attention, "PART", 270)
    monkeypatch.setattr(attention, "_softmax_attention", lambda q, *_: (calls.append(len(q)), q)[1])
    plan = make_plan(
        [[run] for run in range(50)], [range(9 * run, 9 * run + 9) for run in range(50)]
    )
    q, k, v = draw_qkv(50, 450, grad=False)
    if device == "cpu":
        attend(q, k, v, plan)
    else:
        with FakeCuda() as cuda:
            attend(cuda.tensor(q), cuda.tensor(k), cuda.tensor(v), plan)
    assert calls == ([10] * 5 if device == "cpu" else [50])


@pytest.fixture
def no_cache() -> Iterator[None]:
    attention.xformers_ops.cache_clear()
    yield
    attention.xformers_ops.cache_clear()


@CASES
def test_the_cuda_path_gives_the_same(
    plan: Plan,
    seen_RS: Tensor,
    tokens: int,
    no_cache: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del no_cache
    ops = install(monkeypatch)
    assert attention.xformers_ops() is ops
    plan = replace(plan, block_masks={})
    qkv = draw_qkv(*seen_RS.shape, tokens)
    monkeypatch.setattr(attention, "MANY", 100)  # nothing is padded
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
        attend(*draw_qkv(8, 8), make_plan([range(8)], [range(8)]))
    assert attention.xformers_ops.cache_info().misses == 0
