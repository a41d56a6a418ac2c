"""What ffmpeg says is not what it quotes; its time stamps need no decoding; it ends with us."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_data import made, run

from flowcept.data import ffmpeg, video
from flowcept.data.timing import Timing
from flowcept.data.video import probe, read_video, stream
from flowcept.errors import UserError

QUOTES = [
    "the match ended prematurely",
    "File ended prematurely",
    "stream 0, offset 0x30: partial file; corrupt decoded frame; concealing 9 DC",
    "a\n[error] Decoding error: x",
    "[Parsed_showinfo_0 @ 0x1] [info] n: 0 pts: 7 pts_time:1 s:9x9 i:P",
    "Stream mapping:",
    "Stream #0:1: Audio: aac",
]


@pytest.mark.parametrize("quote", QUOTES)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_words_of_a_file_are_no_complaint(tmp_path: Path, quote: str, suffix: str):
    path = made(tmp_path / f"a{suffix}", "-metadata", f"title={quote}", "-metadata", f"x={quote}")
    assert probe(path) == Timing(25.0, 25)
    assert read_video(path)[0].shape == (25, 48, 64, 3)
    assert not video.has_sound(path)


def test_words_of_a_name_are_no_complaint(tmp_path: Path):
    path = made(tmp_path / "Decoding error" / "partial file, corrupt input packet.mp4")
    assert probe(path).num_frames == len(read_video(path)[0]) == 25


def test_a_prompt_does_not_spoil_its_clip(tmp_path: Path):
    metadata = {"prompt": "the match ended prematurely"}
    frames_FHW3 = np.zeros((3, 16, 16, 3), np.uint8)
    assert video.write_video(tmp_path / "a.mp4", frames_FHW3, 12, metadata=metadata) == ""
    assert video.read_metadata(tmp_path / "a.mp4") == metadata


INTACT = {
    "plain.mp4": [],
    "b-frames.mkv": ["-bf", 3],
    "short.mov": ["-frames:v", 1],
    "vp8.webm": ["-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-lag-in-frames", 16],
    "ntsc.mp4": ["-r", "30000/1001"],
    "gaps.mp4": ["-vf", "select='not(mod(n,3))+gt(n,15)'", "-fps_mode", "vfr"],
    "motion.avi": ["-c:v", "mjpeg"],
}
IN_DOUBT = {
    "b-frames.avi": ["-c:v", "mpeg4", "-bf", 2],
    "interlaced.mp4": ["-vf", "setfield=tff", "-flags", "+ildct+ilme", "-x264opts", "tff=1"],
}


@pytest.mark.parametrize("name", [*INTACT, *IN_DOUBT])
def test_packets_say_what_decoding_would(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    path = made(tmp_path / name, *{**INTACT, **IN_DOUBT}[name])
    frames_FHW3, fps = read_video(path)
    decoded = probe(path, decode=True)
    assert (decoded.num_frames, decoded.fps) == (len(frames_FHW3), fps)
    if name in INTACT:
        monkeypatch.setattr(ffmpeg.Film, "pictures", lambda *_: pytest.fail("it was decoded"))
    assert probe(path) == decoded


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_a_cut_without_encoding_hides_is_not_counted(tmp_path: Path, suffix: str):
    whole = made(tmp_path / "whole.mp4", "-g", 12)
    path = tmp_path / f"cut{suffix}"
    run("-ss", 0.7, "-i", whole, "-c", "copy", path)
    assert probe(path).num_frames == len(read_video(path)[0])


@pytest.mark.parametrize("name", ["plain.mp4", "gaps.mp4", "b-frames.avi"])
def test_a_stream_is_what_is_read(tmp_path: Path, name: str):
    path = made(tmp_path / name, *{**INTACT, **IN_DOUBT}[name])
    frames_FHW3, _ = read_video(path)
    np.testing.assert_array_equal(np.stack(list(stream(path))), frames_FHW3)
    np.testing.assert_array_equal(np.stack(list(stream(path, probe(path)))), frames_FHW3)
    other = made(tmp_path / f"other{path.suffix}", "-t", 0.4)
    with pytest.raises(UserError, match="holds 10 frames, not"):
        list(stream(other, probe(path)))


def children(of: int) -> list[int]:
    """Processes whose parent is `of`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == of and fields[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_no_ffmpeg_outlives_its_reader(tmp_path: Path):
    path = made(tmp_path / "long.mp4", source="testsrc2=s=320x240:r=25:d=20")
    before = children(os.getpid())
    frames = stream(path)
    next(frames)
    assert children(os.getpid()) != before
    frames.close()
    assert children(os.getpid()) == before
    with pytest.raises(ZeroDivisionError):
        for _ in stream(path):
            1 / 0  # noqa: B018
    assert children(os.getpid()) == before

    code = (
        "import sys, time; from pathlib import Path; from flowcept.data.video import stream\n"
        "frames = stream(Path(sys.argv[1])); next(frames); print('!', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.read(1)
        (child,) = children(reader.pid)
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end, "ffmpeg is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_no_ffmpeg_outlives_a_stop_while_it_starts(
    raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    started = []
    real = subprocess.Popen

    def stopped(*arguments: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **keywords))
        signal.raise_signal(signal.SIGTERM)
        return started[0]

    def handler(*_: object) -> None:
        raise raised

    before = signal.signal(signal.SIGTERM, handler)
    try:
        monkeypatch.setattr(subprocess, "Popen", stopped)
        with pytest.raises(raised), ffmpeg.Run(["-f", "rawvideo", "-i", "-"], feed=True):
            pytest.fail("it was stopped")
        assert started[0].returncode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_memory_does_not_grow_with_a_clip(tmp_path: Path):
    """120 frames of 6.2 MB are read within 60 MB."""
    pytest.importorskip("resource")
    path = made(tmp_path / "big.mp4", "-preset", "ultrafast", source="color=s=1920x1080:r=30:d=4")
    code = (
        "import resource, sys; from pathlib import Path; from flowcept.data.video import stream\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); count = sum(1 for _ in stream(Path(sys.argv[1])))\n"
        "assert count == 120; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or kilobytes
    assert int(done.stdout) * unit < 60e6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "a.mp4")
    for read in (read_video, probe, video.read_metadata):
        with pytest.raises(UserError, match="not a regular file"):
            read(tmp_path / "a.mp4")
