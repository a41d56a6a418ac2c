"""Training on shards: the same as on clips, without codec and prompt encoder; in several sizes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import fixtures_diffusers as fixtures
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import TINY, losses, prepared, refused

import flowcept
from flowcept import diffusers_folder, model_file
from flowcept.codecs import pretrained as pretrained_codecs
from flowcept.data import video
from flowcept.data.encoded import EncodedClips, read_index
from flowcept.errors import UserError
from flowcept.networks.recipes import RecipeEncoder
from flowcept.settings import ContextMixture, EncodeSettings
from flowcept.training import run as train
from flowcept.training import stored
from flowcept.training.encoding import encode
from flowcept.training.loop import Reports, save
from flowcept.training.state import Files

fixtures.require()

LENGTHS = {"a dog surfing": 17, "a cat on the red wave": 65}  # pictures: 3 and 9 latents


def config_of(base: Path, **changes: object):
    settings = {"shift": 3.0, "init": str(base), "lora": 4, "steps": 4, "max_frames": 40}
    return TINY.changed(**(settings | changes))


def settings_of(base: Path, **changes: object) -> EncodeSettings:
    asked = {"codec": str(base), "text": str(base), "size": "32", "max_frames": 40}
    return EncodeSettings(**(asked | {"shard_clips": 3, "dtype": "float32"} | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "ltx"
    fixtures.save_pipeline("ltx", folder)
    return folder


@pytest.fixture(scope="module")
def shards(clips: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "shards"
    encode(clips, out, settings_of(base), quiet=True)
    return out


def wide_clips(folder: Path) -> Path:
    """Three wide clips, five upright ones and a square one, all of nine pictures."""
    sizes = [(32, 64)] * 3 + [(64, 32)] * 5 + [(48, 48)]
    folder.mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        frames = np.full((9, height, width, 3), 20 * number, np.uint8)
        video.write_video(folder / f"{number}.apng", frames, 10)
        (folder / f"{number}.txt").write_text("a dog", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def several(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three sizes of about the area of 96 x 64."""
    folder = tmp_path_factory.mktemp("several")
    clips = wide_clips(folder / "clips")
    encode(clips, folder / "shards", settings_of(base, size="", buckets="96x64"), quiet=True)
    return folder / "shards"


@pytest.fixture
def _nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading an autoencoder or a prompt encoder fails the test."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("an encoder was read")

    for module in (diffusers_folder, stored, pretrained_codecs):
        monkeypatch.setattr(module, "load_pretrained", fail)
    monkeypatch.setattr(RecipeEncoder, "__init__", fail)


# ---- the same as training on clips


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("lora", [4, 0])
def test_training_on_shards_is_training_on_clips(clips, base, shards, tmp_path, lora):
    config = config_of(base, lora=lora, size="32")
    train.train(clips, tmp_path / "a", config, quiet=True)
    train.train(shards, tmp_path / "b", config, quiet=True)
    ours, theirs = losses(tmp_path / "b"), losses(tmp_path / "a")
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-5)
    files = [load_file(tmp_path / name / "model.safetensors") for name in "ab"]
    assert files[0].keys() == files[1].keys()
    for name, tensor in files[0].items():
        torch.testing.assert_close(files[1][name], tensor, rtol=1e-4, atol=1e-6)
    cards = [model_file.read_card(tmp_path / name / "model.safetensors") for name in "ab"]
    assert cards[0].size == cards[1].size == (32, 32)
    assert (cards[0].lengths, cards[0].prompts) == (cards[1].lengths, cards[1].prompts)
    assert cards[1].dataset == "clips"
    assert cards[1].sizes == {}


@pytest.mark.usefixtures("_nothing_read")
def test_an_adapter_learns_without_codec_and_prompt_encoder(base, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Reports, "sheet", lambda _: None)
    config = config_of(base)
    train.train(shards, tmp_path / "run", config, quiet=True, pause_at=2)
    train.train(shards, tmp_path / "run", config, quiet=True, resume=True)
    assert (tmp_path / "run" / "model.safetensors").exists()
    trainer = prepared(shards, tmp_path / "other", config)
    assert all(weight.is_meta for weight in trainer.codec.parameters())


