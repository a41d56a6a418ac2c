"""Whole clips at another frame rate or speed."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from live_bytes import Live
from PIL import Image

from flowcept import retime
from flowcept.data import ffmpeg, video
from flowcept.errors import UserError
from flowcept.retime import Given, Retimer, grid_of
from flowcept.settings import RetimeConfig

HEIGHT, WIDTH, SIDE = 48, 64, 14
BACKGROUND, SQUARE = (40, 80, 120), (230, 200, 40)


def drawn(lefts, alpha=False):
    """A square whose left side is at each of these columns."""
    frames = np.empty((len(lefts), HEIGHT, WIDTH, 4), np.uint8)
    frames[:] = (*BACKGROUND, 0)
    for frame, left in zip(frames, lefts, strict=True):
        frame[16 : 16 + SIDE, left : left + SIDE] = (*SQUARE, 255)
    return frames if alpha else frames[..., :3]


def place(frame_HW3):
    """Where the square's left side is, to parts of a pixel, by how much of the row it has."""
    row_W = frame_HW3[22, :, 0].astype(float)
    share_W = ((row_W - BACKGROUND[0]) / (SQUARE[0] - BACKGROUND[0])).clip(0, 1)
    return float((share_W * (np.arange(WIDTH) + 0.5)).sum() / share_W.sum() - SIDE / 2)


def noise(frames, seed):
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def no_motion(first_CHW, _second_CHW):
    """An estimator that takes no time."""
    return torch.zeros(2, *first_CHW.shape[1:])


def quick(**settings):
    return Retimer(estimator=no_motion, config=RetimeConfig(**settings))


def written(name, frames, fps=24):
    video.write_video(Path(name), frames, fps)
    return Path(name)


def with_sound(name, frames, fps=24, delay=0.0, codec="aac"):
    """A clip with a second of a tone, which begins `delay` later than the pictures."""
    silent = written(f"silent-{name}", frames, fps)
    tone = ["-f", "lavfi", "-itsoffset", str(delay), "-i", "sine=f=440:d=1"]
    arguments = ["-nostdin", "-i", silent, *tone, "-c:v", "copy", "-c:a", codec, name]
    with ffmpeg.Run([str(one) for one in arguments]) as run:
        assert run.wait() == 0, run.complaints
    return Path(name)


def seconds_of_sound(path):
    """When the first sound stream begins and ends."""
    wave = ["-map", "0:a:0", "-af", "aresample=async=1:first_pts=0,aformat=s16:8000:mono"]
    arguments = ["-nostdin", *ffmpeg.source(path), *wave, "-f", "s16le", "-"]
    with ffmpeg.Run(arguments) as run:
        wave_S = np.frombuffer(run.output.read(), np.int16)
        run.wait()
    (loud,) = np.nonzero(np.abs(wave_S.astype(int)) > 300)
    return loud[0] / 8000, loud[-1] / 8000


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- times ---------------------------------------------------------------------------------------


def test_every_frame_is_at_its_exact_time():
    """24 to 60 frames a second: a square at 48 pixels a second is where its time says."""
    written("clip.apng", drawn(range(4, 24, 2)), 24)
    made = Retimer(config=RetimeConfig(target_fps=60)).retime(Path("clip.apng"), Path("o.apng"))
    frames, fps = video.read_video(Path("o.apng"))
    assert (fps, len(frames), made.count) == (60, 25, 25)
    for number, frame in enumerate(frames):
        expected = min(4 + 48 * number / 60, 22)
        assert place(frame) == pytest.approx(expected, abs=0.35), number


def test_variable_durations_are_real_times():
    """A square moves 48 pixels a second; its pictures are 1/24 to 1/6 of a second apart."""
    starts = np.array([0, 1, 3, 4, 8, 9])  # in 24ths of a second
    pictures = [Image.fromarray(one) for one in drawn(4 + 2 * starts)]
    durations = [1000 * step / 24 for step in np.diff([*starts, 10])]
    pictures[0].save("clip.apng", save_all=True, append_images=pictures[1:], duration=durations)
    Retimer(config=RetimeConfig(target_fps=48)).retime(Path("clip.apng"), Path("o.apng"))
    frames, fps = video.read_video(Path("o.apng"))
    assert (fps, len(frames)) == (48, 20)
    for number, frame in enumerate(frames):
        assert place(frame) == pytest.approx(min(4 + number, 22), abs=0.6), number


