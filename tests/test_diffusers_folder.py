"""Folders of diffusers as models: the same clips as diffusers' own pipelines make."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import fixtures_diffusers as fixtures
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import flowcept
from flowcept import diffusers_folder, model_file
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.generation import Studio
from flowcept.process.forward import Flowception
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.sampling import from_nothing, sample_clips
from flowcept.settings import SampleConfig

fixtures.require()

SIZES = {"ltx": (64, 96), "wan": (32, 48)}  # height and width
LATENTS, STEPS, GUIDANCE, SEED = 3, 5, 2.5, 4
PROMPT, AGAINST = "a dog surfing on the red sea", "cat"


@pytest.fixture(scope="module", params=["ltx", "wan"])
def saved(request, tmp_path_factory):
    """A kind, its folder, and the pipeline that was saved there."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return request.param, folder, fixtures.save_pipeline(request.param, folder)


def opened(kind, folder):
    height, width = SIZES[kind]
    return diffusers_folder.load(folder, torch.float32, f"{width}x{height}")


def our_latents(weights, config, prompt=PROMPT, against=AGAINST):
    steps = sample_clips(
        weights, [from_nothing(weights.card)], [prompt], [against], [clip_generator(SEED)], config
    )
    return latents_of(steps)[0]


def noise_of(weights):
    """The noise that our sampler draws, ``1CFHW``: a number for the places first, then frames."""
    generator = clip_generator(SEED)
    torch.rand((), generator=generator, dtype=torch.float64)
    shape = weights.network.latent_shape
    frames = [torch.randn(shape, generator=generator) for _ in range(LATENTS)]
    return torch.stack(frames, dim=1)[None]


def their_latents(kind, made, weights, **more):
    """The latents of diffusers' own pipeline for our noise, normalised, ``FCHW``."""
    height, width = SIZES[kind]
    noise = noise_of(weights)
    if kind == "ltx":
        noise = made._pack_latents(noise)
    said = made(
        prompt=PROMPT, negative_prompt=AGAINST, height=height, width=width,
        num_frames=weights.codec.pictures_of(LATENTS), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=noise, output_type="latent", **more,
    ).frames  # fmt: skip
    if kind == "ltx":
        said = made._unpack_latents(said, LATENTS, height // 32, width // 32)
    return said[0].transpose(0, 1)


CONFIG = SampleConfig(steps=STEPS, guidance=GUIDANCE, frames=LATENTS)


def test_sampling_is_the_pipelines_own(saved):
    kind, folder, made = saved
    weights = opened(kind, folder)
    ours, theirs = our_latents(weights, CONFIG), their_latents(kind, made, weights)
    assert float(theirs.std()) > 0.5
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


def test_guidance_steps_and_prompts_matter_in_that_comparison(saved):
    kind, folder, _ = saved
    weights = opened(kind, folder)
    ours = our_latents(weights, CONFIG)
    others = [
        our_latents(weights, SampleConfig(steps=STEPS, guidance=1.0, frames=LATENTS)),
        our_latents(weights, SampleConfig(steps=STEPS + 1, guidance=GUIDANCE, frames=LATENTS)),
        our_latents(weights, CONFIG, prompt="a cat"),
        our_latents(weights, CONFIG, against=""),
    ]
    assert all(float((other - ours).abs().max()) > 1e-3 for other in others)


def schedulers():
    import diffusers

    euler = diffusers.FlowMatchEulerDiscreteScheduler
    later = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024}
    return {
        "moved": ("ltx", euler(use_dynamic_shifting=True)),
        "stretched": ("ltx", euler(use_dynamic_shifting=True, shift_terminal=0.1, **later)),
    }


@pytest.mark.parametrize("name", ["moved", "stretched"])
def test_noise_levels_follow_the_folder_s_scheduler(tmp_path, name):
    """By the number of tokens, and stretched, as LTX-Video's own are."""
    kind, scheduler = schedulers()[name]
    made = fixtures.save_pipeline(kind, tmp_path, scheduler=scheduler)
    weights = opened(kind, tmp_path)
    ours, theirs = our_latents(weights, CONFIG), their_latents(kind, made, weights)
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


