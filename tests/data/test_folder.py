"""The data folder: what is found, what becomes of it, and the two caches."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowcept.codecs import CodecConfig, build_codec, to_images
from flowcept.data import folder as data
from flowcept.data import video
from flowcept.data.folder import (
    DataConfig,
    FrameStore,
    LatentStore,
    load_clip,
    scan,
    split_held_out,
)
from flowcept.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIZE = (16, 16)
CONFIG = DataConfig(size=SIZE)


def numbered(frames: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames whose grey is ten times their index, so that a frame tells which one it is."""
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 10
    return np.broadcast_to(grey, (frames, *size, 3)).copy()


def indices(frames_FHW3: np.ndarray) -> list[int]:
    assert np.ptp(frames_FHW3, axis=(1, 2, 3)).max() == 0
    return (frames_FHW3[:, 0, 0, 0] // 10).tolist()


def put(path: Path, frames: int = 4, fps: float = 10, caption: str | None = None) -> Path:
    """A lossless clip; `caption` goes into the text file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write_video(path, numbered(frames), fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def put_images(folder: Path, frames: int) -> Path:
    folder.mkdir(parents=True)
    for i, frame_HW3 in enumerate(numbered(frames)):
        Image.fromarray(frame_HW3).save(folder / f"{i}.png")
    return folder


def captions(result: data.Scan) -> dict[str, str]:
    return {entry.path.name: entry.caption for entry in result.entries}


def test_captions_from_text_files(tmp_path: Path):
    put(tmp_path / "a.apng", caption=" a dog\n surfing \n")
    put(tmp_path / "sub" / "b.apng", caption="ein Hund, überall")
    put(tmp_path / "c.apng")
    (tmp_path / "README.txt").write_text("no clip")
    (tmp_path / ".hidden.mp4").write_bytes(b"")
    result = scan(tmp_path, CONFIG)
    assert captions(result) == {
        "a.apng": "a dog surfing",
        "b.apng": "ein Hund, überall",
        "c.apng": "",
    }
    assert len(result.findings) == 3


@pytest.mark.parametrize("path_key", ["file_name", "video", "path"])
@pytest.mark.parametrize("caption_key", ["caption", "text", "prompt"])
def test_captions_from_jsonl(tmp_path: Path, path_key: str, caption_key: str):
    put(tmp_path / "in" / "a.apng", caption="not this one")
    put(tmp_path / "unnamed.apng")
    line = json.dumps({path_key: "in/a.apng", caption_key: "a \u2028 cat", "other": 1})
    (tmp_path / "metadata.jsonl").write_text(f"\n{line}\n", encoding="utf-8")
    assert captions(scan(tmp_path, CONFIG)) == {"a.apng": "a cat"}


def test_captions_from_csv(tmp_path: Path):
    for name in "abc":
        put(tmp_path / f"{name}.apng")
    rows = 'id, video ,prompt\n1,a.apng,"one, two\nthree"\n2,b.apng,\n'
    (tmp_path / "metadata.csv").write_text("\ufeff" + rows, encoding="utf-8")
    assert captions(scan(tmp_path, CONFIG)) == {"a.apng": "one, two three", "b.apng": ""}


def test_captions_from_paired_files(tmp_path: Path):
    for name in "abc":
        put(tmp_path / f"{name}.apng")
    (tmp_path / "videos.txt").write_text("b.apng\na.apng\n")
    (tmp_path / "prompts.txt").write_text("bee\nay\n")
    assert captions(scan(tmp_path, CONFIG)) == {"b.apng": "bee", "a.apng": "ay"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.apng"}\n{"file_name": ', "metadata.jsonl, line 2: "),
        ("metadata.jsonl", '\n\n["a.apng"]', "metadata.jsonl, line 3: "),
        ("metadata.jsonl", '{"text": "no file"}', "names no clip"),
        ("metadata.jsonl", '{"file_name": 7}', "names no clip"),
        ("metadata.jsonl", '{"file_name": "a.apng", "text": ["x"]}', "line 1: the caption is not"),
        ("metadata.jsonl", b'{"file_name": "a.apng"}\n\xff\xfe', "line 2: is not UTF-8"),
        ("metadata.csv", "clip,text\na.apng,x\n", "metadata.csv, line 1: no column"),
        ("metadata.csv", "", "metadata.csv, line 1: no column"),
        ("metadata.csv", "video,text\na.apng,x\na.apng,x,y\n", "metadata.csv, line 3: "),
        ("metadata.csv", "video,text\na.apng\n", "metadata.csv, line 2: "),
        ("metadata.csv", 'video,text\na.apng,"x\n', "metadata.csv, line 2: is not CSV"),
        ("videos.txt", "a.apng\n", "prompts.txt"),
        ("prompts.txt", "a dog\n", "needs videos.txt"),
    ],
)
def test_malformed_lists_name_file_and_line(
    tmp_path: Path, name: str, text: str | bytes, said: str
):
    put(tmp_path / "a.apng")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"\S") as caught:
        scan(tmp_path, CONFIG)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paired_files_must_match_and_lists_must_not_compete(tmp_path: Path):
    put(tmp_path / "a.apng")
    (tmp_path / "videos.txt").write_text("a.apng\na.apng\n")
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(UserError, match=r"line 3: videos.txt has 2 lines and prompts.txt 3"):
        scan(tmp_path, CONFIG)
    (tmp_path / "prompts.txt").write_text("one\n\n")
    assert [entry.caption for entry in scan(tmp_path, CONFIG).entries] == ["one", ""]
    (tmp_path / "metadata.csv").write_text("video\na.apng\n")
    with pytest.raises(UserError, match="keep one"):
        scan(tmp_path, CONFIG)


def test_rate_is_the_most_common_and_others_are_resampled(tmp_path: Path):
    put(tmp_path / "a.apng", 6, fps=10)
    put(tmp_path / "b.apng", 6, fps=10)
    put(tmp_path / "fast.apng", 12, fps=20)
    put(tmp_path / "slow.apng", 3, fps=5)
    Image.new("RGB", SIZE).save(tmp_path / "still.png")
    result = scan(tmp_path, CONFIG)
    assert result.fps == 10
    clips = {e.path.name: indices(load_clip(e, CONFIG, result.fps)) for e in result.entries}
    assert clips["a.apng"] == [0, 1, 2, 3, 4, 5]
    assert clips["fast.apng"] == [0, 2, 4, 6, 8, 10]
    assert clips["slow.apng"] == [0, 0, 1, 1, 2, 2]
    assert clips["still.png"] == [0]
    assert "from 12 at 20" in next(f.reason for f in result.findings if f.path.stem == "fast")
    slower = DataConfig(size=SIZE, fps=4)
    entry = scan(tmp_path, slower).entries[0]
    # Times 0, 0.25 s of a clip of 0.6 s: frames 0 and 2.5, of which the earlier.
    assert indices(load_clip(entry, slower, 4)) == [0, 2]


def test_rates_that_differ_by_rounding_are_one():
    entry = data.ClipEntry(Path("a"), "", 0, 300, 30000 / 1001, 300)
    assert data._source_frames(entry, 30).tolist() == list(range(300))


def test_resampled_frames_are_the_nearest_in_time():
    rng = np.random.default_rng(0)
    for _ in range(200):
        source, fps, frames = *rng.uniform(1, 60, 2), int(rng.integers(2, 100))
        if data._same_rate(source, fps):
            continue
        total = max(1, round(frames * fps / source))
        entry = data.ClipEntry(Path("a"), "", 0, total, source, frames)
        chosen = data._source_frames(entry, fps)
        distance = np.abs(np.arange(frames) / source - np.arange(total)[:, None] / fps)
        picked = distance[np.arange(total), chosen]
        assert np.allclose(picked, distance.min(1), atol=1e-5)
        assert (np.diff(chosen) >= 0).all()


@pytest.mark.parametrize(
    ("frames", "longest", "pieces"), [(8, 8, [8]), (9, 8, [4, 5]), (23, 8, [7, 8, 8])]
)
def test_long_clips_are_cut_evenly(tmp_path: Path, frames: int, longest: int, pieces: list[int]):
    put(tmp_path / "a.apng", frames, caption="x")
    config = DataConfig(size=SIZE, max_frames=longest)
    result = scan(tmp_path, config)
    assert sorted(entry.num_frames for entry in result.entries) == pieces
    assert {entry.caption for entry in result.entries} == {"x"}
    shown = [i for e in result.entries for i in indices(load_clip(e, config, result.fps))]
    assert shown == list(range(frames))
    finding = result.findings[0]
    assert (finding.verdict, finding.num_frames) == ("cut" if len(pieces) > 1 else "kept", frames)
    assert result.lengths() == {n: pieces.count(n) for n in sorted(set(pieces))}


def test_short_clips_and_pieces_are_dropped(tmp_path: Path):
    put(tmp_path / "a.apng", 5)
    put(tmp_path / "b.apng", 2)
    put(tmp_path / "c.apng", 9)
    result = scan(tmp_path, DataConfig(size=SIZE, min_frames=5, max_frames=8))
    assert [(e.path.stem, e.start, e.num_frames) for e in result.entries] == [
        ("a", 0, 5),
        ("c", 4, 5),
    ]
    found = {finding.path.stem: finding for finding in result.findings}
    assert [found[name].verdict for name in "abc"] == ["kept", "dropped", "cut"]
    assert found["b"].reason == "2 frames, under the minimum of 5"
    assert "1 of them under the minimum of 5" in found["c"].reason


def test_broken_files_are_findings(tmp_path: Path):
    put(tmp_path / "good.apng")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.webm").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.gif").write_bytes(b"GIF89a nonsense")
    (tmp_path / "odd.wmv").write_bytes(b"a kind that is not read")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.webp").write_bytes(b"RIFF\0\0\0\0WEBPVP8X")
    put(tmp_path / "latin.apng")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    calls: list[tuple[int, int]] = []
    result = scan(tmp_path, CONFIG, progress=lambda done, total: calls.append((done, total)))
    assert [entry.path.stem for entry in result.entries] == ["good"]
    dropped = {f.path.name: f.reason for f in result.findings if f.verdict == "dropped"}
    assert set(dropped) == {
        *("empty.mp4", "noise.webm", "noise.gif", "odd.wmv", "bad.webp", "latin.apng")
    }
    assert all(reason and "\n" not in reason for reason in dropped.values())
    assert "UTF-8" in dropped["latin.apng"]
    assert calls == [(i, 7) for i in range(1, 8)]


def test_clips_named_but_missing_are_findings(tmp_path: Path):
    put(tmp_path / "a.apng")
    (tmp_path / "metadata.csv").write_text("video\nlost.mp4\na.apng\n")
    findings = scan(tmp_path, CONFIG).findings
    assert [finding.verdict for finding in findings] == ["dropped", "kept"]
    assert "does not exist" in findings[0].reason


def test_nothing_left_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        scan(tmp_path / "nowhere", CONFIG)
    with pytest.raises(UserError, match="no clips here"):
        scan(tmp_path, CONFIG)
    clip = put(tmp_path / "a.apng", 2)
    with pytest.raises(UserError, match="is not a folder"):
        scan(clip, CONFIG)
    with pytest.raises(UserError, match="1 x 2 frames, under the minimum of 3"):
        scan(tmp_path, DataConfig(size=SIZE, min_frames=3))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (0, 16)},
        {"fps": -1.0},
        {"fps": float("nan")},
        {"min_frames": 0},
        {"min_frames": 9, "max_frames": 8},
        {"fit": "squeeze"},
    ],
)
def test_impossible_settings_are_user_errors(settings: dict):
    with pytest.raises(UserError):
        DataConfig(**{"size": SIZE, **settings})


def test_images_are_one_frame_and_folders_of_images_one_clip(tmp_path: Path):
    put_images(tmp_path / "walk", 12)
    (tmp_path / "walk.txt").write_text("a walk")
    Image.new("RGB", SIZE, (50, 50, 50)).save(tmp_path / "one.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "two.jpg")
    put_images(tmp_path / "mixed" / "inner", 2)
    put(tmp_path / "mixed" / "clip.apng", 3)
    result = scan(tmp_path, CONFIG)
    found = {entry.path.name: entry for entry in result.entries}
    assert {name: entry.num_frames for name, entry in found.items()} == {
        "walk": 12,
        "one.png": 1,
        "two.jpg": 1,
        "inner": 2,
        "clip.apng": 4 if result.fps > 10 else 3,
    }
    assert found["walk"].caption == "a walk"
    # Natural order: 10.png comes after 9.png.
    assert indices(load_clip(found["walk"], CONFIG, result.fps)) == list(range(12))
    assert load_clip(found["two.jpg"], CONFIG, result.fps).shape == (1, *SIZE, 3)


def test_summary_says_what_happened(tmp_path: Path):
    put(tmp_path / "a.apng", 4, fps=10, caption="x")
    put(tmp_path / "b.apng", 9, fps=10)
    put(tmp_path / "c.apng", 8, fps=20)
    (tmp_path / "bad.mp4").write_bytes(b"")
    text = "\n".join(scan(tmp_path, DataConfig(size=SIZE, max_frames=5)).summary())
    assert "4 clips found: 2 kept, 1 cut, 1 dropped" in text
    assert "4 training clips of 17 frames in all, 3 without a caption" in text
    assert f"dropped {tmp_path / 'bad.mp4'}: " in text
    assert "training rate 10 frames per second; rates found: 10 (2 clips), 20 (1 clips)" in text
    assert text.splitlines()[-2:] == [f"          4 {'#' * 40} 3", f"          5 {'#' * 14} 1"]


def test_histogram_counts_everything_in_few_rows():
    counts = {1: 5, 17: 1, 100: 2}
    lines = data._histogram(counts)
    assert len(lines) <= 16
    assert sum(int(line.split()[-1]) for line in lines) == 8
    assert lines[0].split() == ["1-7", "#" * 40, "5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    put(root / "a.apng", 5, caption="ay")
    put(root / "b.apng", 9, caption="bee")
    put_images(root / "c", 3)
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files read from now on."""
    names: list[str] = []
    original = video.read_video

    def read(path: Path, **options: int) -> tuple[np.ndarray, float]:
        names.append(path.name)
        return original(path, **options)

    monkeypatch.setattr(video, "read_video", read)
    return names


def test_frame_store_holds_every_clip(folder: Path, tmp_path: Path, decoded: list[str]):
    config = DataConfig(size=SIZE, max_frames=6, fps=10)
    result = scan(folder, config)
    calls: list[tuple[int, int]] = []
    decoded.clear()
    store = FrameStore(result, config, tmp_path / "new" / "cache", lambda *c: calls.append(c))
    assert decoded == ["a.apng", "b.apng", "c"]  # a cut clip is read once
    assert len(store) == len(result.entries) == 4
    assert store.captions == ["ay", "bee", "bee", ""]
    assert store.lengths == [entry.num_frames for entry in result.entries]
    assert calls[-1] == (sum(store.lengths), sum(store.lengths))
    for i, entry in enumerate(result.entries):
        frames_FHW3 = store.frames(i)
        assert frames_FHW3.dtype == np.uint8
        assert np.array_equal(frames_FHW3, load_clip(entry, config, result.fps))
    assert np.array_equal(store.frames(-1), store.frames(3))
    with pytest.raises(IndexError):
        store.frames(4)
    assert isinstance(store.array, np.memmap)


def test_frame_store_is_used_again_only_for_the_same_input(
    folder: Path, tmp_path: Path, decoded: list[str]
):
    cache = tmp_path / "cache"

    def build(config: DataConfig = CONFIG) -> FrameStore:
        result = scan(folder, config)
        decoded.clear()
        return FrameStore(result, config, cache)

    build()
    assert decoded
    build()
    assert decoded == []
    (folder / "a.txt").write_text("another caption")
    assert build().captions[0] == "another caption"
    assert decoded == []  # captions are not frames
    build(DataConfig(size=SIZE, fit="pad"))
    assert decoded
    build()
    assert decoded  # the cache holds one version
    stat = (folder / "a.apng").stat()
    os.utime(folder / "a.apng", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    build()
    assert decoded
    Image.new("RGB", SIZE, (200, 0, 0)).save(folder / "c" / "1.png")
    assert build().frames(2)[1, 0, 0].tolist() == [200, 0, 0]
    (folder / "b.apng").unlink()
    assert len(build()) == 2
    build()
    assert decoded == []
    (cache / "frames.npy").write_bytes((cache / "frames.npy").read_bytes()[:-1])
    assert indices(build().frames(0)) == [0, 1, 2, 3, 4]
    assert decoded
    (cache / "frames.json").write_text("[1]")
    build()
    assert decoded


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interrupted_build_leaves_nothing_usable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
):
    cache = tmp_path / "cache"
    FrameStore(scan(folder, CONFIG), CONFIG, cache)
    other = DataConfig(size=(8, 8))
    original = video.read_video

    def read(path: Path, **options: int) -> tuple[np.ndarray, float]:
        if path.name == "b.apng":
            raise stop
        return original(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(video, "read_video", read)
        with pytest.raises(stop):
            FrameStore(scan(folder, other), other, cache)
    # The old cache is whole, the new one does not exist, and no temporary file is left.
    assert sorted(path.name for path in cache.iterdir()) == ["frames.json", "frames.npy"]
    assert indices(FrameStore(scan(folder, CONFIG), CONFIG, cache).frames(0)) == [0, 1, 2, 3, 4]
    assert FrameStore(scan(folder, other), other, cache).frames(1).shape == (9, 8, 8, 3)


def test_a_build_killed_between_its_files_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
):
    """The array is in place, its note is not: neither old nor new may be taken for valid."""
    cache = tmp_path / "cache"
    FrameStore(scan(folder, CONFIG), CONFIG, cache)
    other = DataConfig(size=SIZE, fit="pad")  # as many rows as before
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            FrameStore(scan(folder, other), other, cache)
    decoded.clear()
    assert indices(FrameStore(scan(folder, CONFIG), CONFIG, cache).frames(0)) == [0, 1, 2, 3, 4]
    assert decoded


def test_clip_that_breaks_after_the_scan_is_left_out(folder: Path, tmp_path: Path):
    config = DataConfig(size=SIZE, max_frames=6, fps=10)
    result = scan(folder, config)
    (folder / "b.apng").write_bytes((folder / "b.apng").read_bytes()[:60])
    for _ in range(2):  # built, then read back
        store = FrameStore(result, config, tmp_path / "cache")
        assert store.captions == ["ay", ""]
        assert store.lengths == [5, 3]
        assert indices(store.frames(1)) == [0, 1, 2]
        assert [(f.path.name, f.verdict, f.num_frames) for f in store.findings] == [
            ("b.apng", "dropped", 9)
        ]
    (folder / "a.apng").unlink()
    put(folder / "a.apng", 2)  # shorter than it was
    store = FrameStore(result, config, tmp_path / "cache")
    assert "holds 2 frames, not 5" in store.findings[0].reason
    for name in ("a.apng", "b.apng"):
        (folder / name).unlink()
    for image in (folder / "c").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="no clip could be decoded"):
        FrameStore(result, config, tmp_path / "cache2")
    assert list((tmp_path / "cache2").iterdir()) == []


