"""Training of motion: windows follow from a seed, and a resumed run is an uninterrupted one."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from flowcept import model_file
from flowcept.data.layers import LayersConfig, layered_clip
from flowcept.data.motion_windows import (
    MotionData,
    WindowDrawer,
    WindowsConfig,
    held_windows,
    prepare,
    share_of,
    take_of,
    varied,
)
from flowcept.data.video import write_video
from flowcept.errors import UserError
from flowcept.networks.flow import DisConfig, DisEstimator, backward_warp
from flowcept.networks.motion import NUM_CUES, GapLaw, MotionConfig
from flowcept.training.motion import (
    LawExamples,
    MotionTrainConfig,
    fit_law,
    laplacian_loss,
    main,
    slower,
    train_motion,
    within_central,
)

WINDOWS = WindowsConfig(
    held_out=0.5,
    salt=0,
    spacings=(2, 4),
    spacing_weights=(0.5, 0.5),
    num_layered=2,
    sides=(96,),
    pixels=96 * 96,
    law_pairs=4,
)
NETWORK = MotionConfig(
    features=8, compared=4, coarse=(8, 8, 8), fine=(8, 8, 8), law_hidden=8, most_missing=40
)
TRAIN = MotionTrainConfig(
    steps=6, warmup=2, law_steps=20, log_every=1, check_every=3, windows=WINDOWS, network=NETWORK
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MotionData:
    """Four clips of 9 frames in which a texture moves, and one photograph."""
    root = tmp_path_factory.mktemp("motion")
    (root / "clips").mkdir()
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)
    whole = cv2.resize(coarse, (160, 160), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(root / "photos" / "one.png"), whole)
    for number in range(4):
        frames = [whole[n * number : n * number + 96, 2 * n : 2 * n + 112] for n in range(9)]
        path = root / "clips" / f"take{number}_00.mp4"
        write_video(path, np.stack(frames), 12)
    estimator = DisEstimator(DisConfig(finest_scale=1, match=False))
    return MotionData(root / "clips", root / "photos", root / "cache", WINDOWS, estimator)


def test_takes_are_held_out_whole() -> None:
    assert take_of("city_04") == take_of("city_07") != take_of("city_08")
    assert take_of("bee") == "bee"
    shares = [share_of(f"name {n}", 1) for n in range(2000)]
    assert abs(np.mean(shares) - 0.5) < 4 * 0.29 / 2000**0.5


def test_windows_follow_from_the_seed(data: MotionData) -> None:
    first, second = (WindowDrawer(data, np.random.default_rng(3)) for _ in range(2))
    for _ in range(3):
        a, b = first.batch(), second.batch()
        assert torch.equal(a.left_N3HW, b.left_N3HW) and torch.equal(a.truth_N3HW, b.truth_N3HW)
        assert torch.equal(a.flows.there_N2HW, b.flows.there_N2HW)


def test_held_out_shots_are_not_drawn(data: MotionData) -> None:
    held = {shot.name for shot in data.shots if shot.held_out}
    assert held and len(held_windows(data))
    drawn = {
        gap.shot.name
        for gaps, _ in WindowDrawer(data, np.random.default_rng(0))._choices.values()
        for gap in gaps
    }
    assert drawn and not drawn & held


def test_only_ready_windows_are_drawn(data: MotionData, tmp_path: Path) -> None:
    other = MotionData.__new__(MotionData)
    other.__dict__ |= {**vars(data), "folder": tmp_path}
    (tmp_path / "flows").mkdir()
    with pytest.raises(UserError, match="ready"):
        WindowDrawer(other, np.random.default_rng(0), ready_only=True)
    prepare(data)
    WindowDrawer(data, np.random.default_rng(0), ready_only=True).batch()


def test_variation_turns_flows_with_pictures(data: MotionData) -> None:
    """However a window is varied, its flow still explains its right picture by its left one."""
    window = next(w for w in held_windows(data) if float(w.flows.there_N2HW.norm()) > 0)

    def error(one: object) -> float:
        moved = backward_warp(one.right_N3HW, one.flows.there_N2HW)
        spread = one.left_N3HW.std()
        return float(((moved - one.left_N3HW)[..., 12:-12, 12:-12].abs().mean()) / spread)

    usual = error(window)
    rng = np.random.default_rng(0)
    assert max(error(varied(window, rng)) for _ in range(12)) < 1.5 * usual + 0.05


def test_layers_follow_from_the_seed() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (80, 90, 3)).astype(np.uint8)
    config = LayersConfig(num_frames=3, side=64)
    clips = [layered_clip([photo], np.random.default_rng(5), config) for _ in range(2)]
    assert clips[0].shape == (3, 64, 64, 3) and clips[0].dtype == np.uint8
    assert np.array_equal(*clips)


def test_laplacian_loss_is_zero_for_equals_and_scales() -> None:
    made, truth = torch.rand(2, 2, 3, 64, 64)
    assert laplacian_loss(truth, truth) == 0
    doubled = laplacian_loss(truth + 2 * (made - truth), truth)
    torch.testing.assert_close(doubled, 2 * laplacian_loss(made, truth))


def test_law_learns_what_the_cues_tell() -> None:
    """The number of frames between is the exponential of the first cue; the others are noise."""
    generator = torch.Generator().manual_seed(0)
    between = torch.randint(0, 20, (2000,), generator=generator)
    cues = torch.randn(2000, NUM_CUES, generator=generator)
    cues[:, 0] = torch.log(between + 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the first weights
        law = GapLaw(16, 32)
    fit_law(law, LawExamples(cues, between), 1500, seed=0)
    told = law(cues)
    score = float(told.gather(1, between[:, None]).mean().detach())
    inside = within_central(told, between, 0.8).float().mean()
    assert score > -2.6 > -math.log(20)
    assert inside > 0.7, "a sharp law of whole numbers covers more than it says"


def test_every_rate_counts_alike() -> None:
    examples = LawExamples(torch.arange(12.0)[:, None], torch.arange(12))  # spacings 1 to 12
    made = slower(examples)
    assert len(made.between_N) == 4 * 12
    of_spacing_12 = made.between_N[made.cue_ND[:, 0] == 11]
    assert sorted(of_spacing_12.tolist()) == [2, 2, 2, 2, 3, 3, 3, 5, 5, 11]


def test_central_share() -> None:
    law = torch.log(torch.tensor([[0.05, 0.05, 0.4, 0.4, 0.05, 0.05]]))
    inside = [bool(within_central(law, torch.tensor([n]), 0.8)) for n in range(6)]
    assert inside == [False, False, True, True, False, False]


def test_resumed_is_uninterrupted(data: MotionData, tmp_path: Path) -> None:
    whole = train_motion(data, tmp_path / "whole", TRAIN)
    train_motion(data, tmp_path / "parts", TRAIN, pause_at=3)
    parts = train_motion(data, tmp_path / "parts", TRAIN, resume=True)
    pairs = zip(whole.average.state_dict().items(), parts.average.state_dict().items(), strict=True)
    assert all(torch.equal(a[1], b[1]) for a, b in pairs)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [{**line, "hours": 0} for line in logs[0]] == [{**line, "hours": 0} for line in logs[1]]
    assert (tmp_path / "parts" / "sheet.png").exists()
    weights = model_file.load(tmp_path / "parts" / "motion.safetensors")
    assert weights.card.steps == TRAIN.steps
    pairs = zip(weights.network.parameters(), parts.average.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_a_whole_step(
    number: signal.Signals, data: MotionData, tmp_path: Path
) -> None:
    def say(text: str) -> None:
        if text.startswith("step 2,"):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    stopped = train_motion(data, tmp_path, TRAIN, say=say)
    assert stopped.step == 2
    assert signal.getsignal(number) == before
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_a_run_is_not_overwritten(data: MotionData, tmp_path: Path) -> None:
    train_motion(data, tmp_path, replace(TRAIN, steps=1))
    with pytest.raises(UserError, match="resume"):
        train_motion(data, tmp_path, TRAIN)


def test_a_state_becomes_a_model_file(
    data: MotionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train_motion(data, tmp_path, replace(TRAIN, steps=1, network=MotionConfig()))
    state, model = tmp_path / "state.pt", tmp_path / "again.safetensors"
    monkeypatch.setattr("sys.argv", ["motion", "--export", str(state), "-o", str(model)])
    main()
    made, kept = model_file.load(model), trainer.average.state_dict()
    assert all(torch.equal(kept[name], x) for name, x in made.network.motion.state_dict().items())
    assert (made.card.steps, made.card.any_size, made.card.max_length) == (1, True, 42)


@pytest.mark.parametrize("content", ["small", "other", "text", None])
def test_no_model_is_made_of_other_states(
    data: MotionData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
) -> None:
    state = tmp_path / "state.pt"
    if content == "small":  # a network of another size
        train_motion(data, tmp_path, replace(TRAIN, steps=1))
    elif content == "other":
        torch.save({"step": 3}, state)
    elif content:
        state.write_text(content)
    model = tmp_path / "made.safetensors"
    monkeypatch.setattr("sys.argv", ["motion", "--export", str(state), "-o", str(model)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and not model.exists()
    assert capsys.readouterr().err == f"{state} is no state of a training of motion\n"


def test_log_forgets_what_the_state_does_not_know(data: MotionData, tmp_path: Path) -> None:
    train_motion(data, tmp_path, TRAIN, pause_at=3)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "laplacian": 1.0}\n{"step": 6, "lap')
    train_motion(data, tmp_path, TRAIN, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6]


def test_folder_without_clips_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no clips") as error:
        MotionData(tmp_path, None, tmp_path / "cache", WINDOWS, DisEstimator())
    assert "\n" not in str(error.value)
