"""Where clips go: folders, names that nobody chose, and files that must stay."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowcept import model_file
from flowcept.cli.outputs import slug
from flowcept.data import video


@pytest.fixture
def make(flow, tiny_model):
    """``flowcept gen`` with a tiny model, in two steps, from seed 1."""
    fast = ["-m", tiny_model, "--steps", 2, "--scale", 1, "--frames", 2, "--seed", 1]
    return lambda *words: flow("gen", *words, *fast)


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def foreign(name):
    """A file that flowcept did not make."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".jpg"):
        Image.new("RGB", (8, 8)).save(path)
    else:
        frames_FHW3 = np.zeros((2, 16, 16, 3), np.uint8)
        video.write_video(path, frames_FHW3, 12, metadata={"prompt": "of another program"})
    return path.read_bytes()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A dog, surfing!", "a-dog-surfing"),
        ("ein größerer Hund", "ein-größerer-hund"),
        ("../../etc/passwd", "etc-passwd"),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
        ("x" * 100, "x" * 40),
        ("🏄 \udce9 __", ""),
    ],
)
def test_slug(prompt, name):
    assert slug(prompt) == name


@pytest.mark.parametrize("folder", ["clips/", "v1.0/", "a/b.mp4/", "there"])
def test_a_folder_gets_clips_named_by_prompt_and_seed(make, folder):
    Path("there").mkdir()
    result = make("a dog", "a cat", "-o", folder, "--format", "webp")
    assert (result.status, result.err) == (0, "")
    place = folder.rstrip("/")
    assert files() == [f"{place}/a-cat-1.webp", f"{place}/a-dog-1.webp"]
    assert result.out.startswith(f"{place}/a-dog-1.webp (1 of 2): 2 frames of 32x32")
    assert f"{place}/a-cat-1.webp (2 of 2): 2 frames" in result.out


def test_missing_parents_are_made_for_everything(make):
    words = ["--sheet", "x/y/s.png", "--trace", "z/t.jpg", "--preview", "w/p.gif"]
    assert make("a dog", "-o", "new/er/o.mp4", *words).status == 0
    assert files() == ["new/er/o.mp4", "w/p.gif", "x/y/s.png", "z/t.jpg"]
    assert make("a dog", "-o", "frames/%02d.png").status == 0
    assert files()[:2] == ["frames/01.png", "frames/02.png"]


def test_a_clip_without_prompt_has_the_name_of_its_input(flow, tiny_model):
    Image.new("RGB", (32, 32)).save("my photo.png")
    words = ["-m", tiny_model, "--steps", 1, "--frames", 2, "--seed", 7, "--scale", 1]
    assert flow("i2v", "my photo.png", *words).out.startswith("my-photo-7.mp4: ")
    assert flow("gen", "", *words).out.startswith("gen-7.mp4: ")


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        *(("-o", f"o{suffix}") for suffix in (".mp4", ".webm", ".gif", ".webp", ".apng")),
        ("--preview", "p.gif"),
        ("--sheet", "s.png"),
        ("--trace", "t.jpg"),
    ],
)
def test_only_what_flowcept_made_is_replaced(make, flag, name):
    """Its own files again and again, others with ``--overwrite`` alone, and before any work."""
    own = [] if flag == "-o" else ["-o", "own.mp4"]
    for _ in range(2):
        assert make("a dog", flag, name, *own).status == 0
    theirs = foreign(name)
    result = make("a dog", flag, name, *own)
    assert result.status == 2
    assert re.fullmatch(rf"flowcept: {name} exists already[^\n]+--overwrite\n", result.err)
    assert Path(name).read_bytes() == theirs
    assert make("a dog", flag, name, *own, "--overwrite").status == 0
    assert Path(name).read_bytes() != theirs


def test_a_clip_without_metadata_and_a_numbered_one_are_not_replaced_either(make):
    assert make("a dog", "-o", "o.mp4", "--no-metadata", "--sheet", "s.png").status == 0
    assert make("a dog", "-o", "o.mp4").status == 2
    assert make("a dog", "-o", "p.mp4", "--sheet", "s.png").status == 2
    foreign("o-2.gif")
    assert make("a dog", "a cat", "-o", "o.gif").status == 2
    assert files() == ["o-2.gif", "o.mp4", "s.png"]


def test_an_empty_file_has_nothing_to_lose(make):
    Path("o.mp4").touch()  # as mktemp makes it
    assert make("a dog", "-o", "o.mp4").status == 0
    Path("o.gif").write_text("no clip at all")
    assert make("a dog", "-o", "o.gif").status == 2
    assert Path("o.gif").read_text() == "no clip at all"


def test_frames_that_are_there_stay_even_with_overwrite(make):
    theirs = foreign("f/0002.png")
    for more in ([], ["--overwrite"]):
        assert "frames named %04d.png" in make("a dog", "-o", "f/%04d.png", *more).err
    assert files() == ["f/0002.png"]
    assert Path("f/0002.png").read_bytes() == theirs


def test_retimed_clips_follow_the_same_rules(flow):
    foreign("a.gif")
    foreign("b.webp")
    words = ["interp", "a.gif", "b.webp", "--slow", 2]
    result = flow(*words, "-o", "out/", "--format", "mp4")
    assert result.status == 0, result.err
    assert files() == ["a.gif", "b.webp", "out/a-slow2.mp4", "out/b-slow2.mp4"]
    assert "out/b-slow2.mp4 (2 of 2): 4 frames" in result.out
    assert "clips/, not o.mp4" in flow(*words, "-o", "o.mp4").err
    foreign("o.mp4")
    assert "--overwrite" in flow("interp", "a.gif", "--slow", 2, "-o", "o.mp4").err


def test_files_of_scores_and_models_are_not_replaced(flow, tiny_model):
    Path("data").mkdir()
    Path("scores.json").write_text('{"mine": 1}')
    told = flow("evaluate", tiny_model, "data", "-o", "scores.json")
    assert (told.status, "--overwrite" in told.err) == (2, True)
    Path("m.safetensors").write_bytes(b"somebody's weights")
    told = flow("merge", tiny_model, "-o", "m.safetensors")
    assert (told.status, "--overwrite" in told.err) == (2, True)
    assert model_file.is_model(tiny_model)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_missing_folder_in_a_folder_of_somebody_else(make):
    Path("theirs").mkdir(mode=0o500)
    assert "cannot write into theirs" in make("a dog", "-o", "theirs/new/o.mp4").err


def test_a_line_of_a_file_may_name_a_folder(make):
    Path("p.jsonl").write_text(
        json.dumps({"prompt": "a dog", "output": "dogs/"}) + "\n" + json.dumps({"prompt": "a cat"})
    )
    assert make("--prompts-file", "p.jsonl", "-o", "others/").status == 0
    assert files() == ["dogs/a-dog-1.mp4", "others/a-cat-1.mp4", "p.jsonl"]
