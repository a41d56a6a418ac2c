"""Frames between the user's own pictures, of whatever size, with a model of motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import flowcept
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.networks import motion
from flowcept.settings import SampleConfig


@pytest.fixture(autouse=True)
def _small_pictures_stay_small(monkeypatch):
    """Tests' pictures are not enlarged to 256 px before motion is looked for."""
    monkeypatch.setattr(motion, "WORKING_SIDE", 32)
    monkeypatch.setattr(motion, "LAW_SIDE", 32)


@pytest.fixture(scope="module")
def studio(tiny_motion):
    return flowcept.load(str(tiny_motion), device="cpu", dtype="float32")


def panned(*places, height=33, width=47):
    """Pictures out of one larger picture, further right by so many pixels each."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    whole, _ = video.fit(coarse[None], (height + 8, width + 40), "stretch")
    return np.concatenate([whole[:, 4 : 4 + height, 4 + x : 4 + x + width] for x in places])


def places(clip, given_FHW3):
    """Where each given picture is in a clip, exactly."""
    same = (clip.frames_FHW3[:, None] == given_FHW3[None]).all((2, 3, 4))
    return [np.flatnonzero(column).tolist() for column in same.T]


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (16, 17), (7, 5), (64, 64)])
def test_pictures_of_any_size_come_out_bit_for_bit(studio, size):
    keys = panned(0, 6, 9, height=size[0], width=size[1])
    for exact in (None, True, False):
        made = studio.interp(keys, multi=1, seed=1, exact=exact)
        assert made.frames_FHW3.shape == (5, *size, 3)
        assert places(made, keys) == [[0], [2], [4]]
        assert made.notes == []
    assert made.fps == 24
    assert (made.settings["steps"], made.settings["scale"]) == (1, 1)


def test_frames_between_lie_between(studio):
    """A pan of 8 px, without anything learned: nearer to the truth than any blend."""
    truth = panned(0, 2, 4, 6, 8, height=48, width=64)
    made = studio.interp(truth[[0, 4]], frames=5, seed=0).frames_FHW3.astype(float)
    blend = np.linspace(truth[0].astype(float), truth[4].astype(float), 5)
    inner = (slice(1, 4), slice(8, -8), slice(12, -12))
    errors = [np.square(x[inner] - truth[inner]).mean() for x in (made, blend)]
    assert errors[0] < errors[1] / 20


def test_lengths_of_all_kinds(studio):
    keys = panned(0, 3, 9)
    assert len(studio.interp(keys, frames=9, seed=1)) == 9
    assert len(studio.interp(keys, frames=40, seed=1)) == 40  # the law knows 15 at most
    assert len(studio.interp(keys, min_length=30, seed=1)) == 30
    bounds = {"min_length": 5, "max_length": 6}
    assert {len(studio.interp(keys, seed=seed, **bounds)) for seed in range(4)} <= {5, 6}
    assert len(studio.interp(keys, multi=20, seed=1)) == 43
    for temperature in (0.0, 0.5, 3.0):
        assert 3 <= len(studio.interp(keys, rate_temperature=temperature, seed=1)) <= 15


def test_a_length_that_the_model_chooses_reaches_over_all_gaps(studio):
    """Longer than one gap's longest clip, 8; and many keyframes leave room without a word."""
    keys = panned(*range(0, 36, 4), height=16, width=16)
    lengths = [len(studio.interp(keys, seed=seed)) for seed in range(3)]
    assert max(lengths) > 9
    assert len(set(lengths)) > 1
    assert studio.interp(keys, seed=0).notes == []


def test_a_model_that_chooses_makes_a_frame_at_least(studio):
    assert {len(studio.interp(panned(0, 1), seed=seed)) > 2 for seed in range(12)} == {True}


def test_nothing_between_is_told(studio):
    """Where the law drew 0, not where that was asked for."""
    keys = panned(0, 6)
    assert "the model put no frame between" in studio.interp(keys, max_length=2).notes[0]
    assert studio.interp(keys, frames=2).notes == []
    assert studio.interp(keys, min_length=3).notes == []