@pytest.mark.parametrize(
    ("fps", "target", "slow", "count"),
    [(24, None, 1, 20), (24, 60, 1, 25), (24, 24, 1, 10), (24, 10, 1, 4), (24, None, 4, 40),
     (24, 48, 2, 40), (24, None, 0.5, 5), (30000 / 1001, 60000 / 1001, 1, 20)],
)  # fmt: skip
def test_the_result_lasts_as_long(fps, target, slow, count):
    clip = written("clip.mp4", drawn(range(4, 14)), fps)
    made = quick(target_fps=target, slow=slow).retime(clip, Path("o.mp4"))
    timing = video.probe(Path("o.mp4"), decode=True)
    assert made.count == timing.num_frames == count
    assert timing.fps == pytest.approx(target or (fps if slow != 1 else 2 * fps))
    assert abs(count / timing.fps - slow * 10 / fps) <= 0.5 / timing.fps


def test_given_pictures_keep_their_bits():
    clip = written("clip.apng", noise(5, 0), 12)
    quick().retime(clip, Path("o.apng"))
    frames, _ = video.read_video(Path("o.apng"))
    assert np.array_equal(frames[::2], noise(5, 0))


def test_multi_and_playback_rate():
    reel = video.open_reel(written("clip.apng", noise(6, 0), 12))
    assert grid_of(reel, RetimeConfig(), multi=3) == retime.Grid(24, 48, 1)
    slower = grid_of(reel, RetimeConfig(), multi=1, fps=12)
    assert (slower.count, slower.fps, slower.pace) == (12, 12, 2)
    assert slower.time(3) == pytest.approx(3 / 24)


# ---- sound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("o.mp4", "aac"), ("o.webm", "aac"), ("o.mov", "mp3")])
def test_sound_is_kept_where_the_pace_is(name, codec):
    clip = with_sound("clip.mp4", drawn(range(4, 28)), codec=codec)
    made = quick().retime(clip, Path(name))
    assert made.notes == []
    assert seconds_of_sound(Path(name)) == pytest.approx(seconds_of_sound(clip), abs=0.03)
    kept = codec if name != "o.webm" else "opus"
    assert ffmpeg.sound_codec(Path(name)) == kept


def test_sound_that_begins_later_still_does():
    clip = with_sound("clip.mkv.mp4", drawn(range(4, 34)), delay=0.25)
    quick().retime(clip, Path("o.mp4"))
    start, _ = seconds_of_sound(Path("o.mp4"))
    assert start == pytest.approx(0.25, abs=0.04)


def test_sound_is_left_out_where_the_pace_changes():
    clip = with_sound("clip.mp4", drawn(range(4, 28)))
    made = quick(slow=4).retime(clip, Path("o.mp4"))
    assert made.notes == ["sound is left out: the clip plays 4 times as long"]
    assert not video.has_sound(Path("o.mp4"))


# ---- a stream ------------------------------------------------------------------------------------


class Counted(Given):
    """A given picture; the class knows how many are alive, and how many were at most."""

    alive = most = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= 1


@pytest.mark.parametrize("frames", [12, 40])
def test_few_pictures_are_held(frames, monkeypatch):
    monkeypatch.setattr(retime, "Given", Counted)
    Counted.most = Counted.alive
    quick().retime(written("clip.apng", noise(frames, 0)), Path("o.apng"))
    gc.collect()
    assert 4 <= Counted.most <= 6


def test_memory_does_not_grow_with_the_clip():
    def peak(frames):
        clip = written(f"{frames}.apng", noise(frames, 0))
        with Live([]) as live:
            quick().retime(clip, Path(f"o{frames}.apng"))
        return live.peak

    assert peak(32) <= 1.1 * peak(8)


