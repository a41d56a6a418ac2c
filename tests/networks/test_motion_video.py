"""Motion as a model: frames at their places between given pictures, and nothing beside that.

Shape suffixes as in ``flowcept.networks.motion_video``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_device import FakeDevice
from fixtures_model import SMALL_MOTION
from test_flow import texture
from test_motion import decibels, shifted
from torch import Tensor

from flowcept import model_file
from flowcept.codecs import CodecConfig
from flowcept.errors import UserError
from flowcept.model_file import Weights
from flowcept.networks import motion, motion_video
from flowcept.networks.flow import DisEstimator
from flowcept.networks.motion import (
    OPEN_SHARE,
    WIDEST,
    MotionNetwork,
    Neighbour,
    gap_logits,
    guess,
    total_law,
)
from flowcept.networks.motion_video import MotionVideo
from flowcept.networks.text import TextConfig
from flowcept.process import state as frames
from flowcept.process.posterior import BEYOND
from flowcept.process.sampler import clip_generator, latents_of
from flowcept.process.state import FrameState, Given, PromptTokens, Rest, Role
from flowcept.sampling import sample_clips
from flowcept.settings import SampleConfig
from flowcept.training.motion import motion_weights

NO_WORDS = PromptTokens(torch.zeros(0, 1), (0,))
LAW = torch.tensor([0.1, 0.5, 0.0, 0.4]).clamp(min=1e-9).log()  # of 0..3 frames in a gap


@pytest.fixture(autouse=True)
def _small_pictures_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests' pictures are not enlarged to 256 px before motion is looked for."""
    monkeypatch.setattr(motion, "WORKING_SIDE", 64)
    monkeypatch.setattr(motion, "LAW_SIDE", 32)


