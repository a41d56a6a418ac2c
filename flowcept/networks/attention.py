"""Attention within the segments of a packed sequence.

The sequence is an array of *rows*, each of equally many tokens (a frame, or one prompt token); a
``Plan`` says which rows each run of query rows sees. What is unusual here: no mask and no padding
exist. Runs of equal shape are batched and go through ``scaled_dot_product_attention``; this loop is
the specification. On CUDA the same plan goes to ``xformers.ops.memory_efficient_attention`` as a
block diagonal. Local attention is a plan with fewer keys, so what it saves is real.

Shape suffixes: R query rows, S key rows, P tokens per row, N heads, E head width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


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


PARTS = ("queries", "keys", "back")


@dataclass(frozen=True)
class PlanRows:
    """A plan whose rows are still lists; None where rows stay as they are."""

    groups: tuple[Group, ...]
    query_order: list[int] | None
    key_order: list[int] | None
    back_order: list[int] | None

    def lists(self, name: str) -> dict[str, list[int] | None]:
        """What must travel to a device before ``plan``, under names that begin with ``name``."""
        orders = (self.query_order, self.key_order, self.back_order)
        return {f"{name} {part}": order for part, order in zip(PARTS, orders, strict=True)}

    def plan(self, name: str, found: Mapping[str, Tensor]) -> Plan:
        """The plan, of what has come to the device."""
        query, key, back = (found.get(f"{name} {part}") for part in PARTS)
        return Plan(self.groups, query, key, back)


def plan_rows(queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> PlanRows:
    """Group the runs: run i has the query rows ``queries[i]`` and sees the rows ``keys[i]``."""
    members: dict[tuple[int, int], list[int]] = {}
    for run, (query, key) in enumerate(zip(queries, keys, strict=True)):
        members.setdefault((len(query), len(key)), []).append(run)
    groups = tuple(Group(len(runs), *shape) for shape, runs in members.items())
    order = [run for runs in members.values() for run in runs]
    query_rows = [row for run in order for row in queries[run]]
    key_rows = [row for run in order for row in keys[run]]
    back = sorted(range(len(query_rows)), key=query_rows.__getitem__)
    moved = query_rows != list(range(len(query_rows)))
    repeated = key_rows != list(range(len(key_rows)))
    return PlanRows(
        groups,
        query_rows if moved else None,
        key_rows if repeated else None,
        back if moved else None,
    )


def make_plan(
    queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], device: torch.device | str
) -> Plan:
    """The plan of ``plan_rows`` on a device."""
    rows = plan_rows(queries, keys)
    return rows.plan("", on_device(rows.lists(""), device))


def on_device(
    lists: Mapping[str, Sequence[int] | None], device: torch.device | str
) -> dict[str, Tensor]:
    """Lists of whole numbers as int64 tensors on a device, all in one journey; None is left out."""
    found = {name: numbers for name, numbers in lists.items() if numbers is not None}
    every = [number for numbers in found.values() for number in numbers]
    parts = torch.tensor(every, dtype=torch.long).to(device).split([*map(len, found.values())])
    return dict(zip(found, parts, strict=True))


def attend(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, plan: Plan) -> Tensor:
    """Each run's queries over its keys; ``[R, P, N, E]``, rows in the order of the queries."""
    ops = xformers_ops() if q_RPNE.is_cuda else None
    out_RPNE = (
        _attend_sdpa(q_RPNE, k_SPNE, v_SPNE, plan)
        if ops is None
        else _attend_xformers(ops, q_RPNE, k_SPNE, v_SPNE, plan)
    )
    return out_RPNE if plan.back_order is None else out_RPNE[plan.back_order]


PART = 2**15  # key tokens that are gathered at once: local attention sees each of them many times


def _attend_sdpa(q_RPNE: Tensor, k_SPNE: Tensor, v_SPNE: Tensor, plan: Plan) -> Tensor:
    runs: list[int] = []  # that attend in one call
    queries: list[int] = []  # rows of all their queries
    keys: list[int] = []
    for group in plan.groups:
        most = max(PART // (group.keys * k_SPNE.shape[1]), 1)
        for first in range(0, group.runs, most):
            runs.append(min(most, group.runs - first))
            queries.append(runs[-1] * group.queries)
            keys.append(runs[-1] * group.keys)
    parts = (
        _parts(q_RPNE, plan.query_order, queries),
        _parts(k_SPNE, plan.key_order, keys),
        _parts(v_SPNE, plan.key_order, keys),
    )
    outputs: list[Tensor] = []
    for count, *qkv in zip(runs, *parts, strict=True):
        query, key, value = (x.unflatten(0, (count, -1)).flatten(1, 2).transpose(1, 2) for x in qkv)
        out = _softmax_attention(query, key, value).transpose(1, 2)
        outputs.append(out.reshape(-1, *q_RPNE.shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
