"""Every codec: shapes, statistics, chunks, and clips whose latents stand for several pictures."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from fake_codec import WINDOW, FakeVideo, fake_config
from fixtures_codec import pictures, small_codec
from fixtures_model import write_model

from flowcept import model_file
from flowcept.codecs import CodecConfig, build_codec, to_frames, to_images
from flowcept.codecs.autoencoder import CodecTrainer
from flowcept.codecs.base import ImageCodec
from flowcept.errors import UserError
from flowcept.settings import CodecSettings


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
    sizes.clear()
    assert len(next(codec.decode_stream(latent))) == 3
    assert sizes == [3], "pictures are made when they are asked for"


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
        {"pictures_per_latent": 4},
        {"kind": "fake-video", "pictures_per_latent": 0},
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
    with pytest.raises(ValueError, match="multiples"):
        CodecTrainer(codec, CodecSettings()).step(torch.zeros(1, 3, 32, 36))


def test_frames_of_files_become_images_and_come_back():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3).numpy()
    image = to_images(frames)
    assert image.shape == (2, 3, 16, 16)
    assert (float(image.min()), float(image.max())) == (-1, 1)
    assert (to_frames(image) == frames).all()
    assert (to_frames(image * 3)[:, 0, 0] == 0).all()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_latents_and_pictures_are_told_apart(kind):
    codec = small_codec() if kind == "image" else build_codec(fake_config())
    group = codec.pictures_per_latent
    assert group == (1 if kind == "image" else 4)
    assert codec.latents_of(0) == codec.pictures_of(0) == 0
    for n in range(1, 41):
        assert codec.latents_of(codec.pictures_of(n)) == n
        assert codec.pictures_of(n) == 1 + (n - 1) * group
        latents = codec.latents_of(n)
        assert codec.pictures_of(latents) <= n < codec.pictures_of(latents + 1)


def test_shape_of_a_latent():
    assert small_codec().latent_shape((32, 48)) == (8, 4, 6)
    with pytest.raises(ValueError, match="multiples of 8"):
        small_codec().latent_shape((32, 36))


def test_an_image_codec_takes_each_picture_alone():
    codec, image = small_codec(), pictures(5)
    codec.fit_statistics([image])
    latent = codec.encode_clip(image)
    assert torch.equal(codec.encode_keyframes(image), latent)
    assert torch.equal(codec.encode(image), latent)


@pytest.mark.parametrize("groups", [0, 1, 2, 5])
def test_a_clip_of_groups_comes_back_in_order(groups):
    """Whole clips: the first picture alone, then four to a latent; decoded a few at a time."""
    codec, image = build_codec(fake_config()), pictures(1 + 4 * groups)
    latent = codec.encode_clip(image)
    assert latent.shape == (codec.latents_of(len(image)), *codec.latent_shape((32, 32)))
    parts = list(codec.decode_stream(latent))
    assert max(len(part) for part in parts) <= 4 * WINDOW
    assert torch.equal(torch.cat(parts), image)
    assert torch.equal(codec.decode(latent), image)


def test_a_keyframe_is_the_last_picture_of_its_group():
    codec, image = build_codec(fake_config()), pictures(9)
    key = codec.encode_keyframes(image)
    assert len(key) == 9
    assert torch.equal(codec.decode(key[:1]), image[:1])
    clip = torch.cat([codec.encode_clip(image[:1]), key[3:4]])
    assert torch.equal(codec.decode(clip)[-1], image[3])


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_clip_off_the_grid_is_a_value_error(count):
    codec, on_grid = build_codec(fake_config()), 1 + (count - 1) // 4 * 4
    for method in (codec.encode_clip, codec.encode, lambda clip: codec.fit_statistics([clip])):
        with pytest.raises(ValueError, match=f"cut it to {on_grid}"):
            method(pictures(count))
    assert len(codec.encode_keyframes(pictures(count))) == count


def test_statistics_of_groups():
    codec, image = build_codec(fake_config()), pictures(21)
    codec.fit_statistics([image, image.flip(0)])
    latent = torch.cat([codec.encode_clip(image), codec.encode_clip(image.flip(0))])
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(48), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(codec.encode_clip(image)), image, atol=1e-5, rtol=0)


def test_a_model_file_holds_a_video_codec(tmp_path):
    path = write_model(tmp_path / "video.safetensors", codec="fake-video")
    codec = model_file.load(path).codec
    assert isinstance(codec, FakeVideo)
    assert codec.pictures_per_latent == model_file.load(path).card.codec.pictures_per_latent == 4
    assert torch.equal(codec.decode(codec.encode_clip(pictures(5))), pictures(5))


def test_pictures_that_are_no_numbers_are_refused():
    image_FCHW = torch.zeros(2, 3, 4, 4)
    to_frames(image_FCHW)
    for value in (math.nan, math.inf):
        image_FCHW[1, 0, 0, 0] = value
        with pytest.raises(UserError, match="not finite"):
            to_frames(image_FCHW)
