"""Frames between two given pictures: moved along how things move, then corrected by a network.

First nothing is learned. The flow between the two pictures, both ways, bends where pictures before
or after are known; splatted to the frame's time it tells, twice, where each place comes from in
either picture. That makes four candidates, each picture along each field, and a blend of them that
is good already. Then a small network, at first without any effect, corrects:

* the coarse half, at a quarter of the size, sees how well features of the two pictures agree under
  each field and at small shifts of it, and moves the fields;
* the fine half, at half the size, sees the four candidates, moves the fields once more, says which
  candidate to trust where, adds the colour that none shows, and how far off it expects to be: where
  that is too far, the pictures dissolve into each other instead.

``MotionNetwork`` is fully convolutional: pictures of any size. How many frames lie between two
pictures is told by ``GapLaw`` from how far things moved.

Shape suffixes: N windows, C channels, H W height and width, h w those of cells, K = 2 fields (of
the left, of the right picture), 4 = x and y to the left picture, x and y to the right one, in
pixels; M = 4 candidates: left and right picture along field 0, then along field 1; G counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcept.networks.flow import (
    TRUST,
    MotionEstimator,
    backward_warp,
    photometric_error,
    splat,
)

CURVATURE = 0.7  # share of the measured acceleration that is believed
LEAST_TRUST = 1e-3  # of a candidate, so that no place is without any
GRAIN = 16  # pixels: sides of pictures are padded to multiples of it for the network
WORKING_SIDE = 256  # pixels, about: of the shorter side at which motion is estimated
# Units of what the last layers say: Adam moves each of their numbers by about the same in a step,
# and a step must not shake the picture.
COARSE_MOVE = 1.0  # pixels
FINE_MOVE = 0.5  # pixels
ADDED_COLOUR = 0.1  # of 2, the range of colours
FIRST_ERROR = 0.05  # that a network expects before it has learned: too small to dissolve
STILL_REACH = 4  # pixels: a place is still if nothing this near changes
STILL_FLOW = 0.05  # pixels of motion that still counts as none
# Where a guess gives way to a dissolve, from not at all to wholly; chosen on held-out windows.
DOUBTED = 0.15, 0.35  # expected mean absolute error, pictures in [-1, 1]
UNPROVEN = 0.8, 1.6  # the same as a share of how far guess and dissolve differ
DOUBT_REACH = 8  # pixels of the size of work: both are smoothed over twice this to each side
# Where fields become those of the surer places around, from not at all to wholly.
UNSETTLED = 0.05, 0.12  # expected mean absolute error, smoothed
SETTLING_REACH = 3  # pixels of the size of work: twice so far to each side lie places that count
LARGEST_GAP = 1000  # frames of which a law may know
WIDEST = 16  # frames between, of the pairs from which a law learns
OPEN_SHARE = 0.2  # of a law, over 0..WIDEST alike: what pictures tell of time is never certain
LAW_SIDE = 128  # pixels of the shorter side of the pictures from which a gap's size is told


# ---- motion without anything learned ---------------------------------------------------------


@dataclass(frozen=True)
class Flows:
    """How things move around a gap: what every frame within it is made from."""

    there_N2HW: Tensor  # left to right picture, pixels
    back_N2HW: Tensor  # right to left picture
    bend_left_N2HW: Tensor  # acceleration at the left picture, pixels per gap squared; 0: straight
    bend_right_N2HW: Tensor  # the same at the right picture


@dataclass(frozen=True)
class Fields:
    """Where each place of a frame within the gap comes from, told by both pictures' motion."""

    place_NK4HW: Tensor  # pixels to the left (x, y) and to the right picture (x, y)
    cover_NKHW: Tensor  # weight that landed on the place, at most 1; about 0 where hidden
    error_NKHW: Tensor  # photometric error of what landed there, in [0, 1]
    bend_NK2HW: Tensor  # what curvature moved it by, pixels


def acceleration(flow_N2HW: Tensor, outward_N2HW: Tensor, ratio: float = 1.0) -> Tensor:
    """Half the second derivative of the motion, in pixels per gap squared, damped and bounded.

    ``flow`` leads over the gap, ``outward`` from the same picture away from it, to one that lies
    ``ratio`` gaps beyond. Under constant acceleration a pixel moves by ``f u + a (u^2 - u)`` at
    place u, which ``outward`` gives at ``u = -ratio``. Never longer than the flow.
    """
    bend = (outward_N2HW + ratio * flow_N2HW) / (ratio * (1 + ratio))
    longest = flow_N2HW.norm(dim=1, keepdim=True)
    length = (CURVATURE * bend).norm(dim=1, keepdim=True)
    believed: Tensor = CURVATURE * bend * (longest / length.clamp(min=1e-6)).clamp(max=1)
    return believed


