"""Which optimiser moves which weight, and how far; runs from before Muon go on as they were."""

import shutil
from pathlib import Path

import pytest
import torch
from small_runs import TINY, assert_same_state, losses, prepared
from torch import nn

from flowcept import model_file
from flowcept.networks import VideoNetwork
from flowcept.networks.pretrained import Backbone
from flowcept.settings import OptimizerSettings
from flowcept.training import run as train
from flowcept.training.optimizers import MUON_RATE, Optimizers
from flowcept.training.trainer import Trainer


def moved_by(trainer: Trainer) -> dict[str, list[str]]:
    """Names of the weights of each optimiser."""
    names = {id(p): name for name, p in trainer.learner.named_parameters()}
    return {
        kind: [names[id(p)] for group in one.param_groups for p in group["params"]]
        for kind, one in trainer.optimizers.each.items()
    }


def test_each_trained_weight_is_moved_by_one_optimiser(folder: Path, run: Path):
    trainer = prepared(folder, run, TINY.changed(muon=True))
    moved = moved_by(trainer)
    assert sorted(moved["muon"] + moved["adamw"]) == sorted(
        name for name, _ in trainer.learner.named_parameters()
    )
    muon = set(moved["muon"])
    for block in ("qkv", "out", "prompt_q", "prompt_kv", "prompt_out", "up", "down"):
        assert f"network.layers.0.{block}.weight" in muon
    assert any(name.startswith("learned_text.blocks") for name in muon)
    for word in ("size", "log_missing", "image_token", "final", "byte.", "word.", "frame_role"):
        assert not any(word in name for name in muon), word
    weights = dict(trainer.learner.named_parameters())
    assert all(weights[name].ndim == 2 for name in muon)


def test_muon_moves_every_direction_about_as_far():
    """A gradient of one large direction and many small ones, as AdamW would not see it."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(48, 96))
    u, _, v = torch.linalg.svd(torch.randn(48, 96), full_matrices=False)
    weight.grad = u @ torch.logspace(0, -1.5, 48).diag() @ v
    settings = OptimizerSettings(muon=True, weight_decay=0.0)
    rate = 0.002
    Optimizers([weight], [weight], settings).step(rate)
    assert weight.grad is None
    size = weight.detach().square().mean().sqrt()
    assert float(size) == pytest.approx(0.2 * MUON_RATE * rate, rel=0.35)
    along = (u.T @ -weight.detach() @ v.T).diagonal()
    assert float(along.min()) > 0.3 * float(along.max())


def test_only_matrices_shrink():
    weights = [nn.Parameter(torch.ones(32, 32)), nn.Parameter(torch.ones(32, 8, 3, 3))]
    bias = nn.Parameter(torch.ones(32))
    for weight in (*weights, bias):
        weight.grad = torch.zeros_like(weight)
    settings = OptimizerSettings(muon=True, weight_decay=0.1)
    optimizers = Optimizers([*weights, bias], weights[:1], settings)
    optimizers.step(0.01)
    torch.testing.assert_close(weights[0], torch.full_like(weights[0], 1 - MUON_RATE * 0.001))
    torch.testing.assert_close(weights[1], torch.full_like(weights[1], 1 - 0.001))
    assert bool((bias == 1).all())


def test_pretrained_weights_are_moved_by_adamw():
    assert Backbone.hidden_matrices is VideoNetwork.hidden_matrices


@pytest.mark.usefixtures("no_sheets")
def test_a_run_with_muon_and_stills_resumes(folder: Path, tmp_path: Path):
    """Bit for bit, from either side of the step at which whole clips begin."""
    config = TINY.changed(muon=True, stills=0.5)
    train.train(folder, tmp_path / "straight", config, quiet=True)
    train.train(folder, tmp_path / "run", config, pause_at=2, quiet=True)
    train.train(folder, tmp_path / "run", config, resume=True, pause_at=4, quiet=True)
    train.train(folder, tmp_path / "run", config, resume=True, quiet=True)
    assert_same_state(tmp_path / "run", tmp_path / "straight")
    counts = losses(tmp_path / "run", "count")
    assert [step for step, count in counts.items() if count == 0] == [1, 2, 3]


@pytest.mark.usefixtures("no_sheets")
def test_a_run_from_before_muon_goes_on(folder: Path, tmp_path: Path):
    """Its record does not name the setting, and its state is that of AdamW alone."""
    kept, old = tmp_path / "kept", tmp_path / "old"
    config = TINY.changed(steps=4, save_every=2)
    train.train(folder, kept, config, pause_at=2, quiet=True)
    shutil.copytree(kept, old)
    record = (old / "config.toml").read_text(encoding="utf-8")
    assert "muon = false\n" in record
    (old / "config.toml").write_text(record.replace("muon = false\n", ""), encoding="utf-8")
    state = model_file.load_tree(old / "state.safetensors")
    state["optimizer"] = state["optimizer"]["adamw"]
    del state["stills"]
    model_file.save_tree(state, old / "state.safetensors")
    for run in (kept, old):
        train.train(folder, run, TINY, resume=True, given=(), quiet=True)
    assert_same_state(kept, old)
