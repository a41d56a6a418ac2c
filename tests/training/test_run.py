"""The trainer on a dozen tiny clips: end to end, interrupted, resumed, in two processes.

Everything is as small as it can be: frames of 32 pixels, a network of some thousand weights, a few
steps. A codec is fitted once; runs that do not test it start from a copy of it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowcept import model_file as checkpoint
from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer
from flowcept.data import batches, shards, theatre, video
from flowcept.data import folder as data
from flowcept.errors import UserError
from flowcept.process.sampler import Given, clip_generator, sample
from flowcept.process.state import Role
from flowcept.settings import SampleConfig, TrainConfig
from flowcept.training import run as train
from flowcept.training.run import Trainer

TINY = TrainConfig(
    size="32",
    held_out=0.15,
    codec_width=16,
    codec_steps=6,
    codec_batch=4,
    hidden=32,
    depth=2,
    heads=2,
    cells=8,
    cell_depth=1,
    between=1,
    text_width=24,
    text_depth=1,
    steps=6,
    tokens=300,
    micro_tokens=300,
    warmup=2,
    seed=5,
    dtype="float32",
    device="cpu",
    log_every=1,
    eval_every=3,
    save_every=2,
    export_dtype="float32",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order everywhere, also in the processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "clips"
    theatre.write_theatre(out, 14, size=32, actors="shapes")
    return out


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train.train(folder, run, TINY, quiet=True)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A new run that finds codec and caches made."""
    new = tmp_path / "run"
    shutil.copytree(whole / "cache", new / "cache")
    shutil.copy(whole / "codec.safetensors", new)
    return new


@pytest.fixture
def no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "sheet", lambda _: None)


def prepared(folder: Path, run: Path, config: TrainConfig) -> Trainer:
    """The trainer of a run, before its first step."""
    kept: list[Trainer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_to_end", lambda self, *_: kept.append(self))
        train.train(folder, run, config, quiet=True)
    return kept[0]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path, name: str = "velocity") -> dict[int, float]:
    return {r["step"]: r[name] for r in records(run) if name in r}


def leaves(tree: object, name: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, sub in tree.items() for k, v in leaves(sub, f"{name}/{key}").items()}
    if isinstance(tree, list | tuple):
        return leaves(dict(enumerate(tree)), name)
    return {name: tree}