def test_full_or_forbidden_disk_is_a_user_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = scan(folder, CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        FrameStore(result, CONFIG, tmp_path / "file")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="smaller size"):
        FrameStore(result, CONFIG, tmp_path / "cache")


def test_images_of_frames():
    frames_FHW3 = np.array([[[[0, 255, 51]]]], dtype=np.uint8)
    image_FCHW = to_images(frames_FHW3)
    assert image_FCHW.shape == (1, 3, 1, 1)
    assert torch.allclose(image_FCHW.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


@pytest.fixture
def encoder() -> Callable[[int], data.Encoder]:
    def make(seed: int) -> data.Encoder:
        torch.manual_seed(seed)
        return build_codec(CodecConfig(compression=4, channels=4, width=8)).eval()

    return make


def test_latents_equal_the_codec(
    folder: Path,
    tmp_path: Path,
    encoder: Callable[[int], data.Encoder],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(data, "ENCODE_CHUNK", 4)  # chunks that end within clips
    codec = encoder(0)
    frames = FrameStore(scan(folder, CONFIG), CONFIG, tmp_path)
    calls: list[tuple[int, int]] = []
    store = LatentStore(
        frames,
        codec,
        tmp_path,
        device="cpu",
        dtype=torch.float32,
        progress=lambda *c: calls.append(c),
    )
    assert (len(store), store.captions, store.lengths) == (3, frames.captions, frames.lengths)
    for i in range(len(store)):
        latent_FCHW = store.latent(i)
        assert latent_FCHW.dtype == torch.float32
        expected = codec.encode(to_images(frames.frames(i)))
        assert latent_FCHW.shape == expected.shape == (frames.lengths[i], 4, 4, 4)
        assert torch.allclose(latent_FCHW, expected, rtol=2**-10, atol=1e-5)
    assert calls[-1] == (len(frames.array), len(frames.array))
    assert store.array.dtype == np.float16


def test_latents_follow_frames_and_codec(
    folder: Path, tmp_path: Path, encoder: Callable[[int], data.Encoder]
):
    def build(codec: data.Encoder, config: DataConfig = CONFIG) -> tuple[LatentStore, int]:
        frames = FrameStore(scan(folder, config), config, tmp_path)
        calls: list[int] = []
        store = LatentStore(
            frames,
            codec,
            tmp_path,
            device="cpu",
            dtype=torch.float32,
            progress=lambda done, _: calls.append(done),
        )
        return store, len(calls)

    first, calls = build(encoder(0))
    assert calls > 0
    again, calls = build(encoder(0))
    assert calls == 0
    assert torch.equal(first.latent(1), again.latent(1))
    codec = encoder(0)
    codec.std_C.mul_(2)
    scaled, calls = build(codec)
    assert calls > 0
    assert torch.allclose(scaled.latent(1), first.latent(1) / 2, rtol=2**-9, atol=1e-4)
    _, calls = build(codec, DataConfig(size=(8, 8)))
    assert calls > 0


def test_latents_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, encoder: Callable[[int], data.Encoder]
):
    codec = encoder(0)
    codec.mean_C.fill_(float("nan"))
    frames = FrameStore(scan(folder, CONFIG), CONFIG, tmp_path)
    with pytest.raises(UserError, match="not finite"):
        LatentStore(frames, codec, tmp_path, device="cpu", dtype=torch.float32)
    assert not (tmp_path / "latents.npy").exists()
    assert not list(tmp_path.glob(".latents*"))


@pytest.mark.parametrize(
    ("n", "fraction", "held"),
    [(100, 0.1, 10), (10, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (50, 0, 0), (0, 0.1, 0)],
)
def test_held_out_split(n: int, fraction: float, held: int):
    train, out = split_held_out(n, fraction, seed=3)
    assert len(out) == held
    assert sorted(train + out) == list(range(n))
    assert (train, out) == split_held_out(n, fraction, seed=3)


def test_held_out_split_depends_on_the_seed_and_keeps_groups():
    assert split_held_out(100, 0.2, 0) != split_held_out(100, 0.2, 1)
    groups = [i // 3 for i in range(60)]
    train, out = split_held_out(60, 0.25, 0, groups)
    assert len(out) == 15
    assert not {groups[i] for i in train} & {groups[i] for i in out}
    with pytest.raises(UserError, match="held-out"):
        split_held_out(10, 1.0, 0)


def test_real_clips(tmp_path: Path):
    clips = SHARED / "clips"
    if not clips.is_dir():
        pytest.skip("the real clips of ../shared/data are absent")
    config = DataConfig(size=(64, 64), fps=10, max_frames=16)
    result = scan(clips, config)
    assert len(result.findings) == 13
    assert all(entry.caption for entry in result.entries)
    # All have 17 frames: five at 10 per second are cut, those at 24 to 30 become shorter.
    assert result.lengths() == {6: 5, 7: 3, 8: 5, 9: 5}
    assert scan(clips, DataConfig(size=(64, 64))).fps == 10
    store = FrameStore(result, config, tmp_path)
    assert store.findings == []
    assert all(store.frames(i).std() > 10 for i in range(len(store)))
    assert all(np.ptp(store.frames(i), axis=0).max() > 20 for i in range(len(store)))


def test_sprites_become_a_data_folder(tmp_path: Path):
    sheets = SHARED / "sprites_lpc"
    if not sheets.is_dir():
        pytest.skip("the sprite sheets of ../shared/data are absent")
    script = Path(__file__).parents[1] / "make_sprites.py"
    out = tmp_path / "sprites"
    command = [sys.executable, str(script), str(sheets), str(out), "--clips", "24", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    subprocess.run(command, check=True, env=environment)
    result = scan(out, DataConfig(size=(64, 64)))
    assert len(result.entries) == 24
    assert all(finding.verdict == "kept" for finding in result.findings)
    assert set(result.lengths()) <= {6, 7, 8, 9, 13}
    lengths = {"casting": 7, "thrusting": 8, "walking": 9, "slashing": 6, "drawing": 13}
    for entry in result.entries:
        action = next((word for word in lengths if word in entry.caption), None)
        assert entry.num_frames == (lengths[action] if action else 6)
    frames_FHW3 = load_clip(result.entries[0], DataConfig(size=(64, 64)), result.fps)
    assert (frames_FHW3[:, 0, 0] == frames_FHW3[0, 0, 0]).all()  # the background is plain
    assert np.ptp(frames_FHW3.astype(int), axis=0).max() > 50  # and something moves


def test_a_folder_of_animations_is_not_one_clip(tmp_path: Path):
    for name, frames in (("a", 3), ("b", 4)):
        put(tmp_path / "clips" / f"{name}.webp", frames)
    assert scan(tmp_path, CONFIG).lengths() == {3: 1, 4: 1}
