"""Small pieces that networks are made of."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_BLOCKS = 1000  # of a kind; to build more would take minutes, and a file may claim any number


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


def hidden_matrices(root: nn.Module, heads: Sequence[nn.Module] = ()) -> list[Tensor]:
    """The trained matrices of a module's linear layers that neither begin nor end it.

    Embeddings, convolutions, ``heads`` and all in them, and maps to or from a few numbers are out.
    """
    out = {id(part) for head in heads for part in head.modules()}
    layers = [
        part for part in root.modules() if isinstance(part, nn.Linear) and id(part) not in out
    ]
    return [one.weight for one in layers if one.weight.requires_grad and min(one.weight.shape) > 16]


TIME_WAVES = 128  # sines, and as many cosines, that describe a flow time


def timestep_embedding(time: Tensor) -> Tensor:
    """Sines and cosines of a time in [0, 1], ``[..., 256]``; periods from 2 pi down to .006."""
    frequency = torch.exp(torch.linspace(0, math.log(1000), TIME_WAVES, device=time.device))
    angle = time.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


INDEX_PERIOD = 1000.0  # frames: the slowest rotary wave; clips of that length stay distinguishable
PLACE_PERIOD = 100.0  # patches along a side


def rotary(position_RPA: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[R, P, 1, 1, E/2]`` of rotary positions (arXiv 2104.09864).

    Of R rows of P tokens of head width E; the last axis holds index of the frame, row and column.
    """
    half = head_width // 2
    counts = (half - 2 * (half // 3), half // 3, half // 3)
    periods = (INDEX_PERIOD, PLACE_PERIOD, PLACE_PERIOD)
    angles = []
    for axis, (count, period) in enumerate(zip(counts, periods, strict=True)):
        power = torch.arange(count, device=position_RPA.device) / max(count, 1)
        angles.append(position_RPA[..., axis, None].float() * period**-power)
    angle = torch.cat(angles, dim=-1)[:, :, None, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features, of the first and the second half, by its angle."""
    cosine, sine = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


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
