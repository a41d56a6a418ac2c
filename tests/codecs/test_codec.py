"""Codecs: shapes, statistics, chunks, training, exact resumption, pretrained autoencoders."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcept.codecs import codec as codec_module
from flowcept.codecs.codec import (
    Autoencoder,
    Codec,
    CodecConfig,
    CodecTrainer,
    CodecTraining,
    adaptive_weight,
    build_codec,
    hinge_loss,
    load_pretrained,
)
from flowcept.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def small_codec(compression: int = 8, channels: int = 8, width: int = 16) -> Autoencoder:
    torch.manual_seed(0)
    codec = build_codec(CodecConfig(compression=compression, channels=channels, width=width))
    assert isinstance(codec, Autoencoder)
    return codec


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Discs of random colour, place and size on gradients; `[count, 3, size, size]`."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, size)
    a, b, c = torch.rand(3, count, 3, 1, 1, generator=generator) * 2 - 1
    y, x = torch.rand(2, count, 1, 1, 1, generator=generator) - 0.5
    radius = torch.rand(count, 1, 1, 1, generator=generator) * 0.5 + 0.2
    ground = a + (b - a) * (line[:, None] + 1) / 2 + torch.zeros(size)
    inside = (line[:, None] - y) ** 2 + (line - x) ** 2 < radius**2
    return torch.where(inside, c, ground)


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@pytest.mark.parametrize("compression", [4, 8, 16])
def test_shapes(compression):
    codec = small_codec(compression, channels=6)
    latent = codec.encode(torch.zeros(3, 3, 32, 48))
    assert latent.shape == (3, 6, 32 // compression, 48 // compression)
    image = codec.decode(latent)
    assert image.shape == (3, 3, 32, 48)
    assert latent.dtype == image.dtype == torch.float32
    assert not image.requires_grad


def test_default_size():
    assert sum(p.numel() for p in build_codec(CodecConfig()).parameters()) < 1.5e6


def test_starts_as_a_cosine_transform():
    """Untrained, flat pictures survive and 16 channels carry a gradient: 25 dB of a shortcut."""
    codec = small_codec(channels=16)
    flat = torch.tensor([0.5, -0.25, 0.125])[:, None, None].expand(1, 3, 32, 32)
    assert psnr_db(codec.decode(codec.encode(flat)), flat) > 25
    basis = codec_module._cosine_basis(8, 192)
    torch.testing.assert_close(basis @ basis.T, torch.eye(192), atol=1e-5, rtol=0)


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
    monkeypatch.setattr(Codec, "chunk_pixels", 3 * 32 * 32 + 5)
    sizes: list[int] = []
    for name in ("encode_raw", "decode_raw"):
        method = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda x, m=method: (sizes.append(len(x)), m(x))[1])
    torch.testing.assert_close(codec.encode(image), latent, atol=1e-6, rtol=0)
    torch.testing.assert_close(codec.decode(latent), whole, atol=1e-6, rtol=0)
    assert sizes == [3, 3, 2, 3, 3, 2]


def test_a_picture_over_the_limit_goes_alone(monkeypatch):
    monkeypatch.setattr(Codec, "chunk_pixels", 1)
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


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"l1": -1.0}, {"ema": 1.5}, {"l1": 0.0, "l2": 0.0}, {"clip": 0.0}]
)
def test_training_settings_errors(values):
    with pytest.raises(UserError):
        CodecTraining(**values)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_learns_a_few_pictures(dtype):
    """From about 24 dB, where the cosine transform is, to over 30: 100 steps on 4 pictures."""
    codec, image = small_codec(channels=16), pictures(4)
    before = psnr_db(codec.decode(codec.encode(image)), image)
    settings = CodecTraining(steps=100, warmup=10, ema=0.9)
    trainer = CodecTrainer(codec, settings, dtype=dtype)
    losses = [trainer.step(image)["loss"] for _ in range(settings.steps)]
    averaged = trainer.averaged
    averaged.fit_statistics([image])
    after = psnr_db(averaged.decode(averaged.encode(image)), image)
    assert losses[-1] < losses[0] / 2
    assert after > max(30, before + 4)
    assert averaged is not codec


def test_learning_rate_rises_then_falls_to_its_end():
    trainer = CodecTrainer(small_codec(), CodecTraining(steps=100, warmup=10, final_rate=0.05))
    rates = []
    for trainer.num_steps in range(101):
        rates.append(trainer.learning_rate())
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert max(rates) == rates[9] > 0.97
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_training_is_the_same_bit_for_bit(tmp_path, dtype):
    """With crops, latent noise and the discriminator, interrupted on either side of its start."""
    settings = CodecTraining(
        steps=8, warmup=2, crop=16, adversarial=0.5, adversarial_start=0.5, discriminator_width=8
    )
    batches = [pictures(4, seed=i) for i in range(8)]

    def fresh(seed: int) -> CodecTrainer:
        torch.manual_seed(seed)
        codec = build_codec(CodecConfig(channels=4, width=8))
        assert isinstance(codec, Autoencoder)
        return CodecTrainer(codec, settings, dtype=dtype)

    whole = fresh(0)
    expected = [whole.step(batch) for batch in batches]
    for cut in (2, 6):
        first = fresh(0)
        for batch in batches[:cut]:
            first.step(batch)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = fresh(1)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [second.step(batch) for batch in batches[cut:]] == expected[cut:]
        for a, b in (
            (whole.codec, second.codec),
            (whole.averaged, second.averaged),
            (whole._discriminator, second._discriminator),
        ):
            for name, value in a.state_dict().items():
                assert torch.equal(value, b.state_dict()[name]), name


def test_state_of_other_settings_is_refused():
    state = CodecTrainer(small_codec(), CodecTraining()).state_dict()
    with pytest.raises(ValueError, match="adversarial"):
        CodecTrainer(small_codec(), CodecTraining(adversarial=0.5)).load_state_dict(state)


def test_averaged_weights_lag_behind():
    trainer = CodecTrainer(small_codec(), CodecTraining(steps=20, warmup=0))
    trainer.step(pictures(4))
    old = trainer.codec.last.weight.detach().clone()
    trainer.step(pictures(4, seed=1))
    new, mean = trainer.codec.last.weight, trainer.averaged.last.weight
    decay = 2 / 11  # the second step: (1 + 1) / (10 + 1), from the first step's weights
    torch.testing.assert_close(mean, decay * old + (1 - decay) * new)


def test_adaptive_weight_is_the_ratio_of_gradients_up_to_its_bound():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = 3 * last[0], 4 * last[1]
    assert float(adaptive_weight(reconstruction, adversarial, last, 10.0)) == pytest.approx(0.75)
    assert float(adaptive_weight(reconstruction, adversarial, last, 0.5)) == pytest.approx(0.5)
    nothing = 0 * last[1]
    assert float(adaptive_weight(reconstruction, nothing, last, 10.0)) == 10.0


def test_a_violent_discriminator_cannot_swamp_reconstruction():
    """Its last layer made 1e6 times larger, its gradient is still `adversarial` of the other's."""
    settings = CodecTraining(steps=4, warmup=0, adversarial=0.5, adversarial_start=0.0)
    weights = {}
    for factor in (1.0, 1e6):
        trainer = CodecTrainer(small_codec(), settings)
        with torch.no_grad():
            trainer._discriminator.layers[-1].weight.mul_(factor)
        weights[factor] = trainer.step(pictures(4))["adversarial_weight"]
    assert weights[1e6] * 1e6 == pytest.approx(weights[1.0], rel=1e-3)
    assert weights[1.0] < settings.adversarial * settings.adversarial_largest