def fields_at(left_NCHW: Tensor, right_NCHW: Tensor, flows: Flows, t_N: Tensor) -> Fields:
    """Both fields at place ``t``, 0 at the left and 1 at the right picture, splatted there."""
    first = _landed(
        left_NCHW, right_NCHW, flows.there_N2HW, flows.bend_left_N2HW, t_N.view(-1, 1, 1, 1)
    )
    second = _landed(
        right_NCHW, left_NCHW, flows.back_N2HW, flows.bend_right_N2HW, 1 - t_N.view(-1, 1, 1, 1)
    )
    (near, far, bend, error, cover), (near_2, far_2, bend_2, error_2, cover_2) = first, second
    return Fields(
        torch.stack([torch.cat([near, far], 1), torch.cat([far_2, near_2], 1)], 1),
        torch.stack([cover, cover_2], 1).clamp(max=1),
        torch.stack([error, error_2], 1),
        torch.stack([bend, bend_2], 1),
    )


def _landed(
    near_NCHW: Tensor, far_NCHW: Tensor, flow_N2HW: Tensor, bend_N2HW: Tensor, u_N111: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the pixels of the near picture know once they are at ``u``: way to the near and to the
    far picture, way that curvature moved them, photometric error, cover."""
    curved = bend_N2HW * (u_N111.square() - u_N111)
    moved = flow_N2HW * u_N111 + curved
    error_NHW = photometric_error(near_NCHW, far_NCHW, flow_N2HW)
    known = torch.cat([-moved, flow_N2HW - moved, curved, error_NHW[:, None]], 1)
    landed, cover_NHW = splat(known, moved, torch.exp(-TRUST * error_NHW))
    return landed[:, :2], landed[:, 2:4], landed[:, 4:6], landed[:, 6], cover_NHW


def candidates(left_NCHW: Tensor, right_NCHW: Tensor, place_NK4HW: Tensor) -> Tensor:
    """Each picture along each field: [N, M, C, H, W]."""
    moved = [
        backward_warp(picture, place_NK4HW[:, k, 2 * side : 2 * side + 2])
        for k in range(2)
        for side, picture in enumerate((left_NCHW, right_NCHW))
    ]
    return torch.stack(moved, 1)


def trust(cover_NKHW: Tensor, t_N: Tensor) -> Tensor:
    """Logarithm of how much each candidate counts without anything learned: [N, M, H, W].

    A picture counts by nearness, 1 - t or t, and by its own cover: a place that nothing of the
    left picture reaches is hidden there. Along the other picture's field by the mean of both.
    """
    t = t_N.view(-1, 1, 1)
    left, right = cover_NKHW[:, 0], cover_NKHW[:, 1]
    both = (left + right) / 2
    weights = [(1 - t) * left, t * both, (1 - t) * both, t * right]
    return torch.log(torch.stack(weights, 1) + LEAST_TRUST)


@dataclass(frozen=True)
class Plan:
    """How to make a frame of the two pictures, at the size of the plan or at another."""

    place_NK4HW: Tensor  # where each place comes from, pixels
    weight_NMHW: Tensor  # of the candidates; they sum to 1
    colour_NCHW: Tensor  # added, in the pictures' units
    log_error_N1HW: Tensor  # expected logarithm of a pixel's mean absolute error
    motion_N1HW: Tensor  # how far anything moves there, pixels, as both pictures tell
    unmoved_N2HW: Tensor | None = None  # weight of both pictures as they stand; None: 0


def hand_made(left_NCHW: Tensor, right_NCHW: Tensor, flows: Flows, t_N: Tensor) -> Plan:
    """The frame at place ``t`` with nothing learned."""
    fields = fields_at(left_NCHW, right_NCHW, flows, t_N)
    error_N1HW = (fields.error_NKHW * fields.cover_NKHW).mean(1, keepdim=True)
    return Plan(
        fields.place_NK4HW,
        torch.softmax(trust(fields.cover_NKHW, t_N), 1),
        torch.zeros_like(left_NCHW),
        torch.log(error_N1HW + LEAST_TRUST),
        _farthest(fields),
    )


def _farthest(fields: Fields) -> Tensor:
    """The longest way of any field along x or y: [N, 1, H, W] in pixels."""
    return fields.place_NK4HW.abs().flatten(1, 2).amax(1, keepdim=True)


def painted(left_NCHW: Tensor, right_NCHW: Tensor, plan: Plan) -> Tensor:
    """The frame that a plan of the same size describes: [N, C, H, W], not clamped."""
    shown = candidates(left_NCHW, right_NCHW, plan.place_NK4HW)
    picture_NCHW = (shown * plan.weight_NMHW[:, :, None]).sum(1) + plan.colour_NCHW
    return _with_unmoved(picture_NCHW, left_NCHW, right_NCHW, plan)


def _with_unmoved(
    picture_NCHW: Tensor, left_NCHW: Tensor, right_NCHW: Tensor, plan: Plan
) -> Tensor:
    """A picture and, on top, both given ones as they stand, as far as they count."""
    if plan.unmoved_N2HW is None:
        return picture_NCHW
    left_N1HW, right_N1HW = plan.unmoved_N2HW[:, :1], plan.unmoved_N2HW[:, 1:]
    return picture_NCHW + left_N1HW * left_NCHW + right_N1HW * right_NCHW


def settled(plan: Plan) -> Plan:
    """The plan, with fields and weights of the surer places around where an error is expected.

    Where things hide each other, fields that landed by chance lie side by side: each pixel comes
    from elsewhere, and the picture bursts into specks. Smooth fields smear instead.
    """
    error_N1HW = plan.log_error_N1HW.exp()
    sure_N1HW = 1 / (error_N1HW.square() + 1e-3)
    share_N1HW = _ramp(_smoothed(error_N1HW, SETTLING_REACH), UNSETTLED)
    around_N1HW = _smoothed(sure_N1HW, SETTLING_REACH)

    def calm(x_NCHW: Tensor) -> Tensor:
        smooth_NCHW = _smoothed(sure_N1HW * x_NCHW, SETTLING_REACH) / around_N1HW
        return torch.lerp(x_NCHW, smooth_NCHW, share_N1HW)

    place_NK4HW = calm(plan.place_NK4HW.flatten(1, 2)).unflatten(1, (2, 4))
    return replace(plan, place_NK4HW=place_NK4HW, weight_NMHW=calm(plan.weight_NMHW))


def dissolving(left_NCHW: Tensor, right_NCHW: Tensor, plan: Plan, t_N: Tensor) -> Plan:
    """The plan, which gives way to a dissolve where the guess is probably wrong.

    That is where a large error is expected, and one about as large as the guess differs from a
    dissolve: then nothing speaks for the guess, and a torn shape looks worse than a double one.
    """
    t = t_N.view(-1, 1, 1, 1)
    dissolve_NCHW = torch.lerp(left_NCHW, right_NCHW, t)
    apart_NCHW = (painted(left_NCHW, right_NCHW, plan) - dissolve_NCHW).abs()
    error_N1HW = _smoothed(plan.log_error_N1HW.exp(), DOUBT_REACH)
    rounding = 0.01  # and more
    apart_N1HW = _smoothed(apart_NCHW.mean(1, keepdim=True), DOUBT_REACH) + rounding
    share = _ramp(error_N1HW, DOUBTED) * _ramp(error_N1HW / apart_N1HW, UNPROVEN)
    return replace(
        plan,
        weight_NMHW=(1 - share) * plan.weight_NMHW,
        colour_NCHW=(1 - share) * plan.colour_NCHW,
        unmoved_N2HW=torch.cat([share * (1 - t), share * t], 1),
    )


def _smoothed(x_NCHW: Tensor, reach: int) -> Tensor:
    """Means over squares that reach so many pixels to each side, twice."""
    for _ in range(2):
        x_NCHW = F.avg_pool2d(x_NCHW, 2 * reach + 1, 1, reach, count_include_pad=False)
    return x_NCHW


def _ramp(x: Tensor, ends: tuple[float, float]) -> Tensor:
    """From 0 to 1 between both ends, without a kink."""
    first, last = ends
    u = ((x - first) / (last - first)).clamp(0, 1)
    smooth: Tensor = u * u * (3 - 2 * u)
    return smooth


def painted_in_turn(left_NCHW: Tensor, right_NCHW: Tensor, plan: Plan) -> Tensor:
    """As ``painted`` up to rounding, in less memory: one candidate at a time."""
    picture_NCHW = plan.colour_NCHW
    for m in range(plan.weight_NMHW.shape[1]):
        field, side = divmod(m, 2)
        way_N2HW = plan.place_NK4HW[:, field, 2 * side : 2 * side + 2]
        moved_NCHW = backward_warp((left_NCHW, right_NCHW)[side], way_N2HW)
        picture_NCHW = torch.addcmul(picture_NCHW, moved_NCHW, plan.weight_NMHW[:, m : m + 1])
    return _with_unmoved(picture_NCHW, left_NCHW, right_NCHW, plan)


def enlarged(plan: Plan, height: int, width: int) -> Plan:
    """The plan for pictures of another size: motion in their pixels, all else interpolated."""
    rows, columns = plan.place_NK4HW.shape[-2:]
    if (rows, columns) == (height, width):
        return plan

    def sized(x_NCHW: Tensor) -> Tensor:
        return F.interpolate(x_NCHW, (height, width), mode="bilinear", align_corners=False)

    longer = plan.place_NK4HW.new_tensor([width / columns, height / rows] * 2).view(1, 1, 4, 1, 1)
    place_NK4HW = sized(plan.place_NK4HW.flatten(1, 2)).unflatten(1, (2, 4)).mul_(longer)
    return Plan(
        place_NK4HW,
        sized(plan.weight_NMHW),
        sized(plan.colour_NCHW),
        sized(plan.log_error_N1HW),
        sized(plan.motion_N1HW) * max(height / rows, width / columns),
        None if plan.unmoved_N2HW is None else sized(plan.unmoved_N2HW),
    )


# ---- what is learned -------------------------------------------------------------------------


@dataclass(frozen=True)
class MotionConfig:
    """Size of a ``MotionNetwork``."""

    features: int = 24  # channels that describe a cell of 4 x 4 px when pictures are compared
    compared: int = 12  # of these channels, so many are compared
    reach: tuple[int, int] = (
        2,
        3,
    )  # cells at 1/4 and 1/8 of the size: the longest shifts looked at
    coarse: tuple[int, int, int] = (48, 72, 96)  # channels at 1/4, 1/8 and 1/16 of the size
    fine: tuple[int, int, int] = (32, 48, 64)  # channels at 1/2, 1/4 and 1/8 of the size
    law_hidden: int = 32  # units of each layer of the gap law
    most_missing: int = 40  # frames: the largest gap of which the law knows

    def __post_init__(self) -> None:
        sizes = (
            self.features,
            self.compared,
            *self.reach,
            *self.coarse,
            *self.fine,
            self.law_hidden,
        )
        if self.compared > self.features:
            raise ValueError("no more channels can be compared than there are features")
        if min(sizes) < 1 or self.most_missing < 1:
            raise ValueError("every size of a MotionConfig must be at least 1")
        if self.most_missing > LARGEST_GAP:
            raise ValueError(f"most_missing must be at most {LARGEST_GAP}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels of a picture; its sides, 0: any."""
        return 3, 0, 0

    @property
    def text_width(self) -> int:
        """Of a prompt token, of which there is none."""
        return 1


def _convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True))


