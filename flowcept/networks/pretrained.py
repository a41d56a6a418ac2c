"""Pretrained video transformers of diffusers (LTX-Video, Wan, SkyReels-V2) as our networks.

The transformer itself stays as diffusers built it; hooks and attention processors, which it offers
to everyone, do the rest. What is unusual here:

* A frame is an entry of its batch, with one noise level. Which entries form a clip only attention
  knows: it works by a plan, as everywhere in this package, so nothing is padded.
* Role, clock, an open first gap, and that a frame is a keyframe beside the clip, are told at the
  output of the time embedder, by embeddings that start at zero. So at first the velocity is exactly
  the pretrained one.
* Every frame gets one token more, which reads its clip and is read by none; laws are read from it.

Its velocity is noise - data, ours data - noise; its noise level is 1 - denoising progress.

Shape suffixes: F frames, B clips, C H W a latent, P patches of a frame, T = P + 1 its tokens, D
width, N heads, E head width, S prompt tokens, V their width, K sizes, A axes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.errors import UserError
from flowcept.networks.attention import Plan, attend, integers, make_plan
from flowcept.networks.base import VideoNetwork
from flowcept.networks.layers import TIME_WAVES, layer_norm, timestep_embedding, zero_init
from flowcept.networks.layout import runs_of, to_device
from flowcept.process.forward import shifted
from flowcept.process.state import FrameState, Prediction, PromptTokens, Rest

Attend = Callable[[Tensor, Tensor, Tensor, Plan], Tensor]

LTX, WAN = "LTXVideoTransformer3DModel", "WanTransformer3DModel"
SKYREELS = "SkyReelsV2Transformer3DModel"  # Wan's, but for rates and whole noise levels
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of every attention
NOISE_LEVELS = 1000  # of noise alone, as these transformers count
WAN_PERIOD = 10000.0  # tokens: the slowest rotary wave of Wan
WAN_TOKENS = 512  # of a prompt: Wan learned prompts with zeros up to here, and attends to them
SKYREELS_SLOW = 16.0  # frames a second: of the two rates that SkyReels-V2 knows; else it is 24
# Bytes that an evaluation takes for each number of a token, in float32 and in half precision:
# counted on tensors without contents for real widths, 4 and 8 blocks, 7,000 to 51,000 tokens.
COUNTED = {"ltx": (61, 42), "wan": (68, 35)}
ROUNDING = 3e-4  # of a noise level: float32 is off by up to 1e-4, and whole ones must stay


@dataclass(frozen=True)
class BackboneConfig:
    """A pretrained transformer and what is added to it. Part of every model file."""

    source: str  # the class of diffusers
    source_config: str  # the JSON text of its settings, no paths
    channels: int  # of a latent
    height: int  # of a latent
    width: int  # of a latent
    text_width: int  # of a prompt token
    pictures_per_latent: int  # of the codec
    compression: int  # of the codec: pixels along the side of a latent cell
    fps: float = 25.0  # pictures a second: LTX-Video places frames in seconds
    first_picture: bool = False  # it places a frame at its first picture, as of 0.9.5; else evenly
    largest_size: int = 64  # largest number of generated frames in a clip that can be predicted
    lora: int = 0  # rank of what is learned beside the transformer's own weights; 0: those learn

    def __post_init__(self) -> None:
        if self.source not in (LTX, WAN, SKYREELS):
            known = ", ".join((LTX, WAN, SKYREELS))
            raise ValueError(f"unknown pretrained network {self.source!r}; use one of {known}")
        sizes = (self.channels, self.height, self.width, self.text_width, self.largest_size)
        counts = (*sizes, self.pictures_per_latent, self.compression, self.lora + 1)
        if min(counts) < 1 or self.fps <= 0:
            raise ValueError("the sizes of a pretrained network must be positive")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError("the latent's height and width must be multiples of the patch")

    @property
    def settings(self) -> dict[str, Any]:
        """The transformer's own settings."""
        read: dict[str, Any] = json.loads(self.source_config)
        return read

    @property
    def patch(self) -> int:
        """Latent cells along each side of a patch."""
        return 1 if self.source == LTX else int(self.settings.get("patch_size", [1, 2, 2])[-1])

    @property
    def hidden(self) -> int:
        """Width of a token."""
        settings = self.settings
        return int(settings["num_attention_heads"] * settings["attention_head_dim"])

    @property
    def depth(self) -> int:
        """Blocks."""
        return int(self.settings["num_layers"])

    @property
    def stem_channels(self) -> int:
        """Of convolutions at the latent's own resolution: there are none."""
        return 0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.channels, self.height, self.width