class Asked:
    """An estimator that counts what it is asked."""

    def __init__(self):
        self.times = 0

    def __call__(self, first_CHW, second_CHW):
        self.times += 1
        return no_motion(first_CHW, second_CHW)


def test_two_flows_a_gap():
    asked = Asked()
    Retimer(estimator=asked, config=RetimeConfig(target_fps=96)).retime(
        written("clip.apng", drawn(range(4, 13))), Path("o.apng")
    )
    assert asked.times == 2 * 8


@pytest.mark.parametrize(
    "name", ["o.mp4", "o.webm", "o.gif", "o.webp", "o.apng", "o", "o-%03d.png"]
)
def test_what_is_finished_when_stopped_is_whole(name):
    clip = with_sound("clip.mp4", drawn(range(4, 28)))
    seen = []
    made = quick().retime(clip, Path(name), watch=seen.append, stopped=lambda: len(seen) == 7)
    assert made.count == 7
    assert seen == [48] * 7
    assert any("stopped: 7 of 48 frames" in note for note in made.notes)
    if "%" in name:
        assert len(list(Path().glob("o-*.png"))) == 7
        return
    assert video.probe(Path(name), decode=True).num_frames == 7
    if video.has_sound(Path(name)):
        assert seconds_of_sound(Path(name))[1] < 7 / 48 + 0.1
    assert not list(Path().glob(".*"))


