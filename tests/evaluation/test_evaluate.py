"""Scores of a model: each against a case whose answer is known, then the command as a whole."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_model import write_model
from PIL import Image
from torch import nn

import flowcept
from flowcept import model_file as checkpoint
from flowcept.codecs import to_frames
from flowcept.data import shapes, video
from flowcept.data.folder import digest_of_files
from flowcept.errors import UserError
from flowcept.evaluation import evaluate, metrics, report
from flowcept.evaluation.evaluate import Clip
from flowcept.evaluation.features import FeatureNetwork
from flowcept.settings import SampleConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    shapes.write_shapes(out, 9, size=32, seed=3)
    return out


class Patches(nn.Module):
    """Colours of a clip's frames, on a grid of 2 by 2."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool3d(clip, (4, 2, 2)).flatten(1)


@pytest.fixture
def features(tmp_path):
    torch.jit.script(Patches()).save(str(tmp_path / "net.pt"))
    return tmp_path / "net.pt"


def maker(model, seed=0, progress=lambda *_: None):
    studio = flowcept.load(str(model), device="cpu", dtype="float32")
    return evaluate.Maker(Path(model).name, studio, seed, progress)


def clips(generator, lengths, size=32, captions=("a",)):
    return [
        Clip(torch.rand(n, 3, size, size, generator=generator) * 2 - 1, captions[i % len(captions)])
        for i, n in enumerate(lengths)
    ]


# ---- one score at a time -----------------------------------------------------------------------


def test_posterior_scores_of_the_exact_law(generator):
    """Its log score is minus its entropy, and what it says comes true as often as it says."""
    law_NK = torch.rand(4000, 7, generator=generator, dtype=torch.float64).pow(4)
    law_NK /= law_NK.sum(1, keepdim=True)
    total_N = torch.multinomial(law_NK, 1, generator=generator)[:, 0]
    scores = evaluate.posterior_scores(law_NK, total_N)
    entropy = float(-(law_NK * law_NK.log()).sum(1).mean())
    assert scores["log_score"] == pytest.approx(-entropy, abs=0.03)
    assert scores["constant_log_score"] < scores["log_score"] - 0.3
    assert sum(count for _, _, count in scores["reliability"]) == law_NK.numel()
    for said, came, count in scores["reliability"]:
        assert came == pytest.approx(said, abs=4 * math.sqrt(said * (1 - said) / count) + 1e-3)


def test_posterior_scores_see_a_law_that_is_too_sure(generator):
    law_NK = torch.rand(4000, 7, generator=generator, dtype=torch.float64)
    law_NK /= law_NK.sum(1, keepdim=True)
    total_N = torch.multinomial(law_NK, 1, generator=generator)[:, 0]
    sure_NK = law_NK**4 / (law_NK**4).sum(1, keepdim=True)
    exact, sure = (evaluate.posterior_scores(law, total_N) for law in (law_NK, sure_NK))
    assert sure["log_score"] < exact["log_score"] - 0.1
    said, came, _ = sure["reliability"][-1]
    assert said > came + 0.2


def test_posterior_scores_of_a_constant_law_are_the_constant_scores():
    total_N = torch.tensor([0, 0, 1, 3])
    law_K = torch.tensor([0.5, 0.25, 0, 0.25], dtype=torch.float64)
    scores = evaluate.posterior_scores(law_K.expand(4, -1), total_N)
    assert scores["log_score"] == pytest.approx(scores["constant_log_score"])
    assert scores["states"] == 4


def test_length_scores_by_caption(generator):
    real = clips(generator, [4, 6, 6, 8], captions=("b", "a", "a", "b"))
    made = clips(generator, [6, 6, 8, 9], captions=("b", "a", "a", "b"))
    scores = evaluate.length_scores(real, made)
    assert scores["total_variation"] == pytest.approx(0.25)  # 4 became 9
    assert scores["captions"]["b"] == {"clips": 2, "real": [6.0, 2.0], "made": [7.5, 1.5]}


