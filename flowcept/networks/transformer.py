"""The network: a transformer over the tokens of the visible frames of many clips, packed.

A *row* is a frame: its frame token, then its patches. Before the frames of a clip goes one more
row, the clip's own: the clip token, then as many learned tokens as a frame has patches, on which
the clip may note what concerns it as a whole. So the sequence is an array of rows of one shape,
adaptive normalisation broadcasts, and nothing is padded. What a token
outputs depends on what it is:

* clip token: log-missing of the gap before the first frame, logits of how many generated frames the
  whole clip will have;
* frame token: log-missing of the gap to its right;
* patch: velocity, by way of the stem's convolutions (``stem.py``).

Time and role enter by adaptive normalisation per row, with one projection for all blocks and a
learned offset in each. The prompt enters by cross-attention, and the sum of its tokens with the
time. What the given frames of a clip show is one more token of its prompt, the *image token*, which
training teaches to say what the words would: so a picture without words still tells all frames
alike who is seen.

Shape suffixes: F frames, B clips, R rows (clip row, then its frames, clip by clip), P tokens per
row, D width, N heads, E head width, C H W a latent, S prompt tokens, V their width, K sizes, A the
axes index, row and column. Patches have their channels last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowcept.networks.attention import Plan, attend
from flowcept.networks.base import VideoNetwork
from flowcept.networks.in_between import InBetween
from flowcept.networks.layers import SquaredRelu, adaln, chunked, layer_norm, zero_init
from flowcept.networks.layout import Layout, evaluation_order, make_layout
from flowcept.networks.resting import Memory, memory_of
from flowcept.networks.stem import Neighbours, Stem, StemConfig
from flowcept.process.forward import shifted
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the network. Part of every model file."""

    channels: int = 6  # of a latent
    height: int = 16  # of a latent
    width: int = 16  # of a latent
    largest_size: int = 64  # largest number of generated frames in a clip that can be predicted
    text_width: int = 192  # of a prompt token
    hidden: int = 256  # width of a token
    depth: int = 8  # blocks
    heads: int = 4
    patch: int = 4  # latent cells along each side of a patch
    stem_channels: int = 64  # of the stem at the latent's own resolution; coarser ones have more
    stem_depth: int = 2  # convolution blocks at each resolution, before and after the blocks
    between: int = 0  # convolution blocks that guess a frame between two finished ones; 0: none
    mlp_ratio: int = 4
    place: bool = False  # a frame is told its index among the visible ones
    window: int = 0  # a frame sees frames within this distance; 0: all frames

    def __post_init__(self) -> None:
        positive = (self.hidden, self.depth, self.heads, self.patch, self.channels)
        sizes = (self.stem_channels, self.height, self.width, self.mlp_ratio, self.text_width)
        if min(*positive, *sizes) < 1:
            raise ValueError("the network's sizes must be positive")
        if self.hidden % self.heads or (self.hidden // self.heads) % 8:
            raise ValueError("hidden must be heads times a multiple of 8")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError("the latent's height and width must be multiples of the patch")
        if min(self.window, self.largest_size, self.stem_depth, self.between) < 0:
            raise ValueError("window, largest_size, stem_depth and between must not be negative")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def stem(self) -> StemConfig:
        """The stem's own settings."""
        return StemConfig(
            self.channels, self.stem_channels, self.stem_depth, self.patch, self.hidden
        )


INDEX_PERIOD = 1000.0  # frames: the slowest rotary wave; clips of that length stay distinguishable
PLACE_PERIOD = 100.0  # patches along a side
PLACES = 64.0  # frames: index over this is told like a time, which keeps neighbours well apart
TIME_WAVES = 128  # sines, and as many cosines, that describe a flow time in [0, 1]


def timestep_embedding(time: Tensor, count: int = TIME_WAVES) -> Tensor:
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


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features, of the first and the second half, by its angle."""
    cosine, sine = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


Attend = Callable[[Tensor, Tensor, Tensor, Plan], Tensor]


@dataclass(frozen=True)
class Context:
    """What every block needs to know of an evaluation."""

    layout: Layout
    rotation: tuple[Tensor, Tensor]  # of queries and keys
    prompt_S1V: Tensor
    attend: Attend
    memory: Memory | None


class Block(nn.Module):
    """Self-attention within the clip, cross-attention to the prompt, and an MLP."""

    def __init__(self, config: TransformerConfig, name: str) -> None:
        super().__init__()
        width = config.hidden
        self.name, self.heads = name, config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.prompt_q = nn.Linear(width, width, bias=False)
        self.prompt_kv = nn.Linear(config.text_width, 2 * width, bias=False)
        self.prompt_out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.mlp_ratio * width)
        self.down = nn.Linear(config.mlp_ratio * width, width)
        self.offset = nn.Parameter(torch.zeros(6, width))
        zero_init(self.prompt_out)

    def forward(self, x_RPD: Tensor, modulation_R16D: Tensor, context: Context) -> Tensor:
        modulation = modulation_R16D + self.offset.to(modulation_R16D.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)

        y_RPNE = self.self_attention(adaln(x_RPD, shift, scale), context)
        x_RPD = torch.addcmul(x_RPD, gate, self.out(y_RPNE.flatten(2)))
        x_RPD = x_RPD + self.prompt_out(self._cross_attention(x_RPD, context).flatten(2))

        def mlp(rows: slice) -> Tensor:
            y_RPD = adaln(x_RPD[rows], mlp_shift[rows], mlp_scale[rows])
            z_RPD: Tensor = SquaredRelu.apply(self.up(y_RPD))  # type: ignore[no-untyped-call]
            return torch.addcmul(x_RPD[rows], mlp_gate[rows], self.down(z_RPD))

        return chunked(mlp, x_RPD)

    def self_attention(self, y_RPD: Tensor, context: Context) -> Tensor:
        """Heads ``[R, P, N, E]`` of the rows that are evaluated, over all rows of their clips."""
        qk, v = self.qkv(y_RPD).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)
        q, k = rotate(layer_norm(qk), context.rotation).unbind(2)
        return self.gathered(q, k, v.squeeze(2), context)

    def gathered(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Attention itself, with the keys and values of resting rows from memory."""
        memory = context.memory
        if memory is not None:
            k, v = memory.rows(f"{self.name}.k", k), memory.rows(f"{self.name}.v", v)
        return context.attend(q, k, v, context.layout.within)

    def _cross_attention(self, x_RPD: Tensor, context: Context) -> Tensor:
        q = self.prompt_q(layer_norm(x_RPD)).unflatten(-1, (self.heads, -1))
        k, v = self.prompt_kv(context.prompt_S1V).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return context.attend(layer_norm(q), layer_norm(k), v, context.layout.to_prompt)


class Transformer(VideoNetwork):
    """The stem, the blocks, and the heads that say velocity, missing frames and sizes."""

    block_type: type[Block] = Block

    def __init__(self, config: TransformerConfig, shift: float) -> None:
        """``shift`` is the process's, of the denoising progress."""
        super().__init__()
        self.config, self.shift = config, shift
        width, (rows, columns) = config.hidden, config.grid
        self.stem = Stem(config.stem)
        self.in_between = (
            InBetween(config.channels, config.stem_channels, config.between, width)
            if config.between
            else None
        )
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
        self.image_read = nn.Linear(width, width)
        self.image_token = nn.Linear(width, config.text_width, bias=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.layers = nn.ModuleList(
            self.block_type(config, f"blocks.{number}") for number in range(config.depth)
        )
        self.final = nn.Linear(width, 2 * width)
        self.log_missing = nn.Linear(width, 1)
        self.log_missing_first = nn.Linear(width, 1)
        self.size = nn.Linear(width, config.largest_size + 1)
        self._start()
        self.attend: Attend = attend
        self._layout: tuple[object, Layout] | None = None  # the last one, and what it was made of

    def _start(self) -> None:
        """First weights: roles and places small, gates closed, laws flat."""
        nn.init.normal_(self.frame_role.weight, std=0.02)
        nn.init.normal_(self.clip_role.weight, std=0.02)
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.02)
        zero_init(self.modulation, self.final, self.size)
        zero_init(self.log_missing, self.log_missing_first, self.image_token)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.config.channels, self.config.height, self.config.width

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a row."""
        rows, columns = self.config.grid
        return rows * columns + 1

    @property
    def largest_size(self) -> int:
        """The largest number of generated frames in a clip that the law of sizes reaches."""
        return self.config.largest_size

    def blocks(self) -> Iterator[nn.Module]:
        """The parts that are equal in kind: to be compiled, sharded or checkpointed one by one."""
        yield from self.layers

    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        """Compile the blocks for packs of any lengths, with the options of ``torch.compile``.

        Attention stays out: its runs are other ones in every step, what lies between is not.
        """
        self.attend = torch.compiler.disable(attend)  # loads a second of PyTorch
        for block in self.layers:
            block.compile(dynamic=True, **options)

    @torch.no_grad()
    def grow_law(self, largest_size: int) -> TransformerConfig:
        """Let the law of sizes reach further; what it says of known ones stays in proportion.

        New sizes start as likely as the least likely one, whatever the state.
        """
        more = largest_size - self.config.largest_size
        if more < 0:
            raise ValueError("the largest size cannot shrink")
        old = self.size
        self.size = nn.Linear(old.in_features, largest_size + 1, device=old.weight.device)
        self.size.weight.copy_(F.pad(old.weight, (0, 0, 0, more)))
        self.size.bias.copy_(F.pad(old.bias, (0, more), value=float(old.bias.min())))
        self.config = replace(self.config, largest_size=largest_size)
        return self.config

    def forward(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocity, log-missing and size logits, float32, in the order of the state.

        Frames that rest get a velocity of 0, which moves nothing.
        """
        memory = memory_of(rest)
        layout = self._laid_out(state, prompt, rest, memory)
        evaluated = _evaluated(state, layout)
        prompt = _ordered(prompt, layout.order)
        neighbours = Neighbours(layout, memory)
        base_RD = self._time_and_role(evaluated, layout)

        condition_RD = F.silu(self._told(base_RD, prompt, layout))
        patch_FHWD, features = self.stem.to_patches(
            evaluated.latent_FCHW, condition_RD[layout.frame_rows], neighbours
        )
        image_token_BV = self._image_token(evaluated, patch_FHWD, layout, memory)

        prompt = _with_token(prompt, image_token_BV.detach())  # it is taught by words alone
        condition_RD = F.silu(self._told(base_RD, prompt, layout))
        x_RPD = self._transformed(patch_FHWD, condition_RD, prompt, layout, memory)

        clip_BD, frame_FPD = x_RPD[layout.clip_rows, 0], x_RPD[layout.frame_rows]
        patch_FHWD = frame_FPD[:, 1:].reshape(patch_FHWD.shape)
        condition_FD = condition_RD[layout.frame_rows]
        velocity_FCHW = self.stem.to_velocity(patch_FHWD, features, condition_FD, neighbours)
        if self.in_between is not None:
            velocity_FCHW = self._pulled(velocity_FCHW, state, condition_FD, layout, rest)
        log_missing_F, first_B, size_BK = self._laws(frame_FPD[:, 0], clip_BD)
        prediction = Prediction(velocity_FCHW, log_missing_F, first_B, size_BK, image_token_BV)
        return _in_state_order(prediction, state, layout)

    def _laid_out(
        self,
        state: FrameState,
        prompt: PromptTokens,
        rest: Rest | None,
        memory: Memory | None,
    ) -> Layout:
        """The layout of this evaluation; the last one is kept, since steps repeat it."""
        with_token = [n + 1 for n in prompt.lengths]
        resting: tuple[bool, ...] | None = None
        if memory is not None and rest is not None:
            order = evaluation_order(state.lengths, with_token)
            names, lengths = [rest.names[b] for b in order], [state.lengths[b] for b in order]
            if memory.enter(names, lengths):
                resting = tuple(rest.finished_F.tolist())
        device = state.latent_FCHW.device
        made_of = (state.lengths, prompt.lengths, resting, device)
        if self._layout is None or self._layout[0] != made_of:
            layout = make_layout(state.lengths, with_token, self.config.window, resting, device)
            self._layout = (made_of, layout)
        layout = self._layout[1]
        if memory is not None:
            memory.awake_F, memory.awake_R = layout.awake_F, layout.awake_R
        return layout

    def _time_and_role(self, evaluated: FrameState, layout: Layout) -> Tensor:
        """What rows are told of themselves, ``[clips, then frames, D]``."""
        time = torch.cat([evaluated.tau_B.clamp(0, 1), evaluated.time_F])
        clip_BD = self.clip_role(evaluated.open_first_B.long())
        base_RD: Tensor = self.time(timestep_embedding(time))
        base_RD = base_RD + torch.cat([clip_BD, self.frame_role(evaluated.role_F)])
        if self.place is not None:
            place_FD = self.place(timestep_embedding(layout.index_F / PLACES)).to(base_RD.dtype)
            base_RD = base_RD + F.pad(place_FD, (0, 0, len(clip_BD), 0))
        return base_RD

    def _told(self, base_RD: Tensor, prompt: PromptTokens, layout: Layout) -> Tensor:
        """The same with the sum of each clip's prompt, in the order of rows."""
        tokens = prompt.token_SD.split(list(prompt.lengths))
        sums = [part.sum(0) / max(len(part), 1) ** 0.5 for part in tokens]
        prompt_BD = self.prompt_sum(torch.stack(sums))
        told_RD: Tensor = base_RD + torch.cat([prompt_BD, prompt_BD[layout.clip_F]])
        return told_RD[layout.row_order]

    def _image_token(
        self, evaluated: FrameState, patch_FHWD: Tensor, layout: Layout, memory: Memory | None
    ) -> Tensor:
        """What the given frames of each clip show, ``[B, V]``; 0 without any."""
        if memory is not None and memory.image_token_BV is not None:
            return memory.image_token_BV
        shown_FD = F.silu(self.image_read(patch_FHWD)).mean((1, 2)).float()
        given_F1 = evaluated.given_F.float()[:, None]
        zero_BD = shown_FD.new_zeros(len(layout.lengths), shown_FD.shape[1])
        sum_BD = zero_BD.index_add(0, layout.clip_F, given_F1 * shown_FD)
        token_BV: Tensor = self.image_token(layer_norm(sum_BD)).float()
        if memory is not None:
            memory.image_token_BV = token_BV
        return token_BV

    def _transformed(
        self,
        patch_FHWD: Tensor,
        condition_RD: Tensor,
        prompt: PromptTokens,
        layout: Layout,
        memory: Memory | None,
    ) -> Tensor:
        """All tokens after all blocks, normalised, ``[R, P, D]``."""
        x_RPD = self._embedded(patch_FHWD, layout)
        modulation_R16D = self.modulation(condition_RD).unflatten(-1, (1, 6, -1)).to(x_RPD.dtype)
        cosine, sine = self._rotation(layout)
        rotation = cosine.to(x_RPD.dtype), sine.to(x_RPD.dtype)
        context = Context(layout, rotation, prompt.token_SD[:, None], self.attend, memory)
        for block in self.layers:
            if self.checkpoint_blocks and self.training:
                x_RPD = checkpoint(block, x_RPD, modulation_R16D, context, use_reentrant=False)
            else:
                x_RPD = block(x_RPD, modulation_R16D, context)
        shift, scale = self.final(condition_RD)[:, None].to(x_RPD.dtype).chunk(2, dim=-1)
        return adaln(x_RPD, shift, scale)

    def _embedded(self, patch_FHWD: Tensor, layout: Layout) -> Tensor:
        """All rows, in the dtype of the patches."""
        patch_FPD = (patch_FHWD + (self.row_place + self.column_place)).flatten(1, 2)
        frame_FPD = torch.cat([self.frame_token.expand(len(patch_FPD), 1, -1), patch_FPD], dim=1)
        clip_BPD = self.clip_row.expand(len(layout.lengths), -1, -1)
        return layout.rows(clip_BPD, frame_FPD).to(patch_FHWD.dtype)

    def _rotation(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the places of all tokens; a clip's row lies before its frames."""
        index_R = self._row_index(layout)
        place_PA = _patch_places(self.config, index_R.device)
        position_RPA = torch.cat(
            [
                index_R[:, None, None].expand(-1, len(place_PA), 1),
                place_PA.expand(len(index_R), -1, -1),
            ],
            dim=-1,
        )
        return rotary(position_RPA, self.config.hidden // self.config.heads)

    def _row_index(self, layout: Layout) -> Tensor:
        """Index of each row's frame within its clip, -1 of a clip's own row."""
        before_B = torch.full((len(layout.lengths),), -1.0, device=layout.index_F.device)
        return layout.rows(before_B, layout.index_F.float())

    def _laws(self, frame_FD: Tensor, clip_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-missing after frames and before the first, logits of sizes; float32 throughout.

        In bfloat16 a logit near 12 would move in steps of .06.
        """
        with torch.autocast(clip_BD.device.type, enabled=False):
            frame_FD, clip_BD = frame_FD.float(), clip_BD.float()
            log_missing_F: Tensor = self.log_missing(frame_FD)[:, 0]
            first_B: Tensor = self.log_missing_first(clip_BD)[:, 0]
            size_BK: Tensor = self.size(clip_BD)
        return log_missing_F, first_B, size_BK

    def _pulled(
        self,
        velocity_FCHW: Tensor,
        state: FrameState,
        condition_FD: Tensor,
        layout: Layout,
        rest: Rest | None,
    ) -> Tensor:
        """Velocities of the frames evaluated, pulled towards the in-between prior."""
        assert self.in_between is not None
        device = velocity_FCHW.device
        if rest is None:
            between_F = state.between_F  # asks the device which frames these are
        else:
            between_F = _between_on_host(rest.finished_F, state.lengths)
        if layout.frame_F is not None:
            between_F = between_F[layout.frame_F.to(between_F.device)]
        own = between_F.nonzero().flatten().to(device)
        place = own if layout.frame_F is None else layout.frame_F[own]
        pulled_FCHW: Tensor = self.in_between(
            velocity_FCHW[own],
            state.latent_FCHW[place],
            shifted(state.time_F[place], self.shift),
            condition_FD[own],
            state.latent_FCHW[place - 1],
            state.latent_FCHW[place + 1],
        )
        return velocity_FCHW.index_copy(0, own, pulled_FCHW)


def _between_on_host(finished_F: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Flowing frames of which both neighbours in their clip are finished."""
    parts = []
    for done_F in finished_F.split(lengths):
        sides_F = F.pad(done_F, (1, 1), value=False)
        parts.append(~done_F & sides_F[:-2] & sides_F[2:])
    return torch.cat(parts)


def _patch_places(config: TransformerConfig, device: torch.device) -> Tensor:
    """Row and column of a row's tokens ``[P, 2]``: the middle for its first, then the patches."""
    rows, columns = (torch.arange(count, device=device).float() for count in config.grid)
    middle_2 = torch.stack([rows.mean(), columns.mean()])
    return torch.cat([middle_2[None], torch.cartesian_prod(rows, columns)])


def _evaluated(state: FrameState, layout: Layout) -> FrameState:
    """The frames that are evaluated, in the order of evaluation."""
    if layout.frame_F is None:
        return state
    clips = layout.clip_order
    return FrameState(
        latent_FCHW=state.latent_FCHW[layout.frame_F],
        time_F=state.time_F[layout.frame_F],
        role_F=state.role_F[layout.frame_F],
        tau_B=state.tau_B if clips is None else state.tau_B[clips],
        open_first_B=state.open_first_B if clips is None else state.open_first_B[clips],
        lengths=layout.lengths,
    )


def _in_state_order(prediction: Prediction, state: FrameState, layout: Layout) -> Prediction:
    """A prediction of the frames that were evaluated as one of the whole state."""
    if layout.frame_F is not None:
        place_F, num_frames = layout.frame_F, len(state.time_F)

        def of_all(x_F: Tensor) -> Tensor:
            return x_F.new_zeros(num_frames, *x_F.shape[1:]).index_copy(0, place_F, x_F)

        prediction = replace(
            prediction,
            velocity_FCHW=of_all(prediction.velocity_FCHW),
            log_missing_F=of_all(prediction.log_missing_F),
        )
    if layout.clip_back is None:
        return prediction
    back, token_BV = layout.clip_back, prediction.image_token_BV
    return replace(
        prediction,
        log_missing_first_B=prediction.log_missing_first_B[back],
        size_logits_BK=prediction.size_logits_BK[back],
        image_token_BV=None if token_BV is None else token_BV[back],
    )


def _ordered(prompt: PromptTokens, order: tuple[int, ...]) -> PromptTokens:
    """Prompts in another order."""
    tokens = prompt.token_SD.split(list(prompt.lengths))
    lengths = tuple(prompt.lengths[b] for b in order)
    return PromptTokens(torch.cat([tokens[b] for b in order]), lengths)


def _with_token(prompt: PromptTokens, token_BV: Tensor) -> PromptTokens:
    """Each prompt with one more token at its end."""
    own = prompt.token_SD.split(list(prompt.lengths))
    more = token_BV.to(prompt.token_SD.dtype)[:, None]
    return PromptTokens(
        torch.cat([part for pair in zip(own, more, strict=True) for part in pair]),
        tuple(n + 1 for n in prompt.lengths),
    )
