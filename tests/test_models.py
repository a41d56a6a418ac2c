"""How a model is named: every kind of name, with every flag that takes one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flowcept
from flowcept import adapters, hub, models
from flowcept.data import shapes
from flowcept.errors import UserError
from flowcept.model_file import read_card
from flowcept.training import fitting, run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> dict[str, Path]:
    """A model of each kind, by its name: what should be opened."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("FLOWCEPT_MODEL", raising=False)
    monkeypatch.delenv("FLOWCEPT_BASES", raising=False)
    files = {name: work / "shipped" / f"{name}.safetensors" for name in ("theatre", "motion")}
    folder, cached = work / "LTX-Video", tmp_path / "cache" / COMMIT
    for path in (*files.values(), work / "mine.safetensors", work / "run" / "model.safetensors"):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(tiny_model, path)
    for path in (folder, cached):
        path.mkdir(parents=True)
        (path / "model_index.json").write_text("{}")
    monkeypatch.setattr(models, "shipped_models", lambda: files)
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: cached)
    monkeypatch.setattr("flowcept.diffusers_folder.check", lambda _: None)
    return {
        "theatre": files["theatre"],
        "mine.safetensors": Path("mine.safetensors"),
        str(work / "mine.safetensors"): work / "mine.safetensors",
        "run": Path("run/model.safetensors"),
        "run/": Path("run/model.safetensors"),
        "LTX-Video": Path("LTX-Video"),
        "./LTX-Video/": Path("LTX-Video"),
        "Lightricks/LTX-Video": cached,
        f"Lightricks/LTX-Video@{COMMIT}": cached,
    }


KINDS = ["theatre", "mine.safetensors", "run", "run/", "LTX-Video", "./LTX-Video/"]
KINDS += ["Lightricks/LTX-Video", f"Lightricks/LTX-Video@{COMMIT}"]
FLAGS = {
    "gen": ["gen", "a dog", "-m", "NAME", "-o", "new.mp4"],
    "i2v": ["i2v", "a.png", "--model", "NAME", "-o", "new.mp4"],
    "extend": ["extend", "clip.gif", "-m", "NAME", "-o", "new.mp4"],
    "interp": ["interp", "a.png", "b.png", "-m", "NAME", "-o", "new.mp4"],
    "evaluate": ["evaluate", "NAME", "data"],
    "info": ["info", "NAME"],
    "--init": ["train", "data", "--init", "NAME", "--size", "32", "-o", "new"],
    "--codec": ["train", "data", "--codec", "NAME", "--size", "32", "-o", "new"],
    "environment": ["gen", "a dog", "-o", "new.mp4"],
}


@pytest.fixture
def opening(names, monkeypatch):
    """Nothing is read: whatever is opened is told and ends the command."""
    for name in "ab":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(f"{name}.png")
    frames = [Image.fromarray(np.full((32, 32, 3), level, np.uint8)) for level in (0, 99)]
    frames[0].save("clip.gif", save_all=True, append_images=frames[1:], duration=100)
    shapes.write_shapes(Path("data"), 2, size=32)

    def opened(model, *_, **__):
        raise UserError(f"opened {model.path}")

    for place, name in (
        (adapters, "open_model"),
        (adapters, "tasks_of"),
        (adapters, "outline"),
        (run, "open_model"),
        (run, "pretrained"),
        (fitting, "open_codec"),
    ):
        monkeypatch.setattr(place, name, opened)
    return names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", FLAGS)
def test_every_kind_of_name_with_every_flag(opening, flow, monkeypatch, tmp_path, flag, kind):
    words = [kind if word == "NAME" else word for word in FLAGS[flag]]
    done = flow_here(flow, monkeypatch, tmp_path, words, kind if flag == "environment" else None)
    assert (done.status, done.err) == (2, f"flowcept: opened {opening[kind]}\n")