def test_chance_is_that_of_two_samples_of_equal_size():
    """Two samples of N equally likely lengths, each with K: sum of |difference| of two binomials.

    By normal deviations the mean is (K / 2) sqrt(4 / pi (1 / K) (1 - 1 / K) / N).
    """
    for lengths, count in ((4, 400), (10, 1000)):
        law = dict.fromkeys(range(lengths), count // lengths)
        share = 1 / lengths
        expected = lengths / 2 * (4 / np.pi * share * (1 - share) / count) ** 0.5
        assert evaluate.chance_variation(law) == pytest.approx(expected, rel=0.08)


def test_interp_scores_know_who_is_right(generator):
    """Clips that move evenly: blending is right; repeating misses by what blending would tell."""
    first, last = torch.rand(2, 3, 16, 16, generator=generator) - 0.5
    weights = torch.linspace(0, 1, 5)[:, None, None, None]
    even = torch.lerp(first[None], last[None], weights)
    other = evaluate.images_of(clips(generator, [4, 5], size=16))
    pairs = [(even, other[1]), (other[0], other[0])]
    scores = evaluate.interp_scores(pairs, seed=0)
    assert (scores["clips"], scores["frames"]) == (2, 5)
    only = evaluate.interp_scores(pairs[:1], seed=0)
    assert only["linear"]["psnr"] == (100, 100, 100)
    repeated = metrics.psnr(first.expand(3, -1, -1, -1), even[1:-1])
    assert only["repeat"]["psnr"][0] == pytest.approx(repeated)
    assert evaluate.interp_scores(pairs[1:], seed=0)["model"]["psnr"][0] == 100


def test_one_equal_frame_does_not_make_a_clip_perfect(generator):
    first, second, last = torch.rand(3, 3, 16, 16, generator=generator) - 0.5
    real = torch.stack([first, first, second, second, last])
    scores = evaluate.interp_scores([(real, real)], seed=0)
    missed = metrics.psnr(first[None], second[None])
    assert scores["repeat"]["psnr"][0] == pytest.approx((100 + 2 * missed) / 3)


def test_quarters_are_all_of_the_clip():
    for count in range(1, 30):
        frames = torch.arange(float(count))[:, None, None, None]
        parts = [frames[evaluate.quarter(len(frames), q)] for q in range(4)]
        assert min(map(len, parts)) > 0
        found = torch.cat(parts).flatten()
        assert set(found.tolist()) == set(range(count))
        if count >= 4:
            assert found.tolist() == list(range(count))


def test_drift_is_seen_where_it_is(generator):
    real = clips(generator, [8] * 3)
    blurred = []
    for clip in real:
        image = clip.image_FCHW.clone()
        image[6:] = image[6:].mean((2, 3), keepdim=True)
        blurred.append(Clip(image, "a"))
    sharpness = evaluate.drift_scores(real, blurred)["sharpness"]
    assert sharpness["made"][:3] == sharpness["real"][:3]
    assert sharpness["made"][3] < 1e-6 < sharpness["real"][3]


def test_distances_by_quarter_are_those_of_the_quarters(generator, features):
    network = FeatureNetwork(features, torch.device("cpu"))
    real, made = clips(generator, [3, 5, 8, 6]), clips(generator, [4, 2, 9, 7])
    found = evaluate.drift_scores(real, made, network)["distance"]
    assert len(found) == evaluate.QUARTERS
    for number, distance in enumerate(found):
        a, b = (
            network([c.image_FCHW[evaluate.quarter(len(c.image_FCHW), number)] for c in side])
            for side in (real, made)
        )
        assert distance == pytest.approx(metrics.frechet_of_samples(a, b), rel=1e-4)
    halved = [Clip(torch.cat([c.image_FCHW, c.image_FCHW - 1]), "a") for c in real]
    early, *_, late = evaluate.drift_scores(
        [Clip(torch.cat([c.image_FCHW] * 2), "a") for c in real], halved, network
    )["distance"]
    assert early == pytest.approx(0, abs=1e-6)
    assert late > 1, "where it is"


def feature_scores(network, real, made):
    seen = (network([clip.image_FCHW for clip in clips]) for clips in (real, made))
    return evaluate.feature_scores(network.name, *seen, seed=0)


def test_feature_scores_of_equal_clips(generator, features):
    network = FeatureNetwork(features, torch.device("cpu"))
    real = clips(generator, [3, 5, 4, 6, 5, 4, 3])
    same = feature_scores(network, real, real)
    value, low, high = same["distance"]
    assert value == pytest.approx(0, abs=1e-6)
    assert low <= high
    assert same["coverage"] == 1
    assert same["clips"] == 7
    grey = [Clip(0.2 * clip.image_FCHW, "a") for clip in real]
    assert feature_scores(network, real, grey)["distance"][0] > 0.01


def test_intervals_hold_the_mean_as_often_as_they_say():
    """Nine in ten of them, over many samples of a known law."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        values = rng.normal(size=40).tolist()
        score, low, high = evaluate.mean_interval(values, trial)
        assert low < score < high
        held += low < 0 < high
    assert 0.82 < held / 200 < 0.96


def test_a_clip_of_a_first_frame_begins_with_it(tiny_model, folder):
    model = maker(tiny_model)
    real = evaluate.draw_clips(model, folder, 4)
    made = evaluate.clips_like(model, real, SampleConfig(steps=2), "i2v")
    for given, clip in zip(real, made, strict=True):
        first = model.decode(model.encode(given.image_FCHW[:1]))
        torch.testing.assert_close(clip.image_FCHW[:1], first, atol=1e-4, rtol=1e-4)
        assert clip.caption == given.caption


@pytest.mark.parametrize(("fit", "dark"), [("crop", 0), ("stretch", 0), ("pad", 0.5)])
def test_real_clips_are_fitted_as_in_training(tiny_model, tmp_path, fit, dark):
    model = checkpoint.load(Path(tiny_model))
    fitted = replace(model, card=replace(model.card, fit=fit))
    checkpoint.save(fitted, tmp_path / "fitted.safetensors")
    for name in ("a", "b"):
        video.write_video(tmp_path / f"{name}.apng", np.full((3, 32, 64, 3), 255, np.uint8), 12)
    for clip in evaluate.draw_clips(maker(tmp_path / "fitted.safetensors"), tmp_path, 2):
        assert float((clip.image_FCHW < 0).float().mean()) == dark


def test_real_lengths_can_be_told(tiny_model, folder):
    model, config = maker(tiny_model), SampleConfig(steps=1)
    real = evaluate.draw_clips(model, folder, 7)
    lengths = [len(clip.image_FCHW) for clip in real]
    assert len(set(lengths)) > 1
    for task in evaluate.TASKS:
        made = evaluate.clips_like(model, real, config, task, told=True)
        assert [len(clip.image_FCHW) for clip in made] == lengths


@pytest.fixture(scope="module")
def video_model(tmp_path_factory):
    """A model whose codec has one latent for four pictures, the first alone."""
    return write_model(tmp_path_factory.mktemp("model") / "video.safetensors", codec="fake-video")


def test_clips_of_a_video_codec_lie_on_its_grid(video_model, folder):
    model, config = maker(video_model), SampleConfig(steps=1)
    real = evaluate.draw_clips(model, folder, 7)
    lengths = [len(clip.image_FCHW) for clip in real]
    assert {n % 4 for n in lengths} == {1}
    assert max(lengths) > 9
    for task in evaluate.TASKS:
        made = evaluate.clips_like(model, real, config, task, told=True)
        assert [len(clip.image_FCHW) for clip in made] == lengths


def test_between_ends_of_a_video_codec_the_last_picture_is_no_frame_of_its_own(video_model, folder):
    model = maker(video_model)
    real = evaluate.draw_clips(model, folder, 4)
    real.append(Clip(real[0].image_FCHW[:1], "a"))
    pairs = evaluate.between_ends(model, real, SampleConfig(steps=1))
    for (shown, made), clip in zip(pairs, real[:4], strict=True):
        assert shown is clip.image_FCHW
        assert made.shape == shown.shape
        torch.testing.assert_close(made[0], shown[0], atol=1e-2, rtol=0)
    scores = evaluate.interp_scores(pairs, seed=0)
    assert scores["frames"] == sum(len(clip.image_FCHW) - 2 for clip in real[:4])


def test_every_clip_has_a_seed_of_its_own(tiny_model):
    """Neighbouring seeds of an evaluation share no clip, as sums of seed and number would."""
    config = SampleConfig(steps=1, frames=5)
    made = []
    for seed in (0, 1):
        model = maker(tiny_model, seed)
        real = [Clip(torch.zeros(5, 3, 32, 32), "a")] * 3
        made += [clip.image_FCHW for clip in evaluate.clips_like(model, real, config, "gen")]
    for i, j in itertools.combinations(range(len(made)), 2):
        assert not torch.equal(made[i], made[j]), (i, j)


# ---- the command -------------------------------------------------------------------------------


def test_a_video_codec_end_to_end(flow, video_model, folder):
    result = flow("evaluate", video_model, folder, "--clips", 5, "--steps", 1, "-q", "--json")
    assert result.status == 0, result.err
    scores = json.loads(result.out)
    for side in ("real", "made"):
        assert {int(n) % 4 for n in scores["lengths"][side]} == {1}
    assert scores["counts"]["states"] > 5


@pytest.mark.parametrize("task", ["gen", "i2v"])
def test_evaluate_end_to_end(flow, tiny_model, folder, features, task):
    words = [
        "evaluate",
        tiny_model,
        folder,
        "--clips",
        7,
        "--steps",
        2,
        "--features",
        features,
        "-q",
    ]
    words += ["--task", task] if task != "gen" else []
    result = flow(*words, "-o", "s.json", "--sheet", "s.png")
    assert result.status == 0, result.err
    scores = json.loads(Path("s.json").read_text())
    assert scores["about"]["clips"] == 7
    assert scores["about"]["settings"]["steps"] == 2
    assert scores["about"]["settings"]["guidance"] == 2
    assert scores["about"]["settings between frames"]["steps"] == 2
    assert scores["about"]["settings between frames"]["guidance"] == 1
    assert scores["about"]["task"] == task
    assert "Fréchet distance of net, 7 clips each" in result.out
    assert re.search(r"missing frames by the model +PSNR \d.* higher is better\n", result.out)
    assert sum(scores["lengths"]["made"].values()) == 7
    assert scores["counts"]["states"] > 7
    assert Image.open("s.png").height > 900
    again = flow(*words, "--json")
    assert json.loads(again.out) == scores
    assert sorted(p.name for p in Path().iterdir() if p.name.startswith(".")) == []


def test_every_figure_says_which_way_is_better(flow, tiny_model, folder, features):
    words = ["evaluate", tiny_model, folder, "--clips", 7, "--steps", 1, "-q"]
    lines = flow(*words, "--features", features).out.splitlines()
    said = r"(lower|higher|nearer to real) is better|1 is ideal|to compare|to expect"
    assert len(lines) > 12
    assert [line for line in lines[1:] if not re.search(said, line)] == []


def test_a_folder_that_the_model_learned_from_is_told(flow, tiny_model, folder, tmp_path):
    """By its files' names and sizes, under another name too; other clips are another folder."""
    shutil.copytree(folder, tmp_path / "copy")
    files = digest_of_files(folder.glob("*.apng"))
    card = checkpoint.read_card(tiny_model)
    trained = replace(checkpoint.load(tiny_model), card=replace(card, trainings=(
        checkpoint.Training("flowcept train shapes", "shapes", files),
    )))  # fmt: skip
    checkpoint.save(trained, tmp_path / "m.safetensors")
    words = ["evaluate", "m.safetensors", "copy", "--clips", 2, "--steps", 1, "-q"]
    told = "note: the model was trained on most of these clips"
    assert told in flow(*words).out
    next((tmp_path / "copy").glob("*.apng")).unlink()
    assert told not in flow(*words).out


def test_the_sheet_shows_real_clips_above_made_ones(generator):
    real, made = clips(generator, [3, 2]), clips(generator, [4, 2])
    sheet = report.side_by_side(real, made, [(real[0].image_FCHW, real[0].image_FCHW)])
    shown = np.asarray(sheet)
    first = to_frames(real[0].image_FCHW)[0]
    windows = np.lib.stride_tricks.sliding_window_view(shown, first.shape)[..., 0, :, :, :]
    found = np.argwhere((windows == first).all((-1, -2, -3)))
    assert len(found) == 2, "the real clip, and what is said to be made between its ends"
    assert shown.shape[0] > 5 * 32
    assert shown.shape[1] >= 4 * 32


def test_without_features_the_rest_is_told(flow, tiny_model, folder):
    result = flow("evaluate", tiny_model, folder, "--clips", 3, "--steps", 1, "-q")
    assert result.status == 0, result.err
    assert "note: no feature distance: it needs --features FILE" in result.out
    assert "Fréchet" not in result.out
    assert "log score of missing frames" in result.out


def test_more_clips_than_there_are(flow, tiny_model, folder):
    result = flow("evaluate", tiny_model, folder, "--clips", 500, "--steps", 1, "-q")
    assert re.search(r"note: the folder has \d+ usable clips, not 500", result.out)


def test_bad_input_of_an_evaluation(flow, tiny_model, folder, tmp_path):
    model, data = str(tiny_model), str(folder)
    one = tmp_path / "one"
    one.mkdir()
    video.write_video(one / "a.apng", np.zeros((3, 32, 32, 3), np.uint8), 12)
    Path("junk.pt").write_text("no")
    Path("net.safetensors").write_text("no")
    for words, said in (
        (["absent.safetensors", data], "absent.safetensors"),
        ([model, "nowhere"], "nowhere"),
        ([model, str(one)], "at least two"),
        ([model, data, "--clips", "1"], "--clips"),
        ([model, data, "--features", "absent.pt"], "absent.pt"),
        ([model, data, "--features", "junk.pt"], "junk.pt"),
        ([model, data, "--features", "net.safetensors"], "TorchScript"),
        ([model, data, "-o", "scores.txt"], ".json"),
        ([model, data, "-o", "junk.pt/where.json"], "junk.pt is a file"),
        ([model, data, "--sheet", "s.gif"], ".png"),
        ([model, data, "--seed", "-1"], "--seed"),
        ([model, data, "--task", "interp"], "--task must be gen or i2v"),
        ([model, data, "--steps", "0"], "--steps"),
    ):
        result = flow("evaluate", *words, "-q")
        assert result.status == 2, (words, result)
        assert result.out == ""
        assert re.fullmatch(r"flowcept: [^\n]+\n", result.err), result.err
        assert said in result.err, (words, result.err)


def test_evaluation_is_a_library_call_too(tiny_model, folder):
    seen = []
    model = maker(tiny_model, progress=lambda *what: seen.append(what))
    config = SampleConfig(steps=1)
    scores = evaluate.evaluate(model, folder, config, config, clips=4)
    assert scores.features is None
    assert ("reading", 4, 4) in seen
    with pytest.raises(UserError, match="at least 2"):
        evaluate.evaluate(model, folder, config, config, clips=1)
