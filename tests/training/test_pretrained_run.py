"""Pretrained models trained on: adapters, whole models, and what is written of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fixtures_diffusers as fixtures
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import TINY, assert_same_state, prepared, refused

import flowcept
from flowcept import adapters, diffusers_folder, hub, model_file, models
from flowcept.codecs import to_images
from flowcept.data import shapes
from flowcept.errors import UserError
from flowcept.networks.pretrained import Backbone
from flowcept.process.sampler import Step, clip_generator, latents_of
from flowcept.process.state import FrameState
from flowcept.sampling import from_nothing, sample_clips
from flowcept.settings import SampleConfig
from flowcept.training import run as train
from flowcept.training.loop import Reports

fixtures.require()

RANK = 4


def config_of(folder: Path, **changes: object):
    settings = {"size": "32", "shift": 3.0, "init": str(folder), "lora": RANK, "steps": 4}
    return TINY.changed(**(settings | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "wan"
    fixtures.save_pipeline("wan", folder)
    return folder


@pytest.fixture(scope="module")
def adapted(clips: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns an adapter."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reports, "sheet", lambda _: None)
        train.train(clips, run, config_of(base), quiet=True)
    return run


def network_of(path: Path) -> Backbone:
    network = adapters.open_model(models.find(path), torch.float32, "32x32").network
    assert isinstance(network, Backbone)
    return network


def said(network: Backbone) -> torch.Tensor:
    from test_pretrained import random_prompt, random_state

    with torch.no_grad():
        return network(random_state(), random_prompt()).velocity_FCHW


def test_an_adapter_file_holds_only_what_was_learned(adapted: Path, base: Path):
    path = adapted / "model.safetensors"
    tensors = load_file(path)
    inside = [name for name in tensors if name.startswith("network.transformer.")]
    assert inside
    assert all("lora_" in name for name in inside)
    assert not any(name.startswith(("codec.", "text.")) for name in tensors)
    state = load_file(adapted / "state.safetensors")
    assert sum(x.numel() for x in state.values()) < 6 * sum(x.numel() for x in tensors.values())

    card = model_file.read_card(path)
    assert card.base == model_file.Base(str(base), adapters.digest(base))
    assert card.network.lora == RANK
    assert card.process.shift == 3.0
    assert card.network.fps == card.fps == shapes.FPS
    told = model_file.describe(path, adapters.load_adapter(path, torch.float32))
    assert told["network"]["lora"] == RANK
    with pytest.raises(UserError, match="is an adapter, not a whole model: merge it first"):
        model_file.load(path)


def test_every_new_weight_has_learned_and_no_old_one(adapted: Path, base: Path):
    learned, plain = network_of(adapted / "model.safetensors"), network_of(base)
    old = plain.transformer.state_dict()
    for name, tensor in learned.transformer.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, old[name.replace(".base_layer", "")]), name
        elif "lora_B" in name:
            assert bool(tensor.any()), name  # these begin at 0
    assert bool(learned.role.weight.any())
    assert bool(learned.size.weight.any())
    assert float((said(learned) - said(plain)).abs().max()) > 1e-3


def test_at_first_an_adapter_changes_nothing(base: Path):
    card = train.pretrained(models.find(base), config_of(base), torch.float32).card
    torch.manual_seed(0)
    fresh = diffusers_folder.load(base, torch.float32, "32x32", lambda _: card).network
    fresh.learn()
    free = {name for name, weight in fresh.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or not name.startswith("transformer.") for name in free)
    plain = network_of(base)
    plain.shift = fresh.shift
    torch.testing.assert_close(said(fresh.eval()), said(plain), atol=1e-6, rtol=1e-6)


def test_an_adapter_makes_clips_of_lengths_of_its_own(adapted: Path):
    studio = flowcept.load(str(adapted / "model.safetensors"), device="cpu", dtype="float32")
    lengths = {len(studio.generate("a red circle", steps=2, seed=s, scale=1)) for s in range(4)}
    assert len(lengths) > 1
    assert all(length % 4 == 1 for length in lengths)
    clip = studio.generate("a red circle", frames=9, steps=2, seed=1, scale=1)
    new = studio.extend(clip.frames_FHW3, clip_fps=studio.card.fps, frames=4, steps=2, seed=1)
    assert len(new) == 13


def test_words_that_captions_lack_are_no_news_to_a_pretrained_encoder(adapted: Path):
    studio = flowcept.load(str(adapted / "model.safetensors"), device="cpu", dtype="float32")
    assert studio.card.words
    assert list(studio.word_notes("a zebra")) == []


def test_merged_it_is_a_whole_model_that_says_the_same(adapted: Path, tmp_path: Path, flow):
    path, whole = adapted / "model.safetensors", tmp_path / "whole.safetensors"
    result = flow("merge", path, "-o", whole)
    assert (result.status, result.out) == (0, f"{whole}: a whole model\n")
    merged = network_of(whole)
    names = set(merged.transformer.state_dict())
    assert names == set(fixtures.wan_transformer().state_dict())
    torch.testing.assert_close(said(merged), said(network_of(path)), atol=1e-5, rtol=1e-5)

    again = flow("merge", whole, "-o", tmp_path / "twice.safetensors")
    assert again.status == 2
    assert "is already a whole model" in again.err
    for output, match in ((path, "is the adapter itself"), (tmp_path / "x.pt", "safetensors")):
        wrong = flow("merge", path, "-o", output)
        assert wrong.status == 2
        assert match in wrong.err


@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_pipelines_of_diffusers_read_the_exported_matrices(
    clips: Path, base: Path, adapted: Path, tmp_path: Path, flow, kind: str
):
    """In the pipeline they were learned on, they say what the adapter says."""
    import diffusers

    if kind == "ltx":
        base, adapted = tmp_path / "ltx", tmp_path / "run"
        fixtures.save_pipeline("ltx", base)
        train.train(clips, adapted, config_of(base, steps=2), quiet=True)
    exported = tmp_path / "lora.safetensors"
    result = flow("merge", adapted, "--lora-only", "-o", exported)
    assert (result.status, result.out, result.err) == (
        0,
        f"{exported}: the LoRA alone, for pipelines of diffusers\n",
        "",
    )
    tensors = load_file(exported)
    assert len(tensors) == sum("lora_" in name for name in load_file(adapted / "model.safetensors"))
    assert all(name.startswith("transformer.") for name in tensors)

    learned = network_of(adapted / "model.safetensors")
    told = {"role", "first", "clock"}  # which are no part of a pipeline

    def of_pipeline(path: Path | None) -> torch.Tensor:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
        if path is not None:
            pipeline.load_lora_weights(str(path))
        network = Backbone(replace(learned.config, lora=0), learned.shift, pipeline.transformer)
        for name in told:
            getattr(network, name).load_state_dict(getattr(learned, name).state_dict())
        return said(network)

    assert float((of_pipeline(None) - said(learned)).abs().max()) > 1e-3
    torch.testing.assert_close(of_pipeline(exported), said(learned), atol=1e-6, rtol=1e-6)


def moved(adapted: Path, path: Path, source: str) -> Path:
    """The adapter, whose base was elsewhere."""
    with safe_open(adapted / "model.safetensors", framework="pt") as file:
        info = json.loads(file.metadata()["flowcept"])
    info["base"]["source"] = source
    tensors = load_file(adapted / "model.safetensors")
    save_file(tensors, path, metadata={"flowcept": json.dumps(info)})
    return path


def lost(path: Path, base: str | None = None) -> str:
    """Why its base is not taken, in one line."""
    with pytest.raises(UserError) as error:
        flowcept.load(str(path), device="cpu", base=base)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_base_is_found_elsewhere_and_another_one_is_refused(
    adapted: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow
):
    own = adapted / "model.safetensors"
    path = moved(adapted, tmp_path / "moved.safetensors", "/nowhere/wan")
    elsewhere = "give its place by --base FOLDER, or set FLOWCEPT_BASES to the folder that holds"
    told = f"{path} needs its base, which is not there: it was /nowhere/wan; {elsewhere} it"
    assert lost(path) == told
    studio = flowcept.load(str(path), device="cpu", dtype="float32", base=str(base))
    torch.testing.assert_close(said(studio.weights.network), said(network_of(own)))
    monkeypatch.setenv("FLOWCEPT_BASES", str(base.parent))
    torch.testing.assert_close(said(network_of(path)), said(network_of(own)))

    other = tmp_path / "bases" / "wan"
    fixtures.save_pipeline("wan", other, seed=1)
    another = f"{path} was trained on another model than {other}; {elsewhere} it"
    assert lost(path, str(other)) == another
    monkeypatch.setenv("FLOWCEPT_BASES", str(other.parent))
    assert lost(path) == another
    monkeypatch.setenv("FLOWCEPT_BASES", f"{other.parent}:{base.parent}")
    torch.testing.assert_close(said(network_of(path)), said(network_of(own)))

    whole = tmp_path / "whole.safetensors"
    assert json.loads(flow("info", path, "--json").out)["base"]["source"] == "/nowhere/wan"
    for command in (["merge", path, "-o", whole], ["evaluate", path, tmp_path],
                    ["gen", "a dog", "-m", path, "-o", "new.mp4"]):  # fmt: skip
        refusal = flow(*command, "--base", other)
        assert (refusal.status, refusal.err) == (2, f"flowcept: {another}\n")
    assert not whole.exists()
    assert "no model '/no/such'" in lost(path, "/no/such")
    assert "holds no model" in lost(path, str(tmp_path))


def test_a_whole_model_finds_its_text_encoder_elsewhere(
    adapted: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow
):
    there, whole = tmp_path / "then" / "wan", tmp_path / "whole.safetensors"
    shutil.copytree(base, there)
    assert flow("merge", adapted, "-o", whole, "--base", there).status == 0
    assert model_file.read_card(whole).text.source == str(there)
    shutil.rmtree(there)
    told = f"{whole} needs a text encoder, which is not there: it was {there}; give its place"
    assert lost(whole).startswith(told)
    monkeypatch.setenv("FLOWCEPT_BASES", str(base.parent))
    options = {"frames": 5, "steps": 1, "scale": 1, "seed": 1}
    clips = [flowcept.load(str(whole), device="cpu").generate("a dog", **options)]
    monkeypatch.delenv("FLOWCEPT_BASES")
    studio = flowcept.load(str(whole), device="cpu", base=str(base))
    clips.append(studio.generate("a dog", **options))
    assert (clips[0].frames_FHW3 == clips[1].frames_FHW3).all()


def test_a_name_on_a_hub_is_recorded_with_its_commit(
    base: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / commit
    shutil.copytree(base, cached)
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda name, *_, **__: asked.append(str(name)) or cached)
    run = tmp_path / "run"
    train.train(clips, run, config_of("tiny/wan", steps=1), quiet=True)
    card = model_file.read_card(run / "model.safetensors")
    assert card.base == model_file.Base(f"tiny/wan@{commit}", adapters.digest(base))
    assert card.text.source == f"tiny/wan@{commit}"
    asked.clear()
    flowcept.load(str(run), device="cpu")
    assert set(asked) == {f"tiny/wan@{commit}"}

    def refuse(*_, **__):
        raise UserError("tiny/wan is not in the cache")

    monkeypatch.setattr(hub, "fetch", refuse)
    assert lost(run).startswith(
        f"{run}/model.safetensors needs its base, which is not there: tiny/wan is not in the cache"
    )


@pytest.mark.usefixtures("no_sheets")
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    clips: Path, base: Path, adapted: Path, tmp_path: Path
):
    run = tmp_path / "run"
    train.train(clips, run, config_of(base), quiet=True, pause_at=2)
    train.train(clips, run, config_of(base), quiet=True, resume=True)
    assert_same_state(run, adapted)


@pytest.mark.usefixtures("no_sheets")
def test_without_a_rank_the_whole_model_learns(clips: Path, base: Path, tmp_path: Path):
    path = train.train(clips, tmp_path / "run", config_of(base, lora=0, steps=2), quiet=True)
    weights = model_file.load(path)
    assert weights.card.base is None
    plain = network_of(base)
    proj = weights.network.transformer.proj_out.weight
    assert not torch.equal(proj, plain.transformer.proj_out.weight)


def test_a_rank_needs_a_folder(clips: Path, base: Path, tmp_path: Path):
    assert "--lora needs a pretrained" in refused(clips, tmp_path / "a", config_of(base, init=""))
    told = refused(clips, tmp_path / "b", config_of(base, size="40"))
    assert "multiples of 16" in told
    assert not (tmp_path / "b").exists()


def test_an_adapter_takes_pictures_anywhere_in_any_size(
    adapted: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first one is a clean latent of the clip, others stand beside it, and all come back."""
    studio = flowcept.load(str(adapted / "model.safetensors"), device="cpu", dtype="float32")
    states: list[FrameState] = []
    forward = Backbone.forward
    monkeypatch.setattr(
        Backbone,
        "forward",
        lambda self, state, *rest: states.append(state) or forward(self, state, *rest),
    )
    generator = np.random.default_rng(0)
    tall = generator.integers(0, 256, (3, 48, 16, 3), dtype=np.uint8)
    options = {"steps": 2, "seed": 1, "scale": 1}

    steps: list[Step] = []
    clip = studio.i2v(tall[0], "a red circle", watch=steps.append, **options)
    assert clip.size == (48, 16)
    assert any("frames of 16x48, to fit what is given" in note for note in clip.notes)
    np.testing.assert_array_equal(clip[0], tall[0])
    latent_1CHW = studio.codec.encode_keyframes(to_images(tall[:1]))
    assert all(torch.equal(step.state.latent_FCHW[:1], latent_1CHW) for step in steps)
    assert not any(state.keyframe_F is not None for state in states)

    states.clear()
    clip = studio.interp(list(tall), frames=17, **options)
    places = [int(np.flatnonzero((clip[:] == one).all((1, 2, 3)))[0]) for one in tall]
    assert (places[0], places[2], len(clip)) == (0, 16, 17)
    assert places[1] % 4 == 0
    assert all(int(state.keyframe_F.sum()) == 2 for state in states)

    states.clear()
    made = studio.extend(tall, clip_fps=studio.card.fps, direction="backward", frames=8, **options)
    np.testing.assert_array_equal(made[8:], tall)
    assert all(state.keyframe_F.tolist()[-1] for state in states)

    wide = studio.at("64x32").i2v(tall[0], frames=5, **options)
    assert wide.size == (32, 64)


