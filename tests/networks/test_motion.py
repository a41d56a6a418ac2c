"""The motion network: what it does before it has learned, and the laws of gaps.

Shape suffixes as in ``flowcept.networks.motion``.
"""

import math
from dataclasses import replace

import pytest
import torch
from test_flow import texture
from torch import Tensor

from flowcept.networks.flow import DisEstimator
from flowcept.networks.motion import (
    CURVATURE,
    Flows,
    MotionConfig,
    MotionNetwork,
    Neighbour,
    Plan,
    acceleration,
    dissolving,
    enlarged,
    gap_logits,
    guess,
    hand_made,
    measured_gap,
    painted,
    painted_in_turn,
    settled,
    total_law,
)

SMALL = MotionConfig(
    features=8, compared=4, coarse=(8, 8, 8), fine=(8, 8, 8), law_hidden=8, most_missing=32
)


def shifted(whole: Tensor, x: float, side: int = 96, margin: int = 32) -> Tensor:
    """The middle of a picture whose content has moved right by whole pixels."""
    start = margin - round(x)
    return whole[:, margin : margin + side, start : start + side]


def decibels(made: Tensor, truth: Tensor) -> float:
    return float(10 * torch.log10(4 / (made - truth)[:, 8:-8, 12:-12].square().mean()))


def test_network_that_has_not_learned_is_the_blend_by_hand() -> None:
    torch.manual_seed(0)
    left, right = torch.rand(2, 2, 3, 64, 80) * 2 - 1
    flows = Flows(*(torch.randn(4, 2, 2, 64, 80) * 3))
    t = torch.tensor([0.25, 0.5])
    made = MotionNetwork(SMALL)(left, right, flows, t)
    hand = hand_made(left, right, flows, t)
    assert torch.equal(painted(left, right, made), painted(left, right, hand))
    assert torch.allclose(painted_in_turn(left, right, hand), painted(left, right, hand), atol=1e-5)


def test_default_network_fits_its_file() -> None:
    count = sum(p.numel() for p in MotionNetwork().parameters())
    assert 4 * count < 16e6, "16 MB of float32"


@pytest.mark.parametrize("size", [(33, 47), (96, 120)])
def test_still_pictures_keep_their_bits(size: tuple[int, int]) -> None:
    network = MotionNetwork(SMALL)
    for parameter in network.parameters():  # as if it had learned something
        torch.nn.init.normal_(parameter, std=0.05)
    picture = texture(*size)
    made, _ = guess(network, measured_gap(DisEstimator(), picture, picture), 0.3)
    assert torch.equal(made, picture)


def test_place_between_shifted_pictures() -> None:
    whole = texture(160, 160)
    gap = measured_gap(DisEstimator(), shifted(whole, 0), shifted(whole, 8))
    for t in (0.25, 0.5, 0.75):
        made, expected = guess(MotionNetwork(SMALL), gap, t)
        truth = shifted(whole, 8 * t)
        blend = torch.lerp(gap.left_CHW, gap.right_CHW, t)
        assert decibels(made, truth) > 35 > decibels(blend, truth) + 8
        assert expected.shape == truth.shape[1:] and (expected > 0).all()


def plan_of(made: Tensor, error: Tensor) -> Plan:
    """A plan that shows a picture, whatever is given, and expects an error [H, W] of it."""
    height, width = made.shape[-2:]
    none = torch.zeros(1, 4, height, width)
    place = torch.zeros(1, 2, 4, height, width)
    return Plan(place, none, made, error.log()[None, None], torch.zeros(1, 1, height, width))


def test_a_doubted_guess_dissolves_and_only_there() -> None:
    """On the left half a large error is expected, about as large as what it adds to a dissolve."""
    left, right = torch.rand(2, 1, 3, 64, 200) - 0.5
    t, error = torch.tensor([0.25]), torch.full((64, 200), 0.02)
    dissolve = torch.lerp(left, right, 0.25)
    made = (dissolve + 0.2).clamp(-1, 1)
    error[:, :100] = 0.4
    plan = dissolving(left, right, plan_of(made, error), t)
    shown = painted(left, right, plan)
    torch.testing.assert_close(shown[..., :80], dissolve[..., :80])
    assert torch.equal(shown[..., 120:], made[..., 120:])
    change = (shown - made).mean((0, 1, 2))
    assert (change.diff() > -1e-5).all() and change.diff().max() < 0.06, "no edge between both"
    torch.testing.assert_close(painted_in_turn(left, right, plan), shown)


def test_a_guess_far_from_a_dissolve_is_believed() -> None:
    """Things that moved far look quite unlike a dissolve: an error of a third of that is small."""
    left, right = torch.zeros(2, 1, 3, 64, 64)
    made = torch.ones(1, 3, 64, 64)
    plan = dissolving(left, right, plan_of(made, torch.full((64, 64), 0.4)), torch.tensor([0.5]))
    assert torch.equal(painted(left, right, plan), made)


