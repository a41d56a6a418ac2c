"""Pretrained models in less memory: the same clips, or how far off, and how much they take."""

from __future__ import annotations

import json

import fixtures_diffusers as fixtures
import numpy as np
import pytest
import torch
from live_bytes import Fused, Live, no_autocast

import flowcept
from flowcept import diffusers_folder, memory, model_file
from flowcept.codecs.pretrained import load_pretrained
from flowcept.device import PROGRAM
from flowcept.errors import UserError
from flowcept.networks.pretrained import LTX, SKYREELS, WAN, Backbone, BackboneConfig
from flowcept.process.forward import Flowception
from flowcept.process.state import FrameState, PromptTokens
from flowcept.settings import SampleConfig

fixtures.require()

SIZES = {"ltx": "96x64", "wan": "48x32", "skyreels": "48x32"}
FAST = {"frames": 9, "steps": 2, "guidance": 2.0, "scale": 1, "seed": 1}


@pytest.fixture(scope="module", params=SIZES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    fixtures.save_pipeline(request.param, folder)
    return request.param, folder


def opened(kind, folder, **options):
    options = {"device": "cpu", "dtype": "float32", "size": SIZES[kind]} | options
    return flowcept.load(str(folder), **options)


@pytest.mark.parametrize("offload", ["encoder", "blocks"])
def test_what_leaves_the_memory_changes_no_clip(saved, offload):
    kind, folder = saved
    plain = opened(kind, folder)
    expected = plain.generate("a dog", **FAST)
    assert plain.weights.text.encoder is not None

    studio = opened(kind, folder, offload=offload)
    clip = studio.generate("a dog", **FAST)
    np.testing.assert_array_equal(clip.frames_FHW3, expected.frames_FHW3)
    assert studio.weights.text.encoder is None
    blocks = list(studio.weights.network.blocks())
    hooked = [hasattr(block, "_diffusers_hook") for block in blocks]
    assert all(hooked) if offload == "blocks" else not any(hooked)
    again = studio.generate("a dog", **FAST)
    np.testing.assert_array_equal(again.frames_FHW3, clip.frames_FHW3)


def test_an_encoder_is_read_once_for_all_prompts_and_never_before(saved, monkeypatch):
    kind, folder = saved
    studio = opened(kind, folder, offload="encoder")
    text, reads = studio.weights.text, []
    read = type(text)._read
    monkeypatch.setattr(type(text), "_read", lambda self: reads.append(1) or read(self))
    assert text.encoder is None
    together = text(["a dog", "a cat", "a dog"])
    alone = [text([prompt]).token_SD for prompt in ("a dog", "a cat", "a dog")]
    assert torch.equal(together.token_SD, torch.cat(alone))
    assert together.lengths == tuple(map(len, alone))
    assert len(reads) == 1
    studio.generate("the sea", negative_prompt="a wave", **FAST)
    assert len(reads) == 2


def test_an_encoder_comes_in_the_precision_of_the_model(saved):
    kind, folder = saved
    text = diffusers_folder.load(folder, torch.bfloat16, SIZES[kind]).text
    numbers = sum(weight.numel() for weight in fixtures.text_encoder(
        "ltx" if kind == "ltx" else "wan").parameters())  # fmt: skip
    assert 0 < text.nbytes <= 2 * numbers
    assert text.nbytes > 1.9 * numbers
    text(["a dog"])
    assert {weight.dtype for weight in text.encoder.parameters()} == {torch.bfloat16}


def random_call(network):
    generator = torch.Generator().manual_seed(0)
    channels, height, width = network.latent_shape
    state = FrameState(
        torch.randn(3, channels, height, width, generator=generator),
        torch.tensor([0.2, 0.5, 0.9]), torch.zeros(3, dtype=torch.long), torch.zeros(1),
        torch.zeros(1, dtype=torch.bool), (3,),
    )  # fmt: skip
    tokens = torch.randn(4, network.config.text_width, generator=generator)
    with torch.no_grad():
        return network(state, PromptTokens(tokens, (4,))).velocity_FCHW


def test_weights_in_8_bits_are_off_by_a_few_percent(saved):
    kind, folder = saved
    plain, small = opened(kind, folder), opened(kind, folder, fp8=True)
    exact, said = (random_call(one.weights.network) for one in (plain, small))
    error = float((said - exact).norm() / exact.norm())
    assert 0.005 < error < 0.1, error
    block = next(small.weights.network.blocks())
    kinds = {weight.dtype for weight in block.parameters()}
    assert torch.float8_e4m3fn in kinds
    sizes = [memory.bytes_of(one.weights.network.transformer) for one in (plain, small)]
    assert sizes[1] < 0.6 * sizes[0]
    small.generate("a dog", **FAST)


def test_adapters_stay_precise_in_8_bits(tmp_path):
    fixtures.save_pipeline("wan", tmp_path)
    weights = diffusers_folder.load(tmp_path, torch.float32, "48x32")
    network = weights.network
    from flowcept.networks.pretrained import add_lora

    add_lora(network.transformer, 2)
    before = random_call(network)
    network.hold_in_8_bits(torch.float32)
    lora = [w for n, w in network.transformer.named_parameters() if "lora_" in n]
    assert lora
    assert {weight.dtype for weight in lora} == {torch.float32}
    said = random_call(network)
    assert 0 < float((said - before).norm() / before.norm()) < 0.1


@pytest.mark.parametrize("make", [fixtures.ltx_vae, fixtures.wan_vae, fixtures.wan_22_vae])
def test_tiles_are_those_of_diffusers_and_encoding_has_none(tmp_path, make):
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path)
    codec = load_pretrained(tmp_path)
    cell = codec.config.compression
    image = torch.rand(1 + codec.pictures_per_latent, 3, 6 * cell, 8 * cell) * 2 - 1
    with torch.no_grad():
        whole, latent = codec.decode(codec.encode(image)), codec.encode(image)
        codec.tiled = True
        side = {
            f"tile_sample_{what}_{axis}": cells * cell
            for what, cells in (("min", 4), ("stride", 3))
            for axis in ("height", "width")
        }
        for one in (codec.model, model):
            one.enable_tiling(**side)
        codec.model.use_tiling = False
        assert torch.equal(codec.encode(image), latent)
        tiled = codec.decode(latent)
        raw = latent * codec.std_C[:, None, None] + codec.mean_C[:, None, None]
        expected = model.decode(raw.transpose(0, 1)[None]).sample[0].transpose(0, 1).clamp(-1, 1)
    torch.testing.assert_close(tiled, expected, atol=1e-5, rtol=0)
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().max()) > 1e-4
    pictures = len(image)
    many = codec.decoding_bytes(pictures, (6 * cell, 8 * cell))
    codec.tiled = False
    assert many < codec.decoding_bytes(pictures, (6 * cell, 8 * cell))


