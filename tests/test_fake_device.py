"""The fake device counts what a real one would move, and refuses what a real one refuses."""

from __future__ import annotations

import pytest
import torch
from fake_device import FakeDevice
from torch import nn

MOVES = [
    ("x.cpu()", 0, 1), ("x.to('cpu')", 0, 1), ("y.to('cuda')", 1, 0), ("y.to(x)", 1, 0),
    ("x.to('cuda')", 0, 0), ("x.double()", 0, 0), ("x.to(torch.float64)", 0, 0),
    ("x.sum().item()", 0, 1), ("x.tolist()", 0, 1), ("bool(x.any())", 0, 1), ("int(x[0])", 0, 1),
    ("float(x.sum())", 0, 1), ("x.nonzero()", 0, 1), ("x[x > 1]", 0, 1), ("x[y.long()]", 1, 0),
    ("x[[0, 1]]", 1, 0), ("x[0:2]", 0, 0), ("x[x.long()]", 0, 0), ("x[None, 0]", 0, 0),
    ("torch.tensor([1.0], device='cuda')", 1, 0), ("torch.zeros(2, device='cuda')", 0, 0),
    ("torch.arange(3, device=x.device) + x", 0, 0), ("x.new_zeros(2)", 0, 0),
    ("torch.zeros_like(x, device='cpu') + y", 0, 0), ("x * 2 + torch.tensor(1.0)", 0, 0),
    ("torch.repeat_interleave(x, x.long())", 0, 1), ("x.new_zeros(3).copy_(y)", 1, 0),
    ("torch.repeat_interleave(x, x.long(), output_size=3)", 0, 0), ("y.tolist()", 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("work", "into", "out"), MOVES)
def test_journeys(work: str, into: int, out: int) -> None:
    y = torch.tensor([0.0, 1.0, 2.0])
    with FakeDevice() as device:
        x = y.to("cuda")
        device.into.clear()
        eval(work, {"x": x, "y": y, "torch": torch})
    assert (len(device.into), len(device.out)) == (into, out), (device.into, device.out)


@pytest.mark.parametrize("work", ["x + y", "torch.cat([x, y])", "y[x.long()]", "y * x", "x @ y"])
def test_kinds_do_not_mix(work: str) -> None:
    y = torch.tensor([0.0, 1.0, 2.0])
    with FakeDevice(), pytest.raises(RuntimeError, match="same device"):
        eval(work, {"x": y.to("cuda"), "y": y, "torch": torch})


@torch.no_grad()
def test_numbers_are_right_and_stay_there() -> None:
    y, layer = torch.randn(4, 3), nn.Sequential(nn.Linear(3, 2), nn.SiLU())
    wanted = layer(y).split([1, 3])[1]
    with FakeDevice() as device:
        found = device.module(layer)(y.to("cuda")).split([1, 3])[1]
        assert found.device.type == "cuda"
        assert found.is_cuda
        assert torch.equal(found.cpu(), wanted)
    assert (len(device.into), len(device.out)) == (1, 1)
