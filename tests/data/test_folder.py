"""The data folder: what is found, what becomes of it, and the two caches."""

import json
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures_data import SIZE, indices, numbered, put, put_images
from PIL import Image

from flowcept.data import folder as data
from flowcept.data import video
from flowcept.data.folder import load_clip, scan
from flowcept.data.shards import PictureStore
from flowcept.data.timing import Timing
from flowcept.errors import UserError
from flowcept.settings import DataSettings

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CONFIG = DataSettings(size="16")


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


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("metadata.jsonl", '\n{"file_name": "../out.apng", "text": "x"}'),
        ("metadata.csv", "video\nOUT\n"),
        ("metadata.csv", "video\nlink.apng\n"),
        ("metadata.csv", "video\nsub/in/../../../out.apng\n"),
        ("metadata.csv", "video\nround\n"),
    ],
)
def test_listed_clips_outside_the_folder_are_refused(tmp_path: Path, name: str, listed: str):
    folder = tmp_path / "data"
    put(folder / "sub" / "in" / "a.apng")
    outside = put(tmp_path / "out.apng")
    (folder / "link.apng").symlink_to(outside)
    (folder / "round").symlink_to("round")
    (folder / name).write_text(listed.replace("OUT", str(outside)))
    with pytest.raises(UserError, match="leads out of the folder") as caught:
        scan(folder, CONFIG)
    assert f"{folder / name}, line 2: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listed_clips_may_be_named_by_any_way_to_them(tmp_path: Path):
    clip = put(tmp_path / "sub" / "a.apng")
    (tmp_path / "link.apng").symlink_to(clip)
    rows = f"video\n{clip}\nsub/../sub/a.apng\nlink.apng\n"
    (tmp_path / "metadata.csv").write_text(rows)
    assert len(scan(tmp_path, CONFIG).entries) == 3


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
    clips = {e.path.name: indices(load_clip(result, e)) for e in result.entries}
    assert clips["a.apng"] == [0, 1, 2, 3, 4, 5]
    assert clips["fast.apng"] == [0, 2, 4, 6, 8, 10]
    assert clips["slow.apng"] == [0, 0, 1, 1, 2, 2]
    assert clips["still.png"] == [0]
    assert "from 12 at 20" in next(f.reason for f in result.findings if f.path.stem == "fast")
    slower = DataSettings(size="16", fps=4)
    result = scan(tmp_path, slower)
    # Times 0, 0.25 s of a clip of 0.6 s: frames 0 and 2.5, of which the earlier.
    assert indices(load_clip(result, result.entries[0])) == [0, 2]


def test_rates_that_differ_by_rounding_are_one():
    entry = data.ClipEntry(Path("a"), "", 0, 300, Timing(30000 / 1001, 300))
    assert data._source_frames(entry, 30).tolist() == list(range(300))


def test_resampled_frames_are_the_nearest_in_time():
    rng = np.random.default_rng(0)
    for _ in range(200):
        source, fps, frames = *rng.uniform(1, 60, 2), int(rng.integers(2, 100))
        if data._same_rate(source, fps):
            continue
        total = max(1, round(frames * fps / source))
        entry = data.ClipEntry(Path("a"), "", 0, total, Timing(source, frames))
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
    config = DataSettings(size="16", max_frames=longest)
    result = scan(tmp_path, config)
    assert sorted(entry.num_frames for entry in result.entries) == pieces
    assert {entry.caption for entry in result.entries} == {"x"}
    shown = [i for e in result.entries for i in indices(load_clip(result, e))]
    assert shown == list(range(frames))
    finding = result.findings[0]
    assert (finding.verdict, finding.num_frames) == ("cut" if len(pieces) > 1 else "kept", frames)
    assert result.lengths() == {n: pieces.count(n) for n in sorted(set(pieces))}


def test_short_clips_and_pieces_are_dropped(tmp_path: Path):
    put(tmp_path / "a.apng", 5)
    put(tmp_path / "b.apng", 2)
    put(tmp_path / "c.apng", 9)
    result = scan(tmp_path, DataSettings(size="16", min_frames=5, max_frames=8))
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
        scan(tmp_path, DataSettings(size="16", min_frames=3))


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
    assert indices(load_clip(result, found["walk"])) == list(range(12))
    assert load_clip(result, found["two.jpg"]).shape == (1, *SIZE, 3)


def test_summary_says_what_happened(tmp_path: Path):
    put(tmp_path / "a.apng", 4, fps=10, caption="x")
    put(tmp_path / "b.apng", 9, fps=10)
    put(tmp_path / "c.apng", 8, fps=20)
    (tmp_path / "bad.mp4").write_bytes(b"")
    text = "\n".join(scan(tmp_path, DataSettings(size="16", max_frames=5)).summary())
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


def test_real_clips(tmp_path: Path):
    clips = SHARED / "clips"
    if not clips.is_dir():
        pytest.skip("the real clips of ../shared/data are absent")
    config = DataSettings(size="64", fps=10, max_frames=16)
    result = scan(clips, config)
    assert len(result.findings) == 13
    assert all(entry.caption for entry in result.entries)
    # All have 17 frames: five at 10 per second are cut, those at 24 to 30 become shorter.
    assert result.lengths() == {6: 5, 7: 3, 8: 5, 9: 5}
    assert scan(clips, DataSettings(size="64")).fps == 10
    store = PictureStore(result, tmp_path)
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
    result = scan(out, DataSettings(size="64"))
    assert len(result.entries) == 24
    assert all(finding.verdict == "kept" for finding in result.findings)
    assert set(result.lengths()) <= {6, 7, 8, 9, 13}
    lengths = {"casting": 7, "thrusting": 8, "walking": 9, "slashing": 6, "drawing": 13}
    for entry in result.entries:
        action = next((word for word in lengths if word in entry.caption), None)
        assert entry.num_frames == (lengths[action] if action else 6)
    frames_FHW3 = load_clip(result, result.entries[0])
    assert (frames_FHW3[:, 0, 0] == frames_FHW3[0, 0, 0]).all()  # the background is plain
    assert np.ptp(frames_FHW3.astype(int), axis=0).max() > 50  # and something moves


