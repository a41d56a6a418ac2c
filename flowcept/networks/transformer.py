"""The network: a transformer over the tokens of the visible frames of many clips, packed.

A *row* is a frame: its frame token, then its patches. Before the frames of a clip goes one more
row, the clip's own: the clip token, then as many learned tokens as a frame has patches, on which
the clip may note what concerns it as a whole. So the sequence is an array of rows of one shape,
adaptive normalisation broadcasts, clips of equal length attend in one call, and nothing is padded.
What a token outputs depends on what it is:

* clip token: log-missing of the gap before the first frame, logits of how many
  generated frames the whole clip will have, which ``process.missing_logits`` turns into those of
  the total missing count;
* frame token: log-missing of the gap to its right;
* patch: velocity.

Time and role enter by adaptive normalisation per row, with one projection for all blocks and a
learned offset in each. The prompt enters by cross-attention, and the sum of its tokens with the
time. What the given frames of a clip show is one more token of its prompt, which training teaches
to say what the words would: so a picture without words still tells all frames alike who is seen.

A patch is coarse: a thing's outline crosses it anywhere. So latent cells become patches, and
patches velocities, by convolutions (``Cells``) within each frame, which also see the same place in
the visible frame before and after: the blocks say what is where and how it moves, the convolutions
how it looks there, and that it still looks so in the next frame. A frame between two finished ones
has more convolutions over those two (``Between``).

Shape suffixes: F frames of all clips, B clips, R rows (clip row, then its frames, clip by clip),
P tokens per row, D width, N heads, E head width, C H W a latent, S prompt tokens, V their width,
K counts, A the axes index, row and column. Cells have their channels last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowcept.networks.attention import Plan, attend, make_plan
from flowcept.networks.resting import Cache, Rest
from flowcept.process import state as frames
from flowcept.process.forward import ProcessConfig, missing_logits, shifted
from flowcept.process.state import FrameState, Prediction, PromptTokens


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. Part of every model file."""

    channels: int = 6  # of a latent
    height: int = 16  # of a latent
    width: int = 16  # of a latent
    max_count: int = 64  # largest number of generated frames in a clip that can be predicted
    text_width: int = 192  # of a prompt token
    hidden: int = 256  # width of a token
    depth: int = 8  # blocks
    heads: int = 4
    patch: int = 4  # latent cells along each side of a patch
    cells: int = 64  # channels of a latent cell; larger cells, on the way to a patch, have more
    cell_depth: int = 2  # convolution blocks at each size of cells, before and after the blocks
    between: int = 0  # convolution blocks that guess a frame between two finished ones; 0: none
    mlp_ratio: int = 4
    place: bool = False  # a frame is told its index among the visible ones
    rotary_values: bool = False  # what a frame takes from another turns with the distance to it
    window: int = 0  # a frame sees frames within this distance; 0: all frames
    causal: bool = False  # a frame sees none after it, and the clip's row no frame

    def __post_init__(self) -> None:
        positive = (self.hidden, self.depth, self.heads, self.patch, self.channels, self.cells)
        if min(*positive, self.height, self.width, self.mlp_ratio, self.text_width) < 1:
            raise ValueError("the network's sizes must be positive")
        if self.hidden % self.heads or (self.hidden // self.heads) % 8:
            raise ValueError("hidden must be heads times a multiple of 8")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError("the latent's height and width must be multiples of the patch")
        if min(self.window, self.max_count, self.cell_depth, self.between) < 0:
            raise ValueError("window, max_count, cell_depth and between must not be negative")
        if self.between and self.causal:
            raise ValueError("between looks at a later frame, which a causal network must not see")

    @property
    def patches(self) -> int:
        """Patches per frame."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def merges(self) -> list[int]:
        """Side of the squares of cells that become one, step by step until they are patches."""
        halvings = (self.patch & -self.patch).bit_length() - 1
        odd = self.patch >> halvings
        return [2] * halvings + [odd] * (odd > 1 or not halvings)

    @property
    def cell_channels(self) -> list[int]:
        """Channels of the cells before each merging."""
        return [self.cells * 2**size for size in range(len(self.merges))]


INDEX_PERIOD = 1000.0  # frames: the slowest rotary wave; clips of that length stay distinguishable
PLACE_PERIOD = 100.0  # patches along a side
PLACES = 64.0  # frames: index over this is told like a time, which keeps neighbours well apart
TIME_WAVES = 128  # sines, and as many cosines, that describe a flow time in [0, 1]


def attention_plan(
    lengths: Sequence[int],
    window: int,
    device: torch.device,
    *,
    causal: bool = False,
    awake: Sequence[int] | None = None,
) -> Plan:
    """Who sees whom among rows: within a clip all, or frames within ``window`` and the clip row.

    The clip row sees its whole clip; where frames are ``causal`` itself only, since all see it.
    Queries are of all rows, or of the ``awake`` ones, ascending; keys are of all.
    """
    queries: list[list[int]] = []
    keys: list[list[int]] = []
    start = 0
    for length in lengths:
        rows = list(range(start, start + length + 1))
        reach = window or length
        if not causal and length <= reach + 1:
            queries.append(rows)
            keys.append(rows)
        else:
            queries += [[row] for row in rows]
            keys.append([start] if causal else rows)
            for frame in range(length):
                first = max(frame - reach, 0)
                last = frame + 1 if causal else min(frame + reach + 1, length)
                keys.append([start, *rows[1 + first : 1 + last]])
        start += length + 1
    if awake is not None:
        place = {row: number for number, row in enumerate(awake)}
        asking = [[place[row] for row in run if row in place] for run in queries]
        queries = [run for run in asking if run]
        keys = [seen for seen, run in zip(keys, asking, strict=True) if run]
    return make_plan(queries, keys, device)


def prompt_plan(
    lengths: Sequence[int], prompt_lengths: Sequence[int], device: torch.device
) -> Plan:
    """The rows of each clip, so many and one, see the tokens of its prompt."""
    return make_plan(_runs([n + 1 for n in lengths]), _runs(prompt_lengths), device)


def _runs(lengths: Sequence[int]) -> list[range]:
    ends = list(itertools.accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def waves(time: Tensor, count: int = TIME_WAVES) -> Tensor:
    """Sines and cosines of a time in [0, 1], ``[..., 2 count]``; periods from 2 pi down to .006."""
    frequency = torch.exp(torch.linspace(0, math.log(1000), count, device=time.device))
    angle = time.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotary(position_RPA: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[R, P, 1, 1, E/2]`` of rotary positions over (index, row, column)."""
    half = head_width // 2
    counts = (half - 2 * (half // 3), half // 3, half // 3)
    periods = (INDEX_PERIOD, PLACE_PERIOD, PLACE_PERIOD)
    angles = []
    for axis, (count, period) in enumerate(zip(counts, periods, strict=True)):
        power = torch.arange(count, device=position_RPA.device) / max(count, 1)
        angles.append(position_RPA[..., axis, None].float() * period**-power)
    angle = torch.cat(angles, dim=-1)[:, :, None, None]
    return angle.cos(), angle.sin()


def value_rotary(index_R: Tensor, heads: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[R, 1, N, E/2]`` by which values turn with the index.

    Values turn by their own frame's index, and what is gathered turns back by the asking frame's,
    so that only the distance matters: a linear layer before and one after can carry a motion on by
    so many frames. Half of each head's pairs turn, at rates that lie evenly, over all heads, from
    0 to half a turn a frame; the others are as in plain attention.
    """
    half = head_width // 2
    turning = half // 2
    rate = torch.linspace(0, math.pi, heads * turning, device=index_R.device)
    rate_NE = F.pad(rate.view(turning, heads).T, (0, half - turning))
    angle = index_R.float()[:, None, None, None] * rate_NE
    return angle.cos(), angle.sin()


def rotate(x_RP2NE: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features of queries and keys, or of values, by its angle."""
    cosine, sine = rotation
    a, b = x_RP2NE.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


def normed(x: Tensor) -> Tensor:
    """Layer normalisation of the last dimension, without learned weights.

    Of queries and keys too: root mean square would do there, but has no fused kernel on a CPU and
    took a third of a training step.
    """
    return F.layer_norm(x, (x.shape[-1],))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive normalisation: normalised features, scaled and shifted."""
    return torch.addcmul(shift, normed(x), 1 + scale)


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


PART = 2**20  # numbers of a tensor that are worked on at once, where no gradient needs them all


def by_parts(work: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """What ``work`` makes of all rows of ``like``, part by part where that saves memory.

    Training keeps what all parts need anyway, and a compiled graph must not depend on their number.
    """
    rows, row_size = len(like), math.prod(like.shape[1:])
    whole_at_once = torch.is_grad_enabled() or torch.compiler.is_compiling()
    most = rows if whole_at_once else max(PART // row_size, 1)
    if most >= rows:
        return work(slice(0, rows))
    first = work(slice(0, most))
    whole = first.new_empty(rows, *first.shape[1:])
    whole[:most] = first
    for start in range(most, rows, most):
        part = slice(start, min(start + most, rows))
        whole[part] = work(part)
    return whole


def _silence(*layers: nn.Linear | nn.Conv2d) -> None:
    """Layers that say nothing at first."""
    for parameter in itertools.chain.from_iterable(layer.parameters() for layer in layers):
        nn.init.zeros_(parameter)


Attend = Callable[[Tensor, Tensor, Tensor, Plan, "Cache | None"], Tensor]


def attend_cached(q: Tensor, k: Tensor, v: Tensor, plan: Plan, cache: Cache | None) -> Tensor:
    """Attention of the rows that are evaluated over all rows, some of which may rest."""
    if cache is not None:
        k, v = cache.rows(k), cache.rows(v)
    return attend(q, k, v, plan)


@dataclass(frozen=True)
class Layout:
    """What every block needs to know of a state, computed once."""

    rotation: tuple[Tensor, Tensor]  # of queries and keys
    value_rotation: tuple[Tensor, Tensor] | None
    within: Plan
    to_prompt: Plan
    attend: Attend
    cache: Cache | None


class Block(nn.Module):
    """Self-attention within the clip, cross-attention to the prompt, and an MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.prompt_q = nn.Linear(width, width, bias=False)
        self.prompt_kv = nn.Linear(config.text_width, 2 * width, bias=False)
        self.prompt_out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.mlp_ratio * width)
        self.down = nn.Linear(config.mlp_ratio * width, width)
        self.offset = nn.Parameter(torch.zeros(6, width))
        _silence(self.prompt_out)

    def forward(
        self, x_RPD: Tensor, modulation_R16D: Tensor, prompt_S1D: Tensor, layout: Layout
    ) -> Tensor:
        modulation = modulation_R16D + self.offset.to(modulation_R16D.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        y_RPD = modulated(x_RPD, shift, scale)
        qk, v = self.qkv(y_RPD).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)
        q, k = rotate(normed(qk), layout.rotation).unbind(2)
        y_RPNE = self._gather(q, k, v.squeeze(2), layout)
        x_RPD = torch.addcmul(x_RPD, gate, self.out(y_RPNE.flatten(2)))

        q = self.prompt_q(normed(x_RPD)).unflatten(-1, (self.heads, -1))
        k, v = self.prompt_kv(prompt_S1D).unflatten(-1, (2, self.heads, -1)).unbind(2)
        y_RPD = layout.attend(normed(q), normed(k), v, layout.to_prompt, None).flatten(2)
        x_RPD = x_RPD + self.prompt_out(y_RPD)

        def mlp(rows: slice) -> Tensor:
            y_RPD = modulated(x_RPD[rows], mlp_shift[rows], mlp_scale[rows])
            z_RPD: Tensor = SquaredRelu.apply(self.up(y_RPD))  # type: ignore[no-untyped-call]
            return torch.addcmul(x_RPD[rows], mlp_gate[rows], self.down(z_RPD))

        return by_parts(mlp, x_RPD)

    def _gather(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Attention within the clip."""
        if layout.value_rotation is None:
            return layout.attend(q, k, v, layout.within, layout.cache)
        cosine, sine = layout.value_rotation
        y_RPNE = layout.attend(q, k, rotate(v, (cosine, sine)), layout.within, layout.cache)
        return rotate(y_RPNE, (cosine, -sine))


def filmed(layer: nn.Linear, x_FHWC: Tensor, condition_FD: Tensor) -> Tensor:
    """Adaptive normalisation of the cells of each frame, by the condition of its row."""
    scale, shift = layer(condition_FD)[:, None, None].to(x_FHWC.dtype).chunk(2, dim=-1)
    return modulated(x_FHWC, shift, scale)


def convolve(layer: nn.Module, x_FHWC: Tensor) -> Tensor:
    """A convolution of cells that have their channels last, as they stay in memory."""
    y_FCHW: Tensor = layer(x_FHWC.permute(0, 3, 1, 2))
    return y_FCHW.permute(0, 2, 3, 1)


def merged(x_FHWC: Tensor, side: int) -> Tensor:
    """Squares of ``side`` cells become one: ``[F, H / side, W / side, side * side * C]``."""
    num_frames, height, width, channels = x_FHWC.shape
    x_FhywxC = x_FHWC.reshape(num_frames, height // side, side, width // side, side, channels)
    return x_FhywxC.transpose(2, 3).flatten(3)


def divided(x_FHWC: Tensor, side: int) -> Tensor:
    """The inverse of ``merged``."""
    x_FhwyxC = x_FHWC.reshape(*x_FHWC.shape[:3], side, side, x_FHWC.shape[3] // side**2)
    return x_FhwyxC.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@dataclass(frozen=True)
class Neighbours:
    """Which frames have a visible one of their own clip before and after them, next in the row."""

    before_F: Tensor  # bool
    after_F: Tensor  # bool
    cache: Cache | None = None  # of what resting frames hold

    @staticmethod
    def of(index_F: Tensor, *, causal: bool = False, cache: Cache | None = None) -> Neighbours:
        """From the index of each frame within its clip, clip by clip."""
        before_F = index_F > 0
        after_F = F.pad(before_F[1:], (0, 1))
        return Neighbours(before_F, torch.zeros_like(after_F) if causal else after_F, cache)

    def all_frames(self, x_FHWC: Tensor) -> Tensor:
        """What all frames hold, from what those hold that are evaluated."""
        return x_FHWC if self.cache is None else self.cache.frames(x_FHWC)

    def beside(self, x_FHWC: Tensor, rows: slice) -> Tensor:
        """What the frames before and after these rows hold at each place, 0 where none is.

        ``x_FHWC`` is of all frames, the rows are numbers among those that are evaluated.
        """
        awake_F = None if self.cache is None else self.cache.awake_F
        if awake_F is None:
            low, high = max(rows.start - 1, 0), min(rows.stop + 1, len(x_FHWC))
            near_FHWC, own = x_FHWC[low:high], slice(rows.start - low, rows.stop - low)
            before_FHWC, after_FHWC = near_FHWC.roll(1, 0)[own], near_FHWC.roll(-1, 0)[own]
            has_before_F, has_after_F = self.before_F[rows], self.after_F[rows]
        else:
            own_F = awake_F[rows]
            before_FHWC = x_FHWC[(own_F - 1).clamp(min=0)]
            after_FHWC = x_FHWC[(own_F + 1).clamp(max=len(x_FHWC) - 1)]
            has_before_F, has_after_F = self.before_F[own_F], self.after_F[own_F]
        return torch.cat(
            [
                before_FHWC * has_before_F[:, None, None, None],
                after_FHWC * has_after_F[:, None, None, None],
            ],
            dim=-1,
        )


class CellBlock(nn.Module):
    """Two convolutions within each frame, and between them a look at the frames beside it.

    Its row's condition scales and shifts what a frame shows.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.film = nn.Linear(width, 2 * channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.beside = nn.Linear(2 * channels, channels, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        _silence(self.film, self.beside, self.second)

    def forward(self, x_FHWC: Tensor, condition_FD: Tensor, neighbours: Neighbours) -> Tensor:
        def alone(rows: slice) -> Tensor:
            return convolve(self.first, filmed(self.film, x_FHWC[rows], condition_FD[rows]))

        def together(rows: slice) -> Tensor:
            z_FHWC = y_FHWC[rows] + self.beside(neighbours.beside(all_FHWC, rows))
            return x_FHWC[rows] + convolve(self.second, F.silu(z_FHWC))

        y_FHWC = by_parts(alone, x_FHWC)
        all_FHWC = neighbours.all_frames(y_FHWC)
        return by_parts(together, x_FHWC)


class CellBlocks(nn.ModuleList):
    """Blocks one after another."""

    def forward(self, x_FHWC: Tensor, condition_FD: Tensor, neighbours: Neighbours) -> Tensor:
        for block in self:
            x_FHWC = block(x_FHWC, condition_FD, neighbours)
        return x_FHWC


class Residual(nn.Module):
    """Two convolutions within each frame, added to what it shows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        _silence(self.second)

    def forward(self, x_FHWC: Tensor) -> Tensor:
        return x_FHWC + convolve(self.second, F.silu(convolve(self.first, normed(x_FHWC))))


class Between(nn.Module):
    """What a frame between two finished ones may look like, from those two alone.

    A frame just inserted is noise, so that all that is known of how it looks stands beside it; to
    carry that along a motion takes more convolutions than a look at the same place. What the
    network takes for the clean frame is pulled towards this guess, so far as flow time and place
    say that it can be trusted.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.cells
        self.first = nn.Conv2d(2 * config.channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(config.between)))
        self.last = nn.Conv2d(channels, config.channels, 3, padding=1)
        self.where = nn.Linear(channels, 1)
        self.when = nn.Linear(config.hidden, 1, bias=False)
        _silence(self.where, self.when)

    def guess(self, before_FCHW: Tensor, after_FCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent of each frame, and ``[F, 1, H, W]`` how far to trust it where."""
        x_FHWC = convolve(self.first, torch.cat([before_FCHW, after_FCHW], 1).permute(0, 2, 3, 1))
        x_FHWC = normed(self.blocks(x_FHWC))
        latent_FHWC, trust_FHW1 = convolve(self.last, x_FHWC), self.where(x_FHWC)
        return latent_FHWC.permute(0, 3, 1, 2).float(), trust_FHW1.permute(0, 3, 1, 2).float()

    def forward(
        self,
        velocity_FCHW: Tensor,
        latent_FCHW: Tensor,
        progress_F: Tensor,
        condition_FD: Tensor,
        before_FCHW: Tensor,
        after_FCHW: Tensor,
    ) -> Tensor:
        """The velocity of frames at ``latent = (1 - s) noise + s data``, ``s`` their progress."""

        def work(rows: slice) -> Tensor:
            guess_FCHW, trust_F1HW = self.guess(before_FCHW[rows], after_FCHW[rows])
            trust_F1HW = trust_F1HW + self.when(condition_FD[rows])[..., None, None].float()
            left_F111 = (1 - progress_F[rows])[:, None, None, None]
            clean_FCHW = latent_FCHW[rows] + left_F111 * velocity_FCHW[rows]
            pulled_FCHW: Tensor = trust_F1HW * (guess_FCHW - clean_FCHW)
            return velocity_FCHW[rows] + pulled_FCHW

        cells = self.last.in_channels  # the widest that there is of each frame
        return by_parts(work, velocity_FCHW[:, :1].expand(-1, cells, -1, -1))


class Cells(nn.Module):
    """From latents to patches and from patches to velocities, by way of cells of growing size.

    The cells of each size are remembered on the way down and added to on the way up.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sides, channels = config.merges, config.cell_channels
        larger = [*channels[1:], config.hidden]
        squares = [side * side * c for side, c in zip(self.sides, channels, strict=True)]

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                CellBlocks(CellBlock(c, config.hidden) for _ in range(config.cell_depth))
                for c in channels
            )

        self.first = nn.Conv2d(config.channels, channels[0], 3, padding=1)
        self.down, self.up = blocks(), blocks()
        self.merge = nn.ModuleList(map(nn.Linear, squares, larger))
        self.divide = nn.ModuleList(map(nn.Linear, larger, squares))
        self.film = nn.Linear(config.hidden, 2 * channels[0])
        self.velocity = nn.Conv2d(channels[0], config.channels, 3, padding=1)
        _silence(self.film, self.velocity)

    def of_latents(self, latent_FCHW: Tensor) -> Tensor:
        """Cells of the finest size."""
        return convolve(self.first, latent_FCHW.permute(0, 2, 3, 1))

    def to_patches(
        self, x_FHWC: Tensor, condition_FD: Tensor, neighbours: Neighbours
    ) -> tuple[Tensor, list[Tensor]]:
        """Patches ``[F, H, W, D]`` of the finest cells, and the cells of each size before them."""
        cells = []
        for side, blocks, merge in zip(self.sides, self.down, self.merge, strict=True):
            x_FHWC = blocks(x_FHWC, condition_FD, neighbours)
            cells.append(x_FHWC)
            x_FHWC = _coarser(merge, x_FHWC, side)
        return x_FHWC, cells

    def to_velocity(
        self,
        patch_FHWD: Tensor,
        cells: list[Tensor],
        condition_FD: Tensor,
        neighbours: Neighbours,
    ) -> Tensor:
        """The velocity ``[F, C, H, W]`` that patches say, float32; ``cells`` are used up."""
        x_FHWC = patch_FHWD
        ways = list(zip(self.sides, self.up, self.divide, strict=True))
        for side, blocks, divide in reversed(ways):
            x_FHWC = blocks(_finer(divide, x_FHWC, side, cells.pop()), condition_FD, neighbours)

        def velocity(rows: slice) -> Tensor:
            y_FHWC = F.silu(filmed(self.film, x_FHWC[rows], condition_FD[rows]))
            return convolve(self.velocity, y_FHWC)

        return by_parts(velocity, x_FHWC).permute(0, 3, 1, 2).float()


def _coarser(layer: nn.Module, x_FHWC: Tensor, side: int) -> Tensor:
    def work(rows: slice) -> Tensor:
        y_FHWC: Tensor = layer(merged(x_FHWC[rows], side))
        return y_FHWC

    return by_parts(work, x_FHWC)


def _finer(layer: nn.Module, x_FHWC: Tensor, side: int, same_FHWC: Tensor) -> Tensor:
    def work(rows: slice) -> Tensor:
        return same_FHWC[rows] + divided(layer(x_FHWC[rows]), side)

    return by_parts(work, same_FHWC)


class Network(nn.Module):
    """``FrameState`` and prompts in, ``Prediction`` out."""

    def __init__(self, config: ModelConfig, process: ProcessConfig) -> None:
        super().__init__()
        self.config, self.process = config, process
        width = config.hidden
        rows, columns = config.height // config.patch, config.width // config.patch
        self.cells = Cells(config)
        self.between = Between(config) if config.between else None
        self.row_place = nn.Parameter(torch.randn(rows, 1, width) * 0.02)
        self.column_place = nn.Parameter(torch.randn(1, columns, width) * 0.02)
        self.clip_row = nn.Parameter(torch.randn(1 + rows * columns, width) * 0.02)
        self.frame_token = nn.Parameter(torch.randn(width) * 0.02)
        self.time = nn.Sequential(
            nn.Linear(2 * TIME_WAVES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.place = nn.Linear(2 * TIME_WAVES, width) if config.place else None
        self.frame_role = nn.Embedding(3, width)  # by Role
        self.clip_role = nn.Embedding(2, width)  # first gap closed, open
        self.prompt_sum = nn.Linear(config.text_width, width)
        self.look = nn.Linear(width, width)
        self.seen = nn.Linear(width, config.text_width, bias=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = nn.Linear(width, 2 * width)
        self.log_missing = nn.Linear(width, 1)
        self.log_missing_first = nn.Linear(width, 1)
        self.count = nn.Linear(width, config.max_count + 1)
        nn.init.normal_(self.frame_role.weight, std=0.02)
        nn.init.normal_(self.clip_role.weight, std=0.02)
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.02)
        zeroed = (self.modulation, self.final, self.count)  # gates start closed
        _silence(*zeroed, self.log_missing, self.log_missing_first, self.seen)
        self.checkpoint_blocks = False  # trade time for memory in training
        self.attend: Attend = attend_cached

    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        """Compile the blocks for packs of any lengths, with the options of ``torch.compile``.

        Attention stays out: its runs are other ones in every step, what lies between is not.
        """
        self.attend = torch.compiler.disable(attend_cached)  # loads a second of PyTorch
        for block in self.blocks:
            block.compile(dynamic=True, **options)

    @torch.no_grad()
    def count_to(self, max_count: int) -> None:
        """Let the law of sizes reach further; what it says of known ones stays in proportion.

        New sizes start as likely as the least likely one, whatever the state.
        """
        more = max_count - self.config.max_count
        if more < 0:
            raise ValueError("the largest count cannot shrink")
        old = self.count
        self.count = nn.Linear(old.in_features, max_count + 1, device=old.weight.device)
        self.count.weight.copy_(F.pad(old.weight, (0, 0, 0, more)))
        self.count.bias.copy_(F.pad(old.bias, (0, more), value=float(old.bias.min())))
        self.config = replace(self.config, max_count=max_count)

    def forward(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocity, log-missing and count logits, float32, in the order of the state.

        What is said of frames that ``rest`` is 0.
        """
        # Clips of equal shape next to each other attend in one call without being copied.
        clips = range(len(state.lengths))
        order = sorted(clips, key=lambda b: (state.lengths[b], prompt.lengths[b]))
        if order == list(clips):
            return self._predict(state, prompt, rest)
        back = sorted(clips, key=order.__getitem__)
        given = state
        state = frames.select(state, order)
        tokens = prompt.token_SD.split(list(prompt.lengths))
        prompt = PromptTokens(
            torch.cat([tokens[b] for b in order]), tuple(prompt.lengths[b] for b in order)
        )
        if rest is not None:
            rest = rest.select(given.lengths, order)
        prediction = self._predict(state, prompt, rest)
        frame_rows = frames.frame_rows(state.lengths, back)
        assert [state.lengths[b] for b in back] == list(given.lengths)
        return Prediction(
            velocity_FCHW=prediction.velocity_FCHW[frame_rows],
            log_missing_F=prediction.log_missing_F[frame_rows],
            log_missing_first_B=prediction.log_missing_first_B[back],
            count_logits_BK=prediction.count_logits_BK[back],
            seen_BV=None if prediction.seen_BV is None else prediction.seen_BV[back],
        )

    def _predict(self, state: FrameState, prompt: PromptTokens, rest: Rest | None) -> Prediction:
        device, whole, cache = state.latent_FCHW.device, state, None
        if rest is not None:
            cache = rest.cache
            cache.enter(rest.names, state.lengths, rest.resting_F)
            state = frames.only(state, cache.awake_F, cache.awake_lengths)
        clip_rows, frame_rows = _row_numbers(state.lengths, device)
        awake_F, index_F = None if cache is None else cache.awake_F, whole.index_F
        neighbours = Neighbours.of(index_F, causal=self.config.causal, cache=cache)
        index_F = index_F if awake_F is None else index_F[awake_F]
        condition_RD = F.silu(self._condition(state, index_F, prompt, clip_rows, frame_rows))
        patch_FHWD, cells = self.cells.to_patches(
            self.cells.of_latents(state.latent_FCHW), condition_RD[frame_rows], neighbours
        )
        seen_BV = self.read(state, patch_FHWD)
        if cache is not None:
            seen_BV = cache.seen_BV = seen_BV if cache.seen_BV is None else cache.seen_BV
        prompt = _with_token(prompt, seen_BV.detach())  # it is taught by words alone
        prompt_S1D = prompt.token_SD[:, None]
        condition_RD = F.silu(self._condition(state, index_F, prompt, clip_rows, frame_rows))
        condition_FD = condition_RD[frame_rows]
        x_RPD = self._embed(patch_FHWD, clip_rows, frame_rows)
        modulation_R16D = self.modulation(condition_RD).unflatten(-1, (1, 6, -1))
        modulation_R16D = modulation_R16D.to(x_RPD.dtype)
        layout = self._layout(whole, state, index_F, prompt, frame_rows, x_RPD.dtype, cache)
        for block in self.blocks:
            if self.checkpoint_blocks and self.training:
                x_RPD = checkpoint(
                    block, x_RPD, modulation_R16D, prompt_S1D, layout, use_reentrant=False
                )
            else:
                x_RPD = block(x_RPD, modulation_R16D, prompt_S1D, layout)
        shift, scale = self.final(condition_RD)[:, None].to(x_RPD.dtype).chunk(2, dim=-1)
        x_RPD = modulated(x_RPD, shift, scale)
        clip_BD, frame_FPD = x_RPD[clip_rows, 0], x_RPD[frame_rows]
        patch_FHWD = frame_FPD[:, 1:].reshape(patch_FHWD.shape)
        velocity_FCHW = self.cells.to_velocity(patch_FHWD, cells, condition_FD, neighbours)
        velocity_FCHW = self._pulled(velocity_FCHW, whole, state, condition_FD, awake_F)
        log_missing_F = self.log_missing(frame_FPD[:, 0])[:, 0].float()
        if awake_F is not None:
            velocity_FCHW, log_missing_F = (
                said.new_zeros(len(whole.time_F), *said.shape[1:]).index_copy_(0, awake_F, said)
                for said in (velocity_FCHW, log_missing_F)
            )
        return Prediction(
            velocity_FCHW=velocity_FCHW,
            log_missing_F=log_missing_F,
            log_missing_first_B=self.log_missing_first(clip_BD)[:, 0].float(),
            count_logits_BK=missing_logits(self.count(clip_BD).float(), whole, self.process),
            seen_BV=seen_BV,
        )

    def _pulled(
        self,
        velocity_FCHW: Tensor,
        whole: FrameState,
        state: FrameState,
        condition_FD: Tensor,
        awake_F: Tensor | None,
    ) -> Tensor:
        """Velocities of the frames evaluated, ``state``, among all, with what lies ``Between``."""
        if self.between is None or velocity_FCHW.is_meta:  # memory is counted without such frames
            return velocity_FCHW
        between_F = whole.between_F if awake_F is None else whole.between_F[awake_F]
        own = between_F.nonzero().flatten()
        frame = own if awake_F is None else awake_F[own]
        pulled_FCHW: Tensor = self.between(
            velocity_FCHW[own],
            state.latent_FCHW[own],
            shifted(state.time_F[own], self.process.shift),
            condition_FD[own],
            whole.latent_FCHW[frame - 1],
            whole.latent_FCHW[frame + 1],
        )
        return velocity_FCHW.index_copy(0, own, pulled_FCHW)

    def read(self, state: FrameState, patch_FHWD: Tensor) -> Tensor:
        """What the given frames of each clip say, as a token of a prompt; nothing without any."""
        shown_FD = F.silu(self.look(patch_FHWD)).mean((1, 2)).float()
        given_F1 = state.given_F.float()[:, None]
        zero_BD = shown_FD.new_zeros(len(state.lengths), shown_FD.shape[1])
        sum_BD = zero_BD.index_add(0, state.clip_F, given_F1 * shown_FD)
        seen_BV: Tensor = self.seen(normed(sum_BD)).float()
        return seen_BV

    def _layout(
        self,
        whole: FrameState,
        state: FrameState,
        index_F: Tensor,
        prompt: PromptTokens,
        frame_rows: Tensor,
        dtype: torch.dtype,
        cache: Cache | None,
    ) -> Layout:
        """Of the frames that are evaluated, ``state``, among all, ``whole``."""
        config, device = self.config, state.latent_FCHW.device
        rows, columns = config.height // config.patch, config.width // config.patch
        grid_PA = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        middle = torch.tensor([[(rows - 1) / 2, (columns - 1) / 2]])
        place_PA = torch.cat([middle, grid_PA]).to(device)
        num_rows = len(state.lengths) + len(frame_rows)
        index_R = torch.full((num_rows,), -1.0, device=device)
        index_R[frame_rows] = index_F.float()
        position_RPA = torch.cat(
            [
                index_R[:, None, None].expand(-1, len(place_PA), 1),
                place_PA.expand(num_rows, -1, -1),
            ],
            dim=-1,
        )
        head_width = config.hidden // config.heads
        cosine, sine = rotary(position_RPA, head_width)
        value_rotation = None
        if config.rotary_values:
            turn, across = value_rotary(index_R, config.heads, head_width)
            value_rotation = (turn.to(dtype), across.to(dtype))
        return Layout(
            rotation=(cosine.to(dtype), sine.to(dtype)),
            value_rotation=value_rotation,
            within=attention_plan(
                whole.lengths,
                config.window,
                device,
                causal=config.causal,
                awake=None if cache is None else cache.awake_rows,
            ),
            to_prompt=prompt_plan(state.lengths, prompt.lengths, device),
            attend=self.attend,
            cache=cache,
        )

    def _condition(
        self,
        state: FrameState,
        index_F: Tensor,
        prompt: PromptTokens,
        clip_rows: Tensor,
        frame_rows: Tensor,
    ) -> Tensor:
        time = torch.cat([state.tau_B.clamp(0, 1), state.time_F])
        role = torch.cat([self.clip_role(state.open_first_B.long()), self.frame_role(state.role_F)])
        tokens = prompt.token_SD.split(list(prompt.lengths))
        sums = [part.sum(0) / max(len(part), 1) ** 0.5 for part in tokens]
        prompt_BD = self.prompt_sum(torch.stack(sums))
        told = torch.cat([prompt_BD, prompt_BD[state.clip_F]])
        back = torch.cat([clip_rows, frame_rows]).argsort()
        condition_RD: Tensor = self.time(waves(time)) + role + told
        if self.place is not None:
            place_FD = self.place(waves(index_F / PLACES)).to(condition_RD.dtype)
            condition_RD = condition_RD + F.pad(place_FD, (0, 0, len(clip_rows), 0))
        return condition_RD[back]

    def _embed(self, patch_FHWD: Tensor, clip_rows: Tensor, frame_rows: Tensor) -> Tensor:
        """All rows, in the dtype of the patches."""
        patch_FPD = (patch_FHWD + (self.row_place + self.column_place)).flatten(1, 2)
        frame_FPD = torch.cat([self.frame_token.expand(len(patch_FPD), 1, -1), patch_FPD], dim=1)
        clip_BPD = self.clip_row.expand(len(clip_rows), -1, -1)
        row_RPD = torch.cat([clip_BPD, frame_FPD]).to(patch_FHWD.dtype)
        return row_RPD[torch.cat([clip_rows, frame_rows]).argsort()]


def _with_token(prompt: PromptTokens, token_BV: Tensor) -> PromptTokens:
    """Each prompt with one more token at its end."""
    own = prompt.token_SD.split(list(prompt.lengths))
    more = token_BV.to(prompt.token_SD.dtype)[:, None]
    return PromptTokens(
        torch.cat([part for pair in zip(own, more, strict=True) for part in pair]),
        tuple(n + 1 for n in prompt.lengths),
    )


def _row_numbers(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of the clips ``[B]`` and of the frames ``[F]``."""
    clip_rows = [run.start for run in _runs([n + 1 for n in lengths])]
    frame_rows = [row for run in _runs([n + 1 for n in lengths]) for row in run[1:]]
    return (
        torch.tensor(clip_rows, dtype=torch.long, device=device),
        torch.tensor(frame_rows, dtype=torch.long, device=device),
    )
