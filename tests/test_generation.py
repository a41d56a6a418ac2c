"""Tasks from Python: what is given stays, what is asked for is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures_model import LENGTHS, LEXICON, SIZE, write_model

import flowcept
from flowcept import generation as tasks
from flowcept.codecs import to_frames, to_images
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.process.forward import Flowception
from flowcept.settings import SampleConfig

LONGEST = max(LENGTHS)
FAST = {"steps": 2, "seed": 1}
SMALL = FAST | {"scale": 1}


@pytest.fixture(scope="module")
def studio(tiny_model):
    return flowcept.load(str(tiny_model), device="cpu", dtype="float32")


def noise(frames, height=SIZE, width=SIZE, seed=0):
    """Pictures that no model makes by chance."""
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def places(clip, given_FHW3):
    """Where each given frame is in a clip, exactly."""
    same = (clip.frames_FHW3[:, None] == given_FHW3[None]).all((2, 3, 4))
    return [np.flatnonzero(column).tolist() for column in same.T]


def test_a_seed_is_a_clip_and_prompts_and_seeds_differ(studio):
    first, again = (studio.generate("a dog", frames=5, **SMALL) for _ in range(2))
    np.testing.assert_array_equal(first.frames_FHW3, again.frames_FHW3)
    for other in (
        studio.generate("a cat", frames=5, **SMALL),
        studio.generate("a dog", frames=5, **SMALL | {"seed": 2}),
        studio.generate("a dog", frames=5, guidance=5.0, **SMALL),
        studio.generate("a dog", frames=5, negative_prompt="a cat", **SMALL),
    ):
        assert (other.frames_FHW3 != first.frames_FHW3).any()


def test_random_seed_is_told_and_repeats_the_clip(studio):
    made = studio.generate("a dog", steps=1, scale=1)
    assert made.settings["seed"] == made.seed
    assert studio.generate("a dog", steps=1, scale=1).seed != made.seed
    again = studio.generate("a dog", steps=1, scale=1, seed=made.seed)
    np.testing.assert_array_equal(made.frames_FHW3, again.frames_FHW3)


@pytest.mark.parametrize("frames", [1, 2, LONGEST, LONGEST + 9])
def test_exact_length_of_every_task(studio, frames):
    pair = noise(2)
    assert len(studio.generate("a", frames=frames, **SMALL)) == frames
    assert len(studio.i2v(pair[0], frames=frames, **SMALL)) == frames
    if frames > 1:
        assert len(studio.interp(pair, frames=frames, **SMALL)) == frames
    assert len(studio.extend(pair, clip_fps=12, frames=frames, **FAST)) == 2 + frames


@pytest.mark.parametrize(("low", "high"), [(5, 6), (3, 3), (11, None), (None, 4)])
def test_bounds_hold_for_every_task(studio, low, high):
    pair, bounds = noise(2), {"min_length": low, "max_length": high, "steps": 2}
    for seed in range(6):
        made = [
            len(studio.generate("a", seed=seed, scale=1, **bounds)),
            len(studio.i2v(pair[0], seed=seed, scale=1, **bounds)),
            len(studio.interp(pair, seed=seed, scale=1, **bounds)),
            len(studio.extend(pair, clip_fps=12, seed=seed, **bounds)) - 2,
        ]
        # Extension counts new frames, so its default bound is over what the model was trained on.
        assert min(made) >= (low or 1)
        assert max(made) <= (high or LONGEST + 2)


@pytest.mark.parametrize("low", [LONGEST + 1, LONGEST + 3, 4 * LONGEST])
def test_least_length_over_the_longest_trained_clip(studio, low):
    assert len(studio.generate("a", min_length=low, **SMALL)) >= low
    assert len(studio.extend(noise(2), clip_fps=12, min_length=low, **FAST)) >= low + 2


@pytest.mark.parametrize("rate_temperature", [0.0, 1e-310, 1e6])
def test_extreme_temperatures(studio, rate_temperature):
    made = studio.generate("a dog", rate_temperature=rate_temperature, **SMALL)
    assert 1 <= len(made) <= LONGEST


@pytest.mark.parametrize("rate_temperature", [0.0, 1e-310, 1e-3])
def test_low_temperatures_leave_every_gap_its_frames(studio, rate_temperature):
    """The most probable gap of all is in one segment only; every segment has its own."""
    keys = noise(3)
    made = studio.interp(keys, multi=2, rate_temperature=rate_temperature, **SMALL)
    assert [place for (place,) in places(made, keys)] == [0, 3, 6]


def test_length_scale_reaches_from_shortest_to_longest(studio):
    lengths = [
        [
            len(studio.generate("a", steps=1, seed=seed, scale=1, length_scale=s))
            for seed in range(8)
        ]
        for s in (0.1, 1.0, 10.0)
    ]
    assert np.mean(lengths[0]) < np.mean(lengths[1]) < np.mean(lengths[2])
    assert max(lengths[2]) in (LONGEST - 1, LONGEST)  # one frame times ten, with the first


def test_fps_changes_playback_only_and_scale_enlarges(studio):
    plain = studio.generate("a dog", **SMALL)
    slow = studio.generate("a dog", fps=3.5, **SMALL)
    large = studio.generate("a dog", **SMALL | {"scale": 3})
    assert (plain.fps, slow.fps) == (12, 3.5)
    np.testing.assert_array_equal(plain.frames_FHW3, slow.frames_FHW3)
    np.testing.assert_array_equal(large.frames_FHW3, video.scale(plain.frames_FHW3, 3))
    assert studio.generate("a dog", frames=2, **FAST).frames_FHW3.shape[1:3] == (256, 256)


def test_watch_sees_every_step_and_growth_tells_the_order(studio):
    seen = []
    made = studio.generate("a dog", watch=seen.append, **SMALL | {"steps": 4})
    assert [step.index for step in seen] == list(range(len(seen)))
    assert len(made.growth) == len(seen)
    assert 4 < len(seen) <= 9  # the last frame appears at a step from 0 to 4 and takes 4 more
    assert len(made.order) == len(set(made.order)) == len(made)
    assert [name for name, _, _ in made.growth[-1]] == made.order
    assert all(time == 1 for _, time, _ in made.growth[-1])


def test_unknown_words_are_told(studio):
    (note,) = studio.generate("a Zebra, surfing", **SMALL).notes
    assert "'zebra'" in note
    assert "dog" in note
    assert "'surfing'" not in note
    assert studio.generate("The dog", **SMALL).notes == []


def test_notes_on_words_are_one_line_each_and_name_those_of_a_negative_prompt(studio):
    long = " ".join(f"w{number}\n" for number in range(500))
    (note,) = studio.word_notes(long, "a Zebra")
    assert "'w0', 'w1'" in note
    assert "\n" not in note
    assert len(note) < 700
    (note,) = studio.word_notes("a dog", "a Zebra, surfing")
    assert "never saw 'zebra';" in note


def test_a_word_that_a_full_list_leaves_out_may_have_been_seen(studio, monkeypatch):
    monkeypatch.setattr(tasks, "WORDS", len(studio.card.words))
    (note,) = studio.generate("a zebra", **SMALL).notes
    assert "rarely or never saw 'zebra'" in note


def test_unknown_setting_is_a_programming_error(studio):
    with pytest.raises(TypeError, match="lenght"):
        studio.generate("a dog", lenght=3)


def test_i2v_keeps_the_frame_up_to_the_codec(studio):
    (picture,) = noise(1)
    made = studio.i2v(picture, "a dog", exact=False, **SMALL)
    codec = studio.weights.codec
    with torch.inference_mode():
        expected = to_frames(codec.decode(codec.encode(to_images(picture[None]))))
    difference = made.frames_FHW3[0].astype(int) - expected[0]
    assert abs(difference).max() <= 1  # another number of frames decoded at once rounds otherwise
    assert (made.frames_FHW3[0] != picture).any()


@pytest.mark.parametrize("side", [SIZE, 256])
def test_i2v_gives_back_pixels_of_the_same_size(studio, side):
    (picture,) = noise(1, side, side)
    made = studio.i2v(picture, **SMALL | {"scale": side // SIZE})
    np.testing.assert_array_equal(made.frames_FHW3[0], picture)
    assert made.notes == []


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_i2v_fits_and_says_so(studio, fit):
    (picture,) = noise(1, 40, 70)
    made = studio.i2v(picture, fit=fit, exact=True, **SMALL)
    expected, said = video.fit(picture[None], (SIZE, SIZE), fit)
    np.testing.assert_array_equal(made.frames_FHW3[0], expected[0])
    assert made.notes == [said]
    assert (studio.i2v(picture, fit=fit, **SMALL).frames_FHW3[0] != expected[0]).any()


@pytest.mark.parametrize("count", [2, 3, 5, LONGEST - 1])
def test_interp_keeps_keyframes_in_order(studio, count):
    keys = noise(count)
    found = [place for (place,) in places(studio.interp(keys, **SMALL), keys)]
    assert found == sorted(found)
    assert found[0] == 0


def test_keyframes_without_room_between_them(studio):
    roomy, tight, full = ((LONGEST + 1) // 2, LONGEST // 2 + 1, LONGEST)
    assert studio.interp(noise(roomy), **SMALL).notes == []
    assert "`multi=K`" in studio.interp(noise(tight), **SMALL).notes[0]
    for count in (full, full + 3):
        with pytest.raises(UserError, match=f"{count} keyframes.*`multi=K`"):
            studio.interp(noise(count), **SMALL)
        assert len(studio.interp(noise(count), multi=1, **SMALL)) == 2 * count - 1
        assert len(studio.interp(noise(count), frames=count + 2, **SMALL)) == count + 2


def test_interp_frames_between(studio):
    keys = noise(3)
    made = studio.interp(keys, frames=9, **SMALL)
    found = [place for (place,) in places(made, keys)]
    assert (found[0], found[-1], len(made)) == (0, 8, 9)


def test_interp_has_defaults_of_its_own(studio):
    """Said in the file, and given way to what is asked for."""
    plain, asked = studio.interp(noise(2), seed=1), studio.interp(noise(2), seed=1, guidance=3.0)
    other = studio.generate("a dog", seed=1, frames=3)
    said = [(clip.settings["steps"], clip.settings["guidance"]) for clip in (plain, asked, other)]
    assert said == [(4, 1.0), (4, 3.0), (8, 2.0)]


@pytest.mark.parametrize(("guidance", "told"), [({}, True), ({"guidance": 2.0}, False)])
def test_a_negative_prompt_without_guidance_is_told(studio, guidance, told):
    made = studio.interp(noise(2), negative_prompt="a cat", seed=1, steps=1, **guidance)
    assert any("negative prompt" in note for note in made.notes) == told


@pytest.mark.parametrize(("count", "multi"), [(2, 1), (4, 3), (20, 1), (3, LONGEST + 5)])
def test_interp_multi_in_windows(studio, count, multi):
    keys = noise(count)
    made = studio.interp(keys, multi=multi, **SMALL)
    assert len(made) == (count - 1) * (multi + 1) + 1 == made.settings["frames"]
    np.testing.assert_array_equal(made.frames_FHW3[:: multi + 1], keys)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multi": 2, "frames": 9}, "`multi`"),
        ({"multi": 2, "min_length": 3}, "`multi`"),
        ({"multi": -1}, "`multi`"),
        ({"frames": 2}, "keyframes"),
        ({"max_length": 2}, "keyframes"),
    ],
)
def test_interp_contradictions(studio, settings, words):
    with pytest.raises(UserError, match=words):
        studio.interp(noise(3), **settings)
    with pytest.raises(UserError, match="two keyframes"):
        studio.interp(noise(1))


@pytest.mark.parametrize("size", [(SIZE, SIZE), (33, 47), (64, 20)])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_extend_leaves_the_clip_alone(studio, direction, size):
    clip = noise(6, *size)
    made = studio.extend(clip, clip_fps=10, direction=direction, frames=5, **FAST)
    start = 0 if direction == "forward" else 5
    np.testing.assert_array_equal(made.frames_FHW3[start : start + 6], clip)
    assert len(made) == (16 if direction == "both" else 11)
    assert made.fps == 10
    assert made.settings["frames"] == len(made)
    assert made.settings["fps"] == 10


def test_a_model_of_clips_that_start_with_their_first_frame_does_all_tasks(studio):
    """Given frames and lengths are kept; between several keyframes there is no difference."""
    process = Flowception(first=True)
    weights = replace(studio.weights, process=process, card=replace(studio.card, process=process))
    own = tasks.Studio(weights, studio.name, studio.device, studio.dtype)
    given = noise(3)
    assert len(own.generate("a", frames=5, loop=True, **SMALL)) == 5
    for frames in (1, 5):
        made = own.i2v(given[0], frames=frames, exact=True, **SMALL)
        assert len(made) == frames
        np.testing.assert_array_equal(made[0], given[0])
    for direction in ("backward", "both"):
        made = own.extend(given, clip_fps=12, direction=direction, frames=4, **FAST)
        np.testing.assert_array_equal(made[4:7], given)
    plain, between = (one.interp(given, frames=9, **SMALL) for one in (studio, own))
    np.testing.assert_array_equal(between.frames_FHW3, plain.frames_FHW3)


@pytest.mark.parametrize("context", [1, 2, 99])
def test_extend_context(studio, context):
    made = studio.extend(noise(30), clip_fps=12, context=context, frames=3, **FAST)
    assert len(made) == 33


@pytest.mark.parametrize(("longest", "frames", "seen"), [(12, 30, 6), (40, 30, 8), (12, 3, 3)])
def test_extend_sees_all_that_fits(studio, monkeypatch, longest, frames, seen):
    """Half of the longest trained clip, but no more in a row than training shows."""
    monkeypatch.setattr(studio, "card", replace(studio.card, lengths={4: 1, longest: 1}))
    clip = noise(frames)
    made = studio.extend(clip, clip_fps=12, frames=2, **FAST)
    assert made.settings["context"] == seen
    if seen < frames:
        for place, matters in ((-seen - 1, False), (-seen, True)):
            other = clip.copy()
            other[place] = 255 - other[place]
            new_FHW3 = studio.extend(other, clip_fps=12, frames=2, **FAST).frames_FHW3[frames:]
            assert (new_FHW3 != made.frames_FHW3[frames:]).any() == matters


def test_extend_sees_its_context_only(studio):
    """Frames before the context change nothing; a frame inside it does."""
    clip = noise(6)
    new = {}
    for changed in (None, 0, 5):
        other = clip.copy()
        if changed is not None:
            other[changed] = 255 - other[changed]
        made = studio.extend(other, clip_fps=12, context=2, frames=4, **FAST)
        new[changed] = made.frames_FHW3[6:]
    np.testing.assert_array_equal(new[None], new[0])
    assert (new[None] != new[5]).any()


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_extend_by_more_than_a_clip(studio, direction):
    clip, new = noise(4), 3 * LONGEST + 1
    made = studio.extend(clip, clip_fps=12, direction=direction, frames=new, **FAST)
    sides = 2 if direction == "both" else 1
    assert len(made) == 4 + sides * new
    (place,) = places(made, clip[:1])
    assert place == [0 if direction == "forward" else new]
    added = np.delete(made.frames_FHW3, range(place[0], place[0] + 4), axis=0)
    assert len(np.unique(added, axis=0)) == len(added)  # no window is repeated


def test_extend_says_what_it_cannot_keep(studio, tmp_path):
    made = studio.extend(noise(3), clip_fps=30, frames=1, **FAST)
    assert "30 frames per second" in made.notes[0]
    sound = video.Sound(tmp_path / "x.mp4", 0.0)
    made = studio.extend(noise(3), clip_fps=12, fps=24, sound=sound, frames=1, **FAST)
    assert made.sound is None
    assert any("sound" in note for note in made.notes)


@pytest.mark.parametrize("settings", [{"direction": "up"}, {"context": 0}, {"steps": 0}])
def test_extend_contradictions(studio, settings):
    with pytest.raises(UserError):
        studio.extend(noise(3), clip_fps=12, **settings)


def test_pixels_codec(tmp_path):
    path = write_model(tmp_path / "p.safetensors", codec="pixels")
    (picture,) = noise(1)
    made = flowcept.load(str(path)).i2v(picture, exact=False, **SMALL)
    np.testing.assert_array_equal(made.frames_FHW3[0], picture)


def test_save_and_read_back(studio, tmp_path):
    path = tmp_path / "out.webp"
    made = studio.generate("a dog", **SMALL)
    assert made.save(path) is None
    frames_FHW3, fps = video.read_video(path)
    np.testing.assert_array_equal(frames_FHW3, made.frames_FHW3)
    assert fps == 12
    assert video.read_metadata(path) == made.settings
    made.save(str(path), metadata=False)
    assert video.read_metadata(path) is None


def test_more_than_fits_into_memory_is_said_before(studio, monkeypatch):
    monkeypatch.setattr("flowcept.generation.free_memory", lambda _: 1e6)
    for settings in ({"frames": 50}, {"max_length": 50}, {"min_length": 50}):
        with pytest.raises(UserError, match=r"50 frames of 32x32 .* lower `frames`"):
            studio.generate("a dog", watch=lambda _: pytest.fail("it ran"), **settings)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), UserError),
        (MemoryError(), UserError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
        (RuntimeError("no kernel image for shared memory of this size"), RuntimeError),
    ],
)
def test_only_errors_of_memory_are_told_as_such(studio, monkeypatch, error, told):
    def failing(*_):
        raise error

    monkeypatch.setattr("flowcept.generation.sample_clips", failing)
    with pytest.raises(told, match="memory") as caught:
        studio.generate("a dog", **SMALL)
    assert (caught.value is error) == (told is RuntimeError)


@pytest.mark.parametrize("task", ["extend", "interp"])
def test_seeds_of_windows_and_neighbours_do_not_overlap(studio, monkeypatch, task):
    """The first window has the seed told; none has that of a neighbouring clip's window."""
    plain, drawn = tasks.clip_generator, []
    monkeypatch.setattr(tasks, "clip_generator", lambda seed: drawn.append(seed) or plain(seed))
    for seed in (1, 2, 3):
        if task == "interp":
            studio.interp(noise(LONGEST), multi=3, steps=1, seed=seed, scale=1)
        else:
            both = {"direction": "both", "frames": 2 * LONGEST}
            studio.extend(noise(3), clip_fps=12, steps=1, seed=seed, **both)
    assert len(drawn) >= 9
    assert len(set(drawn)) == len(drawn)
    assert {1, 2, 3} <= set(drawn)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(studio, seed):
    with pytest.raises(UserError, match="`seed`"):
        studio.generate("a dog", seed=seed)