def test_a_damaged_clip_leaves_nothing():
    whole = written("clip.mp4", noise(12, 0))
    Path("cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"cannot read cut\.mp4"):
        quick().retime(Path("cut.mp4"), Path("o.mp4"))
    assert not Path("o.mp4").exists()
    assert not list(Path().glob(".*"))


def test_one_picture_is_refused():
    written("one.apng", noise(1, 0))
    with pytest.raises(UserError, match="is a picture: give a clip"):
        quick().retime(Path("one.apng"), Path("o.apng"))


# ---- cuts, repeats, dissolves --------------------------------------------------------------------


def scene(frames, seed):
    """A smooth picture that pans by two pixels a frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return np.stack([wide[:, 2 * n : 2 * n + WIDTH] for n in range(frames)])


def test_nothing_is_blended_across_a_cut():
    given = np.concatenate([scene(5, 1), scene(5, 2), scene(5, 3)])
    made = Retimer().retime(written("clip.apng", given), Path("o.apng"))
    frames, _ = video.read_video(Path("o.apng"))
    assert made.notes == ["2 scene cuts: frames are repeated there"]
    for cut in (4, 9):
        assert np.array_equal(frames[2 * cut + 1], given[cut])
    assert not np.array_equal(frames[3], given[1])


def test_a_pan_has_no_cut():
    made = Retimer().retime(written("clip.apng", scene(12, 1)), Path("o.apng"))
    assert made.notes == []


def test_repeats_are_told_and_made_anew():
    """On twos: each picture twice, but the square moves on between them once they are made."""
    clip = written("clip.apng", drawn(np.repeat(range(4, 24, 4), 2)), 24)
    told = Retimer(config=RetimeConfig(target_fps=24)).retime(clip, Path("kept.apng"))
    assert told.notes == ["5 frames like the one before: --dedupe replaces them"]
    assert np.array_equal(video.read_video(Path("kept.apng"))[0], video.read_video(clip)[0])

    config = RetimeConfig(target_fps=24, dedupe=True)
    made = Retimer(config=config).retime(clip, Path("o.apng"))
    frames, _ = video.read_video(Path("o.apng"))
    assert made.notes == ["5 repeated frames replaced"]
    assert [place(one) for one in frames] == pytest.approx(
        [4, 6, 8, 10, 12, 14, 16, 18, 20, 20], abs=0.5
    )


def test_a_rest_is_not_made_anew():
    """A picture that stands for long stands until its end; then things move at their own pace."""
    clip = written("clip.apng", drawn([4] * 8 + [8, 12]), 24)
    made = quick(dedupe=True, target_fps=24).retime(clip, Path("o.apng"))
    assert made.notes == []
    assert np.array_equal(video.read_video(Path("o.apng"))[0], video.read_video(clip)[0])


def test_equal_frames_alone_are_a_clip():
    clip = written("clip.apng", drawn([4, 4, 4]), 24)
    made = quick(dedupe=True).retime(clip, Path("o.apng"))
    assert made.count == 6
    assert (video.read_video(Path("o.apng"))[0] == drawn([4])).all()


def test_repeats_survive_encoding():
    clip = written("clip.mp4", np.repeat(scene(5, 1), 2, 0), 24)
    made = quick(target_fps=24).retime(clip, Path("o.mp4"))
    assert made.notes[0].startswith("5 frames like")


def test_too_much_motion_dissolves():
    """Noise that has nothing to do with its neighbours: the middle is their mean."""
    given = noise(4, 0)
    made = Retimer().retime(written("clip.apng", given), Path("o.apng"))
    frames, _ = video.read_video(Path("o.apng"))
    assert made.notes == ["3 gaps with too much motion: frames are blended there"]
    mean = (given[0].astype(int) + given[1]) / 2
    assert np.abs(frames[1] - mean).max() <= 0.5


def test_still_parts_stay_bit_still():
    given = scene(1, 5).repeat(6, 0)
    given[:, 16:30, :30] = drawn(range(4, 16, 2))[:, 16:30, :30]
    Retimer().retime(written("clip.apng", given), Path("o.apng"))
    frames, _ = video.read_video(Path("o.apng"))
    assert (frames[:, :, 48:] == given[0, :, 48:]).all()


# ---- alpha ---------------------------------------------------------------------------------------


def seen_through(name, lefts):
    pictures = [Image.fromarray(one, "RGBA") for one in drawn(lefts, alpha=True)]
    pictures[0].save(name, save_all=True, append_images=pictures[1:], duration=50, lossless=True)
    return Path(name)


def with_alpha(path):
    return np.stack(list(video.open_reel(path).pictures()))


@pytest.mark.parametrize("name", ["o.apng", "o.webp", "o", "o.webm"])
def test_alpha_moves_with_the_colours(name):
    clip = seen_through("clip.webp", range(4, 24, 4))
    made = Retimer().retime(clip, Path(name))
    assert made.notes == []
    frames = with_alpha(Path(name))
    assert frames.shape == (10, HEIGHT, WIDTH, 4)
    exact = name != "o.webm"
    for number, frame in enumerate(frames):
        alpha_W = frame[22, :, 3] / 255
        middle = (alpha_W * (np.arange(WIDTH) + 0.5)).sum() / alpha_W.sum()
        assert middle - SIDE / 2 == pytest.approx(min(4 + 2 * number, 20), abs=0.6)
        inner = frame[22, round(middle) - 3 : round(middle) + 3]
        assert np.abs(inner.astype(int) - (*SQUARE, 255)).max() <= (2 if exact else 40)
    if exact:
        shown = frames[::2][..., 3] > 0
        assert np.array_equal(frames[::2][shown], drawn(range(4, 24, 4), alpha=True)[shown])


def test_lost_transparency_is_told():
    clip = seen_through("clip.webp", range(4, 24, 4))
    made = quick().retime(clip, Path("o.mp4"))
    assert made.notes == ["transparency is lost: this format has none; webm, webp, apng and PNG do"]
    frame = video.read_video(Path("o.mp4"))[0][0]
    assert frame[2, 2].min() > 250  # on white


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(flow):
    clip = written("clip.mp4", drawn(range(4, 14)))
    result = flow("interp", clip, "--target-fps", 60)
    assert result.out == "clip-60fps.mp4: 25 frames of 64x48 at 60 fps\n"
    assert (result.status, result.err) == (0, "")
    told = json.loads(flow("info", "clip-60fps.mp4", "--json").out)
    assert (told["command"], told["target_fps"], told["learned"]) == ("interp", 60, True)
    again = flow("interp", clip, "--target-fps", 60, "--json")
    assert json.loads(again.out)[0]["output"] == "clip-60fps-2.mp4"


def test_several_clips_go_into_a_folder(flow):
    for name in ("a.mp4", "b.webp"):
        written(name, drawn(range(4, 8)))
    result = flow("interp", "a.mp4", "b.webp", "-o", "made/")
    assert not result.err, result.err
    assert result.out == (
        "made/a-smooth.mp4 (1 of 2): 8 frames of 64x48 at 48 fps\n"
        "made/b-smooth.webp (2 of 2): 8 frames of 64x48 at 48 fps\n"
    )
    assert sorted(one.name for one in Path("made").iterdir()) == ["a-smooth.mp4", "b-smooth.webp"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["clip.mp4", "--slow", "0"], "--slow"),
        (["clip.mp4", "--target-fps", "0"], "--target-fps"),
        (["clip.mp4", "--multi", "-1"], "--multi"),
        (["clip.mp4", "--multi", "3", "--target-fps", "60"], "leave one out"),
        (["clip.mp4", "--target-fps", "60", "-o", "clip.mp4"], "is an input"),
        (["clip.mp4", "clip.mp4", "-o", "made.mp4"], "folder"),
        (["clip.mp4", "a.png", "--slow", "2"], "a.png is a picture"),
        (["clip.mp4", "--slow", "2", "-m", "a.png"], "a.png"),
        (["clip.mp4", "--slow", "2", "-o", "a.png/o.mp4"], "a.png is a file"),
        (["gone.mp4", "--slow", "2"], "gone.mp4"),
        (["clip.mp4", "--slow", "2", "--count", "2"], "--count"),
        (["clip.mp4", "clip.mp4", "--frames", "9"], "--frames"),
        (["clip.mp4", "--slow", "2", "-p", "a dog"], "leave out --model and --prompt"),
        (["clip.mp4", "--slow", "2", "-m", "theatre"], "leave out --model and --prompt"),
    ],
)
def test_what_is_wrong_is_one_line(flow, words, told):
    written("clip.mp4", drawn(range(4, 8)))
    Image.fromarray(drawn([4])[0]).save("a.png")
    before = sorted(Path().iterdir())
    result = flow("interp", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert told in result.err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("came", [[], [signal.SIGINT]])
def test_a_part_does_not_replace_an_older_clip(flow, tiny_motion, monkeypatch, came):
    written("clip.apng", drawn(range(4, 8)))
    words = ["interp", "clip.apng", "-m", tiny_motion, "-o", "old.apng"]
    assert flow(*words).status == 0
    old = Path("old.apng").read_bytes()
    monkeypatch.setattr("flowcept.stopping.noticed", lambda: contextlib.nullcontext(came))
    result = flow(*words, "--multi", 2)
    if came:
        assert result.status == 130
        assert Path("old.apng").read_bytes() == old
        assert "old-part.apng: 1 frame of" in result.out
        assert video.probe(Path("old-part.apng")).num_frames == 1
    else:
        assert result.status == 0
        assert "old.apng: 12 frames of" in result.out
        assert video.probe(Path("old.apng")).num_frames == 12
        assert not Path("old-part.apng").exists()


@pytest.mark.skipif(os.name != "posix", reason="no SIGINT to send")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_finished(number):
    """As a terminal sends it: to the whole group of processes, encoders too."""
    clip = written("clip.mp4", np.concatenate([drawn(range(4, 44))] * 4))
    command = [sys.executable, "-m", "flowcept", "interp", clip, "--slow", "8", "-o", "o.mp4"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    until = time.monotonic() + 120
    while not list(Path().glob(".*.mp4")) and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(2)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    kept = video.probe(Path("o.mp4"), decode=True).num_frames
    assert 1 <= kept < 1280
    assert f"note: stopped: {kept} of 1280 frames are written\n" in out
    assert err.endswith("flowcept: interrupted\n")
    assert not list(Path().glob(".*"))
