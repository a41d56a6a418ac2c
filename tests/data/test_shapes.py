"""Drawn shapes: clips, captions and lengths agree with the scene, and folders with the clips."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flowcept.data import shapes, video
from flowcept.data.shapes import ACTIONS, ADVERBS, COLOURS, PLACES, RESERVED, SHAPES, Scene
from flowcept.errors import UserError

SIDE = 96  # pixels of the clips that are looked at
EVERY_LAW = [Scene("red", "ball", action, "", adverb) for action in ACTIONS for adverb in ADVERBS]


def name(scene: Scene) -> str:
    return f"{scene.action} {scene.adverb}".strip()


def mean_length(action: str, adverb: str) -> float:
    law = shapes.length_law(Scene("red", "ball", action, "", adverb))
    return sum(n * p for n, p in law.items())


def drawn(scene: Scene, num_frames: int = 13, size: int = SIDE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return shapes.draw_clip(scene, size, rng, num_frames=num_frames).astype(int)


def seen(shape: str, action: str) -> np.ndarray:
    """Where the shape is: where pictures change with its colour, seen_FHW."""
    one, other = (drawn(Scene(colour, shape, action)) for colour in ("red", "blue"))
    return np.abs(one - other).max(-1) > 60


def middles(seen_FHW: np.ndarray) -> np.ndarray:
    """The mean x and y of what is seen in each frame."""
    return np.array([np.argwhere(seen_HW).mean(0)[::-1] for seen_HW in seen_FHW])


def feet(seen_FHW: np.ndarray) -> np.ndarray:
    """The lowest row in which something is seen."""
    return np.array([np.nonzero(seen_HW.any(1))[0].max() for seen_HW in seen_FHW])


@pytest.mark.parametrize("scene", EVERY_LAW, ids=name)
def test_length_law_is_a_small_distribution(scene):
    law = shapes.length_law(scene)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert min(law.values()) > 0
    assert list(law) == list(range(min(law), max(law) + 1))
    assert 2 <= len(law) <= 5
    assert min(law) >= 6
    assert max(law) <= 28


def test_length_law_depends_on_action_and_adverb_only():
    for action in ACTIONS:
        slow, plain, quick = (mean_length(action, a) for a in ("slowly", "", "quickly"))
        assert slow > plain + 3
        assert plain > quick + 3
        elsewhere = Scene("blue", "star", action, "on the moon", "slowly")
        assert shapes.length_law(elsewhere) == shapes.length_law(
            Scene("red", "ball", action, "", "slowly")
        )
    assert len({mean_length(action, "") for action in ACTIONS}) >= 5


@pytest.mark.parametrize("scene", EVERY_LAW[::5], ids=name)
def test_drawn_lengths_follow_the_law(scene):
    # 4,000 draws: a share's standard error is under .008; tolerance over 4 of them.
    law = shapes.length_law(scene)
    rng = np.random.default_rng(0)
    lengths = [shapes.sample_length(scene, rng) for _ in range(4000)]
    assert set(lengths) <= set(law)
    for n, p in law.items():
        assert lengths.count(n) / len(lengths) == pytest.approx(p, abs=0.035)


def test_lengths_of_whole_clips_follow_their_laws():
    """Squared distances from the mean length over their expectations: each adds 1 on average."""
    score = variance = 0.0
    for index in range(400):
        rng = np.random.default_rng([7, index])
        scene = shapes.sample_scene(rng)
        shapes.caption(scene, rng)
        length, law = len(shapes.draw_clip(scene, 16, rng)), shapes.length_law(scene)
        mean = sum(n * p for n, p in law.items())
        usual = sum((n - mean) ** 2 * p for n, p in law.items())
        ratios = {n: (n - mean) ** 2 / usual for n in law}
        score += ratios[length] - 1
        variance += sum(p * (ratios[n] - 1) ** 2 for n, p in law.items())
    assert abs(score) < 4 * variance**0.5


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_whole_at_any_length(action):
    # Phase runs 0 to 1: first, middle and last frame are the same pictures in 7 and 13 frames.
    scene = Scene("yellow", "star", action)
    short, long = drawn(scene, 7, 32), drawn(scene, 13, 32)
    np.testing.assert_array_equal(short, long[::2])
    assert np.any(short[0] != short[2])


@pytest.mark.parametrize("action", ACTIONS)
def test_clip_is_deterministic_and_of_a_lawful_length(action):
    scene = Scene("red", "drop", action, PLACES[ACTIONS.index(action) % len(PLACES)])
    first, again, other = (
        shapes.draw_clip(scene, 64, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first.dtype == np.uint8
    assert first.shape[1:] == (64, 64, 3)
    assert len(first) in shapes.length_law(scene)
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or np.any(first != other)


def test_an_adverb_changes_the_length_alone():
    scene = Scene("green", "ring", "bouncing", "at night")
    for adverb in ADVERBS:
        np.testing.assert_array_equal(drawn(replace(scene, adverb=adverb)), drawn(scene))


# What a caption tells is what is drawn.


@pytest.mark.parametrize("colour", COLOURS)
def test_a_shape_has_its_colour(colour):
    clip = drawn(Scene(colour, "heart", "spinning"), 2)[0]
    shape_P3 = clip[seen("heart", "spinning")[0]]
    names = list(COLOURS)
    tints = np.array([[*bytes.fromhex(COLOURS[one])] for one in names], float)
    # Light and shadow leave the direction of a colour from grey as it is.
    hues, tints = (a - a.mean(-1, keepdims=True) for a in (shape_P3, tints))
    alike = hues @ (tints / np.linalg.norm(tints, axis=1, keepdims=True)).T
    assert (alike.argmax(1) == names.index(colour)).mean() > 0.8


def test_shapes_have_outlines_of_their_own():
    outlines = {shape: seen(shape, "spinning")[0] for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            if one < other:
                a, b = outlines[one], outlines[other]
                assert (a & b).sum() / (a | b).sum() < 0.85, (one, other)


def test_a_ring_is_seen_through():
    x, y = middles(seen("ring", "spinning"))[0].round().astype(int)
    scene = Scene("red", "ring", "spinning")
    clip, ball = drawn(scene), drawn(replace(scene, shape="ball"))
    empty = drawn(replace(scene, action="falling"))  # its first frame holds nothing down there
    np.testing.assert_array_equal(clip[0, y, x], empty[0, y, x])
    assert np.any(ball[0, y, x] != empty[0, y, x])


def test_places_stand_still_and_differ():
    corners = {}
    for place in PLACES:
        clip = drawn(Scene("red", "ball", "growing", place))[:, :16, :]  # above the shape
        assert np.all(clip == clip[0]), place
        corners[place] = clip[0].tobytes()
    assert len(set(corners.values())) == len(PLACES)


def test_jumping_falling_and_flying():
    floor = round(shapes.FLOOR * SIDE)
    jump, fall, fly = (seen("star", action) for action in ("jumping", "falling", "flying"))
    assert abs(feet(jump)[[0, -1]] - floor).max() <= 2
    assert feet(jump)[6] < floor - 0.3 * SIDE
    assert feet(jump).argmin() == 6
    assert np.all(np.diff(feet(fall)[:9]) > 0)
    assert abs(feet(fall)[-1] - floor) <= 2
    tall = [np.ptp(np.nonzero(seen_HW.any(1))[0]) for seen_HW in fall]
    assert tall[10] < 0.8 * tall[-1], "it lands with a bump"
    assert np.all(np.diff(middles(fly)[:11, 1]) < 0)
    assert np.all(np.diff(middles(fly)[:, 0]) > 0)
    white = [
        (drawn(Scene("red", "star", action))[0, SIDE // 2 :].min(-1) > 200).sum()
        for action in ("flying", "jumping")
    ]
    assert white[0] > white[1] + 0.01 * SIDE**2, "wings, against the green of the ground"


def test_a_ball_bounces_three_times_and_less_each_time():
    heights = -feet(seen("heart", "bouncing")).astype(float)
    assert np.all(np.diff(middles(seen("heart", "bouncing"))[:, 0]) > 0)
    peaks = [heights[start : start + 5].max() - heights[0] for start in (0, 4, 8)]
    assert peaks[0] > 1.3 * peaks[1] > 1.6 * peaks[2] > 0
    assert abs(heights[[0, 4, 8, 12]] - heights[0]).max() <= 1


def test_what_rolls_turns_and_stays_on_the_floor():
    star = seen("star", "rolling")
    assert np.ptp(feet(star)) <= 2
    assert np.all(np.diff(middles(star)[:, 0]) > 0)
    (x, y), (x2, y2) = middles(star)[[0, 3]].round().astype(int)
    r = SIDE // 8
    first, later = star[0, y - r : y + r, x - r : x + r], star[3, y2 - r : y2 + r, x2 - r : x2 + r]
    assert (first != later).mean() > 0.05


def test_what_spins_stays_and_comes_round():
    drop = seen("drop", "spinning")
    np.testing.assert_array_equal(drop[0], drop[-1])
    np.testing.assert_allclose(drop[6].sum(), drop[0].sum(), rtol=0.05)
    upright, across = (np.ptp(np.argwhere(drop[i]), axis=0) for i in (0, 3))
    assert upright[0] > 1.2 * upright[1]
    assert across[1] > 1.2 * across[0]


def test_growing_and_hiding():
    areas = seen("heart", "growing").sum((1, 2))
    assert np.all(np.diff(areas) > 0)
    assert areas[-1] > 15 * areas[0]
    hidden = seen("heart", "hiding").sum((1, 2))
    assert hidden[6] == 0
    assert hidden[0] == pytest.approx(hidden[-1], rel=0.02)
    assert hidden[0] > 0.02 * SIDE**2
    assert np.all(seen("box", "hiding")[6] == 0), "not even its corners"


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_sizes_show_the_same_scene(size):
    scene = Scene("purple", "flower", "flying", "at night")
    clip, small = drawn(scene, 3, size), drawn(scene, 3, 32)
    assert clip.shape == (3, size, size, 3)
    blocks = clip.reshape(3, 32, size // 32, 32, size // 32, 3).mean((2, 4))
    assert np.abs(blocks - small).mean() < 4


def test_captions_name_the_scene():
    rng = np.random.default_rng(0)
    scene = Scene("orange", "star", "rolling", "at sunset", "slowly")
    captions = [shapes.caption(scene, rng) for _ in range(300)]
    assert all(c.count("an orange star") == 1 and "rolling" in c for c in captions)
    assert all("slowly" in c and "at sunset" in c and "  " not in c for c in captions)
    assert captions.count("an orange star rolling slowly at sunset") > 150
    assert len(set(captions)) == 4
    plain = {shapes.caption(Scene("red", "ball", "bouncing"), rng) for _ in range(100)}
    assert plain == {"a red ball bouncing", "a red ball is bouncing"}


def test_reserved_pairs_are_kept_apart():
    assert Counter(shape for shape, _ in RESERVED) == Counter(SHAPES)
    assert Counter(action for _, action in RESERVED) == Counter(ACTIONS)
    assert not {("ball", "bouncing"), ("ball", "rolling")} & RESERVED
    rng = np.random.default_rng(0)
    scenes = [shapes.sample_scene(rng) for _ in range(3000)]
    every = {(shape, action) for shape in SHAPES for action in ACTIONS}
    assert {(s.shape, s.action) for s in scenes} == every - RESERVED
    assert {s.colour for s in scenes} == set(COLOURS)
    held = [shapes.sample_scene(rng, reserved=True) for _ in range(500)]
    assert {(s.shape, s.action) for s in held} == RESERVED
    assert {s.place for s in held} == set(PLACES)
    assert {s.adverb for s in held} == set(ADVERBS)


# Folders.


def test_written_folder_reads_back(tmp_path):
    out, done = tmp_path / "clips", []
    shapes.write_shapes(out, 6, size=32, seed=5, progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    about = json.loads((out / "shapes.json").read_text())
    assert (about["seed"], about["size"], about["fps"], about["clips"]) == (5, 32, shapes.FPS, 6)
    assert {tuple(pair) for pair in about["reserved"]} == RESERVED
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    names = [line["file_name"] for line in lines]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*names, "metadata.jsonl", "shapes.json"]
    )
    for index, line in enumerate(lines):
        rng = np.random.default_rng([5, index])
        scene = shapes.sample_scene(rng)
        assert line["caption"] == shapes.caption(scene, rng)
        assert scene == Scene(*(line[key] for key in Scene.__annotations__))
        frames_FHW3, fps = video.read_video(out / line["file_name"])
        np.testing.assert_array_equal(frames_FHW3, shapes.draw_clip(scene, 32, rng))
        assert fps == pytest.approx(shapes.FPS)


def test_a_clip_does_not_depend_on_how_many_are_written(tmp_path):
    for folder, count in (("few", 2), ("more", 4)):
        shapes.write_shapes(tmp_path / folder, count, size=32, seed=1)
    shapes.write_shapes(tmp_path / "other", 2, size=32, seed=2)
    for clip in ("000000.apng", "000001.apng"):
        few, more, other = ((tmp_path / f / clip).read_bytes() for f in ("few", "more", "other"))
        assert few == more != other


def test_interruption_leaves_a_smaller_valid_folder(tmp_path):
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shapes.write_shapes(tmp_path / "out", 9, size=32, progress=stop)
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    names = [json.loads(line)["file_name"] for line in lines]
    assert names == ["000000.apng", "000001.apng", "000002.apng"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.apng")) == names
    for clip in names:
        assert len(video.read_video(tmp_path / "out" / clip)[0]) >= 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clips": 0}, "at least 1"),
        ({"clips": 1, "size": 8}, "16 to 1024"),
        ({"clips": 1, "seed": -1}, "negative"),
    ],
)
def test_senseless_settings_are_refused(tmp_path, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        shapes.write_shapes(tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="not an empty folder"):
            shapes.write_shapes(out, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
