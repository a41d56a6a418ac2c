"""Pictures that a model's codec cannot rebuild are refused in one line, unless told ``anyway``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_model import SIZE, write_model
from PIL import Image

import flowcept
from flowcept import generation
from flowcept.codecs import to_images
from flowcept.data import video
from flowcept.errors import UserError

SMALL = {"steps": 1, "seed": 1, "frames": 3}


def noise(frames):
    return np.random.default_rng(0).integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8)


def opened(path, psnr):
    """A studio whose card says how well its codec rebuilds its own pictures."""
    studio = flowcept.load(str(path), device="cpu", dtype="float32")
    studio.card = replace(studio.card, codec_psnr=psnr)
    return studio


def calls(studio, **options):
    """Every task that is given pictures."""
    pair, asked = noise(3)[:2], {**SMALL, **options}
    return [
        lambda: studio.i2v(pair[0], **asked),
        lambda: studio.interp(pair, "a dog", **asked),
        lambda: studio.extend(pair, clip_fps=12, direction="both", **asked),
    ]


def psnr_of(studio, pictures_FHW3):
    """Of each picture, from 8-bit values as they are."""
    with torch.no_grad():
        latent_FCHW = studio.codec.encode_keyframes(to_images(pictures_FHW3))
        rebuilt_FCHW = studio.codec.decode(latent_FCHW)
    error_F = (rebuilt_FCHW - to_images(pictures_FHW3)).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error_F)).tolist()


def test_what_is_refused_lies_a_margin_below_the_codecs_own_pictures(tiny_model):
    """The line tells how well the worst of the given pictures is rebuilt."""
    worst = min(psnr_of(opened(tiny_model, 4.0), noise(2)))
    for call in calls(opened(tiny_model, worst + generation.MARGIN + 0.1)):
        with pytest.raises(UserError, match=rf"rebuilds them at {worst:.1f} dB.*`anyway=True`"):
            call()
    for call in calls(opened(tiny_model, worst + generation.MARGIN - 0.1)):
        call()


def test_anyway_goes_on_and_changes_nothing(tiny_model):
    strict, lenient = opened(tiny_model, 60.0), opened(tiny_model, 0.0)
    for forced, plain in zip(calls(strict, anyway=True), calls(lenient), strict=True):
        np.testing.assert_array_equal(forced().frames_FHW3, plain().frames_FHW3)


def test_models_that_do_not_say_have_a_usual_bound(tiny_model, monkeypatch):
    studio = opened(tiny_model, None)
    with pytest.raises(UserError, match="less than 28"):
        calls(studio)[0]()
    monkeypatch.setattr(generation, "USUAL_PSNR", min(psnr_of(studio, noise(2))) - 0.1)
    calls(studio)[0]()


@pytest.mark.parametrize("psnr", [None, 200.0])
def test_pixels_are_never_refused(tmp_path, psnr):
    for call in calls(opened(write_model(tmp_path / "p.safetensors", codec="pixels"), psnr)):
        call()


def test_motion_shows_any_picture(tiny_motion):
    flowcept.load(str(tiny_motion)).interp(noise(2), multi=1)


def test_the_shipped_model_takes_its_own_pictures_and_no_photographs(shared_data):
    """A clip of its own world, and the photograph that its codec rebuilds worst of ten."""
    studio = flowcept.load("theatre", device="cpu", dtype="float32")
    own_FHW3, _ = video.read_video(Path(__file__).parents[1] / "docs/gallery/gen-01.webp")
    studio.i2v(own_FHW3[0], **SMALL)
    photos = sorted((shared_data / "motion" / "photos").iterdir())[:10]
    fitted = [video.fit(video.read_image(path)[None], (64, 64))[0] for path in photos]
    (worst_HW3,) = min(fitted, key=lambda one_1HW3: psnr_of(studio, one_1HW3))
    with pytest.raises(UserError, match="cannot show the given pictures well"):
        studio.i2v(worst_HW3, **SMALL)


def test_the_command_says_it_in_one_line_and_writes_nothing(flow, tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    weights = flowcept.model_file.load(path)
    strict = replace(weights, card=replace(weights.card, codec_psnr=40.0))
    flowcept.model_file.save(strict, path)
    for name, picture_HW3 in zip("ab", noise(2), strict=True):
        Image.fromarray(picture_HW3).save(f"{name}.png")
    video.write_video(Path("clip.apng"), noise(3), 12)
    for words in (["i2v", "a.png"], ["interp", "a.png", "b.png"], ["extend", "clip.apng"]):
        more = ["-m", path, "--steps", 1, "--frames", 3, "-o", "o.apng"]
        result = flow(*words, *more)
        assert (result.status, result.out) == (2, "")
        assert re.fullmatch(r"flowcept: m cannot show [^\n]* dB[^\n]*--anyway\n", result.err)
        assert not Path("o.apng").exists()
        assert flow(*words, *more, "--anyway").status == 0
        Path("o.apng").unlink()