def assert_same_state(run: Path, other: Path) -> None:
    """Weights, averages, optimizer and place in the data, bit for bit; the clock may differ."""
    a = leaves(checkpoint.load_tree(run / "state.safetensors"))
    b = leaves(checkpoint.load_tree(other / "state.safetensors"))
    assert a.keys() == b.keys()
    assert any(name.startswith("/optimizer/state/0/exp_avg") for name in a)
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[name]), name
        else:
            assert value == b[name] or name == "/hours", name
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def refused(folder: Path, run: Path, config: TrainConfig, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        train.train(folder, run, config, quiet=True, **more)
    text = str(error.value)
    assert text.splitlines() == [text], text
    return text


# From beginning to end


def test_a_run_leaves_a_model_and_its_records(folder: Path, whole: Path):
    assert TrainConfig(**train.read_config(whole / "config.toml")) == TINY
    logged = records(whole)
    assert [r["step"] for r in logged if "velocity" in r] == [1, 2, 3, 4, 5, 6]
    assert {r["step"] for r in logged if "held_out_velocity" in r} == {3, 6}
    last = [r for r in logged if "velocity" in r][-1]
    assert {"missing", "count", "rate", "norm", "clips_per_second"} <= set(last)
    with Image.open(whole / "loss.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 0
    with Image.open(whole / "samples" / "step_000006.png") as picture:
        assert min(picture.size) >= 32
    assert not (whole / "codec-state.safetensors").exists()
    assert not [p for p in whole.rglob(".*") if p.is_file()]

    card = checkpoint.load(whole / "model.safetensors").card
    entries = data.scan(folder, data.DataConfig((32, 32))).entries
    assert card.steps == 6
    assert card.size == (32, 32)
    assert card.fps == theatre.FPS
    assert card.dataset == "clips"
    assert sum(card.lengths.values()) == len(entries) - 2  # 15 % of 14 are held out
    assert set(card.prompts) <= {entry.caption for entry in entries}
    assert max(card.lengths) == card.network.max_count


def test_the_model_file_samples(whole: Path):
    weights = checkpoint.load(whole / "model.safetensors")
    config = weights.card.network
    given = [Given(torch.zeros(0, config.channels, config.height, config.width), (True,))]
    with torch.no_grad():
        tokens = weights.text(["a red circle jumping"])
        (latent,) = sample(
            lambda state, *_: weights.network(state, tokens),
            given,
            [clip_generator(0)],
            SampleConfig(steps=3, frames=4),
            weights.card.process,
            max_length=weights.card.max_length,
        )
    assert weights.codec.decode(latent).shape == (4, 3, 32, 32)


def test_training_changes_every_weight(folder: Path, run: Path):
    trainer = prepared(folder, run, TINY)
    before = {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}
    for _ in range(4):
        trainer.train_step()
    still = {n for n, p in trainer.learner.named_parameters() if torch.equal(p, before[n])}
    assert not {n for n in still if not n.endswith("in_proj_bias")}


def test_a_run_in_use_is_left_alone(folder: Path, whole: Path):
    before = (whole / "log.jsonl").read_bytes()
    assert "--resume" in refused(folder, whole, TINY)
    assert (whole / "log.jsonl").read_bytes() == before


def test_nothing_to_resume(folder: Path, tmp_path: Path):
    assert "resume" in refused(folder, tmp_path / "new", TINY, resume=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": "40"}, "--size"),
        ({"size": "32x24"}, "--size"),
        ({"patch": 8, "size": "48"}, "--size"),
        ({"hidden": 30, "heads": 4}, "heads"),
        ({"heads": 0}, "heads"),
        ({"depth": 0}, "depth"),
        ({"patch": 0}, "patch"),
        ({"cells": 0}, "cells"),
        ({"cell_depth": -1}, "cell-depth"),
        ({"between": -1}, "between"),
        ({"window": -1}, "window"),
        ({"text_width": 25}, "text"),
        ({"compression": 5}, "compression"),
        ({"codec_width": 7}, "width"),
        ({"codec_channels": 0}, "channels"),
        ({"process": "magic"}, "magic"),
        ({"schedule": "sideways"}, "sideways"),
        ({"num_start": -1}, "num_start"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "int8"}, "int8"),
        ({"device": "abacus"}, "abacus"),
        ({"codec": "/no/such/codec"}, "/no/such/codec"),
        ({"init": "/no/model.safetensors"}, "/no/model.safetensors"),
        ({"text_source": "/no/text"}, "/no/text"),
    ],
)
def test_unsuitable_settings_are_one_line_before_anything_is_done(
    folder: Path, tmp_path: Path, changes, named, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "PictureStore", lambda *_: pytest.fail("the clips are decoded"))
    with pytest.raises(UserError) as error:
        train.train(folder, tmp_path / "run", replace(TINY, **changes), quiet=True)
    assert named in str(error.value)
    assert str(error.value).splitlines() == [str(error.value)]
    assert not (tmp_path / "run").exists()