def test_clips_of_one_call_are_those_of_calls_of_their_own(adapted: Path):
    """Whatever their lengths and prompts."""
    studio = flowcept.load(str(adapted / "model.safetensors"), device="cpu", dtype="float32")
    weights, prompts = studio.weights, ["a red circle", "", "a blue square"]
    config = SampleConfig(steps=3, guidance=2.0)

    def latents(chosen: list[int]) -> list[torch.Tensor]:
        asked = [prompts[i] for i in chosen]
        given = [from_nothing(weights.card) for _ in chosen]
        generators = [clip_generator(i) for i in chosen]
        steps = sample_clips(weights, given, asked, [""] * len(chosen), generators, config)
        return latents_of(steps)

    together = latents([0, 1, 2])
    assert len({len(latent) for latent in together}) > 1
    for i in range(3):
        torch.testing.assert_close(together[i], latents([i])[0], atol=2e-5, rtol=1e-4)


def test_finished_frames_flow_again_but_not_what_is_given(clips: Path, base: Path, tmp_path: Path):
    """Latents of several pictures, keyframes beside them and an adapter among them."""
    context = {"none": 0.3, "first_last": 0.7}
    config = config_of(base, context=context, late=0.9, fill=0.99, tokens=4000, seed=2)
    trainer = prepared(clips, tmp_path / "run", config)
    assert trainer.card.process.first
    states = [state for state, _ in trainer.draw().pairs if float(state.tau_B) >= 1]
    assert any(state.keyframe_F is not None and bool(state.keyframe_F.any()) for state in states)
    refilled = [bool((state.flowing_F | state.given_F).all()) for state in states]
    assert sum(refilled) > 0.9 * len(states) > 10
    assert not any(bool((state.flowing_F & state.given_F).any()) for state in states)
    assert all(bool((state.time_F[state.given_F] == 1).all()) for state in states)
    assert float(trainer.train_step()["velocity"]) > 0


@pytest.mark.usefixtures("no_sheets")
def test_training_sees_keyframes_beside_clips(
    clips: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the sampler has them; what says so learns."""
    seen: list[int] = []
    forward = Backbone.forward

    def watched(self: Backbone, state: FrameState, *rest: object) -> object:
        seen.append(int(state.keyframe_F.sum()))
        return forward(self, state, *rest)

    monkeypatch.setattr(Backbone, "forward", watched)
    config = config_of(base, context={"none": 0.0, "first_last": 1.0}, context_dropout=0.0)
    path = train.train(clips, tmp_path / "run", config, quiet=True)
    assert max(seen) > 0
    assert bool(load_file(path)["network.keyframe"].any())
    assert (tmp_path / "run" / "cache" / "keyframes.bin").is_file()
