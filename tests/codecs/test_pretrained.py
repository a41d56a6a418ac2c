"""Pretrained image autoencoders, held against diffusers itself."""

import dataclasses
import json
import sys

import pytest
import torch
from fixtures_codec import pictures
from safetensors.torch import save_file
from torch import Tensor

from flowcept.codecs import CodecConfig, build_codec
from flowcept.codecs.pretrained import load_pretrained
from flowcept.errors import UserError


def make_kl(**changes: object) -> object:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    settings = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
    }
    return diffusers.AutoencoderKL(**(settings | changes)).eval()


def make_tiny() -> object:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(
        latent_channels=5,
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
    ).eval()


def raw_latent(model: object, image: Tensor) -> Tensor:
    output = model.encode(image)
    return output.latents if hasattr(output, "latents") else output.latent_dist.mode()


@pytest.mark.parametrize("make", [make_kl, make_tiny])
@pytest.mark.parametrize("form", ["folder", "pipeline"])
def test_pretrained_is_what_diffusers_saved(tmp_path, make, form):
    model, image = make(), pictures(3)
    folder = tmp_path / "vae" if form == "pipeline" else tmp_path
    model.save_pretrained(folder)
    codec = load_pretrained(tmp_path)
    assert codec.config.compression == 4
    with torch.no_grad():
        raw = raw_latent(model, image)
        expected = model.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.encode(image), raw, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.decode(raw), expected, atol=1e-5, rtol=1e-5)

    codec.fit_statistics([image])
    again = build_codec(CodecConfig(**json.loads(json.dumps(dataclasses.asdict(codec.config)))))
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(image), codec.encode(image))
    assert str(tmp_path) not in codec.config.source_config


def test_pretrained_errors(tmp_path):
    """Every error is one line that names the file; single files and pickles are refused."""
    weights, config = tmp_path / "a.safetensors", tmp_path / "config.json"

    def refused(path, match):
        with pytest.raises(UserError, match=match) as error:
            load_pretrained(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)

    refused(tmp_path / "absent", "no such folder")
    refused(tmp_path, "is not a diffusers folder")
    torch.save({"a": torch.zeros(1)}, tmp_path / "taesd_encoder.pth")
    refused(tmp_path, "is not a diffusers folder")
    refused(tmp_path / "taesd_encoder.pth", "is not a diffusers folder")
    save_file({"a": torch.zeros(1)}, weights)
    refused(tmp_path, "is not a diffusers folder")
    refused(weights, "is not a diffusers folder")
    for text, match in (
        ("{", "JSON"),
        ("[]", "none"),
        ('{"_class_name": [1]}', "1"),
        ('{"_class_name": "UNet2DModel"}', "UNet"),
    ):
        config.write_text(text)
        refused(tmp_path, rf"config\.json.*{match}")


def test_wrong_weights_for_the_settings(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not the weights") as error:
        load_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match=r"\.safetensors: not readable"):
        load_pretrained(tmp_path)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = CodecConfig(kind="diffusers", channels=4, source="AutoencoderTiny", source_config="{}")
    with pytest.raises(UserError, match=r'pip install ".\[diffusers\]"'):
        build_codec(config)
