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
    """The processes that train together, started by ``torchrun``; without it, one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes reach this point."""
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
        """Sums over all processes; every process must call this."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def in_turn(self, make: Callable[[], T]) -> T:
        """The result of ``make``: the first process fills the cache, then the others read it."""
        if self.first:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """The team that the environment variables of ``torchrun`` describe."""
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
    """This process's device and precision; ``UserError`` if it has not or cannot train in them."""
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
    """Device and precision of this process, and its team."""

    device: torch.device
    dtype: torch.dtype
    team: Team
