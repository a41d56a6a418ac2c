"""``flowcept train --network motion``: what a run leaves, goes on from and refuses."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_motion import PARTS, TINY, drawn_clips, panned, texture
from small_runs import assert_on_page, interrupt_in, leaves, records

from flowcept import model_file
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.networks import motion
from flowcept.retime import Report
from flowcept.settings import MotionTrainConfig
from flowcept.training import footage, motion_run
from flowcept.training.footage import find, scenes
from flowcept.training.motion import MotionTrainer
from flowcept.training.motion_run import train_motion
from flowcept.training.state import read_config

SIDE = 96  # px: tests' clips stay as they are


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is enlarged, and the command trains a tiny network on tiny windows."""
    monkeypatch.setattr(footage, "WORKING_SIDE", SIDE)
    monkeypatch.setattr(motion, "WORKING_SIDE", SIDE)
    monkeypatch.setattr(motion, "LAW_SIDE", SIDE // 2)
    monkeypatch.setattr(motion_run, "MotionParts", lambda: PARTS)


def learned(clips: Path, run: Path, config: MotionTrainConfig = TINY, **more: object) -> Path:
    return train_motion(clips, run, config, parts=PARTS, quiet=True, **more)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_clips(tmp_path_factory.mktemp("drawn") / "drawings")


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footage, "WORKING_SIDE", SIDE)
        patch.setattr(motion, "WORKING_SIDE", SIDE)
        patch.setattr(motion, "LAW_SIDE", SIDE // 2)
        learned(clips, run)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A new run that finds shots and flows in its cache."""
    shutil.copytree(whole / "cache", tmp_path / "run" / "cache")
    return tmp_path / "run"


def test_a_run_leaves_a_model_and_its_records(whole: Path) -> None:
    recorded = read_config(whole / "config.toml", MotionTrainConfig)
    assert MotionTrainConfig.from_flat(recorded) == TINY
    logged = records(whole)
    assert [one["step"] for one in logged if "laplacian" in one] == [1, 2, 3, 4, 5, 6]
    assert {one["step"] for one in logged if "held_out_gain" in one} == {3, 6}
    assert sorted(path.name for path in (whole / "samples").iterdir()) == [
        "step_000004.png",
        "step_000006.png",
    ]
    assert (whole / "loss.png").exists()
    card = model_file.read_card(whole / "model.safetensors")
    assert (card.steps, card.dataset, card.any_size) == (6, "drawings", True)
    assert 0 < next(one["hours"] for one in logged if "hours" in one) < 1


def test_the_page_on_a_runs_folder_is_whole(whole: Path) -> None:
    assert_on_page(whole, "motion")


def same(run: Path, other: Path) -> bool:
    """Whether two runs' states are equal bit for bit."""
    a, b = (leaves(model_file.load_tree(path / "state.safetensors")) for path in (run, other))
    assert a.keys() == b.keys()
    return all(
        torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        for name, value in a.items()
    )


def test_resumed_is_uninterrupted(clips: Path, whole: Path, run: Path) -> None:
    learned(clips, run, pause_at=3)
    assert not same(run, whole)
    learned(clips, run, resume=True)
    assert same(run, whole)
    assert [{**one, **CLOCK} for one in records(run) if "law" not in str(one)] == [
        {**one, **CLOCK} for one in records(whole) if "law" not in str(one)
    ]
    networks = [model_file.load(path / "model.safetensors").network for path in (run, whole)]
    pairs = zip(*(network.state_dict().values() for network in networks), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


CLOCK = {"hours": 0, "windows_per_second": 0}


def test_the_place_in_the_data_is_part_of_a_state(
    clips: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the same steps would show other windows."""
    real = MotionTrainer.load_state_dict

    def forgetful(self: MotionTrainer, state: dict[str, object]) -> None:
        real(self, {**state, "rng": json.dumps(self.rng.bit_generator.state)})

    learned(clips, run, pause_at=3)
    monkeypatch.setattr(MotionTrainer, "load_state_dict", forgetful)
    learned(clips, run, resume=True)
    assert not same(run, whole)


def test_ctrl_c_ends_a_whole_step_and_says_how_to_go_on(
    clips: Path, whole: Path, run: Path
) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, MotionTrainer, "_follow", 4)
        with pytest.raises(KeyboardInterrupt):
            train_motion(clips, run, TINY, parts=PARTS, console=said.append)
    assert said[-2] == "stopped at step 4"
    assert said[-1] == f"to continue: flowcept train {clips} -o {run} --network motion --resume"
    assert model_file.load_tree(run / "state.safetensors")["step"] == 4
    learned(clips, run, resume=True)
    assert same(run, whole)


def test_ctrl_c_while_shots_are_cut(clips: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in(patch, footage.Gathering, "add_layers", 1)
        with pytest.raises(KeyboardInterrupt):
            learned(clips, run)
    assert not (run / "state.safetensors").exists()
    learned(clips, run, resume=True)
    assert same(run, whole)


def test_a_full_disk_is_one_line_and_later_only_slow(
    clips: Path, whole: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.rmtree(next((run / "cache").glob("motion-*")) / "flows")
    monkeypatch.setattr("flowcept.data.motion_windows.np.save", full)
    learned(clips, run)
    assert same(run, whole)
    with pytest.raises(UserError, match=r"cannot write shots to .*: No space left"):
        learned(clips, tmp_path / "other")
    assert not (tmp_path / "other" / "config.toml").exists()


def test_a_state_of_other_clips_is_refused(clips: Path, whole: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(whole, run)
    shutil.copytree(clips, other)
    (other / "take3_00.mp4").unlink()
    with pytest.raises(UserError, match="does not fit these clips"):
        learned(other, run, resume=True)


def test_an_origin_goes_on_and_its_authors_stay(clips: Path, whole: Path, run: Path) -> None:
    learned(clips, run, TINY.changed(init=str(whole), steps=1, learning_rate=1e-9))
    old, new = (model_file.load(path / "model.safetensors") for path in (whole, run))
    assert new.card.dataset == "drawings, after drawings"
    for name, tensor in old.network.state_dict().items():
        if "law" not in name:
            torch.testing.assert_close(tensor, new.network.state_dict()[name], rtol=0, atol=1e-6)
    learned(clips, run, resume=True)
    assert model_file.read_card(run / "model.safetensors").dataset == "drawings, after drawings"


# ---- what becomes of a folder --------------------------------------------------------------------


def test_nothing_is_learned_across_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    bright = (texture(0) // 2 + 128).astype(np.uint8)
    video.write_video(path, np.stack(panned(bright, 1, 2) + panned(texture(5) // 2, 2, 1)), 12)
    report = Report()
    runs = list(scenes(path, video.probe(path), PARTS.estimator, report))
    assert [len(frames) for frames in runs] == [9, 9]
    assert report.cuts == 1


def test_repeated_frames_and_long_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "twos.apng"
    frames = panned(texture(0), 3, 3)
    video.write_video(path, np.stack([frame for frame in frames for _ in range(2)]), 12)
    monkeypatch.setattr(footage, "SHOT_FRAMES", 5)
    report = Report()
    runs = list(scenes(path, video.probe(path), PARTS.estimator, report))
    assert [len(frames) for frames in runs] == [5, 4]
    assert report.repeats == 9
    np.testing.assert_array_equal(np.concatenate(runs), np.stack(frames))


def test_pictures_lie_beside_the_clips_or_elsewhere(clips: Path, tmp_path: Path) -> None:
    assert [path.name for path in find(clips, "", 3).pictures] == ["one.png"]
    cv2.imwrite(str(tmp_path / "two.png"), texture(1))
    found = find(clips, str(tmp_path), 3)
    assert [path.name for path in found.pictures] == ["one.png", "two.png"]
    assert len(found.clips) == 4


def test_bad_files_are_told_and_left_out(clips: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(clips, folder)
    (folder / "broken.mp4").write_bytes(b"nothing")
    video.write_video(folder / "short.gif", np.stack(panned(texture(1), 9, 9, 2)), 12)
    tiny = np.stack([frame[:9, :9] for frame in panned(texture(1), 3, 3)])
    video.write_video(folder / "tiny.apng", tiny, 12)
    said: list[str] = []
    train_motion(folder, run, TINY, parts=PARTS, console=said.append, pause_at=1)
    text = "\n".join(said)
    assert "5 clips of 45 frames and 1 picture found" in said[0]
    assert re.search(r"dropped .*broken.mp4: cannot be read", text)
    assert re.search(r"dropped .*short.gif: 2 frames, at least 3 are needed", text)
    assert re.search(r"dropped .*tiny.apng: 9 px are too small", text)
    assert re.search(r"\d+ windows in \d shots? to learn from, 2 clips of moving layers", text)
    assert re.search(
        r"plan: about \d+ seconds? \(1 step\) of training\n  the first contact sheet", text
    )


# ---- the commands --------------------------------------------------------------------------------

FAST = ["--steps", 2, "--layers", 1, "--law-steps", 5, "--log-every", 1, "--device", "cpu"]


def test_from_clips_to_frames_between_pictures(flow, clips: Path) -> None:
    result = flow("train", "--network", "motion", clips, "-o", "run", *FAST)
    assert (result.status, result.out.splitlines()[-1]) == (
        0, "wrote run/model.safetensors after 2 steps",
    )  # fmt: skip
    for name, one in zip("ab", panned(texture(3), 3, 3, 2), strict=True):
        cv2.imwrite(f"{name}.png", one)
    model = ["-m", "run/model.safetensors"]
    made = flow("interp", "a.png", "b.png", "--multi", 2, *model, "-o", "o.apng")
    assert made.status == 0, made.err
    assert video.read_video(Path("o.apng"))[0].shape == (4, 96, 112, 3)
    made = flow("interp", clips / "take1_00.mp4", "-m", "run", "-o", "o2.apng")
    assert made.status == 0, made.err
    assert len(video.read_video(Path("o2.apng"))[0]) == 18
    told = json.loads(flow("info", "run/model.safetensors", "--json").out)
    assert (told["dataset"], told["steps"]) == ("drawings", 2)


def test_check_only_says_what_is_there(flow, clips: Path) -> None:
    result = flow("train", "--network", "motion", clips, "--check")
    assert (result.status, result.out) == (0, "4 clips of 36 frames and 1 picture found\n")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--codec", "pixels"], ["--codec", "for --network transformer", "leave it out"]),
        (["--place"], ["--place", "transformer"]),
        (["--preset", "tiny"], ["--preset", "transformer"]),
        (["--steps", 0], ["--steps"]),
        (["--init", "nothing"], ["no model 'nothing'"]),
        (["--init", "theatre"], ["theatre is not a motion model"]),
        (["--photos", "nowhere"], ["nowhere", "no such folder"]),
        (["--resume"], ["nothing to resume in run"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_refusals_are_one_line(flow, clips: Path, flags, words) -> None:
    refused(flow("train", "--network", "motion", clips, *flags), *words)
    assert not Path("run/config.toml").exists()


def refused(result, *words: str) -> None:
    assert (result.status, result.out) == (2, "")
    assert re.fullmatch(r"flowcept: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err


def test_networks_are_not_mixed_up(flow, clips: Path, whole: Path) -> None:
    refused(flow("train", clips, "--layers", 3), "--layers", "for --network motion")
    refused(flow("train", clips, "--network", "magic"), "transformer or motion", "'magic'")
    refused(flow("train", clips, "-o", whole, "--resume"), "add --network motion")
    refused(flow("train", "--network", "motion", clips, "-o", whole), "add --resume")


def test_folders_without_a_usable_clip(flow) -> None:
    train = ["train", "--network", "motion"]
    Path("empty").mkdir()
    refused(flow(*train, "empty"), "no clips here")
    Path("pictures").mkdir()
    cv2.imwrite("pictures/one.png", texture(0))
    refused(flow(*train, "pictures"), "only pictures")
    Path("short").mkdir()
    video.write_video(Path("short/two.gif"), np.stack(panned(texture(1), 9, 9, 2)), 12)
    refused(flow(*train, "short"), "2 frames, at least 3 are needed")
    Path("still").mkdir()
    still = np.stack([np.full((96, 96, 3), 9, np.uint8)] * 9)
    video.write_video(Path("still/one.apng"), still, 12)
    result = flow(*train, "still", *FAST)
    assert result.status == 2
    assert "nothing moves" in result.err
    assert not Path("run/config.toml").exists(), "the folder is free for other clips"