def test_contact_sheets_read_the_codec_and_let_go_of_it(base, shards, tmp_path):
    trainer = prepared(shards, tmp_path / "run", config_of(base))
    sheet = trainer.sheet()
    assert min(sheet.size) > 32
    assert all(weight.is_meta for weight in trainer.codec.parameters())


def test_heads_alone_learn(base, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Reports, "sheet", lambda _: None)
    config = config_of(base, lora=0, freeze=True, learning_rate=1e-2)
    path = train.train(shards, tmp_path / "run", config, quiet=True)
    names = load_file(path)
    assert names
    assert not any(".transformer." in name for name in names)
    weights = flowcept.load(str(path), device="cpu", dtype="float32").weights
    assert bool(weights.network.size.weight.any())
    plain = diffusers_folder.load(base, torch.float32, "32x32").network.transformer
    own = weights.network.transformer.state_dict()
    assert all(torch.equal(own[name], x) for name, x in plain.state_dict().items())
    assert "--freeze needs a pretrained" in refused(
        shards, tmp_path / "x", config_of(base, lora=0, freeze=True, init="")
    )


def test_a_codec_that_is_gone_costs_a_sheet_not_the_run(base, shards, tmp_path, monkeypatch):
    def gone(*_: object) -> None:
        raise UserError("gone")

    monkeypatch.setattr(stored, "_checked_codec", gone)
    said: list[str] = []
    path = train.train(shards, tmp_path / "run", config_of(base), console=said.append)
    assert "note: no contact sheet: gone" in said
    assert model_file.read_card(path).steps == 4

    whole = prepared(shards, tmp_path / "whole", config_of(base, lora=0))
    whole.train_step()
    with pytest.raises(UserError, match="gone"):  # it belongs into the file
        save(whole, Files(tmp_path / "whole"))
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors")] == [
        "state.safetensors"
    ]


def test_without_an_autoencoder_nothing_begins(base, shards, tmp_path):
    moved = shutil.copytree(base, tmp_path / "ltx")
    shutil.rmtree(moved / "vae")
    assert "has no folder vae" in refused(shards, tmp_path / "run", config_of(moved))
    shutil.copytree(base / "vae", moved / "vae")
    shutil.rmtree(moved / "text_encoder")  # the largest part, which training does without
    assert prepared(shards, tmp_path / "run", config_of(moved)).step == 0


# ---- several sizes


def test_clips_get_the_size_that_crops_least(several):
    index = read_index(several)
    assert index.sizes == {(96, 64): 5, (64, 96): 3, (64, 64): 1}
    clips = EncodedClips(several, index, pytest.fail)
    shapes = Counter(tuple(clips.latent(i).shape) for i in range(len(clips.entries)))
    assert shapes == {(2, 8, 3, 2): 5, (2, 8, 2, 3): 3, (2, 8, 2, 2): 1}


def test_a_batch_holds_clips_of_one_size_and_all_sizes_come_as_often(base, several, tmp_path):
    config = config_of(base, tokens=60, micro_tokens=60, held_out=0.0)
    trainer = prepared(several, tmp_path / "run", config)
    assert [len(clips) for clips in trainer.buckets] == [5, 3, 1]
    sizes: Counter[tuple[int, ...]] = Counter()
    for _ in range(60):
        batch = trainer.draw()
        shapes = {tuple(state.latent_FCHW.shape[1:]) for state, _ in batch.pairs}
        assert len(shapes) == 1
        sizes.update(shapes)
        trainer.advance(batch)
    assert set(sizes) == {(8, 3, 2), (8, 2, 3), (8, 2, 2)}
    passes = [
        drawn / len(clips) for drawn, clips in zip(trainer.cursors, trainer.buckets, strict=True)
    ]
    assert min(passes) > 15
    assert max(passes) - min(passes) < 8  # a batch of one clip shows it several times

    again = prepared(several, tmp_path / "again", config)
    again.load_state_dict(trainer.state_dict())
    assert [s.latent_FCHW.tolist() for s, _ in again.draw().pairs] == [
        s.latent_FCHW.tolist() for s, _ in trainer.draw().pairs
    ]


