"""``loop``: the last picture leads back to the first one, whatever the task and the length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures_model import LENGTHS, SIZE, write_model
from PIL import Image

import flowcept
from flowcept.data import video
from flowcept.evaluation import report
from flowcept.networks import motion
from flowcept.settings import mixed

LONGEST = max(LENGTHS)
FAST = {"steps": 2, "seed": 1}
SMALL = FAST | {"scale": 1}


@pytest.fixture(scope="module")
def studio(tiny_model):
    return flowcept.load(str(tiny_model), device="cpu", dtype="float32")


@pytest.fixture
def mover(tiny_motion, monkeypatch):
    """A model of motion that does not enlarge small pictures."""
    monkeypatch.setattr(motion, "WORKING_SIDE", 32)
    monkeypatch.setattr(motion, "LAW_SIDE", 32)
    return flowcept.load(str(tiny_motion), device="cpu", dtype="float32")


def noise(frames, height=SIZE, width=SIZE, seed=0):
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_way_back_is_an_interpolation_from_the_last_picture_to_the_first(studio):
    """The same model, prompt, guidance and steps; a seed of its own."""
    clip = studio.generate("a dog", frames=9, loop=True, guidance=3.0, **SMALL).frames_FHW3
    there = studio.generate("a dog", frames=5, guidance=3.0, **SMALL).frames_FHW3
    np.testing.assert_array_equal(clip[:5], there)
    own = SMALL | {"seed": mixed(1, "loop"), "guidance": 3.0}
    back = studio.interp(there[[-1, 0]], "a dog", frames=6, **own).frames_FHW3
    np.testing.assert_array_equal(clip[5:], back[1:-1])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9, 2 * LONGEST + 1])
def test_an_exact_length_counts_all_frames(studio, frames):
    asked = {"frames": frames, "loop": True}
    pair = noise(2)
    assert len(studio.generate("a", **asked, **SMALL)) == frames
    assert len(studio.i2v(pair[0], **asked, **SMALL)) == frames
    if frames > 1:
        assert len(studio.interp(pair, **asked, **SMALL)) == frames
    for direction, sides in (("forward", 1), ("backward", 1), ("both", 2)):
        made = studio.extend(pair, clip_fps=12, direction=direction, **asked, **FAST)
        assert len(made) == 2 + sides * frames


def test_bounds_hold_for_all_frames(studio):
    pair = noise(2)
    for low, high in ((9, 10), (None, 5), (LONGEST + 3, None), (4, 4)):
        bounds = {"min_length": low, "max_length": high, "loop": True, "steps": 1}
        for seed in range(4):
            made = [
                len(studio.generate("a", seed=seed, scale=1, **bounds)),
                len(studio.i2v(pair[0], seed=seed, scale=1, **bounds)),
                len(studio.interp(pair, seed=seed, scale=1, **bounds)),
                len(studio.extend(pair, clip_fps=12, seed=seed, **bounds)) - 2,
            ]
            assert min(made) >= (low or 1), (low, high)
            assert max(made) <= (high or 10 * LONGEST), (low, high)


def test_a_length_that_the_model_chooses_leaves_a_way_back(studio):
    for seed in range(4):
        alone = studio.generate("a", seed=seed, steps=1, scale=1)
        looped = studio.generate("a", seed=seed, steps=1, scale=1, loop=True)
        new = len(looped) - len(alone)
        assert min(LENGTHS) - 2 <= new <= LONGEST - 2


def test_where_a_length_leaves_no_frame_that_is_told(studio):
    (note,) = studio.generate("a", frames=2, loop=True, **SMALL).notes
    assert "no frame for the way back" in note
    assert studio.generate("a", frames=3, loop=True, **SMALL).notes == []


@pytest.mark.parametrize("model", ["studio", "mover"])
@pytest.mark.parametrize("length", [{"multi": 2}, {"frames": 11}, {"min_length": 11}])
def test_keyframes_come_to_the_first_one_again(request, model, length):
    """As if it had been given once more at the end, whose frame is left out."""
    studio, keys = request.getfixturevalue(model), noise(3)
    more = {name: value + 1 if name != "multi" else value for name, value in length.items()}
    open_end = studio.interp(np.concatenate([keys, keys[:1]]), **more, **SMALL)
    looped = studio.interp(keys, loop=True, **length, **SMALL)
    np.testing.assert_array_equal(looped.frames_FHW3, open_end.frames_FHW3[:-1])
    assert (looped.frames_FHW3[-1] != keys[0]).any()
    assert looped.settings["keyframes"] == 3


def test_a_clip_that_ends_as_it_begins_gets_nothing(studio, mover):
    a, b = noise(2)
    round_trip = np.stack([a, b, a])
    for model in (studio, mover):
        plain = model.interp(round_trip, multi=1, **SMALL)
        looped = model.interp(round_trip, multi=1, loop=True, **SMALL)
        np.testing.assert_array_equal(looped.frames_FHW3, plain.frames_FHW3)
        assert any("the last frame equals the first" in note for note in looped.notes)
    made = studio.generate("a", frames=1, loop=True, **SMALL)
    assert (len(made), len(made.notes)) == (1, 1)


def test_extend_keeps_the_clip_and_comes_back_to_its_start_at_its_own_size(studio):
    clip = noise(5, 33, 47)
    made = studio.extend(clip, clip_fps=12, frames=8, loop=True, **FAST)
    np.testing.assert_array_equal(made.frames_FHW3[:5], clip)
    plain = studio.extend(clip, clip_fps=12, frames=4, **FAST)
    np.testing.assert_array_equal(made.frames_FHW3[:9], plain.frames_FHW3)
    other = clip.copy()
    other[0] = 255 - other[0]  # beyond the context: only the way back sees it
    changed = studio.extend(other, clip_fps=12, frames=8, context=2, loop=True, **FAST)
    same = studio.extend(clip, clip_fps=12, frames=8, context=2, loop=True, **FAST)
    np.testing.assert_array_equal(changed.frames_FHW3[5:9], same.frames_FHW3[5:9])
    assert (changed.frames_FHW3[9:] != same.frames_FHW3[9:]).any()


def test_i2v_keeps_the_users_pixels(studio):
    (picture,) = noise(1)
    made = studio.i2v(picture, frames=7, loop=True, **SMALL)
    np.testing.assert_array_equal(made.frames_FHW3[0], picture)


@pytest.mark.parametrize("task", ["gen", "interp"])
def test_growth_shows_the_way_back_after_the_clip(studio, task):
    asked = {"frames": 9, "loop": True, **SMALL}
    clip = studio.generate("a", **asked) if task == "gen" else studio.interp(noise(2), **asked)
    assert len(clip.order) == len(set(clip.order)) == len(clip.ends) == 9
    assert [name for name, _, _ in clip.growth[-1]] == clip.order
    counts = [len(row) for row in clip.growth]
    assert counts == sorted(counts)
    report.growth_chart(clip.growth, clip.order, thumbnails=list(clip.frames_FHW3), num_steps=2)


def test_a_video_codec_rounds_and_says_so(tmp_path):
    path = write_model(tmp_path / "v.safetensors", codec="fake-video")
    studio = flowcept.load(str(path), device="cpu", dtype="float32")
    made = studio.generate("a", frames=17, loop=True, **SMALL)  # 9 pictures, then 7 before the 1st
    assert (len(made), made.notes) == (16, ["`frames=17`: this model makes 16 of a loop"])
    made = studio.interp(noise(2), frames=17, loop=True, **SMALL)
    assert len(made) == 16
    assert "17 becomes 16" in made.notes[0]


def test_the_file_says_so(studio, tmp_path):
    made = studio.generate("a", frames=5, loop=True, **SMALL)
    made.save(tmp_path / "o.webp")
    assert video.read_metadata(tmp_path / "o.webp")["loop"] is True
    assert "loop" not in studio.generate("a", frames=5, **SMALL).settings


# ---- the command -------------------------------------------------------------------------------


def test_loops_of_several_clips_with_their_pictures(flow, tiny_model):
    words = ["--frames", 9, "--count", 2, "--preview", "p.gif", "--sheet", "s.png"]
    words += ["--trace", "t.png", "--steps", 4, "--scale", 1, "--json"]
    result = flow("gen", "a dog", "--loop", "-m", tiny_model, "-o", "o.gif", *words)
    assert result.status == 0, result.err
    first, second = json.loads(result.out)
    assert (first["frames"], first["loop"]) == (9, True)
    frames = [video.read_video(Path(one["output"]))[0] for one in (first, second)]
    assert [len(one) for one in frames] == [9, 9]
    assert (frames[0] != frames[1]).any()
    names = {path.name for path in Path().iterdir()}
    assert names == {"p.gif", "o-1.gif", "o-2.gif", *(f"{x}-{n}.png" for x in "st" for n in (1, 2))}


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_animations_play_for_ever(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    video.write_video(path, noise(3), 12)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


def test_a_line_of_a_file_may_ask_for_a_loop(flow, tiny_model):
    lines = [{"prompt": "a dog", "loop": True}, {"prompt": "a dog"}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--steps", 1, "--frames", 5, "--json", "-o", "o.gif", "-m", tiny_model]
    result = flow("gen", "--prompts-file", "prompts.jsonl", *words)
    assert [clip.get("loop") for clip in json.loads(result.out)] == [True, None]


def test_pictures_and_clips_loop_from_the_command_line(flow, tiny_model):
    clip_FHW3 = noise(4)
    Image.fromarray(clip_FHW3[0]).save("a.png")
    video.write_video(Path("clip.apng"), clip_FHW3, 12)
    words = ["-m", tiny_model, "--steps", 1, "--frames", 6, "--loop", "-o", "o.apng"]
    for command, source, frames in (("i2v", "a.png", 6), ("extend", "clip.apng", 10)):
        assert flow(command, source, *words).status == 0
        made_FHW3, _ = video.read_video(Path("o.apng"))
        assert len(made_FHW3) == frames
        if command == "extend":
            np.testing.assert_array_equal(made_FHW3[:4], clip_FHW3)


@pytest.mark.usefixtures("mover")
def test_a_clip_with_frames_between_loops_by_motion(flow, tiny_motion):
    """Its frames are keyframes then, and another frame leads from the last to the first."""
    clip_FHW3 = noise(3, 33, 47)
    video.write_video(Path("clip.apng"), clip_FHW3, 10)
    words = ["interp", "clip.apng", "-m", tiny_motion, "--loop", "-o", "o.apng"]
    result = flow(*words)
    assert result.status == 0, result.err
    made_FHW3, fps = video.read_video(Path("o.apng"))
    assert (len(made_FHW3), fps) == (6, 20)
    np.testing.assert_array_equal(made_FHW3[::2], clip_FHW3)
    refused = flow(*words, "--slow", 2)
    assert refused.status == 2
    assert "--loop has no effect on whole clips" in refused.err
