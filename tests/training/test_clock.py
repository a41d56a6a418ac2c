"""The hours of a run: they bound all of it, the codec included, and are told beforehand."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import pytest
from small_runs import TINY, interrupt_in, records, refused

from flowcept import model_file
from flowcept.codecs.autoencoder import CodecTrainer
from flowcept.errors import UserError
from flowcept.settings import TrainConfig
from flowcept.training import clock as clocks
from flowcept.training import plan
from flowcept.training import run as train
from flowcept.training.clock import CODEC_SHARE, Clock, span
from flowcept.training.console import Console
from flowcept.training.loop import Reports
from flowcept.training.trainer import Trainer


class Seconds:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    made = Seconds()
    monkeypatch.setattr(clocks, "time", made)
    return made


@pytest.fixture
def slow(seconds: Seconds, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A step of the codec takes a second, one of the network two; the codec's progress is kept.

    Plans know both; nothing is measured.
    """
    seen: list[float] = []
    codec, network = CodecTrainer.step, Trainer.train_step

    def step(self, image, progress):
        seconds.now += 1
        seen.append(progress)
        return codec(self, image, progress)

    def train_step(self, progress):
        seconds.now += 2
        return network(self, progress)

    monkeypatch.setattr("flowcept.training.loop.LAST_FILES", 0)  # they would take real time
    monkeypatch.setattr(plan, "_seconds_of_codec", lambda *_: 1.0)
    monkeypatch.setattr(Trainer, "seconds", lambda _, steps: 2.0 * steps)
    monkeypatch.setattr(CodecTrainer, "step", step)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    return seen


def bounded(seconds: float) -> TrainConfig:
    return TINY.changed(codec_steps=500, steps=500, decay=0.5, max_hours=seconds / 3600)


@pytest.mark.usefixtures("no_sheets")
def test_the_hours_bound_codec_and_network(
    folder: Path, tmp_path: Path, seconds: Seconds, slow: list[float]
) -> None:
    """Both ends of the learning rate come with the end of their time."""
    said: list[str] = []
    train.train(folder, tmp_path / "run", bounded(100), console=said.append)
    assert 90 <= seconds.now <= 101, "nothing in reserve: a step may end after it"
    assert len(slow) == 25 == 100 * CODEC_SHARE
    assert slow == pytest.approx([step / 25 for step in range(25)])
    logged = records(tmp_path / "run")
    rates = [one["rate"] for one in logged if "rate" in one]
    assert max(rates) == TINY.optimizer.learning_rate
    assert rates[-1] < 0.2 * max(rates)
    assert [one["hours"] for one in logged if "hours" in one][-1] == pytest.approx(96 / 3600, 0.08)
    (first, later) = [line for line in said if line.startswith("plan: ")]
    assert first == (
        "plan: about 25 seconds (about 25 steps) for the codec (frames to latents), "
        "then about 75 seconds (about 38 steps) for the network"
    )
    assert re.search(
        "first contact sheet .* in .*run/samples after about", said[said.index(first) + 1]
    )
    assert later == "plan: about 75 seconds (about 38 steps) of training"
    assert model_file.read_card(tmp_path / "run" / "model.safetensors").steps == len(rates)


@pytest.mark.usefixtures("no_sheets")
def test_a_codec_that_is_stopped_goes_on_with_its_hours(
    folder: Path, tmp_path: Path, seconds: Seconds, slow: list[float]
) -> None:
    said: list[str] = []
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, CodecTrainer, "step", 10)
        with pytest.raises(KeyboardInterrupt):
            train.train(folder, run, bounded(100), console=said.append)
    assert said[-2:] == [
        "stopped at step 10 of the codec",
        f"to continue: flowcept train {folder} -o {run} --resume",
    ]
    seconds.now = 5000.0  # in between, no time is counted
    train.train(folder, run, bounded(100), resume=True, console=said.append)
    assert "continuing the codec from step 10" in said
    assert len(slow) == 25
    assert 5080 <= seconds.now <= 5091


@pytest.mark.usefixtures("no_sheets")
def test_a_network_that_is_stopped_goes_on_with_its_hours(
    folder: Path, run: Path, seconds: Seconds, slow: list[float]
) -> None:
    train.train(folder, run, bounded(100), pause_at=10, quiet=True)
    assert seconds.now == 20
    train.train(folder, run, bounded(100), resume=True, quiet=True)
    assert 88 <= seconds.now <= 101
    train.train(
        folder, run, bounded(200), resume=True, given=["max_hours"], pause_at=60, quiet=True
    )
    assert seconds.now == 120, "more hours go on where the fewer ended"
    assert not slow, "the codec is there"