def test_memory_is_asked_for_what_is_known(studio, monkeypatch):
    """Frames between keyframes count, and their number is told."""
    keys = noise(2)
    made = studio.interp(keys, multi=2 * LONGEST, length_scale=2.0, **SMALL)
    assert [word for word in ("far more", "`length_scale`") if word in " ".join(made.notes)] == [
        "far more",
        "`length_scale`",
    ]
    assert studio.estimate(SampleConfig(), least=3000) > 1.5 * studio.estimate(SampleConfig())
    enough = studio._work(100, SampleConfig(), 1)
    monkeypatch.setattr("flowcept.generation.free_memory", lambda _: enough)
    with pytest.raises(UserError, match="not enough memory: 3002"):
        studio.interp(keys, multi=3000, **SMALL)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("held", [3, 256])
def test_a_file_is_extended_as_its_frames_are(studio, tmp_path, monkeypatch, direction, held):
    """However few of them are held in memory, and read again when the clip is saved."""
    monkeypatch.setattr(tasks, "ENDS", held)
    clip = noise(11, 2 * SIZE, 3 * SIZE)
    video.write_video(tmp_path / "a.apng", clip, 12)
    settings = {"direction": direction, "frames": 5, "context": 2, **FAST}
    expected = studio.extend(clip, clip_fps=12, **settings)
    file = video.Footage.open(tmp_path / "a.apng")
    monkeypatch.setattr(video.Footage, "ends", _watched(file.ends, held + 4, clip))
    made = studio.extend_file(file, **settings)
    assert len(made) == made.settings["frames"] == len(expected)
    assert made.size == (2 * SIZE, 3 * SIZE)
    assert made.save(tmp_path / "b.apng") is None
    frames_FHW3, fps = video.read_video(tmp_path / "b.apng")
    np.testing.assert_array_equal(frames_FHW3, expected.frames_FHW3)
    assert fps == 12
    assert made.settings == expected.settings


