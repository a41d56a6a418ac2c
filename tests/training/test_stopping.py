"""Stopped at any place and gone on with, a run ends as one that was not."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import (
    TINY,
    assert_same_state,
    interrupt_in,
    losses,
)

from flowcept import model_file
from flowcept.codecs.autoencoder import Autoencoder, CodecTrainer
from flowcept.stopping import noticed, stoppable
from flowcept.stopping import whole as whole_step
from flowcept.training import run as train
from flowcept.training.loop import Reports
from flowcept.training.state import write_config
from flowcept.training.trainer import Average, Trainer


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pause_and_resume_equal_going_on(folder: Path, whole: Path, run: Path, dtype: str):
    config = TINY.changed(dtype=dtype, context=replace(TINY.context, runs=0.2))
    straight = run.with_name("straight")
    shutil.copytree(run, straight)
    train.train(folder, straight, config, quiet=True)
    train.train(folder, run, config, pause_at=3, quiet=True)
    assert model_file.load_tree(run / "state.safetensors")["step"] == 3
    # The run's own settings hold, whatever a resuming command would say.
    other = TINY.changed(dtype="float32", learning_rate=1.0, seed=9, tokens=70)
    train.train(folder, run, other, resume=True, quiet=True)
    assert_same_state(run, straight)
    assert losses(run) == losses(straight)
    with pytest.raises(AssertionError):
        assert_same_state(run, whole)  # of another context mixture: the comparison can fail


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize(
    "place",
    [
        (Trainer, "draw", 4),
        (Trainer, "_forward", 12),  # some are of the step that is measured for the plan
        (Average, "update", 4),
        (Reports, "_log", 4),
    ],
)
def test_ctrl_c_anywhere_in_a_step_loses_nothing(folder: Path, whole: Path, run: Path, place):
    """While data are drawn, in the forward pass, between the optimiser and the average, while
    reporting."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, *place)
        with pytest.raises(KeyboardInterrupt):
            train.train(folder, run, TINY, quiet=True)
    assert model_file.load_tree(run / "state.safetensors")["step"] in (2, 3, 4, 5)
    model_file.load(run / "model.safetensors")
    train.train(folder, run, TINY, resume=True, quiet=True)
    assert_same_state(run, whole)
    assert losses(run).items() <= losses(whole).items()
    assert len(losses(run)) >= 5  # the line of the interrupted step may be missing


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from flowcept.training import run as train
from flowcept.training.state import make_config
from flowcept.stopping import stoppable
from flowcept.stopping import whole as whole_step
from flowcept.training.trainer import Trainer
folder, run = map(Path, sys.argv[1:])
config = make_config("small", run.parent / "config.toml", {})
step = Trainer.train_step
def dying(self, done):
    if self.step == 5:
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 5, "velo')  # a kill can fall into a line
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, done)
Trainer.train_step = dying
train.train(folder, run, config, quiet=True)
"""


@pytest.mark.usefixtures("no_sheets")
def test_kill_loses_only_what_came_after_the_last_state(folder: Path, whole: Path, run: Path):
    write_config(TINY, run.parent / "config.toml")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(run)],
        timeout=300,
        check=False,
        cwd=Path(train.__file__).parents[2],
    )
    assert killed.returncode == -signal.SIGKILL
    assert model_file.load_tree(run / "state.safetensors")["step"] == 4
    train.train(folder, run, TINY, resume=True, quiet=True)
    assert_same_state(run, whole)
    assert losses(run) == losses(whole)


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("place", ["learning_rate", "_disturb", "_descend", "step"])
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
        patch.setattr(train, "run_to_end", lambda *_: None)
        train.train(folder, run, TINY, resume=True, quiet=True)
    a = model_file.load_tree(run / "codec.safetensors")
    b = model_file.load_tree(whole / "codec.safetensors")
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
        patch.setattr(train, "run_to_end", lambda *_: None)
        patch.setattr(CodecTrainer, "step", None)
        train.train(folder, run, TINY, resume=True, quiet=True)
    assert (run / "codec.safetensors").read_bytes() == (whole / "codec.safetensors").read_bytes()
    assert not (run / "codec-state.safetensors").exists()


STOPPED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from flowcept.training import run as train
from flowcept.training.loop import Reports
from flowcept.training.state import make_config
from flowcept.stopping import stoppable
from flowcept.stopping import whole as whole_step
from flowcept.training.trainer import Trainer
folder, run = map(Path, sys.argv[1:])
Reports.sheet = lambda _: None
step = Trainer.train_step
def stopped(self, done):
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, done)
Trainer.train_step = stopped
try:
    train.train(folder, run, make_config("small", run.parent / "config.toml", {}))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.usefixtures("no_sheets")
def test_a_terminated_run_says_how_to_go_on(folder: Path, whole: Path, run: Path):
    write_config(TINY, run.parent / "config.toml")
    words = [sys.executable, "-c", STOPPED, str(folder), str(run)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130, done.stderr
    assert f"flowcept train {folder} -o {run} --resume" in done.stdout
    assert model_file.load_tree(run / "state.safetensors")["step"] == 4  # not half of it
    train.train(folder, run, TINY, resume=True, quiet=True)
    assert_same_state(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_stop(number: int):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(number)
    done = []
    with pytest.raises(KeyboardInterrupt), stoppable(), whole_step():
        signal.raise_signal(number)
        done.append("all of the step")
    assert done
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so():
    """As under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(), whole_step():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_while_the_state_is_written_waits(folder: Path, run: Path):
    """A closing terminal and a stopping service send two."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, Trainer, "draw", 3)
        real = model_file.save_tree

        def save_tree(*args: object) -> None:
            signal.raise_signal(signal.SIGTERM)
            real(*args)

        patch.setattr(model_file, "save_tree", save_tree)
        with pytest.raises(KeyboardInterrupt):
            train.train(folder, run, TINY.changed(save_every=100), quiet=True)
    assert model_file.load_tree(run / "state.safetensors")["step"] == 3


def test_the_first_stop_is_noticed_and_the_second_stops() -> None:
    with pytest.raises(KeyboardInterrupt), noticed() as came:
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
    assert came == [signal.SIGTERM]
