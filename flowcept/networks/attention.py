"""Attention within the segments of a packed sequence.

The sequence is an array of *rows*, each of equally many tokens (a frame, or one prompt token); a
``Plan`` says which rows each run of query rows sees. What is unusual here: no mask and no padding
exist. Runs of equal shape are batched and go through ``scaled_dot_product_attention``; this loop is
the specification. On CUDA the same plan goes to ``xformers.ops.memory_efficient_attention`` as a
block diagonal. Local attention is a plan with fewer keys, so what it saves is real. Only where runs
are so short that a CPU spends its time on calls are they padded, to be one call (``padded.py``).

Shape suffixes: R query rows, S key rows, P tokens per row, N heads, E head width; of a batch of
runs of one shape G runs, Q query tokens, K key tokens.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept.networks.padded import Padded, attend_padded

SHORT = 64  # tokens of a run: fewer take less time than the calls that they are worked on by
MANY = 4  # shapes of runs: fewer are soon called one by one


@dataclass(frozen=True)
class Group:
    """Runs of one shape, next to each other in the plan's order."""

    runs: int
    queries: int  # rows per run
    keys: int  # rows per run


@dataclass(frozen=True)
class Plan:
    """Each run of query rows with the key rows that it sees. Every query row is in one run."""

    groups: tuple[Group, ...]
    query_order: Tensor | None  # rows as the groups want them; None: as they are
    key_order: Tensor | None  # the same for keys, which may repeat
    back_order: Tensor | None  # puts the outputs back into place
    block_masks: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False, repr=False)
    padded: list[Padded] = field(default_factory=list, compare=False, repr=False)  # once made

    def is_short(self, query_width: int, key_width: int) -> bool:
        """Whether its runs, in rows of so many tokens, have many shapes and are short."""
        tokens = (max(g.queries * query_width, g.keys * key_width) for g in self.groups)
        return len(self.groups) > MANY and max(tokens) <= SHORT

    def as_padded(self) -> Padded:
        """Its runs, all made as long as the longest."""
        if not self.padded:
            queries = [(group.runs, group.queries) for group in self.groups]
            keys = [(group.runs, group.keys) for group in self.groups]
            orders = (self.query_order, self.key_order)
            self.padded.append(Padded.of(*orders, queries, keys))
        return self.padded[0]


