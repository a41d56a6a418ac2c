"""How things move from one picture to another, and pictures moved along such a motion.

A *flow* from picture A to picture B says for every pixel of A how far away its content lies in B:
``flow_2HW[0]`` in x (to the right), ``flow_2HW[1]`` in y (down), both in pixels. What is unusual:

* A motion estimator is any function of two pictures (``MotionEstimator``). The one that is here,
  ``DisEstimator``, is OpenCV's dense inverse search (Kroeger et al. 2016, arXiv 1603.03590) with
  variational refinement, started twice: from no motion, and from an exhaustive match of cells of
  an eighth of the size. Each pixel keeps the flow under which the pictures agree better.
* Splatting (Niklaus and Liu 2020, arXiv 2003.05534) moves values forward: pixels that land on one
  place are averaged, those whose match is bad count little. Places on which nothing lands are
  filled from coarser levels.

Shape suffixes: N pictures, C channels, H W height and width, 2 the x and y of a flow, h w the
rows and columns of cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

TRUST = 20.0  # a pixel whose photometric error is e, in [0, 1], weighs exp(-TRUST e)
LEAST_COVER = 1e-3  # of a pixel's weight: with less, a place counts as a hole
LEAST_SIDE = 16  # pixels; DIS needs a few patches of 8 px along each side
LARGE_ERROR = 0.04  # of the range of colours: more may be a wrong match
LEAST_SHARE = 0.002  # of the pixels: fewer wrong ones are not worth a second search
CELL = 8  # pixels along a cell of the exhaustive match


class MotionEstimator(Protocol):
    """Tells how things move from one picture to another."""

    def __call__(self, first_CHW: Tensor, second_CHW: Tensor) -> Tensor:
        """The flow [2, H, W] in pixels from the first of two RGB pictures to the second.

        Pictures are [3, H, W] of one size, floats in [-1, 1] or uint8.
        """
        ...


@dataclass(frozen=True)
class DisConfig:
    """How ``DisEstimator`` searches."""

    finest_scale: int = 0  # pyramid level at which the search ends: 0 full size, 1 half of it
    variational_iterations: int = 10  # of refinement at each level; 0: none
    patch_stride: int = 3  # pixels between patches of 8 x 8; fewer is slower and finer
    descent_iterations: int = 25  # of each patch
    match: bool = True  # start a second time from an exhaustive match of cells
    match_reach: int = 12  # cells: the longest motion that the match looks for, along each axis


class DisEstimator:
    """OpenCV's dense inverse search on the processor, started twice: see this file's head."""

    def __init__(self, config: DisConfig | None = None) -> None:
        self.config = config or DisConfig()
        # A DIS object keeps state after a call with an initial flow: one for each kind of call.
        self._from_rest = self._dis()
        self._from_match = self._dis()

    def _dis(self) -> cv2.DISOpticalFlow:
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        dis.setFinestScale(self.config.finest_scale)
        dis.setVariationalRefinementIterations(self.config.variational_iterations)
        dis.setPatchStride(self.config.patch_stride)
        dis.setGradientDescentIterations(self.config.descent_iterations)
        return dis

    def __call__(self, first_CHW: Tensor, second_CHW: Tensor) -> Tensor:
        """The flow [2, H, W] in pixels from the first picture to the second, on the CPU."""
        first, second = _bytes(first_CHW), _bytes(second_CHW)
        if torch.equal(first, second):
            return torch.zeros(2, *first.shape[1:])
        height, width = first.shape[1:]
        below, right = max(0, LEAST_SIDE - height), max(0, LEAST_SIDE - width)
        first, second = (_padded(picture, below, right) for picture in (first, second))
        return self._search(first, second)[:, :height, :width].contiguous()

    def _search(self, first_CHW: Tensor, second_CHW: Tensor) -> Tensor:
        grey_HW, other_HW = _grey(first_CHW), _grey(second_CHW)
        rest_2HW = _flow(self._from_rest.calc(grey_HW, other_HW, None))
        if not self.config.match or min(grey_HW.shape) < 4 * CELL:
            return rest_2HW
        if well_explained(first_CHW, second_CHW, rest_2HW):
            return rest_2HW
        start_2HW = matched_cells(first_CHW, second_CHW, self.config.match_reach)
        start_HW2 = np.ascontiguousarray(start_2HW.permute(1, 2, 0).numpy())
        match_2HW = _flow(self._from_match.calc(grey_HW, other_HW, start_HW2))
        return better_flow(first_CHW, second_CHW, rest_2HW, match_2HW)


def _bytes(picture_CHW: Tensor) -> Tensor:
    """The picture as uint8 on the CPU."""
    if picture_CHW.dtype == torch.uint8:
        return picture_CHW.cpu()
    return ((picture_CHW.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _padded(picture_CHW: Tensor, below: int, right: int) -> Tensor:
    """The picture with its last row and column repeated."""
    if not below and not right:
        return picture_CHW
    return F.pad(picture_CHW[None].float(), (0, right, 0, below), "replicate")[0].to(torch.uint8)


def _grey(picture_CHW: Tensor) -> NDArray[np.uint8]:
    picture_HWC = np.ascontiguousarray(picture_CHW.permute(1, 2, 0).numpy())
    grey_HW: NDArray[np.uint8] = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY)
    return grey_HW


def _flow(flow_HW2: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(flow_HW2).permute(2, 0, 1).contiguous()


def better_flow(
    first_CHW: Tensor, second_CHW: Tensor, usual_2HW: Tensor, other_2HW: Tensor
) -> Tensor:
    """The usual flow [2, H, W], and the other one where the pictures agree better under that.

    Errors are means over 7 x 7 pixels; the other has to win by a tenth and .004 of the range of
    colours, so that noise does not mix the two.
    """
    usual_HW, other_HW = (_mean_error(first_CHW, second_CHW, f) for f in (usual_2HW, other_2HW))
    return torch.where(other_HW < 0.9 * usual_HW - 0.004, other_2HW, usual_2HW)


def well_explained(first_CHW: Tensor, second_CHW: Tensor, flow_2HW: Tensor) -> bool:
    """Whether the flow leaves hardly anything that another one could explain better."""
    error_HW = _mean_error(first_CHW, second_CHW, flow_2HW)
    return float((error_HW > LARGE_ERROR).float().mean()) < LEAST_SHARE


def _mean_error(first_CHW: Tensor, second_CHW: Tensor, flow_2HW: Tensor) -> Tensor:
    """Photometric error [H, W], its mean over 7 x 7 pixels."""
    first_NCHW, second_NCHW = _unit(first_CHW)[None], _unit(second_CHW)[None]
    error_NHW = photometric_error(first_NCHW, second_NCHW, flow_2HW[None])
    return F.avg_pool2d(error_NHW, 7, 1, 3, count_include_pad=False)[0]


def _unit(picture_CHW: Tensor) -> Tensor:
    """uint8 or [-1, 1] to [-1, 1]."""
    if picture_CHW.dtype == torch.uint8:
        return picture_CHW.float() / 127.5 - 1
    return picture_CHW.float()


# ---- the exhaustive match --------------------------------------------------------------------


def matched_cells(first_CHW: Tensor, second_CHW: Tensor, reach: int) -> Tensor:
    """A coarse flow [2, H, W] in pixels: for each cell of 8 x 8 px its best match in the other.

    A cell is described by the colours of itself and its eight neighbours at a quarter of the
    size, with their local mean taken out in part, so that a change of light matters less. All
    shifts of up to ``reach`` cells are tried; the best is refined to a part of a cell by a parabola
    and lonely outliers fall to a median over 3 x 3 cells.
    """
    first_DN, second_DN = _described(first_CHW), _described(second_CHW)
    rows, columns = first_DN.shape[1:]
    reach_y, reach_x = min(reach, rows - 1), min(reach, columns - 1)
    cost_shifts = _costs(first_DN, second_DN, reach_y, reach_x)
    best_hw = cost_shifts.flatten(0, 1).argmin(0)
    wide = 2 * reach_x + 1
    x_hw = best_hw % wide - reach_x
    y_hw = best_hw // wide - reach_y
    cells_2hw = torch.stack([x_hw, y_hw]).float()
    median_2hw = _median(cells_2hw)
    height, width = first_CHW.shape[1:]
    pixels = F.interpolate(
        median_2hw[None] * CELL, scale_factor=CELL, mode="bilinear", align_corners=False
    )
    below, right = max(0, height - pixels.shape[2]), max(0, width - pixels.shape[3])
    return F.pad(pixels, (0, right, 0, below), "replicate")[0, :, :height, :width].contiguous()


def _described(picture_CHW: Tensor) -> Tensor:
    """What a cell looks like: [D, h, w]."""
    half = F.avg_pool2d(_unit(picture_CHW)[None], CELL // 2, ceil_mode=True)
    half = F.pad(half, (0, half.shape[3] % 2, 0, half.shape[2] % 2), "replicate")
    half = half - 0.7 * F.avg_pool2d(half, 9, 1, 4, count_include_pad=False)
    return F.pixel_unshuffle(half, 2)[0]


def _costs(first_Dhw: Tensor, second_Dhw: Tensor, reach_y: int, reach_x: int) -> Tensor:
    """Mean difference of each cell to those shifted by (y, x): [2 Y + 1, 2 X + 1, h, w]."""
    rows, columns = first_Dhw.shape[1:]
    far = 4.0  # of a cell outside the picture: more than any difference
    padded = F.pad(second_Dhw, (reach_x, reach_x, reach_y, reach_y), value=far)
    costs = []
    for y in range(2 * reach_y + 1):
        strip = padded[:, y : y + rows].unfold(2, columns, 1)  # [D, h, X, w]
        difference = (strip - first_Dhw[:, :, None]).abs().mean(0).transpose(0, 1)
        costs.append(difference)
    cost = torch.stack(costs)
    mean = F.avg_pool2d(cost.flatten(0, 1)[:, None], 3, 1, 1, count_include_pad=False)
    shift_y = torch.arange(-reach_y, reach_y + 1).view(-1, 1, 1, 1)
    shift_x = torch.arange(-reach_x, reach_x + 1).view(1, -1, 1, 1)
    # Where nothing tells shifts apart, as in a clear sky, the shorter one is meant.
    return mean.view_as(cost) + 0.002 * torch.hypot(shift_y.float(), shift_x.float())


def _median(cells_2hw: Tensor) -> Tensor:
    """Median over 3 x 3 cells, of x and y each."""
    windows = F.pad(cells_2hw[None], (1, 1, 1, 1), "replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(4).median(4).values[0]


# ---- moving pictures along a flow ------------------------------------------------------------


def backward_warp(picture_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """Each pixel of the result is what lies ``flow`` away from it in the picture (bilinear).

    Outside the picture its nearest edge is taken. Where the flow is 0 all bits are kept.
    """
    height, width = picture_NCHW.shape[-2:]
    x_HW, y_HW = _places(height, width, flow_N2HW.device, flow_N2HW.dtype)
    x = (x_HW + flow_N2HW[:, 0]).clamp(0, width - 1)
    y = (y_HW + flow_N2HW[:, 1]).clamp(0, height - 1)
    # align_corners: -1 and 1 are the centres of the first and the last pixel.
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    moved = F.grid_sample(
        picture_NCHW, grid.to(picture_NCHW.dtype), padding_mode="border", align_corners=True
    )
    still_N1HW = (flow_N2HW == 0).all(1, keepdim=True)
    return torch.where(still_N1HW, picture_NCHW, moved)


def _places(
    height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x as a row [1, W] and y as a column [H, 1]."""
    x = torch.arange(width, device=device, dtype=dtype)
    y = torch.arange(height, device=device, dtype=dtype)
    return x[None], y[:, None]


