"""What stands around a command: stdout, stderr, signals, names, temporary files."""

from __future__ import annotations

import builtins
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures_data import run
from PIL import Image

from flowcept import cli
from flowcept.data import video

PROGRAM = f"{shlex.quote(sys.executable)} -m flowcept"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWCEPT_MODEL", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def fast(tiny_model):
    return ["-m", str(tiny_model), "--steps", "1", "--seed", "1", "--frames", "2"]


posix = pytest.mark.skipif(os.name != "posix", reason="needs a shell")


@posix
def test_a_clip_goes_to_stdout_without_any_stderr(fast):
    words = shlex.join(["gen", "a dog", *fast, "--scale", "1", "-o", "-"])
    done = subprocess.run(f"{PROGRAM} {words} 2>&- >o.mp4", shell=True, check=False)
    assert done.returncode == 0
    assert video.probe(Path("o.mp4")).num_frames == 2
    assert os.listdir() == ["o.mp4"]  # noqa: PTH208


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_stdout_is_one_line_and_the_clip_is_there(fast):
    words = shlex.join(["gen", "a dog", *fast, "--scale", "1", "-o", "o.mp4", "-q", "--json"])
    command = f"{PROGRAM} {words} >/dev/full"
    done = subprocess.run(command, shell=True, check=False, capture_output=True)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line == "flowcept: cannot write to stdout: No space left on device"
    assert video.probe(Path("o.mp4")).num_frames == 2


@posix
def test_being_terminated_leaves_nothing_half_written():
    command = [sys.executable, "-m", "flowcept", "shapes", "out", "--clips", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not list(Path().glob("out/0*.apng")):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not [path for path in Path().rglob(".*") if path.is_file()]


def test_stopped_while_it_is_read_the_program_says_nothing(monkeypatch):
    from flowcept import __main__

    def interrupted(name, *_):
        if name == "flowcept":
            raise KeyboardInterrupt
        return real(name, *_)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 130


def test_json_is_json_on_any_console(flow, fast):
    told = flow("gen", "\N{DOG FACE} é", *fast, "--scale", 1, "--json", "-o", "o.mp4").out
    assert told.isascii()
    assert json.loads(told)[0]["prompt"] == "\N{DOG FACE} é"


@pytest.mark.parametrize("stdout", [["--count", 2], ["--json"], ["--format", "xyz"]])
def test_stdout_takes_one_clip_alone(flow, fast, stdout):
    result = flow("gen", "a", *fast, "-o", "-", *stdout)
    assert (result.status, result.out) == (2, "")
    assert result.err.count("\n") == 1


def test_a_percent_sign_is_a_letter_like_others(flow, fast):
    assert flow("gen", "a", *fast, "--scale", 1, "-o", "100%done.mp4").status == 0
    assert video.probe(Path("100%done.mp4")).num_frames == 2


def test_a_prompt_that_looks_like_an_option_gets_the_way_out(flow, fast):
    result = flow("gen", "-a dog", *fast)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "that begins with - after --" in result.err
    assert flow("gen", *fast, "--scale", 1, "-o", "o.mp4", "--", "-a dog").status == 0


def test_no_temporary_folder_is_needed(flow, fast, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    assert flow("gen", "a", *fast, "--scale", 1, "-o", "o.mp4").status == 0
    assert flow("extend", "o.mp4", *fast, "-o", "p.gif").status == 0
    assert len(video.read_video(Path("p.gif"))[0]) == 4
    left = {path.name for path in Path().iterdir()} - {Path(tempfile.gettempdir()).name}
    assert left == {"o.mp4", "p.gif"}
    assert Path(tempfile.gettempdir()).parent == Path.cwd()


def test_a_large_photograph_is_no_attack(flow, fast, monkeypatch):
    Image.new("RGB", (40, 40), "red").save("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    result = flow("i2v", "a.png", *fast, "--scale", 1, "-q", "-o", "o.mp4")
    assert (result.status, result.err) == (0, "")


def test_pictures_that_lose_pixels_are_named(flow):
    for name, size in (("a.png", (24, 24)), ("wide.png", (72, 24)), ("same.png", (24, 24))):
        Image.new("RGB", size, "red").save(name)
    words = ["--frames", 4, "--steps", 1, "--seed", 1, "-o", "o.apng"]
    result = flow("interp", "a.png", "wide.png", "same.png", *words)
    assert result.status == 0, result.err
    notes = [line for line in result.out.splitlines() if "cropped" in line]
    assert notes == ["note: wide.png is cropped from 72x24 to 24x24, keeping the middle 24x24"]


def test_notes_of_another_program_are_not_ours(flow):
    frames_FHW3 = np.zeros((2, 16, 16, 3), np.uint8)
    video.write_video(Path("a.mp4"), frames_FHW3, 12, metadata={"prompt": "x", "workflow": {}})
    result = flow("info", "a.mp4")
    assert (result.status, result.out) == (2, "")
    assert "another program" in result.err
    assert "prompt, workflow" in result.err


def test_sound_can_be_left_out(flow, fast):
    sound = ["-f", "lavfi", "-i", "sine=d=1"]
    run("-f", "lavfi", "-i", "testsrc2=s=16x16:r=10:d=1", *sound, "-pix_fmt", "yuv420p", "b.mp4")
    assert video.has_sound(Path("b.mp4"))
    for flags, kept in (([], True), (["--no-sound"], False)):
        assert flow("extend", "b.mp4", *fast, *flags, "-o", "o.mp4").status == 0
        assert video.has_sound(Path("o.mp4")) == kept
        assert flow("interp", "b.mp4", *flags, "-o", "p.mp4").status == 0
        assert video.has_sound(Path("p.mp4")) == kept


def test_streams_that_are_absent_swallow_what_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    cli._tell_nobody()
    print("nobody hears this")
    print("nor this", file=sys.stderr)