def test_later_ltx_video_places_frames_and_noise_in_its_own_way(saved, monkeypatch):
    import diffusers
    from diffusers.pipelines.ltx import pipeline_ltx_condition

    kind, folder, made = saved
    if kind != "ltx":
        pytest.skip("of LTX-Video alone")
    parts = made.components | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
    later = diffusers.LTXConditionPipeline(**parts)
    later.set_progress_bar_config(disable=True)
    again = folder.with_name("later")
    later.save_pretrained(again)
    weights = opened(kind, again)
    assert weights.network.config.first_picture

    noise = noise_of(weights)  # it takes none as an argument
    monkeypatch.setattr(pipeline_ltx_condition, "randn_tensor", lambda *_, **__: noise)
    height, width = SIZES[kind]
    theirs = later(
        prompt=PROMPT, negative_prompt=AGAINST, height=height, width=width, frame_rate=25,
        num_frames=weights.codec.pictures_of(LATENTS), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="latent",
    ).frames  # fmt: skip
    ours = our_latents(weights, CONFIG)
    torch.testing.assert_close(ours, theirs[0].transpose(0, 1), atol=5e-5, rtol=0)


def test_wan_s_own_scheduler_is_followed_in_euler_steps(tmp_path):
    import diffusers

    unipc = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    fixtures.save_pipeline("wan", tmp_path, scheduler=unipc)
    progress_A = opened("wan", tmp_path).process.progress(STEPS, LATENTS)
    unipc.set_timesteps(STEPS)
    expected = 1 - unipc.sigmas.double()
    torch.testing.assert_close(progress_A, expected)
    assert bool((progress_A.diff() > 0).all())


@pytest.mark.parametrize("text", [PROMPT, "", "  a   dog &amp; the sea ", "a " * 600, "ünï dog"])
def test_prompts_are_read_as_the_pipeline_reads_them(saved, text):
    kind, folder, made = saved
    encoder = opened(kind, folder).text
    most = encoder.recipe.tokens
    if len(text.split()) > most:
        with pytest.warns(UserWarning, match=f"reads the first {most}"):
            said = encoder([text])
    else:
        said = encoder([text])
    theirs = made.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=most)
    if kind == "ltx":
        embedded, mask = theirs[:2]
        expected = embedded[mask]
    else:
        expected = theirs[0][0]
        assert not expected[len(said.token_SD) :].any()
        expected = expected[: len(said.token_SD)]
    assert said.lengths == (len(expected),)
    torch.testing.assert_close(said.token_SD, expected, atol=1e-5, rtol=1e-5)


def test_studio_makes_pictures_of_the_asked_size(saved):
    kind, folder, _ = saved
    height, width = SIZES[kind]
    studio = flowcept.load(str(folder), device="cpu", dtype="float32", size=f"{width}x{height}")
    group = studio.codec.pictures_per_latent
    clip = studio.generate(PROMPT, frames=group + 3, steps=2, scale=1, seed=1)
    assert clip.frames_FHW3.shape == (group + 1, height, width, 3)
    assert clip.frames_FHW3.dtype == np.uint8
    told = f"`frames={group + 3}`: this model makes 1, {group + 1}, {2 * group + 1}, ...; "
    assert clip.notes == [f"{told}{group + 3} becomes {group + 1}"]
    assert clip.settings["model"] == "model"
    assert clip.fps == {"ltx": 25.0, "wan": 16.0}[kind]

    whole = studio.generate(PROMPT, steps=1, scale=1, seed=1, max_length=group + 1)
    assert len(whole) == group + 1


@pytest.mark.parametrize(("asked", "made"), [("70x70", (64, 64)), ("120x40", (32, 128)), ("8", 0)])
def test_a_size_off_the_grid_is_rounded_and_told(saved, asked, made):
    kind, folder, _ = saved
    step = {"ltx": 32, "wan": 16}[kind]
    height, width = made or (step, step)
    studio = flowcept.load(str(folder), device="cpu", dtype="float32", size=asked)
    clip = studio.generate(PROMPT, frames=1, steps=1, scale=1, seed=1)
    assert clip.size == (height, width)
    (note,) = clip.notes
    assert note.startswith(f"`size={asked}`: sides must be multiples of {step}; ")
    assert note.endswith(f" becomes {width}x{height}")


def test_a_picture_s_aspect_is_kept_where_no_size_is_said(tmp_path):
    """About as large as the model's own; the picture's own size where it is on the grid."""
    fixtures.save_pipeline("ltx", tmp_path)
    studio = flowcept.load(str(tmp_path), device="cpu", dtype="float32")
    small = replace(studio.weights, card=replace(studio.card, size=(64, 96)))
    studio = Studio(small, "a", torch.device("cpu"), torch.float32)
    options = {"frames": 1, "steps": 1, "scale": 1, "seed": 1}
    sizes = {(90, 135): (64, 96), (200, 100): (96, 64), (64, 64): (64, 64), (300, 300): (64, 64)}
    for given, made in sizes.items():
        picture = np.random.default_rng(0).integers(0, 256, (*given, 3), dtype=np.uint8)
        clip = studio.i2v(picture, **options)
        assert clip.size == made
        told = f"frames of {made[1]}x{made[0]}, to fit what is given"
        assert any(note.startswith(told) for note in clip.notes) == (made != (64, 96))
        if made == given:
            np.testing.assert_array_equal(clip.frames_FHW3[0], picture)
    assert studio.at("96x96").i2v(picture, **options).size == (96, 96)