def check_settings(source: str, settings: dict[str, Any]) -> None:
    """Raise ``UserError`` for transformers of a known class that need more than latent and prompt.

    That is: latents of several frames a patch, a picture beside the latent, or causal attention.
    """
    sizes = settings.get("patch_size", 1)
    sizes = [settings.get("patch_size_t", 1), sizes, sizes] if source == LTX else list(sizes)
    if sizes[0] != 1 or sizes[1] != sizes[2] or (source == LTX and sizes[1] != 1):
        raise UserError(f"a {source} of patches {sizes} is not supported")
    out = settings.get("out_channels") or settings["in_channels"]
    if settings.get("image_dim") or settings.get("added_kv_proj_dim"):
        raise UserError(f"this {source} needs a picture beside each clip: take a text-to-video one")
    if out != settings["in_channels"]:
        raise UserError(f"this {source} reads more than a clip: take a text-to-video one")
    if settings.get("num_frame_per_block", 1) != 1:
        raise UserError(f"this {source} makes a clip block by block, which is not supported")


def build_transformer(config: BackboneConfig) -> Any:  # noqa: ANN401 - an untyped library
    """The transformer with fresh weights; ``UserError`` where diffusers cannot make one."""
    try:
        import diffusers
    except ImportError as error:
        message = 'a pretrained network needs diffusers; install it by pip install ".[diffusers]"'
        raise UserError(message) from error
    check_settings(config.source, config.settings)
    try:
        made = getattr(diffusers, config.source).from_config(config.settings)
        if config.source != LTX and made.rope.freqs_cos.is_meta:  # no file holds this table
            shape = (made.config.attention_head_dim, made.config.patch_size)
            with torch.device("cpu"):
                made.rope = type(made.rope)(*shape, made.config.rope_max_seq_len)
        return made
    except Exception as error:  # the settings may come from any file and raise anything within
        why = str(error).partition("\n")[0]
        raise UserError(f"the settings of this {config.source} are not usable: {why}") from error


