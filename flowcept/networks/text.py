"""Prompts as tokens for cross-attention.

``ByteEncoder``, trained with the network, knows any language without a vocabulary or a download.
Every word is a token: its embedding, found by a hash of the word, goes to the network as it is.
What a small transformer reads in the UTF-8 bytes (spelling, order) is added. Nothing normalises the
sum: the transformer alone, normalised, lost all difference between prompts in the direction that
they have in common (``docs/archive``). ``PretrainedEncoder`` is a frozen T5 or CLIP from a local
folder; recipes.py has those that pretrained video models were taught with. ``NoEncoder`` is that of
models to which words mean nothing. ``StoredPrompts`` stands for a frozen encoder where prompts were
encoded before.

Shape suffixes: B prompts, L bytes, R tokens of a prompt, S of all, T = R + L, D width.
"""

import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flowcept.errors import UserError
from flowcept.networks.layers import MOST_BLOCKS
from flowcept.networks.recipes import RECIPES, RecipeEncoder
from flowcept.process.state import PromptTokens

FROZEN = ("pretrained", *RECIPES)  # kinds that stay outside of model files


@dataclass(frozen=True)
class TextConfig:
    """The prompt encoder. Part of every model file."""

    kind: str = "bytes"  # bytes; pretrained: a frozen encoder from `source`; none; or a recipe
    width: int = 192  # width of the byte transformer, or of the pretrained encoder's output
    depth: int = 3  # its blocks
    heads: int = 3
    tokens: int = 16  # per prompt, a word each; words beyond share the last
    buckets: int = 4096  # embeddings of words, by hash; few words of a data set share one
    max_bytes: int = 256  # a longer prompt is cut, with a warning
    source: str = ""  # the pretrained encoder's folder, or its name on a hub with the commit

    def __post_init__(self) -> None:
        if self.kind not in ("bytes", "none", *FROZEN):
            raise ValueError(f"unknown prompt encoder {self.kind!r}: use bytes, pretrained or none")
        if min(self.width, self.depth, self.heads, self.tokens, self.buckets, self.max_bytes) < 1:
            raise ValueError("the prompt encoder's sizes must be positive")
        if self.kind != "none" and self.width % (2 * self.heads):
            raise ValueError("text width must be a multiple of twice the heads")
        if self.depth > MOST_BLOCKS:
            raise ValueError(f"there must be at most {MOST_BLOCKS} blocks")


