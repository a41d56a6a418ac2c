"""From Python: what may be given, what comes back, and what is said of wrong values."""

from __future__ import annotations

import ast
import base64
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_model import LEXICON, SIZE, write_model
from PIL import Image

import flowcept
from flowcept.data import ffmpeg, video
from flowcept.settings import SampleConfig, seeds

PACKAGE = Path(flowcept.__file__).parent
FAST = {"steps": 2, "seed": 1, "scale": 1}
GROWN = {"steps": 2, "seed": 1, "frames": 2}


@pytest.fixture(scope="module")
def model(tiny_model):
    return flowcept.load(Path(tiny_model), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clip(model):
    return model.generate("a dog", frames=4, **FAST)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def same(first, second):
    np.testing.assert_array_equal(first[:], second[:])


def noise(frames):
    shape = (frames, SIZE, SIZE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# ---- prompts and counts ------------------------------------------------------------------------


def test_auto_and_numbers_of_numpy_are_as_on_the_command_line(model):
    same(model.generate("a dog", frames="auto", **FAST), model.generate("a dog", **FAST))
    numbers = {"frames": np.int64(3), "guidance": np.float32(2.0)}
    same(model.generate("a dog", **numbers, **FAST), model.generate("a dog", frames=3, **FAST))


def test_a_count_is_a_list_of_which_each_seed_makes_one(model, flow, tiny_model):
    made = model.generate("a dog", frames=3, count=3, **FAST)
    assert isinstance(made, list)
    assert [one.seed for one in made] == seeds(1, 3)
    for one in made:
        same(one, model.generate("a dog", frames=3, **FAST | {"seed": one.seed}))
    words = [
        "--count",
        3,
        "--seed",
        1,
        "--frames",
        3,
        "--steps",
        2,
        "--scale",
        1,
        "--dtype",
        "float32",
    ]
    result = flow("gen", "a dog", "-m", tiny_model, *words, "-o", "o.apng")
    assert result.status == 0
    for number, one in enumerate(made, start=1):
        same(one, video.read_video(Path(f"o-{number}.apng"))[0])


def test_one_prompt_is_a_clip_and_several_are_a_list(model, clip):
    dogs, cat = model.generate(["a dog", "a cat"], frames=4, **FAST)
    same(dogs, clip)
    same(cat, model.generate("a cat", frames=4, **FAST))
    assert isinstance(model.generate("a dog", count=1, frames=1, **FAST), flowcept.Clip)
    (alone,) = model.generate(("a dog",), frames=4, **FAST)
    same(alone, clip)
    both = model.generate(["a dog", "a cat"], count=2, frames=1, **FAST)
    assert [one.settings["prompt"] for one in both] == ["a dog", "a dog", "a cat", "a cat"]
    assert len(model.i2v(clip[0], ["a dog", "a cat"], frames=2, **FAST)) == 2


def test_nothing_is_made_where_one_prompt_is_wrong(model):
    with pytest.raises(flowcept.UserError, match="too long"):
        model.generate(["a dog", "x" * 70_000], watch=lambda _: pytest.fail("it ran"))


# ---- pictures and clips ------------------------------------------------------------------------


def test_pictures_of_every_kind_are_the_same(model):
    (picture,) = noise(1)
    Image.fromarray(picture).save("p.png")
    expected = model.i2v(picture, frames=3, **FAST)
    mirrored = picture[:, ::-1].copy()[:, ::-1]  # strides under 0
    opened = Image.open("p.png")
    clear = Image.fromarray(np.dstack([picture, np.full((SIZE, SIZE), 255, np.uint8)]))
    for given in ("p.png", Path("p.png"), opened, clear, mirrored):
        same(model.i2v(given, frames=3, **FAST), expected)


def test_pictures_between_which_frames_are_made(model):
    first, last = noise(2)
    Image.fromarray(first).save("a.png")
    made = model.interp(["a.png", Image.fromarray(last)], frames=5, **FAST)
    same(made, model.interp(np.stack([first, last]), frames=5, **FAST))
    small = Image.fromarray(last).resize((SIZE // 2, SIZE // 2))
    assert "picture 1 is resized" in model.interp(["a.png", small], frames=5, **FAST).notes[0]


def test_a_clip_just_made_is_extended_and_interpolated(model, clip):
    longer = model.extend(clip, "a dog", **GROWN)
    same(longer, model.extend(clip.frames_FHW3, "a dog", clip_fps=clip.fps, **GROWN))
    same(longer[:4], clip)
    assert (len(longer), longer.fps) == (6, clip.fps)
    assert len(model.extend(longer, **GROWN)) == 8
    doubled = model.interp(clip, **FAST)
    assert (len(doubled), doubled.fps) == (7, 2 * clip.fps)
    same(doubled[::2], clip)
    assert len(model.interp(clip, frames=5, **FAST)) == 5


def test_rate_and_sound_of_a_file_are_its_own(model, clip):
    clip.save("silent.mp4")
    tone = ["-f", "lavfi", "-i", "sine=f=440:d=1", "-c:v", "copy", "-c:a", "aac", "c.mp4"]
    with ffmpeg.Run(["-nostdin", "-i", "silent.mp4", *tone]) as run:
        assert run.wait() == 0
    longer = model.extend("c.mp4", direction="both", **GROWN)
    again = model.extend(longer, direction="backward", **GROWN)
    for made, before in ((longer, 2), (again, 4), (model.interp("c.mp4", **FAST), 0)):
        assert made.sound.path == Path("c.mp4")
        assert made.sound.start == pytest.approx(before / 12, abs=0.05)
    assert longer.fps == 12
    assert model.extend("c.mp4", sound=None, **GROWN).sound is None
    assert model.extend("silent.mp4", sound="c.mp4", **GROWN).sound.path == Path("c.mp4")
    longer.save("longer.mp4")
    assert video.has_sound(Path("longer.mp4"))


def test_arrays_play_at_the_rate_of_the_model(model, clip):
    made = model.extend(list(clip), **GROWN)
    assert made.fps == model.card.fps
    assert made.notes == []


# ---- clips and models --------------------------------------------------------------------------


def test_a_clip_is_a_sequence_of_frames(model, clip):
    clip.save("c.apng")
    file = video.Footage.open(Path("c.apng"))
    streamed = model.extend_file(file, **GROWN)
    for made in (model.extend(clip, **GROWN), streamed):
        frames = list(made)
        assert len(made) == len(frames) == 6
        for place in (0, 5, -1):
            np.testing.assert_array_equal(made[place], frames[place])
        for part in (slice(1, 3), slice(None, None, -2), slice(4, 4)):
            assert made[part].shape == (len(frames[part]), SIZE, SIZE, 3)
            np.testing.assert_array_equal(made[part], np.array(frames)[part])
        with pytest.raises(IndexError):
            made[6]
    assert clip != model.generate("a dog", frames=4, **FAST)  # no array is compared


def test_a_clip_says_in_one_line_what_it_is(model, clip):
    assert repr(clip) == f"<Clip 'a dog': 4 frames of {SIZE}x{SIZE} at 12 fps, seed 1>"
    noted = model.generate("a zebra\n" * 40, frames=1, **FAST)
    assert "\n" not in repr(noted)
    assert len(repr(noted)) < 200
    assert "1 in .notes" in repr(noted)


def test_a_notebook_plays_a_clip_and_shows_its_notes(model):
    made = model.generate("a <b>zebra</b>", frames=3, **FAST)
    page = made._repr_html_()
    data = re.search(r'<video [^>]*src="data:video/mp4;base64,([^"]*)"', page)[1]
    Path("shown.mp4").write_bytes(base64.b64decode(data))
    assert len(video.read_video(Path("shown.mp4"))[0]) == 3
    assert "<b>" not in page
    assert "never saw" in page


def test_saving_makes_missing_folders_but_none_for_a_wrong_name(clip):
    assert clip.save("new/folder/c.webp") is None
    assert len(video.read_video(Path("new/folder/c.webp"))[0]) == 4
    with pytest.raises(flowcept.UserError, match="unknown suffix"):
        clip.save("other/c.xyz")
    with pytest.raises(flowcept.UserError, match=r"write frames\.mp4, or frames/%04d\.png$"):
        clip.save("frames")
    assert not Path("frames").exists()
    clip.save("frames/%04d.png")
    assert len(list(Path("frames").iterdir())) == len(clip)
    assert not Path("other").exists()
    Path("file").touch()
    with pytest.raises(flowcept.UserError, match="file is a file"):
        clip.save("file/c.mp4")


def test_a_model_prints_its_card(model):
    assert "\n" not in repr(model)
    lines = str(model).splitlines()
    assert lines[0].startswith("model      tiny: ")
    assert any(line.startswith("makes      32x32 pixels at 12 per second") for line in lines)
    assert max(map(len, lines)) <= 100


# ---- wrong values ------------------------------------------------------------------------------

WRONG = [
    ('model.generate("a", frames=0)', "`frames` must be from 1"),
    ('model.generate("a", frames="many")', "`frames` must be auto or a number"),
    ('model.generate("a", min_length=5, max_length=3)', "`min_length=5` is over"),
    ('model.generate("a", steps=2.5)', "steps must be of type int, not 2.5"),
    ('model.generate("a", loop=1)', "loop must be of type bool"),
    ('model.generate("a", count=0)', "`count` must be from 1"),
    ('model.generate("a", count="3")', "count must be of type int"),
    ('model.generate("a", watch=3)', "`watch` a function"),
    ('model.generate("a", config={})', "`config` must be a SampleConfig"),
    ("model.generate(3)", "prompt must be of type str, not 3"),
    ('model.generate(["a", 3])', "prompt must be of type str, not 3"),
    ("model.generate([])", "the list of prompts is empty"),
    ("model.i2v(clip)", "not a Clip: give one of its frames, such as clip[0]"),
    ("model.i2v(torch.zeros(9, 9, 3))", "not a Tensor"),
    ("model.i2v([clip[0]])", "not a list"),
    ("model.interp(torch.zeros(9, 9, 9, 3))", "not a Tensor"),
    ("model.i2v(clip[:])", "not of shape [4, 32, 32, 3]"),
    ("model.i2v(clip[0] / 255)", "of uint8, not of shape [32, 32, 3] and type"),
    ('model.i2v("none.png")', "cannot read none.png"),
    ('model.i2v(clip[0], fit="squash")', "`fit` must be "),
    ('model.interp("a.png", "b.png")', "cannot read a.png"),
    ("model.interp([clip[0]])", "give two pictures, or a clip"),
    ("model.interp([])", "frames must be a path, a clip, a list of pictures"),
    (
        "model.interp(clip[0], clip[1])",
        "a list of pictures or an array [F, H, W, 3]",
    ),
    ('model.interp([clip[0]] * 2, fit="squash")', "`fit` must be "),
    ("model.interp(clip, multi=-1)", "`multi` must be from 0"),
    ("model.extend(3)", "frames must be a path, a clip, a list of pictures"),
    ('model.extend(clip, direction="up")', "`direction` must be "),
    ("model.extend(clip, context=0)", "`context` must be from 1"),
    ('model.extend(clip, sound="none.mp4")', "cannot read none.mp4"),
    ("model.extend(clip, sound=3)", "`sound` must be a file"),
    ('flowcept.load("nothing")', "no model 'nothing'"),
    ('flowcept.load("theatre", size="9x9")', "leave out `size`"),
]


@pytest.mark.parametrize(("call", "told"), WRONG, ids=[call for call, _ in WRONG])
def test_a_wrong_value_is_told_in_one_line_of_python(model, clip, call, told):
    with pytest.raises(flowcept.UserError) as error:
        eval(call, {"model": model, "clip": clip, "flowcept": flowcept, "torch": torch})
    line = str(error.value)
    assert told in line
    assert "\n" not in line
    assert "--" not in line


def test_an_unknown_keyword_is_a_type_error_with_what_was_meant(model, clip):
    with pytest.raises(TypeError, match="gen has no keyword 'min_lenght': did you mean min_length"):
        model.generate("a dog", min_lenght=3)
    with pytest.raises(TypeError, match="no keyword 'direction'"):
        model.i2v(clip[0], direction="forward")
    with pytest.raises(TypeError, match="no keyword 'multi'"):
        model.extend(clip, multi=2)


def test_without_effect_is_noted(model, clip):
    assert "`scale` has no effect" in model.extend(clip, scale=3, **GROWN).notes[-1]
    assert model.extend(clip, **GROWN).notes == []


def test_the_command_line_says_flags(flow, tiny_model):
    words = ["-m", tiny_model, "--frames", 3, "--length-scale", 2, "--steps", 1, "-o", "o.apng"]
    result = flow("gen", "a zebra", *words)
    assert "note: --length-scale has no effect" in result.out
    assert "`" not in result.out
    told = flow("gen", "a zebra", *words, "--json").out
    assert "--length-scale has no effect" in told
    assert "`" not in told
    wrong = flow("gen", "a dog", *words, "--min-length", 9)
    assert wrong.status == 2
    assert "--frames 3 lies outside --min-length and --max-length" in wrong.err


SPOKEN = ("clip", "data/video", "device", "diffusers_folder", "generation", "inputs", "keywords",
          "lengths", "model_file", "request", "sampling", "settings")  # fmt: skip


@pytest.mark.parametrize("name", SPOKEN)
def test_lines_of_the_library_name_no_flags(name):
    """But for docstrings, and the names of flags that a field brings with it."""
    nodes = list(ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))))
    apart = [one.value for one in nodes if isinstance(one, ast.Expr)]
    apart += [one.value for one in nodes if isinstance(one, ast.keyword) and one.arg == "names"]
    texts = [one for one in nodes if isinstance(one, ast.Constant) and one not in apart]
    assert texts
    assert [one.value for one in texts if re.search(r"(^|\W)--[a-z]", str(one.value))] == []


def test_notes_read_as_python(tmp_path):
    reader = flowcept.load(str(write_model(tmp_path / "m.safetensors", lexicon=LEXICON)))
    (note,) = reader.generate("a puppy", frames=1, **FAST).notes
    assert "`literal=True` keeps yours" in note


# ---- types ---------------------------------------------------------------------------------------

TYPED = '''
import flowcept

model = flowcept.load("theatre")
clip = model.generate("a dog", frames="auto", count=1, seed=1, steps=8, loop=True)
clip.save("o.mp4")
clips = model.generate(["a dog"], max_length=3)
clips[0].save("o.mp4")
more = model.extend(clip, count=2, direction="both")
more[0].save("o.mp4")
'''  # fmt: skip
MISTYPED = {
    'model.generate("a dog", lenght=3)': "lenght",
    'model.generate("a dog", frames="many")': "many",
    'model.i2v("a.png", direction="both")': "direction",
    "flowcept.lode": "lode",
}


@pytest.mark.slow
def test_a_type_checker_sees_keywords_and_what_comes_back(tmp_path):
    cache = ["--cache-dir", str(PACKAGE.parent / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", *cache]
    wrong = "\n".join(MISTYPED)
    Path("typed.py").write_text(TYPED + wrong, encoding="utf-8")
    done = subprocess.run(
        [*command, "typed.py"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    lines = sorted({int(line) for line in re.findall(r"typed.py:(\d+): error", done.stdout)})
    first = TYPED.count("\n") + 1
    assert lines == list(range(first, first + len(MISTYPED))), done.stdout


def test_names_of_the_package_are_there_without_torch():
    code = (
        "import sys, flowcept; before = 'torch' in sys.modules or 'numpy' in sys.modules;"
        "assert not before; assert set(flowcept.__all__) == set(dir(flowcept));"
        "assert all(getattr(flowcept, name) for name in flowcept.__all__);"
        "assert not hasattr(flowcept, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_the_controls_may_come_at_once(model, clip):
    config = SampleConfig(steps=2, frames=4)
    same(model.generate("a dog", config=config, seed=1, scale=1), clip)
    shorter = model.generate("a dog", config=config, frames=2, seed=1, scale=1)
    assert (len(shorter), shorter.settings["steps"]) == (2, 2)
