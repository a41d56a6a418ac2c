"""The step: what is computed, on which clips, and what stays as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    TINY,
    losses,
    prepared,
    refused,
)

from flowcept.data import batches, shards
from flowcept.errors import UserError
from flowcept.process.state import Role
from flowcept.training import loop
from flowcept.training import run as train
from flowcept.training.state import Files
from flowcept.training.trainer import Trainer


def test_training_changes_every_weight(folder: Path, run: Path):
    trainer = prepared(folder, run, TINY)
    before = {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}
    for _ in range(4):
        trainer.train_step()
    still = {n for n, p in trainer.learner.named_parameters() if torch.equal(p, before[n])}
    assert not {n for n in still if not n.endswith("in_proj_bias")}


def test_the_rate_rises_and_falls(folder: Path, run: Path):
    config = TINY.changed(steps=100, warmup=10, decay=0.4, learning_rate=1.0, max_hours=2.0)
    trainer = prepared(folder, run, config)

    def rate(step: int, hours: float = 0.0) -> float:
        trainer.step, trainer.hours = step, hours
        return trainer.learning_rate()

    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == rate(60) == 1.0
    assert rate(80) == pytest.approx(0.5)
    assert rate(99) == pytest.approx(0.025)
    assert rate(30, hours=1.6) == pytest.approx(0.5)  # of the time that is left
    assert rate(30, hours=2.0) <= 0.01


def gradients(trainer: Trainer) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses and clipped gradients of one step, whose update is caught."""
    kept: list[torch.Tensor] = []

    def catch() -> None:
        kept.extend(p.grad.clone() for p in trainer.learner.parameters())

    trainer.optimizer.step = catch
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


def test_held_out_clips_are_not_trained_on(folder: Path, run: Path, monkeypatch):
    trainer = prepared(folder, run, TINY)
    held = set(trainer.clips.held)
    assert len(held) == 2
    seen: set[int] = set()
    real = shards.LatentStore.latent
    monkeypatch.setattr(shards.LatentStore, "latent", lambda s, i: seen.add(i) or real(s, i))
    for _ in range(12):
        trainer.cursor += trainer.draw().taken
        trainer.step += 1
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
    assert any("held-out clips fit no context" in line for line in said)
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
