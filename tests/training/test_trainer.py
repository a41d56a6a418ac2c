"""The step: what is computed, on which clips, and what stays as it was."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_runs import TINY, assert_same_state, leaves, losses, prepared, refused
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from flowcept import model_file
from flowcept.data import batches, shards
from flowcept.errors import UserError
from flowcept.networks.text import TextConfig
from flowcept.process.state import PromptTokens, Role
from flowcept.settings import TrainConfig
from flowcept.training import loop, parts
from flowcept.training import run as train
from flowcept.training import trainer as trainer_module
from flowcept.training.distributed import Team
from flowcept.training.loop import Tally
from flowcept.training.state import Files
from flowcept.training.trainer import Trainer, counted


def test_training_changes_every_weight(folder: Path, run: Path):
    trainer = prepared(folder, run, TINY)
    before = {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}
    for _ in range(12):  # frames between finished ones are not in every step
        trainer.train_step()
    still = {n for n, p in trainer.learner.named_parameters() if torch.equal(p, before[n])}
    assert not {n for n in still if not n.endswith("in_proj_bias")}


def test_the_rate_rises_and_falls(folder: Path, run: Path):
    config = TINY.changed(steps=100, warmup=10, decay=0.4, learning_rate=1.0)
    trainer = prepared(folder, run, config)

    def rate(step: int, progress: float) -> float:
        trainer.step = step
        return trainer.learning_rate(progress)

    assert rate(0, 0.0) == pytest.approx(0.1)
    assert rate(9, 0.0) == rate(60, 0.6) == 1.0
    assert rate(80, 0.8) == pytest.approx(0.5)
    assert rate(30, 0.8) == pytest.approx(0.5)  # where time and not steps is over
    assert rate(99, 0.99) == pytest.approx(0.025)
    assert rate(30, 1.0) <= 0.01


def gradients(trainer: Trainer) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses and clipped gradients of one step, whose update is caught."""
    kept: list[torch.Tensor] = []

    def catch(_: float) -> None:
        kept.extend(p.grad.clone() for p in trainer.learner.parameters())

    trainer.optimizers.step = catch
    return {name: float(value) for name, value in trainer.train_step().items()}, kept


@pytest.mark.parametrize("changes", [{"micro_tokens": 100}, {"checkpointing": True}])
def test_parts_and_checkpointing_change_nothing(folder: Path, run: Path, changes):
    """Up to the rounding of sums in another order."""
    trainers = []
    for name, more in (("a", {"micro_tokens": 10_000}), ("b", {"micro_tokens": 10_000} | changes)):
        shutil.copytree(run, run.with_name(name))
        trainer = prepared(folder, run.with_name(name), TINY.changed(**more))
        for _ in range(2):  # the first steps of zero-initialised layers have few gradients
            trainer.train_step()
        trainers.append(trainer)
    trainers[1].load_state_dict(trainers[0].state_dict())
    (a, grads_a), (b, grads_b) = map(gradients, trainers)
    assert a["clips"] > 3
    for name in ("velocity", "missing", "count", "norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)
    scale = max(float(g.abs().max()) for g in grads_a)
    for g, h in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-5 * scale)


def test_stills_come_first_and_never_again(folder: Path, run: Path):
    """A run that is given more hours has shown clips already, and goes on with them."""
    trainer = prepared(folder, run, TINY.changed(stills=0.5))
    lengths: list[set[int]] = []
    law = {n: p.detach().clone() for n, p in trainer.learner.named_parameters() if "size" in n}
    for progress in (0.0, 0.3, 0.49):
        lengths.append({state.lengths[0] for state, _ in trainer.draw().pairs})
        values = trainer.train_step(progress)
        assert values["clips"] == 30  # 300 tokens of a frame and a clip's own row of 5 tokens each
        assert float(values["count"]) == float(values["missing"]) == 0
        assert "single frames" in trainer.told({"velocity": 1.0})
    assert lengths == [{1}] * 3
    assert law
    assert all(torch.equal(p, law[n]) for n, p in trainer.learner.named_parameters() if n in law)
    assert trainer.sheet().height
    held = trainer.held_out()
    assert held["held_out_count"] > 0  # of whole clips, all along

    kept = trainer.state_dict()
    assert kept["stills"]
    for progress in (0.5, 0.2):
        trainer.train_step(progress)
        assert not trainer.stills
    trainer.load_state_dict(trainer.state_dict())
    assert not trainer.stills
    assert any(state.lengths[0] > 1 for state, _ in trainer.draw().pairs)
    trainer.load_state_dict(kept)
    assert trainer.stills