def test_a_whole_model_file_of_it_makes_clips(saved, tmp_path):
    """With nothing of the folder but its prompt encoder."""
    kind, folder, _ = saved
    height, width = SIZES[kind]
    path = tmp_path / "whole.safetensors"
    weights = diffusers_folder.load(
        folder,
        torch.float32,
        f"{width}x{height}",
        lambda card: replace(card, process=Flowception()),
    )
    model_file.save(weights, path)
    studios = [Studio(weights, "a", torch.device("cpu"), torch.float32)]
    studios.append(flowcept.load(str(path), device="cpu", dtype="float32"))
    clips = [one.generate(PROMPT, frames=9, steps=2, scale=1, seed=1) for one in studios]
    np.testing.assert_array_equal(clips[0].frames_FHW3, clips[1].frames_FHW3)


def test_without_a_length_the_pipelines_own_is_made_and_told(saved, monkeypatch):
    kind, folder, _ = saved
    height, width = SIZES[kind]
    studio = flowcept.load(str(folder), device="cpu", dtype="float32", size=f"{width}x{height}")
    seen = []
    monkeypatch.setattr(
        "flowcept.generation.to_frames",
        lambda image_FCHW: seen.append(len(image_FCHW)) or np.zeros((len(image_FCHW), 8, 8, 3)),
    )
    monkeypatch.setattr(studio.codec, "decode_stream", lambda latent: [latent[:, :3]])
    clip = studio.generate(PROMPT, steps=1, guidance=1.0, scale=1, seed=1)
    pictures = {"ltx": 161, "wan": 81}[kind]
    assert studio.codec.pictures_of(sum(seen)) == pictures
    assert f"makes {pictures} unless you give `frames`" in " ".join(clip.notes)


def test_half_precision_keeps_what_must_be_precise(saved):
    kind, folder, _ = saved
    height, width = SIZES[kind]
    studio = flowcept.load(str(folder), device="cpu", dtype="bfloat16", size=f"{width}x{height}")
    inner = studio.weights.network.transformer
    assert inner.proj_out.weight.dtype == torch.bfloat16
    if kind == "wan":
        assert inner.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    full = flowcept.load(str(folder), device="cpu", dtype="float32", size=f"{width}x{height}")
    options = {"frames": 9, "steps": 2, "scale": 1, "seed": 1}
    pair = [one.generate(PROMPT, **options).frames_FHW3.astype(float) for one in (studio, full)]
    apart = np.abs(pair[0] - pair[1]).mean()
    assert 0 < apart < 0.1 * pair[1].std()


def test_the_command_makes_a_clip_of_a_folder(saved, flow, tmp_path, monkeypatch):
    kind, folder, _ = saved
    height, width = SIZES[kind]
    group = {"ltx": 8, "wan": 4}[kind]
    monkeypatch.chdir(tmp_path)
    words = ["-m", f"{folder}/", "--frames", 2 * group + 1, "--size", f"{width}x{height}"]
    result = flow("gen", "a dog surfing", *words, "--steps", 2, "--scale", 1, "-o", "out.mp4")
    assert result.status == 0, result.err
    assert f"out.mp4: {2 * group + 1} frames of {width}x{height}" in result.out
    frames_FHW3, _ = video.read_video(tmp_path / "out.mp4")
    assert frames_FHW3.shape == (2 * group + 1, height, width, 3)
    settings = video.read_metadata(tmp_path / "out.mp4")
    assert (settings["model"], settings["frames"]) == ("model", 2 * group + 1)

    other = flow("gen", "a dog", *words[:-1], "70x70", "--steps", 1, "--scale", 1, "-o", "out.mp4")
    assert other.status == 0
    assert "70x70 becomes 64x64" in other.out


def test_a_model_of_one_size_is_asked_for_no_other(flow, tiny_model):
    wrong = flow("gen", "a dog", "-m", tiny_model, "--size", "96x64", "-o", "out.mp4")
    assert wrong.status == 2
    assert "this model only makes frames of 32x32: leave out --size" in wrong.err


