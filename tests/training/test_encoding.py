"""Clips into shards: whole or not there, the same however often stopped, by one or by several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_data import put
from fixtures_model import write_model

from flowcept import model_file
from flowcept.codecs import to_images
from flowcept.data import folder as data
from flowcept.data import video
from flowcept.data.encoded import EncodedClips, read_index
from flowcept.errors import UserError
from flowcept.settings import DataSettings, EncodeSettings
from flowcept.training import encoding
from flowcept.training.encoding import encode

TESTS = Path(__file__).parents[1]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Seven clips of 4 to 10 frames, the last two without a caption."""
    folder = tmp_path / "clips"
    for number in range(7):
        caption = f"a dog number {number % 3}" if number < 5 else None
        put(folder / f"{number}.apng", 4 + number, caption=caption)
    return folder


def settings_of(model: Path, **changes: object) -> EncodeSettings:
    asked = {"codec": str(model), "shard_clips": 2, "dtype": "float32", "device": "cpu"}
    return EncodeSettings(**(asked | changes))


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def refused(clips: Path, out: Path, settings: EncodeSettings) -> str:
    with pytest.raises(UserError) as error:
        encode(clips, out, settings, quiet=True)
    text = str(error.value)
    assert text.splitlines() == [text]
    return text


def command(clips: Path, out: Path, model: Path, *more: object) -> list[str]:
    """The command, in a process of its own that also knows the fake codec."""
    words = ["flowcept", "encode", clips, "-o", out, "--codec", model, "--shard-clips", 2]
    words += ["--dtype", "float32", "--device", "cpu", *more]
    start = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import fake_codec\n"
    start += "from flowcept import cli\n"
    start += f"sys.argv = {[*map(str, words)]!r}; cli.main()"
    return [sys.executable, "-c", start]


# ---- what shards hold


