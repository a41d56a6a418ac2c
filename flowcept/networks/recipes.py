"""Prompts as pretrained video models were taught them: T5 for LTX-Video, UMT5 for Wan.

Each has a recipe of its own, and another one is another prompt to it. The T5 of LTX-Video up to
0.9.1 reads a prompt padded to its full length and nobody hides the padding from it; the others read
real tokens alone. Only real tokens are handed on.

Shape suffixes: B prompts, L tokens with padding, S real tokens of all prompts, V their width.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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

    Raises ``UserError`` where the extra ``diffusers`` or one of the two is missing.
    """

    def __init__(
        self,
        config: Any,  # noqa: ANN401
        folder: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                'this prompt encoder needs the package transformers: pip install ".[diffusers]"'
            ) from error
        self.config, self.recipe = config, RECIPES[config.kind]
        folder = folder or Path(config.source)
        for part in ("tokenizer", "text_encoder"):
            if not (folder / part).is_dir():
                raise UserError(f"{folder} has no folder {part}: give a whole diffusers folder")
        kind = getattr(transformers, self.recipe.encoder)
        local: dict[str, Any] = {"local_files_only": True}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder / "tokenizer", **local
            )
            self.encoder = kind.from_pretrained(folder / "text_encoder", dtype=dtype, **local)
        except Exception as error:  # the folder may hold anything
            why = str(error).partition("\n")[0]
            raise UserError(f"the prompt encoder in {folder} cannot be read: {why}") from error
        self.encoder.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Frozen weights stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        """The real tokens of each prompt."""
        recipe, device = self.recipe, next(self.encoder.parameters()).device
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
                warnings.warn(f"{told}; the model reads the first {most}", stacklevel=3)


def cleaned(text: str) -> str:
    """A prompt as Wan's own pipeline hands it on."""
    try:
        from ftfy import fix_text
    except ImportError:
        fixed = text
    else:
        fixed = fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(fixed))).strip()