def test_a_folder_of_animations_is_not_one_clip(tmp_path: Path):
    for name, frames in (("a", 3), ("b", 4)):
        put(tmp_path / "clips" / f"{name}.webp", frames)
    assert scan(tmp_path, CONFIG).lengths() == {3: 1, 4: 1}


def test_what_is_found_in_files_is_kept_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, cache = tmp_path / "data", tmp_path / "run" / "cache"
    put(root / "a.apng", 5)
    put(root / "b.mp4", 6)
    put_images(root / "c", 3)
    merged = [Image.fromarray(frame_HW3) for frame_HW3 in numbered(3)]
    merged[0].save(
        root / "d.gif", save_all=True, append_images=merged[1:], duration=[100, 300, 100]
    )
    (root / "bad.mp4").write_bytes(b"no clip")
    asked: list[str] = []
    original = video.probe

    def look(path: Path, **options: bool) -> Timing:
        asked.append(path.name)
        return original(path, **options)

    monkeypatch.setattr(video, "probe", look)

    first = scan(root, CONFIG, cache=cache)
    assert sorted(asked) == ["a.apng", "b.mp4", "bad.mp4", "c", "d.gif"]
    asked.clear()
    assert scan(root, CONFIG, cache=cache) == first
    assert asked == ["bad.mp4"], "what is wrong with a file may pass"
    entry = next(entry for entry in first.entries if entry.path.name == "d.gif")
    assert indices(load_clip(first, entry)) == [0, 1, 1, 1, 2]

    put(root / "a.apng", 7)
    Image.fromarray(numbered(4)[3]).save(root / "c" / "3.png")
    asked.clear()
    found = {f.path.name: f.num_frames for f in scan(root, CONFIG, cache=cache).findings}
    assert found == {"a.apng": 7, "b.mp4": 6, "bad.mp4": 0, "c": 4, "d.gif": 5}
    assert sorted(asked) == ["a.apng", "bad.mp4", "c"]
    for broken in ("", "[]", '{"x": 1}'):
        (cache / "scan.json").write_text(broken)
        assert len(scan(root, CONFIG, cache=cache).entries) == 4
    assert scan(root, replace(CONFIG, max_frames=4), cache=cache).lengths() == {2: 1, 3: 5, 4: 1}


def test_linked_folders_are_followed_once(tmp_path: Path):
    """Also where links lead round in a circle."""
    put(tmp_path / "elsewhere" / "far.apng")
    put(tmp_path / "data" / "near.apng")
    for name in ("one", "two"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nowhere")
    found = [
        finding.path.relative_to(tmp_path) for finding in scan(tmp_path / "data", CONFIG).findings
    ]
    assert found == [Path("data/near.apng"), Path("data/one/far.apng")]


def test_a_folder_of_stills_is_no_clip(tmp_path: Path):
    """But numbered frames are, unless they have captions of their own."""
    for name in ("red", "green", "blue"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", SIZE).save(tmp_path / "photos" / f"{name}.png")
        (tmp_path / "photos" / f"{name}.txt").write_text(f"a {name} wall")
    put_images(tmp_path / "frames", 3)
    put_images(tmp_path / "said", 3)
    (tmp_path / "said" / "1.txt").write_text("one")
    result = scan(tmp_path, CONFIG)
    names = [str(entry.path.relative_to(tmp_path)) for entry in result.entries]
    photos = [f"photos/{name}.png" for name in ("blue", "green", "red")]
    assert names == ["frames", *photos, *(f"said/{number}.png" for number in range(3))]
    said = ["", "a blue wall", "a green wall", "a red wall", "", "one", ""]
    assert [entry.caption for entry in result.entries] == said


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_are_found_however_they_are_written(tmp_path: Path, stored: str, written: str):
    folder = tmp_path / unicodedata.normalize(stored, "Übung")
    clip = put(folder / unicodedata.normalize(stored, "café.apng"))
    name = unicodedata.normalize(written, "Übung/café.apng")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a cafe"}))
    (entry,) = scan(tmp_path, CONFIG).entries
    assert (entry.path, entry.caption) == (clip, "a cafe")
    (tmp_path / "metadata.jsonl").unlink()
    (folder / unicodedata.normalize(written, "café.txt")).write_text("beside it")
    assert captions(scan(tmp_path, CONFIG)) == {clip.name: "beside it"}


def test_clips_without_a_caption_and_captions_unread_are_named(tmp_path: Path):
    put(tmp_path / "said.apng", caption="a dog")
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.apng")
    for name in ("a.TXT", "b.apng.txt", "c.caption", "README.txt", "notes.json"):
        (tmp_path / name).write_text("a cat")
    lines = data.caption_notes(tmp_path, scan(tmp_path, CONFIG))
    assert lines[:3] == [f"no caption: {tmp_path / name}.apng" for name in ("a", "b", "c")]
    named = [line.split(": ")[1] for line in lines[3:]]
    assert named == [str(tmp_path / name) for name in ("a.TXT", "b.apng.txt", "c.caption")]
    (tmp_path / "metadata.csv").write_text("video,text\na.apng,x\nsaid.apng,y\n")
    lines = data.caption_notes(tmp_path, scan(tmp_path, CONFIG))
    assert [line.split(": ")[1] for line in lines] == [
        str(tmp_path / one) for one in ("a.TXT", "said.txt")
    ]