def _watched(ends, most, clip):
    def counted(_, count, size):
        assert count <= most
        ends_FHW3, own = ends(count, size)
        assert len(ends_FHW3) == min(2 * count, len(clip))
        assert ends_FHW3.shape[1:3] == (SIZE, SIZE)
        return ends_FHW3, own

    return counted


# ---- words that people use ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A model with a lexicon, and the same without."""
    folder = tmp_path_factory.mktemp("words")
    return [
        flowcept.load(str(write_model(folder / f"{n}.safetensors", lexicon=words)), device="cpu")
        for n, words in enumerate((LEXICON, None))
    ]


def test_prompts_are_read_in_words_that_the_model_knows(reader):
    studio, plain = reader
    clip = studio.generate("a puppy riding a wave", frames=5, **SMALL)
    meant = plain.generate("a dog surfing", frames=5, **SMALL)
    np.testing.assert_array_equal(clip.frames_FHW3, meant.frames_FHW3)
    assert clip.settings["prompt"] == "a puppy riding a wave"
    assert clip.settings["read_as"] == "a dog surfing"
    assert ["puppy: dog; riding a wave: surfing" in note for note in clip.notes] == [True]
    assert "read_as" not in meant.settings
    assert meant.notes == []

    away = {"negative_prompt": "kitten", "frames": 5, **SMALL}
    np.testing.assert_array_equal(
        studio.generate("a puppy", **away).frames_FHW3,
        plain.generate("a dog", **away | {"negative_prompt": "cat"}).frames_FHW3,
    )