@pytest.mark.parametrize("option", [{"offload": "blocks"}, {"fp8": True}, {"tiling": True}])
def test_other_models_are_refused_in_one_line(tiny_model, option):
    (name,) = option
    with pytest.raises(UserError, match=f"`{name}` is for pretrained video models") as error:
        flowcept.load(str(tiny_model), device="cpu", **option)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="must be none, encoder or blocks"):
        memory.Thrift(offload="all")


def test_the_command_has_the_flags(saved, flow, tmp_path, monkeypatch):
    kind, folder = saved
    monkeypatch.chdir(tmp_path)
    words = ["-m", f"{folder}/", "--size", SIZES[kind], "--steps", 1, "--frames", 1, "--scale", 1]
    result = flow("gen", "a dog", *words, "--offload", "encoder", "--tiling", "-o", "out.apng")
    assert result.status == 0, result.err
    assert "1 frame of" in result.out
    wrong = flow("gen", "a dog", *words, "--offload", "all", "-o", "out.apng")
    assert wrong.status == 2
    assert "none, encoder or blocks" in wrong.err


# --- what is estimated


def on_meta(source, **settings):
    """A network of real width without contents, of a few blocks."""
    import diffusers

    with torch.device("meta"):
        made = getattr(diffusers, source)(num_layers=2, **settings)
        own = {name: value for name, value in made.config.items() if name[0] != "_"}
        width = own.get("caption_channels") or own["text_dim"]
        config = BackboneConfig(
            source, json.dumps(own), own["in_channels"], 16, 24, width, 8, 32
        )  # fmt: skip
        return Backbone(config, 3.0, made).eval()


