"""Stands in for xformers, of which no call runs on a CPU: the contract of what is used of it."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable

import pytest
import torch
from fixtures_network import dense
from torch import Tensor


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
    """The call's documented contract: ``[1, M, N, E]`` of one dtype and a mask over all of M."""
    assert query.ndim == key.ndim == value.ndim == 4
    assert query.shape[0] == key.shape[0] == value.shape[0] == 1
    assert query.dtype == key.dtype == value.dtype
    assert isinstance(attn_bias, FakeMask)
    assert sum(attn_bias.queries) == query.shape[1]
    assert sum(attn_bias.keys) == key.shape[1] == value.shape[1]
    return dense(query[0], key[0], value[0], attn_bias.materialize())[None]


def install(
    monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Tensor] = memory_efficient_attention
) -> types.ModuleType:
    """``import xformers`` finds the stand-in; its ``ops``."""
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules = [types.ModuleType(name) for name in names]
    for module, child in itertools.pairwise(modules):
        setattr(module, child.__name__.rpartition(".")[2], child)
    modules[1].memory_efficient_attention = attend
    modules[3].BlockDiagonalMask = FakeMask
    for module in modules:
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeMask, "made", 0)
    return modules[1]
