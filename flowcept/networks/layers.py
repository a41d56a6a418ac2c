"""Small pieces that networks are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def layer_norm(x: Tensor) -> Tensor:
    """Layer normalisation of the last dimension, without learned weights, in the input's dtype.

    Of queries and keys too: root mean square would do there, but has no fused kernel on a CPU and
    took a third of a training step. Autocast makes it float32 on CUDA; attention needs one dtype.
    """
    return F.layer_norm(x, (x.shape[-1],)).to(x.dtype)


def adaln(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive normalisation (arXiv 2212.09748): normalised features, scaled and shifted."""
    return torch.addcmul(shift, layer_norm(x), 1 + scale)


def zero_init(*layers: nn.Linear | nn.Conv2d) -> None:
    """Layers that add nothing at first."""
    for parameter in itertools.chain.from_iterable(layer.parameters() for layer in layers):
        nn.init.zeros_(parameter)


class SquaredRelu(torch.autograd.Function):
    """``relu(x) ** 2``, with one product in the backward pass where autograd would make four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - autograd's own
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        y: Tensor = ctx.saved_tensors[0]
        return (grad * y).mul_(2)


CHUNK = 2**20  # numbers of a tensor that stay in a CPU's cache while they are worked on


def chunked(work: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """What ``work`` makes of all rows of ``like``, on a CPU chunk by chunk.

    Training keeps what all chunks need anyway, a compiled graph must not depend on their number,
    and a GPU is fastest with all rows at once.
    """
    rows, row_size = len(like), math.prod(like.shape[1:])
    at_once = torch.is_grad_enabled() or torch.compiler.is_compiling() or like.device.type != "cpu"
    most = rows if at_once else max(CHUNK // row_size, 1)
    if most >= rows:
        return work(slice(0, rows))
    first = work(slice(0, most))
    whole = first.new_empty(rows, *first.shape[1:])
    whole[:most] = first
    for start in range(most, rows, most):
        chunk = slice(start, min(start + most, rows))
        whole[chunk] = work(chunk)
    return whole
