"""``flowcept interp`` with a model of motion, and which model is taken where none is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowcept import models
from flowcept.data import video
from flowcept.networks import motion


@pytest.fixture(autouse=True)
def _small_pictures_stay_small(monkeypatch):
    """Tests' pictures are not enlarged to 256 px before motion is looked for."""
    monkeypatch.setattr(motion, "WORKING_SIDE", 32)
    monkeypatch.setattr(motion, "LAW_SIDE", 32)


@pytest.fixture
def keys(flow):
    """``a.png`` and ``b.png`` of odd sides, one panned by 5 px, and a clip of both; as an array."""
    del flow  # which goes to a folder of its own
    coarse = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    whole, _ = video.fit(coarse[None], (33, 52), "stretch")
    pair = np.concatenate([whole[:, :, :47], whole[:, :, 5:]])
    for name, one in zip("ab", pair, strict=True):
        Image.fromarray(one).save(f"{name}.png")
    video.write_video(Path("clip.apng"), pair, 10)
    return pair


@pytest.fixture
def shipped(monkeypatch, tiny_model, tiny_motion):
    """Let these models have come with the package: ``shipped("theatre", "motion")``."""
    files = {"theatre": tiny_model, "motion": tiny_motion}

    def ship(*names):
        folder = {name: files[name] for name in names}
        monkeypatch.setattr(models, "shipped_models", lambda: folder)

    return ship


def refused(result, *words):
    assert (result.status, result.out) == (2, "")
    assert re.fullmatch(r"flowcept: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err


def settings_of(name):
    return video.read_metadata(Path(name))


def test_between_two_pictures_of_their_own_size(flow, keys, tiny_motion):
    for length, allowed in (
        (["--frames", "auto"], range(2, 9)),
        (["--frames", 4], [4]),
        (["--multi", 2], [4]),
        (["--min-length", 7], [7, 8]),
        (["--rate-temperature", 0, "--max-length", 3], [2, 3]),
    ):
        result = flow("interp", "a.png", "b.png", *length, "-m", tiny_motion, "-o", "o.apng")
        assert (result.status, result.err) == (0, "")
        assert "of 47x33 at 24 fps" in result.out
        frames_FHW3, fps = video.read_video(Path("o.apng"))
        np.testing.assert_array_equal(frames_FHW3[[0, -1]], keys)
        assert fps == 24
        assert len(frames_FHW3) in allowed


def test_pictures_on_the_way_and_several_clips(flow, keys, tiny_motion):
    del keys
    words = ["--count", 2, "--preview", "p.gif", "--sheet", "s.png", "--trace", "t.png"]
    result = flow(
        "interp", "a.png", "b.png", "-m", tiny_motion, "-o", "o.apng", *words, "--json", "--seed", 1
    )
    assert result.status == 0, result.err
    first, second = json.loads(result.out)
    assert (first["steps"], first["width"], first["height"]) == (1, 47, 33)
    assert first["seed"] == 1 != second["seed"]
    assert {"p.gif", "s-1.png", "t-2.png", "o-2.apng"} <= {path.name for path in Path().iterdir()}


def test_a_clip_at_twice_its_rate(flow, keys, tiny_motion):
    assert flow("interp", "clip.apng", "-m", tiny_motion, "-o", "o.apng").status == 0
    frames_FHW3, fps = video.read_video(Path("o.apng"))
    np.testing.assert_array_equal(frames_FHW3[[0, 2]], keys)
    assert (len(frames_FHW3), fps) == (4, 20)


@pytest.mark.parametrize(("flags", "steps"), [([], 1), (["--steps", 4], 4), (["--steps", 2], 2)])
def test_steps_are_its_own_unless_named(flow, keys, tiny_motion, flags, steps):
    del keys
    flow("interp", "a.png", "b.png", "--multi", 1, "-m", tiny_motion, "-o", "o.apng", *flags)
    assert settings_of("o.apng")["steps"] == steps


def test_what_it_cannot_do_is_one_line(flow, keys, tiny_motion, monkeypatch):
    del keys
    told = "small-motion is a model only for interp, not for {}: use another model, such as theatre"
    for command, inputs in (("gen", "a dog"), ("i2v", "a.png"), ("extend", "clip.apng")):
        with monkeypatch.context() as patch:
            patch.setattr("flowcept.load", None)  # it is not even loaded
            result = flow(command, inputs, "-m", tiny_motion, "-o", "o.mp4")
        refused(result, told.format(command))
    Path("data").mkdir()
    refused(flow("evaluate", tiny_motion, "data"), told.format("gen"))
    refused(flow("evaluate", tiny_motion, "data", "--task", "i2v"), told.format("i2v"))
    assert not Path("o.mp4").exists()


def test_words_are_told_to_mean_nothing(flow, keys, tiny_motion):
    del keys
    result = flow("interp", "a.png", "b.png", "-p", "a dog", "-m", tiny_motion, "-o", "o.mp4")
    assert result.status == 0
    assert "note: this model does not read prompts" in result.out


def test_info(flow, tiny_motion):
    told = json.loads(flow("info", tiny_motion, "--json").out)
    assert (told["tasks"], told["frames"]) == ("interp", "any size at 24 per second")


# ---- which model is taken ----------------------------------------------------------------------


def test_motion_is_taken_between_pictures_without_words(flow, keys, shipped, tiny_model):
    del keys
    shipped("theatre", "motion")
    words = ["interp", "a.png", "b.png", "--multi", 1, "-o", "o.apng"]
    for more, model, steps in (
        ([], "small-motion", 1),
        (["-p", "a dog"], "tiny", 4),
        (["-m", "theatre"], "tiny", 4),
        (["-m", tiny_model], "tiny", 4),
    ):
        assert flow(*words, *more).status == 0
        made = settings_of("o.apng")
        assert (made["model"], made["steps"]) == (model, steps)


def test_the_environment_names_the_model_of_every_command(
    flow, keys, shipped, tiny_model, tiny_motion, monkeypatch
):
    del keys
    shipped("theatre", "motion")
    for path, model in ((tiny_model, "tiny"), (tiny_motion, "small-motion")):
        monkeypatch.setenv("FLOWCEPT_MODEL", str(path))
        flow("interp", "a.png", "b.png", "--multi", 1, "-o", "o.apng")
        assert settings_of("o.apng")["model"] == model


def test_other_commands_take_theatre(flow, keys, shipped):
    del keys
    shipped("theatre", "motion")
    words = ["--steps", 1, "--frames", 2, "-o", "o.apng"]
    for command, inputs in (("gen", "a dog"), ("i2v", "a.png"), ("extend", "clip.apng")):
        assert flow(command, inputs, *words).status == 0
        assert settings_of("o.apng")["model"] == "tiny"


def test_theatre_is_taken_where_motion_did_not_come_along(flow, keys, shipped):
    del keys
    shipped("theatre")
    flow("interp", "a.png", "b.png", "--multi", 1, "-o", "o.apng")
    assert (settings_of("o.apng")["model"], settings_of("o.apng")["steps"]) == ("tiny", 4)
    shipped()
    refused(flow("interp", "a.png", "b.png"), "no model 'theatre'")


def test_a_clip_of_one_frame_is_refused_before_the_model_is_loaded(
    flow, keys, tiny_motion, monkeypatch
):
    del keys
    monkeypatch.setattr("flowcept.model_file.load", None)
    Path("one").mkdir()
    Path("a.png").rename("one/a.png")
    refused(flow("interp", "one", "-m", tiny_motion, "-o", "o.apng"), "one is one picture")