class ByteEncoder(nn.Module):
    """Embeddings of words, and a transformer over bytes that adds to them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.buckets, config.width)
        self.byte = nn.Embedding(256, config.width)
        self.place = nn.Parameter(torch.randn(config.max_bytes, config.width) * 0.02)
        self.readout = nn.Parameter(torch.randn(config.tokens, config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.blocks = nn.TransformerEncoder(
            layer, config.depth, norm=nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.added = nn.Linear(config.width, config.width, bias=False)
        nn.init.normal_(self.byte.weight, std=0.02)
        nn.init.normal_(self.added.weight, std=0.03 * config.width**-0.5)

    @torch.no_grad()
    def know(self, words: Iterable[str]) -> None:
        """Keep the embeddings of these words; those of all others become and stay nothing."""
        kept = {word_bucket(word, self.config.buckets) for word in words}
        unknown = [bucket for bucket in range(self.config.buckets) if bucket not in kept]
        self.word.weight[unknown] = 0

    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        """Tokens of each prompt; equal prompts are encoded once."""
        unique = sorted(set(prompts))
        codes = [self._cut(prompt) for prompt in unique]
        token_BRD = self._words(codes) + self.added(self._read(codes))
        rows = torch.tensor([unique.index(prompt) for prompt in prompts], device=token_BRD.device)
        return PromptTokens(token_BRD[rows].flatten(0, 1), (self.config.tokens,) * len(prompts))

    def _words(self, codes: Sequence[bytes]) -> Tensor:
        """Embeddings of words in their places ``[B, R, D]``; 0 where there is no word."""
        most, device = self.config.tokens, self.readout.device
        found = [
            (row, min(place, most - 1), word_bucket(word, self.config.buckets))
            for row, code in enumerate(codes)
            for place, word in enumerate(words_of(code.decode("utf-8", errors="ignore")))
        ]
        rows, places, buckets = torch.tensor(found, device=device).view(-1, 3).long().unbind(1)
        word_BRD = torch.zeros(len(codes), most, self.config.width, device=device)
        return word_BRD.index_put((rows, places), self.word(buckets), accumulate=True)

    def _read(self, codes: Sequence[bytes]) -> Tensor:
        """What the transformer reads in the bytes, ``[B, R, D]``."""
        device = self.readout.device
        byte_BL = pad_sequence([torch.tensor([*code]).long() for code in codes], batch_first=True)
        longest, lengths = byte_BL.shape[1], torch.tensor([*map(len, codes)])
        beyond_BL = torch.arange(longest) >= lengths[:, None]
        hidden_BT = F.pad(beyond_BL, (self.config.tokens, 0), value=False).to(device)

        byte_BLD = self.byte(byte_BL.to(device)) + self.place[:longest]
        readout_BRD = self.readout.expand(len(codes), -1, -1)
        token_BTD = torch.cat([readout_BRD, byte_BLD], dim=1)
        output_BTD: Tensor = self.blocks(token_BTD, src_key_padding_mask=hidden_BT)
        return output_BTD[:, : self.config.tokens]

    def _cut(self, prompt: str) -> bytes:
        code, most = prompt.encode("utf-8", errors="replace"), self.config.max_bytes
        if len(code) > most:
            warnings.warn(f"a prompt of {len(code)} bytes is cut to its first {most}", stacklevel=4)
        return code[:most]


class PretrainedEncoder(nn.Module):
    """A frozen T5 or CLIP text encoder from a local folder (extra ``transformers``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        try:
            from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
        except ImportError as error:
            raise UserError(
                'this prompt encoder needs the package transformers: pip install ".[transformers]"'
            ) from error
        folder = Path(config.source)
        if not (folder / "config.json").is_file():
            raise UserError(f"no prompt encoder in {folder}: expected a folder with config.json")
        kind = CLIPTextModel if '"clip' in (folder / "config.json").read_text() else T5EncoderModel
        self.config = config
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.encoder = kind.from_pretrained(folder, local_files_only=True).eval()
        except Exception as error:  # the folder may hold anything
            why = str(error).partition("\n")[0]
            raise UserError(f"the prompt encoder in {folder} cannot be read: {why}") from error
        self.encoder.requires_grad_(requires_grad=False)
        width = int(self.encoder.config.hidden_size)
        if width != config.width:
            raise UserError(f"the prompt encoder in {folder} has width {width}, not {config.width}")

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Frozen weights stay in evaluation mode: their dropout is not for training others."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        device = next(self.encoder.parameters()).device
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        batch = self.tokenizer(list(prompts), **options).to(device)
        out_BLD = self.encoder(**batch).last_hidden_state
        kept_BL = batch["attention_mask"].bool()
        token_SD = F.layer_norm(out_BLD[kept_BL], (self.config.width,))
        return PromptTokens(token_SD, tuple(kept_BL.sum(1).tolist()))


class NoEncoder(nn.Module):
    """No token for any prompt."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        return PromptTokens(torch.zeros(0, self.config.width), (0,) * len(prompts))


class StoredPrompts(nn.Module):
    """A frozen encoder's embeddings of some prompts, stored elsewhere; it knows no others."""

    where: Tensor

    def __init__(self, config: TextConfig, token_of: Callable[[str], Tensor]) -> None:
        """``config`` is the encoder's; ``token_of`` gives the tokens ``[R, D]`` of a prompt."""
        super().__init__()
        self.config, self.token_of = config, token_of
        self.register_buffer("where", torch.zeros(()), persistent=False)

    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        parts = [self.token_of(prompt) for prompt in prompts]
        token_SD = torch.cat(parts).to(self.where.device, torch.float32)
        return PromptTokens(token_SD, tuple(map(len, parts)))


PromptEncoder = ByteEncoder | PretrainedEncoder | RecipeEncoder | NoEncoder | StoredPrompts


def build_encoder(config: TextConfig, folder: Path | None = None) -> PromptEncoder:
    """A prompt encoder with fresh weights, or the frozen one that the configuration names.

    Of a pretrained video model it lies in ``folder``, by default where the configuration says.
    """
    if config.kind == "none":
        return NoEncoder(config)
    if config.kind in RECIPES:
        return RecipeEncoder(config, folder)
    return ByteEncoder(config) if config.kind == "bytes" else PretrainedEncoder(config)


def words_of(text: str) -> list[str]:
    """The words of a prompt in lower case."""
    return re.findall(r"\w+", text.lower())


def word_bucket(word: str, buckets: int) -> int:
    """The embedding of a word, whatever its case."""
    return zlib.crc32(word.lower().encode("utf-8", errors="replace")) % buckets
