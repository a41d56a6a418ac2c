"""Attention within the segments of a packed sequence.

The sequence is an array of *rows*, each of equally many tokens (a frame, or one prompt token); a
``Plan`` says which rows each run of query rows sees. What is unusual here: no mask and no padding
exist. Runs of equal shape are batched and go through ``scaled_dot_product_attention``; this loop is
the specification. On CUDA the same plan goes to ``xformers.ops.memory_efficient_attention`` as a
block diagonal. Local attention is a plan with fewer keys, so what it saves is real. Only where runs
are so short that a CPU spends its time on calls are they padded, to be one call.

Shape suffixes: R query rows, S key rows, P tokens per row, N heads, E head width; of a batch of
runs of one shape G runs, Q query tokens, K key tokens.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 64  # tokens of a run: fewer take less time than the calls that they are worked on by
MANY = 4  # shapes of runs


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
        """Whether its runs, in rows of so many tokens, are many and short."""
        tokens = (max(g.queries * query_width, g.keys * key_width) for g in self.groups)
        return len(self.groups) > MANY and max(tokens) <= SHORT


def make_plan(queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> Plan:
    """Group the runs: run i has the query rows ``queries[i]`` and sees the rows ``keys[i]``.

    Runs without a query are left out. The plan's tensors are on the CPU.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for run, (query, key) in enumerate(zip(queries, keys, strict=True)):
        if query:
            members.setdefault((len(query), len(key)), []).append(run)
    groups = tuple(Group(len(runs), *shape) for shape, runs in members.items())

    order = [run for runs in members.values() for run in runs]
    query_rows = [row for run in order for row in queries[run]]
    key_rows = [row for run in order for row in keys[run]]
    num_keys = 1 + max((row for run in keys for row in run), default=-1)
    query_order = integers(query_rows) if query_rows != list(range(len(query_rows))) else None
    key_order = integers(key_rows) if key_rows != list(range(num_keys)) else None
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
    if not plan.groups:
        return q_RPNE  # which has no row
    if q_RPNE.device.type == "cpu" and plan.is_short(q_RPNE.shape[1], k_SPNE.shape[1]):
        if not plan.padded:
            plan.padded.append(Padded.of(plan))
        return _attend_padded(q_RPNE, k_SPNE, v_SPNE, plan.padded[0])
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


@dataclass(frozen=True)
class Padded:
    """The runs of a plan, all made as long as the longest: which row stands at each place."""

    runs: int
    queries_M: Tensor  # row at each of ``M = runs * longest`` places; 0 at those that are padding
    back_R: Tensor  # place of each row
    keys_M: Tensor
    keys_back_S: Tensor | None  # None: not every row is the key of just one run
    real_GK: Tensor | None  # bool; None: no key is padding

    @classmethod
    def of(cls, plan: Plan) -> Self:
        shapes = [(g.runs, g.queries, g.keys) for g in plan.groups]
        queries_GQ = _padded_rows(plan.query_order, [(runs, q) for runs, q, _ in shapes])
        keys_GK = _padded_rows(plan.key_order, [(runs, k) for runs, _, k in shapes])
        real_GK = keys_GK >= 0
        return cls(
            runs=len(queries_GQ),
            queries_M=queries_GQ.clamp(min=0).flatten(),
            back_R=_places(queries_GQ),
            keys_M=keys_GK.clamp(min=0).flatten(),
            keys_back_S=_places(keys_GK) if plan.key_order is None else None,
            real_GK=None if bool(real_GK.all()) else real_GK,
        )


def _padded_rows(order: Tensor | None, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of runs of these shapes, which lie end to end in that order; -1 for padding."""
    sizes = [runs * length for runs, length in shapes]
    rows = torch.arange(sum(sizes)) if order is None else order
    most = max(length for _, length in shapes)
    parts = zip(rows.split(sizes), shapes, strict=True)
    return torch.cat([F.pad(x.view(shape), (0, most - shape[1]), value=-1) for x, shape in parts])


def _places(rows: Tensor) -> Tensor:
    """Where each row stands, each standing at one place."""
    flat = rows.flatten()
    places = (flat >= 0).nonzero().flatten()
    return places[flat[places].argsort()]


def _attend_padded(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, padded: Padded) -> Tensor:
    """Attention of all runs in one batch; padding has no weight."""

    def batch(x: Tensor, rows_M: Tensor, back: Tensor | None) -> Tensor:
        x_MPNE = x.index_select(0, rows_M) if back is None else _Spread.apply(x, rows_M, back)
        return x_MPNE.unflatten(0, (padded.runs, -1)).flatten(1, 2).transpose(1, 2)

    q_GNQE = batch(q_RPNE * q_RPNE.shape[-1] ** -0.5, padded.queries_M, padded.back_R)
    k_GNKE, v_GNKE = (batch(x, padded.keys_M, padded.keys_back_S) for x in (k_SPNE, v_SPNE))
    score_GNQK = q_GNQE @ k_GNKE.transpose(-1, -2)
    if padded.real_GK is not None:
        real_GK = padded.real_GK.repeat_interleave(k_SPNE.shape[1], 1)
        score_GNQK = score_GNQK.masked_fill(~real_GK[:, None, None], -torch.inf)
    out_GNQE = score_GNQK.softmax(-1, dtype=q_RPNE.dtype) @ v_GNKE
    out_MPNE = out_GNQE.transpose(1, 2).reshape(-1, *q_RPNE.shape[1:])
    out_RPNE: Tensor = _Collect.apply(out_MPNE, padded.back_R)  # type: ignore[no-untyped-call]
    return out_RPNE


class _Spread(torch.autograd.Function):
    """Rows at the places of runs; ``back`` says where each of them is, once, beside padding.

    The backward pass collects what autograd would add up row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, back: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(back)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None


class _Collect(torch.autograd.Function):
    """Rows from their places, which are all different ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(places)
        ctx.num_places = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (places,) = ctx.saved_tensors
        zero = grad.new_zeros(ctx.num_places, *grad.shape[1:])
        return zero.index_copy_(0, places, grad), None


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