def test_fields_that_landed_by_chance_become_smooth_and_only_there() -> None:
    """Doubted places take the field of the sure ones beside them; sure ones keep their bits."""
    generator = torch.Generator().manual_seed(0)
    error = torch.full((64, 200), 0.01)
    error[:, 95:105] = 0.3
    weight = torch.rand(1, 4, 64, 200, generator=generator).softmax(1)
    plan = replace(plan_of(torch.zeros(1, 3, 64, 200), error), weight_NMHW=weight)
    plan.place_NK4HW[..., :95], plan.place_NK4HW[..., 105:] = 3.0, 5.0
    plan.place_NK4HW[..., 95:105] = 40 * torch.rand(1, 2, 4, 64, 10, generator=generator)
    calm = settled(plan)
    for before, after in (
        (plan.place_NK4HW, calm.place_NK4HW),
        (plan.weight_NMHW, calm.weight_NMHW),
    ):
        assert torch.equal(after[..., :70], before[..., :70])
        assert torch.equal(after[..., 130:], before[..., 130:])
    between = calm.place_NK4HW[..., 95:105]
    assert between.min() > 2.9 and between.max() < 8, "chance, up to 40, hardly counts"
    step = [x.place_NK4HW.diff(dim=-1).abs().max() for x in (plan, calm)]
    assert step[0] > 20 and step[1] < 3, "neighbours come from near each other"
    torch.testing.assert_close(calm.weight_NMHW.sum(1), torch.ones(1, 64, 200))


def test_acceleration_of_a_parabola() -> None:
    """Positions u + 3 u^2 in pixels at u = -ratio, 0, 1: half the second derivative is 3."""
    for ratio in (0.5, 1.0, 2.0):
        flow = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1)
        outward = torch.tensor([-ratio + 3 * ratio**2, 0.0]).view(1, 2, 1, 1)
        assert acceleration(flow, outward, ratio)[0, 0, 0, 0] == pytest.approx(CURVATURE * 3)


def test_acceleration_is_never_longer_than_the_flow() -> None:
    flow, outward = torch.randn(2, 1, 2, 8, 8)
    bend = acceleration(flow, 50 * outward)
    assert (bend.norm(dim=1) <= flow.norm(dim=1) * 1.0001).all()


def test_pictures_beyond_the_gap_bend_the_way() -> None:
    """Content at 0, 2, 8, 18 px: halfway between the middle two it lies at 4.5, not at 5."""
    whole = texture(160, 200)
    pictures = [shifted(whole, x) for x in (0, 2, 8, 18)]
    # At half steps of a pixel: from the picture enlarged twice.
    truth = torch.nn.functional.interpolate(whole[None], (320, 400), mode="bicubic")[0]
    truth = truth[:, 64 : 64 + 192 : 2, 64 - 9 : 64 - 9 + 192 : 2]
    straight = measured_gap(DisEstimator(), pictures[1], pictures[2])
    bent = measured_gap(
        DisEstimator(),
        pictures[1],
        pictures[2],
        Neighbour(pictures[0], 1.0),
        Neighbour(pictures[3], 1.0),
    )
    scores = [decibels(guess(None, gap, 0.5)[0], truth) for gap in (straight, bent)]
    assert scores[1] > scores[0] + 3


def test_plan_of_half_the_size_paints_the_whole() -> None:
    whole = texture(320, 320, grain=16)
    left, right = (shifted(whole, x, 192, 64)[None] for x in (0, 8))
    small = measured_gap(DisEstimator(), *(x[0, :, ::2, ::2] for x in (left, right)))
    plan = hand_made(small.left_work_1CHW, small.right_work_1CHW, small.flows, torch.tensor([0.5]))
    made = painted(left, right, enlarged(plan, 192, 192))
    assert decibels(made[0], shifted(whole, 4, 192, 64)) > 30


def test_gap_law_is_normalised_and_knows_motion() -> None:
    torch.manual_seed(0)
    whole = texture(160, 160)
    network = MotionNetwork(SMALL)
    law = gap_logits(network, DisEstimator(), shifted(whole, 0), shifted(whole, 8))
    assert law.shape == (33,)
    assert float(law.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert law.isfinite().all()


def test_law_of_two_gaps_is_that_of_the_sum() -> None:
    laws = torch.log(torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).clamp(min=1e-30))
    expected = torch.tensor([0.10, 0.25, 0.40, 0.25, 0.0])
    torch.testing.assert_close(total_law(laws).exp(), expected, rtol=0, atol=1e-6)


def test_config_refuses_nothing_sized() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MotionConfig(law_hidden=0)
    with pytest.raises(ValueError, match="at most 1000"):
        MotionConfig(most_missing=1001)
    assert math.log(MotionConfig().most_missing) > math.log(31)
