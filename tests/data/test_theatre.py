"""The theatre: clips, captions and lengths agree with the scene, and folders with the clips."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowcept.data import theatre, video
from flowcept.data.theatre import ACTIONS, ACTORS, ADVERBS, PLACES, RESERVED, SHAPES, Scene
from flowcept.errors import UserError

needs_font = pytest.mark.skipif(
    theatre.find_font() is None, reason="no NotoColorEmoji.ttf (fonts-noto-color-emoji)"
)
EVERY_LAW = [Scene("red circle", action, "", adverb) for action in ACTIONS for adverb in ADVERBS]


def mean_length(action: str, adverb: str) -> float:
    law = theatre.length_law(Scene("red circle", action, "", adverb))
    return sum(n * p for n, p in law.items())


def test_cast_and_reserved_pairs():
    cast = ACTORS + SHAPES
    assert len(ACTORS) >= 32
    assert len(SHAPES) >= 8
    assert len(set(cast)) == len(cast)
    assert len(ACTIONS) == 12
    assert len(RESERVED) == 16
    assert {action for _, action in RESERVED} == set(ACTIONS)
    assert all(actor in cast and action in ACTIONS for actor, action in RESERVED)
    assert ("dog", "surfing") not in RESERVED
    assert max(np.unique([actor for actor, _ in RESERVED], return_counts=True)[1]) == 1


@pytest.mark.parametrize("scene", EVERY_LAW, ids=lambda s: f"{s.action} {s.adverb}".strip())
def test_length_law_is_a_small_distribution(scene):
    law = theatre.length_law(scene)
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
        elsewhere = Scene("dog", action, "on the moon", "slowly")
        assert theatre.length_law(elsewhere) == theatre.length_law(
            Scene("red circle", action, "", "slowly")
        )
    assert len({mean_length(action, "") for action in ACTIONS}) >= 5


def test_drawn_lengths_follow_the_law():
    # 4,000 draws over 4 values: a share's standard error is under .008; tolerance over 4 of them.
    scene = Scene("blue square", "swimming", "", "")
    law = theatre.length_law(scene)
    rng = np.random.default_rng(0)
    lengths = [theatre.sample_length(scene, rng) for _ in range(4000)]
    assert set(lengths) <= set(law)
    for n, p in law.items():
        assert lengths.count(n) / len(lengths) == pytest.approx(p, abs=0.035)


def test_training_lengths_have_the_intended_mean():
    rng = np.random.default_rng(0)
    scenes = [theatre.sample_scene(rng, actors=SHAPES) for _ in range(2000)]
    mean = np.mean([mean_length(scene.action, scene.adverb) for scene in scenes])
    assert 11.5 < mean < 14


@pytest.mark.parametrize("action", ACTIONS)
def test_clip_is_deterministic_and_of_a_lawful_length(action):
    scene = Scene("red circle", action, PLACES[ACTIONS.index(action) % len(PLACES)], "")
    first, again, other = (
        theatre.draw_clip(scene, 64, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first.dtype == np.uint8
    assert first.shape[1:] == (64, 64, 3)
    assert len(first) in theatre.length_law(scene)
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or np.any(first != other)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_whole_at_any_length(action):
    # Phase runs 0 to 1: first, middle and last frame are the same pictures in 7 and 13 frames.
    scene = Scene("yellow star", action, "", "")
    short = theatre.draw_clip(scene, 32, np.random.default_rng(1), num_frames=7)
    long = theatre.draw_clip(scene, 32, np.random.default_rng(1), num_frames=13)
    np.testing.assert_array_equal(short, long[::2])
    assert np.any(short[0] != short[3])


def test_actions_differ_more_than_takes_of_one_action():
    def clip(action: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return theatre.draw_clip(Scene("red circle", action), 32, rng, num_frames=9).astype(float)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)))

    clips = {action: clip(action, 0) for action in ACTIONS}
    within = max(distance(clips[a], clip(a, seed)) for a in ACTIONS for seed in (1, 2, 3))
    between = min(distance(clips[a], clips[b]) for a in ACTIONS for b in ACTIONS if a < b)
    assert within < between  # 35 and 44 levels of 255


def test_a_crouch_keeps_the_feet_on_the_floor():
    scene = Scene("blue square", "jumping", "in the desert")
    clip = theatre.draw_clip(scene, 128, np.random.default_rng(0), num_frames=9).astype(int)
    blue_FHW = clip[..., 2] - clip[..., 0] > 140
    rows = [np.nonzero(blue_HW.any(1))[0] for blue_HW in blue_FHW]
    widths = [np.ptp(np.nonzero(blue_HW.any(0))[0]) for blue_HW in blue_FHW]
    standing, crouched, apex = rows[0], rows[1], rows[4]
    assert abs(standing.max() - theatre.FLOOR * 128) < 6  # the outline is dark
    assert abs(crouched.max() - standing.max()) <= 1
    assert np.ptp(crouched) == pytest.approx(0.7 * np.ptp(standing), abs=2)
    assert widths[1] == pytest.approx(1.3 * widths[0], abs=2)
    assert apex.max() < standing.min() + 20


def test_places_stand_still_and_differ():
    first, last = {}, {}
    for place in PLACES:
        scene = Scene("red circle", "growing", place, "")
        clip = theatre.draw_clip(scene, 32, np.random.default_rng(0), num_frames=6)
        # The actor never reaches the upper corners.
        first[place], last[place] = clip[0, :6, :].tobytes(), clip[-1, :6, :].tobytes()
    assert first == last
    assert len(set(first.values())) == len(PLACES)


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_sizes_show_the_same_scene(size):
    scene = Scene("purple hexagon", "flying", "at night", "")
    clip = theatre.draw_clip(scene, size, np.random.default_rng(0), num_frames=3)
    small = theatre.draw_clip(scene, 32, np.random.default_rng(0), num_frames=3)
    assert clip.shape == (3, size, size, 3)
    blocks = clip.reshape(3, 32, size // 32, 32, size // 32, 3).mean((2, 4))
    assert np.abs(blocks - small).mean() < 4


def test_every_shape_draws():
    pictures = {
        theatre.draw_clip(
            Scene(shape, "walking"), 32, np.random.default_rng(0), num_frames=1
        ).tobytes()
        for shape in SHAPES
    }
    assert len(pictures) == len(SHAPES)


@needs_font
def test_every_emoji_draws():
    pictures = {
        theatre.draw_clip(
            Scene(actor, "walking"), 32, np.random.default_rng(0), num_frames=1
        ).tobytes()
        for actor in ACTORS
    }
    assert len(pictures) == len(ACTORS)


def test_captions_name_the_scene():
    rng = np.random.default_rng(0)
    scene = Scene("owl", "surfing", "at sunset", "slowly")
    captions = [theatre.caption(scene, rng) for _ in range(300)]
    assert all(c.count("an owl") == 1 and "surfing" in c for c in captions)
    assert all("slowly" in c and "at sunset" in c and "  " not in c for c in captions)
    assert captions.count("an owl surfing slowly at sunset") > 150
    assert len(set(captions)) == 4
    plain = {theatre.caption(Scene("dog", "surfing"), rng) for _ in range(100)}
    assert plain == {"a dog surfing", "a dog is surfing"}
    assert "a unicorn hiding" in {theatre.caption(Scene("unicorn", "hiding"), rng) for _ in "12345"}


def test_reserved_pairs_are_kept_apart():
    rng = np.random.default_rng(0)
    cast = ACTORS + SHAPES
    seen = {
        (s.actor, s.action) for s in (theatre.sample_scene(rng, actors=cast) for _ in range(9999))
    }
    assert not seen & RESERVED
    assert len(seen) > 0.99 * (len(cast) * len(ACTIONS) - len(RESERVED))
    held = [theatre.sample_scene(rng, actors=cast, reserved=True) for _ in range(500)]
    assert {(s.actor, s.action) for s in held} == RESERVED
    assert {s.place for s in held} == set(PLACES)
    assert {s.adverb for s in held} == set(ADVERBS)
    with pytest.raises(ValueError, match="reserved"):
        theatre.sample_scene(rng, actors=["white egg"], reserved=True)


def test_written_folder_reads_back(tmp_path):
    out, done = tmp_path / "stage", []
    theatre.write_theatre(out, 6, size=32, seed=5, actors="shapes", progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    about = json.loads((out / "theatre.json").read_text())
    assert (about["seed"], about["size"], about["fps"]) == (5, 32, theatre.FPS)
    assert about["actors"] == list(SHAPES)
    assert {tuple(pair) for pair in about["reserved"]} == RESERVED
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    names = [line["file_name"] for line in lines]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*names, "metadata.jsonl", "theatre.json"]
    )
    for index, line in enumerate(lines):
        rng = np.random.default_rng([5, index])
        scene = theatre.sample_scene(rng, actors=SHAPES)
        assert line["caption"] == theatre.caption(scene, rng)
        assert scene == Scene(*(line[key] for key in ("actor", "action", "place", "adverb")))
        frames_FHW3, fps = video.read_video(out / line["file_name"])
        np.testing.assert_array_equal(frames_FHW3, theatre.draw_clip(scene, 32, rng))
        assert fps == pytest.approx(theatre.FPS)


def test_a_clip_does_not_depend_on_how_many_are_written(tmp_path):
    for name, count in (("few", 2), ("more", 4)):
        theatre.write_theatre(tmp_path / name, count, size=32, seed=1, actors="shapes")
    for name in ("000000.apng", "000001.apng"):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()


def test_interruption_leaves_a_smaller_valid_folder(tmp_path):
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        theatre.write_theatre(tmp_path / "out", 9, size=32, actors="shapes", progress=stop)
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    names = [json.loads(line)["file_name"] for line in lines]
    assert names == ["000000.apng", "000001.apng", "000002.apng"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.apng")) == names
    for name in names:
        assert len(video.read_video(tmp_path / "out" / name)[0]) >= 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clips": 0}, "at least 1"),
        ({"clips": 1, "size": 8}, "16 to 1024"),
        ({"clips": 1, "seed": -1}, "negative"),
        ({"clips": 1, "actors": "people"}, "unknown actor 'people': choose auto, emoji, shapes"),
        ({"clips": 1, "actors": "red circle,"}, "unknown actor ''"),
    ],
)
def test_senseless_settings_are_refused(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        theatre.write_theatre(tmp_path / "out", **{"actors": "shapes", **settings})
    assert not (tmp_path / "out").exists()


def test_actors_by_name(tmp_path):
    theatre.write_theatre(tmp_path / "two", 8, size=32, actors="white egg, red circle,white egg")
    about = json.loads((tmp_path / "two" / "theatre.json").read_text())
    assert about["actors"] == ["white egg", "red circle"]
    rows = [json.loads(r) for r in (tmp_path / "two" / "metadata.jsonl").read_text().splitlines()]
    assert {row["actor"] for row in rows} == {"white egg", "red circle"}


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="not an empty folder"):
            theatre.write_theatre(out, 1, actors="shapes")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_without_the_font(tmp_path, monkeypatch):
    monkeypatch.setattr(theatre, "find_font", lambda: None)
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        theatre.write_theatre(tmp_path / "emoji", 1, size=32, actors="emoji")
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        theatre.write_theatre(tmp_path / "dog", 1, size=32, actors="red circle,dog")
    with pytest.warns(UserWarning, match="shapes only"):
        theatre.write_theatre(tmp_path / "auto", 2, size=32)
    assert json.loads((tmp_path / "auto" / "theatre.json").read_text())["actors"] == list(SHAPES)


def test_find_font_looks_in_its_folders(tmp_path, monkeypatch):
    find = theatre.find_font.__wrapped__
    monkeypatch.setattr(theatre, "FONT_FOLDERS", (str(tmp_path),))
    assert find() is None
    Path(tmp_path / "deep").mkdir()
    (tmp_path / "deep" / theatre.FONT_NAME).write_bytes(b"not a font")
    assert find() is None
