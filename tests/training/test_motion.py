"""Training of motion: what its windows, losses and laws are."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_motion import WINDOWS, Quick, drawn_clips

from flowcept import model_file
from flowcept.data.layers import LayersConfig, layered_clip
from flowcept.data.motion_windows import (
    MotionData,
    WindowDrawer,
    WindowsConfig,
    held_windows,
    share_of,
    take_of,
    varied,
)
from flowcept.networks.flow import backward_warp
from flowcept.networks.motion import NUM_CUES, WIDEST, GapLaw, MotionNetwork
from flowcept.training.clock import Clock
from flowcept.training.console import Console
from flowcept.training.footage import find, gathered
from flowcept.training.motion import SHIPPED_FROM, laplacian_loss, main
from flowcept.training.motion_law import LawExamples, alike, fit_law, parted, share_within


def data_of(folder: Path, cache: Path, windows: WindowsConfig = WINDOWS) -> MotionData:
    estimator = Quick()
    console, clock = Console(quiet=True), Clock(cache / "clock.json")
    found = gathered(find(folder, "", 3), cache, windows, estimator, console, clock)
    return MotionData(found, windows, estimator)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MotionData:
    """Four clips of 9 frames in which a texture moves, and one photograph."""
    root = tmp_path_factory.mktemp("motion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowcept.training.footage.WORKING_SIDE", 96)
        patch.setattr("flowcept.networks.motion.WORKING_SIDE", 96)
        return data_of(drawn_clips(root / "clips"), root / "cache")


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
    told = law(cues).detach()
    score = float(told.gather(1, between[:, None]).mean())
    inside = float(share_within(told, between, 0.8).mean())
    assert score > -2.6 > -math.log(20)
    assert inside > 0.7, "a sharp law of whole numbers covers more than it says"


def test_numbers_count_alike() -> None:
    between = torch.tensor([0, 0, 0, 3, 3, 7])
    weights = alike(between)
    assert torch.allclose(weights, torch.tensor([1 / 9] * 3 + [1 / 6] * 2 + [1 / 3]))


def test_far_pairs_are_no_examples() -> None:
    between, held = torch.arange(30), torch.arange(30) % 2 == 1
    table = {"cues": torch.arange(30.0)[:, None], "between": between, "held": held}
    learned, kept = parted(table, 40)
    assert learned.between_N.tolist() == list(range(0, WIDEST + 1, 2))
    assert kept.cue_ND[:, 0].tolist() == list(range(1, WIDEST, 2))
    assert parted(table, 5)[0].between_N.tolist() == [0, 2, 4]


def test_central_share() -> None:
    law = torch.tensor([0.05, 0.1, 0.35, 0.4, 0.02, 0.08])
    inside = torch.cat([share_within(law.log()[None], torch.tensor([n]), 0.8) for n in range(6)])
    assert torch.allclose(inside.float(), torch.tensor([0, 0.5, 1, 1, 0, 0]), atol=1e-5)
    assert float((law * inside).sum()) == pytest.approx(0.8), "of a law that is right"


def test_small_shots_are_cut_into_crops_that_fit(data: MotionData) -> None:
    large = replace(data.config, sides=(176,))
    other = MotionData(data.folder, large, data.estimator)
    assert WindowDrawer(other, np.random.default_rng(0)).batch().left_N3HW.shape[-1] == 96


# ---- a state of the shipped file's run becomes a model file --------------------------------------


def exported(monkeypatch: pytest.MonkeyPatch, state: Path, model: Path, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["motion", "--export", str(state), "-o", str(model), *flags])
    main()


def test_a_state_becomes_a_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = MotionNetwork().state_dict()
    state, model = tmp_path / "state.pt", tmp_path / "again.safetensors"
    torch.save({"average": kept, "step": 17, "seconds": 7200.0, "rng": "{}"}, state)
    exported(monkeypatch, state, model)
    made = model_file.load(model)
    assert all(torch.equal(kept[name], x) for name, x in made.network.motion.state_dict().items())
    card = made.card
    assert (card.steps, card.hours, card.any_size, card.max_length) == (17, 2.0, True, 42)
    assert card.dataset == SHIPPED_FROM
    for author in ("Blender Foundation", "Intel", "CC-BY-4.0", "Flutter", "Piero Toffanin"):
        assert author in card.dataset


def test_the_law_is_taught_anew_by_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cues by which ten frames lie between any two pictures; all else stays as it was."""
    kept, rng = MotionNetwork().state_dict(), np.random.default_rng(0)
    state, model, table = tmp_path / "state.pt", tmp_path / "made.safetensors", tmp_path / "law.npz"
    torch.save({"average": kept, "step": 17, "seconds": 7200.0}, state)
    cues = rng.normal(size=(40, NUM_CUES)).astype(np.float32)
    np.savez(table, cues=cues, between=np.full(40, 10), held=np.zeros(40, bool))
    exported(monkeypatch, state, model, "--law", str(table))
    made = model_file.load(model).network.motion
    same = {name for name, x in made.state_dict().items() if torch.equal(kept[name], x)}
    assert {name for name in kept if not name.startswith("law.")} == same
    assert (made.law(torch.from_numpy(cues)).argmax(1) == 10).all()

    table.write_text("no table")
    with pytest.raises(SystemExit) as stop:
        exported(monkeypatch, state, tmp_path / "none.safetensors", "--law", str(table))
    assert stop.value.code == 2 and not (tmp_path / "none.safetensors").exists()
    assert capsys.readouterr().err == f"{table} is not a law.npz of a training's cache\n"


@pytest.mark.parametrize("content", ["small", "other", "text", None])
def test_no_model_is_made_of_other_states(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
) -> None:
    state, model = tmp_path / "state.pt", tmp_path / "made.safetensors"
    if content == "small":
        few = dict(list(MotionNetwork().state_dict().items())[:3])
        torch.save({"average": few, "step": 3, "seconds": 1.0}, state)
    elif content == "other":
        torch.save({"step": 3}, state)
    elif content:
        state.write_text(content)
    with pytest.raises(SystemExit) as stop:
        exported(monkeypatch, state, model)
    assert stop.value.code == 2 and not model.exists()
    assert capsys.readouterr().err == f"{state} is not a state of a motion training\n"
