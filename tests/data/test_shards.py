"""The two caches: each clip decoded once, encoded once, whole or not there."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_codec import fake_config
from fixtures_data import SIZE, indices, put, put_images
from PIL import Image

from flowcept.codecs import Codec, CodecConfig, build_codec, to_images
from flowcept.data import shards, video
from flowcept.data.folder import load_clip, scan
from flowcept.data.shards import LatentStore, PictureStore
from flowcept.data.timing import Timing
from flowcept.errors import UserError
from flowcept.settings import DataSettings

CONFIG = DataSettings(size="16")
encoded = partial(LatentStore, device="cpu", dtype=torch.float32)


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
    original = video.stream

    def stream(path: Path, expected: Timing | None = None) -> Iterator[np.ndarray]:
        names.append(path.name)
        return original(path, expected)

    monkeypatch.setattr(video, "stream", stream)
    return names


def test_picture_store_holds_every_clip(folder: Path, tmp_path: Path, decoded: list[str]):
    config = DataSettings(size="16", max_frames=6, fps=10)
    result = scan(folder, config)
    calls: list[tuple[int, int]] = []
    decoded.clear()
    store = PictureStore(result, tmp_path / "new" / "cache", lambda *c: calls.append(c))
    assert decoded == ["a.apng", "b.apng", "c"]  # a cut clip is read once
    assert len(store) == len(result.entries) == 4
    assert store.captions == ["ay", "bee", "bee", ""]
    assert store.lengths == [entry.num_frames for entry in result.entries]
    assert calls[-1] == (sum(store.lengths), sum(store.lengths))
    for i, entry in enumerate(result.entries):
        frames_FHW3 = store.frames(i)
        assert frames_FHW3.dtype == np.uint8
        assert np.array_equal(frames_FHW3, load_clip(result, entry))
    assert np.array_equal(store.frames(-1), store.frames(3))
    with pytest.raises(IndexError):
        store.frames(4)
    assert isinstance(store.array, np.memmap)


def test_picture_store_is_used_again_only_for_the_same_input(
    folder: Path, tmp_path: Path, decoded: list[str]
):
    cache = tmp_path / "cache"

    def build(config: DataSettings = CONFIG) -> PictureStore:
        result = scan(folder, config)
        decoded.clear()
        return PictureStore(result, cache)

    build()
    assert decoded
    build()
    assert decoded == []
    (folder / "a.txt").write_text("another caption")
    assert build().captions[0] == "another caption"
    assert decoded == []  # captions are not frames
    build(DataSettings(size="16", fit="pad"))
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
    (cache / "pictures.bin").write_bytes((cache / "pictures.bin").read_bytes()[:-1])
    assert indices(build().frames(0)) == [0, 1, 2, 3, 4]
    assert decoded
    (cache / "pictures.json").write_text("[1]")
    build()
    assert decoded


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interrupted_build_leaves_nothing_usable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
):
    cache = tmp_path / "cache"
    PictureStore(scan(folder, CONFIG), cache)
    other = DataSettings(size="8")
    original = video.stream

    def stream(path: Path, expected: Timing | None = None) -> Iterator[np.ndarray]:
        if path.name == "b.apng":
            raise stop
        return original(path, expected)

    with monkeypatch.context() as patch:
        patch.setattr(video, "stream", stream)
        with pytest.raises(stop):
            PictureStore(scan(folder, other), cache)
    # The old cache is whole, the new one does not exist, and no temporary file is left.
    assert sorted(path.name for path in cache.iterdir()) == ["pictures.bin", "pictures.json"]
    assert indices(PictureStore(scan(folder, CONFIG), cache).frames(0)) == [0, 1, 2, 3, 4]
    assert PictureStore(scan(folder, other), cache).frames(1).shape == (9, 8, 8, 3)


def test_a_build_killed_between_its_files_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
):
    """The array is in place, its note is not: neither old nor new may be taken for valid."""
    cache = tmp_path / "cache"
    PictureStore(scan(folder, CONFIG), cache)
    other = DataSettings(size="16", fit="pad")  # as many rows as before
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            PictureStore(scan(folder, other), cache)
    decoded.clear()
    assert indices(PictureStore(scan(folder, CONFIG), cache).frames(0)) == [0, 1, 2, 3, 4]
    assert decoded


def test_clip_that_breaks_after_the_scan_is_left_out(folder: Path, tmp_path: Path):
    config = DataSettings(size="16", max_frames=6, fps=10)
    result = scan(folder, config)
    (folder / "b.apng").write_bytes((folder / "b.apng").read_bytes()[:60])
    for _ in range(2):  # built, then read back
        store = PictureStore(result, tmp_path / "cache")
        assert store.captions == ["ay", ""]
        assert store.lengths == [5, 3]
        assert indices(store.frames(1)) == [0, 1, 2]
        assert [(f.path.name, f.verdict, f.num_frames) for f in store.findings] == [
            ("b.apng", "dropped", 9)
        ]
    (folder / "a.apng").unlink()
    put(folder / "a.apng", 2)  # shorter than it was
    store = PictureStore(result, tmp_path / "cache")
    assert "holds 2 frames, not 5" in store.findings[0].reason
    for name in ("a.apng", "b.apng"):
        (folder / name).unlink()
    for image in (folder / "c").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="no clip could be decoded"):
        PictureStore(result, tmp_path / "cache2")
    assert list((tmp_path / "cache2").iterdir()) == []


def test_full_or_forbidden_disk_is_a_user_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = scan(folder, CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        PictureStore(result, tmp_path / "file")
    pictures = PictureStore(result, tmp_path / "whole")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"the pictures need .* smaller size"):
        PictureStore(result, tmp_path / "cache")
    with pytest.raises(UserError, match=r"the latents need .* smaller size"):
        encoded(pictures, build_codec(CodecConfig("pixels", 1, 3)), tmp_path / "whole")


def test_images_of_frames():
    frames_FHW3 = np.array([[[[0, 255, 51]]]], dtype=np.uint8)
    image_FCHW = to_images(frames_FHW3)
    assert image_FCHW.shape == (1, 3, 1, 1)
    assert torch.allclose(image_FCHW.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


@pytest.fixture
def encoder() -> Callable[[int], Codec]:
    def make(seed: int) -> Codec:
        torch.manual_seed(seed)
        return build_codec(CodecConfig(compression=4, channels=4, width=8)).eval()

    return make


def test_latents_equal_the_codec(
    folder: Path,
    tmp_path: Path,
    encoder: Callable[[int], Codec],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shards, "ENCODE_CHUNK", 4)  # chunks that end within clips
    codec = encoder(0)
    frames = PictureStore(scan(folder, CONFIG), tmp_path)
    calls: list[tuple[int, int]] = []
    store = encoded(frames, codec, tmp_path, progress=lambda *c: calls.append(c))
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
    folder: Path, tmp_path: Path, encoder: Callable[[int], Codec]
):
    def build(codec: Codec, config: DataSettings = CONFIG) -> tuple[LatentStore, int]:
        frames = PictureStore(scan(folder, config), tmp_path)
        calls: list[int] = []
        store = encoded(frames, codec, tmp_path, progress=lambda done, _: calls.append(done))
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
    _, calls = build(codec, DataSettings(size="8"))
    assert calls > 0


def test_latents_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, encoder: Callable[[int], Codec]
):
    codec = encoder(0)
    codec.mean_C.fill_(float("nan"))
    frames = PictureStore(scan(folder, CONFIG), tmp_path)
    with pytest.raises(UserError, match="not finite"):
        encoded(frames, codec, tmp_path)
    assert not (tmp_path / "latents.bin").exists()
    assert not list(tmp_path.glob(".*"))


def test_clips_of_a_video_codec_are_encoded_whole(folder: Path, tmp_path: Path):
    """Four pictures a latent: 5 and 9 pictures fit, of the third clip's 3 one is left."""
    codec = build_codec(fake_config()).eval()
    pictures = PictureStore(scan(folder, CONFIG), tmp_path)
    calls: list[tuple[int, int]] = []
    store = encoded(pictures, codec, tmp_path, progress=lambda *c: calls.append(c))
    assert (pictures.lengths, store.lengths) == ([5, 9, 3], [2, 3, 1])
    assert calls == 2 * [(5, 17), (14, 17), (17, 17)]  # whole, then the last pictures alone
    for i, kept in enumerate([5, 9, 1]):
        frames_FHW3 = pictures.frames(i)[:kept]
        latent_FCHW = store.latent(i)
        assert torch.equal(latent_FCHW, codec.encode_clip(to_images(frames_FHW3)).half().float())
        assert len(latent_FCHW) == store.lengths[i]
    assert [finding.path.name for finding in store.findings] == ["c"]
    assert str(store.findings[0]).endswith(
        "the last 2 of 3 frames from 0 on are left out: a latent holds 4 frames"
    )


