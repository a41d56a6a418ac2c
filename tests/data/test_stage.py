"""The stage: words, scenes, captions, lengths, and folders of clips."""

import json

import numpy as np
import pytest
from fixtures_stage import COMPANY, write_models

from flowcept.data import folder, video
from flowcept.data.stage import cast, places
from flowcept.data.stage.company import Stage
from flowcept.data.stage.folder import write_stage
from flowcept.data.stage.scene import ADVERBS, FPS, PACE, VIEWS, Scene, caption
from flowcept.errors import UserError
from flowcept.settings import DataSettings


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), COMPANY)


@pytest.fixture(scope="module")
def stage(models):
    return Stage(models)


def test_words_for_actors_and_actions(stage):
    assert stage.actors == ("dog", "cow", "shark", "great owl", "bee")
    invented = ("surfing", "skateboarding", "spinning", "bouncing", "doing a backflip")
    assert stage.cast["dog"].actions == ("walking", "running", *invented)
    assert stage.cast["cow"].actions == ("walking", "falling over", *invented)
    assert stage.cast["shark"].actions == ("swimming", "spinning", "doing a backflip", "diving")
    assert stage.cast["great owl"].actions == ("walking", "standing", "preen", *invented)
    assert stage.cast["bee"].actions == ("flying", *invented, "diving")


def test_the_tables_hold_together():
    actors = set(cast.WORDS.values())
    actions = {*cast.ACTS, *cast.INVENTED}
    assert len(actors) >= 32
    assert len(actions) >= 12
    assert len(places.PLACES) + len(places.WATERS) + len(places.SEAS) - 3 >= 8
    assert {actor for actor, _ in cast.RESERVED} <= actors
    assert {action for _, action in cast.RESERVED} <= actions
    assert ("dog", "surfing") not in cast.RESERVED
    assert set(cast.ONLY) <= actions
    low, high = cast.SHORTEST * FPS * min(PACE.values()), cast.LONGEST * FPS * max(PACE.values())
    assert low >= 6
    assert high <= 31


def test_captions_name_the_scene():
    rng = np.random.default_rng(0)
    scene = Scene("alien", "surfing", "at sunset", "slowly", "close up")
    captions = [caption(scene, rng) for _ in range(300)]
    assert all(c.endswith(", close up") and c.count("an alien") == 1 for c in captions)
    assert all("surfing" in c and "slowly" in c and "at sunset" in c for c in captions)
    assert captions.count("an alien surfing slowly at sunset, close up") > 150
    assert len(set(captions)) == 4
    side = {caption(Scene("dog", "running", view="from the side"), rng) for _ in range(99)}
    assert side == {f"a dog {verb}, seen from the side" for verb in ("running", "is running")}


def test_reserved_pairs_are_kept_apart(stage):
    rng = np.random.default_rng(0)
    scenes = [stage.sample_scene(rng) for _ in range(2000)]
    seen = {(scene.actor, scene.action) for scene in scenes}
    every = {(a, b) for a in stage.actors for b in stage.cast[a].actions}
    assert ("cow", "surfing") in every
    assert seen == every - cast.RESERVED
    assert {scene.view for scene in scenes} == set(VIEWS)
    assert {scene.adverb for scene in scenes} == set(ADVERBS)
    held = {stage.sample_scene(rng, reserved=True) for _ in range(50)}
    assert {(scene.actor, scene.action) for scene in held} == {("cow", "surfing")}
    assert all(scene.place in places.SEAS for scene in held)
    models = stage.files[0].parents[1]
    with pytest.raises(UserError, match="plays a reserved action"):
        Stage(models, "dog").sample_scene(rng, reserved=True)
    with pytest.raises(UserError, match="plays a reserved action"):  # nobody else surfs
        Stage(models, "cow,shark", "surfing,swimming").pairs(reserved=True)


