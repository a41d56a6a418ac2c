"""The network: a transformer over the tokens of the visible frames of many clips, packed.

A *row* is a frame: its patches. Before the frames of a clip goes one more row, the clip's own: as
many learned tokens, on which the clip may note what concerns it as a whole. So the sequence is an
array of rows of one shape, adaptive normalisation broadcasts, and nothing is padded. What is said
depends on what says it:

* first token of a clip's row, the clip token: logits of how many generated frames the whole clip
  will have;
* rows left and right of a gap, pooled: its log-missing (``gaps.py``);
* patch: velocity, by way of the stem's convolutions (``stem.py``).

In the form that is not ``pooled`` every row begins with one token more. The clip token also says
the log-missing of the gap before the first frame, a frame token that of the gap to its right.

Time and role enter by adaptive normalisation per row, with one projection for all blocks and a
learned offset in each. The prompt enters by cross-attention, and the sum of its tokens with the
time. What the given frames of a clip show is one more token of its prompt, the *image token*, which
training teaches to say what the words would: so a picture without words still tells all frames
alike who is seen.

Shape suffixes: F frames, B clips, R rows (clip row, then its frames, clip by clip), P tokens per
row, D width, N heads, E head width, C H W a latent, S prompt tokens, V their width, K sizes, A the
axes index, row and column. Patches have their channels last.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowcept.device import sampling_bytes
from flowcept.networks.attention import Plan, attend
from flowcept.networks.base import VideoNetwork
from flowcept.networks.compositions import Compositions
from flowcept.networks.gaps import Gaps
from flowcept.networks.in_between import InBetween, between
from flowcept.networks.layers import (
    MOST_BLOCKS,
    TIME_WAVES,
    SquaredRelu,
    adaln,
    chunked,
    hidden_matrices,
    layer_norm,
    rotary,
    rotate,
    timestep_embedding,
    zero_init,
)
from flowcept.networks.layout import Layout, evaluation_order, make_layout, to_device
from flowcept.networks.resting import Memory, enter
from flowcept.networks.stem import Neighbours, Stem
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
    pooled: bool = False  # gaps are read from pooled patches; else frames have tokens for it
    compositions: int = 0  # features of the joint law of the gaps' counts; 0: means alone

    def __post_init__(self) -> None:
        positive = (self.hidden, self.depth, self.heads, self.patch, self.channels)
        sizes = (self.stem_channels, self.height, self.width, self.mlp_ratio, self.text_width)
        if min(*positive, *sizes) < 1:
            raise ValueError("the network's sizes must be positive")
        if self.hidden % self.heads or (self.hidden // self.heads) % 8:
            raise ValueError("hidden must be heads times a multiple of 8")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError("the latent's height and width must be multiples of the patch")
        counts = (self.window, self.largest_size, self.stem_depth, self.between, self.compositions)
        if min(counts) < 0:
            raise ValueError(
                "window, largest_size, stem_depth, between and compositions must not be negative"
            )
        if max(self.depth, self.stem_depth, self.between) > MOST_BLOCKS:
            raise ValueError(f"there must be at most {MOST_BLOCKS} blocks of each kind")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.channels, self.height, self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        return self.height // self.patch, self.width // self.patch


PLACES = 64.0  # frames: index over this is told like a time, which keeps neighbours well apart

Attend = Callable[[Tensor, Tensor, Tensor, Plan], Tensor]


@dataclass(frozen=True)
class Context:
    """What every block needs to know of an evaluation."""

    layout: Layout
    rotation: tuple[Tensor, Tensor]  # of queries and keys, by the place of each token
    prompt_S1V: Tensor  # tokens of all prompts, in the order of evaluation
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
        memory, awake_R = context.memory, context.layout.awake_R
        if memory is not None:
            k = memory.whole(f"{self.name}.k", k, awake_R)
            v = memory.whole(f"{self.name}.v", v, awake_R)
        return context.attend(q, k, v, context.layout.within)

    def _cross_attention(self, x_RPD: Tensor, context: Context) -> Tensor:
        q = self.prompt_q(layer_norm(x_RPD)).unflatten(-1, (self.heads, -1))
        k, v = self.prompt_kv(context.prompt_S1V).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return context.attend(layer_norm(q), layer_norm(k), v, context.layout.to_prompt)


class Transformer(VideoNetwork):
    """The stem, the blocks, and the heads that say velocity, missing frames and sizes."""

    block_type: type[Block] = Block
    config: TransformerConfig

    def __init__(self, config: TransformerConfig, shift: float) -> None:
        """``shift`` is the process's, of the denoising progress."""
        super().__init__()
        self.config, self.shift = config, shift
        width, (rows, columns) = config.hidden, config.grid
        self.stem = Stem(
            config.channels, config.stem_channels, config.stem_depth, config.patch, width
        )
        self.in_between = (
            InBetween(config.channels, config.stem_channels, config.between, width)
            if config.between
            else None
        )
        self.row_place = nn.Parameter(torch.randn(rows, 1, width) * 0.02)
        self.column_place = nn.Parameter(torch.randn(1, columns, width) * 0.02)
        self.clip_row = nn.Parameter(torch.randn(self.tokens_per_frame, width) * 0.02)
        self.frame_token = None if config.pooled else nn.Parameter(torch.randn(width) * 0.02)
        self.gaps = Gaps(width) if config.pooled else None
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
        self.compositions = (
            Compositions(width, config.compositions, config.largest_size)
            if config.compositions
            else None
        )
        self._start()
        self.attend: Attend = attend
        self._layouts: dict[object, Layout] = {}  # the last one, by what it was made of

    def _start(self) -> None:
        """First weights: roles and places small, gates closed, laws flat."""
        nn.init.normal_(self.frame_role.weight, std=0.02)
        nn.init.normal_(self.clip_role.weight, std=0.02)
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.02)
        zero_init(self.modulation, self.final, self.size)
        zero_init(self.log_missing, self.log_missing_first, self.image_token)

    def hidden_matrices(self) -> list[Tensor]:
        heads: list[nn.Module] = [self.final, self.size, self.log_missing, self.log_missing_first]
        heads += [self.image_token, *([self.compositions] if self.compositions else [])]
        return hidden_matrices(self, heads)

    @property
    def tokens_per_frame(self) -> int:
        rows, columns = self.config.grid
        return rows * columns + (not self.config.pooled)

    def sampling_bytes(
        self, frames: int, latent_shape: tuple[int, int, int], dtype: torch.dtype
    ) -> float:
        config, (_, height, width) = self.config, latent_shape
        stem = height * width * config.stem_channels
        tokens = self.tokens_per_frame
        return sampling_bytes(frames, tokens, config.hidden, config.depth, stem, dtype)

    def blocks(self) -> Iterator[nn.Module]:
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
        if self.compositions is not None:
            self.compositions = self.compositions.grown(largest_size)
        self.config = replace(self.config, largest_size=largest_size)
        return self.config

    def forward(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None = None
    ) -> Prediction:
        """Velocity, log-missing and size logits, float32, in the order of the state.

        Frames that rest get a velocity of 0, which moves nothing.
        """
        layout, memory = self._laid_out(state, prompt, rest)
        evaluated = _evaluated(state, layout)
        tokens = _in_order(prompt, layout.order)
        neighbours = Neighbours.of(layout, memory)
        told_RD = self._time_and_role(evaluated, layout)

        condition_RD = self._condition(told_RD, tokens, layout)
        patch_FHWD, features = self.stem.to_patches(
            evaluated.latent_FCHW, condition_RD[layout.frame_rows], neighbours
        )
        image_token_BV = self._image_token(evaluated, patch_FHWD, layout, memory)

        tokens = _with_image(tokens, image_token_BV.detach())  # it is taught by words alone
        condition_RD = self._condition(told_RD, tokens, layout)
        x_RPD = self._embedded(patch_FHWD, layout)
        x_RPD = self._transformed(x_RPD, condition_RD, tokens, evaluated, layout, memory)

        patch_FPD, gap_FD, first_BD, clip_BD = self._read(x_RPD, layout, memory)
        log_missing_F, first_B, size_BK = self._laws(gap_FD, first_BD, clip_BD)
        patch_FHWD = patch_FPD.reshape(patch_FHWD.shape)
        condition_FD = condition_RD[layout.frame_rows]
        velocity_FCHW = self.stem.to_velocity(patch_FHWD, features, condition_FD, neighbours)
        if self.in_between is not None:
            velocity_FCHW = self._pulled(velocity_FCHW, state, condition_FD, layout)
        prediction = Prediction(velocity_FCHW, log_missing_F, first_B, size_BK, image_token_BV)
        if self.compositions is not None and layout.awake_F is None:
            prediction = replace(
                prediction,
                gap_BG2H=self._gap_features(gap_FD, first_BD, evaluated),
                tables=self.compositions.tables,
            )
        return _in_state_order(prediction, state, layout)

    def _laid_out(
        self, state: FrameState, prompt: PromptTokens, rest: Rest | None
    ) -> tuple[Layout, Memory | None]:
        """The layout of this evaluation, kept since steps may repeat it, and what is remembered."""
        token_counts = tuple(n + 1 for n in prompt.lengths)  # the image token, too
        order = evaluation_order(state.lengths, token_counts)
        memory, resting = enter(rest, state.lengths, order)
        finished = None  # where nothing of the layout depends on it
        if rest is not None and (resting or self.in_between is not None):
            finished = tuple(rest.finished_F.tolist())

        device, window = state.latent_FCHW.device, self.config.window
        made_of = (state.lengths, token_counts, finished, resting, device)
        if made_of not in self._layouts:
            layout = make_layout(state.lengths, token_counts, window, finished, resting=resting)
            self._layouts = {made_of: to_device(layout, device)}
        return self._layouts[made_of], memory

    def _time_and_role(self, evaluated: FrameState, layout: Layout) -> Tensor:
        """Each row's own input, ``[R, D]``."""
        time_R = layout.rows(evaluated.tau_B.clamp(0, 1), evaluated.time_F)
        clip_BD = self.clip_role(evaluated.open_first_B.long())
        role_RD = layout.rows(clip_BD, self.frame_role(evaluated.role_F))
        told_RD: Tensor = self.time(timestep_embedding(time_R)) + role_RD
        if self.place is None:
            return told_RD
        index_R = layout.index_R
        if evaluated.index_F is not None and evaluated.total_B is not None:
            index_R = layout.rows(evaluated.total_B, evaluated.index_F)  # the clip's own: how many
        place_RD: Tensor = self.place(timestep_embedding(index_R.clamp(min=0) / PLACES))
        return told_RD + place_RD.to(told_RD.dtype) * (index_R >= 0)[:, None]

    def _condition(self, told_RD: Tensor, tokens: Sequence[Tensor], layout: Layout) -> Tensor:
        """What each row is told of itself and, by the sum of its tokens, of its clip's prompt."""
        sums = [token_SV.sum(0) / max(len(token_SV), 1) ** 0.5 for token_SV in tokens]
        prompt_BD = self.prompt_sum(torch.stack(sums))
        return F.silu(told_RD + prompt_BD[layout.clip_R])

    def _image_token(
        self, evaluated: FrameState, patch_FHWD: Tensor, layout: Layout, memory: Memory | None
    ) -> Tensor:
        """What the given frames of each clip show, ``[B, V]``; 0 without any."""
        if memory is not None and memory.image_token_BV is not None:
            return memory.image_token_BV
        shown_FD = F.silu(self.image_read(patch_FHWD)).mean((1, 2)).float()
        given_F1 = evaluated.given_F.float()[:, None]
        clip_F = layout.clip_R[layout.frame_rows]
        zero_BD = shown_FD.new_zeros(len(layout.order), shown_FD.shape[1])
        sum_BD = zero_BD.index_add(0, clip_F, given_F1 * shown_FD)
        token_BV: Tensor = self.image_token(layer_norm(sum_BD)).float()
        if memory is not None:
            memory.image_token_BV = token_BV
        return token_BV

    def _embedded(self, patch_FHWD: Tensor, layout: Layout) -> Tensor:
        """Tokens of all rows ``[R, P, D]``, in the dtype of the patches."""
        patch_FPD = (patch_FHWD + (self.row_place + self.column_place)).flatten(1, 2)
        if self.frame_token is not None:
            token_F1D = self.frame_token.expand(len(patch_FPD), 1, -1)
            patch_FPD = torch.cat([token_F1D, patch_FPD], dim=1)
        clip_BPD = self.clip_row.expand(len(layout.order), -1, -1)
        return layout.rows(clip_BPD, patch_FPD).to(patch_FHWD.dtype)

    def _transformed(
        self,
        x_RPD: Tensor,
        condition_RD: Tensor,
        tokens: Sequence[Tensor],
        evaluated: FrameState,
        layout: Layout,
        memory: Memory | None,
    ) -> Tensor:
        """All tokens after all blocks, normalised."""
        modulation_R16D = self.modulation(condition_RD).unflatten(-1, (1, 6, -1)).to(x_RPD.dtype)
        cosine, sine = self._rotation(_index(evaluated, layout))
        rotation = cosine.to(x_RPD.dtype), sine.to(x_RPD.dtype)
        context = Context(layout, rotation, torch.cat(list(tokens))[:, None], self.attend, memory)
        for block in self.layers:
            if self.checkpoint_blocks and self.training:
                x_RPD = checkpoint(block, x_RPD, modulation_R16D, context, use_reentrant=False)
            else:
                x_RPD = block(x_RPD, modulation_R16D, context)
        shift, scale = self.final(condition_RD)[:, None].to(x_RPD.dtype).chunk(2, dim=-1)
        return adaln(x_RPD, shift, scale)

    def _rotation(self, index_R: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the places of all tokens.

        A clip's row lies before its frames, and a row's own token in the middle of its patches.
        """
        device = index_R.device
        rows, columns = (torch.arange(count, device=device).float() for count in self.config.grid)
        middle_12 = torch.stack([rows.mean(), columns.mean()])[None]
        place_P2 = torch.cartesian_prod(rows, columns)
        if not self.config.pooled:
            place_P2 = torch.cat([middle_12, place_P2])

        index_RP1 = index_R.float()[:, None, None].expand(-1, len(place_P2), 1)
        place_RP2 = place_P2.expand(len(index_RP1), -1, -1)
        position_RPA = torch.cat([index_RP1, place_RP2], dim=-1)
        return rotary(position_RPA, self.config.hidden // self.config.heads)

    def _read(
        self, x_RPD: Tensor, layout: Layout, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches of frames; and float32 what laws are read from.

        Of gaps right of frames ``[F, D]``, of those before first frames and of clips ``[B, D]``.
        """
        frame_FPD, clip_BD = x_RPD[layout.frame_rows], x_RPD[layout.clip_rows, 0].float()
        if self.gaps is None:
            return frame_FPD[:, 1:], frame_FPD[:, 0].float(), clip_BD, clip_BD
        gap_RD = self.gaps(x_RPD, layout, memory)
        return frame_FPD, gap_RD[layout.frame_rows], gap_RD[layout.clip_rows], clip_BD

    def _laws(
        self, gap_FD: Tensor, first_BD: Tensor, clip_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-missing after frames and before the first, logits of sizes; float32 throughout.

        In bfloat16 a logit near 12 would move in steps of .06.
        """
        with torch.autocast(clip_BD.device.type, enabled=False):
            log_missing_F: Tensor = self.log_missing(gap_FD)[:, 0]
            first_B: Tensor = self.log_missing_first(first_BD)[:, 0]
            size_BK: Tensor = self.size(clip_BD)
        return log_missing_F, first_B, size_BK

    def _gap_features(self, gap_FD: Tensor, first_BD: Tensor, state: FrameState) -> Tensor:
        """``[B, G, 2H]`` in float32, as all laws."""
        assert self.compositions is not None
        with torch.autocast(gap_FD.device.type, enabled=False):
            gap_BG2H: Tensor = self.compositions(
                gap_FD, first_BD, state.open_F, state.open_first_B, state.lengths
            )
        return gap_BG2H

    def _pulled(
        self, velocity_FCHW: Tensor, state: FrameState, condition_FD: Tensor, layout: Layout
    ) -> Tensor:
        """Velocities of the frames evaluated, pulled towards the in-between prior."""
        assert self.in_between is not None
        own = layout.between_F
        if own is None:  # training, where none rests: the device is asked
            own = between(state)[layout.place_F].nonzero().flatten()
        place = layout.place_F[own]
        pulled_FCHW: Tensor = self.in_between(
            velocity_FCHW[own],
            state.latent_FCHW[place],
            shifted(state.time_F[place], self.shift),
            condition_FD[own],
            state.latent_FCHW[place - 1],
            state.latent_FCHW[place + 1],
        )
        return velocity_FCHW.index_copy(0, own, pulled_FCHW)


def _evaluated(state: FrameState, layout: Layout) -> FrameState:
    """The frames that are evaluated, in the order of evaluation."""
    order_B, place_F = layout.order_B, layout.place_F
    return FrameState(
        latent_FCHW=state.latent_FCHW[place_F],
        time_F=state.time_F[place_F],
        role_F=state.role_F[place_F],
        tau_B=state.tau_B[order_B],
        open_first_B=state.open_first_B[order_B],
        lengths=layout.lengths,
        index_F=None if state.index_F is None else state.index_F[place_F],
        total_B=None if state.total_B is None else state.total_B[order_B],
    )


def _index(evaluated: FrameState, layout: Layout) -> Tensor:
    """Of each row in its clip: as planned, else among the visible frames; -1 of clips' rows."""
    if evaluated.index_F is None:
        return layout.index_R
    planned_R = layout.rows(torch.full_like(evaluated.tau_B, -1).long(), evaluated.index_F)
    return torch.where(planned_R >= 0, planned_R, layout.index_R)


def _in_state_order(prediction: Prediction, state: FrameState, layout: Layout) -> Prediction:
    """A prediction of the frames that were evaluated as one of the whole state."""

    def of_all(x_F: Tensor) -> Tensor:
        zero_F = x_F.new_zeros(len(state.time_F), *x_F.shape[1:])
        return zero_F.index_copy(0, layout.place_F, x_F)

    assert prediction.image_token_BV is not None
    gap_BG2H = prediction.gap_BG2H
    return replace(
        prediction,
        velocity_FCHW=of_all(prediction.velocity_FCHW),
        log_missing_F=of_all(prediction.log_missing_F),
        log_missing_first_B=prediction.log_missing_first_B[layout.back_B],
        size_logits_BK=prediction.size_logits_BK[layout.back_B],
        image_token_BV=prediction.image_token_BV[layout.back_B],
        gap_BG2H=None if gap_BG2H is None else gap_BG2H[layout.back_B],
    )


def _in_order(prompt: PromptTokens, order: Sequence[int]) -> list[Tensor]:
    """The tokens of each clip's prompt, the clips in this order."""
    tokens = prompt.token_SD.split(list(prompt.lengths))
    return [tokens[b] for b in order]


def _with_image(tokens: Sequence[Tensor], image_token_BV: Tensor) -> list[Tensor]:
    """The tokens of each prompt and, at their end, the image token of its clip."""
    images = image_token_BV.to(tokens[0].dtype)[:, None]
    return [torch.cat(pair) for pair in zip(tokens, images, strict=True)]
