"""A device "cuda" with real numbers on a machine without one: it counts what travels.

    with FakeDevice() as device:
        network = device.module(network)
        latents = sample(model, [replace(given, latent_FCHW=given.latent_FCHW.to("cuda"))], ...)
    assert device.into == [...]

Tensors of the device are a subclass of tensors on the CPU, and calculations with them give such
tensors. What a real device does in Python this one does too: numbers made on the CPU have to travel
to it, reading a number waits for it and brings it back, and the two kinds do not mix. What it does
not know is time: it only says how often the CPU and the device talk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Marked(Tensor):
    """A tensor that is on the device; only ``FakeDevice`` gives it a meaning."""

    __torch_function__ = torch._C._disabled_torch_function_impl


# What brings numbers back, so that the CPU waits for the device.
READS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__, Tensor.__contains__, Tensor.__repr__, Tensor.nonzero, torch.nonzero,
    Tensor.masked_select, torch.masked_select, Tensor.unique, torch.unique, Tensor.equal,
    torch.equal, Tensor.allclose, torch.allclose, Tensor.bincount, torch.bincount,
}  # fmt: skip
FROM_NUMBERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor, torch.asarray}
REPEATS = {torch.repeat_interleave, Tensor.repeat_interleave}  # read how many there will be

T = TypeVar("T", bound=nn.Module)


class FakeDevice(TorchFunctionMode):
    """Counts journeys into the device and out of it, each by the line of the package it is from."""

    def __init__(self) -> None:
        super().__init__()
        self.into: list[str] = []
        self.out: list[str] = []

    def module(self, module: T) -> T:
        """The module, its weights on the device; they learn nothing."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = mark(weight.detach())  # type: ignore[assignment]
        return module

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return CUDA if isinstance(args[0], Marked) else CPU
        if func == Tensor.is_cuda.__get__:
            return isinstance(args[0], Marked)
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._moved(func, args, kwargs)

        flat = tree_flatten((args, kwargs))[0]
        found = [x for x in flat if isinstance(x, Tensor)]
        on_device = any(isinstance(x, Marked) for x in found)
        asked = kwargs.pop("device", None)
        if asked is not None:
            on_device = torch.device(asked).type == "cuda"
        if on_device:
            self._check(func, args, kwargs, found)
        args, kwargs = tree_map(unmark, (args, kwargs))
        result = func(*args, **kwargs)
        return tree_map(mark, result) if on_device else result

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """``to``, ``cpu`` and ``cuda``: across, or another dtype at the same place."""
        x, *rest = args
        targets = [one for one in (*rest, *kwargs.values()) if _is_device(one)]
        like = [one for one in (*rest, *kwargs.values()) if isinstance(one, Tensor)]
        to_device = isinstance(x, Marked)
        if func is not Tensor.to:
            to_device = func is Tensor.cuda
        elif targets:
            to_device = torch.device(targets[0]).type == "cuda"
        elif like:
            to_device = isinstance(like[0], Marked)
        self._note(isinstance(x, Marked), to_device)

        dtype = [one for one in (*rest, *kwargs.values()) if isinstance(one, torch.dtype)]
        dtype += [one.dtype for one in like]
        moved = unmark(x).to(dtype[0]) if dtype else unmark(x)
        return mark(moved) if to_device else moved

    def _check(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Sequence[Tensor]
    ) -> None:
        """Count what the call itself moves; an error where the two kinds of tensors are mixed."""
        if func in READS or (func is torch.where and len(args) == 1):
            self._note(was_there=True, is_there=False)
        if func in REPEATS and kwargs.get("output_size") is None and len(found) > 1:
            self._note(was_there=True, is_there=False)
        if func in FROM_NUMBERS:
            self._note(was_there=False, is_there=True)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Marked):
            for one in args[1] if isinstance(args[1], tuple) else (args[1],):
                self._note_index(one)
            found = [args[0], *(x for x in args[2:] if isinstance(x, Tensor))]
        if func is Tensor.copy_:
            self._note(isinstance(args[1], Marked), isinstance(args[0], Marked))
            return
        if any(not isinstance(x, Marked) and x.ndim > 0 for x in found):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")

    def _note_index(self, index: object) -> None:
        """Lists and tensors of the CPU travel; the rows of a mask are counted by the CPU."""
        if isinstance(index, list) or (isinstance(index, Tensor) and not isinstance(index, Marked)):
            self._note(was_there=False, is_there=True)
        if isinstance(index, Marked) and unmark(index).dtype == torch.bool:
            self._note(was_there=True, is_there=False)

    def _note(self, was_there: bool, is_there: bool) -> None:
        if was_there != is_there:
            (self.into if is_there else self.out).append(_line())


def mark(x: Any) -> Any:
    """A tensor as one of the device; anything else as it is."""
    return x.as_subclass(Marked) if type(x) is Tensor or type(x) is nn.Parameter else x


def unmark(x: Any) -> Any:
    """The plain tensor with the same numbers; anything else as it is."""
    return x.as_subclass(Tensor) if isinstance(x, Marked) else x


def _is_device(one: object) -> bool:
    return isinstance(one, (torch.device, str))


def _line() -> str:
    """The innermost line of the package or of a test that is at work."""

    def frames() -> Iterator[Any]:
        frame = sys._getframe(1)
        while frame is not None:
            yield frame
            frame = frame.f_back

    for frame in frames():
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and "torch" not in path.parts:
            return f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
    return "?"
