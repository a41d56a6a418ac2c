"""Prompts of any language become tokens that depend on nothing but the prompt."""

from __future__ import annotations

import warnings

import pytest
import torch

from flowcept.errors import UserError
from flowcept.text import ByteEncoder, TextConfig, build_encoder

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
    by_prompt = tokens.token_SD.view(len(PROMPTS), -1)
    assert torch.equal(by_prompt[0], by_prompt[3])
    distance = torch.cdist(by_prompt, by_prompt) + torch.eye(len(PROMPTS))
    distance[0, 3] = distance[3, 0] = 1
    assert float(distance.min()) > 1e-3


def test_tokens_do_not_depend_on_the_batch(encoder: ByteEncoder) -> None:
    together = encoder(PROMPTS).token_SD.view(len(PROMPTS), 3, -1)
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(encoder([prompt]).token_SD, tokens, rtol=1e-5, atol=1e-5)


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
    with pytest.raises(UserError):  # without the package, or without the folder
        build_encoder(TextConfig(kind="pretrained", source=str(tmp_path)))
