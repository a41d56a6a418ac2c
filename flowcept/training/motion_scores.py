"""Scores of a motion network on held-out windows: PSNR in dB, and pictures.

Shape suffixes: N windows, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flowcept.codecs import to_frames
from flowcept.data.motion_windows import Batch
from flowcept.networks.motion import MotionNetwork, Plan, hand_made, painted

SHEET_ROWS = 8
ERROR_SCALE = 4  # of the errors that a sheet shows
HALFWAY = 0.5


def scores(
    network: MotionNetwork, windows: Sequence[Batch], device: torch.device
) -> dict[str, float]:
    """Mean PSNR in dB of the network and of the blend by hand, and the gain of the first.

    ``gain_halfway`` counts only windows whose frame lies in the middle.
    """
    if not windows:
        return {}
    pairs = [decibels(network, window.to(device)) for window in windows]
    made, hand = zip(*pairs, strict=True)
    gains = [ours - theirs for ours, theirs in pairs]
    told = {
        "psnr": fmean(made),
        "hand_made": fmean(hand),
        "gain": fmean(gains),
        "median_gain": median(gains),
        "best_gain": max(gains),
        "worst_gain": min(gains),
    }
    return {**told, **_halfway(gains, windows)}


def _halfway(gains: Sequence[float], windows: Sequence[Batch]) -> dict[str, float]:
    """The mean gain of frames in the middle between two given ones, if there are any."""
    pairs = zip(gains, windows, strict=True)
    middle = [gain for gain, window in pairs if float(window.t_N) == HALFWAY]
    return {"gain_halfway": fmean(middle)} if middle else {}


def decibels(network: MotionNetwork, window: Batch) -> tuple[float, float]:
    """PSNR in dB of the network's frame and of the blend by hand."""
    made, hand = (_painted(window, plan) for plan in (_plan(network, window), _hand_plan(window)))
    return psnr(made, window.truth_N3HW), psnr(hand, window.truth_N3HW)


def psnr(made_NCHW: Tensor, truth_NCHW: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    error = (made_NCHW.clamp(-1, 1) - truth_NCHW).square().mean()
    return float(10 * torch.log10(4 / error.clamp(min=1e-8)))


@torch.no_grad()
def _plan(network: MotionNetwork, window: Batch) -> Plan:
    plan: Plan = network(window.left_N3HW, window.right_N3HW, window.flows, window.t_N)
    return plan


def _hand_plan(window: Batch) -> Plan:
    return hand_made(window.left_N3HW, window.right_N3HW, window.flows, window.t_N)


def _painted(window: Batch, plan: Plan) -> Tensor:
    return painted(window.left_N3HW, window.right_N3HW, plan)


def sheet(network: MotionNetwork, windows: Sequence[Batch], device: torch.device) -> Image.Image:
    """A contact sheet, one window a row: left, made, true, right, and the error times four."""
    step = max(1, len(windows) // SHEET_ROWS)
    rows = [_row(network, window.to(device)) for window in windows[::step][:SHEET_ROWS]]
    height, width = (max(row.shape[side] for row in rows) for side in (1, 2))
    same = [F.pad(row, (0, width - row.shape[2], 0, height - row.shape[1])) for row in rows]
    return Image.fromarray(to_frames(torch.cat(same, 1)[None].cpu())[0])


def _row(network: MotionNetwork, window: Batch) -> Tensor:
    """One row of a sheet: [3, H, 5 W]."""
    made_N3HW = _painted(window, _plan(network, window)).clamp(-1, 1)
    error_N3HW = (made_N3HW - window.truth_N3HW).abs() * ERROR_SCALE - 1
    pictures = (window.left_N3HW, made_N3HW, window.truth_N3HW, window.right_N3HW)
    return torch.cat([*pictures, error_N3HW.clamp(-1, 1)], 3)[0]
