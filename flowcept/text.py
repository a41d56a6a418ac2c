"""Prompts as tokens for cross-attention.

``ByteEncoder`` is a small transformer over UTF-8 bytes, trained with the network: any language, no
vocabulary file, no download. Every byte also carries an embedding of its word, found by a hash of
the word: spelling alone was learned far too late (``docs/log.md``). A few learned tokens read the
bytes and alone go on, so every prompt becomes equally many tokens. ``PretrainedEncoder`` is a
frozen T5 or CLIP from a local folder.

Shape suffixes: B prompts, L bytes, R read-out tokens, S tokens of all prompts, D width.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from flowcept.errors import UserError
from flowcept.frames import PromptTokens


@dataclass(frozen=True)
class TextConfig:
    """The prompt encoder. Part of every model file."""

    kind: str = "bytes"  # bytes, or pretrained: a frozen encoder from `source`
    width: int = 192  # width of the byte transformer, or of the pretrained encoder's output
    depth: int = 3  # its blocks
    heads: int = 3
    tokens: int = 16  # read-out tokens per prompt
    buckets: int = 4096  # embeddings of words, by hash; few words of a data set share one
    max_bytes: int = 256  # a longer prompt is cut, with a warning
    source: str = ""  # folder of the pretrained encoder

    def __post_init__(self) -> None:
        if self.kind not in ("bytes", "pretrained"):
            raise ValueError(f"unknown prompt encoder {self.kind!r}: use bytes or pretrained")
        if (
            self.width % (2 * self.heads)
            or min(self.width, self.depth, self.tokens, self.buckets - 1) < 1
        ):
            raise ValueError("text width must be a positive multiple of twice the heads")


class ByteEncoder(nn.Module):
    """A transformer over the bytes of each prompt, read out by learned tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.byte = nn.Embedding(256, config.width)
        self.word = nn.Embedding(config.buckets, config.width)
        self.place = nn.Parameter(torch.randn(config.max_bytes, config.width) * 0.02)
        self.readout = nn.Parameter(torch.randn(config.tokens, config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            layer, config.depth, norm=nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        nn.init.normal_(self.byte.weight, std=0.02)
        nn.init.normal_(self.word.weight, std=0.1)

    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        """Tokens of each prompt; equal prompts are encoded once."""
        unique = sorted(set(prompts))
        read = [self._read(prompt) for prompt in unique]
        longest = max(len(data) for data, _, _ in read)
        device = self.readout.device
        byte_BL = torch.zeros(len(unique), longest, dtype=torch.long)
        word_BL, share_BL = torch.zeros_like(byte_BL), torch.zeros(len(unique), longest)
        for row, (data, words, shares) in enumerate(read):
            byte_BL[row, : len(data)] = torch.tensor(data, dtype=torch.long)
            word_BL[row, : len(data)] = torch.tensor(words, dtype=torch.long)
            share_BL[row, : len(data)] = torch.tensor(shares)
        lengths_B1 = torch.tensor([[len(data)] for data, _, _ in read])
        beyond_BL = torch.arange(longest)[None] >= lengths_B1
        seen_BR = torch.zeros(len(unique), self.config.tokens, dtype=torch.bool)
        hidden = torch.cat([seen_BR, beyond_BL], dim=1).to(device)
        word_BLD = self.word(word_BL.to(device))
        byte_BLD = self.byte(byte_BL.to(device)) + word_BLD + self.place[:longest]
        bag_BD = (share_BL.to(device)[:, :, None] * word_BLD).sum(1)
        input_BLD = torch.cat([self.readout + bag_BD[:, None], byte_BLD], dim=1)
        token_BRD = self.blocks(input_BLD, src_key_padding_mask=hidden)[:, : self.config.tokens]
        rows = torch.tensor([unique.index(prompt) for prompt in prompts], device=device)
        return PromptTokens(token_BRD[rows].flatten(0, 1), (self.config.tokens,) * len(prompts))

    def _read(self, prompt: str) -> tuple[list[int], list[int], list[float]]:
        """Bytes of a prompt; the bucket of each one's word; its share in the sum over words."""
        code = prompt.encode("utf-8", errors="replace")
        most = self.config.max_bytes
        if len(code) > most:
            warnings.warn(f"a prompt of {len(code)} bytes is cut to its first {most}", stacklevel=3)
        data: list[int] = []
        words: list[int] = []
        shares: list[float] = []
        for part in re.findall(r"\w+|\W", code[:most].decode("utf-8", errors="ignore")):
            is_word = re.match(r"\w", part) is not None
            letters = part.encode("utf-8")
            data += letters
            words += [word_bucket(part, self.config.buckets) if is_word else 0] * len(letters)
            shares += [is_word / len(letters)] * len(letters)
        norm = max(sum(shares), 1.0) ** 0.5
        return data, words, [share / norm for share in shares]


def word_bucket(word: str, buckets: int) -> int:
    """The embedding of a word, whatever its case; 0 is kept for what is no word."""
    return 1 + zlib.crc32(word.lower().encode("utf-8", errors="replace")) % (buckets - 1)


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
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder = kind.from_pretrained(folder, local_files_only=True).eval()
        self.encoder.requires_grad_(requires_grad=False)
        self.width = int(self.encoder.config.hidden_size)
        if self.width != config.width:
            raise UserError(
                f"the prompt encoder in {folder} has width {self.width}, not {config.width}"
            )

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        device = next(self.encoder.parameters()).device
        batch = self.tokenizer(
            list(prompts), padding=True, truncation=True, return_tensors="pt"
        ).to(device)
        out_BLD = self.encoder(**batch).last_hidden_state
        kept_BL = batch["attention_mask"].bool()
        return PromptTokens(out_BLD[kept_BL], tuple(kept_BL.sum(1).tolist()))


PromptEncoder = ByteEncoder | PretrainedEncoder


def build_encoder(config: TextConfig) -> PromptEncoder:
    """A prompt encoder with fresh weights, or the frozen one that the configuration names."""
    return ByteEncoder(config) if config.kind == "bytes" else PretrainedEncoder(config)


def words_of(text: str) -> list[str]:
    """The words of a prompt in lower case."""
    return re.findall(r"\w+", text.lower())
