"""Training from beginning to end: what a run leaves, what it refuses, what it goes on from."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import sample
from PIL import Image
from small_runs import TINY, assert_on_page, prepared, records, refused, rows_of_page

from flowcept import model_file, models
from flowcept.data import folder as data
from flowcept.data import shapes, shards, video
from flowcept.errors import UserError
from flowcept.lexicon import Lexicon
from flowcept.process.sampler import clip_generator
from flowcept.process.state import Given
from flowcept.settings import DataSettings, SampleConfig, TrainConfig
from flowcept.training import run as train
from flowcept.training.parts import split
from flowcept.training.state import read_config


def test_a_run_leaves_a_model_and_its_records(folder: Path, whole: Path):
    assert TrainConfig.from_flat(read_config(whole / "config.toml")) == TINY
    logged = records(whole)
    assert [r["step"] for r in logged if "velocity" in r] == [1, 2, 3, 4, 5, 6]
    assert {r["step"] for r in logged if "held_out_velocity" in r} == {3, 6}
    last = [r for r in logged if "velocity" in r][-1]
    assert {"missing", "count", "rate", "norm", "clips_per_second"} <= set(last)
    with Image.open(whole / "loss.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 0
    with Image.open(whole / "samples" / "step_000006.png") as picture:
        assert min(picture.size) >= 32
    assert not (whole / "codec-state.safetensors").exists()
    assert not [p for p in whole.rglob(".*") if p.is_file()]

    card = model_file.load(whole / "model.safetensors").card
    entries = data.scan(folder, DataSettings("32")).entries
    assert card.steps == 6
    assert card.size == (32, 32)
    assert card.fps == shapes.FPS
    assert card.dataset == "clips"
    assert sum(card.lengths.values()) == len(entries) - 2  # 15 % of 14 are held out
    assert set(card.prompts) <= {entry.caption for entry in entries}
    assert max(card.lengths) == card.network.largest_size


def test_the_page_on_a_runs_folder_is_whole(folder: Path, whole: Path, tmp_path: Path):
    assert_on_page(whole, "transformer")
    keys = [key for key, where, *_ in rows_of_page("Keys of the log") if where.startswith("codec")]
    config = TINY.changed(adversarial=0.5, codec_steps=4)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    assert {key for one in records(tmp_path / "run") for key in one if "codec_step" in one} == {
        *keys
    }


def test_the_model_file_samples(whole: Path):
    weights = model_file.load(whole / "model.safetensors")
    config = weights.card.network
    given = [Given(torch.zeros(0, config.channels, config.height, config.width), (True,))]
    with torch.no_grad():
        tokens = weights.text(["a red ball jumping"])
        (latent,) = sample(
            lambda state, *_: weights.network(state, tokens),
            given,
            [clip_generator(0)],
            SampleConfig(steps=3, frames=4),
            weights.card.process,
            max_length=weights.card.max_length,
        )
    assert weights.codec.decode(latent).shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": "40"}, "--size"),
        ({"size": "32x24"}, "--size"),
        ({"patch": 8, "size": "48"}, "--size"),
        ({"hidden": 30, "heads": 4}, "heads"),
        ({"heads": 0}, "heads"),
        ({"depth": 0}, "depth"),
        ({"patch": 0}, "patch"),
        ({"stem_channels": 0}, "stem_channels"),
        ({"stem_depth": -1}, "stem_depth"),
        ({"between": -1}, "between"),
        ({"window": -1}, "window"),
        ({"text_width": 25}, "text"),
        ({"compression": 5}, "compression"),
        ({"codec_width": 7}, "width"),
        ({"codec_channels": 0}, "channels"),
        ({"schedule": "sideways"}, "sideways"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "int8"}, "int8"),
        ({"device": "abacus"}, "abacus"),
        ({"codec": "/no/such/codec"}, "/no/such/codec"),
        ({"init": "/no/model.safetensors"}, "/no/model.safetensors"),
        ({"text_source": "/no/text"}, "/no/text"),
        ({"lexicon": "/no/words.json"}, "/no/words.json"),
    ],
)
def test_unsuitable_settings_are_one_line_before_anything_is_done(
    folder: Path, tmp_path: Path, changes, named, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "PictureStore", lambda *_: pytest.fail("the clips are decoded"))
    with pytest.raises(UserError) as error:
        train.train(folder, tmp_path / "run", TINY.changed(**changes), quiet=True)
    assert named in str(error.value)
    assert str(error.value).splitlines() == [str(error.value)]
    assert not (tmp_path / "run").exists()


def test_a_folder_without_clips(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty", tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_check_names_what_is_cut(folder: Path):
    text = "\n".join(train.check(folder, TINY.changed(max_frames=6)))
    assert "cut" in text
    assert "000000.apng" in text


def test_a_start_that_cannot_decode_leaves_its_folder_free(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(train, "PictureStore", full)
    assert "no room" in refused(folder, tmp_path / "run", TINY)
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("schedule", ["linear", "power:1.5"])
def test_every_schedule_trains(folder: Path, run: Path, schedule: str):
    train.train(folder, run, TINY.changed(schedule=schedule), pause_at=2, quiet=True)
    assert model_file.load(run / "model.safetensors").card.process.schedule == schedule


@pytest.mark.usefixtures("no_sheets")
def test_frames_that_are_not_square(folder: Path, tmp_path: Path):
    train.train(folder, tmp_path / "run", TINY.changed(size="48x32"), pause_at=1, quiet=True)
    assert model_file.load(tmp_path / "run" / "model.safetensors").card.size == (32, 48)


@pytest.mark.usefixtures("no_sheets")
def test_init_goes_on_from_a_model(folder: Path, whole: Path, tmp_path: Path):
    model = whole / "model.safetensors"
    config = TINY.changed(init=str(model), hidden=64, depth=1, learning_rate=1e-9)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    a, b = model_file.load(model), model_file.load(tmp_path / "run" / "model.safetensors")
    assert b.card.network == a.card.network
    for part, module in a.modules().items():
        other = b.modules()[part].state_dict()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-6)
    assert "--size 32x32" in refused(folder, tmp_path / "c", config.changed(size="48x32"))
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("no_sheets")
def test_another_process_than_the_models_is_said(folder: Path, whole: Path, tmp_path: Path):
    said: list[str] = []
    model = str(whole / "model.safetensors")
    config = TINY.changed(init=model, shift=TINY.process.shift + 1, first=False)
    train.train(folder, tmp_path / "run", config, pause_at=1, console=said.append)
    assert [line for line in said if line.startswith("note: ")] == [
        f"note: {model} was trained with --shift 1.0, this run has --shift 2.0",
        f"note: {model} was trained with --first, this run has --no-first",
    ]


@pytest.mark.usefixtures("no_sheets")
def test_a_model_of_short_clips_goes_on_with_long_ones(folder: Path, whole: Path, tmp_path: Path):
    """First short pieces, which are cheap, then whole clips, of more frames than it could count."""
    short = TINY.changed(max_frames=3)
    train.train(folder, tmp_path / "short", short, pause_at=1, quiet=True)
    model = tmp_path / "short" / "model.safetensors"
    assert model_file.read_card(model).network.largest_size == 3
    config = TINY.changed(init=str(model))
    train.train(folder, tmp_path / "long", config, pause_at=1, quiet=True)
    train.train(folder, tmp_path / "long", config, resume=True, quiet=True)
    longest = model_file.read_card(whole / "model.safetensors").network.largest_size
    assert longest > 8
    weights = model_file.load(tmp_path / "long" / "model.safetensors")
    assert weights.card.network.largest_size == longest
    assert weights.network.largest_size + 1 == longest + 1


def test_the_card_is_what_the_log_says(whole: Path):
    """Every setting that shapes the network is in the model file."""
    network = asdict(model_file.read_card(whole / "model.safetensors").network)
    for name in ("hidden", "depth", "heads", "patch", "window", "text_width"):
        assert network[name] == TINY.flat()[name]


def test_a_held_out_clip_may_be_the_longest(folder: Path, tmp_path: Path):
    """Its size has a place in the law of sizes, so that its loss is finite."""
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    store = shards.PictureStore(data.scan(clips, TINY.data), tmp_path / "cache")
    _, held = split(store, TINY)
    path = store.entries[held[0]].path
    video.write_video(path, np.zeros((40, 32, 32, 3), np.uint8), 12)
    train.train(clips, tmp_path / "run", TINY.changed(codec_steps=1, steps=1), quiet=True)
    card = model_file.read_card(tmp_path / "run" / "model.safetensors")
    assert card.network.largest_size == 40 > max(card.lengths)


@pytest.mark.usefixtures("no_sheets")
def test_a_short_run_on_one_clip_has_no_log_and_a_model(folder: Path, whole: Path, tmp_path: Path):
    clips = tmp_path / "clips"
    clips.mkdir()
    one = data.scan(folder, TINY.data).entries[0].path
    shutil.copy(one, clips)
    config = TINY.changed(init=str(whole / "model.safetensors"), steps=2, log_every=20)
    model = train.train(clips, tmp_path / "run", config, quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert model_file.read_card(model).steps == 2


def test_settings_without_effect_are_told():
    pixels = TINY.changed(codec="pixels")
    given = ["adversarial", "compression", "late", "steps"]
    lines = list(train.idle(pixels, given))
    assert [line.split()[1] for line in lines] == ["--adversarial", "--compression"]
    assert list(train.idle(TINY, ["adversarial", "compression", "late"])) == []
    told = list(train.idle(TINY.changed(text_source="t5"), ["text_width", "schedule"]))
    assert [line.split()[1] for line in told] == ["--text-width"]
    told = [list(train.idle(one, ["paraphrase"])) for one in (TINY, TINY.changed(lexicon="w"))]
    assert [len(lines) for lines in told] == [1, 0]
    assert list(train.idle(pixels, ())) == []


def test_muon_has_no_effect_on_pretrained_weights(monkeypatch: pytest.MonkeyPatch):
    assert list(train.idle(TINY.changed(muon=True), ["muon"])) == []
    for is_folder in (True, False):
        monkeypatch.setattr(
            models, "find", lambda *_, f=is_folder, **__: SimpleNamespace(is_folder=f)
        )
        told = "\n".join(train.idle(TINY.changed(muon=True, init="wan"), ["muon"]))
        assert ("--muon has no effect" in told) == is_folder


@pytest.mark.parametrize("text", ["[]", '{"text_config": 3}', "{}"])
def test_a_prompt_encoder_is_looked_at_first(folder: Path, tmp_path: Path, text: str):
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(text)
    config = TINY.changed(text_source=str(tmp_path / "t5"))
    with pytest.raises(UserError, match="width"):
        train.train(folder, tmp_path / "run", config, quiet=True)
    (tmp_path / "t5" / "config.json").write_text('{"d_model": 8}')
    with pytest.raises(UserError):
        train.train(folder, tmp_path / "run", config, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_sheets")
def test_a_lexicon_goes_into_the_model_for_the_words_of_its_captions(
    folder: Path, whole: Path, tmp_path: Path
):
    words, said = tmp_path / "words.json", list[str]()
    tables = {"action": {"growing": ["getting bigger"], "juggling": ["tossing balls"]}}
    words.write_text(json.dumps({"classes": tables}))
    init = str(whole / "model.safetensors")
    config = TINY.changed(init=init, lexicon=str(words), paraphrase=0.9)
    train.train(folder, tmp_path / "run", config, pause_at=1, console=said.append)
    card = model_file.read_card(tmp_path / "run" / "model.safetensors")
    assert card.lexicon == Lexicon({"action": {"growing": ("getting bigger",)}})
    assert "lexicon: 1 words and phrases for 1 classes" in said
    again = TINY.changed(init=str(tmp_path / "run" / "model.safetensors"))
    trainer = prepared(folder, tmp_path / "again", again)
    assert trainer.card.lexicon == card.lexicon

    drawn = prepared(folder, tmp_path / "drawn", config.changed(tokens=3000)).draw()
    assert any("getting bigger" in prompt for prompt in drawn.prompts)
    off = prepared(folder, tmp_path / "off", config.changed(tokens=3000, paraphrase=0)).draw()
    plain = prepared(folder, tmp_path / "plain", config.changed(tokens=3000, lexicon="")).draw()
    assert off.prompts == plain.prompts


def test_a_lexicon_without_a_class_of_the_captions_is_refused(folder: Path, tmp_path: Path):
    words = tmp_path / "words.json"
    words.write_text('{"classes": {"actor": {"chandelier": ["lamp"]}}}')
    config = TINY.changed(lexicon=str(words), codec="pixels")
    assert "no caption has a word of" in refused(folder, tmp_path / "a", config)
    assert not (tmp_path / "a" / "config.toml").exists()