def test_a_model_of_several_sizes_makes_clips_of_each(base, several, tmp_path, flow):
    words = ["--init", base, "--lora", 4, "--steps", 4, "--tokens", 60, "--device", "cpu"]
    done = flow("train", several, *words, "--dtype", "float32", "-o", "run", "-q")
    assert (done.status, done.err) == (0, "")
    card = model_file.read_card(tmp_path / "run" / "model.safetensors")
    assert sum(card.sizes.values()) == 8
    assert card.size == (96, 64)
    assert next(iter(card.sizes)) == "64x96"

    for size, shape in {None: (96, 64), "96x64": (64, 96), "128x32": (32, 128)}.items():
        asked = [] if size is None else ["--size", size]
        made = flow("gen", "a dog", "-m", "run", *asked, "--steps", 1, "--scale", 1, "-o", "a.mp4")
        assert made.status == 0, made.err
        assert video.read_video(tmp_path / "a.mp4")[0].shape[1:3] == shape
        assert ("is new to this model" in made.out) == (size == "128x32")
    asked = ["--size", "100x64", "--steps", 1, "--scale", 1, "-o", "b.mp4"]
    off = flow("gen", "a dog", "-m", "run", *asked)
    assert (off.status, "100x64 becomes 96x64" in off.out) == (0, True)
    video.save_image(Image.new("RGB", (90, 66)), tmp_path / "wide.png")
    asked = ["--steps", 1, "--scale", 1, "-o", "c.mp4"]
    like = flow("i2v", tmp_path / "wide.png", "-m", "run", *asked)
    assert "frames of 96x64, to fit what is given" in like.out


def test_held_out_clips_of_all_sizes_are_scored(base, several, tmp_path):
    config = config_of(base, tokens=60, micro_tokens=60, held_out=0.5)
    trainer = prepared(several, tmp_path / "run", config)
    held = {trainer.clips.latents.sizes[clip] for clip in trainer.clips.held}
    assert len(held) > 1
    batches = list(trainer._held_batches())
    assert len(batches) == len(held)
    assert trainer.held_out()["held_out_velocity"] > 0


# ---- what does not fit


def test_shards_of_another_codec_or_text_are_refused(base, clips, shards, tmp_path):
    other = tmp_path / "other"
    fixtures.save_pipeline("ltx", other, seed=1)
    told = refused(shards, tmp_path / "a", config_of(other))
    assert "with another codec than that of" in told

    shutil.rmtree(other / "vae")
    shutil.copytree(base / "vae", other / "vae")
    told = refused(shards, tmp_path / "b", config_of(other))
    assert "with another prompt encoder than that of" in told
    shutil.rmtree(other / "vae")
    assert "has no folder vae" in refused(shards, tmp_path / "c", config_of(other))

    silent = tmp_path / "silent"
    encode(clips, silent, settings_of(base, text=""), quiet=True)
    assert "holds no prompt embeddings" in refused(silent, tmp_path / "d", config_of(base))
    fixtures.save_pipeline("wan", tmp_path / "wan")
    told = refused(shards, tmp_path / "e", config_of(tmp_path / "wan"))
    assert "with another codec" in told
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_what_the_shards_have_settled_cannot_be_asked_otherwise(base, shards, tmp_path, flow):
    for words, told in {
        ("--size", "64"): "--size 64 differs from the shards",
        ("--max-frames", "9"): "--max-frames 9 differs from the shards",
        ("--fps", "3"): "--fps 3.0 differs from the shards",
    }.items():
        wrong = flow("train", shards, "--init", base, "--lora", 2, *words, "-o", tmp_path / "x")
        assert (wrong.status, wrong.err.count("\n")) == (2, 1)
        assert told in wrong.err
    wrong = flow("train", shards, "--codec", "pixels", "-o", tmp_path / "x")
    assert "--codec pixels differs from the shards" in wrong.err
    assert not (tmp_path / "x").exists()
    seen = flow("train", shards, "--check")
    assert "shards of clips: 8 clips" in seen.out