def test_a_folder_without_clips(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty", tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_check_names_what_is_cut(folder: Path):
    text = "\n".join(train.check(folder, replace(TINY, max_frames=6)))
    assert "cut" in text
    assert "000000.apng" in text


# Interrupted


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pause_and_resume_equal_going_on(folder: Path, whole: Path, run: Path, dtype: str):
    config = replace(TINY, dtype=dtype, context=replace(TINY.context, runs=0.2))
    straight = run.with_name("straight")
    shutil.copytree(run, straight)
    train.train(folder, straight, config, quiet=True)
    train.train(folder, run, config, pause_at=3, quiet=True)
    assert checkpoint.load_tree(run / "state.safetensors")["step"] == 3
    # The run's own settings hold, whatever a resuming command would say.
    other = replace(TINY, dtype="float32", learning_rate=1.0, seed=9, tokens=70)
    train.train(folder, run, other, resume=True, quiet=True)
    assert_same_state(run, straight)
    assert losses(run) == losses(straight)
    with pytest.raises(AssertionError):
        assert_same_state(run, whole)  # of another context mixture: the comparison can fail


def interrupt_in(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, call: int) -> None:
    """Ctrl-C, as the system delivers it, while that call of a method is on."""
    real = getattr(kind, name)
    calls = Counter[str]()

    def method(self, *args, **kwargs):
        calls[name] += 1
        result = real(self, *args, **kwargs)
        if calls[name] == call:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)  # where Python looks for signals
        return result

    monkeypatch.setattr(kind, name, method)


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("place", ["draw", "_forward", "_average", "_log"])
def test_ctrl_c_anywhere_in_a_step_loses_nothing(folder: Path, whole: Path, run: Path, place: str):
    """In the fourth call: while data are drawn, in the forward pass, between the optimiser and the
    average, while reporting."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, Trainer, place, 4)
        with pytest.raises(KeyboardInterrupt):
            train.train(folder, run, TINY, quiet=True)
    assert checkpoint.load_tree(run / "state.safetensors")["step"] in (2, 3, 4, 5)
    checkpoint.load(run / "model.safetensors")
    train.train(folder, run, TINY, resume=True, quiet=True)
    assert_same_state(run, whole)
    assert losses(run).items() <= losses(whole).items()
    assert len(losses(run)) >= 5  # the line of the interrupted step may be missing


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from flowcept.training import run as train
from flowcept.training.run import Trainer
folder, run = map(Path, sys.argv[1:])
config = train.make_config("small", run.parent / "config.toml", {})
step = Trainer.train_step
def dying(self):
    if self.step == 5:
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 5, "velo')  # a kill can fall into a line
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
Trainer.train_step = dying
train.train(folder, run, config, quiet=True)
"""


