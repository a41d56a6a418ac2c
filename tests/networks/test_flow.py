"""Flow, warping and splatting against motions that are known.

Shape suffixes: N pictures, C channels, H W height and width, 2 x and y.
"""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowcept.networks.flow import (
    DisConfig,
    DisEstimator,
    backward_warp,
    better_flow,
    matched_cells,
    photometric_error,
    splat,
)


def texture(height: int, width: int, seed: int = 0, grain: int = 6) -> Tensor:
    """A smooth random picture [3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, height // grain + 2, width // grain + 2, generator=generator)
    fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return torch.tanh(fine[0])


def constant_flow(x: float, y: float, height: int, width: int) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, height, width).contiguous()


def test_splat_of_a_whole_shift_is_exact() -> None:
    picture = texture(20, 30)[None]
    weight = torch.rand(1, 20, 30) + 0.1
    moved, cover = splat(picture, constant_flow(3, -2, 20, 30), weight)
    torch.testing.assert_close(moved[..., :18, 3:], picture[..., 2:, :27], rtol=0, atol=1e-6)
    torch.testing.assert_close(cover[:, :18, 3:], weight[:, 2:, :27])
    assert cover[:, 18:].abs().max() == 0


def test_hole_is_filled_from_around_it() -> None:
    """The left half runs away to the left: what it leaves has no source, but gets a colour."""
    picture = torch.full((1, 3, 32, 32), 0.25)
    flow = torch.zeros(1, 2, 32, 32)
    flow[:, 0, :, :16] = -8
    moved, cover = splat(picture, flow, torch.ones(1, 32, 32))
    assert cover[0, 16, 12] == 0
    torch.testing.assert_close(moved, picture)


def test_bad_matches_count_less_where_two_pixels_land() -> None:
    values = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    flow = torch.zeros(1, 2, 1, 2)
    flow[0, 0, 0, 1] = -1  # the second lands upon the first
    moved, _ = splat(values, flow, torch.tensor([[[1.0, 3.0]]]))
    assert moved[0, 0, 0, 0] == pytest.approx(0.75)


def test_splat_and_backward_warp_undo_each_other() -> None:
    picture = texture(24, 24)[None]
    flow = constant_flow(2, 1, 24, 24)
    moved, _ = splat(picture, flow, torch.ones(1, 24, 24))
    back = backward_warp(moved, flow)
    torch.testing.assert_close(back[..., :22, :21], picture[..., :22, :21], rtol=0, atol=1e-5)


def test_zero_flow_keeps_every_bit() -> None:
    picture = torch.rand(2, 3, 37, 53)
    assert torch.equal(backward_warp(picture, torch.zeros(2, 2, 37, 53)), picture)


def test_gradients_of_splat_are_those_of_differences() -> None:
    values = torch.rand(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    flow = (torch.rand(1, 2, 6, 7, dtype=torch.float64) * 2 - 1).requires_grad_()
    weight = torch.rand(1, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, f, w: splat(v, f, w, 0)[0], (values, flow, weight))


@pytest.mark.parametrize("shift", [(5, 0), (-3, 4)])
def test_estimator_finds_a_shift(shift: tuple[int, int]) -> None:
    whole = texture(96, 112)
    x, y = shift
    first = whole[:, 16:80, 16:96]
    second = whole[:, 16 - y : 80 - y, 16 - x : 96 - x]
    flow = DisEstimator()(first, second)
    inside = flow[:, 8:-8, 8:-8]
    error = inside - torch.tensor([x, y]).view(2, 1, 1)
    assert error.norm(dim=0).mean() < 0.2


def test_estimator_follows_a_rotation() -> None:
    """3 degrees: moved along the flow, the second picture is the first one again."""
    first = texture(96, 96)
    turn = cv2.getRotationMatrix2D((47.5, 47.5), 3.0, 1.0)
    first_HW3 = np.ascontiguousarray(first.permute(1, 2, 0).numpy())
    second_HW3 = cv2.warpAffine(first_HW3, turn, (96, 96), borderMode=cv2.BORDER_REFLECT)
    second = torch.from_numpy(second_HW3).permute(2, 0, 1)
    flow = DisEstimator()(first, second)
    middle = (..., slice(16, 80), slice(16, 80))
    before = (first - second)[middle].square().mean()
    after = (first - backward_warp(second[None], flow[None])[0])[middle].square().mean()
    assert 10 * torch.log10(before / after) > 15


def test_match_finds_what_jumps_far() -> None:
    """A patch of 24 px jumps by 56 px over a plain ground: further than DIS alone looks."""
    first = torch.zeros(3, 128, 128)
    second = torch.zeros(3, 128, 128)
    patch = texture(24, 24, seed=3, grain=4)
    first[:, 48:72, 16:40] = patch
    second[:, 48:72, 72:96] = patch
    flow = matched_cells(first, second, 12)
    found = flow[:, 54:66, 22:34].mean((1, 2))
    assert abs(found[0] - 56) < 8 and abs(found[1]) < 8
    errors = [
        photometric_error(first[None], second[None], estimator(first, second)[None])[
            0, 48:72, 16:40
        ]
        for estimator in (DisEstimator(DisConfig(match=False)), DisEstimator())
    ]
    assert errors[1].mean() < 0.5 * errors[0].mean()


def test_worse_flow_is_never_taken() -> None:
    first = texture(64, 64)
    zero, wrong = torch.zeros(2, 64, 64), torch.full((2, 64, 64), 9.0)
    assert torch.equal(better_flow(first, first, zero, wrong), zero)
    assert better_flow(first, first, wrong, zero)[:, :40, :40].abs().max() == 0


def test_answer_does_not_depend_on_what_was_asked_before() -> None:
    """OpenCV's object keeps state after a call with an initial flow."""
    first, second, other = (texture(64, 64, seed) for seed in range(3))
    fresh = DisEstimator()(first, second)
    used = DisEstimator()
    used(other, second)
    assert torch.equal(used(first, second), fresh)


def test_any_size_and_bytes() -> None:
    first = (texture(11, 70) * 127 + 127).to(torch.uint8)
    flow = DisEstimator()(first, first.roll(1, 2))
    assert flow.shape == (2, 11, 70) and flow.isfinite().all()
    assert DisEstimator()(first, first).abs().max() == 0
