"""Every codec: shapes, statistics, chunks, and clips whose latents stand for several pictures."""

import dataclasses
import itertools
import json

import pytest
import torch
from fixtures_codec import pictures, small_codec

from flowcept.codecs import CodecConfig, ImageCodec, build_codec
from flowcept.codecs.autoencoder import CodecTrainer, CodecTraining
from flowcept.errors import UserError


@pytest.mark.parametrize("compression", [4, 8, 16])
def test_shapes(compression):
    codec = small_codec(compression, channels=6)
    latent = codec.encode(torch.zeros(3, 3, 32, 48))
    assert latent.shape == (3, 6, 32 // compression, 48 // compression)
    image = codec.decode(latent)
    assert image.shape == (3, 3, 32, 48)
    assert latent.dtype == image.dtype == torch.float32
    assert not image.requires_grad


def test_pixels_are_exact():
    codec = build_codec(CodecConfig(kind="pixels", compression=1, channels=3))
    image = pictures(4)
    codec.fit_statistics([image])
    torch.testing.assert_close(codec.decode(codec.encode(image)), image, atol=1e-6, rtol=0)


def test_statistics_give_unit_variance_however_they_are_batched():
    codec, image = small_codec(), pictures(24)
    codec.fit_statistics(image.split(5))
    latent = codec.encode(image)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        latent.std((0, 2, 3), correction=0), torch.ones(8), atol=1e-4, rtol=0
    )
    mean, std = codec.mean_C.clone(), codec.std_C.clone()
    codec.fit_statistics(itertools.chain([image]))
    torch.testing.assert_close(codec.mean_C, mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.std_C, std, atol=1e-5, rtol=0)


def test_statistics_of_a_constant_channel_stay_finite():
    codec = build_codec(CodecConfig(kind="pixels", compression=1, channels=3))
    codec.fit_statistics([torch.full((2, 3, 4, 4), 0.3)])
    assert codec.encode(torch.full((2, 3, 4, 4), 0.3)).abs().max() < 0.01


def test_statistics_of_nothing_change_nothing():
    codec = small_codec()
    codec.fit_statistics([pictures(2)])
    before = codec.std_C.clone()
    with pytest.raises(ValueError, match="at least one frame"):
        codec.fit_statistics([])
    assert torch.equal(codec.std_C, before)


def test_chunks_change_nothing_but_memory(monkeypatch):
    """A picture of 32 x 32 with room for 3 such: 8 frames go as 3 + 3 + 2, to the same result."""
    codec, image = small_codec(), pictures(8)
    codec.fit_statistics([image])
    latent = codec.encode(image)
    whole = codec.decode(latent)
    monkeypatch.setattr(ImageCodec, "chunk_pixels", 3 * 32 * 32 + 5)
    sizes: list[int] = []
    for name in ("encode_raw", "decode_raw"):
        method = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda x, m=method: (sizes.append(len(x)), m(x))[1])
    torch.testing.assert_close(codec.encode(image), latent, atol=1e-6, rtol=0)
    torch.testing.assert_close(codec.decode(latent), whole, atol=1e-6, rtol=0)
    assert sizes == [3, 3, 2, 3, 3, 2]


def test_a_picture_over_the_limit_goes_alone(monkeypatch):
    monkeypatch.setattr(ImageCodec, "chunk_pixels", 1)
    codec = small_codec()
    assert codec.decode(codec.encode(pictures(2))).shape == (2, 3, 32, 32)


def test_state_and_config_rebuild_the_codec():
    codec, image = small_codec(), pictures(4)
    codec.fit_statistics([image])
    config = CodecConfig(**json.loads(json.dumps(dataclasses.asdict(codec.config))))
    again = build_codec(config)
    again.load_state_dict(codec.state_dict())
    assert config == codec.config
    assert torch.equal(again.encode(image), codec.encode(image))


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "vqgan"},
        {"compression": 6},
        {"channels": 0},
        {"width": 33},
        {"kind": "pixels", "compression": 8, "channels": 3},
        {"kind": "diffusers", "source": "UNet2DModel"},
    ],
)
def test_config_errors(values):
    with pytest.raises(UserError) as error:
        CodecConfig(**values)
    assert "\n" not in str(error.value)


def test_wrong_sizes_are_value_errors():
    codec = small_codec()
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(torch.zeros(1, 3, 32, 36))
    with pytest.raises(ValueError, match="3 channels"):
        codec.encode(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="8"):
        codec.decode(torch.zeros(1, 3, 4, 4))
    trainer = CodecTrainer(codec, CodecTraining(crop=16))
    with pytest.raises(ValueError, match="smaller than a crop"):
        trainer.step(torch.zeros(1, 3, 8, 32))
    with pytest.raises(ValueError, match="multiples"):
        CodecTrainer(codec, CodecTraining()).step(torch.zeros(1, 3, 32, 36))
    with pytest.raises(UserError, match="crop"):
        CodecTrainer(codec, CodecTraining(crop=20))