def photometric_error(first_NCHW: Tensor, second_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """How far the colours of pixels and their matches differ, [N, H, W] in [0, 1].

    Pictures are in [-1, 1]; the mean over channels of the absolute difference, halved. A match
    that lies outside the second picture counts as one at its edge.
    """
    return (first_NCHW - backward_warp(second_NCHW, flow_N2HW)).abs().mean(1) / 2


def splat(
    value_NCHW: Tensor, flow_N2HW: Tensor, weight_NHW: Tensor, levels: int = 6
) -> tuple[Tensor, Tensor]:
    """Values moved forward along the flow, holes filled; and how well each place is covered.

    Every pixel is dealt out to the four places around the point where it lands, in shares that
    are bilinear and times ``weight``; a place holds the weighted mean of what it got. Places that
    got almost nothing take the mean of the next coarser level, of twice the side, and so on.
    Returns values [N, C, H, W] and the sum of the weights before filling [N, H, W].
    """
    sums = _dealt(torch.cat([value_NCHW * weight_NHW[:, None], weight_NHW[:, None]], 1), flow_N2HW)
    cover_NHW = sums[:, -1]
    return _filled(sums, levels), cover_NHW


def _dealt(value_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """Sums of the shares of values that land on each place."""
    count, channels, height, width = value_NCHW.shape
    x_HW, y_HW = _places(height, width, flow_N2HW.device, flow_N2HW.dtype)
    x, y = x_HW + flow_N2HW[:, 0], y_HW + flow_N2HW[:, 1]
    left, top = x.floor(), y.floor()
    row_N11 = torch.arange(count, device=x.device).view(-1, 1, 1) * (height * width)
    flat_MC = value_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    sums_MC = flat_MC.new_zeros(count * height * width, channels)
    for right in (0, 1):
        for below in (0, 1):
            column, line = left + right, top + below
            share = (1 - (x - column).abs()) * (1 - (y - line).abs())
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            place = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index_M = (place.long() + row_N11).flatten()
            sums_MC = sums_MC.index_add(0, index_M, flat_MC * (share * inside).view(-1, 1))
    return sums_MC.view(count, height, width, channels).permute(0, 3, 1, 2)


def _filled(sums_NCHW: Tensor, levels: int) -> Tensor:
    """Weighted means; the last channel of ``sums`` is the weight. Holes from coarser levels."""
    weight_N1HW = sums_NCHW[:, -1:]
    mean_NCHW = sums_NCHW[:, :-1] / weight_N1HW.clamp(min=LEAST_COVER)
    height, width = sums_NCHW.shape[-2:]
    if levels == 0 or min(height, width) < 2 or bool((weight_N1HW >= LEAST_COVER).all()):
        return mean_NCHW
    coarse = _filled(F.avg_pool2d(sums_NCHW, 2, ceil_mode=True), levels - 1)
    fill = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(weight_N1HW >= LEAST_COVER, mean_NCHW, fill[:, :, :height, :width])