def test_info_reads_no_weights(saved, flow, monkeypatch):
    kind, folder, made = saved
    for name in ("_transformer", "load_pretrained", "build_encoder"):
        monkeypatch.delattr(diffusers_folder, name)
    told = json.loads(flow("info", folder, "--json").out)
    height, width = {"ltx": (512, 704), "wan": (480, 832)}[kind]
    assert told["frames"].startswith(f"{width}x{height} pixels")
    assert told["parameters"]["codec"] == sum(one.numel() for one in made.vae.parameters())
    inner = sum(one.numel() for one in made.transformer.parameters())
    assert inner < told["parameters"]["network"] < 2 * inner
    assert told["bytes"] == sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    part = flow("info", folder / "vae")
    assert part.status == 2
    assert f"is one part of a model: give the whole folder, {folder}" in part.err


# --- what is refused


def refused(folder, match, size="64x64"):
    with pytest.raises(UserError, match=match) as error:
        diffusers_folder.load(folder, torch.float32, size)
    assert "\n" not in str(error.value)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shortened(folder):
    for file in (folder / "transformer").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-50])


DAMAGES = {
    "DDIMScheduler is not for rectified flow": lambda folder: edit(
        folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"
    ),
    "has no scheduler/scheduler_config": lambda folder: shutil.rmtree(folder / "scheduler"),
    "has no folder tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "vae: no such folder": lambda folder: shutil.rmtree(folder / "vae"),
    "transformer cannot be read": shortened,
    "class FluxTransformer2DModel is not": lambda folder: edit(
        folder / "transformer" / "config.json", _class_name="FluxTransformer2DModel"
    ),
    "cannot read the autoencoder's latents": lambda folder: edit(
        folder / "transformer" / "config.json", in_channels=9, out_channels=9
    ),
    "two transformers": lambda folder: edit(
        folder / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]
    ),
    "holds a FluxPipeline; flowcept reads LTXPipeline": lambda folder: edit(
        folder / "model_index.json", _class_name="FluxPipeline"
    ),
    "json cannot be read": lambda folder: (folder / "model_index.json").write_text("["),
    r"has no model_index\.json: give a whole": lambda f: (f / "model_index.json").unlink(),
}


def test_folders_that_lack_something_are_refused_in_one_line(saved, tmp_path):
    kind, folder, _ = saved
    cell = {"ltx": 32, "wan": 16}[kind]
    refused(folder, f'whose sides are multiples of {cell}: try `size="96x64"`', "100x70")
    refused(folder, "must be a size", "wide")
    for number, (match, damage) in enumerate(DAMAGES.items()):
        copy = shutil.copytree(folder, tmp_path / str(number))
        damage(copy)
        refused(copy, match)


def test_a_prompt_encoder_that_lacks_weights_is_refused(saved, tmp_path):
    """They would be random numbers, and the clip one of no prompt."""
    _, folder, _ = saved
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = next((copy / "text_encoder").glob("*.safetensors"))
    weights = load_file(file)
    lost = next(name for name in sorted(weights) if "SelfAttention.q" in name)
    save_file({name: weights[name] for name in weights if name != lost}, file, {"format": "pt"})
    text = diffusers_folder.load(copy, torch.float32, "64x64").text
    with pytest.raises(UserError, match=f"lacks {re.escape(lost)}: get it again"):
        text(["a dog"])


def test_parts_of_another_family_are_refused(saved, tmp_path):
    kind, folder, _ = saved
    other = {"ltx": "wan", "wan": "ltx"}[kind]
    fixtures.save_pipeline(other, tmp_path / "other")
    copy = shutil.copytree(folder, tmp_path / "copy")
    for part in ("vae", "text_encoder"):
        shutil.rmtree(copy / part)
        shutil.copytree(tmp_path / "other" / part, copy / part)
    refused(copy, "cannot read the autoencoder's latents")
    shutil.rmtree(copy / "vae")
    shutil.copytree(folder / "vae", copy / "vae")
    text = diffusers_folder.load(copy, torch.float32, "64x64").text
    with pytest.raises(UserError, match="give the folder it was trained with"):
        text(["a dog"])


def test_info_says_what_a_folder_is_and_no_more(saved, flow):
    _, folder, _ = saved
    told = flow("info", folder).out
    assert f"not by flowcept: diffusers folder {folder.name}\n" in told
    assert re.search(r"; clips of \d+ frames$", told, re.MULTILINE)
    assert " 1 clips" not in told
    record = json.loads(flow("info", folder, "--json").out)
    assert not {"prompts", "words"} & set(record)
    assert record["network"]["source_config"]["num_layers"] == 2