def test_literal_prompts_are_read_as_they_are(reader):
    studio, plain = reader
    clip = studio.generate("a puppy", literal=True, frames=5, **SMALL)
    meant = plain.generate("a puppy", frames=5, **SMALL)
    np.testing.assert_array_equal(clip.frames_FHW3, meant.frames_FHW3)
    assert clip.settings["literal"] is True
    assert "read_as" not in clip.settings
    assert clip.notes == meant.notes
    assert "never saw 'puppy'" in clip.notes[0]


def test_every_task_reads_prompts_alike(reader):
    studio, plain = reader
    pair = noise(2)
    for task, given in (("i2v", pair[0]), ("interp", pair), ("extend", pair)):
        more = {"frames": 4, "guidance": 2.0, "seed": 1, "steps": 2}
        more |= {"clip_fps": 12} if task == "extend" else {"scale": 1}
        read = getattr(studio, task)(given, "a kitten", **more)
        meant = getattr(plain, task)(given, "a cat", **more)
        np.testing.assert_array_equal(read.frames_FHW3, meant.frames_FHW3)


def test_what_no_word_is_read_for_is_noted(reader):
    notes = list(reader[0].word_notes("a puppy under a chandelier"))
    assert "puppy: dog" in notes[0]
    assert "'chandelier'" in notes[1]
    assert "puppy" not in notes[1]


@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("part", ["size", "layers", "stem"])
def test_weights_that_overflow_are_told(tiny_model, part, length):
    """Finite in the file, and far too large: no clip of another length, and no black one."""
    broken = flowcept.load(str(tiny_model), device="cpu", dtype="float32")
    with torch.no_grad():
        for name, weight in broken.weights.network.named_parameters():
            if name.startswith(part):
                weight.fill_(3e38)
    with pytest.raises(UserError, match=r"^the model gives values that are not finite[^\n]*$"):
        broken.generate("a dog", frames=length, **SMALL)
