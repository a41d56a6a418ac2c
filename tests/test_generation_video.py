"""Tasks with a codec of four pictures a latent: users count pictures, the sampler latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_codec import GROUP
from fixtures_model import LENGTHS, SIZE, write_model

import flowcept
from flowcept.codecs import to_frames, to_images
from flowcept.errors import UserError

LONGEST = 1 + GROUP * (max(LENGTHS) - 1)  # pictures
FAST = {"steps": 2, "seed": 1}
SMALL = FAST | {"scale": 1}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("video") / "v.safetensors", codec="fake-video")
    return flowcept.load(str(path), device="cpu", dtype="float32")


def noise(count, seed=0):
    """Pictures that no model makes by chance."""
    shape = (count, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def places(clip, given_FHW3):
    same = (clip.frames_FHW3[:, None] == given_FHW3[None]).all((2, 3, 4))
    return [np.flatnonzero(column).tolist() for column in same.T]


def test_a_chosen_length_is_on_the_grid_and_within_the_trained_ones(studio):
    lengths = {len(studio.generate("a", steps=1, seed=seed, scale=1)) for seed in range(8)}
    assert len(lengths) > 1
    assert all(length % GROUP == 1 and length <= LONGEST for length in lengths)


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (4, 1), (5, 5), (8, 5), (9, 9)])
def test_frames_count_pictures(studio, asked, made):
    clip = studio.generate("a dog", frames=asked, **SMALL)
    assert len(clip) == clip.settings["frames"] == made
    told = f"`frames={asked}`: this model makes 1, 5, 9, ...; {asked} becomes {made}"
    assert clip.notes == ([] if asked == made else [told])


def test_bounds_are_met_from_inside(studio):
    for seed in range(4):
        clip = studio.generate("a dog", min_length=6, max_length=16, **SMALL | {"seed": seed})
        assert len(clip) in (9, 13)
    assert [note.split(";")[1] for note in clip.notes] == [" 6 becomes 9", " 16 becomes 13"]
    with pytest.raises(UserError, match=r"no possible length .* 6 becomes 9"):
        studio.generate("a dog", min_length=6, max_length=8)


def test_every_latent_has_its_last_picture_as_thumbnail(studio):
    clip = studio.generate("a dog", frames=13, **SMALL)
    assert clip.ends == [0, 4, 8, 12]
    assert len(clip.order) == 4


def test_i2v_begins_with_the_picture(studio):
    (picture,) = noise(1)
    clip = studio.i2v(picture, frames=9, **SMALL)
    assert len(clip) == 9
    assert places(clip, picture[None]) == [[0]]
    decoded = studio.i2v(picture, frames=9, exact=False, **SMALL).frames_FHW3[0]
    assert abs(decoded.astype(int) - picture).max() <= 1  # the codec keeps all but rounding


@pytest.mark.parametrize("count", [2, 4])
def test_interp_puts_keyframes_at_the_ends_of_groups(studio, count):
    keys, frames = noise(count), 29
    clip = studio.interp(keys, frames=frames, **SMALL)
    found = [place for (place,) in places(clip, keys)]
    assert found == sorted(found)
    assert (len(clip), found[0], found[-1]) == (frames, 0, frames - 1)
    assert all(place % GROUP == 0 for place in found)


def test_interp_of_a_chosen_length_has_a_group_before_its_last_keyframe(studio):
    keys = noise(2)
    for seed in range(6):
        clip = studio.interp(keys, steps=1, seed=seed, scale=1)
        assert places(clip, keys) == [[0], [len(clip) - 1]]
        assert len(clip) >= 1 + GROUP


def test_keyframes_need_a_group_each(studio):
    with pytest.raises(UserError, match="4 keyframes need at least 13 frames"):
        studio.interp(noise(4), frames=12, **SMALL)
    with pytest.raises(UserError, match=r"13 keyframes.*`multi=K`"):
        studio.interp(noise(13), **SMALL)


@pytest.mark.parametrize(
    ("count", "asked", "multi"), [(2, 3, 3), (3, 5, 3), (2, 1, 3), (3, 60, 59), (20, 3, 3)]
)
def test_multi_is_rounded_to_groups(studio, count, asked, multi):
    keys = noise(count)
    clip = studio.interp(keys, multi=asked, clip_fps=10, **SMALL)
    assert clip.settings["multi"] == multi
    assert clip.fps == 10 * (multi + 1)
    np.testing.assert_array_equal(clip.frames_FHW3[:: multi + 1], keys)
    assert len(clip) == (count - 1) * (multi + 1) + 1
    assert any(f"{asked} becomes {multi}" in note for note in clip.notes) == (asked != multi)


@pytest.mark.parametrize(("asked", "new"), [(3, 4), (8, 8), (9, 8), (LONGEST + 20, LONGEST + 19)])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_extend_adds_whole_groups_and_leaves_the_clip_alone(studio, direction, asked, new):
    clip = noise(11)
    made = studio.extend(clip, clip_fps=12, direction=direction, frames=asked, **FAST)
    start = 0 if direction == "forward" else new
    assert len(made) == 11 + new * (2 if direction == "both" else 1)
    np.testing.assert_array_equal(made.frames_FHW3[start : start + 11], clip)
    assert any(f"{asked} becomes {new}" in note for note in made.notes) == (asked != new)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_extend_of_a_chosen_length_makes_something_new(studio, direction):
    for seed in range(6):
        made = studio.extend(noise(3), clip_fps=12, direction=direction, steps=1, seed=seed)
        assert len(made) > 3
        assert (len(made) - 3) % GROUP == 0


@pytest.mark.parametrize(("context", "seen"), [(1, 1), (2, 5), (5, 5), (99, 9)])
def test_extend_forward_sees_whole_groups(studio, context, seen):
    """Pictures before those change nothing; the first and last of those do."""
    clip = noise(11)
    settings = {"clip_fps": 12, "context": context, "frames": 4, **FAST}
    plain = studio.extend(clip, **settings)
    assert plain.settings["context"] == seen
    for changed, matters in ((10 - seen, False), (11 - seen, True), (10, True)):
        other = clip.copy()
        other[changed] = 255 - other[changed]
        new = studio.extend(other, **settings).frames_FHW3[11:]
        assert (new != plain.frames_FHW3[11:]).any() == matters


def test_extend_backward_sees_the_first_picture_beside_the_new_ones(studio, monkeypatch):
    asked = []
    plain = studio.codec.encode_keyframes
    monkeypatch.setattr(
        studio.codec, "encode_keyframes", lambda image: asked.append(image) or plain(image)
    )
    clip = noise(6)
    studio.extend(clip, clip_fps=12, direction="backward", frames=8, anyway=True, **FAST)
    (image,) = asked
    np.testing.assert_array_equal(to_frames(image), clip[:1])


def test_who_watches_sees_the_clip_without_its_keyframes(studio):
    seen = []
    clip = studio.interp(noise(3), frames=17, watch=seen.append, **SMALL)
    last = seen[-1]
    assert last.state.lengths == (5,)
    assert last.name_F.tolist() == clip.order
    assert len(clip.growth[-1]) == len(clip.order) == 5
    assert {1, 2}.isdisjoint(clip.order)  # the names of the keyframes' own latents
    assert to_frames(studio.codec.decode(last.done[0])).shape == clip.frames_FHW3.shape


def test_previews_of_any_step_can_be_decoded(studio):
    def check(step):
        if step.state.lengths[0]:
            image_FCHW = studio.codec.decode(step.state.latent_FCHW)
            assert len(image_FCHW) == studio.codec.pictures_of(step.state.lengths[0])

    studio.interp(noise(2), frames=9, watch=check, **SMALL)
    studio.extend(noise(2), clip_fps=12, direction="backward", frames=8, watch=check, **FAST)


def test_memory_and_lengths_are_told_in_pictures(studio, monkeypatch):
    clip = studio.generate("a", frames=4 * LONGEST + 1, **SMALL)
    assert clip.notes == [
        f"{4 * LONGEST + 1} frames are far more than the longest trained clip, {LONGEST}"
    ]
    monkeypatch.setattr("flowcept.generation.free_memory", lambda _: 1e5)
    with pytest.raises(UserError, match="not enough memory: 97 frames"):
        studio.generate("a", frames=97, **SMALL)


def test_the_fake_codec_is_exact():
    """What the tests above lean on."""
    from fake_codec import fake_config

    from flowcept.codecs import build_codec

    codec = build_codec(fake_config(compression=4))
    image_FCHW = to_images(noise(9))
    torch.testing.assert_close(codec.decode(codec.encode_clip(image_FCHW)), image_FCHW)
