"""Pretrained video autoencoders behind the protocol of codecs, held against diffusers itself."""

import dataclasses
import json

import fixtures_diffusers as fixtures
import pytest
import torch
from torch import Tensor

from flowcept.codecs import CodecConfig, build_codec
from flowcept.codecs import pretrained as module
from flowcept.codecs.pretrained import load_pretrained

fixtures.require()

# maker, pixels of a cell, pictures of a latent, pixels of a picture's side
KINDS = {
    "ltx": (fixtures.ltx_vae, 32, 8, 64),
    "ltx-timed": (lambda: fixtures.ltx_vae(timestep_conditioning=True), 32, 8, 64),
    "wan-2.1": (fixtures.wan_vae, 8, 4, 16),
    "wan-2.2": (fixtures.wan_22_vae, 16, 4, 32),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """A model of diffusers and the codec that is read from what it saved."""
    make, cell, group, side = KINDS[request.param]
    torch.manual_seed(0)
    model = make()
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    codec = load_pretrained(folder)
    assert (codec.config.compression, codec.pictures_per_latent) == (cell, group)
    return model, codec, side


def pictures(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


def pipeline_latents(model: object, image_FCHW: Tensor) -> Tensor:
    """Normalised as the pipelines do, each in its own way."""
    from diffusers import LTXImageToVideoPipeline

    raw = model.encode(image_FCHW.transpose(0, 1)[None]).latent_dist.mode()
    if "scaling_factor" in model.config:
        statistics = model.latents_mean, model.latents_std, model.config.scaling_factor
        normal = LTXImageToVideoPipeline._normalize_latents(raw, *statistics)
    else:
        mean, std = (
            torch.tensor(x).view(1, -1, 1, 1, 1)
            for x in (model.config.latents_mean, model.config.latents_std)
        )
        normal = (raw - mean) * (1.0 / std)
    return normal[0].transpose(0, 1)


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(both):
    model, codec, side = both
    image = pictures(1 + 2 * codec.pictures_per_latent, side)
    latent = codec.encode_clip(image)
    torch.testing.assert_close(latent, pipeline_latents(model, image), atol=1e-5, rtol=1e-5)
    assert latent.shape == (3, *codec.latent_shape((side, side)))
    before = codec.mean_C.clone()
    codec.fit_statistics([image * 3])
    assert torch.equal(codec.mean_C, before)


@torch.no_grad()
def test_pictures_are_those_of_the_model(both):
    """Wan latent by latent; LTX-Video all at once, at the decoder's own time."""
    model, codec, side = both
    latent = torch.randn(4, *codec.latent_shape((side, side)))
    parts = list(codec.decode_stream(latent))
    raw = latent * codec.std_C[:, None, None] + codec.mean_C[:, None, None]
    raw_1CFHW, arguments = raw.transpose(0, 1)[None], ()
    if getattr(model.config, "timestep_conditioning", False):
        noise = torch.randn(raw_1CFHW.shape, generator=torch.Generator().manual_seed(0))
        raw_1CFHW = (1 - module.DECODE_NOISE) * raw_1CFHW + module.DECODE_NOISE * noise
        arguments = (torch.tensor([module.DECODE_TIME]),)
    expected = model.decode(raw_1CFHW, *arguments).sample[0].transpose(0, 1).clamp(-1, 1)
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-5)
    assert len(expected) == codec.pictures_of(4)
    streams = codec.config.source == module.WAN
    assert [len(part) for part in parts] == ([1, 4, 4, 4] if streams else [len(expected)])


@torch.no_grad()
def test_streams_do_not_disturb_each_other(both):
    _, codec, side = both
    one, other = (torch.randn(3, *codec.latent_shape((side, side))) for _ in range(2))
    together = zip(codec.decode_stream(one), codec.decode_stream(other), strict=True)
    firsts, seconds = zip(*together, strict=True)
    assert torch.equal(torch.cat(firsts), codec.decode(one))
    assert torch.equal(torch.cat(seconds), codec.decode(other))


@pytest.mark.parametrize("count", [2, 7])
def test_a_clip_off_the_grid_is_told_and_never_cut_in_silence(both, count):
    _, codec, side = both
    kept = codec.pictures_of(codec.latents_of(count))
    with pytest.raises(ValueError, match=f"cut it to {kept}"):
        codec.encode_clip(pictures(count, side))


@torch.no_grad()
def test_a_keyframe_is_a_latent_of_its_own(both):
    _, codec, side = both
    image = pictures(3, side)
    latent = codec.encode_keyframes(image)
    expected = torch.cat([codec.encode_clip(picture[None]) for picture in image])
    assert len(latent) == 3
    assert torch.equal(latent, expected)


@torch.no_grad()
def test_a_model_file_rebuilds_it(both, tmp_path):
    _, codec, side = both
    again = build_codec(CodecConfig(**json.loads(json.dumps(dataclasses.asdict(codec.config)))))
    again.load_state_dict(codec.state_dict())
    image = pictures(1 + codec.pictures_per_latent, side)
    assert torch.equal(again.encode(image), codec.encode(image))
    assert str(tmp_path) not in codec.config.source_config