def test_the_last_picture_of_every_latent_is_stored_alone(folder: Path, tmp_path: Path):
    """Of video codecs; in a cache of its own."""
    codec = build_codec(fake_config(compression=2))
    pictures = PictureStore(scan(folder, CONFIG), tmp_path)
    store = encoded(pictures, codec, tmp_path)
    for i, length in enumerate(store.lengths):
        for f in range(length):
            last = to_images(pictures.frames(i)[codec.pictures_of(f + 1) - 1][None])
            expected = codec.encode_keyframes(last)[0].half().float()
            torch.testing.assert_close(store.keyframe(i, f), expected)
    plain = build_codec(CodecConfig("pixels", 1, 3))
    assert encoded(pictures, plain, tmp_path / "plain").keyframe is None


def test_pieces_are_fitted_and_resampled_as_a_whole_clip_would_be(tmp_path: Path):
    """Frame by frame, the bytes are those of `fit` on what `read_video` gives."""
    rng = np.random.default_rng(0)
    path = tmp_path / "data" / "a.mp4"
    path.parent.mkdir()
    video.write_video(path, rng.integers(0, 255, (13, 20, 30, 3), np.uint8), 12)
    whole_FHW3, _ = video.read_video(path)
    for fit in ("crop", "pad", "stretch"):
        for fps in (8, 12, 30):
            config = DataSettings(size="16", fps=fps, max_frames=5, fit=fit)
            store = PictureStore(scan(path.parent, config), tmp_path / "cache")
            index = np.ceil(np.arange(len(store.array)) * 12 / fps - 0.5 - 1e-6).astype(int)
            expected, _ = video.fit(whole_FHW3[np.minimum(index, 12)], SIZE, fit)
            np.testing.assert_array_equal(store.array, expected)
            assert max(store.lengths) <= 5