def test_steps_of_its_own_unless_asked(studio):
    keys = panned(0, 6)
    first, asked = (
        studio.interp(keys, multi=2, seed=0),
        studio.interp(keys, multi=2, seed=0, steps=4),
    )
    assert (first.settings["steps"], asked.settings["steps"]) == (1, 4)
    assert len(first.growth) == 3 < len(asked.growth) <= 9
    apart = first.frames_FHW3.astype(int) - asked.frames_FHW3
    assert abs(apart).max() <= 1
    config = SampleConfig(steps=2, guidance=1.0)
    assert studio.interp(keys, multi=2, config=config).settings["steps"] == 2


def test_clip_with_rate_and_windows(studio):
    keys = panned(*range(20), height=16, width=24)
    made = studio.interp(keys, multi=1, clip_fps=10, seed=1)
    assert made.fps == 20
    np.testing.assert_array_equal(made.frames_FHW3[::2], keys)


def test_watch_sees_pictures(studio):
    seen = []
    studio.interp(panned(0, 6), multi=2, watch=seen.append)
    assert [step.state.lengths for step in seen] == [(2,), (4,), (4,)]
    assert [tuple(step.state.latent_FCHW.shape[1:]) for step in seen] == [(3, 33, 47)] * 3


def test_enlarged_only_if_asked(studio):
    made = studio.interp(panned(0, 6), multi=1, scale=2)
    assert made.frames_FHW3.shape == (3, 66, 94, 3)


def test_words_are_told_to_mean_nothing(studio):
    keys = panned(0, 6)
    for words in ({"prompt": "a dog"}, {"negative_prompt": "a cat"}):
        (note,) = studio.interp(keys, multi=1, seed=1, guidance=3.0, **words).notes
        assert "does not read prompts" in note


@pytest.mark.parametrize("task", ["generate", "i2v", "extend"])
def test_other_tasks_are_refused(studio, task):
    inputs = {"generate": ["a dog"], "i2v": [panned(0)[0]], "extend": [panned(0, 1)]}[task]
    rate = {"clip_fps": 12} if task == "extend" else {}
    with pytest.raises(UserError, match=r"^small-motion is a model only for interp, not for"):
        getattr(studio, task)(*inputs, **rate)


def test_memory_follows_from_the_pictures(studio, monkeypatch):
    config = SampleConfig(guidance=1.0)
    small, large = (studio.estimate(config, size=(side, side)) for side in (256, 2048))
    assert large > small + 8 * 3 * 2048**2 * 4
    more = studio.estimate(config, size=(2048, 2048), keyframes=9)
    assert more > 2 * large
    enough = studio._work(9, config, None, (33, 47))
    monkeypatch.setattr("flowcept.generation.free_memory", lambda _: enough)
    assert len(studio.interp(panned(0, 6), frames=9, seed=1)) == 9
    with pytest.raises(UserError, match=r"10 frames of 47x33 .* smaller pictures"):
        studio.interp(panned(0, 6), frames=10, seed=1)


def test_saved_with_odd_sides(studio, tmp_path: Path):
    made = studio.interp(panned(0, 6), multi=1, seed=1)
    assert made.save(tmp_path / "o.apng") is None
    again, fps = video.read_video(tmp_path / "o.apng")
    np.testing.assert_array_equal(again, made.frames_FHW3)
    assert fps == 24


def test_half_precision_changes_no_given_picture_and_no_law(tiny_motion, monkeypatch):
    half = flowcept.load(str(tiny_motion), device="cpu", dtype="bfloat16")
    law, said = half.weights.network.motion.law, []
    plain = law.forward
    monkeypatch.setattr(
        law, "forward", lambda cue_ND: said.append((cue_ND, plain(cue_ND))) or said[-1][1]
    )
    keys = panned(0, 6)
    made = half.interp(keys, seed=1, min_length=3, exact=False)
    assert places(made, keys) == [[0], [len(made) - 1]]
    ((cue_ND, law_NG),) = said
    assert torch.equal(law_NG, plain(cue_ND)), "without autocast"