def flow_here(flow, monkeypatch, tmp_path, words, environment=None):
    """A command in the folder of the names."""
    monkeypatch.chdir(tmp_path / "work")
    if environment:
        monkeypatch.setenv("FLOWCEPT_MODEL", environment)
    return flow(*words)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_name_of_nothing_is_told_alike_by_every_flag(opening, flow, monkeypatch, tmp_path, flag):
    assert opening
    words = ["tehatre" if word == "NAME" else word for word in FLAGS[flag]]
    environment = "tehatre" if flag == "environment" else None
    done = flow_here(flow, monkeypatch, tmp_path, words, environment)
    assert (done.status, done.err) == (2, "flowcept: no model 'tehatre': did you mean theatre?\n")


WHOLE = "is already a whole model: there is nothing to merge"
MERGED = {
    "theatre": f"{'{here}'}/shipped/theatre.safetensors {WHOLE}",
    "mine.safetensors": f"mine.safetensors {WHOLE}",
    "run": f"run/model.safetensors {WHOLE}",
    "LTX-Video": "LTX-Video is a pretrained model, not an adapter: there is nothing to merge",
    "Lightricks/LTX-Video": "no adapter Lightricks/LTX-Video: give a file that flowcept train "
    "--lora wrote",
}


@pytest.mark.parametrize("kind", MERGED)
def test_merge_knows_the_names_too(names, flow, monkeypatch, tmp_path, kind):
    assert names
    for more in ([], ["--lora-only"]):
        words = ["merge", kind, "-o", "new.safetensors", *more]
        done = flow_here(flow, monkeypatch, tmp_path, words)
        told = MERGED[kind].replace("{here}", str(Path.cwd()))
        assert (done.status, done.err) == (2, f"flowcept: {told}\n")
        assert not Path("new.safetensors").exists()


def test_which_model_a_name_is(names, monkeypatch):
    for name, path in names.items():
        found = models.find(name)
        assert found.path == path
        assert found.is_folder == path.is_dir()
        assert models.find(found.source).path.resolve() == path.resolve()
        assert models.is_named(name)
    assert models.find("run").name == "run"
    assert models.find("LTX-Video/").name == "LTX-Video"
    assert models.find("mine.safetensors").name == "mine"
    assert models.find("Lightricks/LTX-Video").source == f"Lightricks/LTX-Video@{COMMIT}"
    assert models.find(Path("mine.safetensors")) == models.find("mine.safetensors")
    Path("theatre").mkdir()
    assert models.find("theatre").path == names["theatre"]
    Path("frames").mkdir()
    Path("bare").touch()
    for clip in ("out.mp4", "frames", "frames/", "bare", "a.png", "some/where/a.png"):
        assert not models.is_named(clip)

    assert models.find(None).path == names["theatre"]
    assert models.find(None, prefer="motion").name == "motion"
    monkeypatch.setenv("FLOWCEPT_MODEL", "")
    assert models.find(None, prefer="other").name == "theatre"
    monkeypatch.setenv("FLOWCEPT_MODEL", "run")
    assert models.find(None, prefer="motion").name == "run"
    assert models.find("theatre").name == "theatre"
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert models.find("~/mine.safetensors").path == Path.cwd() / "mine.safetensors"


def test_python_takes_names_and_paths(opening):
    assert opening
    for name in ("run", Path("run"), Path("run") / "model.safetensors"):
        with pytest.raises(UserError, match=r"^opened run/model.safetensors$"):
            flowcept.load(name)


PARTS = ("vae", "text_encoder")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_will_do_where_a_part_is_wanted(names, part):
    assert names
    alone = Path("alone")
    alone.mkdir()
    (alone / "config.json").write_text("{}")
    assert models.find("alone", part=part).path == alone
    inside = Path("outer") / part
    inside.mkdir(parents=True)
    (inside / "config.json").write_text("{}")
    assert models.find("outer", part=part).path == Path("outer")
    Path("empty").mkdir()
    with pytest.raises(
        UserError, match=f"^empty holds no {models.WANTED[part]}: looked for .* own"
    ):
        models.find("empty", part=part)
    for name in ("alone", "outer"):
        with pytest.raises(UserError, match=f"^{name} holds no model"):
            models.find(name)