def test_the_discriminator_starts_when_told_and_learns():
    settings = CodecTraining(
        steps=60,
        warmup=0,
        adversarial=0.01,
        adversarial_start=1 / 3,
        discriminator_rate=4e-3,
        discriminator_width=16,
    )
    trainer = CodecTrainer(small_codec(channels=2), settings)
    values = [trainer.step(pictures(4, seed=i)) for i in range(60)]
    assert all("discriminator" not in v for v in values[:20])
    hinge = [v["discriminator"] for v in values[20:]]
    assert sum(hinge[-5:]) < 0.7 * sum(hinge[:5])


def test_hinge_loss():
    assert float(hinge_loss(torch.tensor([2.0]), torch.tensor([-2.0]))) == 0
    assert float(hinge_loss(torch.tensor([0.0]), torch.tensor([0.0]))) == 1
    assert float(hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0]))) == 2


def test_the_generator_of_the_caller_is_not_touched():
    settings = CodecTraining(adversarial=0.5, adversarial_start=0.0, crop=16)
    codec, image = small_codec(), pictures(2)
    before = torch.get_rng_state()
    CodecTrainer(codec, settings).step(image)
    assert torch.equal(before, torch.get_rng_state())


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
@pytest.mark.parametrize("form", ["folder", "pipeline", "safetensors", "pth"])
def test_pretrained_is_what_diffusers_saved(tmp_path, make, form):
    model, image = make(), pictures(3)
    folder = tmp_path / "vae" if form == "pipeline" else tmp_path
    model.save_pretrained(folder)
    path = tmp_path
    if form == "safetensors":
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        (tmp_path / "config.json").unlink()
    elif form == "pth":
        path = tmp_path / "alone.pth"
        torch.save(model.state_dict(), path)
        (tmp_path / "config.json").unlink()
    codec = load_pretrained(path)
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