def test_chosen_actions_alone_are_played(models):
    stage = Stage(models, actions="surfing, swimming")
    assert set(stage.actions) == {"surfing", "swimming"}
    rng = np.random.default_rng(0)
    seen = {(scene.actor, scene.action) for scene in (stage.sample_scene(rng) for _ in range(300))}
    assert {action for _, action in seen} == {"surfing", "swimming"}
    assert all((action == "swimming") == (actor == "shark") for actor, action in seen)
    assert Stage(models, actions="swimming").actors == ("shark",)


def test_fish_stay_in_water_and_only_surfers_are_at_sea(stage):
    rng = np.random.default_rng(1)
    for scene in (stage.sample_scene(rng) for _ in range(1000)):
        if scene.actor == "shark":
            assert scene.place in places.WATERS
        elif scene.action == "surfing":
            assert scene.place in places.SEAS
        else:
            assert scene.place in places.PLACES


def test_lengths_are_narrow_and_follow_the_animation(stage):
    for actor in stage.actors:
        for action in stage.cast[actor].actions:
            laws = [stage.length_law(Scene(actor, action, adverb=a)) for a in ADVERBS]
            for law, adverb in zip(laws, ADVERBS, strict=True):
                mean = stage.cast[actor].seconds(action) * FPS * PACE[adverb]
                assert sum(law.values()) == pytest.approx(1)
                assert sum(n * p for n, p in law.items()) == pytest.approx(mean, abs=0.3)
                assert 1 <= len(law) <= 3
    assert stage.length_law(Scene("dog", "walking")) == {12: 1.0 - 2 / 7, 11: 1 / 7, 13: 1 / 7}
    # An animation of a second is played once.
    assert stage.cast["dog"].turns("walking") == 1
    assert stage.cast["dog"].seconds("walking") == 1


def test_a_performance_is_the_same_at_any_length(stage):
    once, looped = Scene("cow", "falling over"), Scene("dog", "walking", "on a beach")
    for scene, long, step in ((once, 9, 2), (looped, 10, 2)):
        clips = [
            stage.draw_clip(scene, 32, np.random.default_rng(1), num_frames=n) for n in (5, long)
        ]
        np.testing.assert_array_equal(clips[0], clips[1][::step])
        assert np.any(clips[0][0] != clips[0][2])


@pytest.mark.parametrize("action", ["surfing", "skateboarding", "walking", "spinning", "bouncing"])
@pytest.mark.parametrize("view", sorted(set(VIEWS) - {"from the side"}))  # the strip is flat
def test_the_actor_is_in_the_picture(stage, action, view):
    # The strip is the one red thing: more of it close up than far away, none cut off at the sides.
    scene = Scene("dog", action, "in the snow" if action != "surfing" else "", view=view)
    frames = stage.draw_clip(scene, 64, np.random.default_rng(2), num_frames=4).astype(int)
    red_FHW = frames[..., 0] - frames[..., 2] > 60
    share = red_FHW.any(2).mean(1)  # of rows
    assert share.max() > (0.1 if view == "from far away" else 0.3)
    assert share.max() < 1.0
    assert not red_FHW[:, :, [0, -1]].any()


def test_ground_passes_where_actors_get_ahead(stage):
    def corner(action):
        scene = Scene("dog", action, "in the desert")
        frames = stage.draw_clip(scene, 64, np.random.default_rng(1), num_frames=4)
        return frames[:, -12:, :12].astype(int)

    assert np.abs(np.diff(corner("running"), axis=0)).mean() > 0.5
    assert np.abs(np.diff(corner("spinning"), axis=0)).max() == 0


def test_written_folder_reads_back_and_trains(models, stage, tmp_path):
    out, done = tmp_path / "out", []
    write_stage(out, models, 3, size=32, seed=5, progress=done.append)
    assert done == [1, 2, 3]
    about = json.loads((out / "stage.json").read_text())
    assert (about["seed"], about["size"], about["fps"]) == (5, 32, FPS)
    assert about["actors"] == list(stage.actors)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len({line["caption"] for line in lines}) == 3
    for index, line in enumerate(lines):
        words, scene, drawn = stage.clip(5, index, 32)
        assert line["caption"] == words
        assert scene == Scene(
            *(line[key] for key in ("actor", "action", "place", "adverb", "view"))
        )
        frames_FHW3, fps = video.read_video(out / line["file_name"])
        np.testing.assert_array_equal(frames_FHW3, drawn)
        assert fps == pytest.approx(FPS)
    scan = folder.scan(out, DataSettings(size="32"))
    assert [entry.caption for entry in scan.entries] == [line["caption"] for line in lines]