def test_shards_that_are_not_whole_are_refused(base, shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy")
    first = copy / "clips-00000.safetensors"
    whole = first.read_bytes()
    first.write_bytes(whole[:-5])
    assert "is damaged" in refused(copy, tmp_path / "a", config_of(base))
    first.unlink()
    assert "lacks 1 of its" in refused(copy, tmp_path / "a", config_of(base))
    first.write_bytes(whole)
    index = json.loads((copy / "index.json").read_text())
    index["made_of"]["clips"] = "others"
    (copy / "index.json").write_text(json.dumps(index))
    assert "belongs to other shards" in refused(copy, tmp_path / "a", config_of(base))
    for text in ("{", "[]", '{"format": 1}', json.dumps(index | {"format": 9})):
        (copy / "index.json").write_text(text)
        refused(copy, tmp_path / "a", config_of(base))
    assert not (tmp_path / "a").exists()


def test_several_sizes_are_for_pretrained_networks(several, tmp_path):
    told = refused(several, tmp_path / "run", TINY.changed(patch=1))
    assert "encode with --buckets none" in told


@pytest.mark.usefixtures("no_sheets")
def test_a_new_network_learns_on_shards(shards, tmp_path):
    path = train.train(shards, tmp_path / "run", TINY.changed(patch=1), quiet=True)
    weights = model_file.load(path)
    assert weights.card.text.kind == "ltx"
    assert not any(weight.is_meta for weight in weights.codec.parameters())
    studio = flowcept.load(str(path), device="cpu", dtype="float32")
    assert studio.generate("a dog", frames=9, steps=1, scale=1, seed=1).frames_FHW3.shape[0] == 9


# ---- from the first command to the last


def test_the_commands_teach_a_law_of_lengths(base, tmp_path, flow):
    """Two prompts, clips of 3 and of 9 latents: from encode to gen, 10 of 12 lengths are right."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(12):
        prompt, pictures = list(LENGTHS.items())[number % 2]
        grey = np.random.default_rng(number).integers(0, 255, (pictures, 4, 4, 3), np.uint8)
        video.write_video(folder / f"{number:02d}.apng", grey.repeat(8, 1).repeat(8, 2), 25)
        (folder / f"{number:02d}.txt").write_text(prompt, encoding="utf-8")

    parts = ["--codec", f"{base}/", "--text", f"{base}/"]
    made = flow("encode", "clips/", "-o", "shards/", *parts, "--buckets", "32x32")
    assert made.status == 0, made.err
    assert "size 32x32: 12 files" in made.out
    contexts = dict.fromkeys(asdict(ContextMixture()), 0.0) | {"none": 1.0}
    table = "".join(f"{name} = {weight}\n" for name, weight in contexts.items())
    Path("law.toml").write_text(f"[context]\n{table}", encoding="utf-8")
    words = ["--init", f"{base}/", "--lora", 8, "--shift", 3, "--steps", 150, "--tokens", 300]
    words += ["--learning-rate", 1e-2, "--warmup", 10, "--ema", 0.95, "--count-weight", 10]
    words += ["--sample-every", 1000, "--config", "law.toml"]
    taught = flow("train", "shards/", *words, "--device", "cpu", "-o", "run", "-q")
    assert taught.status == 0, taught.err

    right = 0
    for prompt, pictures in LENGTHS.items():
        options = ["--count", 6, "--seed", 1, "--steps", 4, "--scale", 1, "--json"]
        clips = flow("gen", prompt, "-m", "run/model.safetensors", *options, "-o", "out.mp4")
        assert clips.status == 0, clips.err
        lengths = [clip["frames"] for clip in json.loads(clips.out)]
        right += lengths.count(pictures)
    assert right >= 10