WRONG = {
    "tehatre": "no model 'tehatre': did you mean theatre?",
    "mine.safetensor": "no model 'mine.safetensor': did you mean mine.safetensors?",
    "no/thaetre": "no model no/thaetre on the hub",
    "run/modle.safetensors": "no model 'run/modle.safetensors': did you mean "
    "run/model.safetensors?",
    "LTX-Vidoe/": "no model 'LTX-Vidoe/': did you mean LTX-Video?",
    "/no/where.safetensors": "no model '/no/where.safetensors': there is no such file",
    "what": "no model 'what': give a shipped name (motion, theatre), a .safetensors file, a run's "
    "folder, a diffusers folder, or a name on a hub such as Lightricks/LTX-Video",
    "~nobody-here/m": "no model '~nobody-here/m': there is no such user",
    "begun": "the run in begun has written no model.safetensors yet: wait, or continue it with "
    "--resume",
    "empty": "empty holds no model: looked for a run's model.safetensors, model_index.json of "
    "diffusers",
    "LTX-Video/vae": f"LTX-Video/vae is one part of a model: give the whole folder, "
    f"{'{here}'}/LTX-Video",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_told_in_one_line(names, name, monkeypatch):
    assert names

    def refuse(asked, *_, **__):
        raise UserError(f"no model {asked} on the hub")

    monkeypatch.setattr(hub, "fetch", refuse)
    for folder, file in (("begun", "config.toml"), ("LTX-Video/vae", "config.json")):
        Path(folder).mkdir()
        (Path(folder) / file).touch()
    Path("empty").mkdir()
    expected = WRONG[name].replace("{here}", str(Path.cwd()))
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        models.find(name)


def test_a_hub_s_refusal_offers_what_is_near(names, monkeypatch):
    assert names
    shutil.copytree("run", Path("runs") / "dog")

    def refuse(*_, **__):
        raise UserError("no model runs/dgo here or on huggingface.co")

    monkeypatch.setattr(hub, "fetch", refuse)
    expected = "no model runs/dgo here or on huggingface.co; did you mean runs/dog?"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        models.find("runs/dgo")


def test_where_a_base_may_lie(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWCEPT_BASES", raising=False)
    assert list(models.places("/then/LTX-Video", None)) == ["/then/LTX-Video"]
    for folder in ("one", "two"):
        (tmp_path / folder / "LTX-Video").mkdir(parents=True)
    monkeypatch.setenv("FLOWCEPT_BASES", f"{tmp_path / 'one'}:{tmp_path / 'no'}:{tmp_path / 'two'}")
    here = [str(tmp_path / folder / "LTX-Video") for folder in ("one", "two")]
    for source in ("/then/LTX-Video", f"Lightricks/LTX-Video@{COMMIT}"):
        assert list(models.places(source, None)) == [*here, source]
        assert list(models.places(source, "elsewhere")) == ["elsewhere"]


def test_shipped_models_are_model_files():
    shipped = models.shipped_models()
    assert models.DEFAULT in shipped
    for name, path in shipped.items():
        assert path.stem == name
        assert read_card(path).lengths


@pytest.mark.parametrize("command", [["gen", "a dog", "-m"], ["evaluate"]])
def test_a_base_that_has_no_effect_is_refused(flow, tiny_model, command):
    Path("data").mkdir()
    data = ["data"] if command == ["evaluate"] else []
    result = flow(*command, tiny_model, *data, "--base", "nowhere")
    told = "flowcept: --base has no effect on tiny, which needs none: leave it out\n"
    assert (result.status, result.out, result.err) == (2, "", told)
