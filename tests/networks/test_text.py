"""Prompts of any language become tokens that depend on nothing but the prompt."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from flowcept.errors import UserError
from flowcept.networks.text import ByteEncoder, PretrainedEncoder, TextConfig, build_encoder

CONFIG = TextConfig(width=24, depth=2, heads=2, tokens=3, max_bytes=32)


@pytest.fixture
def encoder() -> ByteEncoder:
    torch.manual_seed(0)
    return ByteEncoder(CONFIG).eval()


PROMPTS = ["a dog surfing", "", "犬がサーフィン", "a dog surfing", "🐶🏄", "\ud800 lone", "x" * 32]


def test_every_prompt_has_equally_many_tokens(encoder: ByteEncoder) -> None:
    tokens = encoder(PROMPTS)
    assert tokens.lengths == (3,) * len(PROMPTS)
    assert tokens.token_SD.shape == (3 * len(PROMPTS), 24)
    assert tokens.token_SD.isfinite().all()
    by_prompt = tokens.token_SD.detach().view(len(PROMPTS), -1)
    assert torch.equal(by_prompt[0], by_prompt[3])
    distance = torch.cdist(by_prompt, by_prompt) + torch.eye(len(PROMPTS))
    distance[0, 3] = distance[3, 0] = 1
    assert float(distance.min()) > 1e-3


def test_tokens_do_not_depend_on_the_batch(encoder: ByteEncoder) -> None:
    together = encoder(PROMPTS).token_SD.view(len(PROMPTS), 3, -1)
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(encoder([prompt]).token_SD, tokens, rtol=1e-5, atol=1e-5)


def words_of_prompt(encoder: ByteEncoder, prompt: str) -> torch.Tensor:
    """What words alone give: the tokens without what the transformer adds."""
    with torch.no_grad():
        encoder.added.weight.zero_()
        return encoder([prompt]).token_SD


def test_words_differ_from_the_start() -> None:
    """One other word changes the sum of tokens as much as all that prompts have in common."""
    torch.manual_seed(0)
    encoder = ByteEncoder(TextConfig())
    prompts = ["a dog surfing", "a robot surfing", "a dog walking at night", ""]
    with torch.no_grad():
        a, b, c, empty = encoder(prompts).token_SD.view(4, 16, -1).sum(1)
    word = 192**0.5
    assert float((a - b).norm()) == pytest.approx(2**0.5 * word, rel=0.3)
    assert float((a - c).norm()) > 1.6 * word
    assert float(empty.norm()) < word


def test_a_word_is_its_token_wherever_it_stands(encoder: ByteEncoder) -> None:
    a, dog, runs = words_of_prompt(encoder, "A dog runs")
    assert torch.equal(words_of_prompt(encoder, "runs, dog!")[:2], torch.stack([runs, dog]))
    assert not words_of_prompt(encoder, "").any()
    assert not words_of_prompt(encoder, "a dog")[2].any()
    many = words_of_prompt(encoder, "a dog runs a dog")  # more words than tokens
    torch.testing.assert_close(many[2], runs + a + dog)


def test_words_that_training_never_saw_are_nothing(encoder: ByteEncoder) -> None:
    encoder.know(["a", "Dog"])
    a, dog, nothing = words_of_prompt(encoder, "a dog yodelling")
    assert a.any()
    assert dog.any()
    assert not nothing.any()


def test_a_zero_byte_is_not_padding(encoder: ByteEncoder) -> None:
    tokens = encoder(["a", "a\0"]).token_SD.view(2, -1)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-4)


def test_word_order_matters(encoder: ByteEncoder) -> None:
    tokens = encoder(["ab", "ba"]).token_SD.view(2, -1)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-5)


def test_a_long_prompt_is_cut_with_a_warning(encoder: ByteEncoder) -> None:
    with pytest.warns(UserWarning, match="33 bytes is cut to its first 32"):
        long = encoder(["x" * 33])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(long.token_SD, encoder(["x" * 32]).token_SD)


def test_every_parameter_learns(encoder: ByteEncoder) -> None:
    tokens = encoder(["a dog", "ein Hund"]).token_SD
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
    (tokens * weight).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_settings_are_checked(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="unknown prompt encoder"):
        TextConfig(kind="words")
    with pytest.raises(ValueError, match="multiple"):
        TextConfig(width=190)
    for name in ("width", "depth", "heads", "tokens", "buckets", "max_bytes"):
        with pytest.raises(ValueError, match="positive"):
            TextConfig(**{name: 0})
    with pytest.raises(ValueError, match="at most 1000"):
        TextConfig(depth=1001)
    with pytest.raises(UserError):  # without the package, or without the folder
        build_encoder(TextConfig(kind="pretrained", source=str(tmp_path)))


class Dropping(nn.Module):
    """Stands in for a frozen T5: its width is 8, and in training it drops half of its output."""

    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool) -> Dropping:
        assert local_files_only
        assert folder.is_dir()
        return cls().train()

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(hidden_size=8)
        self.byte, self.dropout = nn.Embedding(256, 8), nn.Dropout(0.5)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> types.SimpleNamespace:
        assert attention_mask.shape == input_ids.shape
        return types.SimpleNamespace(last_hidden_state=self.dropout(self.byte(input_ids)))


class Batch(dict[str, torch.Tensor]):
    def to(self, device: torch.device) -> Batch:
        assert device.type == "cpu"
        return self


class Bytes:
    """Stands in for a tokenizer."""

    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool) -> Bytes:
        assert local_files_only
        assert folder.is_dir()
        return cls()

    def __call__(self, prompts: Sequence[str], **options: object) -> Batch:
        assert options == {"padding": True, "truncation": True, "return_tensors": "pt"}
        longest = max(map(len, prompts)) + 1
        codes = [[1, *map(ord, prompt)] for prompt in prompts]
        ids = torch.tensor([code + [0] * (longest - len(code)) for code in codes])
        return Batch(input_ids=ids, attention_mask=(ids > 0).long())


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainedEncoder:
    module = types.ModuleType("transformers")
    module.AutoTokenizer, module.T5EncoderModel, module.CLIPTextModel = Bytes, Dropping, None
    monkeypatch.setitem(sys.modules, "transformers", module)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    config = TextConfig("pretrained", width=8, heads=1, source=str(tmp_path))
    encoder = build_encoder(config)
    assert isinstance(encoder, PretrainedEncoder)
    return encoder


def test_a_frozen_encoder_stays_in_evaluation(frozen: PretrainedEncoder) -> None:
    """Whatever holds it trains: its dropout stays off, and nothing of it learns."""
    whole = nn.ModuleList([frozen]).train()
    assert whole.training
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    tokens = frozen(["ab", "abc"])
    assert tokens.lengths == (3, 4)
    assert tokens.token_SD.shape == (7, 8)
    assert not tokens.token_SD.requires_grad
    assert torch.equal(tokens.token_SD, frozen(["ab", "abc"]).token_SD)


def test_a_frozen_encoder_of_another_width_is_refused(frozen: PretrainedEncoder) -> None:
    with pytest.raises(UserError, match="has width 8, not 16"):
        build_encoder(TextConfig("pretrained", width=16, heads=1, source=frozen.config.source))


def test_no_encoder_has_no_tokens() -> None:
    encoder = build_encoder(TextConfig(kind="none", width=1))
    tokens = encoder(["a dog", ""])
    assert tokens.lengths == (0, 0)
    assert tokens.token_SD.shape == (0, 1)
    assert not list(encoder.parameters())
