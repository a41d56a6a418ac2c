"""The codec's part of a run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_codec import fake_config
from PIL import Image
from small_runs import TINY

from flowcept import model_file
from flowcept.codecs import build_codec, to_images
from flowcept.data import folder as data
from flowcept.data import video
from flowcept.training import fitting
from flowcept.training import run as train
from flowcept.training.parts import split


@pytest.mark.usefixtures("no_sheets")
def test_pixels_train(folder: Path, tmp_path: Path):
    config = TINY.changed(codec="pixels", patch=8, tokens=800)
    train.train(folder, tmp_path / "run", config, pause_at=2, quiet=True)
    weights = model_file.load(tmp_path / "run" / "model.safetensors")
    assert weights.card.codec.kind == "pixels"
    assert float((weights.codec.std_C - 1).abs().max()) > 0.01


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("codec_steps", [0, 2])
def test_a_codec_comes_from_another_model(
    folder: Path, whole: Path, tmp_path: Path, codec_steps: int
):
    """As it is, or trained on; the network is a new one either way."""
    other = whole / "model.safetensors"
    config = TINY.changed(codec=str(other), codec_steps=codec_steps)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    made, origin = (
        model_file.load(path) for path in (tmp_path / "run" / "model.safetensors", other)
    )
    a, b = (dict(weights.codec.named_parameters()) for weights in (made, origin))
    same = [torch.equal(a[name], b[name]) for name in a]
    assert all(same) if codec_steps == 0 else not any(same)
    assert all(float((a[name] - b[name]).abs().max()) < 0.1 for name in a), "it starts from there"
    assert not torch.equal(made.network.modulation.weight, origin.network.modulation.weight)


def test_the_codec_takes_any_seed(folder: Path, tmp_path: Path):
    config = TINY.changed(seed=2**63 - 1, codec_steps=1)
    train.train(folder, tmp_path / "run", config, pause_at=1, quiet=True)
    assert (tmp_path / "run" / "codec.safetensors").exists()


def test_a_video_codec_trains(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of four pictures a latent: lengths are in latents, sheets in pictures."""
    made = build_codec(fake_config(compression=4))
    monkeypatch.setattr(fitting, "_named", lambda _: made)
    said: list[str] = []
    run = tmp_path / "run"
    train.train(folder, run, TINY.changed(steps=2), console=said.append)
    weights = model_file.load(run / "model.safetensors")
    assert weights.card.codec == made.config
    pictures = [entry.num_frames for entry in data.scan(folder, TINY.data).entries]
    assert set(weights.card.lengths) <= {1 + (count - 1) // 4 for count in pictures}
    assert weights.network.largest_size == max(1 + (count - 1) // 4 for count in pictures)
    assert float((weights.codec.std_C - 1).abs().max()) > 0.01
    with Image.open(run / "samples" / "step_000002.png") as sheet:
        assert min(sheet.size) >= 32


def test_the_card_says_how_well_pictures_are_rebuilt(folder: Path, whole: Path):
    """That of the worst twentieth of the training clips' middle pictures."""
    weights = model_file.load(whole / "model.safetensors")
    scan = data.scan(folder, TINY.data)
    clips, _ = split(scan, TINY)
    found = []
    for entry in (scan.entries[clip] for clip in clips):
        frames_FHW3, _ = video.read_video(entry.path)
        image_1CHW = to_images(frames_FHW3[len(frames_FHW3) // 2][None])
        rebuilt_1CHW = weights.codec.decode(weights.codec.encode_keyframes(image_1CHW))
        found.append(10 * math.log10(4 / float((rebuilt_1CHW - image_1CHW).square().mean())))
    expected = float(np.quantile(found, 0.05))
    assert weights.card.codec_psnr == pytest.approx(expected, abs=0.2), "weights are in bfloat16"
    assert expected < float(np.mean(found)) - 0.3