def test_too_little_time_is_said_and_nothing_is_lost(
    folder: Path, run: Path, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step there is no model to write."""

    def rebuilt_psnr(*_: object) -> float:
        seconds.now = 9.0
        return 30.0

    with monkeypatch.context() as patch:
        patch.setattr(train, "rebuilt_psnr", rebuilt_psnr)
        text = refused(folder, run, TINY.changed(max_hours=8 / 3600))
    assert re.search(r"--max-hours .* passed before the network's first step.*--resume", text)
    assert not (run / "model.safetensors").exists()
    config = TINY.changed(max_hours=1.0)
    train.train(folder, run, config, resume=True, given=["max_hours"], pause_at=1, quiet=True)


def test_reading_that_would_take_too_long_is_refused_early(
    folder: Path, tmp_path: Path, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = train.data.read_pieces

    def slowly(*words):
        seconds.now += 10
        return decode(*words)

    monkeypatch.setattr(train.data, "read_pieces", slowly)
    text = refused(folder, tmp_path / "run", TINY.changed(max_hours=60 / 3600))
    assert "decoding the clips would take about" in text
    assert seconds.now <= 20, "two of fourteen clips"
    assert not (tmp_path / "run" / "config.toml").exists()
    train.train(
        folder, tmp_path / "run", TINY.changed(max_hours=1.0, codec_steps=1), pause_at=1, quiet=True
    )


def test_parts_and_their_ends(tmp_path: Path, seconds: Seconds) -> None:
    clock = Clock(tmp_path / "clock.json", max_hours=10)
    seconds.now = 3600.0 * 2
    clock.tick()
    codec = clock.part("codec", 100, share=0.25)
    assert (codec.hours, codec.hours_left, codec.progress(0)) == (2, 2, 0)
    codec.begin()
    assert codec.progress(50) == 0.5
    seconds.now = 3600.0 * 3.5
    assert codec.progress(50) == 0.5, "no time passes between two looks at it"
    clock.tick()
    assert codec.progress(50) == 0.75
    assert codec.expected(60) == 80
    clock.keep()

    seconds.now = 9e9
    later = Clock(tmp_path / "clock.json", max_hours=10, resume=True)
    assert later.hours == 3.5
    assert later.part("codec", 100, share=0.25).progress(50) == 0.75
    network = later.part("network", 100)
    later.reserve = 1.5
    assert network.hours == pytest.approx(5)
    assert Clock(tmp_path / "clock.json", max_hours=10).hours == 0, "another run begins anew"


def test_without_hours_steps_alone_count(tmp_path: Path, seconds: Seconds) -> None:
    clock = Clock(tmp_path / "clock.json")
    part = clock.part("network", 10)
    seconds.now = 1e9
    clock.tick()
    assert (part.hours, part.progress(3), part.progress(10)) == (math.inf, 0.3, 1.0)
    see = clock.watched(lambda *_: None, "reading")
    see(1, 10**9)


def test_states_from_before_there_were_clocks(tmp_path: Path, seconds: Seconds) -> None:
    clock = Clock(tmp_path / "clock.json", max_hours=10, resume=True)
    clock.adopt(4.0)
    seconds.now = 3600.0
    clock.tick()
    assert clock.hours == 5
    assert clock.part("network", 100).progress(0) == 0.5


def test_the_pace_of_reading_is_believed_after_a_tenth(tmp_path: Path, seconds: Seconds) -> None:
    see = Clock(tmp_path / "clock.json", max_hours=1).watched(lambda *_: None, "reading")
    seconds.now = 300.0
    see(1, 100)
    seconds.now = 400.0
    with pytest.raises(UserError, match=r"reading would take about 11\.1 hours, more than"):
        see(1, 100)
    see(50, 100)


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.0, "about 1 second"),
        (40 / 3600, "about 40 seconds"),
        (100 / 3600, "about 2 minutes"),
        (1.5, "about 1.5 hours"),
    ],
)
def test_times_in_words(hours: float, words: str) -> None:
    assert span(hours) == words


def test_a_line_stands_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not behind one, where the next drawing of it would leave half of the line."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console()
    with console.steps("codec", 0, 10) as bar:
        bar.refresh()
        console.say("a line")
        bar.refresh()
    before, after = terminal.getvalue().split("a line")
    assert re.search(r"codec.*\r +\r$", before, re.DOTALL)
    assert after.startswith("\n")
    assert "codec" in after


def test_reports_that_took_long_are_kept_in_reserve(
    folder: Path, run: Path, seconds: Seconds, slow: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last sheet takes as long as the ones before, and none is made just before it."""
    made: list[float] = []

    def sheet(_: Reports) -> None:
        seconds.now += 30
        made.append(seconds.now)

    monkeypatch.setattr("flowcept.training.loop.time", seconds)
    monkeypatch.setattr(Reports, "sheet", sheet)
    train.train(folder, run, bounded(100).changed(sample_every=5), quiet=True)
    assert made == [40, 100]
    assert not slow, "the codec is there"
