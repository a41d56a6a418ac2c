"""How far a program is from the limit of its matrix products, and what takes the rest.

Every matrix product and convolution is run again alone, with operands of the same shapes: so many
operations a second are reached with nothing between. As the operations are the same ones, the time
they take so, over the time of the whole, is the share of that rate which the program reaches. The
rest goes to what the profiler says, by what operators are for; what no operator explains is Python.
Seconds are the processor's, of one thread.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
PURPOSES = {  # by the first pattern that an operator's name matches
    "optimiser and average": r"adam|foreach|linalg_vector_norm|lerp_",
    "matrix products": r"mm$|convolution|mkldnn|linear|matmul",
    "attention's softmax": r"softmax|scaled_dot|flash",
    "copies and casts": r"copy|clone|contiguous|cat$|stack|index|select|slice|gather|scatter|split|"
    r"repeat|expand|pad|to$|fill|zero|empty|chunk|flatten|view|reshape|transpose|permute|unbind",
    "normalisation": r"norm",
    "elementwise": r".*",
}
PYTHON = "Python and what it calls"


@dataclass(frozen=True)
class Operand:
    """What a product needs to know of a tensor."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype

    def made(self) -> Tensor:
        steps = zip(self.shape, self.stride, strict=True)
        reach = sum((size - 1) * stride for size, stride in steps)
        return torch.randn(1 + reach, dtype=self.dtype).as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """Which matrix products are asked for, and how often: operands by shape, stride and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()
        self.operands: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            operands = tree_map_only(Tensor, lambda x: Operand(x.shape, x.stride(), x.dtype), args)
            self.calls[func, repr(operands)] += 1
            self.operands[func, repr(operands)] = operands
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """Of all of them, each kind run alone."""
        total = 0.0
        for (func, words), count in self.calls.items():
            made = tree_map_only(Operand, Operand.made, self.operands[func, words])
            total += count * median(seconds(lambda: func(*made)) for _ in range(3))  # noqa: B023
        return total


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def share_of_limit(work: Callable[[], object], pairs: int) -> float:
    """Time of the products alone over that of the whole, in turn; the median."""
    with Recorder() as recorder:
        work()
    recorder.seconds()
    return median(recorder.seconds() / seconds(work) for _ in range(pairs))


def purposes(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the time by what it goes to, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        work()
        whole = time.perf_counter() - started
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        name = event.key.rpartition("::")[2]
        purpose = next(p for p, pattern in PURPOSES.items() if re.search(pattern, name))
        operator = event.key.startswith("aten::")
        spent[purpose if operator else PYTHON] += event.self_cpu_time_total / 1e6
    spent[PYTHON] += max(whole - sum(spent.values()), 0)
    return {purpose: value / sum(spent.values()) for purpose, value in spent.most_common()}