def test_a_folder_of_reserved_pairs(models, tmp_path):
    write_stage(tmp_path / "out", models, 2, size=16, reserved=True)
    lines = [json.loads(one) for one in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert [(line["actor"], line["action"]) for line in lines] == [("cow", "surfing")] * 2
    assert json.loads((tmp_path / "out/stage.json").read_text())["reserved_only"]


def test_clips_depend_on_neither_number_nor_processes(models, tmp_path):
    for name, clips, jobs in (("few", 2, 1), ("more", 3, 2)):
        write_stage(tmp_path / name, models, clips, size=32, seed=1, actors="dog,cow", jobs=jobs)
    for name in ("000000.apng", "000001.apng"):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()
    few, more = ((tmp_path / n / "metadata.jsonl").read_text() for n in ("few", "more"))
    assert more.startswith(few)
    assert len(more.splitlines()) == 3


def test_broken_models_are_told_and_left_out(tmp_path):
    models = write_models(tmp_path / "models", {"owl": ("Walk",), "hawk": ("Walk",)})
    (models / "hawk.glb").write_bytes((models / "hawk.glb").read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"hawk\.glb is not a usable .*; it is left out"):
        stage = Stage(models)
    assert stage.actors == ("owl",)
    (models / "owl.glb").unlink()
    with pytest.warns(UserWarning), pytest.raises(UserError, match="with an animation here"):
        Stage(models)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clips": 0}, "at least 1"),
        ({"size": 8}, "16 to 1024"),
        ({"seed": -1}, "negative"),
        ({"jobs": 0}, "at least 1"),
        (
            {"actors": "dog,cat"},
            "unknown actor 'cat': choose from bee, cow, dog, great",
        ),
        ({"actors": ""}, "unknown actor ''"),
        ({"actors": "cow", "actions": "surfing"}, "nobody here plays any but a reserved action"),
        ({"actors": "dog", "reserved": True}, "nobody here plays a reserved action"),
        ({"actions": "walking,knitting"}, "unknown action 'knitting': choose .* surfing"),
    ],
)
def test_senseless_settings_are_refused(models, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        write_stage(tmp_path / "out", models, **{"clips": 1, **settings})
    assert not (tmp_path / "out").exists()


def test_folders_are_checked(models, tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        write_stage(tmp_path / "out", tmp_path / "absent", 1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="with an animation here"):
        write_stage(tmp_path / "out", tmp_path, 1)
    with pytest.raises(UserError, match="not an empty folder"):
        write_stage(tmp_path, models, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command(models, flow):
    done = flow("stage", "out", "--models", models, "--clips", 2, "--size", 32, "--actors", "dog")
    assert done.status == 0
    assert done.out == "out: 2 clips; next: flowcept train out\n"
    done = flow("stage", "out", "--models", models)
    assert done.status == 2
    assert done.err == "flowcept: out is not an empty folder: remove it or choose another name\n"


@pytest.mark.slow
def test_the_known_models(shared_data, tmp_path):
    """Every word of the table is played by a model of the packs it was made for."""
    archive = shared_data / "models3d" / "models3d.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is absent")
    import tarfile

    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    stage = Stage(tmp_path)
    assert set(stage.actors) == set(cast.WORDS.values())
    every = {(a, b) for a in stage.actors for b in stage.cast[a].actions}
    assert every >= cast.RESERVED
    assert len({action for _, action in every}) >= 12
    words, scene, frames_FHW3 = stage.clip(0, 0, 48)
    assert scene.actor in words
    assert len(frames_FHW3) >= 6
