"""Where a run computes: device, precision, and the processes that share its steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flowcept.device import pick_device, pick_dtype
from flowcept.errors import UserError
from flowcept.settings import PlainMachineSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes that train together (``torchrun`` starts them); alone: one of one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come so far."""
        if self.size > 1:
            dist.barrier()

    def agreed(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def summed(self, values: Tensor) -> Tensor:
        """The sums over all processes, which all have to ask for them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def in_turn(self, make: Callable[[], T]) -> T:
        """What ``make`` gives: the first process makes what the others then find in the cache."""
        if self.first:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """The team that the environment tells of."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=7))  # others wait for the codec
    try:
        yield Team(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def pick(settings: PlainMachineSettings) -> tuple[torch.device, torch.dtype]:
    """This process's device and precision; ``UserError`` for what it lacks or cannot train in."""
    device = pick_device(settings.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dtype = pick_dtype(settings.dtype, device)
    if dtype == torch.float16:
        raise UserError("training in float16 is not stable: use --dtype bfloat16 or float32")
    return device, dtype


@dataclass(frozen=True)
class Machine:
    """Where and in which precision this process computes, and with whom."""

    device: torch.device
    dtype: torch.dtype
    team: Team