@pytest.fixture
def weights() -> Weights:
    """A model whose every weight counts."""
    torch.manual_seed(0)
    network = MotionNetwork(SMALL_MOTION)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return motion_weights(network.eval().requires_grad_(requires_grad=False))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that cost nothing, and a law that is known."""
    left = lambda measured, number, _counts: measured.picture_GCHW[number]  # noqa: E731
    monkeypatch.setattr(motion_video.Measured, "gap", left)
    monkeypatch.setattr(motion_video, "guess", lambda _network, left_CHW, _t: (left_CHW, None))
    monkeypatch.setattr(motion_video, "working_size", lambda x: x)
    monkeypatch.setattr(motion_video, "gap_logits", lambda *_: LAW)


def moved(*places: float, height: int = 48, width: int = 64) -> Tensor:
    """Pictures of one texture that has moved right by so many pixels: [G, 3, H, W]."""
    whole = texture(height, width + 32)
    return torch.stack([whole[:, :, 16 - round(x) : 16 - round(x) + width] for x in places])


def state_of(given_GCHW: Tensor, counts: list[int], time: float = 0.0, seed: int = 0) -> FrameState:
    """Given pictures with so many frames of noise in each gap, at this time."""
    generator = torch.Generator().manual_seed(seed)
    parts, roles, times = [], [], []
    for picture_CHW, count in zip(given_GCHW, [*counts, 0], strict=True):
        noise = torch.randn(count, *picture_CHW.shape, generator=generator)
        parts += [picture_CHW[None], noise]
        roles += [Role.ACTIVE, *[Role.GENERATED] * count]
        times += [1.0, *[time] * count]
    roles[-1] = Role.PASSIVE
    return FrameState(
        torch.cat(parts),
        torch.tensor(times),
        torch.tensor(roles),
        torch.tensor([0.5]),
        torch.tensor([False]),
        (len(roles),),
    )


def sampled(
    weights: Weights, given: list[Given], seeds: list[int], **config: object
) -> list[Tensor]:
    """Latents of a clip for each start."""
    controls = replace(SampleConfig(steps=1, guidance=1.0), **config)
    blank, generators = [""] * len(given), [clip_generator(seed) for seed in seeds]
    return latents_of(sample_clips(weights, given, blank, blank, generators, controls))


def between(given_GCHW: Tensor, missing: int | None = None) -> Given:
    """Pictures with every gap between them open, for exactly so many frames if told."""
    gaps = (False, *[True] * (len(given_GCHW) - 1), False)
    return Given(given_GCHW, gaps, missing and tuple(missing * gap for gap in gaps))


# ---- velocities ------------------------------------------------------------------------------


def test_velocity_leads_to_the_guess_at_its_place(weights: Weights) -> None:
    """At whatever time, by what is left of the denoising; finished frames are left alone."""
    pictures, network = moved(0, 6), weights.network
    state = state_of(pictures, [3], time=0.25)
    state = replace(state, time_F=torch.tensor([1, 0.25, 0.5, 1.0, 1]))
    velocity = network(state, NO_WORDS).velocity_FCHW
    gap = motion.measured_gap(DisEstimator(), *pictures)
    for row, t in ((1, 0.25), (2, 0.5)):
        made, _ = guess(network.motion, gap, t)
        reached = state.latent_FCHW[row] + (1 - state.time_F[row]) * velocity[row]
        torch.testing.assert_close(reached, made, rtol=0, atol=1e-5)
    assert not velocity[[0, 3, 4]].any()


def test_shift_of_the_process_counts(weights: Weights) -> None:
    network = MotionVideo(SMALL_MOTION, shift=3.0)
    network.load_state_dict(weights.network.state_dict())
    state = state_of(moved(0, 6), [1], time=0.5)
    progress = 0.5 / (0.5 + 3 * 0.5)
    made, _ = guess(network.motion, motion.measured_gap(DisEstimator(), *moved(0, 6)), 0.5)
    reached = state.latent_FCHW[1] + (1 - progress) * network(state, NO_WORDS).velocity_FCHW[1]
    torch.testing.assert_close(reached, made, rtol=0, atol=1e-5)


def test_made_frames_change_nothing(weights: Weights) -> None:
    """A frame follows from the given pictures, whatever flows or is finished beside it."""
    state = state_of(moved(0, 4, 8), [2, 1])
    plain = weights.network(state, NO_WORDS).velocity_FCHW[1] + state.latent_FCHW[1]
    other = state.latent_FCHW.clone()
    other[[2, 4]] = 9.0
    state = replace(state, latent_FCHW=other, time_F=torch.tensor([1, 0, 1, 1, 0, 1.0]))
    again = weights.network(state, NO_WORDS).velocity_FCHW[1] + state.latent_FCHW[1]
    assert torch.equal(plain, again)


def test_pictures_beyond_bend_the_way_by_their_distance() -> None:
    """Distances are in lengths of the gap, which has two frames, the others one and none."""
    pictures = moved(0, 1, 5, 12)
    network = MotionVideo(SMALL_MOTION, 1.0)
    measured = motion_video.Measured(network.motion, network.estimator, pictures)
    found = measured.gap(1, [1, 2, 0])
    beyond = Neighbour(pictures[0], 2 / 3), Neighbour(pictures[3], 1 / 3)
    expected = motion.measured_gap(DisEstimator(), pictures[1], pictures[2], *beyond)
    for one, other in zip(vars(found.flows).values(), vars(expected.flows).values(), strict=True):
        assert torch.equal(one, other) and one.any()
    ends = measured.gap(0, [1, 2, 0]).flows
    assert not ends.bend_left_N2HW.any() and ends.bend_right_N2HW.any()


def test_what_is_measured_is_measured_once_a_request(weights: Weights) -> None:
    asked = []
    plain = weights.network.estimator

    def counted(first_CHW: Tensor, second_CHW: Tensor) -> Tensor:
        asked.append(first_CHW)
        return plain(first_CHW, second_CHW)

    weights.network.estimator = counted
    start = between(moved(0, 3, 6))
    sampled(weights, [start, start], [1, 2], steps=3, frames=9)
    assert len(asked) == 2 * (4 + 4)  # of each clip's gaps: flows both ways, and for their laws
    assert len({id(first) for first in asked}) == len(asked)


# ---- laws ------------------------------------------------------------------------------------


def test_law_of_sizes_is_of_the_sum_of_open_gaps(weights: Weights) -> None:
    pictures, network = moved(0, 2, 8), weights.network
    laws = [gap_logits(network.motion, DisEstimator(), *pictures[g : g + 2]) for g in (0, 1)]
    state = state_of(pictures, [1, 0])
    said = network(state, NO_WORDS)
    torch.testing.assert_close(said.size_logits_BK[0], total_law(torch.stack(laws)))

    means = [float((law.exp() * torch.arange(7)).sum()) for law in laws]
    missing = said.log_missing_F.exp()
    expected = torch.tensor([(means[0] - 1) / 2, (means[0] - 1) / 2, means[1]])
    torch.testing.assert_close(missing[:3], expected, rtol=1e-4, atol=1e-5)

    closed = replace(state, role_F=state.role_F.clone())
    closed.role_F[2] = Role.PASSIVE  # between the second picture and the third
    alone = network(closed, NO_WORDS).size_logits_BK
    torch.testing.assert_close(alone[0], laws[0], rtol=0, atol=1e-5)


def test_more_frames_than_expected_leave_a_share(weights: Weights) -> None:
    said = weights.network(state_of(moved(0, 2), [9]), NO_WORDS)
    assert said.log_missing_F.isfinite().all()


def test_laws_of_a_batch_have_one_width(weights: Weights) -> None:
    states = [state_of(moved(0, 2), [0]), state_of(moved(0, 2, 4), [0, 1])]
    prompts = frames.concat([NO_WORDS] * 2)
    said = weights.network(frames.concat(states), prompts).size_logits_BK
    assert said.shape == (2, 13)
    assert (said[0, 7:] == BEYOND).all() and (said[:, :7] > BEYOND).all()


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("count", "steps"), [(2, 1), (3, 1), (3, 2)])
def test_numbers_of_frames_follow_the_law(weights: Weights, count: int, steps: int) -> None:
    """Total variation of 400 draws to the law: by chance .03 to .05, of a law shifted by one .5."""
    given = [between(moved(*range(count), height=8, width=8))] * 400
    made = sampled(weights, given, [*range(400)], steps=steps, max_length=99)
    law = total_law(torch.stack([LAW] * (count - 1))).exp()
    found = torch.bincount(torch.tensor([len(x) - count for x in made]), minlength=len(law)) / 400
    assert 0.5 * float((found - law).abs().sum()) < 0.09


@pytest.mark.usefixtures("cheap")
def test_both_gaps_get_their_frames(weights: Weights) -> None:
    pictures = moved(0, 3, 9)
    made = sampled(weights, [between(pictures)] * 30, [*range(30)], max_length=99, min_length=5)
    for clip in made:  # of two frames or more in equal gaps, each a copy of the picture before it
        apart = [(clip - picture).abs().amax((1, 2, 3)) for picture in pictures]
        copies = [int((apart_F < 1e-5).sum()) for apart_F in apart]
        assert min(copies[:2]) >= 2 and copies[2] == 1


# ---- whole clips -----------------------------------------------------------------------------


def test_frames_lie_where_they_should() -> None:
    """Between two pictures of a texture that moves by 8 px, with nothing learned."""
    whole = texture(160, 160)
    weights = motion_weights(MotionNetwork(SMALL_MOTION).eval())
    ends = torch.stack([shifted(whole, x) for x in (0, 8)])
    (made,) = sampled(weights, [between(ends, 3)], [0])
    assert torch.equal(made[[0, 4]], ends)
    for number in (1, 2, 3):
        assert decibels(made[number], shifted(whole, 2 * number)) > 35
        assert decibels(made[number], shifted(whole, 2 * number - 2)) < 30


@pytest.mark.parametrize("settings", [{"steps": 4}, {"steps": 3, "refine": 0.5}])
def test_more_steps_make_the_same_frames(weights: Weights, settings: dict[str, object]) -> None:
    start = between(moved(0, 5, 7), 2)
    (plain,), (other,) = sampled(weights, [start], [0]), sampled(weights, [start], [1], **settings)
    torch.testing.assert_close(plain, other, rtol=0, atol=1e-5)


def test_a_clip_is_the_same_alone_and_in_a_batch(weights: Weights) -> None:
    starts = [between(moved(0, 6), 1), between(moved(0, 5, 7)), between(moved(3, 0))]
    together = sampled(weights, starts, [4, 5, 6], steps=2)
    turned = sampled(weights, starts[::-1], [6, 5, 4], steps=2)[::-1]
    alone = [sampled(weights, [start], [seed], steps=2)[0] for start, seed in
             zip(starts, (4, 5, 6), strict=True)]  # fmt: skip
    for one, other, single in zip(together, turned, alone, strict=True):
        assert torch.equal(one, other) and torch.equal(one, single)


def test_words_cost_and_change_nothing(weights: Weights) -> None:
    """Not even a second evaluation for guidance."""
    calls, plain = [], weights.network.forward
    weights.network.forward = lambda state, *rest: (
        calls.append(state.lengths) or plain(state, *rest)
    )
    controls = SampleConfig(steps=1, guidance=5.0)
    start, generators = between(moved(0, 6), 1), [clip_generator(0)]
    steps = sample_clips(weights, [start], ["a dog"], ["a cat"], generators, controls)
    (told,) = latents_of(steps)
    assert all(len(lengths) == 1 for lengths in calls)
    assert torch.equal(told, sampled(weights, [start], [0])[0])


def test_compiled_blocks_say_the_same(weights: Weights) -> None:
    state = state_of(moved(0, 6), [1])
    plain = weights.network(state, NO_WORDS).velocity_FCHW
    weights.network.compile_blocks(backend="eager")
    torch.testing.assert_close(weights.network(state, NO_WORDS).velocity_FCHW, plain)


def test_what_is_on_a_device_stays_there(weights: Weights) -> None:
    """Flows come from the processor and go where the pictures are; nothing mixes the two."""
    start = between(moved(0, 6, 9))
    (plain,) = sampled(weights, [start], [3], steps=2)
    with FakeDevice() as device:
        law = device.module(weights.network).motion.law
        law.mean_D, law.spread_D = law.mean_D.to("cuda"), law.spread_D.to("cuda")
        start = replace(start, latent_FCHW=start.latent_FCHW.to("cuda"))
        (made,) = sampled(weights, [start], [3], steps=2)
        assert made.is_cuda
        assert torch.equal(made.cpu(), plain)


def test_no_view_of_the_whole_clip_is_kept(weights: Weights) -> None:
    rest = Rest(("clip",), torch.tensor([True, False, True]), False)
    weights.network(state_of(moved(0, 6), [1]), NO_WORDS, rest)
    kept = rest.memory["motion"]["clip"].picture_GCHW
    assert kept.untyped_storage().nbytes() == kept.nbytes


# ---- the file --------------------------------------------------------------------------------


def test_file_comes_back(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_file.save(weights, path)
    again = model_file.load(path)
    assert again.card == weights.card
    assert again.process.first and again.card.any_size
    state = state_of(moved(0, 6), [2])
    for name, x in vars(weights.network(state, NO_WORDS)).items():
        assert x is None or torch.equal(x, vars(again.network(state, NO_WORDS))[name]), name


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"codec": CodecConfig("autoencoder", 4, 3, 4)}, "pixels"),
        ({"codec": CodecConfig("autoencoder", 4, 4, 4)}, "disagree"),
        ({"size": (32, 32)}, "disagree"),
        ({"size": (0, 32)}, "size"),
        ({"text": TextConfig(kind="none", width=2)}, "disagree"),
    ],
)
def test_cards_that_make_no_sense(
    weights: Weights, tmp_path: Path, change: dict[str, object], word: str
) -> None:
    path = tmp_path / "model.safetensors"
    model_file.save(replace(weights, card=replace(weights.card, **change)), path)
    with pytest.raises(UserError, match=word):
        model_file.load(path)


def test_damaged_file(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_file.save(weights, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        model_file.load(path)


def test_its_description(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_file.save(weights, path)
    told = model_file.describe(path)
    assert told["frames"] == "any size at 24 per second"
    assert told["lengths"] == "2 to 8 frames, from a given picture to the next"
    assert told["tasks"] == "interp"


def test_a_law_that_reaches_further(weights: Weights) -> None:
    state = state_of(moved(0, 6), [0])
    short, even = weights.network(state, NO_WORDS).size_logits_BK[0].softmax(0), OPEN_SHARE
    assert weights.network.grow_law(20).most_missing == weights.network.largest_size == 20
    long = weights.network(state, NO_WORDS).size_logits_BK[0].softmax(0)
    assert len(short) == 7
    assert len(long) == 21
    told = [short - even / 7, long[:7] - even / (WIDEST + 1)]  # what is not even keeps its ratios
    torch.testing.assert_close(*(x / x[0] for x in told), rtol=1e-4, atol=0)