def add_lora(transformer: Any, rank: int) -> None:  # noqa: ANN401
    """Add matrices of a low rank to a transformer's attention, which change nothing at first.

    Their scale is 1, so that a file without a word on scale is read right (arXiv 2106.09685).
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        message = 'training an adapter needs peft; install it by pip install ".[diffusers]"'
        raise UserError(message) from error
    targets = list(LORA_TARGETS)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


@dataclass(frozen=True)
class Pack:
    """Who is where in a pack of clips: all that follows from the numbers of frames and tokens."""

    clip_F: Tensor  # number of each frame's clip
    index_F: Tensor  # among the visible frames of its clip
    first_B: Tensor  # number of each clip's first frame
    within: Plan  # frames see the frames of their clip
    to_prompt: Plan  # and the tokens of its prompt

    @classmethod
    def of(cls, lengths: Sequence[int], token_counts: Sequence[int]) -> Pack:
        """Of clips of so many frames, with prompts of so many tokens, on the CPU."""
        frames = runs_of(lengths)
        return cls(
            clip_F=integers([clip for clip, run in enumerate(frames) for _ in run]),
            index_F=integers([index for run in frames for index in range(len(run))]),
            first_B=integers([run.start for run in frames]),
            within=make_plan(frames, frames),
            to_prompt=make_plan(frames, runs_of(token_counts)),
        )


@dataclass(frozen=True)
class Evaluation:
    """What hooks and attention must know of one evaluation; recomputed blocks see the same."""

    pack: Pack
    told_FD: Tensor  # role, clock and first gap, for the time embedder
    token_FD: Tensor  # the tokens that read
    position_FTA: Tensor  # index, row and column of every token
    prompt_tokens: int  # of all prompts; beyond these the text is padding


class Backbone(VideoNetwork):
    """A transformer of diffusers, told of roles and clock, and read for missing frames and sizes.

    ``transformer``, if given, has its weights already and the settings of ``config``.
    """

    config: BackboneConfig

    def __init__(
        self,
        config: BackboneConfig,
        shift: float,
        transformer: Any = None,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self.config, self.shift, self.grid = config, shift, config.patch
        self.transformer = build_transformer(config) if transformer is None else transformer
        width = config.hidden
        self.role = nn.Embedding(3, width)  # by Role
        self.first = nn.Embedding(2, width)  # first gap closed, open
        self.clock = nn.Linear(2 * TIME_WAVES, width)
        self.keyframe = nn.Parameter(torch.zeros(width))
        self.frame_token = nn.Parameter(torch.randn(width) * 0.02)
        self.frame_role = nn.Embedding(3, width)
        self.frame_first = nn.Embedding(2, width)
        self.log_missing = nn.Linear(width, 1)
        self.log_missing_first = nn.Linear(width, 1)
        self.size = nn.Linear(width, config.largest_size + 1)
        self._start()
        if config.lora:
            add_lora(self.transformer, config.lora)
        self.attend: Attend = attend
        self._now: Evaluation | None = None
        self._read_FD: Tensor | None = None  # the tokens that read, after the last block
        self._packs: dict[object, Pack] = {}  # the last one, by what it was made of
        self.block_by_block = False  # whether blocks come to the device one after another
        self._works_on: torch.device | None = None  # the device that they come to
        self._hook()

    def _start(self) -> None:
        """First weights: the transformer gets no extra input, laws are flat."""
        nn.init.normal_(self.frame_role.weight, std=0.02)
        nn.init.normal_(self.frame_first.weight, std=0.02)
        nn.init.zeros_(self.role.weight)
        nn.init.zeros_(self.first.weight)
        zero_init(self.clock, self.log_missing, self.log_missing_first, self.size)

    def _hook(self) -> None:
        """Attach what is added; no weight or module of the transformer is replaced."""
        inner, is_ltx = self.transformer, self.config.source == LTX
        embedder = inner.time_embed.emb if is_ltx else inner.condition_embedder.time_embedder
        embedder.register_forward_hook(self._told)
        next(self.blocks()).register_forward_pre_hook(self._appended, with_kwargs=True)
        inner.norm_out.register_forward_pre_hook(self._cut)
        if not is_ltx:
            inner.rope.register_forward_hook(self._rotation)
        inner.set_attn_processor(PlannedAttention(self))

    @property
    def tokens_per_frame(self) -> int:
        return self.config.height * self.config.width // self.config.patch**2 + 1

    def sampling_bytes(
        self, frames: int, latent_shape: tuple[int, int, int], dtype: torch.dtype
    ) -> float:
        _, height, width = latent_shape
        tokens = height * width // self.config.patch**2 + 1
        full, half = COUNTED["ltx" if self.config.source == LTX else "wan"]
        bytes_each = full if dtype == torch.float32 else half
        return float(frames * tokens * self.config.hidden * bytes_each)

    def blocks(self) -> Iterator[nn.Module]:
        inner = self.transformer
        yield from inner.transformer_blocks if self.config.source == LTX else inner.blocks

    def compile_blocks(self, **options: Any) -> None:  # noqa: ANN401 - torch.compile's own
        """Compile the blocks for packs of any lengths, with the options of ``torch.compile``.

        Attention stays out: its runs are other ones in every step.
        """
        self.attend = torch.compiler.disable(attend)
        for block in self.blocks():
            block.compile(dynamic=True, **options)

    def bring_to(self, device: torch.device) -> None:
        """Bring the weights to the device; ``block_by_block`` the transformer's while they work."""
        if not self.block_by_block:
            super().bring_to(device)
        elif self._works_on != device:
            inner, self.transformer = self.transformer, None
            self.to(device)
            self.transformer, self._works_on = inner, device
            inner.enable_group_offload(
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=device.type == "cuda",  # the next block comes while one works
            )

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold the transformer's weights in a dtype, but for those that must stay precise."""
        precise = tuple(self.transformer._keep_in_fp32_modules or ())
        for name, weight in self.transformer.named_parameters():
            if not any(part in name.split(".") for part in precise):
                weight.data = weight.data.to(dtype)

    def hold_in_8_bits(self, dtype: torch.dtype) -> None:
        """Hold most of the transformer's weights in 8 bits; they compute in ``dtype``."""
        self.transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype
        )

    def learn(self, *, whole: bool = True) -> None:
        """Let all have gradients; with a rank of ``lora`` not the transformer's own weights."""
        super().learn()
        if self.config.lora or not whole:
            for name, parameter in self.transformer.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def at_rate(self, fps: float) -> BackboneConfig:
        self.config = replace(self.config, fps=fps)
        return self.config

    @torch.no_grad()
    def merge_lora(self) -> BackboneConfig:
        """Add what was learned beside the transformer's weights to them; the new settings."""
        if self.config.lora:
            self.transformer.fuse_lora()
            self.transformer.unload_lora()
            self.config = replace(self.config, lora=0)
        return self.config

    @torch.no_grad()
    def grow_law(self, largest_size: int) -> BackboneConfig:
        """Let the law of sizes reach further; new sizes start as the least likely known one."""
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
        """Velocity, log-missing and size logits, float32. Frames never rest here."""
        del rest
        recomputes = self.checkpoint_blocks and self.training
        if recomputes and not self.transformer.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        elif self.transformer.gradient_checkpointing and not recomputes:
            self.transformer.disable_gradient_checkpointing()

        text_SV, token_counts = self._text(prompt)
        pack = self._packed(state, token_counts)
        self._now = self._evaluation(state, pack, len(text_SV))
        with self._precision(state.latent_FCHW):
            noise_minus_data_FCHW = self._transformed(state, text_SV)
        assert self._read_FD is not None
        log_missing_F, first_B, size_BK = self._laws(self._read_FD, pack)
        self._read_FD = None
        if not recomputes:
            self._now = None
        return Prediction(-noise_minus_data_FCHW.float(), log_missing_F, first_B, size_BK)

    def _packed(self, state: FrameState, token_counts: tuple[int, ...]) -> Pack:
        """The pack of this evaluation, kept since steps may repeat it."""
        assert min(state.lengths) > 0, "a clip has a frame from its start on"
        device = state.latent_FCHW.device
        made_of = (state.lengths, token_counts, device)
        if made_of not in self._packs:
            pack = Pack.of(state.lengths, token_counts)
            self._packs = {made_of: to_device(pack, device)}
        return self._packs[made_of]

    def _evaluation(self, state: FrameState, pack: Pack, prompt_tokens: int) -> Evaluation:
        """What is told of each frame, and where its tokens are."""
        role_F, first_F = state.role_F, state.open_first_B.long()[pack.clip_F]
        clock_BD = self.clock(timestep_embedding(state.tau_B.clamp(0, 1)))
        told_FD = self.role(role_F) + self.first(first_F) + clock_BD[pack.clip_F]
        return Evaluation(
            pack=pack,
            told_FD=told_FD + _keyframe_F(state)[:, None] * self.keyframe,
            token_FD=self.frame_token + self.frame_role(role_F) + self.frame_first(first_F),
            position_FTA=self._positions(state, pack),
            prompt_tokens=prompt_tokens,
        )

    def _positions(self, state: FrameState, pack: Pack) -> Tensor:
        """Index, row and column of every token; the one that reads is in the frame's middle."""
        index_F = self._indices(state, pack)
        size, patch, device = state.latent_FCHW.shape[2:], self.config.patch, index_F.device
        rows, columns = (torch.arange(side // patch, device=device).float() for side in size)
        middle_12 = torch.stack([rows.mean(), columns.mean()])[None]
        place_T2 = torch.cat([torch.cartesian_prod(rows, columns), middle_12])
        index_FT1 = index_F[:, None, None].expand(-1, len(place_T2), 1)
        return torch.cat([index_FT1, place_T2.expand(len(index_F), -1, -1)], dim=-1)

    def _indices(self, state: FrameState, pack: Pack) -> Tensor:
        """Where each frame stands in its clip, counted in latents, float32.

        A keyframe beside the clip is the last picture of the group to its left.
        """
        index_F = pack.index_F
        if state.index_F is not None:
            index_F = torch.where(state.index_F >= 0, state.index_F, index_F)
        if state.keyframe_F is None:
            return index_F.float()

        keyframe_F, group = state.keyframe_F.long(), self.config.pictures_per_latent
        before_F = keyframe_F.cumsum(0) - keyframe_F
        before_F = before_F - before_F[pack.first_B][pack.clip_F]
        own_F = (index_F - before_F - keyframe_F).clamp(min=0)
        late = (group - 1) / group if self.config.first_picture else 0.0
        return own_F + late * keyframe_F

    def _text(self, prompt: PromptTokens) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens of all prompts and how many each has; Wan's are filled up with zeros."""
        if self.config.source == LTX:
            return prompt.token_SD, prompt.lengths
        filled = [
            F.pad(token_SV, (0, 0, 0, WAN_TOKENS - len(token_SV)))
            for token_SV in prompt.token_SD.split(list(prompt.lengths))
        ]
        return torch.cat(filled), (WAN_TOKENS,) * len(filled)

    def _precision(self, like: Tensor) -> AbstractContextManager[object]:
        """Weights of half precision compute in it; float32 ones as the caller's autocast has it."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(like.device.type, enabled=False)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the transformer's blocks; time embedder and norms may be more precise."""
        dtype: torch.dtype = self.transformer.proj_out.weight.dtype
        return dtype

    def _transformed(self, state: FrameState, text_SV: Tensor) -> Tensor:
        """The transformer's output, ``[F, C, H, W]``."""
        assert self._now is not None
        latent_FCHW = state.latent_FCHW.to(self._dtype)
        noise_F = self._noise(state)
        # In as many rows as frames, as the transformers want text; attention ignores the rows.
        frames = len(latent_FCHW)
        padding = -len(text_SV) % frames
        text_FSV = F.pad(text_SV.to(self._dtype), (0, 0, 0, padding)).unflatten(0, (frames, -1))
        if self.config.source != LTX:
            arguments = (latent_FCHW[:, :, None], noise_F, text_FSV)
            said_FC1HW: Tensor = self.transformer(*arguments, **self._rate(frames))[0]
            return said_FC1HW[:, :, 0]

        said_FPC: Tensor = self.transformer(
            hidden_states=latent_FCHW.flatten(2).transpose(1, 2),
            encoder_hidden_states=text_FSV,
            timestep=noise_F,
            encoder_attention_mask=None,
            video_coords=self._seconds_and_pixels(self._now.position_FTA),
            return_dict=False,
        )[0]
        return said_FPC.transpose(1, 2).reshape(latent_FCHW.shape)

    def _rate(self, frames: int) -> dict[str, Any]:
        """What else Wan's kind of transformer is asked: SkyReels-V2 knows two rates."""
        if self.config.source == WAN:
            return {"return_dict": False}
        fast = int(self.config.fps != SKYREELS_SLOW)
        return {"return_dict": False, "fps": [fast] * frames}

    def _noise(self, state: FrameState) -> Tensor:
        """The noise level of each frame, as the transformer counts; of SkyReels-V2 a whole one."""
        noise_F = NOISE_LEVELS * (1 - self._progress(state).float())
        return (noise_F + ROUNDING).floor() if self.config.source == SKYREELS else noise_F

    def _seconds_and_pixels(self, position_FTA: Tensor) -> Tensor:
        """Where LTX-Video finds tokens, ``[F, A, T]``: in seconds, and in pixels down and right."""
        index_FT, place_FTA = position_FTA[..., 0], position_FTA[..., 1:]
        group = self.config.pictures_per_latent
        picture_FT = index_FT * group
        if self.config.first_picture:
            picture_FT = (picture_FT + 1 - group).clamp(min=0)
        second_FT1 = (picture_FT / self.config.fps)[..., None]
        return torch.cat([second_FT1, place_FTA * self.config.compression], dim=-1).transpose(1, 2)

    def _progress(self, state: FrameState) -> Tensor:
        """The denoising progress of each frame."""
        if state.progress_F is not None:
            return state.progress_F
        return shifted(state.time_F, self.shift)

    def _told(self, module: nn.Module, inputs: object, time_FD: Tensor) -> Tensor:
        """The embedded noise levels, with each frame's other inputs."""
        del module, inputs
        assert self._now is not None
        return time_FD + self._now.told_FD.to(time_FD.dtype)

    def _appended(
        self, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The first block's inputs with each frame's own token after its patches."""
        del block
        assert self._now is not None
        token_F1D = self._now.token_FD[:, None]

        def appended(x_FPD: Tensor) -> Tensor:
            return torch.cat([x_FPD, token_F1D.to(x_FPD.dtype)], dim=1)

        if inputs:
            return (appended(inputs[0]), *inputs[1:]), named
        return inputs, {**named, "hidden_states": appended(named["hidden_states"])}

    def _cut(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Patches alone, for the transformer's end; the frames' own tokens are kept."""
        del module
        self._read_FD = inputs[0][:, -1]
        return (inputs[0][:, :-1],)

    def _rotation(
        self, module: nn.Module, inputs: object, table: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Wan's rotation of every token, by its frame's own index."""
        del module, inputs
        assert self._now is not None
        head_width = self.config.hidden // self.config.settings["num_attention_heads"]
        cosine, sine = wan_rotary(self._now.position_FTA, head_width)
        return cosine.to(table[0].dtype), sine.to(table[1].dtype)

    def _laws(self, read_FD: Tensor, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
        """Log-missing after frames and before the first, logits of sizes; float32 throughout."""
        with torch.autocast(read_FD.device.type, enabled=False):
            frame_FD = layer_norm(read_FD.float())
            zero_BD = frame_FD.new_zeros(len(pack.first_B), frame_FD.shape[1])
            sum_BD = zero_BD.index_add(0, pack.clip_F, frame_FD)
            count_B = zero_BD[:, 0].index_add(0, pack.clip_F, torch.ones_like(frame_FD[:, 0]))
            log_missing_F: Tensor = self.log_missing(frame_FD)[:, 0]
            first_B: Tensor = self.log_missing_first(frame_FD[pack.first_B])[:, 0]
            size_BK: Tensor = self.size(sum_BD / count_B[:, None])
        return log_missing_F, first_B, size_BK


def _keyframe_F(state: FrameState) -> Tensor:
    """1 where a frame is a keyframe beside its clip, else 0."""
    if state.keyframe_F is None:
        return torch.zeros_like(state.time_F)
    return state.keyframe_F.to(state.time_F)


class PlannedAttention:
    """Attention of a diffusers transformer by the plans of the evaluation that is under way.

    Patches and a frame's own token ask; only patches are seen.
    """

    def __init__(self, owner: Backbone) -> None:
        self.owner = owner

    def __call__(
        self,
        attention: Any,  # noqa: ANN401 - a module of diffusers
        x_FTD: Tensor,
        text: Tensor | None = None,
        mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Heads, put together again; ``text`` makes it cross-attention."""
        del mask  # nothing is padded
        now = self.owner._now
        assert now is not None
        if text is None:
            seen, plan = x_FTD[:, :-1], now.pack.within
        else:
            seen, plan = text.flatten(0, 1)[: now.prompt_tokens, None], now.pack.to_prompt

        heads = (attention.heads, -1)
        q_FTNE = attention.norm_q(attention.to_q(x_FTD)).unflatten(-1, heads)
        k_RPNE = attention.norm_k(attention.to_k(seen)).unflatten(-1, heads)
        v_RPNE = attention.to_v(seen).unflatten(-1, heads)
        if rotation is not None:
            q_FTNE, k_RPNE = placed(q_FTNE, rotation), placed(k_RPNE, rotation)
        y_FTNE = self.owner.attend(q_FTNE, k_RPNE, v_RPNE, plan)
        y_FTD: Tensor = attention.to_out[0](y_FTNE.flatten(2))
        dropped: Tensor = attention.to_out[1](y_FTD)
        return dropped


def placed(x_FTNE: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys turned by their places, of which there may be more at the end.

    LTX-Video has a rotation of whole tokens, Wan one of each head.
    """
    _, tokens, heads, _ = x_FTNE.shape
    cosine, sine = (
        part.unflatten(-1, (heads, -1)) if part.ndim == 3 else part for part in rotation
    )
    return turned(x_FTNE, cosine[:, :tokens], sine[:, :tokens])


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each pair of neighbouring features turned by its angle, of which both have a copy."""
    left, right = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack([-right, left], dim=-1).flatten(-2)
    return (x.float() * cosine + across * sine).to(x.dtype)


def wan_rotary(position_FTA: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[F, T, 1, E]`` of Wan's rotary positions; indices may be any numbers."""
    side = 2 * (head_width // 6)
    widths = (head_width - 2 * side, side, side)
    precise = torch.float32 if position_FTA.device.type == "mps" else torch.float64
    angles = []
    for axis, width in enumerate(widths):
        power = torch.arange(0, width, 2, dtype=precise, device=position_FTA.device) / width
        angles.append(position_FTA[..., axis, None].to(precise) * WAN_PERIOD**-power)
    angle_FT1E = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)[:, :, None]
    return angle_FT1E.cos().float(), angle_FT1E.sin().float()