def make_plan(queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> Plan:
    """Group the runs: run i has the query rows ``queries[i]`` and sees the rows ``keys[i]``.

    The plan's tensors are on the CPU.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for run, (query, key) in enumerate(zip(queries, keys, strict=True)):
        members.setdefault((len(query), len(key)), []).append(run)
    groups = tuple(Group(len(runs), *shape) for shape, runs in members.items())

    order = [run for runs in members.values() for run in runs]
    query_rows = [row for run in order for row in queries[run]]
    key_rows = [row for run in order for row in keys[run]]
    query_order = integers(query_rows) if query_rows != list(range(len(query_rows))) else None
    key_order = integers(key_rows) if key_rows != list(range(len(key_rows))) else None
    back_order = inverse(query_rows) if query_order is not None else None
    return Plan(groups, query_order, key_order, back_order)


def integers(numbers: Sequence[int]) -> Tensor:
    """Whole numbers as an int64 tensor on the CPU."""
    return torch.tensor(numbers, dtype=torch.long)


def inverse(order: Sequence[int]) -> Tensor:
    """Where each number stands in ``order``: what puts things so ordered back."""
    return integers(sorted(range(len(order)), key=order.__getitem__))


def attend(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, plan: Plan) -> Tensor:
    """Each run's queries over its keys; ``[R, P, N, E]``, rows in the order of the queries."""
    if q_RPNE.device.type == "cpu" and plan.is_short(q_RPNE.shape[1], k_SPNE.shape[1]):
        return attend_padded(q_RPNE, k_SPNE, v_SPNE, plan.as_padded())
    ops = xformers_ops() if q_RPNE.is_cuda else None
    if ops is None:
        out_RPNE = _attend_sdpa(q_RPNE, k_SPNE, v_SPNE, plan)
    else:
        out_RPNE = _attend_xformers(ops, q_RPNE, k_SPNE, v_SPNE, plan)
    return out_RPNE if plan.back_order is None else out_RPNE[plan.back_order]


PART = 2**15  # key tokens that a CPU gathers at once: local attention sees each of them many times


def _attend_sdpa(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, plan: Plan) -> Tensor:
    groups = plan.groups
    if k_SPNE.device.type == "cpu":
        groups = tuple(part for group in groups for part in _cut(group, k_SPNE.shape[1]))
    queries = [group.runs * group.queries for group in groups]
    keys = [group.runs * group.keys for group in groups]
    parts = (
        _parts(q_RPNE, plan.query_order, queries),
        _parts(k_SPNE, plan.key_order, keys),
        _parts(v_SPNE, plan.key_order, keys),
    )
    outputs: list[Tensor] = []
    for group, *qkv in zip(groups, *parts, strict=True):
        batch = (x.unflatten(0, (group.runs, -1)).flatten(1, 2).transpose(1, 2) for x in qkv)
        out_GQNE = _softmax_attention(*batch).transpose(1, 2)
        outputs.append(out_GQNE.reshape(-1, *q_RPNE.shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _cut(group: Group, key_tokens: int) -> list[Group]:
    """A group in parts, each of as many runs as have ``PART`` key tokens."""
    most = max(PART // (group.keys * key_tokens), 1)
    whole, rest = divmod(group.runs, most)
    return [replace(group, runs=runs) for runs in [most] * whole + [rest] * (rest > 0)]


def _parts(x: Tensor, order: Tensor | None, sizes: Sequence[int]) -> Iterable[Tensor]:
    """The rows of ``x`` in that order, so many at a time.

    One cut for all, since the backward pass of each cut alone fills a tensor as large as ``x``.
    Without gradients rows are gathered when their turn comes.
    """
    if order is None or torch.is_grad_enabled():
        x = x if order is None else x.index_select(0, order)
        return torch.split(x, list(sizes))
    return (x.index_select(0, rows) for rows in order.split(list(sizes)))


SMALL = 1024  # keys up to which a CPU's plain matrix products beat its fused backward pass


def _softmax_attention(q_GNQE: Tensor, k_GNKE: Tensor, v_GNKE: Tensor) -> Tensor:
    """Attention of a batch of runs of one shape."""
    trained_on_cpu = q_GNQE.device.type == "cpu" and q_GNQE.requires_grad
    if not trained_on_cpu or k_GNKE.shape[2] > SMALL:
        return F.scaled_dot_product_attention(q_GNQE, k_GNKE, v_GNKE)
    score_GNQK = (q_GNQE * q_GNQE.shape[-1] ** -0.5) @ k_GNKE.transpose(-1, -2)
    out_GNQE: Tensor = score_GNQK.softmax(-1, dtype=q_GNQE.dtype) @ v_GNKE
    return out_GNQE


def _attend_xformers(
    ops: Any,  # noqa: ANN401 - a module that may not exist
    q_RPNE: Tensor,
    k_SPNE: Tensor,
    v_SPNE: Tensor,
    plan: Plan,
) -> Tensor:
    """The same by one call of memory-efficient attention over a block diagonal."""
    if plan.query_order is not None:
        q_RPNE = q_RPNE[plan.query_order]
    if plan.key_order is not None:
        k_SPNE, v_SPNE = k_SPNE[plan.key_order], v_SPNE[plan.key_order]
    widths = (q_RPNE.shape[1], k_SPNE.shape[1])
    if widths not in plan.block_masks:
        from xformers.ops.fmha.attn_bias import BlockDiagonalMask

        plan.block_masks[widths] = BlockDiagonalMask.from_seqlens(*run_lengths(plan, *widths))
    q_1TNE, k_1TNE, v_1TNE = (x.flatten(0, 1)[None] for x in (q_RPNE, k_SPNE, v_SPNE))
    out_1TNE: Tensor = ops.memory_efficient_attention(
        q_1TNE, k_1TNE, v_1TNE, attn_bias=plan.block_masks[widths]
    )
    return out_1TNE.view(q_RPNE.shape)


def run_lengths(plan: Plan, query_width: int, key_width: int) -> tuple[list[int], list[int]]:
    """Tokens of each query run and of each key run, in the plan's order."""
    queries = [n for g in plan.groups for n in [g.queries * query_width] * g.runs]
    keys = [n for g in plan.groups for n in [g.keys * key_width] * g.runs]
    return queries, keys


@functools.cache
def xformers_ops() -> Any | None:  # noqa: ANN401 - a module that may not exist
    """``xformers.ops``, or None, with one warning, where it cannot be imported.

    Asked for on CUDA only. The import of a build that does not match torch can raise anything.
    """
    try:
        import xformers.ops
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"xformers is not usable here ({reason}): attention falls back to PyTorch's own; "
            'pip install ".[cuda]" for less memory',
            stacklevel=2,
        )
        return None
    return xformers.ops