@pytest.mark.usefixtures("no_sheets")
def test_kill_loses_only_what_came_after_the_last_state(folder: Path, whole: Path, run: Path):
    train.write_config(TINY, run.parent / "config.toml")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(run)],
        timeout=300,
        check=False,
        cwd=Path(train.__file__).parents[2],
    )
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.load_tree(run / "state.safetensors")["step"] == 4
    train.train(folder, run, TINY, resume=True, quiet=True)
    assert_same_state(run, whole)
    assert losses(run) == losses(whole)


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("place", ["_autocast", "_disturb", "_descend", "step"])
def test_an_interrupted_codec_equals_one_that_was_not(
    folder: Path, whole: Path, tmp_path: Path, place: str
):
    run = tmp_path / "run"
    shutil.copytree(whole / "cache", run / "cache")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, CodecTrainer, place, 4)
        with pytest.raises(KeyboardInterrupt):
            train.train(folder, run, TINY, quiet=True)
    assert (run / "codec-state.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_to_end", lambda *_: None)
        train.train(folder, run, TINY, resume=True, quiet=True)
    a = checkpoint.load_tree(run / "codec.safetensors")
    b = checkpoint.load_tree(whole / "codec.safetensors")
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.usefixtures("no_sheets")
def test_a_codec_interrupted_after_its_last_step_is_not_trained_again(
    folder: Path, whole: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(whole / "cache", run / "cache")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, Autoencoder, "fit_statistics", 1)
        with pytest.raises(KeyboardInterrupt):
            train.train(folder, run, TINY, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_to_end", lambda *_: None)
        patch.setattr(CodecTrainer, "step", None)
        train.train(folder, run, TINY, resume=True, quiet=True)
    assert (run / "codec.safetensors").read_bytes() == (whole / "codec.safetensors").read_bytes()
    assert not (run / "codec-state.safetensors").exists()


@pytest.mark.usefixtures("no_sheets")
def test_held_out_clips_that_fit_no_context_are_not_scored(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    real, said = batches.draw_batch, list[str]()

    def draw_batch(*args: Any, **words: Any) -> batches.Batch:
        if words["seed"] != TINY.seed:
            raise UserError("2000 clips in a row fit no context")
        return real(*args, **words)

    monkeypatch.setattr(batches, "draw_batch", draw_batch)
    train.train(folder, run, TINY, console=said.append)
    assert any("held-out clips fit no context" in line for line in said)
    assert not losses(run, "held_out_velocity")
    assert (run / "model.safetensors").exists()


def test_a_start_that_cannot_decode_leaves_its_folder_free(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(train, "PictureStore", full)
    assert "no room" in refused(folder, tmp_path / "run", TINY)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_other_data_cannot_go_on_with_a_run(folder: Path, whole: Path, tmp_path: Path):
    """Longer clips ask for another network: one line, not a list of shapes."""
    run, other = tmp_path / "run", tmp_path / "longer"
    shutil.copytree(whole, run)
    shutil.copytree(folder, other)
    video.write_video(other / "000000.apng", np.zeros((40, 32, 32, 3), np.uint8), 12)
    before = (run / "state.safetensors").read_bytes()
    refused(other, run, TINY, resume=True)
    assert (run / "state.safetensors").read_bytes() == before


@pytest.mark.usefixtures("no_sheets")
def test_max_hours_ends_with_a_model(folder: Path, run: Path):
    train.train(folder, run, replace(TINY, max_hours=1e-9), quiet=True)
    assert checkpoint.read_card(run / "model.safetensors").steps == 1
    train.train(folder, run, replace(TINY, max_hours=0.0), resume=True, pause_at=2, quiet=True)
    assert checkpoint.read_card(run / "model.safetensors").steps == 2


def test_the_rate_rises_and_falls(folder: Path, run: Path):
    config = replace(TINY, steps=100, warmup=10, decay=0.4, learning_rate=1.0, max_hours=2.0)
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


# What is computed


def gradients(trainer: Trainer) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses and clipped gradients of one step, whose update is caught."""
    kept: list[torch.Tensor] = []

    def catch() -> None:
        kept.extend(p.grad.clone() for p in trainer.learner.parameters())

    trainer.optimizer.step = catch
    return trainer.train_step(), kept


@pytest.mark.parametrize("changes", [{"micro_tokens": 100}, {"checkpointing": True}])
def test_parts_and_checkpointing_change_nothing(folder: Path, run: Path, changes):
    """Up to the rounding of sums in another order."""
    trainers = []
    for name, more in (("a", {"micro_tokens": 10_000}), ("b", {"micro_tokens": 10_000} | changes)):
        shutil.copytree(run, run.with_name(name))
        trainer = prepared(folder, run.with_name(name), replace(TINY, **more))
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


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("schedule", ["linear", "cosine", "power:1.5"])
def test_every_schedule_trains(folder: Path, run: Path, schedule: str):
    train.train(folder, run, replace(TINY, schedule=schedule, num_start=2), pause_at=2, quiet=True)
    assert checkpoint.load(run / "model.safetensors").card.process.schedule == schedule


@pytest.mark.parametrize("process", ["full-sequence", "autoregressive"])
def test_the_baselines_train_and_sample(folder: Path, run: Path, process: str):
    train.train(folder, run, replace(TINY, process=process, block=2), pause_at=2, quiet=True)
    assert checkpoint.load(run / "model.safetensors").card.process.kind == process
    with Image.open(run / "samples" / "step_000002.png") as picture:
        assert min(picture.size) >= 32
    rates = prepared_losses(folder, run.with_name("again"), run, process)
    assert rates == (0.0, 0.0)


def prepared_losses(folder: Path, again: Path, run: Path, process: str) -> tuple[float, float]:
    shutil.copytree(run / "cache", again / "cache")
    shutil.copy(run / "codec.safetensors", again)
    weights = prepared(folder, again, replace(TINY, process=process)).learner.weights
    return weights.rate_weight, weights.count_weight


@pytest.mark.usefixtures("no_sheets")
def test_pixels_train(folder: Path, tmp_path: Path):
    config = replace(TINY, codec="pixels", patch=8, tokens=800)
    train.train(folder, tmp_path / "run", config, pause_at=2, quiet=True)
    weights = checkpoint.load(tmp_path / "run" / "model.safetensors")
    assert weights.card.codec.kind == "pixels"
    assert float((weights.codec.std_C - 1).abs().max()) > 0.01


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("codec_steps", [0, 2])
def test_a_codec_comes_from_another_model(
    folder: Path, whole: Path, tmp_path: Path, codec_steps: int
):
    """As it is, or trained on; the network is a new one either way."""
    other = whole / "model.safetensors"
    config = replace(TINY, codec=str(other), codec_steps=codec_steps)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    made, origin = (
        checkpoint.load(path) for path in (tmp_path / "run" / "model.safetensors", other)
    )
    a, b = (dict(weights.codec.named_parameters()) for weights in (made, origin))
    same = [torch.equal(a[name], b[name]) for name in a]
    assert all(same) if codec_steps == 0 else not any(same)
    assert all(float((a[name] - b[name]).abs().max()) < 0.1 for name in a), "it starts from there"
    assert not torch.equal(made.network.modulation.weight, origin.network.modulation.weight)


@pytest.mark.usefixtures("no_sheets")
def test_frames_that_are_not_square(folder: Path, tmp_path: Path):
    train.train(folder, tmp_path / "run", replace(TINY, size="48x32"), pause_at=1, quiet=True)
    assert checkpoint.load(tmp_path / "run" / "model.safetensors").card.size == (32, 48)


def test_held_out_clips_are_not_trained_on(folder: Path, run: Path, monkeypatch):
    trainer = prepared(folder, run, TINY)
    held = set(trainer.held_clips)
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


def test_context_frames_are_clean_and_not_scored(folder: Path, run: Path):
    trainer = prepared(folder, run, replace(TINY, tokens=3000, context_dropout=0.0))
    batch = trainer.draw()
    given = [(state.role_F != Role.GENERATED) for state, _ in batch.pairs]
    assert sum(bool(g.any()) for g in given) > 3
    for (state, _), context in zip(batch.pairs, given, strict=True):
        assert bool((state.time_F[context] == 1).all())
        assert not bool(state.flowing_F[context].any())


@pytest.mark.usefixtures("no_sheets")
def test_init_goes_on_from_a_model(folder: Path, whole: Path, tmp_path: Path):
    model = whole / "model.safetensors"
    config = replace(TINY, init=str(model), hidden=64, depth=1, learning_rate=1e-9)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    a, b = checkpoint.load(model), checkpoint.load(tmp_path / "run" / "model.safetensors")
    assert b.card.network == a.card.network
    for part, module in a.modules().items():
        other = b.modules()[part].state_dict()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-6)
    assert "--size 32x32" in refused(folder, tmp_path / "c", replace(config, size="48x32"))
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("no_sheets")
def test_another_process_than_the_models_is_said(folder: Path, whole: Path, tmp_path: Path):
    said: list[str] = []
    config = replace(TINY, init=str(whole / "model.safetensors"), shift=TINY.shift + 1)
    train.train(folder, tmp_path / "run", config, pause_at=1, console=said.append)
    (note,) = [line for line in said if line.startswith("note: ")]
    assert f"shift {TINY.shift}, this run has {TINY.shift + 1}" in note


@pytest.mark.usefixtures("no_sheets")
def test_a_model_of_short_clips_goes_on_with_long_ones(folder: Path, whole: Path, tmp_path: Path):
    """First short pieces, which are cheap, then whole clips, of more frames than it could count."""
    short = replace(TINY, max_frames=3)
    train.train(folder, tmp_path / "short", short, pause_at=1, quiet=True)
    model = tmp_path / "short" / "model.safetensors"
    assert checkpoint.read_card(model).network.max_count == 3
    config = replace(TINY, init=str(model))
    train.train(folder, tmp_path / "long", config, pause_at=1, quiet=True)
    train.train(folder, tmp_path / "long", config, resume=True, quiet=True)
    longest = checkpoint.read_card(whole / "model.safetensors").network.max_count
    assert longest > 8
    weights = checkpoint.load(tmp_path / "long" / "model.safetensors")
    assert weights.card.network.max_count == longest
    assert weights.network.count.out_features == longest + 1


def test_learning_that_breaks_is_said_and_leaves_the_state(folder: Path, run: Path):
    message = refused(folder, run, replace(TINY, learning_rate=1e30, warmup=0, save_every=100))
    assert "--learning-rate" in message


@pytest.mark.usefixtures("no_sheets")
def test_a_broken_model_does_not_replace_the_state(folder: Path, run: Path):
    """Weights that are not finite reach neither the state nor the model file."""
    train.train(folder, run, TINY, pause_at=2, quiet=True)
    before = {
        name: (run / name).read_bytes() for name in ("state.safetensors", "model.safetensors")
    }
    trainer = prepared(folder, run.with_name("x"), replace(TINY, codec="pixels", patch=8))
    trainer.run = run
    with torch.no_grad():
        trainer.averaged.module.network.frame_token[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        trainer.save()
    assert before == {name: (run / name).read_bytes() for name in before}


def test_two_clips_are_learned_by_heart(folder: Path, tmp_path: Path):
    """A network that sees all it needs predicts the velocity far better than the prior's 1 to 2."""
    few = tmp_path / "few"
    few.mkdir()
    lines = (folder / "metadata.jsonl").read_text().splitlines()[:2]
    (few / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for line in lines:
        shutil.copy(folder / json.loads(line)["file_name"], few)
    config = replace(TINY, held_out=0.0, hidden=64, steps=220, learning_rate=4e-3, warmup=10)
    trainer = prepared(few, tmp_path / "run", config)
    assert trainer.held_out() == {}
    curve = []
    for _ in range(config.steps):
        values = trainer.train_step()
        curve.append((values["velocity"], values["count"]))
    first, last = np.mean(curve[:5], axis=0), np.mean(curve[-30:], axis=0)
    assert last[0] < 0.4 * first[0], (first, last)
    assert last[1] < 0.75 * first[1], (first, last)


# Several processes

WORKER = """
import os, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from flowcept.training import run as train
from flowcept.training.run import Trainer
Trainer.sheet = lambda _: None
folder, run, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = train.make_config("small", run.parent / "config.toml", {})
end = Trainer.run_to_end
def dump(self, *args):
    end(self, *args)
    name = f"{self.run.name}-{rank}.pt"
    torch.save([self.step, self.learner.state_dict()], run.parent / name)
Trainer.run_to_end = dump
train.train(folder, run, config, quiet=True)
os.environ["MASTER_PORT"] = sys.argv[4]  # the first one may still be closing
# Clocks of different speed must not make the processes part.
monotonic = time.monotonic
time.monotonic = lambda: monotonic() * (1 + 1000 * rank)
hours = train.replace(config, max_hours=0.1, decay=0.9, steps=3)
train.train(folder, run.with_name("hours"), hours, quiet=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_train_as_one(folder: Path, whole: Path, run: Path):
    """The sums are the same in another order: losses agree to 1e-4 after six steps."""
    train.write_config(TINY, run.parent / "config.toml")
    shutil.copytree(run, run.with_name("hours"))
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    later = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(run), str(rank), later],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(train.__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:]
    for name in ("velocity", "missing", "count", "held_out_velocity"):
        alone, together = losses(whole, name), losses(run, name)
        assert alone.keys() == together.keys()
        assert list(together.values()) == pytest.approx(list(alone.values()), rel=1e-4)
    assert losses(run, "clips") == losses(whole, "clips")
    assert not [p for p in run.rglob(".*") if p.is_file()]
    for name in ("run", "hours"):
        states = [torch.load(run.with_name(f"{name}-{rank}.pt")) for rank in range(2)]
        assert states[0][0] == states[1][0]
        for key, tensor in states[0][1].items():
            assert torch.equal(tensor, states[1][1][key]), (name, key)


def test_the_card_is_what_the_log_says(whole: Path):
    """Every setting that shapes the network is in the model file."""
    network = asdict(checkpoint.read_card(whole / "model.safetensors").network)
    for name in ("hidden", "depth", "heads", "patch", "window", "text_width"):
        assert network[name] == getattr(TINY, name)


@pytest.mark.usefixtures("no_sheets")
def test_resuming_keeps_what_is_not_given(folder: Path, run: Path, monkeypatch):
    train.train(folder, run, TINY, pause_at=1, quiet=True)
    seen = []
    monkeypatch.setattr(Trainer, "run_to_end", lambda self, *_: seen.append(self.config))
    other = replace(TINY, save_every=77, eval_every=78)
    for given in (("eval_every",), ()):
        train.train(folder, run, other, resume=True, given=given, quiet=True)
    assert [(c.save_every, c.eval_every) for c in seen] == [(2, 78), (2, 3)]


def test_resuming_refuses_what_it_would_not_do(folder: Path, whole: Path):
    before = (whole / "log.jsonl").read_bytes()
    other = replace(TINY, learning_rate=TINY.learning_rate / 2)
    with pytest.raises(UserError, match=r"--learning-rate .*--init"):
        train.train(folder, whole, other, resume=True, given=["learning_rate"], quiet=True)
    assert (whole / "log.jsonl").read_bytes() == before
    train.train(folder, whole, TINY, resume=True, given=["learning_rate"], quiet=True)


def test_the_codec_takes_any_seed(folder: Path, tmp_path: Path):
    config = replace(TINY, seed=2**63 - 1, codec_steps=1)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    assert (tmp_path / "run" / "codec.safetensors").exists()


def test_a_held_out_clip_may_be_the_longest(folder: Path, tmp_path: Path):
    """Its size has a place in the law of sizes, so that its loss is finite."""
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    store = shards.PictureStore(
        data.scan(clips, train._data_config(TINY)), train._data_config(TINY), tmp_path / "cache"
    )
    _, held = train._split(store, TINY)
    path = store.entries[held[0]].path
    video.write_video(path, np.zeros((40, 32, 32, 3), np.uint8), 12)
    train.train(clips, tmp_path / "run", replace(TINY, codec_steps=1, steps=1), quiet=True)
    card = checkpoint.read_card(tmp_path / "run" / "model.safetensors")
    assert card.network.max_count == 40 > max(card.lengths)


@pytest.mark.usefixtures("no_sheets")
def test_resuming_on_other_clips_is_refused(folder: Path, tmp_path: Path):
    """The run's own pictures, where it lies among the clips, are none of them."""
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    (clips / "metadata.jsonl").unlink()  # which would name all clips
    config = replace(TINY, codec_steps=1, save_every=1)
    train.train(clips, clips / "run", config, pause_at=1, quiet=True)
    assert list(clips.glob("run/*.png")), "a picture that could be taken for a clip"
    train.train(clips, clips / "run", config, resume=True, pause_at=2, quiet=True)
    one = data.scan(folder, train._data_config(TINY)).entries[0].path
    shutil.copy(one, clips / f"one-more{one.suffix}")
    with pytest.raises(UserError, match="does not fit these clips"):
        train.train(clips, clips / "run", config, resume=True, quiet=True)


@pytest.mark.usefixtures("no_sheets")
def test_a_short_run_on_one_clip_has_no_log_and_a_model(folder: Path, whole: Path, tmp_path: Path):
    clips = tmp_path / "clips"
    clips.mkdir()
    one = data.scan(folder, train._data_config(TINY)).entries[0].path
    shutil.copy(one, clips)
    config = replace(TINY, init=str(whole / "model.safetensors"), steps=2, log_every=20)
    model = train.train(clips, tmp_path / "run", config, quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert checkpoint.read_card(model).steps == 2


def test_settings_without_effect_are_told():
    pixels = replace(TINY, codec="pixels")
    given = ["adversarial", "compression", "block", "late", "steps"]
    lines = list(train._idle(pixels, given))
    assert [line.split()[1] for line in lines] == ["--adversarial", "--compression", "--block"]
    assert list(train._idle(TINY, ["adversarial", "compression", "late"])) == []
    told = list(train._idle(replace(TINY, process="full-sequence"), ["late", "schedule"]))
    assert len(told) == 2
    assert list(train._idle(pixels, ())) == []


@pytest.mark.parametrize("text", ["[]", '{"text_config": 3}', "{}"])
def test_a_prompt_encoder_is_looked_at_first(folder: Path, tmp_path: Path, text: str):
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(text)
    config = replace(TINY, text_source=str(tmp_path / "t5"))
    with pytest.raises(UserError, match="width"):
        train.train(folder, tmp_path / "run", config, quiet=True)
    (tmp_path / "t5" / "config.json").write_text('{"d_model": 8}')
    with pytest.raises(UserError):
        train.train(folder, tmp_path / "run", config, quiet=True)
    assert not (tmp_path / "run").exists()
