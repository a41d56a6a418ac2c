"""Pretrained models trained on: adapters, whole models, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path

import fixtures_diffusers as fixtures
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import TINY, assert_same_state, refused

import flowcept
from flowcept import adapters, diffusers_folder, model_file, models
from flowcept.data import theatre
from flowcept.errors import UserError
from flowcept.networks.pretrained import Backbone
from flowcept.training import run as train
from flowcept.training.loop import Reports

fixtures.require()

RANK = 4


def config_of(folder: Path, **changes: object):
    settings = {"size": "32", "shift": 3.0, "init": str(folder), "lora": RANK, "steps": 4}
    return TINY.changed(**(settings | changes))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "clips"
    theatre.write_theatre(out, 8, size=32, actors="shapes")
    return out


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
    assert card.network.fps == card.fps == theatre.FPS
    told = model_file.describe(path, adapters.load_adapter(path, torch.float32))
    assert told["network"]["lora"] == RANK
    with pytest.raises(UserError, match="is an adapter, no whole model: merge it first"):
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
    assert "is a whole model already" in again.err
    for output, match in ((path, "is the adapter itself"), (tmp_path / "x.pt", "safetensors")):
        wrong = flow("merge", path, "-o", output)
        assert wrong.status == 2
        assert match in wrong.err


def test_diffusers_reads_the_adapter_s_matrices(adapted: Path, base: Path, tmp_path: Path):
    """Written as diffusers writes them, on a plain transformer they say what the adapter says."""
    learned = network_of(adapted / "model.safetensors")
    learned.transformer.save_lora_adapter(tmp_path)
    plain = network_of(base)
    plain.shift = learned.shift
    before = said(plain)
    plain.transformer.load_lora_adapter(
        tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors"
    )
    for name in ("role", "first", "clock"):
        getattr(plain, name).load_state_dict(getattr(learned, name).state_dict())
    assert float((said(plain) - before).abs().max()) > 1e-3
    torch.testing.assert_close(said(plain), said(learned), atol=1e-6, rtol=1e-6)


def test_the_base_is_found_elsewhere_and_another_one_is_refused(
    adapted: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "moved.safetensors"
    tensors = load_file(adapted / "model.safetensors")
    with safe_open(adapted / "model.safetensors", framework="pt") as file:
        info = json.loads(file.metadata()["flowcept"])
    info["base"]["source"] = "/nowhere/wan"
    save_file(tensors, path, metadata={"flowcept": json.dumps(info)})

    with pytest.raises(UserError, match="which is not there: name the folder") as error:
        flowcept.load(str(path), device="cpu")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("FLOWCEPT_BASES", str(base.parent))
    torch.testing.assert_close(
        said(network_of(path)), said(network_of(adapted / "model.safetensors"))
    )

    other = tmp_path / "bases" / "wan"
    fixtures.save_pipeline("wan", other, seed=1)
    monkeypatch.setenv("FLOWCEPT_BASES", str(other.parent))
    with pytest.raises(UserError, match="was learned on another model than") as error:
        flowcept.load(str(path), device="cpu")
    assert "\n" not in str(error.value)


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
    assert "--lora is for a pretrained" in refused(clips, tmp_path / "a", config_of(base, init=""))
    told = refused(clips, tmp_path / "b", config_of(base, size="40"))
    assert "off the grid" in told
    assert not (tmp_path / "b").exists()