def test_shards_hold_what_the_codec_makes_of_the_clips(clips, tiny_model, tmp_path):
    said: list[str] = []
    out = tmp_path / "shards"
    index = encode(clips, out, settings_of(tiny_model), console=said.append)
    assert index == read_index(out)
    assert sorted(files_of(out)) == [f"clips-{number:05d}.safetensors" for number in range(4)]
    store = EncodedClips(out, index, pytest.fail)
    assert store.lengths == [4, 5, 6, 7, 8, 9, 10]
    assert store.captions == [*[f"a dog number {n % 3}" for n in range(5)], "", ""]
    assert set(store.sizes) == {(32, 32)}

    codec = model_file.load(tiny_model).codec
    scan = data.scan(clips, DataSettings("32"))
    for number, entry in enumerate(scan.entries):
        image_FCHW = to_images(data.load_clip(scan, entry))
        expected = codec.encode_clip(image_FCHW).half().float()
        torch.testing.assert_close(store.latent(number), expected, rtol=1e-3, atol=1e-3)
        middle = image_FCHW[len(image_FCHW) // 2][None]
        assert store.psnr_of([number]) == [pytest.approx(codec.psnr(middle), abs=0.01)]
    assert said[-1].startswith(f"{out}: 7 clips in 4 shards")
    assert oct((out / "clips-00000.safetensors").stat().st_mode)[-3:] == "644"


def test_pictures_off_the_grid_are_left_out_and_named(clips, tmp_path):
    model, said = write_model(tmp_path / "video.safetensors", "fake-video"), list[str]()
    index = encode(clips, tmp_path / "shards", settings_of(model), console=said.append)
    assert [clip.num_frames for clip in index.clips] == [1, 5, 5, 5, 5, 9, 9]
    lost = [line for line in said if "left out: a latent holds 4 frames" in line]
    assert len(lost) == 5  # of six clips, two of which fill their latents
    assert EncodedClips(tmp_path / "shards", index, pytest.fail).lengths == [1, 2, 2, 2, 2, 3, 3]


def test_pieces_of_a_long_clip_stay_together(tmp_path, tiny_model):
    put(tmp_path / "clips" / "a.apng", 5)
    put(tmp_path / "clips" / "b.apng", 23)
    put(tmp_path / "clips" / "c.apng", 5)
    index = encode(
        tmp_path / "clips", tmp_path / "shards", settings_of(tiny_model, max_frames=6), quiet=True
    )
    assert list(index.clip_shards().values()) == [[0, 1, 2, 3, 4], [5]]
    store = EncodedClips(tmp_path / "shards", index, pytest.fail)
    assert store.lengths == [5, 5, 6, 6, 6, 5]
    whole = torch.cat([store.latent(number) for number in range(1, 5)])
    codec = model_file.load(tiny_model).codec
    frames_FHW3, _ = video.fit(video.read_video(tmp_path / "clips" / "b.apng")[0], (32, 32))
    expected = codec.encode_clip(to_images(frames_FHW3))
    torch.testing.assert_close(whole, expected, rtol=2e-3, atol=2e-3)


# ---- sizes


def test_clips_are_counted_by_the_size_that_crops_them_least(tmp_path, tiny_model):
    shapes = [(16, 32), (18, 32), (32, 16), (24, 24), (25, 24)]
    for number, (height, width) in enumerate(shapes):
        frames = np.full((4, height, width, 3), 90, np.uint8)
        video.write_video(tmp_path / "clips" / f"{number}.apng", frames, 10) if number else None
        if not number:
            (tmp_path / "clips").mkdir()
            video.write_video(tmp_path / "clips" / "0.apng", frames, 10)
    said: list[str] = []
    asked = settings_of(tiny_model, buckets="64x64")
    index = encode(tmp_path / "clips", tmp_path / "shards", asked, console=said.append)
    got = [clip.size for clip in index.clips]
    assert got[3] == got[4] == (64, 64)
    assert got[0] == got[1]
    assert got[0][1] > got[0][0]
    assert got[2] == got[0][::-1]
    assert sum(line.startswith("size ") for line in said) == 3
    assert "size 64x64: 2 files, 2% cropped on average, 4% at most" in said
    for height, width in got:
        assert height % 16 == width % 16 == 0
        assert 0.7 < height * width / 64**2 < 1.3


def test_one_size_on_the_grid_or_none(clips, tiny_model, tmp_path):
    index = encode(clips, tmp_path / "a", settings_of(tiny_model, size="48x32"), quiet=True)
    assert index.size == (32, 48)
    told = refused(clips, tmp_path / "b", settings_of(tiny_model, size="50x32"))
    assert "whose sides are multiples of 16: try" in told
    assert "48x32" in told
    assert not (tmp_path / "b").exists()
    for words in ({"buckets": "wide"}, {"buckets": "64x64", "size": "32"}, {"size": "x"}):
        with pytest.raises(UserError):
            settings_of(tiny_model, **words)


# ---- stopped, shared, damaged


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_what_was_stopped_goes_on_to_the_same_shards(
    clips, tiny_model, tmp_path, monkeypatch, stop
):
    settings = settings_of(tiny_model)
    encode(clips, tmp_path / "whole", settings, quiet=True)
    real, encoded = encoding.Shard.add, list[int]()

    def add(shard: encoding.Shard, numbers: list[int]) -> None:
        if len(encoded) == 3:
            raise stop
        encoded.extend(numbers)
        real(shard, numbers)

    out = tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr(encoding.Shard, "add", add)
        with pytest.raises(stop):
            encode(clips, out, settings, quiet=True)
    assert sorted(files_of(out)) == ["clips-00000.safetensors"]
    encoded.clear()
    monkeypatch.setattr(encoding.Shard, "add", lambda s, n: encoded.extend(n) or real(s, n))
    said: list[str] = []
    encode(clips, out, settings, console=said.append)
    assert said[0] == "1 of 4 shards exist already"
    assert encoded == [2, 3, 4, 5, 6]
    assert files_of(out) == files_of(tmp_path / "whole")
    encoded.clear()
    encode(clips, out, settings, quiet=True)
    assert not encoded


def test_killed_and_run_again_the_shards_are_the_same(clips, tiny_model, tmp_path):
    encode(clips, tmp_path / "whole", settings_of(tiny_model), quiet=True)
    out = tmp_path / "shards"
    running = subprocess.Popen(command(clips, out, tiny_model, "-q"))
    while not (out / "clips-00000.safetensors").exists():
        assert running.poll() is None
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    encode(clips, out, settings_of(tiny_model), quiet=True)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_two_processes_share_the_work(clips, tiny_model, tmp_path):
    encode(clips, tmp_path / "whole", settings_of(tiny_model), quiet=True)
    out = tmp_path / "shards"
    running = [
        subprocess.Popen(command(clips, out, tiny_model), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert files_of(out) == files_of(tmp_path / "whole")
    assert all(f"{out}: 7 clips in 4 shards" in text for text in told)
    assert sum("clips found" in text for text in told) == 1  # one of them made the index
    assert [path.name for path in out.glob("*.lock")] == ["index.lock"]


def test_a_damaged_shard_is_made_again(clips, tiny_model, tmp_path):
    out, settings = tmp_path / "shards", settings_of(tiny_model)
    encode(clips, out, settings, quiet=True)
    whole = files_of(out)
    shard = out / "clips-00001.safetensors"
    shard.write_bytes(whole[shard.name][:-7])
    said: list[str] = []
    encode(clips, out, settings, console=said.append)
    assert said[0] == f"note: {shard} is damaged and is made again"
    assert files_of(out) == whole
    # One of other shards is left to its owner.
    encode(clips, tmp_path / "other", settings_of(tiny_model, size="48"), quiet=True)
    foreign = (tmp_path / "other" / shard.name).read_bytes()
    shard.write_bytes(foreign)
    assert "belongs to other shards" in refused(clips, out, settings)
    assert shard.read_bytes() == foreign


def test_shards_of_something_else_are_left_alone(clips, tiny_model, tmp_path):
    out = tmp_path / "shards"
    encode(clips, out, settings_of(tiny_model), quiet=True)
    whole = files_of(out)
    other_model = write_model(tmp_path / "pixels.safetensors", "pixels")
    for changes, differs in (
        ({"fit": "pad"}, "--fit"),
        ({"size": "48"}, "sizes"),
        ({"max_frames": 5}, "clips"),
        ({"shard_clips": 3}, "--shard-clips"),
        ({"codec": str(other_model)}, "--codec"),
    ):
        told = refused(clips, out, settings_of(tiny_model, **changes))
        assert f"holds shards made with other {differs}" in told
    (clips / "0.txt").write_text("another caption")
    assert "made with other clips" in refused(clips, out, settings_of(tiny_model))
    assert files_of(out) == whole

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert "holds other files" in refused(clips, tmp_path / "full", settings_of(tiny_model))
    assert "holds other files" in refused(clips, clips, settings_of(tiny_model))
    assert "cannot write" in refused(
        clips, tmp_path / "full" / "thesis.txt", settings_of(tiny_model)
    )


def test_files_that_break_later_are_named_and_left_out(clips, tiny_model, tmp_path, monkeypatch):
    real, said = data.read_pieces, list[str]()

    def read_pieces(scan: data.Scan, entries):
        yield from real(scan, entries)
        if entries[0].path.name in ("1.apng", "2.apng"):
            raise UserError(f"{entries[0].path} holds 3 frames, not 5 as when scanned")

    monkeypatch.setattr(data, "read_pieces", read_pieces)
    index = encode(clips, tmp_path / "shards", settings_of(tiny_model), console=said.append)
    assert EncodedClips(tmp_path / "shards", index, pytest.fail).lengths == [4, 7, 8, 9, 10]
    assert "dropped 1.apng: it holds 3 frames, not 5 as when scanned" in said
    monkeypatch.setattr(data, "read_pieces", lambda *_: iter([]))
    for path in clips.glob("*.apng"):
        path.write_bytes(b"no clip")
    assert "none of its 7 clips can be used" in refused(
        clips, tmp_path / "none", settings_of(tiny_model)
    )
    assert not (tmp_path / "none").exists()


# ---- the command


def test_the_command_says_what_is_wrong_in_one_line(clips, tiny_model, tmp_path, flow):
    for words, told in (
        ([tmp_path / "nowhere"], "no folder"),
        ([clips], "--codec is missing"),
        ([clips, "--codec", "nothing"], "no model 'nothing'"),
        ([clips, "--codec", tiny_model, "--text", tmp_path], "holds no text encoder"),
        ([clips, "--codec", tiny_model, "--buckets", "big"], "--buckets must be an area"),
        ([clips, "--codec", tiny_model, "--fit", "fill"], "--fit must be crop, pad or stretch"),
    ):
        wrong = flow("encode", *words, "-o", "out")
        assert (wrong.status, wrong.err.count("\n")) == (2, 1), wrong.err
        assert told in wrong.err
        assert not (tmp_path / "out").exists()
    done = flow("encode", clips, "--codec", tiny_model, "-o", "out")
    assert done.status == 0
    assert done.out.endswith(f"next: flowcept train out --init {tiny_model}\n")