class Residual(nn.Module):
    """Two convolutions beside a straight way; at first the straight way alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        added: Tensor = x_NCHW + self.second(self.first(x_NCHW))
        return F.leaky_relu(added, 0.1)


class Pyramid(nn.Module):
    """Three sizes down and up again; ``extra`` channels may join at the second size."""

    def __init__(self, inside: int, channels: tuple[int, int, int], extra: int = 0) -> None:
        super().__init__()
        large, middle, small = channels
        self.enter = _convolution(inside, large)
        self.large = Residual(large)
        self.down = _convolution(large, middle, 2)
        self.join = _convolution(middle + extra, middle)
        self.middle = Residual(middle)
        self.down_again = _convolution(middle, small, 2)
        self.small = nn.Sequential(Residual(small), Residual(small))
        self.up = _convolution(small + middle, middle)
        self.up_again = _convolution(middle + large, large)
        self.leave = Residual(large)

    def forward(self, x_NCHW: Tensor, extra_NChw: Tensor | None = None) -> Tensor:
        large = self.large(self.enter(x_NCHW))
        middle = self.down(large)
        if extra_NChw is not None:
            middle = torch.cat([middle, extra_NChw], 1)
        middle = self.middle(self.join(middle))
        small = self.small(self.down_again(middle))
        middle = self.up(torch.cat([_twice(small), middle], 1))
        joined: Tensor = self.leave(self.up_again(torch.cat([_twice(middle), large], 1)))
        return joined


def _twice(x_NChw: Tensor) -> Tensor:
    return F.interpolate(x_NChw, scale_factor=2, mode="nearest")


def _zero(inside: int, outside: int) -> nn.Conv2d:
    """A convolution whose output is 0 until it is trained."""
    layer = nn.Conv2d(inside, outside, 3, 1, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def compared(first_NChw: Tensor, second_NChw: Tensor, reach: int) -> Tensor:
    """Agreement of each cell with the cells around its place in the other: [N, (2 r + 1)^2, h, w].

    Scalar products of features over the root of their number; 0 outside.
    """
    rows, columns = first_NChw.shape[-2:]
    padded = F.pad(second_NChw, (reach, reach, reach, reach))
    side = 2 * reach + 1
    agreements = [
        (first_NChw * padded[:, :, y : y + rows, x : x + columns]).sum(1)
        for y in range(side)
        for x in range(side)
    ]
    return torch.stack(agreements, 1) / math.sqrt(first_NChw.shape[1])


class MotionNetwork(nn.Module):
    """What remains once things were moved: see this file's head. At first it changes nothing."""

    def __init__(self, config: MotionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MotionConfig()
        features = config.features
        shifts, far_shifts = ((2 * reach + 1) ** 2 for reach in config.reach)
        self.describe = nn.Sequential(
            _convolution(3, features, 2), _convolution(features, features, 2), Residual(features)
        )
        # Per field: features of both pictures, their agreement, 4 of place, 2 of bend, cover, error
        self.coarse = Pyramid(2 * (2 * features + shifts + 8) + 1, config.coarse, 2 * far_shifts)
        self.coarse_move = _zero(config.coarse[0], 8)
        # Cells of 2 x 2 px: ``_seen``; what the coarse half knows, its moves; t
        self.hand_over = nn.Conv2d(config.coarse[0], config.fine[0], 1)
        self.fine = Pyramid(4 * NUM_SEEN + config.fine[0] + 8 + 1, config.fine)
        self.fine_say = _zero(config.fine[0], 4 * (8 + 4 + 3 + 1))
        assert self.fine_say.bias is not None
        with torch.no_grad():
            self.fine_say.bias[-4:] = math.log(FIRST_ERROR)
        self.law = GapLaw(config.law_hidden, config.most_missing)

    def forward(self, left_NCHW: Tensor, right_NCHW: Tensor, flows: Flows, t_N: Tensor) -> Plan:
        """The frame at place ``t``. Sides must be multiples of 16 px (``guess`` pads)."""
        fields = fields_at(left_NCHW, right_NCHW, flows, t_N)
        hidden, place = self._moved(left_NCHW, right_NCHW, fields, t_N)
        shown = candidates(left_NCHW, right_NCHW, place)
        count, _, _, height, width = shown.shape
        move, preference, colour, log_error = self._said(shown, fields, place, hidden, t_N)
        weight = torch.softmax(trust(fields.cover_NKHW, t_N) + preference, 1)
        place = place + move.view(count, 2, 4, height, width)
        return Plan(place, weight, colour, log_error, _farthest(fields))

    def _moved(
        self, left_NCHW: Tensor, right_NCHW: Tensor, fields: Fields, t_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The coarse half: what it knows, at a quarter of the size, and fields that it moved."""
        count, _, height, width = left_NCHW.shape
        both = self.describe(torch.cat([left_NCHW, right_NCHW])).float()
        left_Nchw, right_Nchw = both.chunk(2)
        known = torch.cat(
            [
                fields.place_NK4HW,
                fields.bend_NK2HW,
                fields.cover_NKHW[:, :, None],
                fields.error_NKHW[:, :, None],
            ],
            2,
        )
        known_NK8hw = F.avg_pool2d(known.flatten(0, 1), 4).unflatten(0, (count, 2))
        scale = known.new_tensor([0.25] * 6 + [1.0, 10.0]).view(1, 1, 8, 1, 1)
        known_NK8hw = known_NK8hw * scale  # pixels to cells; errors are mostly under a tenth
        inputs, agreements = [t_N.view(-1, 1, 1, 1).expand(-1, 1, height // 4, width // 4)], []
        for k in range(2):
            place_N4hw = known_NK8hw[:, k, :4]
            near = backward_warp(left_Nchw, place_N4hw[:, :2])
            far = backward_warp(right_Nchw, place_N4hw[:, 2:])
            near_some, far_some = (x[:, : self.config.compared] for x in (near, far))
            close = compared(near_some, far_some, self.config.reach[0])
            inputs += [near, far, close, known_NK8hw[:, k]]
            near_half, far_half = (F.avg_pool2d(x, 2) for x in (near_some, far_some))
            agreements.append(compared(near_half, far_half, self.config.reach[1]))
        hidden = self.coarse(torch.cat(inputs, 1), torch.cat(agreements, 1)).float()
        move_N8hw = COARSE_MOVE * self.coarse_move(hidden).float()
        move = F.interpolate(move_N8hw, scale_factor=4, mode="bilinear", align_corners=False)
        return hidden, fields.place_NK4HW + move.view(count, 2, 4, height, width)

    def _said(
        self, shown: Tensor, fields: Fields, place: Tensor, hidden: Tensor, t_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fine half: moves [N, 8, H, W], preferences, colour and expected error."""
        height, width = shown.shape[-2:]
        seen = F.pixel_unshuffle(_seen(shown, fields, t_N), 2)
        known = _twice(self.hand_over(hidden).float())
        move = F.avg_pool2d((place - fields.place_NK4HW).flatten(1, 2), 2) / 4
        t = t_N.view(-1, 1, 1, 1).expand(-1, 1, height // 2, width // 2)
        said = self.fine_say(self.fine(torch.cat([seen, known, move, t], 1)))
        move, preference, colour, log_error = F.pixel_shuffle(said.float(), 2).split(
            [8, 4, 3, 1], 1
        )
        return FINE_MOVE * move, preference, ADDED_COLOUR * colour, log_error


NUM_SEEN = 3 + 12 + 4 + 4


def _seen(shown_NMCHW: Tensor, fields: Fields, t_N: Tensor) -> Tensor:
    """What the fine half sees of each pixel: [N, NUM_SEEN, H, W].

    The blend by trust; how each candidate differs from it; how far the pictures differ along each
    field, and each picture along both fields; cover and photometric error of both fields.
    """
    weight_NMHW = torch.softmax(trust(fields.cover_NKHW, t_N), 1)
    blend_NCHW = (shown_NMCHW * weight_NMHW[:, :, None]).sum(1)
    apart_NMCHW = shown_NMCHW - blend_NCHW[:, None]
    pairs = ((0, 1), (2, 3), (0, 2), (1, 3))
    differences = [(shown_NMCHW[:, a] - shown_NMCHW[:, b]).abs().mean(1) for a, b in pairs]
    return torch.cat(
        [
            blend_NCHW,
            4 * apart_NMCHW.flatten(1, 2),  # mostly under a quarter
            4 * torch.stack(differences, 1),
            fields.cover_NKHW,
            10 * fields.error_NKHW,
        ],
        1,
    )


# ---- how many frames a gap holds -------------------------------------------------------------

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
PARTS = 4  # logistic laws of the logarithm of a spacing, mixed
NUM_CUES = 4 * len(QUANTILES) + 4


def gap_cues(
    left_NCHW: Tensor, right_NCHW: Tensor, there_N2HW: Tensor, back_N2HW: Tensor
) -> Tensor:
    """Features of two pictures that show how much time lies between them: [N, NUM_CUES].

    Quantiles of the lengths of both flows, of the difference without and with motion; length of
    the mean motion, spread around it, how far the flows contradict each other, length of the
    longest side. Lengths are in hundredths of the shorter side; all as logarithms.
    """
    side = min(left_NCHW.shape[-2:])
    levels = left_NCHW.new_tensor(QUANTILES)
    percent = 100 / side
    lengths = [flow.norm(dim=1) * percent for flow in (there_N2HW, back_N2HW)]
    apart_NHW = (left_NCHW - right_NCHW).abs().mean(1) * 50
    error_NHW = photometric_error(left_NCHW, right_NCHW, there_N2HW) * 100
    spread = [
        torch.quantile(value_NHW.flatten(1), levels, 1).T
        for value_NHW in (*lengths, apart_NHW, error_NHW)
    ]
    mean_N2 = there_N2HW.mean((2, 3))
    around_N = (there_N2HW - mean_N2[:, :, None, None]).norm(dim=1).mean((1, 2)) * percent
    against_N2HW = there_N2HW + backward_warp(back_N2HW, there_N2HW)
    against_N = against_N2HW.norm(dim=1).mean((1, 2)) * percent
    longest_N = torch.full_like(around_N, max(left_NCHW.shape[-2:]) * percent)
    cues = [
        *spread,
        torch.stack([mean_N2.norm(dim=1) * percent, around_N, against_N, longest_N], 1),
    ]
    return torch.log(torch.cat(cues, 1) + 0.05)


class GapLaw(nn.Module):
    """The law of how many frames lie between two pictures, 0..G, from ``gap_cues``.

    A mixture of logistic laws of the logarithm of the spacing (frames between, and one more), cut
    at whole numbers: smooth, so that few examples of each number are enough. A share of the law
    is even, so that no pace surprises it much.
    """

    def __init__(self, hidden: int, most_missing: int) -> None:
        super().__init__()
        self.most_missing = most_missing
        self.mean_D: Tensor
        self.spread_D: Tensor
        self.register_buffer("mean_D", torch.zeros(NUM_CUES))  # of the cues it learned from
        self.register_buffer("spread_D", torch.ones(NUM_CUES))
        self.layers = nn.Sequential(
            nn.Linear(NUM_CUES, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.say = nn.Linear(hidden, 3 * PARTS)
        middles = torch.linspace(0.3, math.log(most_missing), PARTS)
        with torch.no_grad():
            self.say.weight.mul_(0.1)
            self.say.bias.copy_(torch.cat([torch.zeros(PARTS), middles, torch.zeros(PARTS)]))

    def _said(self, cue_ND: Tensor) -> Tensor:
        """Shares, middles and scales of the parts: [N, 3 PARTS]."""
        said: Tensor = self.say(self.layers((cue_ND - self.mean_D) / self.spread_D))
        return said

    def forward(self, cue_ND: Tensor) -> Tensor:
        """Logarithms of probabilities of 0..G frames between: [N, G + 1], normalised."""
        share_NP, middle_NP, log_scale_NP = self._said(cue_ND).chunk(3, 1)
        edges = torch.arange(self.most_missing + 2, device=cue_ND.device) + 0.5  # of spacings
        scale_NP1 = log_scale_NP.clamp(-4, 3).exp()[:, :, None]
        below = torch.sigmoid((edges.log() - middle_NP[:, :, None]) / scale_NP1)
        mass_NG = (torch.softmax(share_NP, 1)[:, :, None] * below.diff(dim=2)).sum(1) + 1e-6
        even_G = (edges[:-1] < WIDEST + 1).float()
        told_NG = mass_NG / mass_NG.sum(1, keepdim=True)
        return torch.log((1 - OPEN_SHARE) * told_NG + OPEN_SHARE * even_G / even_G.sum())


def total_law(log_law_NG: Tensor) -> Tensor:
    """The law of the sum of independent gaps, from their laws [N, G + 1]: [N G + 1], normalised."""
    total = torch.ones(1, dtype=torch.float64, device=log_law_NG.device)
    for law in log_law_NG.double().exp():
        total = F.conv1d(total.view(1, 1, -1), law.flip(0).view(1, 1, -1), padding=len(law) - 1)[
            0, 0
        ]
    return torch.log(total / total.sum()).to(log_law_NG.dtype)


# ---- one gap of a user's pictures ------------------------------------------------------------


@dataclass(frozen=True)
class Neighbour:
    """A given picture beyond a gap's end."""

    picture_CHW: Tensor  # in [-1, 1]
    distance: float  # from that end, in lengths of the gap


@dataclass(frozen=True)
class Gap:
    """Two given pictures and how things move around them; frames at any place follow from it.

    ``work`` pictures have the size at which motion is estimated: small pictures enlarged, large
    ones reduced, by a whole number.
    """

    left_CHW: Tensor
    right_CHW: Tensor
    left_work_1CHW: Tensor
    right_work_1CHW: Tensor
    flows: Flows  # between the work pictures


def measured_gap(
    estimator: MotionEstimator,
    left_CHW: Tensor,
    right_CHW: Tensor,
    before: Neighbour | None = None,
    after: Neighbour | None = None,
) -> Gap:
    """Motion between two pictures in [-1, 1], curved where pictures beyond them are given."""
    left, right = working_size(left_CHW[None]), working_size(right_CHW[None])
    there = estimator(left[0], right[0])[None]
    back = estimator(right[0], left[0])[None]
    bends = []
    for start, flow, beyond in ((left, there, before), (right, back, after)):
        outward = None
        if beyond is not None:
            outward = estimator(start[0], working_size(beyond.picture_CHW[None])[0])[None]
        bends.append(bend_of(flow, outward, beyond.distance if beyond else 1.0))
    return Gap(left_CHW, right_CHW, left, right, Flows(there, back, *bends))


def bend_of(flow_N2HW: Tensor, outward_N2HW: Tensor | None, distance: float) -> Tensor:
    """The acceleration at a gap's end, from which ``outward`` leads to a picture ``distance`` gaps
    beyond; 0 where there is none."""
    if outward_N2HW is None:
        return torch.zeros_like(flow_N2HW)
    return acceleration(flow_N2HW, outward_N2HW, distance)


def working_size(picture_NCHW: Tensor) -> Tensor:
    """The picture enlarged or reduced by a whole number, to a shorter side of about 256 px."""
    side = min(picture_NCHW.shape[-2:])
    if side <= WORKING_SIDE:
        times = round(WORKING_SIDE / side)
        if times == 1:
            return picture_NCHW
        size = [times * n for n in picture_NCHW.shape[-2:]]
        return F.interpolate(picture_NCHW, size, mode="bicubic", align_corners=False).clamp(-1, 1)
    return F.avg_pool2d(picture_NCHW, max(1, round(side / (1.5 * WORKING_SIDE))))


@torch.no_grad()
def guess(network: MotionNetwork | None, gap: Gap, t: float) -> tuple[Tensor, Tensor]:
    """The frame at place ``t`` in (0, 1) of a gap, and how sure it is; ``None``: nothing learned.

    Returns the picture [3, H, W] in [-1, 1] and the expected mean absolute error of each pixel
    [H, W], in the same units. Places where the given pictures are alike and nothing moves keep
    their bits.
    """
    plan = planned(network, gap, t)
    log_error_N1HW = plan.log_error_N1HW
    size = gap.left_CHW.shape[-2:]
    if log_error_N1HW.shape[-2:] != size:
        log_error_N1HW = F.interpolate(log_error_N1HW, size, mode="bilinear", align_corners=False)
    return shown(gap, plan), log_error_N1HW[0, 0].exp()


@torch.no_grad()
def planned(network: MotionNetwork | None, gap: Gap, t: float) -> Plan:
    """How to make the frame at place ``t``, at the size of the work pictures.

    What is learned also tells where to smear (``settled``) and where to dissolve instead
    (``dissolving``).
    """
    left, right = gap.left_work_1CHW, gap.right_work_1CHW
    t_N = left.new_tensor([t])
    if network is None:
        return hand_made(left, right, gap.flows, t_N)
    plan = _padded_plan(network, left, right, gap.flows, t_N)
    return dissolving(left, right, settled(plan), t_N)


@torch.no_grad()
def shown(gap: Gap, plan: Plan) -> Tensor:
    """The frame [C, H, W] in [-1, 1] that a plan makes of the gap's pictures, at their size."""
    left, right = gap.left_work_1CHW, gap.right_work_1CHW
    height, width = gap.left_CHW.shape[-2:]
    if left.shape[-2] > height:
        picture = F.interpolate(painted(left, right, plan), (height, width), mode="area")
        plan = enlarged(plan, height, width)
    else:
        plan = enlarged(plan, height, width)
        picture = painted_in_turn(gap.left_CHW[None], gap.right_CHW[None], plan)
    still = still_places(gap.left_CHW[None], gap.right_CHW[None], plan.motion_N1HW)
    return torch.where(still, gap.left_CHW[None], picture.clamp(-1, 1))[0]


def _padded_plan(
    network: MotionNetwork, left_NCHW: Tensor, right_NCHW: Tensor, flows: Flows, t_N: Tensor
) -> Plan:
    """The network's plan of pictures of any size: their edges are repeated, then cut off again."""
    height, width = left_NCHW.shape[-2:]
    margins = (0, -width % GRAIN, 0, -height % GRAIN)

    def wide(x_NCHW: Tensor) -> Tensor:
        return F.pad(x_NCHW, margins, "replicate")

    wide_flows = Flows(
        *(wide(x) for x in (flows.there_N2HW, flows.back_N2HW)),
        *(wide(x) for x in (flows.bend_left_N2HW, flows.bend_right_N2HW)),
    )
    plan = network(wide(left_NCHW), wide(right_NCHW), wide_flows, t_N)
    return Plan(
        plan.place_NK4HW[..., :height, :width],
        plan.weight_NMHW[..., :height, :width],
        plan.colour_NCHW[..., :height, :width],
        plan.log_error_N1HW[..., :height, :width],
        plan.motion_N1HW[..., :height, :width],
    )


def still_places(left_NCHW: Tensor, right_NCHW: Tensor, motion_N1HW: Tensor) -> Tensor:
    """Where both pictures are equal all around and nothing comes by: bool [N, 1, H, W]."""
    changed_N1HW = (left_NCHW != right_NCHW).any(1, keepdim=True).float()
    side = 2 * STILL_REACH + 1
    near_N1HW = F.max_pool2d(changed_N1HW, side, 1, STILL_REACH) > 0
    return ~near_N1HW & (motion_N1HW < STILL_FLOW)


@torch.no_grad()
def gap_logits(
    network: MotionNetwork, estimator: MotionEstimator, left_CHW: Tensor, right_CHW: Tensor
) -> Tensor:
    """Log-law of how many frames lie between two pictures in [-1, 1]: [G + 1], normalised."""
    law: Tensor = network.law(measured_cues(estimator, left_CHW, right_CHW)[None])[0]
    return law


def measured_cues(estimator: MotionEstimator, left_CHW: Tensor, right_CHW: Tensor) -> Tensor:
    """``gap_cues`` of two pictures in [-1, 1], at a shorter side of 128 px: [NUM_CUES]."""
    scale = LAW_SIDE / min(left_CHW.shape[-2:])
    size = [max(1, round(scale * n)) for n in left_CHW.shape[-2:]]
    left, right = (
        F.interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=True)
        for x in (left_CHW, right_CHW)
    )
    there, back = estimator(left[0], right[0])[None], estimator(right[0], left[0])[None]
    return gap_cues(left, right, there, back)[0]