WIDE = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("source", "settings"),
    [(LTX, {}), (WAN, WIDE), (SKYREELS, WIDE | {"inject_sample_info": True})],
)
def test_an_evaluation_takes_what_is_estimated(source, settings, dtype):
    """Counted on tensors without contents, within a quarter."""
    network = on_meta(source, **settings)
    network.hold_in(dtype)
    frames, (channels, height, width) = 21, network.latent_shape
    with torch.device("meta"):
        state = FrameState(
            torch.zeros(frames, channels, height, width), torch.zeros(frames),
            torch.zeros(frames, dtype=torch.long), torch.zeros(1),
            torch.zeros(1, dtype=torch.bool), (frames,),
        )  # fmt: skip
        prompt = PromptTokens(torch.zeros(64, network.config.text_width), (64,))
    live = Live([*network.parameters(), *network.buffers()])
    with no_autocast(), Fused(), live, torch.no_grad():
        network(state, prompt)
    told = network.sampling_bytes(frames, network.latent_shape, dtype)
    assert live.peak == pytest.approx(told, rel=0.25)


def test_the_estimate_counts_every_part_once(saved):
    """The prompt encoder too, which is no part of a model file; alone where it leaves first."""
    kind, folder = saved
    config = SampleConfig(frames=9)
    plain, lean = opened(kind, folder), opened(kind, folder, offload="encoder")
    parts = plain.weights
    whole = memory.bytes_of(parts.network) + memory.bytes_of(parts.codec)
    text = parts.text.nbytes
    assert text > 0
    controls, _ = plain.grid.in_latents(config)
    work = plain._work(controls.frames, controls, None)
    assert plain.estimate(config) == PROGRAM + whole + text + work
    assert lean.estimate(config) == PROGRAM + whole + work
    device = torch.device("cuda")
    parts.network.block_by_block = True
    blocks = [memory.bytes_of(block) for block in parts.network.blocks()]
    less = sum(blocks) - memory.IN_FLIGHT * max(blocks)
    assert memory.peak(parts, work, device) == whole + text + work - less


def test_a_whole_file_opens_in_half_precision_at_once(saved, tmp_path, monkeypatch):
    """Without a float32 copy of the transformer; what must be precise stays so."""
    kind, folder = saved
    path = tmp_path / "whole.safetensors"
    from dataclasses import replace

    weights = diffusers_folder.load(
        folder, torch.float32, SIZES[kind], lambda card: replace(card, process=Flowception())
    )
    model_file.save(weights, path)
    shown = []
    kept = model_file._checked
    monkeypatch.setattr(
        model_file, "_checked", lambda *args: shown.append(kept(*args)) or shown[-1]
    )
    half = model_file.load(path, dtype=torch.bfloat16)
    direct = diffusers_folder.load(folder, torch.bfloat16, SIZES[kind])
    inner = half.network.transformer
    expected = {name: w.dtype for name, w in direct.network.transformer.named_parameters()}
    assert {name: w.dtype for name, w in inner.named_parameters()} == expected
    assert any(tensor.dtype == torch.bfloat16 for tensor in shown)
    torch.testing.assert_close(random_call(half.network), random_call(direct.network))
