"""The pieces that networks are made of."""

from __future__ import annotations

import math

import pytest
import torch
from fake_cuda import FakeCuda
from torch import Tensor

from flowcept.networks import layers
from flowcept.networks.layers import (
    SquaredRelu,
    chunked,
    layer_norm,
    rotary,
    rotate,
    timestep_embedding,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_norm_returns_what_it_was_given(dtype: torch.dtype) -> None:
    """Under CUDA's autocast, too, which calculates it in float32."""
    x = torch.randn(4, 8, dtype=dtype)
    assert layer_norm(x).dtype == dtype
    with FakeCuda() as cuda, cuda.autocast(torch.bfloat16):
        assert layer_norm(cuda.tensor(x)).dtype == dtype


def test_nearby_times_are_told_apart_and_far_ones_more() -> None:
    time = torch.linspace(0, 1, 101)
    wave = timestep_embedding(time)
    assert wave.shape == (101, 256)
    torch.testing.assert_close(wave.square().sum(-1), torch.full((101,), 128.0))
    distance = (wave[1:] - wave[0]).norm(dim=-1)
    assert float(distance[0]) > 1
    assert float(distance[-1]) > 1.5 * float(distance[0])


def test_rotated_products_depend_on_distances_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 1, 24, generator=generator).double()

    def product(a: Tensor, b: Tensor) -> float:
        turned = [rotate(x, rotary(at[None, None], 24)) for x, at in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())

    base = product(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5.0, 0.0, 1.0]))
    moved = product(torch.tensor([13.0, 2.0, 5.0]), torch.tensor([15.0, 1.0, 4.0]))
    assert moved == pytest.approx(base, abs=1e-5)
    for axis in range(3):
        other = torch.tensor([5.0, 0.0, 1.0])
        other[axis] += 1
        assert product(torch.tensor([3.0, 1.0, 2.0]), other) != pytest.approx(base, abs=1e-3)


def test_squared_relu_has_its_derivative() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(SquaredRelu.apply(x), x.clamp(min=0) ** 2)
    assert torch.autograd.gradcheck(SquaredRelu.apply, (x,))


@pytest.mark.parametrize("training", [True, False])
def test_a_cpu_that_does_not_train_works_chunk_by_chunk(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are covered once, the last chunk has fewer."""
    monkeypatch.setattr(layers, "CHUNK", 30)
    x, asked = torch.arange(50.0).reshape(10, 5), []

    def work(rows: slice) -> Tensor:
        asked.append(rows)
        return x[rows] + 1

    with torch.set_grad_enabled(training):
        assert torch.equal(chunked(work, torch.zeros(10, 2, 5)), x + 1)
    chunks = [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert asked == ([slice(0, 10)] if training else chunks)


def test_a_gpu_works_on_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "CHUNK", 30)
    asked: list[slice] = []
    with FakeCuda() as cuda, torch.no_grad():
        x = cuda.tensor(torch.zeros(10, 2, 5))
        chunked(lambda rows: (asked.append(rows), x[rows])[1], x)
    assert asked == [slice(0, 10)]


def test_a_row_larger_than_a_chunk_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "CHUNK", 1)
    x = torch.arange(math.prod((3, 4))).reshape(3, 4)
    with torch.no_grad():
        assert torch.equal(chunked(lambda rows: x[rows], x), x)
        assert chunked(lambda rows: x[:0][rows], x[:0]).shape == (0, 4)