def test_held_out_clips_are_not_trained_on(folder: Path, run: Path, monkeypatch):
    trainer = prepared(folder, run, TINY)
    held = set(trainer.clips.held)
    assert len(held) == 2
    seen: set[int] = set()
    real = shards.LatentStore.latent
    monkeypatch.setattr(shards.LatentStore, "latent", lambda s, i: seen.add(i) or real(s, i))
    for _ in range(12):
        trainer.advance(trainer.draw())
    assert seen == set(range(14)) - held
    seen.clear()
    first = trainer.held_out()
    assert seen
    assert seen <= held
    assert first == trainer.held_out()


@pytest.mark.usefixtures("no_sheets")
def test_held_out_clips_that_fit_no_context_are_not_scored(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    real, said = batches.draw_batch, list[str]()

    def draw_batch(*args: Any, **words: Any) -> batches.Batch:
        if words["seed"] != TINY.machine.seed:
            raise UserError("2000 clips in a row fit no context")
        return real(*args, **words)

    monkeypatch.setattr(batches, "draw_batch", draw_batch)
    train.train(folder, run, TINY, console=said.append)
    assert any("no context fits the held-out clips" in line for line in said)
    assert not losses(run, "held_out_velocity")
    assert (run / "model.safetensors").exists()


def test_context_frames_are_clean_and_not_scored(folder: Path, run: Path):
    trainer = prepared(folder, run, TINY.changed(tokens=3000, context_dropout=0.0))
    batch = trainer.draw()
    given = [(state.role_F != Role.GENERATED) for state, _ in batch.pairs]
    assert sum(bool(g.any()) for g in given) > 3
    for (state, _), context in zip(batch.pairs, given, strict=True):
        assert bool((state.time_F[context] == 1).all())
        assert not bool(state.flowing_F[context].any())


def test_learning_that_breaks_is_said_and_leaves_the_state(folder: Path, run: Path):
    message = refused(folder, run, TINY.changed(learning_rate=1e30, warmup=0, save_every=100))
    assert "--learning-rate" in message


@pytest.mark.usefixtures("no_sheets")
def test_a_broken_model_does_not_replace_the_state(folder: Path, run: Path):
    """Weights that are not finite reach neither the state nor the model file."""
    train.train(folder, run, TINY, pause_at=2, quiet=True)
    before = {
        name: (run / name).read_bytes() for name in ("state.safetensors", "model.safetensors")
    }
    trainer = prepared(folder, run.with_name("x"), TINY.changed(codec="pixels", patch=8))
    with torch.no_grad():
        trainer.average.module.network.frame_token[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        loop.save(trainer, Files(run))
    assert before == {name: (run / name).read_bytes() for name in before}


def test_two_clips_are_learned_by_heart(folder: Path, tmp_path: Path):
    """A network that sees all it needs predicts the velocity far better than the prior's 1 to 2."""
    few = tmp_path / "few"
    few.mkdir()
    lines = (folder / "metadata.jsonl").read_text().splitlines()[:2]
    (few / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for line in lines:
        shutil.copy(folder / json.loads(line)["file_name"], few)
    config = TINY.changed(held_out=0.0, hidden=64, steps=220, learning_rate=4e-3, warmup=10)
    trainer = prepared(few, tmp_path / "run", config)
    assert trainer.held_out() == {}
    curve = []
    for _ in range(config.optimizer.steps):
        values = trainer.train_step()
        curve.append((float(values["velocity"]), float(values["count"])))
    first, last = np.mean(curve[:5], axis=0), np.mean(curve[-30:], axis=0)
    assert last[0] < 0.4 * first[0], (first, last)
    assert last[1] < 0.75 * first[1], (first, last)


class Frozen(nn.Module):
    """Stands for a T5: random tokens of a word each, dropped out but for evaluation mode."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(71, config.width)
        self.dropout = nn.Dropout(0.5)
        self.requires_grad_(requires_grad=False)

    def forward(self, prompts: Sequence[str]) -> PromptTokens:
        index = torch.tensor([len(prompt) % 71 for prompt in prompts])
        return PromptTokens(self.dropout(self.embedding(index)), (1,) * len(prompts))


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"d_model": 24}')
    monkeypatch.setattr(parts, "build_encoder", Frozen)
    return TINY.changed(text_source=str(tmp_path / "t5"))


def test_a_frozen_encoder_is_neither_trained_nor_averaged_nor_saved(
    folder: Path, run: Path, frozen: TrainConfig
):
    trainer = prepared(folder, run, frozen)
    encoder = trainer.learner.text
    assert isinstance(encoder, Frozen)
    before = encoder.embedding.weight.clone()
    trainer.train_step()
    assert not encoder.training
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(encoder.embedding.weight, before)
    assert trainer.average.module.text is encoder
    assert trainer.weights().text is encoder
    loop.save(trainer, Files(run))
    saved = leaves(model_file.load_tree(run / "state.safetensors")).values()
    shapes = [tensor.shape for tensor in saved if isinstance(tensor, torch.Tensor)]
    assert shapes
    assert before.shape not in shapes
    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("text.")]  # noqa: SIM118


@pytest.mark.usefixtures("no_sheets")
def test_a_run_with_a_frozen_encoder_resumes(folder: Path, run: Path, frozen: TrainConfig):
    straight = run.with_name("straight")
    shutil.copytree(run, straight)
    train.train(folder, straight, frozen, quiet=True)
    train.train(folder, run, frozen, pause_at=3, quiet=True)
    train.train(folder, run, frozen, resume=True, quiet=True)
    assert_same_state(run, straight)


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor: on a GPU, each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_losses_are_read_from_the_device_with_the_log_only(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    """Draws are made on the CPU whatever the device: what they read is not counted."""
    trainer = prepared(folder, run, TINY.changed(log_every=3, micro_tokens=150))
    batches = [trainer.draw() for _ in range(6)]
    counts = [counted(batch) for batch in batches]
    monkeypatch.setattr(trainer, "draw", lambda: batches[trainer.step % 6])
    monkeypatch.setattr(trainer_module, "counted", lambda _: counts[trainer.step % 6])
    tally, reads = Tally(), []
    for _ in range(6):
        with Reads() as mode:
            tally.add(trainer.train_step())
        reads.append(mode.count)
    assert reads == [0] * 6
    with Reads() as mode:
        means = tally.means(Team())
    assert mode.count <= 1
    assert means["clips"] > 1
    assert 0 < means["velocity"] < 10
    assert 0 < means["norm"] < 1000


def test_the_tally_is_the_mean_over_steps():
    tally = Tally()
    for value in (1.0, 2.0, 6.0):
        tally.add({"loss": torch.tensor(value), "clips": value / 2})
    assert tally.means(Team()) == {"loss": 3.0, "clips": 1.5}


def test_the_average_forgets_the_first_weights(folder: Path, run: Path):
    """As ``AveragedModel`` with the same decay, which copies the weights of the first step."""
    trainer = prepared(folder, run, TINY.changed(ema=0.9))

    def decayed(averaged, current, count):
        decay = min(0.9, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)

    other = AveragedModel(trainer.learner, multi_avg_fn=decayed)
    for _ in range(4):
        trainer.train_step()
        other.update_parameters(trainer.learner)
    own = dict(trainer.average.module.named_parameters())
    for name, weight in other.module.named_parameters():
        assert torch.equal(weight, own[name]), name
