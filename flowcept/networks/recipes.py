"""Prompts as pretrained video models were taught them: T5 for LTX-Video, UMT5 for Wan.

Each has a recipe of its own, and another one is another prompt to it. The T5 of LTX-Video up to
0.9.1 reads a prompt padded to its full length and nobody hides the padding from it; the others read
real tokens alone. Only real tokens are handed on.

Shape suffixes: B prompts, L tokens with padding, S real tokens of all prompts, V their width.
"""

from __future__ import annotations

import html
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from flowcept.errors import UserError
from flowcept.process.state import PromptTokens


@dataclass(frozen=True)
class Recipe:
    """How one kind of model reads prompts."""

    encoder: str  # the class of transformers
    tokens: int  # at most; longer prompts are cut
    masked: bool  # whether padding is hidden from the encoder
    cleaned: bool  # whether spaces and escaped characters are mended first


RECIPES = {
    "ltx": Recipe("T5EncoderModel", tokens=128, masked=False, cleaned=False),
    "later-ltx": Recipe("T5EncoderModel", tokens=256, masked=True, cleaned=False),  # from 0.9.5 on
    "wan": Recipe("UMT5EncoderModel", tokens=512, masked=True, cleaned=True),
}


class RecipeEncoder(nn.Module):
    """A frozen text encoder of a diffusers folder, which has `tokenizer` and `text_encoder` in it.

    It is read when the first prompt comes, in the dtype and onto the device that this module was
    brought to, and with ``let_go`` leaves the memory again; then what it said is kept instead.
    Raises ``UserError`` where the extra ``diffusers`` or one of the two folders is missing.
    """

    like: torch.Tensor  # of the dtype and on the device of the encoder

    def __init__(self, config: Any, folder: Path | None = None) -> None:  # noqa: ANN401
        super().__init__()
        if find_spec("transformers") is None:
            raise UserError(
                'this prompt encoder needs the package transformers: pip install ".[diffusers]"'
            )
        self.config, self.recipe = config, RECIPES[config.kind]
        self.folder = folder or Path(config.source)
        self.let_go = False
        self.encoder: Any = None
        self.tokenizer: Any = None
        self.said: dict[str, torch.Tensor] = {}  # the tokens of prompts, with ``let_go``
        self.register_buffer("like", torch.zeros(()), persistent=False)
        for part in ("tokenizer", "text_encoder"):
            if not (self.folder / part).is_dir():
                raise UserError(
                    f"{self.folder} has no folder {part}: give a whole diffusers folder"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of the encoder's weights, whether they are in memory or not."""
        files = (self.folder / "text_encoder").glob("*.safetensors")
        return self.like.itemsize * sum(map(_numbers_in, files))

    def _read(self) -> None:
        """Bring tokenizer and encoder into memory."""
        import transformers
        from transformers.utils import logging

        kind, folder = getattr(transformers, self.recipe.encoder), self.folder
        self._check_kind(kind.config_class.model_type)
        local: dict[str, Any] = {"local_files_only": True}
        shows = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder / "tokenizer", **local
            )
            encoder, loaded = kind.from_pretrained(
                folder / "text_encoder", dtype=self.like.dtype, output_loading_info=True, **local
            )
        except Exception as error:  # the folder may hold anything
            why = str(error).partition("\n")[0]
            raise UserError(f"the prompt encoder in {folder} cannot be read: {why}") from error
        finally:
            if shows:
                logging.enable_progress_bar()
        lacking = sorted(loaded["missing_keys"])
        if lacking:  # they would be random
            raise UserError(f"the prompt encoder in {folder} lacks {lacking[0]}: get it again")
        self.encoder = encoder.to(self.like.device).eval().requires_grad_(requires_grad=False)

    def _check_kind(self, wanted: str) -> None:
        """Raise ``UserError`` for an encoder that reads prompts in another way."""
        path = self.folder / "text_encoder" / "config.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("model_type", wanted)
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} cannot be read; get the folder again") from error
        if found != wanted:
            raise UserError(
                f"the prompt encoder in {self.folder} is a {found}, this model reads prompts with "
                f"a {wanted}: give the folder it was trained with"
            )

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Frozen weights stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        """The real tokens of each prompt."""
        if not self.let_go:
            return self._encoded(prompts)
        self.prepare(prompts)
        parts = [self.said[prompt] for prompt in prompts]
        return PromptTokens(torch.cat(parts), tuple(map(len, parts)))

    @torch.no_grad()
    def prepare(self, prompts: Sequence[str]) -> None:
        """With ``let_go``, encode all that are new before the encoder leaves; else nothing."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.said]
        if not (self.let_go and new):
            return
        self.said |= {prompt: self._encoded([prompt]).token_SD for prompt in new}
        self.encoder = None
        if self.like.is_cuda:
            torch.cuda.empty_cache()

    def _encoded(self, prompts: Sequence[str]) -> PromptTokens:
        if self.encoder is None:
            self._read()
        recipe, device = self.recipe, self.like.device
        texts = [cleaned(prompt) if recipe.cleaned else prompt for prompt in prompts]
        self._warn_of_cuts(texts)
        batch = self.tokenizer(
            texts, padding="max_length", max_length=recipe.tokens, truncation=True,
            return_attention_mask=True, return_tensors="pt",
        ).to(device)  # fmt: skip
        mask_BL = batch["attention_mask"] if recipe.masked else None
        with torch.autocast(device.type, enabled=False):
            said_BLV = self.encoder(batch["input_ids"], mask_BL).last_hidden_state
        real_BL = batch["attention_mask"].bool()
        return PromptTokens(said_BLV[real_BL].float(), tuple(real_BL.sum(1).tolist()))

    def _warn_of_cuts(self, texts: Sequence[str]) -> None:
        """Tell of prompts that are longer than the model reads."""
        most = self.recipe.tokens
        for text, tokens in zip(texts, self.tokenizer(list(texts))["input_ids"], strict=True):
            if len(tokens) > most:
                told = f"the prompt {text[:20]!r}... has {len(tokens)} tokens"
                warnings.warn(f"{told}; the model reads the first {most}", stacklevel=4)


def _numbers_in(path: Path) -> int:
    """How many numbers a safetensors file holds; 0 where that cannot be read."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
        return sum(map(math.prod, shapes))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return 0


def cleaned(text: str) -> str:
    """A prompt as Wan's own pipeline hands it on."""
    try:
        from ftfy import fix_text
    except ImportError:
        fixed = text
    else:
        fixed = fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(fixed))).strip()