def test_old_names_of_attention_are_read(tmp_path):
    model = make_kl()
    model.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in load_file(path).items():
        kind = next((kind for kind in old if f".{kind}." in name), None)
        weights[name.replace(kind, old[kind]) if kind else name] = (
            weight[:, :, None, None].clone() if kind and weight.ndim == 2 else weight
        )
    save_file(weights, path)
    assert any("query" in name for name in weights)
    with torch.no_grad():
        expected = raw_latent(model, pictures(1))
    latent = load_pretrained(tmp_path).encode(pictures(1))
    torch.testing.assert_close(latent, expected, atol=1e-5, rtol=1e-5)


def test_taesd_pair_has_the_layers_of_autoencoder_tiny(tmp_path):
    """TAESD's decoder counts its clamp as layer 0."""
    model = make_tiny()
    for part, first in (("encoder", 0), ("decoder", 1)):
        weights = {}
        for name, weight in getattr(model, part).layers.state_dict().items():
            layer, _, rest = name.partition(".")
            weights[f"{int(layer) + first}.{rest}"] = weight
        torch.save(weights, tmp_path / f"tae_{part}.pth")
    image = pictures(2)
    with torch.no_grad():
        expected = raw_latent(model, image)
    for path in (tmp_path, tmp_path / "tae_encoder.pth", tmp_path / "tae_decoder.pth"):
        codec = load_pretrained(path)
        torch.testing.assert_close(codec.encode(image), expected, atol=1e-5, rtol=1e-5)
    (tmp_path / "tae_decoder.pth").unlink()
    with pytest.raises(UserError, match="decoder"):
        load_pretrained(tmp_path)


def test_taef2_is_refused_with_its_reason():
    """Its middle blocks have a pooled branch that diffusers' class lacks."""
    if not (DATA / "taef2").is_dir():
        pytest.skip("no shared/data/taef2")
    with pytest.raises(UserError, match="pooled middle blocks"):
        load_pretrained(DATA / "taef2")


def test_pretrained_errors(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    torch.save({"a": object}, tmp_path / "object.pth")
    torch.save([1], tmp_path / "list.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    for name in ("absent", "broken.safetensors", "object.pth", "list.pth", "other.safetensors"):
        with pytest.raises(UserError, match=name) as error:
            load_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="empty"):
        load_pretrained(tmp_path / "empty")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        load_pretrained(tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="UNet2DModel"):
        load_pretrained(tmp_path / "other.safetensors")


def test_wrong_weights_for_the_settings(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="not the weights") as error:
        load_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = CodecConfig(kind="diffusers", channels=4, source="AutoencoderTiny", source_config="{}")
    with pytest.raises(UserError, match=r'pip install ".\[diffusers\]"'):
        build_codec(config)
