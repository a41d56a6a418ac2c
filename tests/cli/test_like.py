"""``--like clip`` makes a clip again, frame for frame, or says why it may not be the same."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_model import LEXICON, SIZE, write_model
from PIL import Image

from flowcept.cli import like
from flowcept.data import video

FAST = ["--steps", 3, "--scale", 1]


@pytest.fixture
def given(flow):
    """Pictures and a clip to start from."""
    del flow  # which goes to a folder of its own
    noise_FHW3 = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    for name, frame_HW3 in zip("abc", noise_FHW3, strict=False):
        Image.fromarray(frame_HW3).save(f"{name}.png")
    Image.fromarray(noise_FHW3[0, : SIZE // 2]).save("wide.png")
    video.write_video(Path("clip.apng"), noise_FHW3, 10)


def digest(name):
    return video.digest(video.read_video(Path(name))[0])


def again(flow, command, inputs, flags, model):
    """A clip, and the clip made like it; both must succeed without a word of differences."""
    first = flow(command, *inputs, *flags, "-m", model, "-o", "first.apng")
    assert first.status == 0, first.err
    second = flow(command, *inputs[command == "gen" :], "--like", "first.apng", "-m", model,
                  "-o", "second.apng")  # fmt: skip
    assert second.status == 0, second.err
    assert "same clip" not in second.out
    return [video.read_metadata(Path(name)) for name in ("first.apng", "second.apng")]


@pytest.mark.parametrize(
    ("command", "inputs", "flags"),
    [
        ("gen", ["a dog"], FAST),
        ("gen", ["a dog"], ["-n", "cat", "--guidance", 3, "--seed", 5, "--fps", 7, *FAST]),
        ("gen", ["a dog"], ["--frames", 7, "--loop", "--literal", "--rate-temperature", 2, *FAST]),
        ("gen", ["a dog"], ["--min-length", 5, "--max-length", 8, "--no-cache", *FAST]),
        ("gen", ["a dog"], ["--refine", 0.5, "--length-scale", 1.5, "--dtype", "bfloat16", *FAST]),
        ("i2v", ["a.png"], ["-p", "a dog", *FAST]),
        ("i2v", ["wide.png"], ["--fit", "pad", "--exact", "--anyway", *FAST]),
        ("i2v", ["a.png"], ["--no-exact", "--scale", 2, "--steps", 2]),
        ("interp", ["a.png", "b.png", "c.png"], ["--multi", 3, *FAST]),
        ("interp", ["a.png", "b.png"], ["--frames", 6, "--loop", *FAST]),
        ("interp", ["clip.apng"], ["-p", "a dog"]),
        ("extend", ["clip.apng"], ["--frames", 5, "--context", 3, "--steps", 2]),
        ("extend", ["clip.apng"], ["--direction", "both", "--frames", 15, "--steps", 2]),
        ("extend", ["clip.apng"], ["--direction", "backward", "--fps", 30, "--steps", 2]),
    ],
)
def test_the_same_clip_frame_for_frame(flow, given, tiny_model, command, inputs, flags):
    del given
    first, second = again(flow, command, inputs, flags, tiny_model)
    assert first == second
    assert digest("first.apng") == digest("second.apng")


def test_motion_too(flow, given, tiny_motion):
    del given
    flags = ["--rate-temperature", 0.5, "--max-length", 6]
    first, second = again(flow, "interp", ["a.png", "b.png"], flags, tiny_motion)
    assert first == second
    assert digest("first.apng") == digest("second.apng")


def test_a_retimed_clip_too(flow, given):
    del given
    for flags, name in ((["--slow", 3], "a.apng"), (["--multi", 2, "--fps", 25], "b.apng")):
        assert flow("interp", "clip.apng", *flags, "-o", name).status == 0
        assert flow("interp", "clip.apng", "--like", name, "-o", "again.apng").status == 0
        assert digest(name) == digest("again.apng")


def test_another_seed_is_another_clip_and_the_digest_is_the_files(flow, tiny_model):
    """What the other tests compare would differ; and the digest is what sha256sum says."""
    assert flow("gen", "a dog", *FAST, "-m", tiny_model, "-o", "a.apng").status == 0
    words = ["--like", "a.apng", "-m", tiny_model, "-o", "b.apng"]
    assert flow("gen", *words, "--seed", 1).status == 0
    assert digest("a.apng") != digest("b.apng")
    record = video.read_metadata(Path("a.apng"))
    assert record["model_digest"] == hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    assert (
        json.loads(flow("info", "a.apng", "--json").out)["model_digest"] == record["model_digest"]
    )


def test_given_flags_count_more(flow, tiny_model):
    words = ["--min-length", 5, "--max-length", 8, "--guidance", 3, "--seed", 4]
    assert flow("gen", "a dog", *words, *FAST, "-m", tiny_model, "-o", "a.apng").status == 0
    like_a = ["--like", "a.apng", "-m", tiny_model, "-o", "b.apng"]
    assert flow("gen", "a cat", "--frames", 3, *like_a).status == 0  # over the bounds, too
    record = video.read_metadata(Path("b.apng"))
    assert (record["prompt"], record["length"], record["frames"]) == ("a cat", 3, 3)
    assert (record["guidance"], record["seed"], record["steps"]) == (3, 4, 3)
    assert flow("gen", "--length-scale", 2, *like_a).status == 0
    assert video.read_metadata(Path("b.apng"))["max_length"] == 8

    Path("p.txt").write_text("one\ntwo\n")
    told = flow("gen", "--prompts-file", "p.txt", "--json", *like_a)
    assert [clip["prompt"] for clip in json.loads(told.out)] == ["one", "two"]


def test_what_may_make_another_clip_is_told_in_one_line(flow, tiny_model, tmp_path, monkeypatch):
    assert flow("gen", "a dog", *FAST, "-m", tiny_model, "-o", "a.apng").status == 0
    other = write_model(tmp_path / "other.safetensors", lexicon=LEXICON)
    words = ["gen", "--like", "a.apng", "-m"]
    (line,) = [x for x in flow(*words, other, "-o", "b.apng").out.splitlines() if "a.apng" in x]
    assert line.startswith("note: this may not be the same clip as a.apng: model file ")
    assert ", " not in line, "nothing but the model differs"

    monkeypatch.setattr("flowcept.generation.__version__", "9.9")
    told = flow(*words, tiny_model, "-o", "b.apng", "--dtype", "bfloat16", "--threads", 2).out
    assert "flowcept 9.9 (was " in told
    assert "threads 2 (was 1)" in told
    torch.set_num_threads(1)  # as all other tests have it
    assert flow(*words, tiny_model, "-o", "b.apng", "-q").out == ""


def test_differences():
    record = {"flowcept": "1", "torch": "2", "model_digest": "a" * 64, "device": "cuda"}
    assert like.difference(record, record) == ""
    assert like.difference(record, record | {"device": "cpu"}) == "device cpu (was cuda)"
    old = {"flowcept": "1", "torch": "2", "device": "cuda"}
    assert like.difference(old, record) == "model file aaaaaaaaaaaa (was not recorded)"


def test_clips_that_cannot_be_made_again_here(flow, given, tiny_model):
    del given
    assert (
        flow("i2v", "a.png", *FAST, "-m", tiny_model, "-o", "i.apng", "--sheet", "s.png").status
        == 0
    )
    for words, told in (
        (["gen", "--like", "i.apng"], "use flowcept i2v --like i.apng"),
        (["gen", "--like", "clip.apng"], "holds no settings of flowcept"),
        (["gen", "--like", "s.png"], "is not a clip and holds no settings"),
        (["gen", "--like", "none.mp4"], "none.mp4"),
        (["i2v", "a.png", "--like", "i.apng"], "no model 'tiny'"),
    ):
        result = flow(*words)
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert told in result.err


def test_a_clip_of_somebody_else_names_no_files(flow, tiny_model):
    """Only what shapes a clip is read from it, and that as if it had been typed."""
    evil = {"flowcept": "1", "command": "gen", "model": "/tmp/evil.safetensors", "prompt": "a dog"}
    evil |= {"output": "stolen.mp4", "overwrite": True, "preview": "p.gif", "seed": 1, "steps": 1}
    frames_FHW3 = np.zeros((2, 16, 16, 3), np.uint8)
    video.write_video(Path("e.apng"), frames_FHW3, 12, metadata=evil)
    assert "model" not in like.defaults(evil, "gen")
    assert flow("gen", "--like", "e.apng", "-m", tiny_model, "--scale", 1).status == 0
    assert sorted(os.listdir()) == ["a-dog-1.mp4", "e.apng"]  # noqa: PTH208

    for wrong in ({"steps": "many"}, {"seed": [1]}, {"fit": 3, "guidance": {}}):
        video.write_video(Path("e.apng"), frames_FHW3, 12, metadata=evil | wrong)
        result = flow("gen", "--like", "e.apng", "-m", tiny_model, "-o", "x.mp4")
        assert result.err.count("\n") == 1, (wrong, result)
        assert result.status == 2
