"""CUDA tensors without values on a machine without CUDA: they show dtypes.

    with FakeCuda() as cuda:
        network = cuda.module(network)
        network(cuda.record(state), cuda.record(prompt))

PyTorch's fake tensors say of which device, shape and dtype each result would be, under autocast,
too. Its CPU build refuses a few calls in Python for tensors that claim to be on CUDA; this mode
does them another way. For values, and journeys between the devices, see ``fake_device``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


class FakeCuda(TorchFunctionMode):
    """Within it calculations may be on CUDA; weights, which learn nothing, are too."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cuda", 0)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> FakeCuda:
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    @contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        """``torch.autocast``, which does nothing where there is no CUDA."""
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])

    def record(self, record: T) -> T:
        """A dataclass with its tensors on the device."""
        values = {one.name: getattr(record, one.name) for one in fields(record)}
        tensors = {name: x for name, x in values.items() if isinstance(x, Tensor)}
        return replace(record, **{name: self.tensor(x) for name, x in tensors.items()})

    def module(self, module: T) -> T:
        """The module, with its weights on the device."""
        assert isinstance(module, nn.Module)
        for part in module.modules():
            for name, weight in list(part._parameters.items()):
                if weight is not None:
                    part._parameters[name] = nn.Parameter(self.tensor(weight), requires_grad=False)
        return module

    def tensor(self, x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=self.device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is torch.Tensor.__getitem__:
            return indexed(*args)
        if func is torch.Tensor.to and args[1] == self.device:
            return self.tensor(args[0])
        return func(*args, **(kwargs or {}))


def indexed(x: Tensor, index: Any) -> Tensor:
    """``x[index]`` by calls that do not ask for the device."""
    index = index if isinstance(index, tuple) else (index,)
    dim = 0
    for place, one in enumerate(index):
        if one is Ellipsis:
            dim = x.ndim - sum(other is not None for other in index[place + 1 :])
        elif one is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(one, int):
            x = torch.select(x, dim, one)
        elif isinstance(one, slice):
            start, stop, _ = one.indices(x.shape[dim])
            x, dim = torch.narrow(x, dim, start, max(stop - start, 0)), dim + 1
        else:
            x, dim = torch.index_select(x, dim, one), dim + 1
    return x
